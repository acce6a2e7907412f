"""A requirement with confidence: what so many right answers of so many say about all the examples that may come.

    >>> allowed(0.97, 0.95, 2500)                      # so many of 2,500 may be wrong
    60
    >>> round(lower_bound(2440, 2500, 0.95), 4)
    0.9703
    >>> allowed(0.99, 0.95, 200) is None, needed(0.99, 0.95)    # 200 images cannot say it, 299 can
    (True, 299)
    >>> passing(0.99, 0.95, 2500)                      # the part of 2,500 that has to be right
    0.9936

Bounds are exact (Clopper and Pearson 1934), for examples drawn independently of the networks. Where many networks could
be delivered, they are tested one after another, in an order that other examples have chosen, until one fails: then all
that passed hold together with the confidence of a single test (fixed-sequence testing, as in Learn then Test,
Angelopoulos et al. 2021).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

POWER = 0.8  # with which probability a network that is aimed at shall pass
MOST = 2**40


def tail(wrong: int, count: int, rate: float) -> float:
    """Compute the probability of at most ``wrong`` errors in ``count`` examples at an error ``rate`` within 0 to 1."""
    if wrong < 0:
        return 0.0
    if wrong >= count or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    odds, none = math.log(rate) - math.log1p(-rate), count * math.log1p(-rate)
    whole = math.lgamma(count + 1) + none
    terms = (whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * odds for k in range(wrong, -1, -1))
    total = 0.0
    for place, term in enumerate(terms):  # from the largest term on, where the rate lies above
        part = math.exp(term)
        total += part
        if place > 50 and part < 1e-18 * total:
            break
    return min(total, 1.0)


@functools.lru_cache(maxsize=64)
def allowed(requirement: float, confidence: float, count: int) -> int | None:
    """Return the most errors in ``count`` examples that show an accuracy of ``requirement``; None where none do."""
    if tail(0, count, 1 - requirement) > 1 - confidence:
        return None
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tail(middle, count, 1 - requirement) <= 1 - confidence else (low, middle)
    return low


def _errors_allowed(requirement: float, confidence: float, count: int) -> int:
    if (most := allowed(requirement, confidence, count)) is None:
        raise ValueError(too_few(requirement, confidence, count))
    return most


def lower_bound(right: int, count: int, confidence: float) -> float:
    """Return the accuracy that ``right`` of ``count`` independent examples show with this confidence."""
    if not right:
        return 0.0
    low, high = 0.0, right / count
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(count - right, count, 1 - middle) <= 1 - confidence else (low, middle)
    return low


def passing(requirement: float, confidence: float, count: int) -> float:
    """Return the accuracy on ``count`` examples with which a network passes the test of ``requirement``."""
    return (count - _errors_allowed(requirement, confidence, count)) / count


def aim(requirement: float, confidence: float, count: int, power: float = POWER) -> float:
    """Return the accuracy that a network needs to pass the test of ``requirement`` with probability ``power``."""
    most = _errors_allowed(requirement, confidence, count)
    low, high = requirement, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if tail(most, count, 1 - middle) >= power else (middle, high)
    return high


def needed(requirement: float, confidence: float, accuracy: float = 1.0, power: float = POWER) -> int | None:
    """Return how many examples show ``requirement`` of a network that has ``accuracy``, with probability ``power``.

    None where its accuracy is not above the requirement: no number does.
    """
    if accuracy <= requirement:
        return None

    def passes(count: int) -> bool:
        most = allowed(requirement, confidence, count)
        return most is not None and tail(most, count, 1 - accuracy) >= power

    low, high = 0, 1
    while not passes(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def too_few(requirement: float, confidence: float, count: int) -> str:
    """Say that so many examples cannot certify the requirement, and how many could."""
    return (
        f"{count:,} examples cannot show an accuracy of {requirement:g} with {confidence:.0%} confidence, even if all "
        f"are right: at least {needed(requirement, confidence):,} are needed"
    )


@dataclass(frozen=True)
class Certificate:
    """What testing the networks of a path gave.

    ``tested`` holds, in the order of testing, each network's density, its accuracy on the examples that steered, how
    many examples it had right here, and whether it passed. ``chosen`` is the place of the one to deliver, None where
    the first failed. ``bound`` is the accuracy that the chosen one (else the first) has with this confidence,
    ``needed`` how many examples would probably have certified the first; None where it passed, or no number would do.
    """

    requirement: float
    confidence: float
    count: int
    tested: tuple[tuple[float, float, int, bool], ...]
    chosen: int | None
    bound: float | None
    needed: int | None

    def __str__(self) -> str:
        asked = f"{self.requirement:g} with {self.confidence:.0%} confidence on {self.count:,} examples"
        if self.chosen is not None:
            return f"certified {asked}: density {self.tested[self.chosen][0]:.4f}, accuracy at least {self.bound:.4f}"
        if not self.tested:
            return f"not certified {asked}: no network came far enough to be tested"
        _, _, right, _ = self.tested[0]
        more = f"; about {self.needed:,} examples would be needed" if self.needed else ""
        return f"not certified {asked}: the most accurate network has {right:,} right, at least {self.bound:.4f}{more}"


def sequence(path: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of networks (density, accuracy) to be tested, from the most accurate to the sparsest.

    Those are left out that another one beats in both.
    """
    chosen: list[int] = []
    for place in sorted(range(len(path)), key=lambda place: (-path[place][1], path[place][0])):
        if not chosen or path[place][0] < path[chosen[-1]][0]:
            chosen.append(place)
    return chosen


def certify(
    path: Sequence[tuple[float, float]],
    right: Callable[[int], int],
    requirement: float,
    confidence: float,
    count: int,
) -> tuple[Certificate, int | None]:
    """Test the networks of a path, (density, accuracy on the examples that steered) each, until one fails.

    ``right`` counts the right answers of the network at a place of the path among ``count`` examples that neither
    trained nor chose anything. Returns the certificate, and the place of the network to deliver.
    """
    most, tested, place = allowed(requirement, confidence, count), [], None
    for candidate in sequence(path):
        density, accuracy = path[candidate]
        found = right(candidate)
        passed = most is not None and count - found <= most
        tested.append((density, accuracy, found, passed))
        if not passed:
            break
        place = candidate
    chosen = None if place is None else sum(passed for *_, passed in tested) - 1
    shown = tested[chosen or 0][2] if tested else None
    bound = None if shown is None else lower_bound(shown, count, confidence)
    more = needed(requirement, confidence, shown / count) if shown is not None and chosen is None else None
    return Certificate(requirement, confidence, count, tuple(tested), chosen, bound, more), place
