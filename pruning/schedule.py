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
