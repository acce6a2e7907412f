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
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pruning.masks import unmasked
from pruning.notation import lenet

Shape = tuple[int, int, int]  # (channels, height, width)
LAYERS = (nn.Conv2d, nn.Linear)
IGNORED = (nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(eq=False)
class Stage:
    """A layer with what follows it.

    ``weight`` [out, in, height, width] or [out, in] and ``bias`` [out] in float64, ``shape``
    (C, H, W) of its input, ``place`` its qualified name in the model, ``name`` a C identifier.
    """

    place: str
    name: str
    weight: np.ndarray
    bias: np.ndarray
    shape: Shape
    pool: bool = False
    relu: bool = False

    @property
    def convolution(self) -> bool:
        """Whether the layer is a convolution rather than linear."""
        return self.weight.ndim == 4

    @property
    def output(self) -> Shape:
        """Shape (C, H, W) of what the next stage receives."""
        if not self.convolution:
            return len(self.bias), 1, 1
        sums = (size - kernel + 1 for size, kernel in zip(self.shape[1:], self.weight.shape[2:]))
        height, width = (size // 2 if self.pool else size for size in sums)
        return len(self.bias), height, width


def stages(model: nn.Module, shape: Sequence[int]) -> list[Stage]:
    """Take a sequential model apart, for images of ``shape`` (C, H, W).

    The model, masked or plain, is a ``nn.Sequential``, nested ones included, of Conv2d (stride 1,
    no padding), MaxPool2d of 2 x 2 after one, ReLU, Flatten and Linear. Dropout and Identity are
    left out, as in evaluation. Raises ``ValueError`` that names the layer for anything else.
    """
    chain: list[Stage] = []
    flat = False
    places: dict[int, str] = {}
    for place, module in unmasked(copy.deepcopy(model)).named_modules(remove_duplicate=False):
        kind, arriving = type(module), chain[-1].output if chain else (shape[0], shape[1], shape[2])
        if kind.forward is nn.Sequential.forward or kind in IGNORED:
            continue
        fault = _fault(module, arriving, chain, flat)
        if kind in LAYERS and not fault and (first := places.setdefault(id(module), place)) != place:
            fault = f"is the layer {first!r} too: give each place a layer of its own"
        if fault:
            raise ValueError(f"{f'layer {place!r}' if place else 'the model'} ({kind.__name__}) {fault}")
        if kind in LAYERS:
            weight = _array(module.weight)
            bias = np.zeros(len(weight)) if module.bias is None else _array(module.bias)
            name = place if re.fullmatch(r"(conv|fc)\d+", place) else f"layer{len(chain) + 1}"
            chain.append(Stage(place, name, weight, bias, arriving))
        elif kind is nn.Flatten:
            flat = True
        else:
            setattr(chain[-1], "relu" if kind is nn.ReLU else "pool", True)
    if not chain or chain[-1].convolution:
        raise ValueError("the model must end with a Linear layer: its outputs are the classes")
    return chain


def _fault(module: nn.Module, arriving: Shape, chain: list[Stage], flat: bool) -> str:
    """Say why a module cannot stand after ``chain``, "" where it can."""
    misfit = f"does not fit what arrives, {'x'.join(map(str, arriving))}"
    if type(module) not in (*LAYERS, nn.MaxPool2d, nn.ReLU, nn.Flatten):
        return "is not known: a Sequential of Conv2d, MaxPool2d, ReLU, Flatten and Linear can be exported"
    if isinstance(module, nn.Linear):
        return "needs a Flatten before it" if not flat else misfit if module.in_features != math.prod(arriving) else ""
    if isinstance(module, nn.Conv2d):
        if flat or (module.stride, module.padding, module.dilation, module.groups) != ((1, 1), (0, 0), (1, 1), 1):
            return "must have stride 1, no padding, dilation or groups, and no Flatten before it"
        sizes = zip(arriving[1:], module.kernel_size)
        return misfit if module.in_channels != arriving[0] or any(size < kernel for size, kernel in sizes) else ""
    if isinstance(module, nn.Flatten):
        return "" if (module.start_dim, module.end_dim) == (1, -1) else "must flatten all but the batch"
    if not chain:
        return "must come after a layer with weights"
    if isinstance(module, nn.MaxPool2d):
        pairs = (module.kernel_size, module.stride, module.padding, module.dilation)
        settings = [value if isinstance(value, tuple) else (value, value) for value in pairs]
        plain = settings == [(2, 2), (2, 2), (0, 0), (1, 1)] and not module.ceil_mode and not module.return_indices
        if not plain or flat or chain[-1].pool or min(arriving[1:]) < 2:
            return "must pool 2x2 at stride 2, without padding, once after a convolution"
    return ""


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
