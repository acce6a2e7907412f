"""What a control is given, checked: parameters that make no sense, and updates that do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.allocation import erk, global_threshold, lamp, std_threshold, uniform
from pruning.criteria import ema_snip, magnitude, movement, random, snip
from pruning.goal import at_least_one, number, whole
from pruning.hooks import GradientScores
from pruning.masks import verify
from pruning.methods import METHODS, Method
from pruning.pruner import Pruner

if TYPE_CHECKING:
    from pruning.control import PruneControl

TOGETHER = (global_threshold, erk, lamp)  # allocations to which only the mean of the layers' amounts matters
# What an allocation takes from a schedule, and whether a criterion needs gradients; own functions may do as they like.
TAKEN = dict.fromkeys((uniform, *TOGETHER), "density") | {std_threshold: "quality factor"}
OF_GRADIENTS = {magnitude: False, random: False, snip: True, ema_snip: True, movement: True}


def known(method: Method | str) -> Method:
    """Return a method, or the known one of this name."""
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"no method is called {method!r}; the known ones are {', '.join(METHODS)}")
    if not isinstance(method, (Method, str)):
        raise TypeError(f"method must be a Method or the name of a known one, got {method!r:.80}")
    method = METHODS[method] if isinstance(method, str) else method
    _require_match(method)
    return method


def _require_match(method: Method) -> None:
    """Raise where the parts of a method do not go together."""
    for name in ("strategy", "hook"):
        if isinstance(part := getattr(method, name), type):
            raise TypeError(f"{name} must be made with its settings, got the class {part.__name__}")
    schedule = getattr(method.strategy, "schedule", None)
    given = getattr(schedule, "unit", None)
    taken = TAKEN.get(method.allocation, given)
    if given and given != taken:
        raise ValueError(
            f"{type(schedule).__name__} gives a {given}, but {method.allocation.__name__} takes a {taken}: "
            "LinearThreshold goes with std_threshold, and all others go with the other allocations"
        )
    gradients = isinstance(method.hook, GradientScores)
    if _ours(method.hook) and OF_GRADIENTS.get(method.criterion, gradients) != gradients:
        does = "does not go" if gradients else "goes"
        raise ValueError(f"the criterion {method.criterion.__name__} {does} with the hook GradientScores")
    if method.criterion is movement and method.allocation is lamp:
        raise ValueError("lamp takes scores of 0 or more, and those of movement may be negative")


def limits(patience: Any, budget: Any, ramp: Any) -> tuple[int, int | None, int]:
    """Return a control's limits as plain numbers."""
    most = None if budget is None else at_least_one("budget", budget)
    return at_least_one("patience", patience), most, at_least_one("ramp", ramp)


def certification(confidence: Any, certifying: Any) -> tuple[float | None, int | None]:
    """Return what a control is to certify as plain numbers."""
    count = None if certifying is None else whole("certifying", certifying)
    return None if confidence is None else number("confidence", confidence), count


def require_fit(model: Any, optimizer: Any, average: Any) -> None:
    """Raise where model, optimizer and average are not what their names say; warn of an optimizer of another model."""
    for name, value in (("model", model), ("average", average)):
        if not isinstance(value, nn.Module) and (value is not None or name == "model"):
            raise TypeError(f"{name} must be a module, got {value!r:.80}")
    if optimizer is None:
        return
    several = optimizer if isinstance(optimizer, Sequence) and not isinstance(optimizer, str) else [optimizer]
    for one in several:
        if not (hasattr(one, "state") and hasattr(one, "state_dict")):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or a list of some, got {one!r:.80}")
    groups = [group for one in several for group in getattr(one, "param_groups", ())]
    trained = {id(value) for group in groups for value in group["params"]}
    if trained and trained.isdisjoint(id(value) for value in model.parameters()):
        warnings.warn(
            "the optimizer has none of the model's parameters, so momentum of pruned weights stays: right for copies "
            "of them in another precision, else make it of the model that is pruned",
            stacklevel=4,
        )


def require_sense(control: PruneControl, paces: Mapping[str, float] | None) -> None:
    """Raise ``ValueError`` where the control's parameters make no sense."""
    if control.goal.score == "any" and control.goal.slack is None and control.strategy.tolerates:
        raise ValueError("this method lets the score fall below the requirement at first: say how far by slack=...")
    if control.hook.learns_masked and getattr(control.strategy, "measured", 0):
        raise ValueError(
            "compensation sets pruned weights to zero, but the method's hook keeps training them: "
            "use AccuracyDriven(..., measured=0)"
        )
    if unknown := set(control.measuring) - {"output", "logits", "memory"}:
        raise ValueError(f"measuring takes output, logits and memory, got {sorted(unknown)}")
    if control.confidence is not None and not 0 < control.confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {control.confidence}")
    if (control.confidence is None) != (control.certifying is None):
        raise ValueError("confidence and certifying, the number of examples that certify, go together: give both")
    if control.confidence is not None and control.goal.score != "accuracy":
        raise ValueError("confidence needs an accuracy: of another score no examples can be counted")
    if paces and not _paced(control.method):
        name = next((f"'{name}'" for name, known in METHODS.items() if known is control.method), "this method")
        fitting = ", ".join(known for known, method in METHODS.items() if _paced(method))
        raise ValueError(
            f"paces has no effect on {name}: a layer can have a pace of its own in Rounds, with std_threshold or "
            f"uniform as allocation; so in {fitting}"
        )


def _paced(method: Method) -> bool:
    """Say whether the pace of a single layer has an effect; a strategy of one's own may give it one."""
    return not _ours(method.strategy) or (method.strategy.paced and method.allocation not in TOGETHER)


def _ours(part: Any) -> bool:
    return type(part).__module__.startswith("pruning.")


def checked(control: PruneControl, iteration: int, accuracy: float, evaluate, next_images) -> float:
    """Return the accuracy that an update was given; raises where a control cannot be updated so."""
    if control.finished:
        raise RuntimeError("the control has stopped: take delivered()")
    accuracy = control.goal.checked(accuracy)
    late = control.began is not None and iteration > control.began
    if control.hook.acts and (control.hook.early or late) and not control.observed:
        raise RuntimeError(
            "this method acts at every iteration, and was never told of one: call observe(iteration) between "
            "loss.backward() and optimizer.step() while control.watching is true"
        )
    if iteration < (last := last_evaluation(control)):
        raise ValueError(f"iteration must not go back: got {iteration} after {last}")
    given = {"evaluate": evaluate, "next_images": next_images}
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function that the control calls, got {value!r:.80}")
    if any(given[name] is None for name in control.strategy.needs):
        raise ValueError("this method asks what pruning costs: call update(iteration, accuracy, evaluate, next_images)")
    if control.strategy.needs and iteration < 1:
        raise ValueError(
            f"iteration must be at least 1, got {iteration}: this method's effort is a multiple of the iterations "
            "up to the requirement, so count those of the training that a model comes with"
        )
    first = not control.events and accuracy < control.aim
    if first and not control.tried and "next_images" in control.strategy.needs:
        control.check(next_images())
    return accuracy


def require_sound(pruner: Pruner) -> None:
    """Raise ``RuntimeError`` where weights, hook or average are not what the masks and the control tell of."""
    verify(pruner.model, pruner.layers)
    learns = pruner.hook.learns_masked
    if any(layer.learns_masked != learns for layer in pruner.layers.values()):
        raise RuntimeError(
            "another control was made of this model since, under which pruned weights "
            f"{'stay zero' if learns else 'go on learning'}: this one cannot go on"
        )
    for name, average in pruner.averages.items():
        if not torch.equal(average.mask, pruner.layers[name].mask.to(average.mask.device)):
            raise RuntimeError(
                f"the average has another mask than the model in layer '{name}': make it a copy of the masked model, "
                "and load the states of both"
            )


def last_evaluation(control: PruneControl) -> int:
    """Find the iteration of the last update, 0 before the first."""
    return next((event.iteration for event in reversed(control.events) if event.phase not in ("look", "confirm")), 0)
