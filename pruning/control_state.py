"""The state of a control in a checkpoint, and what a control must agree in with a state that it loads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from pruning.events import Event
from pruning.pruner import Pruner, Together

if TYPE_CHECKING:
    from pruning.control import PruneControl


def identity(control: PruneControl) -> dict:
    """Return what a state must agree in with the control that loads it."""
    layers = {name: list(layer.mask.shape) for name, layer in control.pruner.layers.items()}
    return {
        "requirement": control.requirement,
        "score": control.goal.score,
        "slack": control.goal.slack,
        "method": control.method.fields(),
        "layers": layers,
        "ramp": control.ramp,
        "confidence": control.confidence,
        "certifying": control.certifying,
        "seed": control.pruner.seed,
    } | _parts(control.pruner)


def _parts(pruner: Pruner) -> dict[str, str]:
    """Say what snapshots hold beside the model."""
    optimizer = "none" if pruner.optimizer is None else "one"
    if isinstance(pruner.optimizer, Together):
        optimizer = f"a list of {len(pruner.optimizer.optimizers)}"
    return {"average": "none" if pruner.average is None else "one", "optimizer": optimizer}


_STATE = ("phase", "missed", "start", "began", "false_starts", "observed")


def state_of(control: PruneControl) -> dict:
    """Return all that changes while a control works."""
    return {name: copy.deepcopy(getattr(control, name)) for name in _STATE} | {
        "pruner": control.pruner.state_dict(),
        "delivery": control.delivery.state_dict(),
        "strategy": _kept(control.strategy),
        "hook": _kept(control.hook),
        "events": [asdict(event) for event in control.events],
    }


def _kept(part) -> dict:
    """Copy the state of a strategy or hook: its fields that are no settings."""
    return {item.name: copy.deepcopy(getattr(part, item.name)) for item in fields(part) if not item.init}


def load(control: PruneControl, state: Mapping) -> None:
    """Set a control to a state; ``ValueError`` where it belongs to another control, which then stays as it is."""
    wanted = identity(control)
    asked = [*wanted, *_STATE, "pruner", "delivery", "strategy", "hook", "events"]
    lacking = [name for name in asked if name not in state] if isinstance(state, Mapping) else asked
    if set(lacking) - set(_parts(control.pruner)):  # which older states lack
        shown = ", ".join(lacking[:3]) + (" and more" if len(lacking) > 3 else "")
        raise ValueError(f"this is no state of a control, as its state_dict() gives: it lacks {shown}")
    if state["phase"] == "done":  # what is delivered needs none of them
        wanted = {name: own for name, own in wanted.items() if name not in _parts(control.pruner)}
    for name, own in wanted.items():
        if state.get(name, own) != own:
            raise ValueError(f"this state belongs to another {name}: {state[name]}, where this control has {own}")
    for name in _STATE:
        setattr(control, name, copy.deepcopy(state[name]))
    control.events = [Event(**event) for event in state["events"]]
    control.pruner.load_state_dict(state["pruner"])
    control.delivery.load_state_dict(state["delivery"])
    for part, kept in ((control.strategy, state["strategy"]), (control.hook, state["hook"])):
        for name, value in copy.deepcopy(kept).items():
            setattr(part, name, value)
