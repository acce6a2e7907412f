"""A sequential network as what its exports need: layers with weights, each with what follows it.

    chain = stages(model, (1, 28, 28))           # of any nn.Sequential of the layers named below
    notation_of(model, (1, 28, 28))              # "28x28-6c5-16c5-120-84-10"
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


@dataclass(eq=False)
class Stage:
    """A layer with what follows it.

    ``weight`` [out, in, height, width] or [out, in] and ``bias`` [out] in float64, ``shape``
    (C, H, W) of its input, ``module`` its qualified name in the model, ``name`` a C identifier.
    """

    module: str
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
    def sums(self) -> tuple[int, int]:
        """Height and width of the layer's output before pooling."""
        if not self.convolution:
            return 1, 1
        height, width = (size - kernel + 1 for size, kernel in zip(self.shape[1:], self.weight.shape[2:]))
        return height, width

    @property
    def output(self) -> Shape:
        """Shape (C, H, W) of what the next stage receives."""
        height, width = (size // 2 if self.pool else size for size in self.sums)
        return len(self.bias), height, width


def stages(model: nn.Module, shape: Sequence[int]) -> list[Stage]:
    """Take a sequential model apart, for images of ``shape`` (C, H, W).

    The model, masked or plain, is a ``nn.Sequential``, nested ones included, of Conv2d (stride 1,
    no padding), MaxPool2d of 2 x 2, ReLU, Flatten and Linear. Dropout and Identity are left out,
    as in evaluation. Raises ``ValueError`` that names the layer for anything else.
    """
    chain: list[Stage] = []
    flat = False
    names: dict[int, str] = {}
    for name, module in unmasked(copy.deepcopy(model)).named_modules(remove_duplicate=False):
        last = chain[-1] if chain else None
        shape = last.output if last else tuple(shape)
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            continue
        if type(module) in (nn.Conv2d, nn.Linear):
            convolution = type(module) is nn.Conv2d
            if (first := names.setdefault(id(module), name)) != name:
                raise _refused(name, module, f"is the layer '{first}' too: give each place a layer of its own")
            if convolution and (flat or _settings(module) != ((1, 1), (0, 0), (1, 1), 1)):
                raise _refused(name, module, "must have stride 1, no padding, dilation or groups, and no Flatten before it")
            if not convolution and not flat:
                raise _refused(name, module, "needs a Flatten before it")
            inputs, arriving = module.weight.shape[1], shape[0] if convolution else math.prod(shape)
            fits = not convolution or all(size >= kernel for size, kernel in zip(shape[1:], module.kernel_size))
            if inputs != arriving or not fits:
                raise _refused(name, module, f"does not fit what arrives, {'x'.join(map(str, shape))}")
            weight = _array(module.weight)
            bias = np.zeros(len(weight)) if module.bias is None else _array(module.bias)
            usable = re.fullmatch(r"(conv|fc)\d+", name)
            chain.append(Stage(name, name if usable else f"layer{len(chain) + 1}", weight, bias, shape))
        elif type(module) is nn.MaxPool2d and last and last.convolution and not (flat or last.pool):
            if _pooling(module) != ((2, 2), (2, 2), (0, 0), (1, 1), False, False) or min(shape[1:]) < 2:
                raise _refused(name, module, "must pool 2x2 at stride 2, without padding, and a map of that size")
            last.pool = True
        elif type(module) is nn.ReLU and last:
            last.relu = True
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif type(module) not in (nn.Dropout, nn.Dropout2d, nn.Identity):
            raise _refused(
                name, module, "cannot stand here: known are Conv2d, MaxPool2d after it, ReLU, Flatten and Linear in a Sequential"
            )
    if not chain or chain[-1].convolution:
        raise ValueError("the model must end with a Linear layer: its outputs are the classes")
    return chain


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


def _refused(name: str, module: nn.Module, reason: str) -> ValueError:
    return ValueError(f"{f'layer {name!r}' if name else 'the model'} ({type(module).__name__}) {reason}")


def _settings(layer: nn.Conv2d) -> tuple:
    return layer.stride, layer.padding, layer.dilation, layer.groups


def _pooling(layer: nn.MaxPool2d) -> tuple:
    pairs = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pairs = (value if isinstance(value, tuple) else (value, value) for value in pairs)
    return *pairs, layer.ceil_mode, layer.return_indices


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().double().numpy()
