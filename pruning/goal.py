"""What a control is to reach: a requirement, the score it is about, and how far that may fall on the way.

>>> Goal(0.99).checked(0.97)
0.97
>>> Goal(-0.35, "any", slack=0.02).checked(-0.4)      # minus a loss
-0.4
"""

from __future__ import annotations

import math
import operator
import sys
from dataclasses import dataclass
from typing import Any


def number(name: str, value: Any) -> float:
    """Take one number, of a library's type too, as a plain one; ``TypeError`` where it is none."""
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor or an array of several
        pass
    raise TypeError(f"{name} must be a number, got {value!r:.80}")


def whole(name: str, value: Any) -> int:
    """Take a whole number, of a library's type too, as a plain one."""
    try:
        return operator.index(value)
    except TypeError:
        found = number(name, value)
    if not found.is_integer():
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(found)


def at_least_one(name: str, value: Any) -> int:
    """Take a number of at least 1 as a whole one, rounded up; infinity is as good as the largest."""
    found = number(name, value)
    if not found >= 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return sys.maxsize if found == math.inf else math.ceil(found)


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
        object.__setattr__(self, "requirement", number("requirement", self.requirement))
        if self.slack is not None:
            object.__setattr__(self, "slack", number("slack", self.slack))
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
        value = number("accuracy" if self.score == "accuracy" else "score", value)
        if self.score == "accuracy" and not 0 <= value <= 1:
            raise ValueError(f"accuracy must be a fraction between 0 and 1, got {value}; other scores need score='any'")
        if math.isnan(value):
            raise ValueError(f"the score must be a number, got {value}")
        return value
