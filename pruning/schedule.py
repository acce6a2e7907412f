"""How much is pruned when: frozen dataclasses, pure functions of the round or the iteration.

A schedule's amount means what its allocation takes: a quality factor in standard deviations
for thresholds per layer, a density (fraction of synapses that stay) for the others.
``paced`` tells what moves it on: ``"rounds"`` of pruning and recovery, or ``"iterations"``.
"""

from __future__ import annotations

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
class Descent:
    """A density that goes down in descents and comes to rest after each, steered by how recovery went.

    A descent takes the density to the fraction ``keep`` of what it was, in small steps ``every``
    so many iterations, over a time that is the fraction ``share`` of the one that the requirement took to
    be met first. Then the network recovers until it meets the requirement. After a recovery of at most ``quick`` evaluations the next descent goes deeper (keep
    to the power ``bolder``, never below ``deepest``), after one of ``slow`` or more less deep (to the
    power ``softer``). One that did not recover is undone: the last network that met the
    requirement goes on with a far gentler descent (to the power ``gentler``), ``trials`` times at most.

    With ``early_final`` below 1, training prunes already while the requirement has not been met: from iteration
    ``begin`` the density falls to ``early_keep`` of itself every ``every`` iterations, down to ``early_final``.
    """

    keep: float = 0.5
    share: float = 0.25
    every: int = 10
    quick: int = 1
    slow: int = 5
    bolder: float = 1.3
    softer: float = 0.6
    gentler: float = 0.4
    deepest: float = 0.3
    trials: int = 2
    begin: int = 200
    early_keep: float = 0.985
    early_final: float = 1.0
    paced: ClassVar[str] = "descents"

    def __post_init__(self):
        for name in ("keep", "share", "deepest", "softer", "gentler", "early_keep", "early_final"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.keep == 1:
            raise ValueError("keep must be less than 1: a descent has to prune")
        for name in ("every", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def amount(self, progress: float) -> float:
        """The density itself: here the control says how far a descent has come."""
        return progress

    def length(self, start: int) -> int:
        """Iterations of a descent, where the requirement was met first after ``start`` iterations."""
        return self.every * max(round(self.share * start / self.every), 1)

    def after(self, keep: float, recovery: int) -> float:
        """What the next descent keeps, after one of ``keep`` and a recovery of so many evaluations."""
        if recovery <= self.quick:
            return max(keep**self.bolder, self.deepest)
        return keep**self.softer if recovery >= self.slow else keep
