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
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pruning.layers import USED, Masked, MaskedWeight, Synapses, mask_name, masked_class

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

    ``include`` and ``exclude`` list types of layers and patterns of their names (``"features.*"``); a module that
    matches stands for all in it. What is included are the weights of two or more dimensions. A pattern that ends in the
    name of a parameter (``"*.kernel"``) means it alone, whatever it is called. Layers stay the same objects with the
    same parameters, so an optimizer made before goes on working. Weights that are tied share one mask. Masks of
    ``torch.nn.utils.prune`` are taken over. With ``zeros_pruned`` a weight that is exactly zero counts as pruned: so a
    sparse model that was saved without masks goes on. One warning names the weights that got no mask, unless they were
    excluded. Raises ``ValueError``, and masks nothing, where a pattern matches nothing, where a weight is not the
    layer's own (parametrized, made by a hook such as weight norm, or lazy and without a shape), and where a layer has
    something of its own under a name that a masked layer uses, such as ``mask``.
    """
    choice = _Choice(model, include, exclude)
    pruned = [found for path, module in model.named_modules() for found in _checked(path, module, choice)]
    taken = _taken_over(pruned, model)
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, weight in _own_parameters(module):
            holders.setdefault(id(weight), []).append((path, module, name))
    chosen = {
        key: places
        for key, places in holders.items()
        if any(choice.wants(module, name, module._parameters[name]) for _, module, name in places)
    }
    for place in itertools.chain(*chosen.values()):
        _require_free_names(*place)
    for key, places in chosen.items():
        _mask_together(places, taken.get(key))
    if zeros_pruned:
        for layer in masked_layers(model).values():
            layer.prune(layer.weight != 0)
    _warn_of_rest(model, choice)
    return model


class _Choice:
    """Which weights of a model are to have masks, by types of layers and patterns of names."""

    def __init__(self, model: nn.Module, include: Iterable, exclude: Iterable):
        for word, items in (("include", include), ("exclude", exclude)):
            if isinstance(items, (str, type)):
                raise ValueError(f"{word} must be a list of types of layers and patterns of names: {word}=[{items!r}]")
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.paths: dict[int, list[str]] = {}  # a module may go by several
        for path, module in self.modules.items():
            self.paths.setdefault(id(module), []).append(path)
        self.include, self.exclude = tuple(include), tuple(exclude)
        self.whole = include is not PRUNABLE  # what one asks for stands for all in it, unlike the default types
        for item in (*self.include, *self.exclude):
            if isinstance(item, str) and not any(
                _matches(path, module, (item,)) or any(_named(path, name, (item,)) for name in _names(module))
                for path, module in self.modules.items()
            ):
                raise ValueError(f"'{item}' matches no layer of the model: {_some(filter(None, self.modules))}")

    def layer(self, module: nn.Module) -> bool:
        """Whether any weight of a layer may be chosen."""
        if any(self._is_named(module, name, self.include) for name in _names(module)):
            return not self._is_matched(module, self.exclude)
        return self._included(module) and not self._excluded(module)

    def wants(self, module: nn.Module, name: str, weight: Tensor | None) -> bool:
        """Whether a weight is to have a mask; a parameter that is named has one though all around it are excluded."""
        if weight is None or weight.dim() < 2 or not weight.numel() or self._is_named(module, name, self.exclude):
            return False
        if self._is_named(module, name, self.include):
            return not self._is_matched(module, self.exclude)
        return "weight" in name and self._included(module) and not self._excluded(module)

    def excludes(self, module: nn.Module, name: str) -> bool:
        """Whether a weight was excluded by name, or with what it is in."""
        return self._excluded(module) or self._is_named(module, name, self.exclude)

    def _included(self, module: nn.Module) -> bool:
        return self._is_within(module, self.include) if self.whole else self._is_matched(module, self.include)

    def _excluded(self, module: nn.Module) -> bool:
        return self._is_within(module, self.exclude)

    def _is_named(self, module: nn.Module, name: str, chosen: tuple) -> bool:
        return any(_named(path, name, chosen) for path in self.paths[id(module)])

    def _is_matched(self, module: nn.Module, chosen: tuple) -> bool:
        return any(_matches(path, module, chosen) for path in self.paths[id(module)])

    def _is_within(self, module: nn.Module, chosen: tuple) -> bool:
        ways = {up for path in self.paths[id(module)] for up in _upwards(path)} if chosen else set()
        return any(_matches(up, self.modules[up], chosen) for up in ways)


def _upwards(path: str) -> Iterator[str]:
    """Yield a module's path and those of the modules that it is in."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:8]) + (f" and {len(every) - 8} more" if len(every) > 8 else "")


def _names(module: nn.Module) -> list[str]:
    """List the names of a layer's parameters; what ``torch.nn.utils.prune`` masks goes by its own name."""
    hooks = [hook._tensor_name for hook in _prunings(module)]
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return [name.removesuffix("_orig") if name.removesuffix("_orig") in hooks else name for name in names]


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if not isinstance(module, torch.jit.ScriptModule):  # whose parameters are made anew at each look
        yield from ((name, weight) for name, weight in module._parameters.items() if weight is not None)


def _prunings(module: nn.Module) -> list[prune.BasePruningMethod]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]


def _matches(path: str, module: nn.Module, chosen: tuple) -> bool:
    return any(fnmatch.fnmatch(path, item) if isinstance(item, str) else isinstance(module, item) for item in chosen)


def _named(path: str, name: str, chosen: tuple) -> bool:
    patterns = [item for item in chosen if isinstance(item, str) and item.rpartition(".")[2] == name]
    return any(fnmatch.fnmatch(f"{path}.{name}".lstrip("."), item) for item in patterns)


def _checked(path: str, module: nn.Module, choice: _Choice) -> Iterator[tuple[str, nn.Module, str]]:
    """Refuse weights that something else computes; yield the place of what ``torch.nn.utils.prune`` made."""
    if not choice.layer(module) or isinstance(module, torch.jit.ScriptModule):
        return
    path, leave = path or type(module).__name__, "or leave the layer out with exclude"
    for hook in module._forward_pre_hooks.values():
        if "Norm" in type(hook).__name__ and hasattr(hook, "name"):
            raise ValueError(
                f"the weight of '{path}' is computed by {type(hook).__name__}: remove it before (such as by "
                f"torch.nn.utils.remove_weight_norm), {leave}"
            )
    made = list(cast(nn.ModuleDict, module.parametrizations)) if parametrize.is_parametrized(module) else []
    if any(getattr(module, name).dim() > 1 for name in made):
        raise ValueError(
            f"'{path}' has parametrized weights: remove the parametrization before "
            f"(torch.nn.utils.parametrize.remove_parametrizations), {leave}"
        )
    if any(isinstance(weight, nn.parameter.UninitializedParameter) for weight in module._parameters.values()):
        raise ValueError(f"'{path}' is lazy and has no shape yet: pass one batch through the model before")
    pruned = [hook._tensor_name for hook in _prunings(module)]
    for name in pruned:
        if not choice.wants(module, name, module._parameters[f"{name}_orig"]):
            raise ValueError(
                f"'{name}' of '{path}' is pruned by torch.nn.utils.prune and gets no mask here: make that lasting "
                f"before (torch.nn.utils.prune.remove), {leave}"
            )
        yield path, module, name


def _require_free_names(path: str, module: nn.Module, name: str) -> None:
    """Refuse a layer that has something of its own under a name that a masked one uses."""
    for used in () if isinstance(module, Masked) else (mask_name(name), *USED):
        if hasattr(module, used):
            raise ValueError(
                f"'{path or type(module).__name__}' has a '{used}' of its own, and masked layers use that name: "
                "rename it, or leave the layer out with exclude"
            )


def _taken_over(places: list[tuple[str, nn.Module, str]], model: nn.Module) -> dict[int, Tensor]:
    """Take the masks of ``torch.nn.utils.prune`` over; return them by the id of their weight."""
    masks: dict[int, Tensor] = {}
    held = Counter(id(weight) for module in model.modules() for _, weight in _own_parameters(module))
    pruned = Counter(id(module._parameters[f"{name}_orig"]) for _, module, name in places)
    for path, module, name in places:
        weight, mask = module._parameters[f"{name}_orig"], cast(Tensor, module._buffers[f"{name}_mask"])
        alike = torch.equal(masks.setdefault(id(weight), mask), mask)
        if not alike or held[id(weight)] > pruned[id(weight)]:
            raise ValueError(
                f"'{name}' of '{path}' is tied to another layer's, and pruned otherwise: tied weights share one mask"
            )
    for _, module, name in places:
        prune.remove(module, name)
    return masks


def _mask_together(places: list[tuple[str, nn.Module, str]], mask: Tensor | None) -> None:
    """Mask one parameter in all modules that hold it; the first owns the mask."""
    _, first, name = places[0]
    _become(first, name)
    owner, own = cast(Masked, first)._owner_of(name)  # another layer where they were tied and masked before
    if owner._mask_of(own) is None:
        owner._begin(own, mask)
    for _, module, name in places:
        if (module, name) == (owner, own):
            continue
        _become(module, name)
        if (theirs := module._buffers.pop(mask_name(name), None)) is not None:
            cast(Tensor, owner._mask_of(own)).logical_and_(theirs)
        module.__dict__.setdefault("_tied", {})[name] = (owner, own)


def _become(module: nn.Module, name: str) -> None:
    if isinstance(module, Masked) and name in module._masked:
        return
    plain, names = (module.plain, module._masked) if isinstance(module, Masked) else (type(module), ())
    object.__setattr__(module, "__class__", masked_class(plain, (*names, name)))


def _warn_of_rest(model: nn.Module, choice: _Choice) -> None:
    have = {id(layer.parameter) for layer in masked_layers(model).values()}
    rest, count = [], 0
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2 or not weight.numel() or id(weight) in have or choice.excludes(module, name):
                continue
            have.add(id(weight))
            rest.append(f"{path}.{name}".lstrip("."))
            count += weight.numel()
    if rest:
        every = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
        warnings.warn(
            f"without a mask: {_some(rest)}; together {count / every:.1%} of the model's weights", stacklevel=3
        )


def unmasked(model: nn.Module) -> nn.Module:
    """Turn every masked layer back into its plain class, with zeros in place; in place, as ``masked``.

    What goes by a layer's class needs that, and a masked layer says so: ``torch.jit.script`` and the quantization of
    ``torch.ao``. ``torch.export``, ``torch.jit.trace``, ``torch.onnx`` and ``torch.fx`` take masked models too, and
    write the product of weight and mask, or the weight with its zeros; a graph of ``torch.fx`` reads the parameters
    without their masks, so make it when training is over. ``unmasked(copy.deepcopy(model))`` leaves the model as it is.
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

    Of a layer with several weights each comes by its own name, such as ``"lstm.weight_ih_l0"``. Hooks of gradients are
    renewed where something was replaced, as at a reading.
    """
    return dict(_walk(model))


def _walk(model: nn.Module) -> Iterator[tuple[str, Synapses]]:
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not isinstance(module, Masked):
            continue
        for name in module._masked:
            if module._parameters.get(name) is None:
                raise RuntimeError(
                    f"the mask of '{path}' no longer counts: its '{name}' was parametrized, or given to a hook or to "
                    "torch.nn.utils.prune, after masked(model); do that before, or unmasked(model) first"
                )
            module._watch_all()
            owner, own = module._owner_of(name)
            shared = owner._parameters.get(own) is module._parameters[name]
            if owner is module or not (shared and any(owner is other for other in modules.values())):
                whole = module._masked == ("weight",)
                yield (path, module) if whole else (f"{path}.{name}".lstrip("."), MaskedWeight(module, name))


def verify(model: nn.Module, layers: Mapping[str, Synapses]) -> None:
    """Raise ``RuntimeError`` where the weights that a model uses are not those that its masks tell of."""
    present = masked_layers(model)
    _require_apart(present)
    if added := [name for name in present if name not in layers]:
        raise RuntimeError(f"the masked layer '{added[0]}' is new in the model: make the control after it")
    for name, layer in layers.items():
        if name not in present or present[name].place[0] is not layer.place[0]:
            raise RuntimeError(f"the masked layer '{name}' is no longer in the model: make the control after it")
        if layer.effective_weight().masked_fill(layer.mask, 0).any():
            raise RuntimeError(f"pruned weights of layer '{name}' are used and not zero: its density is wrong")


def _require_apart(layers: Mapping[str, Synapses]) -> None:
    """Raise ``RuntimeError`` where two masks tell of one memory: what one of them prunes, the other counts."""
    found: list[tuple[int, int, int, str]] = []
    for name, layer in layers.items():
        weight = layer.parameter
        if type(weight) is nn.Parameter and weight.layout == torch.strided and (memory := _memory(weight)):
            extent = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
            begin = int(weight.storage_offset())
            if extent == weight.numel():  # else another weight may lie in between
                found.append((memory, begin, begin + int(extent), name))
    found.sort()
    for (memory, _, end, name), (other_memory, begin, _, other) in itertools.pairwise(found):
        if memory == other_memory and begin < end:
            raise RuntimeError(
                f"'{name}' and '{other}' share their weights and have a mask each, so their densities are wrong: tie "
                "weights, as one nn.Parameter, before masked(model), or call it again"
            )


def _memory(weight: Tensor) -> int:
    """Return what tells a weight's memory from another's; 0 where it has none, as on meta."""
    return weight.untyped_storage().data_ptr() if weight.numel() and not weight.is_meta else 0


def density(model: nn.Module, of: str = "prunable") -> float:
    """Significant synapses over all prunable synapses, those of the masked layers.

    With ``of="all"`` over every weight of two or more dimensions, those without a mask counted as significant.
    """
    if of not in ("prunable", "all"):
        raise ValueError(f"of must be 'prunable' or 'all', got {of!r}")
    named = masked_layers(model)
    if not named:
        raise ValueError("the model has no masked layer: call masked(model) first")
    _require_apart(named)
    layers = named.values()
    significant, synapses = sum(layer.significant for layer in layers), sum(layer.synapses for layer in layers)
    if of == "all":
        have = {id(layer.parameter) for layer in layers}
        rest = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1 and id(weight) not in have)
        significant, synapses = significant + rest, synapses + rest
    return significant / synapses
