"""Masked layers: a module's class with masks beside its weights, and zeros where they are off.

A layer becomes masked by a change of its class, so it stays the same object with the same parameters.
``masks.masked`` does that to a whole model.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    _Module = nn.Module
else:  # masked layers have a module's class beside this one
    _Module = object


class Synapses:
    """One weight and its mask: what a masked layer and a ``MaskedWeight`` share.

    ``dense_gradient`` asks for ``dense_grad``, the gradient of the weight with that of pruned synapses, which sums up
    over backward passes as ``grad`` does until it is set to None. With ``learns_masked`` the parameter goes on
    learning under the mask: reading the weight then gives a product, and leaves the parameter alone.
    """

    dense_gradient: bool
    learns_masked: bool

    if TYPE_CHECKING:  # a masked layer has them as a property and a buffer

        @property
        def weight(self) -> Tensor: ...

        @property
        def mask(self) -> Tensor: ...

    @property
    def place(self) -> tuple[Masked, str]:
        """The layer, and the name of its parameter."""
        raise NotImplementedError

    @property
    def parameter(self) -> nn.Parameter:
        """The stored weight."""
        owner, name = self.place
        return cast(nn.Parameter, owner._parameters[name])

    def effective_weight(self) -> Tensor:
        """Return the weight with exact zeros where the mask is off; the same as ``weight``."""
        owner, name = self.place
        return owner._read(name)

    @property
    def dense_grad(self) -> Tensor | None:
        """The gradient of the weight, pruned synapses included."""
        owner, name = self.place
        return owner._dense_grads.get(name)

    @dense_grad.setter
    def dense_grad(self, gradient: Tensor | None) -> None:
        owner, name = self.place
        owner._dense_grads[name] = gradient

    @property
    def gradient(self) -> Tensor | None:
        """The parameter's ``grad``, zero where pruned; None where the layer took no part in a backward pass."""
        return self.parameter.grad

    @property
    def synapses(self) -> int:
        """Number of prunable weights; biases are not synapses."""
        return self.parameter.numel()

    @property
    def significant(self) -> int:
        """Number of weights that are not pruned (reads the mask: synchronises with the device)."""
        return int(self.mask.sum())

    @torch.no_grad()
    def set_mask(self, keep: Tensor) -> None:
        """Make ``keep`` (bool, shape of the weight) the mask and zero the other weights.

        A weight that comes back starts at zero. Raises ``ValueError`` on another shape or dtype.
        """
        weight = self.parameter
        if keep.shape != weight.shape or keep.dtype != torch.bool:
            raise ValueError(
                f"a mask must be bool of shape {tuple(weight.shape)}, got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        self.mask.copy_(keep)
        weight.copy_(torch.where(self.mask, weight, 0))
        torch.clear_autocast_cache()  # which has the weight as it was

    def prune(self, keep: Tensor) -> None:
        """Prune what ``keep`` (bool, shape of the weight) leaves out; what is pruned stays pruned."""
        self.set_mask(self.mask & keep)


class _Watch(NamedTuple):
    """A weight's hook, and what it was made for: the places of mask and weight, and what was asked for."""

    weight: Tensor
    made_for: tuple[int, int, bool, bool]
    kept: Tensor
    hook: RemovableHandle | None


class Masked(Synapses, _Module):
    """What masked layers share: a mask per weight, exact zeros at reading, gradients without pruned synapses."""

    dense_gradient: bool = False
    learns_masked: bool = False
    plain: type[nn.Module]
    _masked: tuple[str, ...] = ("weight",)

    @property
    def place(self) -> tuple[Masked, str]:
        """The layer itself, and the name of its only masked parameter."""
        return self, "weight"

    def _owner_of(self, name: str) -> tuple[Masked, str]:
        """Find who has the mask of a weight: this layer, or the first of those that share it."""
        tied = self.__dict__.get("_tied", {}).get(name)
        return tied[0]._owner_of(tied[1]) if tied else (self, name)

    def _mask_of(self, name: str) -> Tensor | None:
        owner, own = self._owner_of(name) if "_tied" in self.__dict__ else (self, name)
        return owner._buffers.get(mask_name(own))

    def _read(self, name: str) -> Tensor:
        weight, mask = self._parameters.get(name), self._mask_of(name)
        if weight is None:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        if mask is None:  # while the layer is being made
            return weight
        if self.learns_masked or torch.compiler.is_compiling():
            return _product(self, name, weight, mask)
        if torch.jit.is_tracing():
            return weight * mask
        watch = self._watch(name, weight, mask)
        if watch is None:  # lent for one call, as torch.func.functional_call does: it is not the layer's to change
            return _product(self, name, weight, mask)
        try:
            weight.data.mul_(watch.kept)  # autograd does not see it: pruned values are of no use to it
        except RuntimeError:  # within a transform of torch.func
            return _product(self, name, weight, mask)
        return weight

    def __getattr__(self, name: str):
        for own in self.__dict__.get("_tied", {}):
            if name == mask_name(own):
                return self._mask_of(own)
        return super().__getattr__(name)

    def _accumulate_grad(self, name: str, gradient: Tensor) -> None:
        latest, before = gradient.detach(), self._dense_grads.get(name)
        self._dense_grads[name] = latest if before is None else before + latest

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name in self._masked:
            self._watch_all()

    def _watch(self, name: str, weight: Tensor, mask: Tensor, adopt: bool = False) -> _Watch | None:
        """Make sure that a gradient passes the mask; return None for a weight that is lent, unless told to adopt it."""
        if "_tied" in self.__dict__:
            owner, own = self._owner_of(name)
            if owner is not self and owner._parameters.get(own) is weight:
                return owner._watch(own, weight, mask, adopt)
        watches = self.__dict__.setdefault("_watches", {})
        watch = watches.get(name)
        # While another weight is lent for one call, somebody keeps the layer's own: not only the watch and this count.
        if not isinstance(weight, nn.Parameter):
            return None
        if not adopt and watch and watch.weight is not weight and sys.getrefcount(watch.weight) > 2:
            return None
        made_for = mask.data_ptr(), weight._cdata, weight.requires_grad, self.dense_gradient
        if watch is None or watch.weight is not weight or watch.made_for != made_for:
            watches[name] = watch = _watched(self, name, weight, mask, made_for, watch)
        return watch

    def _watch_all(self) -> None:
        for name in self._masked:
            weight, mask = self._parameters.get(name), self._mask_of(name)
            if isinstance(weight, nn.Parameter) and mask is not None:
                self._watch(name, weight, mask, adopt=True)

    def _mask_gradient(self, name: str, gradient: Tensor) -> Tensor:
        if self.dense_gradient and not self.learns_masked:
            self._accumulate_grad(name, gradient)
        return gradient * cast(Tensor, self._mask_of(name)).view(torch.uint8)

    @property
    def _dense_grads(self) -> dict[str, Tensor | None]:
        return self.__dict__.setdefault("_dense", {})

    def _begin(self, name: str, mask: Tensor | None = None) -> None:
        weight = cast(nn.Parameter, self._parameters[name])
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(torch.bool)
        self.register_buffer(mask_name(name), mask)
        self._watch(name, weight, mask, adopt=True)

    def __delattr__(self, name: str) -> None:
        if name in self._masked and name in self._parameters:  # as what parametrizes a weight begins
            _refuse_to_change(type(self).__name__, name)
        super().__delattr__(name)

    def _apply(self, *args):
        masks = {mask_name(name) for name in self._masked} & self._buffers.keys()
        before = {name: cast(Tensor, self._buffers[name]).is_meta for name in masks}
        super()._apply(*args)
        for name, empty in before.items():
            self._buffers[name] = mask = cast(Tensor, self._buffers[name]).to(torch.bool)
            if empty and not mask.is_meta:  # nothing is pruned yet where weights have just been given memory
                mask.fill_(True)
        self._watch_all()
        return self

    def __getstate__(self) -> dict:
        state = cast(dict, super().__getstate__())
        state = {key: value for key, value in state.items() if key not in ("_watches", "_dense")}
        if "_flat_weights" in state:  # a recurrent layer's list may hold products, which cannot be copied
            state["_flat_weights"] = [self._parameters.get(name) for name in state["_flat_weights_names"]]
        return state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._watch_all()

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError("torch.jit.script cannot compile masked layers: give it unmasked(copy.deepcopy(model))")

    def _refuse(self, qconfig) -> NoReturn:
        raise RuntimeError("torch.ao.quantization passes over masked layers: give it unmasked(copy.deepcopy(model))")

    qconfig = property(fset=_refuse)  # torch.ao sets it first of all

    def extra_repr(self) -> str:
        synapses = sum(cast(nn.Parameter, self._parameters[name]).numel() for name in self._masked)
        return ", ".join(text for text in (super().extra_repr(), f"synapses={synapses}") if text)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self._watch_all()
        for name in self._masked:
            self._read(name)  # zeros where pruned, for whoever loads the weight alone
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # A plain layer's state has no mask: its weights arrive with nothing pruned.
        for name in self._masked:
            weight, key = state_dict.get(prefix + name), prefix + mask_name(name)
            if weight is not None and key not in state_dict and mask_name(name) in self._buffers:
                state_dict[key] = torch.ones_like(weight, dtype=torch.bool)
            elif key in state_dict:
                state_dict[key] = state_dict[key].to(torch.bool)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._watch_all()

    def _replicate_for_data_parallel(self):
        raise RuntimeError("masked layers do not train under nn.DataParallel: use DistributedDataParallel")

    def forward(self, *args, **kwargs):
        for name in self._masked:  # for layers that keep their weights in a list of their own, as recurrent ones do
            self._read(name)
        return super().forward(*args, **kwargs)


def _product(layer: Masked, name: str, weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weight times its mask; its gradient is the product's, or all of it where that is asked for."""
    if weight.is_meta != mask.is_meta:  # as where the weight is offloaded: it has no values now
        return weight
    # Of one channel, both memory layouts look alike, and a product falls back to the default one; ``where`` keeps
    # channels-last, with which the convolution rounds as with the parameter itself.
    last = weight.dim() == 4 and weight.shape[1] == 1 and weight.stride(1) == 1
    product = torch.where(mask, weight, 0) if last else weight * mask
    if not layer.dense_gradient:
        return product
    if layer.learns_masked:
        if product.requires_grad:
            product.register_hook(functools.partial(layer._accumulate_grad, name))
        return product
    # All of the gradient reaches the parameter's hook, which keeps what is asked for.
    return weight + (product - weight).detach()


def _watched(
    layer: Masked, name: str, weight: Tensor, mask: Tensor, made_for: tuple[int, int, bool, bool], before: _Watch | None
) -> _Watch:
    """Set a hook on a weight's gradient, in place of the one before; a product in C where no more is asked for."""
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask of a {type(layer).__name__} must be bool, got {mask.dtype}")
    if before and before.hook:
        before.hook.remove()
    if before and before.weight is weight and before.made_for[1] != weight._cdata:
        # Another tensor was put in the parameter's place (torch.utils.swap_tensors), which knows no hooks.
        weight._backward_hooks = weight._backward_hooks
    kept = mask.view(torch.uint8)  # read four times as fast as a mask of bool
    hook = None
    if weight.requires_grad:
        plain = not (layer.dense_gradient or layer.learns_masked)
        hook = weight.register_hook(kept.mul if plain else functools.partial(layer._mask_gradient, name))
    return _Watch(weight, made_for, kept, hook)


def _of_the_layer(name: str, text: str) -> property:
    return property(lambda own: getattr(own.owner, name), lambda own, asked: setattr(own.owner, name, asked), doc=text)


class MaskedWeight(Synapses):
    """One weight of a layer that has several, such as an LSTM."""

    def __init__(self, owner: Masked, name: str):
        self.owner, self.name = owner, name

    @property
    def place(self) -> tuple[Masked, str]:
        """The layer, and the name of its parameter."""
        return self.owner, self.name

    @property
    def weight(self) -> Tensor:
        """The weight, zero where the mask is off."""
        return self.owner._read(self.name)

    @property
    def mask(self) -> Tensor:
        """The mask, bool in the weight's shape."""
        return cast(Tensor, self.owner._mask_of(self.name))

    dense_gradient: Any = _of_the_layer("dense_gradient", "Whether the gradient of pruned synapses is asked for.")
    learns_masked: Any = _of_the_layer("learns_masked", "Whether the parameter goes on learning under the mask.")


def _refuse_to_change(layer: str, name: str) -> NoReturn:
    raise RuntimeError(
        f"the '{name}' of a {layer} has a mask: parametrize it, or give it to a hook such as weight norm or to "
        "torch.nn.utils.prune, before masked(model), or unmasked(model) first"
    )


def mask_name(name: str) -> str:
    """Name the buffer that holds a parameter's mask."""
    return "mask" if name == "weight" else f"{name}_mask"


# What a masked layer has that a plain one has not.
USED = (
    *sorted(name for name in {*dir(Masked)} - {*dir(nn.Module)} if not name.startswith("__") and name != "qconfig"),
    *("plain", "_dense", "_tied", "_watches"),
)

# They read their weight by its name each time, so it needs no reading before.
READING = {layer.forward for layer in (nn.Linear, nn.Bilinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)}

_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[Masked]] = {}


def masked_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[Masked]:
    """Find the masked class of a plain one, or make it; layers of the same kind share it."""
    if (plain, names) not in _CLASSES:
        _CLASSES[plain, names] = _make_class(plain, names)
    return _CLASSES[plain, names]


def _make_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[Masked]:

    def begin(self, *args, **kwargs):
        plain.__init__(self, *args, **kwargs)
        for name in names:
            self._begin(name)

    def reduce(self, protocol):
        return _unpickled, (plain, names), self.__getstate__()

    def read(name):
        return property(lambda self: self._read(name), lambda self, value: _refuse_to_change(type(self).__name__, name))

    own: dict = {"_masked": names, "plain": plain, "__init__": begin, "__reduce_ex__": reduce, "__module__": __name__}
    if plain.forward in READING:
        own["forward"] = plain.forward
    return type(f"Masked{plain.__name__}", (Masked, plain), own | {name: read(name) for name in names})


def _unpickled(plain: type[nn.Module], names: tuple[str, ...]) -> Masked:
    cls = masked_class(plain, names)
    return cls.__new__(cls)


MaskedLinear = masked_class(nn.Linear, ("weight",))
MaskedConv2d = masked_class(nn.Conv2d, ("weight",))
