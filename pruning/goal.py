"""What a control is to reach: a requirement, the score it is about, and how far that may fall on the way.

>>> Goal(0.99).checked(0.97)
0.97
>>> Goal(-0.35, "any", slack=0.02).checked(-0.4)      # minus a loss
-0.4
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A requirement, in units of the score: an ``accuracy``, a fraction, or ``any`` other, higher for a better model.

    ``slack`` is how far a method that tolerates it lets the score fall below the requirement at first; None leaves that
    to the method, which knows accuracies. Raises ``ValueError`` on what makes no sense.
    """

    requirement: float
    score: str = "accuracy"
    slack: float | None = None

    def __post_init__(self):
        if self.score not in ("accuracy", "any"):
            raise ValueError(f"score must be 'accuracy' or 'any', got {self.score!r}")
        if self.score == "accuracy" and not 0 < self.requirement < 1:
            raise ValueError(
                f"requirement must be an accuracy between 0 and 1, got {self.requirement}; "
                "with score='any' it is any number"
            )
        if not math.isfinite(self.requirement):
            raise ValueError(f"requirement must be a number, got {self.requirement}")
        if self.slack is not None and not 0 <= self.slack < math.inf:
            raise ValueError(f"slack must be 0 or more, got {self.slack}")

    def checked(self, value: float) -> float:
        """Return a score as a number; raises ``ValueError`` where it is none."""
        value = float(value)
        if self.score == "accuracy" and not 0 <= value <= 1:
            raise ValueError(f"accuracy must be a fraction between 0 and 1, got {value}; other scores need score='any'")
        if math.isnan(value):
            raise ValueError("the score must be a number, got nan")
        return value
