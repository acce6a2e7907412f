"""How much is pruned when: frozen dataclasses, pure functions of the round or of the fraction of a ramp.

    >>> [GeometricSchedule(0.5).amount(number) for number in range(4)]
    [1.0, 0.5, 0.25, 0.125]

An amount means what the allocation takes: a quality factor in standard deviations for ``std_threshold``, a
density (the fraction of synapses that stay) for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class LinearThreshold:
    """A quality factor that rises by ``rate`` standard deviations per round (Han et al. 2015)."""

    rate: float = 0.1
    unit: ClassVar[str] = "quality factor"

    def __post_init__(self):
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")

    def amount(self, progress: float) -> float:
        """Quality factor after ``progress`` rounds; a layer's pace may make it fractional."""
        return self.rate * progress


@dataclass(frozen=True)
class GeometricSchedule:
    """A density that shrinks by the factor ``keep`` per round."""

    keep: float = 0.8
    unit: ClassVar[str] = "density"

    def __post_init__(self):
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie between 0 and 1, got {self.keep}")

    def amount(self, progress: float) -> float:
        """Density after ``progress`` rounds."""
        return self.keep**progress


@dataclass(frozen=True)
class PolynomialSchedule:
    """A density that falls from 1 to ``final`` as a cubic polynomial (Zhu and Gupta 2017)."""

    final: float = 0.01
    unit: ClassVar[str] = "density"

    def __post_init__(self):
        if not 0 < self.final < 1:
            raise ValueError(f"final must lie between 0 and 1, got {self.final}")

    def amount(self, progress: float) -> float:
        """Density when the fraction ``progress`` of the ramp's iterations is over."""
        return self.final + (1 - self.final) * (1 - min(progress, 1.0)) ** 3


@dataclass(frozen=True)
class AccuracyTolerance:
    """Prune stepwise while accuracy stays above a tolerance that decays to zero.

    At every evaluation the network is pruned in a series of steps (a descent), each to the fraction ``keep`` of its
    synapses (in the last descent at the end to its square root, where a whole step is too much), as long as
    accuracy stays at or above ``lowest_accuracy`` and density at or above ``lowest_density``. The tolerance begins
    at ``depth`` standard deviations of one image's being right or wrong at the requirement, sqrt(r (1 - r)), which
    makes it comparable between tasks (Cohen's effect size of proportions, for small differences), or at a control's
    ``slack``, in units of its score. It shrinks with the fraction of the effort that remains to the power ``power``
    (0: not at all), to zero when the training has cost ``effort`` times the iterations up to the requirement: then
    pruning ends. While the requirement is not met it shrinks to 1/e in ``patience`` evaluations besides, so that a
    network which does not recover is left alone. Density may fall by the factor 1/e ``decay`` times over that way,
    evenly in its logarithm (infinite: at once), so that a long way is not spent on recovering from its first
    descent.
    """

    effort: float = 2.0
    depth: float = 0.05
    keep: float = 0.9
    power: float = 1.0
    patience: float = 2.0
    decay: float = 9.0

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

    def end(self, start: int, budget: int | None) -> float:
        """Compute the iteration at which the tolerance is zero, where the requirement was met first after ``start``."""
        return min(self.effort * start, math.inf if budget is None else budget)

    def elapsed(self, start: int, now: int, budget: int | None) -> float:
        """Compute the fraction of the way from ``start`` to the end that iteration ``now`` has behind it, at most 1."""
        return min((now - start) / max(self.end(start, budget) - start, 1), 1)

    def lowest_accuracy(
        self,
        requirement: float,
        start: int,
        now: int,
        budget: int | None,
        missed: int = 0,
        slack: float | None = None,
    ) -> float:
        """Compute the accuracy that a step must leave at iteration ``now``, after ``missed`` evaluations below."""
        depth, unit = (self.depth, math.sqrt(requirement * (1 - requirement))) if slack is None else (slack, 1.0)
        depth = depth * (1 - self.elapsed(start, now, budget)) ** self.power * math.exp(-missed / self.patience)
        return requirement - depth * unit

    def lowest_density(self, start: int, then: int, budget: int | None) -> float:
        """Compute the density below which no step goes before iteration ``then``, that of the next evaluation."""
        return math.exp(-self.decay * self.elapsed(start, then, budget)) if then > start else 1.0
