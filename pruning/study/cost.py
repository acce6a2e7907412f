"""What a training costs: images that pass forward, and forward and backward, all of them up to the delivered model.

>>> Passes(evaluated=5000, trained=128).images
5384

A backward pass takes about twice the work of a forward pass, so an image that trains counts three times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning.events import Event

TRAINED = 3  # an image passes forward, and backward at about twice that


@dataclass(frozen=True)
class Passes:
    """Images ``evaluated`` (forward) and ``trained`` on (forward and backward), and what skips pruned synapses.

    ``macs`` counts multiply-accumulates of all of them, those of pruned synapses left out.
    """

    evaluated: int
    trained: int
    macs: int = 0

    @property
    def images(self) -> int:
        """All in passes forward of one image."""
        return self.evaluated + TRAINED * self.trained


def passes(events: Sequence[Event], iterations: int, batch: int, macs: Mapping[str, int]) -> Passes:
    """Count what a training of so many ``iterations`` with these ``events`` took.

    ``macs`` holds the multiply-accumulates of an image in each layer where nothing is pruned. Between two evaluations a
    training has the densities that the first of them left; mini-batches that measure are iterations as well.
    """
    now, last, evaluated, done = dict.fromkeys(macs, 1.0), 0, 0, 0.0

    def work(densities: Mapping[str, float]) -> float:
        return sum(macs[name] * densities[name] for name in macs)

    for event in events:
        looked = event.phase in ("look", "confirm")
        count, new = event.examples or 0, max(min(event.iteration, iterations) - last, 0)
        done += TRAINED * batch * new * work(now) + count * work(event.densities if looked else now)
        evaluated, last = evaluated + count, last + new
        now = now if looked else event.densities
    done += TRAINED * batch * (iterations - last) * work(now)
    return Passes(evaluated, batch * iterations, round(done))


def delivered(events: Sequence[Event], count: int, iterations: int, batch: int, macs: Mapping[str, int]) -> Passes:
    """Count up to a model that the first ``count`` events led to, and what confirmed it at the end."""
    confirmed = [event for event in events[count:] if event.phase == "confirm"]
    return passes([*events[:count], *confirmed], iterations, batch, macs)


def derived(iterations: int, interval: int, images: int, batch: int) -> Passes:
    """Count a training that has evaluated ``images`` at every ``interval`` of iterations and nothing else."""
    return Passes(-(-iterations // interval) * images, batch * iterations)
