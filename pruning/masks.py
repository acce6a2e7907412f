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
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pruning.layers import Masked, MaskedWeight, Synapses, mask_name, masked_class

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


def masked(
    model: nn.Module,
    zeros_pruned: bool = False,
    *,
    include: Iterable = PRUNABLE,
    exclude: Iterable = (),
) -> nn.Module:
    """Give the weights of a model's layers masks, in place; returns the model.

    ``include`` and ``exclude`` list types of layers and patterns of their names (``"features.*"``); what is included
    are the weights of two or more dimensions. A pattern that ends in the name of a parameter (``"*.kernel"``) means it
    alone, whatever it is called. Layers stay the same objects with the same parameters, so an optimizer
    made before goes on working. Weights that are tied share one mask. Masks of ``torch.nn.utils.prune`` are taken
    over. With ``zeros_pruned`` a weight that is exactly zero counts as pruned: so a sparse model that was saved
    without masks goes on. One warning names the weights that got no mask, unless they were excluded. Raises
    ``ValueError`` where a weight is not the layer's own: parametrized, made by a hook such as weight norm, or lazy and
    without a shape.
    """
    include, exclude = tuple(include), tuple(exclude)
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        chosen = _matches(path, module, include) or any(_named(path, name, include) for name in module._parameters)
        if chosen and not _matches(path, module, exclude):
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


def _named(path: str, name: str, chosen: tuple) -> bool:
    patterns = [item for item in chosen if isinstance(item, str) and item.rpartition(".")[2] == name]
    return any(fnmatch.fnmatch(f"{path}.{name}".lstrip("."), item) for item in patterns)


def _wanted(module: nn.Module, name: str, path: str, include: tuple, exclude: tuple) -> bool:
    weight = module._parameters[name]
    if weight is None or weight.dim() < 2 or _excluded(module, name, path, exclude):
        return False
    return _named(path, name, include) or ("weight" in name and _matches(path, module, include))


def _excluded(module: nn.Module, name: str, path: str, exclude: tuple) -> bool:
    return _matches(path, module, exclude) or _named(path, name, exclude)


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
    if mask_name(own) not in owner._buffers:
        owner._begin(own, taken.get(own))
    for _, module, name in others:
        _become(module, name)
        if (mask := module._buffers.pop(mask_name(name), None)) is not None:
            cast(Tensor, owner._mask_of(own)).logical_and_(mask)
        module.__dict__.setdefault("_tied", {})[name] = (owner, own)


def _become(module: nn.Module, name: str) -> None:
    if isinstance(module, Masked) and name in module._masked:
        return
    plain, names = (module.plain, module._masked) if isinstance(module, Masked) else (type(module), ())
    object.__setattr__(module, "__class__", masked_class(plain, (*names, name)))


def _warn_of_rest(model: nn.Module, exclude: tuple) -> None:
    have = {id(layer.parameter) for layer in masked_layers(model).values()}
    rest, count = [], 0
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or weight.dim() < 2 or id(weight) in have or _excluded(module, name, path, exclude):
                continue
            have.add(id(weight))
            rest.append(f"{path}.{name}".lstrip("."))
            count += weight.numel()
    if rest:
        every = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
        shown = ", ".join(rest[:8]) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
        warnings.warn(f"without a mask: {shown}; together {count / every:.1%} of the model's weights", stacklevel=3)


def unmasked(model: nn.Module) -> nn.Module:
    """Turn every masked layer back into its plain class, with zeros in place; in place, as ``masked``.

    What goes by a layer's class needs that, and a masked layer says so: ``torch.jit.script`` and the quantization of
    ``torch.ao``. ``torch.export``, ``torch.jit.trace``, ``torch.onnx`` and ``torch.fx`` take masked models too, and
    write the product of weight and mask, or the weight with its zeros. ``unmasked(copy.deepcopy(model))`` leaves the
    model as it is.
    """
    for layer in masked_layers(model).values():
        layer.set_mask(layer.mask)
    for module in list(model.modules()):
        if not isinstance(module, Masked) or not hasattr(type(module), "plain"):
            continue
        for name in module._masked:
            module._buffers.pop(mask_name(name), None)
            module._non_persistent_buffers_set.discard(mask_name(name))
        for watch in module.__dict__.get("_watches", {}).values():
            if watch.hook:
                watch.hook.remove()
        for key in ("_watches", "_dense", "_tied", "dense_gradient", "learns_masked"):
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
