"""What a control does at an evaluation: strategies, each with one method.

``strategy.step(pruner, evaluation, feedback)`` is called at every evaluation from the first that meets the requirement
on. It prunes through the pruner, and says what was done. A strategy's settings are given when it is made; what it keeps
from one evaluation to the next are its fields with ``init=False``, which go into checkpoints. A method's strategy is a
prototype: each control works on a copy. A new kind of method is a new class; nothing else asks what kind a method is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from pruning.looks import Verdict
from pruning.pruner import Pruner
from pruning.schedules import GeometricSchedule, LinearThreshold, PolynomialSchedule

# So many rounds that prune nothing mean that no later one will: layers kept whole by their pace,
# or of equal weights, whose deviation is zero.
IDLE_ROUNDS = 10_000
NOT_RECOVERED = "not recovered"
GOING_ON = ("wait", "prune", "undo", "regrow")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, and where the training stands.

    ``iteration`` counts mini-batch updates, ``start`` is the one after which the requirement was met first, ``next``
    that of the next evaluation. ``missed`` counts the evaluations in a row below the requirement before this one,
    ``dense`` those up to the first that met it. ``patience`` is in evaluations, ``budget`` and ``ramp`` in iterations,
    ``slack`` in units of the score, where the control was given one.
    """

    iteration: int
    accuracy: float
    requirement: float
    start: int
    next: int
    missed: int
    dense: int
    patience: int
    budget: int | None
    ramp: int
    slack: float | None = None

    @property
    def met(self) -> bool:
        """Whether the requirement is met."""
        return self.accuracy >= self.requirement

    @property
    def first(self) -> bool:
        """Whether it is met for the first time."""
        return self.iteration == self.start

    @property
    def over_budget(self) -> bool:
        """Whether the budget of iterations is spent."""
        return self.budget is not None and self.iteration >= self.budget

    def stop(self, patience: int) -> str | None:
        """Give the reason to stop that every strategy of rounds and ramps knows, if there is one."""
        if not self.met and self.missed + 1 >= patience:
            return NOT_RECOVERED
        return "budget spent" if self.over_budget else None


@dataclass(frozen=True)
class Feedback:
    """What a training loop offers a strategy that wants more than one number.

    ``look`` says whether the evaluated model, as it is at that moment, has at least some accuracy, wrongly with at most
    a given probability, 0 for an evaluation of all examples; ``next_images`` hands out the inputs of one mini-batch,
    which the loop counts as an iteration; ``report`` takes iteration, verdict and thresholds of a pruned model that was
    looked at, so that it is logged, and delivered if need be. ``measuring`` holds the options of ``Jacobian`` for this
    model.
    """

    look: Callable[[float, torch.Generator, float], Verdict]
    next_images: Callable[[], Any]
    report: Callable[[int, Verdict, Mapping[str, float]], None]
    measuring: Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """What was decided: ``wait``, ``prune``, ``regrow`` (all synapses are back) or the reason to stop.

    ``thresholds`` holds one threshold per layer, in units of the scores, after a pruning. ``phase`` goes into the log.
    """

    action: str
    thresholds: dict[str, float] | None = None
    phase: str = "recover"

    @property
    def stops(self) -> bool:
        """Whether the control stops here."""
        return self.action not in GOING_ON


class Strategy:
    """What strategies share.

    ``checkpoint`` is the iteration whose weights will be asked for (``pruner.checkpoints["early"]``), ``restarted``
    the iteration at which the training recipe starts again, ``needs`` names what feedback must offer. With
    ``scores_average`` the criterion reads the weights of the average; one that ``tolerates`` lets the score fall below
    the requirement by some slack; one that is ``paced`` goes by ``pruner.paces``.
    """

    restarted: int = 0
    scores_average: ClassVar[bool] = False
    tolerates: ClassVar[bool] = False
    paced: ClassVar[bool] = False

    @property
    def checkpoint(self) -> int | None:
        """The iteration whose weights will be asked for."""
        return None

    @property
    def needs(self) -> tuple[str, ...]:
        """What feedback must offer."""
        return ()

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        """Prune, wait or stop."""
        raise NotImplementedError

    def check(self, pruner: Pruner, batch: Any, measuring: Mapping[str, Any]) -> int:
        """Try on a copy of the model what ``step`` will measure on mini-batches; returns the bytes that will take."""
        return 0


@dataclass
class NoPruning(Strategy):
    """Prune nothing: stop as soon as the requirement is met."""

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        return Decision("requirement met")


@dataclass(frozen=True)
class Rewind:
    """What starts again after the pruning of a round, the masks kept: the training recipe, and the weights too.

    The weights go back to those after ``iteration`` iterations of the dense training (Frankle
    et al. 2020; 0 is the initialisation, Frankle and Carbin 2019), or to those that first met the
    requirement where that was earlier; optimizer and average go with them. With None the weights
    stay, and the recipe's clock alone starts again: the warm-up of the learning rate is repeated
    (Renda et al. 2020), and the average is young again.
    """

    iteration: int | None

    def __post_init__(self):
        if self.iteration is not None and self.iteration < 0:
            raise ValueError(f"iteration must be 0 or more, or None, got {self.iteration}")


@dataclass
class Rounds(Strategy):
    """Prune in rounds: each time that the requirement is met, further, then recover.

    With ``from_dense`` every round prunes the dense model that met the requirement first; ``rewind`` is what a round
    starts again. With ``redense`` a pruned model that met the requirement gets all its synapses back, starting at
    zero, for at least so many evaluations before the next round. ``convolution_pace`` is the
    pace of convolutions against that of linear layers, where thresholds are per layer.
    """

    schedule: LinearThreshold | GeometricSchedule
    convolution_pace: float = 1.0
    from_dense: bool = False
    rewind: Rewind | None = None
    redense: int = 0
    progress: dict[str, float] = field(init=False, default_factory=dict, repr=False)
    paces: dict[str, float] = field(init=False, default_factory=dict, repr=False)
    restarted: int = field(init=False, default=0, repr=False)
    rested: int | None = field(init=False, default=None, repr=False)
    paced: ClassVar[bool] = True

    def __post_init__(self):
        if self.from_dense and self.rewind:
            raise ValueError("a method has from_dense or rewind, not both")
        if isinstance(self.schedule, PolynomialSchedule):
            raise ValueError("a PolynomialSchedule runs over the iterations of a ramp, not over rounds: use it in Ramp")

    @property
    def checkpoint(self) -> int | None:
        return self.rewind.iteration if self.rewind else None

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        if not self.paces:
            self._begin(pruner)
        # A training from early weights has as many evaluations as the dense one took, and the patience more.
        patience = evaluation.patience + (evaluation.dense if self.checkpoint is not None else 0)
        if reason := evaluation.stop(patience):
            return Decision(reason)
        if evaluation.first:
            pruner.remember("dense")
            if self.checkpoint is not None and evaluation.iteration <= self.checkpoint:
                pruner.checkpoints.setdefault("early", pruner.checkpoints["dense"])
        if self.redense and (pruner.density < 1 or (self.rested is not None and self.rested < self.redense)):
            return self._densify(pruner, evaluation)
        if not evaluation.met or (evaluation.first and not pruner.hook.ready):
            return Decision("wait", phase="recover" if self.rested is None else "dense")
        self.rested = None
        thresholds = self._next_round(pruner, 2 * evaluation.missed > patience)
        if thresholds is None:
            return Decision("nothing left to prune")
        if self.rewind:
            self._rewind(pruner, evaluation)
        return Decision("prune", thresholds)

    def rates(self, pruner: Pruner) -> dict[str, float]:
        """By how much each layer's amount moves in the next round, in the schedule's units."""
        if not self.paces:
            self._begin(pruner)
        amount, done = self.schedule.amount, self.progress
        return {name: amount(done[name] + pace) - amount(done[name]) for name, pace in self.paces.items()}

    def _begin(self, pruner: Pruner) -> None:
        convolutions = {name for name, layer in pruner.layers.items() if layer.weight.dim() > 2}
        self.paces = {name: self.convolution_pace if name in convolutions else 1.0 for name in pruner.layers}
        self.paces |= pruner.paces
        self.progress = dict.fromkeys(pruner.layers, 0.0)

    def _next_round(self, pruner: Pruner, slowly: bool) -> dict[str, float] | None:
        # A recovery that took over half of the patience asks for smaller steps.
        if slowly:
            self.paces = {name: pace / 2 for name, pace in self.paces.items()}
        before, thresholds, last = pruner.density, None, pruner.round + IDLE_ROUNDS
        while pruner.density == before:
            if pruner.exhausted or pruner.round == last:
                return None
            pruner.round += 1
            self.progress = {name: done + self.paces[name] for name, done in self.progress.items()}
            if self.from_dense:
                pruner.restore(pruner.checkpoints["dense"])
                before = 1.0
            thresholds = pruner.prune({name: self.schedule.amount(done) for name, done in self.progress.items()})
        return thresholds

    def _rewind(self, pruner: Pruner, evaluation: Evaluation) -> None:
        self.restarted = evaluation.iteration - min(self.checkpoint or 0, evaluation.start)
        if self.checkpoint is None:
            return
        if "early" not in pruner.checkpoints:
            raise RuntimeError(
                f"the weights of iteration {self.checkpoint} are not there: "
                "call observe(iteration) while watching is true"
            )
        pruner.rewind(pruner.checkpoints["early"])

    def _densify(self, pruner: Pruner, evaluation: Evaluation) -> Decision:
        """Bring all synapses back, or count an evaluation of their rest."""
        if self.rested is not None:
            self.rested += 1
            return Decision("wait", phase="dense")
        if not evaluation.met:
            return Decision("wait")
        if pruner.exhausted:
            return Decision("nothing left to prune")
        for name, layer in pruner.layers.items():
            pruner.set_mask(name, torch.ones_like(layer.mask))
        self.rested = 0
        return Decision("regrow", phase="dense")


@dataclass
class Ramp(Strategy):
    """Prune at every evaluation, along a schedule over the control's ``ramp`` of iterations."""

    schedule: PolynomialSchedule
    progress: float = field(init=False, default=0.0, repr=False)

    def step(self, pruner: Pruner, evaluation: Evaluation, feedback: Feedback) -> Decision:
        since = evaluation.iteration - evaluation.start
        if reason := evaluation.stop(evaluation.patience):
            return Decision(reason)
        if evaluation.met and since >= evaluation.ramp:
            return Decision("ramp completed")
        if evaluation.first:
            pruner.remember("dense")
        if evaluation.first or self.progress == 1:
            return Decision("wait")
        pruner.round += 1
        self.progress = min(since / evaluation.ramp, 1.0)
        return Decision("prune", pruner.prune(dict.fromkeys(pruner.layers, self.schedule.amount(self.progress))))
