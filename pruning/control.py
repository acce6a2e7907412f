"""Prune control: watches the validation accuracy of a model in training and prunes it.

    >>> from pruning import density, masked
    >>> images = torch.randn(512, 20)
    >>> labels = (images[:, 0] > 0).long()
    >>> model = masked(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)))
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    >>> control = PruneControl(model, requirement=0.9, optimizer=optimizer)
    >>> for iteration in range(1, 1001):
    ...     optimizer.zero_grad()
    ...     nn.functional.cross_entropy(model(images), labels).backward()
    ...     optimizer.step()
    ...     if iteration % 20 == 0:      # the accuracy is that of validation images, where there are any
    ...         accuracy = (model(images).argmax(1) == labels).float().mean().item()
    ...         if control.update(iteration, accuracy).finished:
    ...             break
    >>> density(control.delivered()) < 0.5
    True

Phases: ``train`` until the requirement is met, ``recover`` after every pruning, ``dense`` where a method lets all
synapses come back, ``done`` once a stop condition holds. An event of phase ``look`` is a look at the accuracy within an
evaluation, ``confirm`` the evaluation of a model that a look found good enough. What is delivered is the sparsest model
that met the requirement.

Some methods act at every iteration: where ``control.watching``, their loop calls ``control.observe(iteration)`` before
the optimizer's step. One that measures what each step of pruning costs, as ``adaptive`` does, is given the means:
``control.update(iteration, accuracy(), accuracy, next_images)``; ``control.check(inputs)`` tries before the training
whether the model can be measured. Where ``accuracy`` is ``looks.Examples``, looks take only as many examples as they
need.

With ``confidence`` the requirement holds, with that probability, for all examples that may come: the loop's accuracies
are those of examples that steer, others certify at the end, so many as ``certifying`` says, and ``certify`` comes
before ``delivered``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pruning.certificate import Certificate, aim, passing
from pruning.checks import (
    certification,
    checked,
    known,
    last_evaluation,
    limits,
    require_fit,
    require_sense,
    require_sound,
)
from pruning.control_state import identity, load, state_of
from pruning.delivery import Delivery
from pruning.events import Event
from pruning.goal import Goal, whole
from pruning.hooks import share_dense_gradients
from pruning.looks import Examples, Verdict
from pruning.masks import masked_layers
from pruning.methods import METHODS, Method
from pruning.pruner import Pruner
from pruning.strategies import NOT_RECOVERED, Decision, Evaluation, Feedback

FALSE_STARTS = 3  # so often pruning begins anew where it has removed nothing


class PruneControl:
    """Decide when pruning starts, how far each layer is pruned, and when to stop.

    ``model`` has masked layers. ``requirement`` is the validation accuracy to be met, in (0, 1), or with
    ``score="any"`` a score of any range, higher for a better model. ``method`` may be a known one's name. ``slack`` is
    how far ``adaptive`` lets the score fall below the requirement at first, in its units; an accuracy has a default.
    ``optimizer``, ``average``, ``paces`` and ``seed`` are the pruner's. ``patience`` counts evaluations without the
    requirement met until the control gives up, ``budget`` iterations in all, ``ramp`` the iterations over which a
    schedule of iterations runs. ``measuring`` holds options of ``compensation.Jacobian``: ``output``, ``logits`` (by
    default outputs [N, C] of more than two columns are logits where the score is an accuracy) and ``memory`` in bytes.
    ``confidence``, in (0, 1), and ``certifying``, a number of examples, go together: pruning then aims at ``aim``, the
    accuracy that a model needs to be certified with a probability of 80 %.
    """

    def __init__(
        self,
        model: nn.Module,
        requirement: float,
        method: Method | str = METHODS["iterative"],
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        average: nn.Module | None = None,
        patience: int = 10,
        budget: int | None = None,
        ramp: int = 4000,
        paces: Mapping[str, float] | None = None,
        seed: int = 0,
        score: str = "accuracy",
        slack: float | None = None,
        measuring: Mapping[str, Any] | None = None,
        confidence: float | None = None,
        certifying: int | None = None,
    ):
        self.goal, self.method = Goal(requirement, score, slack), known(method)
        self.requirement = requirement = self.goal.requirement
        self.patience, self.budget, self.ramp = limits(patience, budget, ramp)
        self.confidence, self.certifying = confidence, certifying = certification(confidence, certifying)
        self.measuring = {"logits": None if score == "accuracy" else False} | dict(measuring or {})
        self.strategy, self.hook = _fresh(self.method.strategy), _fresh(self.method.hook)
        require_sense(self, paces)
        require_fit(model, optimizer, average)
        given: dict[str, Any] = {"optimizer": optimizer, "average": average, "paces": paces, "seed": seed}
        parts = self.method.criterion, self.method.allocation, self.method.masking
        self.pruner = Pruner(model, *parts, hook=self.hook, score_average=self.strategy.scores_average, **given)
        self.aim = requirement if confidence is None else aim(requirement, confidence, certifying or 0)
        least = None if confidence is None else min(self.aim, passing(requirement, confidence, certifying or 0))
        self.delivery = Delivery(self.pruner, self.aim, least)
        self.phase, self.missed, self.observed, self.tried = "train", 0, False, False
        # The iteration that first met the requirement, that after which pruning began, and the beginnings taken back.
        self.start: int | None = None
        self.began: int | None = None
        self.false_starts = 0
        self.events: list[Event] = []
        if self.strategy.checkpoint == 0:
            self.pruner.remember("early")

    @property
    def finished(self) -> bool:
        """Whether the control has stopped."""
        return self.phase == "done"

    @property
    def best(self) -> dict | None:
        """What is delivered: iteration, accuracy, density and state of a model; None where none met the requirement."""
        return self.delivery.best

    @property
    def reached(self) -> bool:
        """Whether any model met the requirement."""
        return self.best is not None

    @property
    def density(self) -> float:
        """Significant synapses over all synapses of the model as it is now."""
        return self.pruner.density

    def densities(self) -> dict[str, float]:
        """Density of each layer as it is now."""
        return self.pruner.densities()

    @property
    def restarted(self) -> int:
        """The iteration at which the recipe, such as a learning rate's warm-up, is to start again."""
        return self.strategy.restarted

    @property
    def watching(self) -> bool:
        """Whether ``observe`` is to be called at this iteration."""
        return self._hook_acts or self._lacks_checkpoint

    @property
    def watches_early(self) -> bool:
        """Whether the method sees iterations before the start, which then cannot be skipped."""
        return bool(self.strategy.checkpoint) or self.hook.early

    @property
    def _hook_acts(self) -> bool:
        return self.hook.acts and (self.hook.early or self.began is not None)

    @property
    def _lacks_checkpoint(self) -> bool:
        return self.strategy.checkpoint is not None and "early" not in self.pruner.checkpoints

    def observe(self, iteration: int) -> None:
        """Do what the method does at every iteration, the gradients of ``iteration`` at hand."""
        self.observed = True
        checkpoint = self.strategy.checkpoint
        if checkpoint is not None and self._lacks_checkpoint and iteration == checkpoint + 1:
            self.pruner.remember("early")
        if self._hook_acts:
            _act(self, iteration)

    def check(self, inputs: Any) -> int:
        """Try on a mini-batch of the model's inputs what the method will measure, before the training.

        Returns about how many bytes that will take, 0 where nothing is measured. Raises ``ValueError`` with what
        fails. Where nobody called it, the first ``update`` does, with a mini-batch of ``next_images``.
        """
        needed = self.strategy.check(self.pruner, inputs, self.measuring)
        self.tried = True
        return needed

    def update(
        self,
        iteration: int,
        accuracy: float,
        evaluate: Callable[[], float] | None = None,
        next_images: Callable[[], Any] | None = None,
    ) -> Event:
        """Take the validation accuracy after ``iteration`` iterations; prune or stop where it is time.

        A method that measures what pruning costs asks for ``evaluate``, the validation accuracy of the model (its
        average, where there is one) as it is at that moment, and ``next_images``, the inputs of one mini-batch (a
        tensor, or a tuple or mapping of the model's inputs), which the caller counts as an iteration. Its effort is a
        multiple of the iterations up to the requirement: for a model that comes trained, ``iteration`` counts on from
        those of its training.
        """
        iteration = whole("iteration", iteration)
        accuracy = checked(self, iteration, accuracy, evaluate, next_images)
        require_sound(self.pruner)
        return _updated(self, iteration, accuracy, evaluate or _missing, next_images or _missing)

    def certify(self, right: Callable[[nn.Module], Any]) -> Certificate:
        """Test the models that came far enough, and deliver the sparsest with the requirement at ``confidence``.

        ``right`` takes a model and says of each of the ``certifying`` examples whether it is right, bool [certifying].
        They must have had no part in training or in the accuracies given to ``update``.
        """
        if self.confidence is None or self.certifying is None:
            raise ValueError("certify needs a control made with confidence=... and certifying=...")
        return self.delivery.certify(right, self.requirement, self.confidence, self.certifying)

    def delivered(self) -> nn.Module:
        """Copy the sparsest model that met the requirement; where none did, the model as it is, with a warning."""
        if self.confidence is not None and self.delivery.certificate is None:
            raise RuntimeError("with confidence=..., call certify(right) first: it says which model can be delivered")
        if self.best is None:
            require_sound(self.pruner)
            warnings.warn(f"no model met {self.requirement:g}: the model is delivered as it is", stacklevel=2)
        return self.pruner.deliver(self.best["model"] if self.best else None)

    def state_dict(self) -> dict:
        """All that the control needs to go on, as tensors and plain values."""
        return identity(self) | state_of(self)

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state_dict()``; model, average and optimizer are restored by their owner."""
        load(self, state)
        _ask_for_gradients(self)


def _act(control: PruneControl, iteration: int) -> None:
    """Let the hook act, with the gradients of pruned synapses at hand where it asks for them."""
    if control.hook.dense:
        share_dense_gradients(control.pruner.layers)
    control.hook.step(control.pruner, iteration)
    for layer in control.pruner.layers.values():
        layer.dense_grad = None


def _updated(
    control: PruneControl, iteration: int, accuracy: float, evaluate: Callable, next_images: Callable
) -> Event:
    """Decide, prune and log."""
    examples = evaluate if isinstance(evaluate, Examples) else None
    if examples is not None and not examples.knows(accuracy):
        examples.forget()
    density, looks = control.pruner.density, list[Event]()
    delivery = control.delivery
    before = control.start, control.began, delivery.best, delivery.pending, delivery.path
    try:
        decision = _decided(control, iteration, accuracy, _feedback(control, looks, evaluate, next_images))
    except BaseException:  # such as of the loop's evaluate: this update has not been
        control.start, control.began, delivery.best, delivery.pending, delivery.path = before
        raise
    if decision.thresholds:
        control.hook.pruned(iteration, decision.thresholds, control.ramp)
    event = _event(control, iteration, control.phase, accuracy, density, decision.action, decision.thresholds)
    event = replace(event, examples=examples.count if examples else None)
    control.phase = "done" if decision.stops else decision.phase
    if decision.stops:
        delivery.confirm(evaluate, functools.partial(_confirmed, control, looks, examples))
        looks[-1:] = [replace(last, action=decision.action) for last in looks[-1:]]
    control.events += [event, *looks]
    _ask_for_gradients(control)
    torch.clear_autocast_cache()  # casts that evaluations made have no gradients
    return event


def _decided(control: PruneControl, iteration: int, accuracy: float, feedback: Feedback) -> Decision:
    met = accuracy >= control.aim
    if met:
        control.start = iteration if control.start is None else control.start
        control.began = iteration if control.began is None else control.began
    if control.start is not None:
        control.delivery.offer(iteration, accuracy, len(control.events) + 1)
    if control.began is None:
        over = control.budget is not None and iteration >= control.budget
        return Decision("budget spent" if over else "wait", phase="train")
    decision = control.strategy.step(control.pruner, _evaluation(control, iteration, accuracy, control.began), feedback)
    control.missed = 0 if met else control.missed + 1
    if decision.action == NOT_RECOVERED and _took_back(control):
        return Decision("regrow", phase="train")
    return decision


def _event(control: PruneControl, iteration, phase, accuracy, density, action, thresholds) -> Event:
    return Event(iteration, phase, accuracy, density, action, control.densities(), thresholds)


def _confirmed(control: PruneControl, looks: list[Event], examples: Examples | None, candidate: Mapping) -> None:
    """Log the evaluation of a model on all examples, after the control has stopped."""
    layers = masked_layers(control.pruner.evaluated)
    keys = {id(buffer): key for key, buffer in control.pruner.evaluated.named_buffers()}
    masks = {name: candidate["model"][keys[id(layer.mask)]] for name, layer in layers.items()}
    densities = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    place = candidate["iteration"], "confirm", candidate["accuracy"], candidate["density"], "wait", densities
    looks.append(Event(*place, examples=examples.count if examples else None))


def _feedback(control: PruneControl, looks: list[Event], evaluate: Callable, next_images: Callable) -> Feedback:
    def look(least: float, generator: torch.Generator, error: float) -> Verdict:
        if error and isinstance(evaluate, Examples):
            return evaluate.look(least, generator, error)
        score = control.goal.checked(evaluate())
        return Verdict(score >= least, score, evaluate.count if isinstance(evaluate, Examples) else None, whole=True)

    def report(iteration: int, verdict: Verdict, thresholds: Mapping[str, float]) -> None:
        action = "prune" if verdict.met else "undo"
        event = _event(control, iteration, "look", verdict.accuracy, control.density, action, thresholds)
        looks.append(replace(event, examples=verdict.examples))
        if verdict.met:
            control.delivery.offer(iteration, verdict.accuracy, len(control.events) + 1 + len(looks), verdict.whole)

    return Feedback(look, next_images, report, control.measuring)


def _took_back(control: PruneControl) -> bool:
    """Take back the beginning of pruning where it has removed nothing yet: the requirement was met by luck.

    All synapses come back, and pruning begins anew when the requirement is met again.
    """
    over = control.budget is not None and control.events and control.events[-1].iteration >= control.budget
    nothing = control.best is None or control.best["density"] == 1
    if over or not nothing or control.false_starts >= FALSE_STARTS:
        return False
    control.false_starts += 1
    control.began, control.missed = None, 0
    control.strategy = _fresh(control.method.strategy)
    if not control.hook.early:  # what was seen early cannot be seen again
        control.hook = control.pruner.hook = _fresh(control.method.hook)
    for name, layer in control.pruner.layers.items():
        control.pruner.set_mask(name, torch.ones_like(layer.mask))
    return True


def _evaluation(control: PruneControl, iteration: int, accuracy: float, start: int) -> Evaluation:
    return Evaluation(
        iteration,
        accuracy,
        control.aim,
        start,
        next=2 * iteration - last_evaluation(control),  # as far away as the last
        missed=control.missed,
        dense=sum(event.phase == "train" for event in control.events),
        patience=control.patience,
        budget=control.budget,
        ramp=control.ramp,
        slack=control.goal.slack,
    )


def _ask_for_gradients(control: PruneControl) -> None:
    """Ask for the gradients of pruned synapses, where the hook needs them."""
    if control.hook.dense and control.began is not None:
        for layer in control.pruner.layers.values():
            layer.dense_gradient = True
        masked_layers(
            control.pruner.model
        )  # renews their hooks, which reading the weights of a compiled model does not


def _fresh(part):
    """Copy a strategy or hook with its settings, its state as at the start."""
    return replace(part)


def _missing():
    raise RuntimeError("this method asked for what update(iteration, accuracy, evaluate, next_images) was not given")
