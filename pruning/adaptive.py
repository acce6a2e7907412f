"""The study's own strategies: descents as far as a tolerance lets the accuracy fall, each step compensated.

``AccuracyDriven`` evaluates all validation examples after each step. ``Frugal`` takes longer and longer strides as long
as the accuracy stays high enough, and shorter ones where it did not, so that few looks find out how far a descent goes
(galloping search, Bentley and Yao 1976); a look itself ends as soon as it is settled (``pruning.looks``).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pruning.compensation import Jacobian
from pruning.gradients import Batch
from pruning.pruner import Pruner
from pruning.schedules import AccuracyTolerance
from pruning.strategies import Decision, Evaluation, Feedback, Strategy


@dataclass
class AccuracyDriven(Strategy):
    """Prune at every evaluation step by step, as far as a tolerance lets the accuracy fall; undo what falls below it.

    After each step the accuracy over all validation examples is measured. ``measured`` counts the mini-batches that are
    spent, once for several steps, to find what the weights that stay must change by (``compensation``); 0 compensates
    nothing.
    """

    tolerance: AccuracyTolerance
    measured: int = 0
    scores_average: ClassVar[bool] = True
    tolerates: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("evaluate", "next_images") if self.measured else ("evaluate",)

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        if evaluation.over_budget:
            return Decision("budget spent")
        if evaluation.first:
            pruner.remember("dense")
        thresholds = self._descend(pruner, evaluation, feedback)
        if pruner.exhausted:
            return Decision("nothing left to prune", thresholds)
        if evaluation.iteration >= self.tolerance.effort * evaluation.start:
            return Decision("effort spent", thresholds)
        return Decision("prune" if thresholds else "wait", thresholds)

    def check(self, pruner: Pruner, batch: Any, measuring: Mapping[str, Any]) -> int:
        if not self.measured:
            return 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compensation measures .* works in blocks")
            jacobian = _jacobian(pruner, [Batch(batch, limit=2)], measuring)
            masks = {name: layer.mask for name, layer in pruner.layers.items()}
            jacobian.compensate(masks, [copy.deepcopy(pruner.model)])
        return jacobian.peak(self.measured * Batch(batch).count)

    def _least(self, evaluation: Evaluation) -> float:
        """Compute the accuracy that a step must leave."""
        place = evaluation.start, evaluation.iteration, evaluation.budget
        missed = 0 if evaluation.met else evaluation.missed + 1
        return self.tolerance.lowest_accuracy(evaluation.requirement, *place, missed, evaluation.slack)

    def _descend(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> dict[str, float] | None:
        """Prune in steps to the fraction ``keep`` each; returns the last thresholds.

        Retry a rejected step with a fresh Jacobian if the old one was reused, then at half the step.
        """
        tolerance, accuracy, iteration = self.tolerance, evaluation.accuracy, evaluation.iteration
        least = self._least(evaluation)
        lowest = tolerance.lowest_density(evaluation.start, evaluation.next, evaluation.budget) * pruner.synapses
        accepted, keep, jacobian, fresh = None, tolerance.keep, None, False
        while accuracy >= least and not pruner.exhausted:
            if tolerance.keep**0.5 * pruner.significant < lowest:
                break
            before = pruner.snapshot()
            pruner.round += 1
            if jacobian is None and self.measured:
                batches = [feedback.next_images() for _ in range(self.measured)]
                iteration += len(batches)
                jacobian, fresh = _jacobian(pruner, batches, feedback.measuring), True
            target = max(min(max(keep * pruner.significant, lowest), pruner.significant - 1), len(pruner.layers))
            thresholds = pruner.prune(dict.fromkeys(pruner.layers, target / pruner.synapses), jacobian)
            verdict = feedback.look(least, pruner.generator, 0)
            feedback.report(iteration, verdict, thresholds)
            if not verdict.met:
                pruner.restore(before)
                if jacobian is not None and not fresh:
                    jacobian = None  # the network has moved away from where it was measured
                elif keep == tolerance.keep:
                    keep = tolerance.keep**0.5
                else:
                    break
                continue
            accepted, accuracy, keep, fresh = thresholds, verdict.accuracy, tolerance.keep, False
            if jacobian is not None:
                jacobian = jacobian.within({name: layer.mask for name, layer in pruner.layers.items()})
        return accepted


@dataclass
class Frugal(AccuracyDriven):
    """Prune as ``AccuracyDriven``, with few looks that cost little.

    A descent looks at the accuracy after several steps, and a look ends as soon as it is settled, which is wrong with
    at most the probability ``error``. What may be delivered is evaluated whole when the control stops.
    """

    error: float = 0.1
    stride: int = field(init=False, default=1, repr=False)

    def __post_init__(self):
        if not 0 < self.error < 1:
            raise ValueError(f"error must lie between 0 and 1, got {self.error}")

    def _descend(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> dict[str, float] | None:
        least = self._least(evaluation)
        return _Descent(self, pruner, evaluation, feedback, least).go() if evaluation.accuracy >= least else None


class _Descent:
    """One descent: where it stands, and the place to go back to."""

    def __init__(self, strategy: Frugal, pruner: Pruner, evaluation: Evaluation, feedback: Feedback, least: float):
        self.strategy, self.pruner, self.feedback, self.least = strategy, pruner, feedback, least
        tolerance = strategy.tolerance
        floor = tolerance.lowest_density(evaluation.start, evaluation.next, evaluation.budget)
        self.last = evaluation.iteration >= tolerance.effort * evaluation.start
        self.lowest, self.keep = floor * pruner.synapses, tolerance.keep
        self.iteration, self.accuracy = evaluation.iteration, evaluation.accuracy
        self.jacobian: Jacobian | None = None
        self.fresh = False  # whether the Jacobian was measured where the next step starts

    @property
    def over(self) -> bool:
        """Whether no whole step is left above the lowest density."""
        return self.pruner.exhausted or self.keep**0.5 * self.pruner.significant < self.lowest

    def go(self) -> dict[str, float] | None:
        """Descend as far as looks allow; returns the last thresholds.

        Steps that were too many are taken back, and fewer tried, with a fresh Jacobian if the old one was reused. Where
        no whole step is left, the last descent tries half of one.
        """
        pruner, accepted, taken, limit = self.pruner, None, 0, math.inf
        stride, whole = max(self.strategy.stride, 1), self.keep
        while not self.over:
            if taken + 1 >= limit:
                if not self.last or self.keep > whole:
                    break
                self.keep, limit = whole**0.5, taken + 2
            self._measure()
            before, jacobian = pruner.snapshot(), self.jacobian
            steps, thresholds = self._steps(int(min(stride, limit - taken - 1)))
            verdict = self.feedback.look(self.least, pruner.generator, self.strategy.error)
            self.feedback.report(self.iteration, verdict, thresholds)
            room = self._room(taken + steps, verdict.accuracy)
            if verdict.met:
                accepted, taken, self.fresh = thresholds, taken + steps, False
                stride = int(min(max(room - taken, 1), 4 * steps))
                continue
            pruner.restore(before)
            if self.fresh:
                limit = taken + steps
            self.jacobian = jacobian if self.fresh else None  # the network has moved away from where it was measured
            stride = int(min(max(room - taken, 1), max(steps - 1, 1)))
        self.strategy.stride = taken
        return accepted

    def _room(self, steps: int, accuracy: float) -> float:
        """Guess after how many steps the least accuracy is left, where so many left ``accuracy``.

        What is lost grows with the square of the steps: the first ones cut what matters least.
        """
        lost = self.accuracy - accuracy
        return steps * math.sqrt((self.accuracy - self.least) / lost) if lost > 0 else math.inf

    def _measure(self) -> None:
        """Measure where the network is, unless an older measurement still serves."""
        self.fresh |= not self.strategy.measured
        if self.jacobian is None and self.strategy.measured:
            batches = [self.feedback.next_images() for _ in range(self.strategy.measured)]
            self.iteration += len(batches)
            self.jacobian, self.fresh = _jacobian(self.pruner, batches, self.feedback.measuring), True

    def _steps(self, most: int) -> tuple[int, dict[str, float]]:
        """Take at most so many steps, at least one; returns their number and the last thresholds."""
        pruner, steps, thresholds = self.pruner, 0, dict[str, float]()
        while not steps or (steps < most and not self.over):
            pruner.round += 1
            aimed = max(self.keep * pruner.significant, self.lowest)
            target = max(min(aimed, pruner.significant - 1), len(pruner.layers))
            thresholds = pruner.prune(dict.fromkeys(pruner.layers, target / pruner.synapses), self.jacobian)
            if self.jacobian is not None:
                self.jacobian = self.jacobian.within({name: layer.mask for name, layer in pruner.layers.items()})
            steps += 1
        return steps, thresholds


def _jacobian(pruner: Pruner, batches: list, measuring: Mapping[str, Any]) -> Jacobian:
    frozen = {name for name, value in pruner.model.named_parameters() if not value.requires_grad}
    return Jacobian(pruner.evaluated, batches, pruner.generator, frozen, **measuring)
