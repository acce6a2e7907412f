"""What a control is given, checked: parameters that make no sense, and updates that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pruning.allocation import erk, global_threshold, lamp
from pruning.methods import METHODS, Method

if TYPE_CHECKING:
    from pruning.control import PruneControl

TOGETHER = (global_threshold, erk, lamp)  # allocations to which only the mean of the layers' amounts matters


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
    """Say whether the pace of a single layer has an effect."""
    return method.strategy.paced and method.allocation not in TOGETHER


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
    given = {"evaluate": evaluate, "next_images": next_images}
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
