"""Looks at some validation examples, until it is settled whether enough of them are right.

    >>> right = torch.rand(5000, generator=torch.Generator().manual_seed(0)) < 0.97
    >>> examples = Examples(lambda places: right[places], 5000)
    >>> accuracy = examples()
    >>> verdict = examples.look(0.94, torch.Generator().manual_seed(1))
    >>> verdict.met, verdict.examples < 1500
    (True, True)

A look draws examples in random order, without putting any back, and stops as soon as one of two sequential tests says
that the accuracy over all of them is high enough, or that it is not. Each test is a bet against one answer, whose
capital grows only where that answer is wrong (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", section 5: sampling without replacement). By Ville's inequality each errs with at most the
probability ``error``, however early it stops; a look that is not settled after some of the examples is a close call,
and goes by its estimate. What is known from the last whole evaluation is reused: a look begins with the examples that
were nearest to being otherwise, all of them, and bets on how the other answers have changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 100  # examples between two decisions
MOST = 0.3  # of the examples are looked at; what is not settled by then is a close call, and the estimate decides
NEAR = 0.1  # of the examples are looked at first, those nearest to being otherwise
# What is expected before anything is seen: the variance of a change, and the examples that this is worth.
VARIANCE, WORTH = 0.02, 50.0


@dataclass(frozen=True)
class Verdict:
    """What a look found: whether the accuracy is ``met``, its estimate, and how many ``examples`` that took.

    ``whole`` says that it took all of them; their number may be None, where it is not known.
    """

    met: bool
    accuracy: float
    examples: int | None
    whole: bool = False


class Examples:
    """Validation examples that a control may look at a part at a time.

    ``right`` takes places, int64 [n] within 0 to ``count`` - 1, and says of each of these examples whether the
    evaluated model is right as it is at that moment: bool [n], or by how much, float [n], such as the margin between
    the logit of the true class and the largest of the others; what is above zero is right. Called without arguments,
    examples give the accuracy over all of them.
    """

    def __init__(self, right: Callable[[Tensor], Tensor], count: int):
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.right, self.count = right, count
        # What the last whole evaluation found: which are right, and which are nearest to being otherwise.
        self.known: Tensor | None = None
        self.near = torch.empty(0, dtype=torch.int64)

    def __call__(self) -> float:
        found = self._asked(torch.arange(self.count))
        self.known = found > 0
        if found.is_floating_point():
            self.near = found.abs().argsort()[: int(NEAR * self.count)]
        return int(self.known.sum()) / self.count

    def knows(self, accuracy: float) -> bool:
        """Say whether the last whole evaluation gave this accuracy, so that looks can build on it."""
        return self.known is not None and int(self.known.sum()) / self.count == accuracy

    def forget(self) -> None:
        """Forget the last whole evaluation."""
        self.known, self.near = None, self.near[:0]

    def look(self, least: float, generator: torch.Generator, error: float = 0.05) -> Verdict:
        """Say whether the accuracy over all examples is at least ``least``.

        A look that settles is wrong with at most the probability ``error``; one that does not goes by its estimate.
        """
        known = torch.zeros(self.count) if self.known is None else self.known.float()
        # The least number of right answers; what is off by less than rounding counts as reached.
        needed = math.ceil(least * self.count - 1e-9) - int(known.sum())
        sure = self._changes(self.near, known)
        certain, others = int(sum(sure)), torch.ones(self.count, dtype=torch.bool)
        others[self.near] = False
        places = others.nonzero()[:, 0]
        bet = _Bet(needed - certain, len(places), error, self.known is not None)
        bet.settle()
        most = max(int(MOST * self.count), 2 * BLOCK)
        for some in places[torch.randperm(len(places), generator=generator)].split(BLOCK):
            if bet.settled is not None or len(sure) + bet.seen >= most:
                break
            bet.take(self._changes(some, known))
        elsewhere = bet.sum * len(places) / bet.seen if bet.seen else 0.0
        estimate = (float(known.sum()) + certain + elsewhere) / self.count
        met = estimate >= least if bet.settled is None else bet.settled
        return Verdict(met, min(max(estimate, 0.0), 1.0), len(sure) + bet.seen)

    def _changes(self, places: Tensor, known: Tensor) -> list[float]:
        return ((self._asked(places) > 0).float() - known[places]).tolist() if len(places) else []

    def _asked(self, places: Tensor) -> Tensor:
        found = torch.as_tensor(self.right(places)).cpu()
        if found.shape != places.shape or not (found.dtype == torch.bool or found.is_floating_point()):
            raise ValueError(
                f"right must say of {len(places)} examples whether each is right, bool or float [{len(places)}], "
                f"got {found.dtype} {list(found.shape)}"
            )
        return found


class _Bet:
    """Two bets on the sum of changes, each in -1 to 1: against ``less than needed``, and against ``needed or more``."""

    def __init__(self, needed: int, count: int, error: float, paired: bool):
        self.needed, self.count, self.error = needed, count, error
        self.sum, self.seen, self.settled = 0.0, 0, None  # type: float, int, bool | None
        self.capital = [1.0, 1.0]
        self.mean, self.variance = (0.0, VARIANCE) if paired else (needed / count, 0.25)
        self.squares = WORTH * self.variance

    def take(self, changes: list[float]) -> None:
        """Bet on some changes, one after another, and see whether a bet has won."""
        stakes = None
        for change in changes:
            left = self.count - self.seen
            # The mean of what is left where the sum is just too small, and where it just reaches what is needed.
            short, enough = (self.needed - 1 - self.sum) / left, (self.needed - self.sum) / left
            if stakes is None:  # one for all of a block, which is known before it
                stakes = (
                    _stake(self.mean - short, self.variance, short),
                    _stake(enough - self.mean, self.variance, enough),
                )
            self.capital[0] *= max(1 + stakes[0] * (change - short), 0.0)
            self.capital[1] *= max(1 - stakes[1] * (change - enough), 0.0)
            self.sum += change
            self.seen += 1
        self.settle()
        worth = WORTH + self.seen
        self.squares += sum(change * change for change in changes)
        self.mean = self.sum / worth
        self.variance = max(self.squares / worth - self.mean**2, 1e-4)

    def settle(self) -> None:
        """See whether a bet has won, or what is left cannot change the answer."""
        left = self.count - self.seen
        if self.sum - left >= self.needed or self.capital[0] >= 1 / self.error:
            self.settled = True
        elif self.sum + left < self.needed or self.capital[1] >= 1 / self.error:
            self.settled = False


def _stake(edge: float, variance: float, mean: float) -> float:
    """Return what to bet on an expected ``edge``: the approximate optimum, within what cannot lose everything."""
    return min(max(edge / (variance + edge * edge), 0.0), 0.75 / (1 + abs(mean)))
