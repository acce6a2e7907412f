"""Layers whose synapses can be cut: a mask beside the weight, applied in every pass.

    >>> model = masked(nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2)))      # masks of ones
    >>> size = model[0].weight.abs()
    >>> model[0].prune(size > size.median())      # cut the synapses at or below a threshold
    >>> f"{density(model):.3f}"      # 120 of 220 synapses
    '0.545'
    >>> unmasked(model)[0]      # plain layers again, zeros in place
    Linear(in_features=20, out_features=10, bias=True)

The forward pass uses the weight with zeros where the mask is off, so a pruned synapse is exactly
zero whatever the optimizer has done to the stored weight, and its gradient is exactly zero too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Masked(nn.Module):
    """What both masked layers share; ``mask`` is a bool buffer of the weight's shape.

    A layer whose ``dense_gradient`` is set tells in ``dense_grad``, after a backward pass, the
    gradient of its effective weight, pruned positions counted.
    """

    weight: Tensor
    mask: Tensor
    dense_gradient: bool = False
    dense_grad: Tensor | None = None

    def effective_weight(self) -> Tensor:
        """Return the weight with exact zeros where the mask is off; shape of ``weight``, which is finite."""
        return self._observed(self.weight * self._factor())

    def _factor(self) -> Tensor:
        """Return the mask in the weight's dtype, made again when the mask is another or has changed.

        A product is faster than ``torch.where``, whose branches an irregular mask makes
        unpredictable, and faster with numbers of one dtype than with a bool mask.
        """
        mask = self.mask
        if mask.is_inference():
            return mask.to(self.weight.dtype)
        version, made = mask._version, self.__dict__.get("_made")
        if made is None or made[0] is not mask or made[1] != version or made[2].dtype != self.weight.dtype:
            made = self.__dict__["_made"] = (mask, version, mask.to(self.weight.dtype))
        return made[2]

    def _observed(self, weight: Tensor) -> Tensor:
        """Return the effective weight; where asked for, its gradient is added to ``dense_grad`` in backward.

        As ``grad`` does, ``dense_grad`` sums up until it is set to None.
        """
        if self.dense_gradient and weight.requires_grad:
            weight.register_hook(self._accumulate_grad)
        return weight

    def _accumulate_grad(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.dense_grad = gradient if self.dense_grad is None else self.dense_grad + gradient

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_made", "dense_grad")}

    @property
    def synapses(self) -> int:
        """Number of prunable weights; biases are not synapses."""
        return self.weight.numel()

    @property
    def significant(self) -> int:
        """Number of weights that are left (reads the mask: synchronises with the device)."""
        return int(self.mask.sum())

    @torch.no_grad()
    def set_mask(self, keep: Tensor) -> None:
        """Make ``keep`` (bool, shape of ``weight``) the mask and zero the other weights.

        A weight that comes back starts at zero. Raises ``ValueError`` on another shape or dtype.
        """
        if keep.shape != self.weight.shape or keep.dtype != torch.bool:
            raise ValueError(
                f"a mask must be bool of shape {tuple(self.weight.shape)}, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        self.mask.copy_(keep)
        self.weight.copy_(torch.where(self.mask, self.weight, 0))

    def prune(self, keep: Tensor) -> None:
        """Cut what ``keep`` (bool, shape of ``weight``) leaves out; what is cut stays cut."""
        self.set_mask(self.mask & keep)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, synapses={self.synapses}"

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # A plain layer's state has no mask: its weights arrive with nothing pruned.
        key = prefix + "mask"
        weight = state_dict.get(prefix + "weight")
        if weight is not None and key not in state_dict:
            state_dict[key] = torch.ones_like(weight, dtype=torch.bool)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MaskedLinear(Masked, nn.Linear):
    """``nn.Linear`` with a mask; input [..., in], output [..., out], weight and mask [out, in]."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.effective_weight(), self.bias)


class MaskedConv2d(Masked, nn.Conv2d):
    """``nn.Conv2d`` with a mask; weight and mask [out, in / groups, height, width]."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    def effective_weight(self) -> Tensor:
        # Of one channel, both memory layouts look alike, and a product falls back to the default one;
        # ``where`` keeps channels-last (channels one apart), which decides how fast the convolution is.
        last = self.weight.shape[1] == 1 and self.weight.stride(1) == 1
        return self._observed(torch.where(self.mask, self.weight, 0)) if last else super().effective_weight()

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.effective_weight(), self.bias)


_TWIN = {nn.Linear: MaskedLinear, nn.Conv2d: MaskedConv2d}
_PLAIN = {twin: plain for plain, twin in _TWIN.items()}


def masked(model: nn.Module, zeros_pruned: bool = False) -> nn.Module:
    """Turn every ``nn.Linear`` and ``nn.Conv2d`` of a model into its masked twin.

    The twins hold the model's own parameters, so an optimizer made before goes on working; a
    module used in several places stays shared. Works in place and returns the model (a new
    module only where the model itself is one layer). With ``zeros_pruned`` a weight that is
    exactly zero counts as pruned: so a sparse model that was saved without masks goes on.
    Subclasses of the two layers keep their own forward pass and are left alone. Raises
    ``ValueError`` where another module has a layer's weight tensor too: it would not know the mask.
    """
    prunable = {id(layer.weight) for layer in model.modules() if type(layer) in _TWIN or type(layer) in _PLAIN}
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in prunable and (first := owner.setdefault(id(parameter), name)) != name:
                raise ValueError(f"layers '{first}' and '{name}' share one weight tensor: untie them")

    def twin(layer: Any) -> nn.Module:
        new = _rebuilt(layer, _TWIN[type(layer)])
        new.register_buffer("mask", torch.ones_like(layer.weight, dtype=torch.bool))
        return new

    model = _replaced(model, _TWIN, twin)
    if zeros_pruned:
        for layer in masked_layers(model).values():
            layer.prune(layer.weight != 0)
    return model


def unmasked(model: nn.Module) -> nn.Module:
    """Turn every masked layer back into its plain twin, with zeros in place; in place, as ``masked``."""

    def plain(layer: Any) -> nn.Module:
        layer.set_mask(layer.mask)
        new = _rebuilt(layer, _PLAIN[type(layer)])
        del new._buffers["mask"]
        return new

    return _replaced(model, _PLAIN, plain)


def masked_layers(model: nn.Module) -> dict[str, Masked]:
    """Return the masked layers by their qualified name, in the model's order, shared ones once."""
    return dict(_walk(model))


def density(model: nn.Module) -> float:
    """Significant synapses over all prunable synapses of the masked layers."""
    layers = masked_layers(model).values()
    if not layers:
        raise ValueError("the model has no masked layer: call masked(model) first")
    return sum(layer.significant for layer in layers) / sum(layer.synapses for layer in layers)


def _walk(model: nn.Module) -> Iterator[tuple[str, Masked]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, Masked))


def _rebuilt(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Return the same layer under another class: parameters, hooks and settings are shared, not copied."""
    new = cls.__new__(cls)
    new.__dict__.update(layer.__dict__)
    new._buffers = dict(layer._buffers)
    new._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    return new


def _replaced(model: nn.Module, wanted: dict, make) -> nn.Module:
    if type(model) in wanted:
        return make(model)
    made: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if type(child) in wanted:
                if id(child) not in made:
                    made[id(child)] = make(child)
                parent._modules[name] = made[id(child)]
    return model
