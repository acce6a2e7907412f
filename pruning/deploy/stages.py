"""A sequential network as what its exports need: layers with weights, each with what follows it.

>>> model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(864, 10))
>>> [stage.output for stage in stages(model, (1, 28, 28))]      # of any sequence of the layers named below
[(6, 12, 12), (10, 1, 1)]
>>> notation_of(lenet("28x28-6c5-10"), (1, 28, 28))
'28x28-6c5-10'
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pruning.masks import unmasked
from pruning.notation import lenet

Shape = tuple[int, int, int]  # (channels, height, width)
LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
IGNORED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity)


@dataclass(eq=False)
class Pool:
    """A pooling of ``shape`` (C, H, W): the "max" or "average" of windows, padding included in an average.

    ``kernel``, ``stride`` and ``padding`` are (height, width).
    """

    kind: str
    shape: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool = False

    @property
    def output(self) -> Shape:
        """Shape (C, H, W) of what the next one receives."""
        sizes = zip(self.shape[1:], self.kernel, self.stride, self.padding)
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes)
        return self.shape[0], height, width


@dataclass(eq=False)
class Stage:
    """A layer with what follows it.

    ``weight`` [out, in / groups, height, width] or [out, in] and ``bias`` [out] in float64, ``shape``
    (C, H, W) of its input, ``place`` its qualified name in the model, ``name`` a C identifier.
    ``stride`` and ``dilation`` are (height, width), ``padding`` is (top, left, bottom, right).
    ``relu`` comes before the ``pools``.
    """

    place: str
    name: str
    weight: np.ndarray
    bias: np.ndarray
    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False
    pools: list[Pool] = field(default_factory=list)

    @property
    def convolution(self) -> bool:
        """Whether the layer is a Conv2d, not a Linear."""
        return self.weight.ndim == 4

    @property
    def padded(self) -> Shape:
        """Shape (C, H, W) of the input with its padding."""
        channels, height, width = self.shape
        top, left, bottom, right = self.padding
        return channels, top + height + bottom, left + width + right

    @property
    def sums(self) -> Shape:
        """Shape (C, H, W) of what the layer itself puts out."""
        if not self.convolution:
            return len(self.bias), 1, 1
        sizes = zip(self.padded[1:], self.weight.shape[2:], self.stride, self.dilation)
        height, width = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in sizes)
        return len(self.bias), height, width

    @property
    def output(self) -> Shape:
        """Shape (C, H, W) of what the next stage receives."""
        return self.pools[-1].output if self.pools else self.sums


def called(place: str) -> str:
    """Name a layer in an error by its place in the model."""
    return f"layer {place!r}" if place else "the model"


def stages(model: nn.Module, shape: Sequence[int]) -> list[Stage]:
    """Take a sequential model apart, for images of ``shape`` (C, H, W).

    The model, masked or plain, is a ``nn.Sequential``, nested ones included, whatever its layers
    are called, of Conv2d, Linear, BatchNorm right after one (it is folded into that), ReLU,
    MaxPool2d, AvgPool2d and AdaptiveAvgPool2d, and one Flatten. Dropout and Identity are left
    out, as in evaluation. Raises ``ValueError`` that names the layer for anything else, such as a
    ``forward`` or ``__call__`` of its own. Hooks are not looked at.
    """
    chain: list[Stage] = []
    flat = False
    places: dict[int, str] = {}
    for place, module in unmasked(copy.deepcopy(model)).named_modules(remove_duplicate=False):
        kind, arriving = type(module), chain[-1].output if chain else (shape[0], shape[1], shape[2])
        own = kind.__call__ is not nn.Module.__call__ or "forward" in vars(module)
        if not own and (kind.forward is nn.Sequential.forward or kind in IGNORED):
            continue
        fault = "has a __call__ or forward of its own" if own else _fault(module, arriving, chain, flat)
        if kind in LAYERS and not fault and (first := places.setdefault(id(module), place)) != place:
            fault = f"is the layer {first!r} too: give each place a layer of its own"
        if fault:
            raise ValueError(f"{called(place)} ({kind.__name__}) {fault}")
        if kind in LAYERS:
            chain.append(_stage(place, module, len(chain), arriving))
        elif kind in NORMS:
            _fold(module, chain[-1])
        elif kind is nn.Flatten:
            flat = True
        elif kind in POOLS:
            chain[-1].pools.append(_pool(module, arriving))
        elif all(pool.kind == "max" for pool in chain[-1].pools):  # maximum and ReLU commute
            chain[-1].relu = True
        else:
            chain[-1].pools[-1].relu = True
    if not chain or not flat:
        raise ValueError("the model must end with a Flatten or Linear layer: its outputs are the classes")
    return chain


def _stage(place: str, module: nn.Module, number: int, arriving: Shape) -> Stage:
    layer = cast(Any, module)
    name = place if re.fullmatch(r"(conv|fc)\d+", place) else f"layer{number + 1}"
    weight = _array(layer.weight)
    bias = np.zeros(len(weight)) if layer.bias is None else _array(layer.bias)
    if isinstance(layer, nn.Linear):
        return Stage(place, name, weight, bias, arriving)
    height, width = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    padding = height, width, height, width
    if layer.padding == "same":
        height, width = (size * (kernel - 1) for size, kernel in zip(layer.dilation, layer.kernel_size))
        padding = height // 2, width // 2, height - height // 2, width - width // 2
    return Stage(place, name, weight, bias, arriving, layer.stride, padding, layer.dilation, layer.groups)


def _fold(module: nn.Module, stage: Stage) -> None:
    """Fold a BatchNorm in evaluation into the layer before it."""
    norm = cast(Any, module)
    scale = 1 / np.sqrt(_array(norm.running_var) + norm.eps) * (1 if norm.weight is None else _array(norm.weight))
    shift = 0 if norm.bias is None else _array(norm.bias)
    stage.weight = stage.weight * scale.reshape(-1, *[1] * (stage.weight.ndim - 1))
    stage.bias = (stage.bias - _array(norm.running_mean)) * scale + shift


def _pool(module: nn.Module, arriving: Shape) -> Pool:
    pool = cast(Any, module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        outputs = [size or arrives for size, arrives in zip(_pair(pool.output_size), arriving[1:])]
        height, width = (arrives // size for size, arrives in zip(outputs, arriving[1:]))
        return Pool("average", arriving, (height, width), (height, width), (0, 0))
    kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
    return Pool(kind, arriving, _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding))


def _pair(value) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def _fault(module: nn.Module, arriving: Shape, chain: list[Stage], flat: bool) -> str:
    """Say why a module cannot stand after ``chain``, "" where it can."""
    layer, arrives = cast(Any, module), "x".join(map(str, arriving))
    misfit = f"does not fit what arrives, {arrives}"
    if type(module) not in (*LAYERS, *NORMS, *POOLS, nn.ReLU, nn.Flatten):
        return (
            "is not known: a Sequential of Conv2d, Linear, BatchNorm, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d "
            "and Flatten can be exported"
        )
    if isinstance(module, nn.Linear):
        return "needs a Flatten before it" if not flat else misfit if module.in_features != math.prod(arriving) else ""
    if isinstance(module, nn.Conv2d):
        if flat or module.padding_mode != "zeros":
            return "must have no Flatten before it and pad with zeros"
        return misfit if module.in_channels != arriving[0] or min(_stage("", module, 0, arriving).sums) < 1 else ""
    if isinstance(module, nn.Flatten):
        return "" if (module.start_dim, module.end_dim) == (1, -1) else "must flatten all but the batch"
    if not chain:
        return "must come after a layer with weights"
    if type(module) in NORMS:
        after = nn.BatchNorm1d if flat else nn.BatchNorm2d
        if type(module) is not after or chain[-1].convolution is flat or chain[-1].relu or chain[-1].pools:
            return "must come right after a layer with weights"
        if layer.running_mean is None:
            return "must have running statistics: without them it normalises by the batch"
        return misfit if layer.num_features != arriving[0] else ""
    return _pool_fault(layer, arriving, flat) if type(module) in POOLS else ""


def _pool_fault(module: Any, arriving: Shape, flat: bool) -> str:
    misfit = f"does not fit what arrives, {'x'.join(map(str, arriving))}"
    if flat:
        return "must come before the Flatten"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        sizes = zip(_pair(module.output_size), arriving[1:])
        return "must divide what arrives into windows of one size" if any(s and a % s for s, a in sizes) else ""
    plain = not module.ceil_mode and getattr(module, "divisor_override", None) is None
    if isinstance(module, nn.MaxPool2d):
        plain = plain and _pair(module.dilation) == (1, 1) and not module.return_indices
    elif any(_pair(module.padding)):
        plain = plain and module.count_include_pad
    if not plain:
        return "must pool whole windows: no ceil_mode, dilation, indices or divisor of its own, padding counted"
    return misfit if min(_pool(module, arriving).output) < 1 else ""


def notation_of(model: nn.Module, shape: Sequence[int]) -> str:
    """Write a model, masked or plain, in the report's notation; ``ValueError`` if it is not such a network."""
    text = described(stages(model, shape))
    with torch.device("meta"):
        expected = lenet(text)
    # A module's text tells its layers with their names, order and settings.
    if str(unmasked(copy.deepcopy(model))) != str(expected):
        raise ValueError(f"the model is not a lenet({text!r}): its layers, their order or names differ")
    return text


def described(chain: Sequence[Stage]) -> str:
    """Describe a chain by its input and layers, in the report's notation where that can say it."""
    channels, height, width = chain[0].shape
    sizes = [f"{len(s.bias)}c{s.weight.shape[2]}" if s.convolution else str(len(s.bias)) for s in chain]
    return "-".join([f"{height}x{width}" if channels == 1 else f"{channels}x{height}x{width}", *sizes])


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().double().numpy()
