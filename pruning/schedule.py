"""How much is pruned when: frozen dataclasses, pure functions of the round or the iteration.

A schedule's amount means what its allocation takes: a quality factor in standard deviations
for thresholds per layer, a density (fraction of synapses that stay) for the others.
``paced`` tells what moves it on: ``"rounds"`` of pruning and recovery, ``"iterations"``, or
``"looks"`` at what pruning costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Rising:
    """A quality factor that rises by ``rate`` (standard deviations) a round (Han et al. 2015)."""

    rate: float = 0.1
    paced: ClassVar[str] = "rounds"

    def __post_init__(self):
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")

    def amount(self, progress: float) -> float:
        """Quality factor after ``progress`` rounds; a layer's pace may make it fractional."""
        return self.rate * progress


@dataclass(frozen=True)
class Ladder:
    """A density that shrinks by the factor ``keep`` each round."""

    keep: float = 0.8
    paced: ClassVar[str] = "rounds"

    def __post_init__(self):
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie between 0 and 1, got {self.keep}")

    def amount(self, progress: float) -> float:
        """Density after ``progress`` rounds."""
        return self.keep**progress


@dataclass(frozen=True)
class Cubic:
    """Gradual pruning: a density that falls from 1 to ``final`` as a cubic (Zhu and Gupta 2017)."""

    final: float = 0.01
    paced: ClassVar[str] = "iterations"

    def __post_init__(self):
        if not 0 < self.final < 1:
            raise ValueError(f"final must lie between 0 and 1, got {self.final}")

    def amount(self, progress: float) -> float:
        """Density when the fraction ``progress`` of the ramp's iterations is over."""
        return self.final + (1 - self.final) * (1 - min(progress, 1.0)) ** 3


@dataclass(frozen=True)
class Slack:
    """Descents as deep as the validation accuracy allows: below the requirement, by a slack that shrinks to nothing.

    At every evaluation the network is pruned step by step, to the fraction ``keep`` of its synapses each (its square root
    where that is too much), as long as its accuracy stays at or above ``least`` and its density at or above ``lowest``.
    The slack begins at ``depth`` times the standard
    deviation of one image's right or wrong at the requirement, sqrt(r (1 - r)), which makes it comparable between tasks
    (for small differences that is Cohen's effect size of proportions), and shrinks, as the fraction of the effort that
    is left to the power ``power`` (0: not at all), to zero when the training has cost ``effort``
    times the iterations after which the requirement was met first: then pruning ends. While the requirement is not met
    the slack shrinks besides, to 1/e in ``patience`` evaluations, so that a network which does not recover is let be.
    The density may fall by the factor 1/e ``decay`` times over that way, evenly in its logarithm (infinite: at once), so
    that a long way is not spent on recovering from its first descent.
    """

    effort: float = 2.0
    depth: float = 0.05
    keep: float = 0.9
    power: float = 1.0
    patience: float = 2.0
    decay: float = 9.0
    paced: ClassVar[str] = "looks"

    def __post_init__(self):
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie between 0 and 1, got {self.keep}")
        if not 1 < self.effort < math.inf:
            raise ValueError(f"effort must be more than 1, got {self.effort}")
        for name in ("patience", "decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("depth", "power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def amount(self, progress: float) -> float:
        """The density itself: here the control says how far it goes."""
        return progress

    def end(self, start: int, budget: int | None) -> float:
        """The iteration at which the slack is gone, where the requirement was met first after ``start``."""
        return min(self.effort * start, math.inf if budget is None else budget)

    def gone(self, start: int, now: int, budget: int | None) -> float:
        """The fraction of the way from ``start`` to the end that iteration ``now`` has behind it, at most 1."""
        return min((now - start) / max(self.end(start, budget) - start, 1), 1)

    def least(self, requirement: float, start: int, now: int, budget: int | None, missed: int = 0) -> float:
        """The accuracy that a step of pruning at iteration ``now`` must leave, after so many evaluations below."""
        slack = self.depth * (1 - self.gone(start, now, budget)) ** self.power * math.exp(-missed / self.patience)
        return requirement - slack * math.sqrt(requirement * (1 - requirement))

    def lowest(self, start: int, then: int, budget: int | None) -> float:
        """The density below which no step goes before iteration ``then``, that of the next evaluation."""
        return math.exp(-self.decay * self.gone(start, then, budget)) if then > start else 1.0
