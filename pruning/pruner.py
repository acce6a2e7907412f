"""Pruner: a model, its moving average and its optimizer, scored, pruned and rewound together.

>>> import torch
>>> from pruning import masked
>>> from pruning.allocation import global_threshold
>>> from pruning.criteria import magnitude
>>> pruner = Pruner(masked(torch.nn.Linear(10, 10)), magnitude, global_threshold)
>>> thresholds = pruner.prune({"": 0.25})      # a density per layer, by the layer's name
>>> pruner.density
0.25
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.allocation import above_threshold
from pruning.compensation import Jacobian
from pruning.goal import number, whole
from pruning.hooks import Hook
from pruning.layers import Synapses
from pruning.masks import masked_layers
from pruning.processes import copy_from_first

Scores = Mapping[str, Tensor]  # of each layer, by name
SCHEDULED = ("lr", "initial_lr", "momentum", "betas", "weight_decay")  # what schedulers set in an optimizer's groups


class Pruner:
    """Score, prune, save and rewind a model of masked layers, with its average and its optimizer.

    ``criterion``, ``allocation`` and ``masking`` are the method's, ``hook`` is the control's own. The ``optimizer``'s
    momentum of pruned synapses is cleared, so that stored weights stay zero too; several optimizers come as a list. An
    ``average`` (a masked copy of the model, evaluated and delivered) gets the masks; with ``score_average`` it is what
    is scored. ``paces`` sets the pace of single layers by name. Random criteria follow from ``seed`` and ``round``, the
    number of prunings so far.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable,
        allocation: Callable,
        masking: Callable = above_threshold,
        *,
        hook: Hook | None = None,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        average: nn.Module | None = None,
        score_average: bool = False,
        paces: Mapping[str, float] | None = None,
        seed: int = 0,
    ):
        self.layers = masked_layers(model)
        if not self.layers:
            raise ValueError("the model has no masked layer: call masked(model) first")
        self.averages = masked_layers(average) if average is not None else {}
        if average is not None and set(self.averages) != set(self.layers):
            raise ValueError("average must be a masked copy of the model; of what wraps one, pass .module")
        self.model, self.average = model, average
        self.optimizer = Together(optimizer) if isinstance(optimizer, Sequence) else optimizer
        self.criterion, self.allocation, self.masking, self.hook = criterion, allocation, masking, hook or Hook()
        self.score_average, self.paces, self.seed = score_average, _plain(paces or {}, self.layers), whole("seed", seed)
        for layer in (*self.layers.values(), *self.averages.values()):
            layer.learns_masked = self.hook.learns_masked
        self.round = 0
        self.checkpoints: dict[str, dict] = {}

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and delivered."""
        return self.average if self.average is not None else self.model

    @property
    def synapses(self) -> int:
        """All prunable synapses of the model."""
        return sum(layer.synapses for layer in self.layers.values())

    @property
    def significant(self) -> int:
        """The synapses that are not pruned."""
        return sum(layer.significant for layer in self.layers.values())

    @property
    def exhausted(self) -> bool:
        """Whether no more than one synapse per layer remains."""
        return self.significant <= len(self.layers)

    @property
    def density(self) -> float:
        """Significant synapses over all synapses of the model as it is now."""
        return self.significant / self.synapses

    def densities(self) -> dict[str, float]:
        """Density of each layer as it is now."""
        return {name: layer.significant / layer.synapses for name, layer in self.layers.items()}

    @property
    def generator(self) -> torch.Generator:
        """A random generator that follows from seed and round."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + self.round)

    def criterion_scores(self) -> dict[str, Tensor]:
        """Scores of each layer by the criterion, as it is now."""
        generator = self.generator
        layers = self.averages if self.averages and self.score_average else self.layers
        return {name: self.criterion(layers[name], generator) for name in self.layers}

    def scores(self) -> Scores:
        """Score the layers; one without scores, such as a frozen one where gradients score, stays as it is."""
        for layers in (self.layers, self.averages):
            _require_finite(layers)
        return self.hook.scores(self)

    @torch.no_grad()
    def prune(
        self, amounts: Mapping[str, float], scores: Scores | None = None, jacobian: Jacobian | None = None
    ) -> dict[str, float]:
        """Prune each layer by its amount, a density for most allocations; returns thresholds in units of the scores."""
        scores = self.scores() if scores is None else scores
        _require_scores(self.layers, scores)
        scored = {name: layer for name, layer in self.layers.items() if name in scores}
        thresholds = self.allocation(scored, scores, {name: amounts[name] for name in scored})
        if bad := [name for name, threshold in thresholds.items() if math.isnan(threshold)]:
            raise ValueError(f"the threshold of layer '{bad[0]}' is not a number: nothing was pruned")
        masks = self._masks(thresholds, scores)
        if jacobian is not None:
            models = dict.fromkeys((self.model, self.evaluated))
            jacobian.compensate(masks, models)
            copy_from_first(weight for model in models for weight in model.parameters())
        self._set_masks(masks)
        return {name: float(threshold) for name, threshold in thresholds.items()}

    def apply(self, thresholds: Mapping[str, float]) -> None:
        """Set the masks that follow from one threshold per layer and the scores of this moment."""
        self._set_masks(self._masks(thresholds, self.hook.scores(self)))

    def _masks(self, thresholds: Mapping[str, float], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self.masking(layer, scores[name], thresholds[name]) if name in scores else layer.mask.clone()
            for name, layer in self.layers.items()
        }

    def _set_masks(self, masks: Mapping[str, Tensor]) -> None:
        for name, keep in masks.items():
            self.set_mask(name, keep)

    @torch.no_grad()
    def set_mask(self, name: str, keep: Tensor) -> None:
        """Make ``keep`` (bool, shape of the weight) a layer's mask, and zero the rest unless the hook lets it learn."""
        for layer in (self.layers[name], self.averages.get(name)):
            if layer is not None and self.hook.learns_masked:
                layer.mask.copy_(keep)
            elif layer is not None:
                layer.set_mask(keep)
        if self.optimizer is not None and not self.hook.learns_masked:
            _clear_momentum(self.optimizer, self.layers[name])

    def snapshot(self) -> dict:
        """Copy the states of model, average and optimizer."""
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items() if part is not None}

    def restore(self, snapshot: Mapping) -> None:
        """Go back to a snapshot, masks included; learning rates and the like stay as the loop has set them."""
        for name, state in snapshot.items():
            kept = _with_settings_of_now(self.optimizer, state) if name == "optimizer" else state
            getattr(self, name).load_state_dict(copy.deepcopy(kept))
        torch.clear_autocast_cache()  # which has the weights as they were

    def rewind(self, snapshot: Mapping) -> None:
        """Go back to a snapshot's weights and momentum, and keep the masks of now."""
        masks = {name: layer.mask.clone() for name, layer in self.layers.items()}
        self.restore(snapshot)
        self._set_masks(masks)

    def remember(self, name: str) -> None:
        """Keep a snapshot under ``name`` in ``checkpoints``."""
        self.checkpoints[name] = self.snapshot()

    def deliver(self, state: Mapping | None) -> nn.Module:
        """Copy the evaluated model with a state, as it is now without one; zero where pruned, free of its hook."""
        model = copy.deepcopy(self.evaluated)
        if state is not None:
            model.load_state_dict(state)
        for layer in masked_layers(model).values():
            layer.learns_masked = layer.dense_gradient = False
            layer.set_mask(layer.mask)  # weights that learn under the mask are not delivered
        return model

    def state_dict(self) -> dict:
        """Return what the pruner needs to go on, beside model, average and optimizer, which their owner restores."""
        return {"round": self.round, "checkpoints": copy.deepcopy(self.checkpoints)}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state_dict()``."""
        self.round, self.checkpoints = state["round"], copy.deepcopy(state["checkpoints"])


def _plain(paces: Mapping[str, float], layers: Mapping[str, Synapses]) -> dict[str, float]:
    """Return paces as plain numbers; raises ``ValueError`` where one is of no layer, or negative."""
    paces = {name: number(f"the pace of '{name}'", pace) for name, pace in paces.items()}
    unknown = set(paces) - set(layers)
    if unknown:
        raise ValueError(f"no masked layer {sorted(unknown)}; the layers are {list(layers)}")
    for name, pace in paces.items():
        if not 0 <= pace < math.inf:
            raise ValueError(f"the pace of '{name}' must be 0 or more, got {pace}")
    return paces


class Together:
    """Several optimizers as one, where a pruner clears momentum or rewinds."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = tuple(optimizers)

    @property
    def state(self) -> dict:
        """Momentum and the like of every parameter."""
        return {parameter: state for each in self.optimizers for parameter, state in each.state.items()}

    def state_dict(self) -> dict:
        """Return the states by their place."""
        return {str(place): each.state_dict() for place, each in enumerate(self.optimizers)}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state_dict()``."""
        for place, each in enumerate(self.optimizers):
            each.load_state_dict(state[str(place)])


def _with_settings_of_now(optimizer: torch.optim.Optimizer | Together | None, state: Mapping) -> dict:
    """Replace the settings in an optimizer's state by those of now: a scheduler may have set them since.

    Counters that some optimizers keep beside them, such as timm's Lamb, go back with the state.
    """
    if isinstance(optimizer, Together):
        return {str(n): _with_settings_of_now(each, state[str(n)]) for n, each in enumerate(optimizer.optimizers)}
    now = {} if optimizer is None else optimizer.state_dict()
    if "param_groups" not in now:
        return dict(state)
    then = [*state["param_groups"], *now["param_groups"][len(state["param_groups"]) :]]
    groups = [
        old | {name: value for name, value in new.items() if name in SCHEDULED}
        for old, new in zip(then, now["param_groups"], strict=True)
    ]
    return {**state, "param_groups": groups}


def _clear_momentum(optimizer: torch.optim.Optimizer | Together, layer: Synapses) -> None:
    for value in optimizer.state.get(layer.parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == layer.mask.shape:
            value.masked_fill_(~layer.mask, 0)


def _require_finite(layers: Mapping[str, Synapses]) -> None:
    for name, layer in layers.items():
        if not layer.weight.isfinite().all():
            raise ValueError(f"layer '{name}' has weights that are not finite: nothing was pruned")


def _require_scores(layers: Mapping[str, Synapses], scores: Scores) -> None:
    for name, found in scores.items():
        if found.shape != layers[name].mask.shape:
            raise ValueError(
                f"the scores of layer '{name}' have the shape {list(found.shape)}, its weight has "
                f"{list(layers[name].mask.shape)}: a criterion gives one score for each weight"
            )
        if found.isnan().any():
            raise ValueError(f"the scores of layer '{name}' hold NaN: nothing was pruned")
