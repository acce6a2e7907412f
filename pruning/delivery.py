"""What a control may deliver: the sparsest model that met the requirement, those yet to be evaluated, and the path."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pruning.certificate import Certificate, certify, sequence
from pruning.pruner import Pruner

PENDING, PATH = 8, 32  # so many states are kept


class Delivery:
    """Keep the states of models that may be delivered.

    ``best`` is the sparsest that met ``aim`` on all validation examples; ``pending`` are sparser ones that a look at
    some of the examples found good enough. With ``least`` a ``path`` is kept: up to ``PATH`` models of at least that
    accuracy, none of them beaten by another one in both accuracy and density. Each is a mapping of ``iteration``,
    ``accuracy``, ``density``, ``model`` (a state) and ``events``, how many the control had logged with its evaluation.
    """

    def __init__(self, pruner: Pruner, aim: float, least: float | None = None):
        self.pruner, self.aim, self.least = pruner, aim, least
        self.best: dict | None = None
        self.pending: list[dict] = []
        self.path: list[dict] = []
        self.certificate: Certificate | None = None

    def offer(self, iteration: int, accuracy: float, events: int, whole: bool = True) -> None:
        """Keep the evaluated model as it is now, if it may be delivered; a ``whole`` evaluation confirms it."""
        density = self.pruner.density
        if not (whole and self._certifiable(accuracy)) and not (accuracy >= self.aim and self._sparser(density)):
            return
        state = {name: _copied(part) for name, part in self.pruner.evaluated.state_dict().items()}
        self._add(
            {"iteration": iteration, "accuracy": accuracy, "density": density, "model": state, "events": events}, whole
        )

    def _add(self, candidate: dict, whole: bool) -> None:
        if whole and self._certifiable(candidate["accuracy"]):
            self.path = _thinned([*self.path, candidate])
        if candidate["accuracy"] < self.aim or not self._sparser(candidate["density"]):
            return
        if whole:
            self.best = candidate
            self.pending = [one for one in self.pending if self._sparser(one["density"])]
        else:
            self.pending = sorted([*self.pending, candidate], key=lambda one: one["density"])[:PENDING]

    def _certifiable(self, accuracy: float) -> bool:
        return self.least is not None and accuracy >= self.least

    def _sparser(self, density: float) -> bool:
        return self.best is None or density < self.best["density"]

    def confirm(self, examples: Callable[[], float], log: Callable[[dict], None]) -> None:
        """Evaluate the pending models on all examples, the sparsest first, until one meets the aim."""
        for pending in list(self.pending):
            if not self._sparser(pending["density"]):
                break
            candidate = {**pending, "accuracy": self._evaluated(pending["model"], examples)}
            log(candidate)
            self._add(candidate, whole=True)
        self.pending = []

    def _evaluated(self, state: Mapping[str, Tensor], examples: Callable[[], float]) -> float:
        model = self.pruner.evaluated
        before = copy.deepcopy(model.state_dict())
        model.load_state_dict(state)
        torch.clear_autocast_cache()  # which has the weights as they were
        try:
            return examples()
        finally:
            model.load_state_dict(before)
            torch.clear_autocast_cache()

    def certify(
        self, right: Callable[[nn.Module], Any], requirement: float, confidence: float, count: int
    ) -> Certificate:
        """Deliver the sparsest model of the path that is certified; see ``certificate.certify``."""

        def count_right(place: int) -> int:
            found = right(self.pruner.deliver(self.path[place]["model"]))
            if len(found) != count:
                raise ValueError(f"right must say of each of the {count} examples that certify whether it is right")
            return int(sum(bool(one) for one in found))

        places = [(one["density"], one["accuracy"]) for one in self.path]
        self.certificate, place = certify(places, count_right, requirement, confidence, count)
        self.best = None if place is None else self.path[place]
        return self.certificate

    def state_dict(self) -> dict:
        """Return what is kept, and what was certified."""
        kept = {name: copy.deepcopy(getattr(self, name)) for name in ("best", "pending", "path")}
        return kept | {"certificate": None if self.certificate is None else asdict(self.certificate)}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state_dict()``."""
        for name in ("best", "pending", "path"):
            setattr(self, name, copy.deepcopy(state[name]))
        said = state.get("certificate")  # which older states lack
        self.certificate = (
            None if said is None else Certificate(**{**said, "tested": tuple(map(tuple, said["tested"]))})
        )


def _copied(part: Any) -> Any:
    """Copy a part of a state; what a module's ``get_extra_state`` gave may be anything."""
    return part.detach().clone() if isinstance(part, Tensor) else copy.deepcopy(part)


def _thinned(path: list[dict]) -> list[dict]:
    """Leave out what another one beats, and where they are still too many the one that lies closest between two."""
    path = [path[place] for place in sequence([(one["density"], one["accuracy"]) for one in path])]
    if len(path) > PATH:
        gaps = [
            math.log(before["density"] / max(after["density"], 1e-12)) for before, after in zip(path[:-2], path[2:])
        ]
        del path[1 + gaps.index(min(gaps))]
    return path
