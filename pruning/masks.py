"""Masks: synapses that are pruned are exactly zero wherever the weight is read, and stay zero.

    >>> import torch
    >>> model = masked(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    >>> model[0].prune(torch.eye(3, 4) > 0)            # keep three synapses of twelve
    >>> int(model[0].weight.count_nonzero()), density(model)
    (3, 0.5)
    >>> model = unmasked(model)                        # plain layers again, zeros in place

``masked`` changes the class of layers in place: they stay the same objects with the same parameters, and a buffer
``mask`` beside the ``weight``. Reading the weight sets it to zero where the mask is off, whatever an optimizer did
to it before, and gives the parameter itself; a hook sets its gradient to zero there. Nothing is cached: a mask that
was loaded, broadcast or written to counts at the next reading.
"""

from __future__ import annotations

import fnmatch
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

PRUNABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


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

    def prune(self, keep: Tensor) -> None:
        """Prune what ``keep`` (bool, shape of the weight) leaves out; what is pruned stays pruned."""
        self.set_mask(self.mask & keep)


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

    def _mask_of(self, name: str) -> Tensor | None:
        owner, name = self.__dict__.get("_tied", {}).get(name, (self, name))
        return owner._buffers.get(_mask_name(name))

    def _read(self, name: str) -> Tensor:
        weight, mask = self._parameters.get(name), self._mask_of(name)
        if weight is None:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        if mask is None:  # while the layer is being made
            return weight
        if self.learns_masked or not isinstance(weight, nn.Parameter) or torch.compiler.is_compiling():
            return self._product(weight, mask)
        if torch.jit.is_tracing():
            return weight * mask
        try:
            weight.data.mul_(mask)  # not seen by autograd, which has no use for values at pruned synapses
        except RuntimeError:  # within a transform of torch.func
            return self._product(weight, mask)
        self._watch(name)
        return weight

    def __getattr__(self, name: str):
        for own, (owner, theirs) in self.__dict__.get("_tied", {}).items():
            if name == _mask_name(own):
                return owner._mask_of(theirs)
        return super().__getattr__(name)

    def _product(self, weight: Tensor, mask: Tensor) -> Tensor:
        product = weight * mask
        # All of the gradient reaches the parameter's hook, which keeps what is asked for.
        return weight + (product - weight).detach() if self.dense_gradient else product

    def _watch(self, name: str) -> None:
        """See to it that the gradient of the weight passes the mask."""
        weight, watched = cast(nn.Parameter, self._parameters[name]), self.__dict__.setdefault("_watched", {})
        if not weight.requires_grad or name in self.__dict__.get("_tied", {}):
            return
        if name not in watched or watched[name][0] is not weight:
            watched[name] = weight, weight.register_hook(functools.partial(self._mask_gradient, name))

    def _mask_gradient(self, name: str, gradient: Tensor) -> Tensor:
        if self.dense_gradient:
            latest, before = gradient.detach(), self._dense_grads.get(name)
            self._dense_grads[name] = latest if before is None else before + latest
        return gradient * cast(Tensor, self._mask_of(name))

    @property
    def _dense_grads(self) -> dict[str, Tensor | None]:
        return self.__dict__.setdefault("_dense", {})

    def _begin(self, name: str, mask: Tensor | None = None) -> None:
        weight = cast(nn.Parameter, self._parameters[name])
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.to(torch.bool)
        self.register_buffer(_mask_name(name), mask)
        self._watch(name)

    def __getstate__(self) -> dict:
        state = cast(dict, super().__getstate__())
        return {key: value for key, value in state.items() if key not in ("_watched", "_dense")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for name in self._masked:
            self._watch(name)

    def extra_repr(self) -> str:
        synapses = sum(cast(nn.Parameter, self._parameters[name]).numel() for name in self._masked)
        return ", ".join(text for text in (super().extra_repr(), f"synapses={synapses}") if text)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name in self._masked:
            self._read(name)  # zeros where pruned, for whoever loads the weight alone
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # A plain layer's state has no mask: its weights arrive with nothing pruned.
        for name in self._masked:
            weight, key = state_dict.get(prefix + name), prefix + _mask_name(name)
            if weight is not None and key not in state_dict and _mask_name(name) in self._buffers:
                state_dict[key] = torch.ones_like(weight, dtype=torch.bool)
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in self._masked:
            self._watch(name)

    def forward(self, *args, **kwargs):
        for name in self._masked:  # for layers that keep their weights in a list of their own, as recurrent ones do
            self._read(name)
        return super().forward(*args, **kwargs)


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

    @property
    def dense_gradient(self) -> bool:
        """Whether the gradient of pruned synapses is asked for."""
        return self.owner.dense_gradient

    @dense_gradient.setter
    def dense_gradient(self, asked: bool) -> None:
        self.owner.dense_gradient = asked

    @property
    def learns_masked(self) -> bool:
        """Whether the parameter goes on learning under the mask."""
        return self.owner.learns_masked

    @learns_masked.setter
    def learns_masked(self, asked: bool) -> None:
        self.owner.learns_masked = asked


def _mask_name(name: str) -> str:
    return "mask" if name == "weight" else f"{name}_mask"


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[Masked]] = {}


def _masked_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[Masked]:
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

    read = {name: property(functools.partial(lambda name, self: self._read(name), name)) for name in names}
    own = {"_masked": names, "plain": plain, "__init__": begin, "__reduce_ex__": reduce, "__module__": __name__}
    return type(f"Masked{plain.__name__}", (Masked, plain), own | read)


def _unpickled(plain: type[nn.Module], names: tuple[str, ...]) -> Masked:
    cls = _masked_class(plain, names)
    return cls.__new__(cls)


MaskedLinear = _masked_class(nn.Linear, ("weight",))
MaskedConv2d = _masked_class(nn.Conv2d, ("weight",))


def masked(
    model: nn.Module,
    zeros_pruned: bool = False,
    *,
    include: Iterable = PRUNABLE,
    exclude: Iterable = (),
) -> nn.Module:
    """Give the weights of a model's layers masks, in place; returns the model.

    ``include`` and ``exclude`` list types of layers and patterns of their names (``"features.*"``); what is included
    are the weights of two or more dimensions. Layers stay the same objects with the same parameters, so an optimizer
    made before goes on working. Weights that are tied share one mask. Masks of ``torch.nn.utils.prune`` are taken
    over. With ``zeros_pruned`` a weight that is exactly zero counts as pruned: so a sparse model that was saved
    without masks goes on. One warning names the weights that got no mask, unless they were excluded. Raises
    ``ValueError`` where a weight is not the layer's own: parametrized, made by a hook such as weight norm, or lazy and
    without a shape.
    """
    include, exclude = tuple(include), tuple(exclude)
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        chosen = _matches(path, module, include) and not _matches(path, module, exclude)
        if chosen:
            _check(path, module)
        for name, weight in module._parameters.items():
            if weight is not None:
                holders.setdefault(id(weight), []).append((path, module, name))
    for places in holders.values():
        if any(_wanted(module, name, path, include, exclude) for path, module, name in places):
            _mask_together(places)
    if zeros_pruned:
        for layer in masked_layers(model).values():
            layer.prune(layer.weight != 0)
    _warn_of_rest(model, exclude)
    return model


def _matches(path: str, module: nn.Module, chosen: tuple) -> bool:
    return any(fnmatch.fnmatch(path, item) if isinstance(item, str) else isinstance(module, item) for item in chosen)


def _wanted(module: nn.Module, name: str, path: str, include: tuple, exclude: tuple) -> bool:
    weight = module._parameters[name]
    fits = "weight" in name and weight is not None and weight.dim() > 1
    return fits and _matches(path, module, include) and not _matches(path, module, exclude)


def _check(path: str, module: nn.Module) -> None:
    """Take over what ``torch.nn.utils.prune`` made; refuse weights that something else computes."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            name = hook._tensor_name
            keep = getattr(module, f"{name}_mask")
            prune.remove(module, name)
            module.__dict__.setdefault("_taken_over", {})[name] = keep
        elif "Norm" in type(hook).__name__ and hasattr(hook, "name"):
            raise ValueError(
                f"the weight of '{path}' is computed by {type(hook).__name__}: remove it before (such as by "
                "torch.nn.utils.remove_weight_norm), or leave the layer out with exclude"
            )
    if parametrize.is_parametrized(module):
        raise ValueError(
            f"'{path}' has parametrized weights: remove the parametrization before "
            "(torch.nn.utils.parametrize.remove_parametrizations), or leave the layer out with exclude"
        )
    if any(isinstance(weight, nn.parameter.UninitializedParameter) for weight in module._parameters.values()):
        raise ValueError(f"'{path}' is lazy and has no shape yet: pass one batch through the model before")


def _mask_together(places: list[tuple[str, nn.Module, str]]) -> None:
    """Mask one parameter in all modules that hold it; the first owns the mask."""
    (_, first, own), *others = places
    _become(first, own)
    owner = cast(Masked, first)
    taken = owner.__dict__.pop("_taken_over", {})
    if _mask_name(own) not in owner._buffers:
        owner._begin(own, taken.get(own))
    for _, module, name in others:
        _become(module, name)
        if (mask := module._buffers.pop(_mask_name(name), None)) is not None:
            cast(Tensor, owner._mask_of(own)).logical_and_(mask)
        module.__dict__.setdefault("_tied", {})[name] = (owner, own)


def _become(module: nn.Module, name: str) -> None:
    if isinstance(module, Masked) and name in module._masked:
        return
    plain, names = (module.plain, module._masked) if isinstance(module, Masked) else (type(module), ())
    object.__setattr__(module, "__class__", _masked_class(plain, (*names, name)))


def _warn_of_rest(model: nn.Module, exclude: tuple) -> None:
    have = {id(layer.parameter) for layer in masked_layers(model).values()}
    rest, count = [], 0
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or weight.dim() < 2 or id(weight) in have or _matches(path, module, exclude):
                continue
            have.add(id(weight))
            rest.append(f"{path}.{name}".lstrip("."))
            count += weight.numel()
    if rest:
        every = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
        shown = ", ".join(rest[:8]) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
        warnings.warn(f"without a mask: {shown}; together {count / every:.1%} of the model's weights", stacklevel=3)


def unmasked(model: nn.Module) -> nn.Module:
    """Turn every masked layer back into its plain class, with zeros in place; in place, as ``masked``."""
    for layer in masked_layers(model).values():
        layer.set_mask(layer.mask)
    for module in list(model.modules()):
        if not isinstance(module, Masked) or not hasattr(type(module), "plain"):
            continue
        for name in module._masked:
            module._buffers.pop(_mask_name(name), None)
            module._non_persistent_buffers_set.discard(_mask_name(name))
        for _, hook in module.__dict__.get("_watched", {}).values():
            hook.remove()
        for key in ("_watched", "_dense", "_tied", "dense_gradient", "learns_masked"):
            module.__dict__.pop(key, None)
        object.__setattr__(module, "__class__", module.plain)
    return model


def masked_layers(model: nn.Module) -> dict[str, Synapses]:
    """Return the masked layers by their qualified name, in the model's order, shared ones once.

    Of a layer with several weights each comes by its own name, such as ``"lstm.weight_ih_l0"``.
    """
    return dict(_walk(model))


def _walk(model: nn.Module) -> Iterator[tuple[str, Synapses]]:
    for path, module in model.named_modules():
        if isinstance(module, Masked):
            for name in module._masked:
                if name not in module.__dict__.get("_tied", {}):
                    whole = module._masked == ("weight",)
                    yield (path, module) if whole else (f"{path}.{name}".lstrip("."), MaskedWeight(module, name))


def verify(model: nn.Module, layers: Mapping[str, Synapses]) -> None:
    """Raise ``RuntimeError`` where the weights that a model uses are not those that its masks tell of."""
    present = masked_layers(model)
    for name, layer in layers.items():
        if name not in present or present[name].place[0] is not layer.place[0]:
            raise RuntimeError(f"the masked layer '{name}' is no longer in the model: make the control after it")
        if layer.effective_weight().masked_fill(layer.mask, 0).any():
            raise RuntimeError(f"pruned weights of layer '{name}' are used and not zero: its density is wrong")


def density(model: nn.Module, of: str = "prunable") -> float:
    """Significant synapses over all prunable synapses, those of the masked layers.

    With ``of="all"`` over every weight of two or more dimensions, those without a mask counted as significant.
    """
    if of not in ("prunable", "all"):
        raise ValueError(f"of must be 'prunable' or 'all', got {of!r}")
    layers = masked_layers(model).values()
    if not layers:
        raise ValueError("the model has no masked layer: call masked(model) first")
    significant, synapses = sum(layer.significant for layer in layers), sum(layer.synapses for layer in layers)
    if of == "all":
        have = {id(layer.parameter) for layer in layers}
        rest = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1 and id(weight) not in have)
        significant, synapses = significant + rest, synapses + rest
    return significant / synapses
