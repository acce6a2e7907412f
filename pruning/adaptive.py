"""The study's own strategy: descents as far as a tolerance lets the accuracy fall, each step compensated.

A descent is the series of steps at one evaluation. It takes several steps between two looks, a stride: up to four times
as many after a look that passes, fewer after one that fails, by the accuracy lost so far. So few looks find out how far
it goes (galloping search, Bentley and Yao 1976); a look itself ends as soon as it is settled (``pruning.looks``).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruning.compensation import Jacobian, score_factors
from pruning.gradients import Batch
from pruning.processes import copy_from_first
from pruning.pruner import Pruner
from pruning.schedules import AccuracyTolerance
from pruning.strategies import Decision, Evaluation, Feedback, Strategy


@dataclass
class AccuracyDriven(Strategy):
    """Prune at every evaluation step by step, as far as a tolerance lets the accuracy fall; undo what falls below it.

    At a descent ``measured`` mini-batches are spent, once for several steps, to find how the outputs depend on the
    weights. This ranks the weights together with their magnitudes (``sensitive``) and says how the remaining ones must
    change (``compensation``); with ``measured=0`` nothing is measured or compensated. Where the loop passes
    ``looks.Examples``, a look ends as soon as it is settled, with a probability of at most ``error`` of being wrong, or
    goes by its estimate after a part of the examples; otherwise each look evaluates all of them. What may be delivered
    is evaluated on all examples when the control stops. With ``error=0`` every step is evaluated on all examples.
    """

    tolerance: AccuracyTolerance
    measured: int = 0
    error: float = 0.1
    sensitive: bool = True
    stride: int = field(init=False, default=1, repr=False)
    scores_average: ClassVar[bool] = True
    tolerates: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.error < 1:
            raise ValueError(f"error must be 0 or more and less than 1, got {self.error}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("evaluate", "next_images") if self.measured else ("evaluate",)

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        if evaluation.over_budget:
            return Decision("budget spent")
        if evaluation.first:
            pruner.remember("dense")
        least = self._least(evaluation)
        descends = evaluation.accuracy >= least
        thresholds = _Descent(self, pruner, evaluation, feedback, least).go() if descends else None
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
            jacobian = measured_on(pruner, [Batch(batch, limit=2)], measuring)
            masks = {name: layer.mask for name, layer in pruner.layers.items()}
            jacobian.compensate(masks, [copy.deepcopy(pruner.model)])
        return jacobian.peak(self.measured * Batch(batch).count)

    def _least(self, evaluation: Evaluation) -> float:
        """Compute the accuracy that a step must leave."""
        place = evaluation.start, evaluation.iteration, evaluation.budget
        missed = 0 if evaluation.met else evaluation.missed + 1
        return self.tolerance.lowest_accuracy(evaluation.requirement, *place, missed, evaluation.slack)


class _Descent:
    """The steps taken at one evaluation: how far they have come, and what the next one starts from."""

    def __init__(
        self, strategy: AccuracyDriven, pruner: Pruner, evaluation: Evaluation, feedback: Feedback, least: float
    ):
        self.strategy, self.pruner, self.feedback, self.least = strategy, pruner, feedback, least
        tolerance = strategy.tolerance
        floor = tolerance.lowest_density(evaluation.start, evaluation.next, evaluation.budget)
        self.last = evaluation.iteration >= tolerance.effort * evaluation.start
        self.lowest, self.keep = floor * pruner.synapses, tolerance.keep
        self.iteration, self.accuracy = evaluation.iteration, evaluation.accuracy
        self.jacobian: Jacobian | None = None
        self.idle = False
        self.fresh = False  # whether the Jacobian was measured where the next step starts
        self.begun: dict | None = None  # what the first step started from

    @property
    def over(self) -> bool:
        """Whether no whole step is left above the lowest density, or the last step removed nothing."""
        return self.idle or self.pruner.exhausted or self.keep**0.5 * self.pruner.significant < self.lowest

    def go(self) -> dict[str, float] | None:
        """Descend, and return the last thresholds; where a look or a measurement fails, nothing was pruned."""
        number = self.pruner.round
        try:
            return self._go()
        except BaseException:
            if self.begun is not None:
                self.pruner.restore(self.begun)
            self.pruner.round = number
            raise

    def _go(self) -> dict[str, float] | None:
        """Descend as far as looks allow; returns the last thresholds.

        Steps that were too many are taken back, and fewer tried, with a fresh Jacobian if the old one was reused. Where
        no whole step is left, the last descent tries half of one.
        """
        pruner, accepted, taken, limit = self.pruner, None, 0, math.inf
        stride, whole = self._stride(self.strategy.stride, math.inf), self.keep
        while not self.over:
            if taken + 1 >= limit:
                if not self.last or self.keep > whole:
                    break
                self.keep, limit = whole**0.5, taken + 2
            self._measure()
            before, jacobian = pruner.snapshot(), self.jacobian
            self.begun = self.begun or before
            steps, thresholds = self._steps(int(min(stride, limit - taken - 1)))
            verdict = self.feedback.look(self.least, pruner.generator, self.strategy.error)
            self.feedback.report(self.iteration, verdict, thresholds)
            room = self._room(taken + steps, verdict.accuracy)
            if verdict.met:
                accepted, taken, self.fresh = thresholds, taken + steps, False
                stride = self._stride(room - taken, 4 * steps)
                continue
            pruner.restore(before)
            if self.fresh:
                limit = taken + steps
            self.jacobian = jacobian if self.fresh else None  # the network has moved away from where it was measured
            stride = self._stride(room - taken, max(steps - 1, 1))
        self.strategy.stride = taken
        return accepted

    def _stride(self, room: float, most: float) -> int:
        """Return how many steps to take next; one where every step is evaluated."""
        return int(min(max(room, 1), most)) if self.strategy.error else 1

    def _room(self, steps: int, accuracy: float) -> float:
        """Estimate after how many steps the accuracy falls to the least allowed, if it is ``accuracy`` after ``steps``.

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
            self.jacobian, self.fresh = measured_on(self.pruner, batches, self.feedback.measuring), True

    def _steps(self, most: int) -> tuple[int, dict[str, float]]:
        """Take at most so many steps, at least one; returns their number and the last thresholds."""
        pruner, steps, thresholds = self.pruner, 0, dict[str, float]()
        while not steps or (steps < most and not self.over):
            before, aimed = pruner.significant, max(self.keep * pruner.significant, self.lowest)
            thresholds, self.jacobian = take_step(pruner, aimed, self.jacobian, self.strategy.sensitive)
            steps, self.idle = steps + 1, pruner.significant == before
        return steps, thresholds


@torch.no_grad()
def take_step(
    pruner: Pruner, aimed: float, jacobian: Jacobian | None, sensitive: bool
) -> tuple[dict[str, float], Jacobian | None]:
    """Prune to about ``aimed`` synapses over all layers, and compensate where there is a Jacobian.

    At least one synapse is to go, but no fewer stay than there are layers. Returns the thresholds by layer, and the
    Jacobian of the remaining columns.
    """
    pruner.round += 1
    target = max(min(aimed, pruner.significant - 1), len(pruner.layers))
    scores = pruner.scores()
    if jacobian is not None and sensitive:
        scores = _weighed(scores, score_factors(jacobian))
    # Layers without scores stay as they are, and count.
    scored = [layer for name, layer in pruner.layers.items() if name in scores]
    others = pruner.significant - sum(layer.significant for layer in scored)
    amount = max(target - others, 1) / sum(layer.synapses for layer in scored)
    thresholds = pruner.prune(dict.fromkeys(scores, amount), scores, jacobian)
    if jacobian is not None:
        jacobian = jacobian.within({name: layer.mask for name, layer in pruner.layers.items()})
    return thresholds, jacobian


def _weighed(scores: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply scores by factors, the same in all processes."""
    if below := [name for name, score in scores.items() if (score < 0).any()]:
        raise ValueError(
            f"layer '{below[0]}' has negative scores, whose order a factor would reverse: use a criterion with scores "
            "of 0 or more, or AccuracyDriven(..., sensitive=False)"
        )
    copy_from_first(factors.values())
    return {name: score * factors[name].to(score.dtype) for name, score in scores.items()}


def measured_on(pruner: Pruner, batches: list, measuring: Mapping[str, Any]) -> Jacobian:
    """Measure the Jacobian of the model that is evaluated."""
    frozen = {name for name, value in pruner.model.named_parameters() if not value.requires_grad}
    return Jacobian(pruner.evaluated, batches, pruner.generator, frozen, **measuring)
