"""Networks from the report's notation.

    >>> model = lenet("28x28-6c5-16c5-120-84-10")
    >>> model.conv2
    Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1))

That is an input of 28 x 28 and one channel, 6 and then 16 convolutions of 5 x 5, hidden layers of 120 and 84 neurons,
10 outputs. An input of several channels is written ``3x32x32``.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

POOLED = 2  # the report pools after its first two convolutions, not after a third
INPUT = re.compile("(?:([1-9][0-9]*)x)?([1-9][0-9]*)x([1-9][0-9]*)")
CONVOLUTION = re.compile("([1-9][0-9]*)c([1-9][0-9]*)")
LINEAR = re.compile("[1-9][0-9]*")


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    ``kind`` is "conv" or "linear", ``shape`` the weight's; ``output_positions`` counts the outputs that use each
    weight: height x width of a convolution's feature map before pooling, 1 if linear.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    synapses: int
    biases: int
    output_positions: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image, unpruned."""
        return self.synapses * self.output_positions


def input_shape(notation: str) -> tuple[int, int, int]:
    """Return the shape (channels, height, width) of one image; raise as ``layers`` does."""
    return _parse(notation)[0]


def layers(notation: str) -> tuple[Layer, ...]:
    """Return the layers in order, without building a model; a ValueError shows the place of a fault."""
    return _parse(notation)[1]


def lenet(notation: str) -> nn.Sequential:
    """Build the model, images [N, C, H, W] to logits [N, classes]; raise as ``layers`` does.

    PyTorch's default initialisation draws from its global generator: seed it, or fork it, before.
    """
    described = layers(notation)
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for number, layer in enumerate(described, start=1):
        outputs, inputs, *kernel = layer.shape
        if layer.kind == "conv":
            children[layer.name] = nn.Conv2d(inputs, outputs, kernel[0])
            if number <= POOLED:
                # Before ReLU: maximum and ReLU commute, and only a quarter of the elements passes on.
                children[f"pool{number}"] = nn.MaxPool2d(2)
        else:
            if layer.name == "fc1":
                children["flatten"] = nn.Flatten()
            children[layer.name] = nn.Linear(inputs, outputs)
        if number < len(described):
            children[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(children)


def _parse(notation: str) -> tuple[tuple[int, int, int], tuple[Layer, ...]]:
    if not isinstance(notation, str):
        raise TypeError(f"a network is text such as '28x28-300-100-10', not {notation!r}")
    first, *tokens = notation.split("-")
    size = INPUT.fullmatch(first)
    if not size:
        raise _fault(notation, 0, first, "expected the input's size here: 28x28 or 3x32x32")
    channels, height, width = (int(number or 1) for number in size.groups())
    shape = channels, height, width

    convolutions: list[Layer] = []
    linears: list[Layer] = []
    start = len(first) + 1
    for token in tokens:
        if convolution := CONVOLUTION.fullmatch(token):
            if linears:
                raise _fault(
                    notation,
                    start,
                    token,
                    "expected a fully connected layer here: convolutions come before the first of them",
                )
            outputs, kernel = map(int, convolution.groups())
            if kernel > min(height, width):
                raise _fault(
                    notation,
                    start,
                    token,
                    "expected a kernel that fits: it is "
                    f"{kernel}x{kernel}, the feature map that arrives {height}x{width}",
                )
            height, width = height - kernel + 1, width - kernel + 1
            convolutions.append(
                _layer("conv", len(convolutions) + 1, height * width, outputs, channels, kernel, kernel)
            )
            channels = outputs
            if len(convolutions) <= POOLED:
                if min(height, width) < 2:
                    raise _fault(
                        notation,
                        start,
                        token,
                        "expected a feature map that fits the "
                        f"2x2 pooling after it: {height}x{width} is left by this kernel",
                    )
                height, width = height // 2, width // 2
        elif LINEAR.fullmatch(token):
            inputs = linears[-1].shape[0] if linears else channels * height * width
            linears.append(_layer("linear", len(linears) + 1, 1, int(token), inputs))
        else:
            raise _fault(
                notation,
                start,
                token,
                "expected a layer here: 16c5 (16 convolutions of 5x5) or 120 (neurons), sizes of 1 or more, no spaces",
            )
        start += len(token) + 1
    if not linears:
        raise _fault(notation, len(notation), "", "expected the output layer here, such as -10")
    return shape, (*convolutions, *linears)


def _layer(kind: str, number: int, output_positions: int, *shape: int) -> Layer:
    name = f"{'conv' if kind == 'conv' else 'fc'}{number}"
    return Layer(name, kind, shape, math.prod(shape), shape[0], output_positions)


def _fault(notation: str, start: int, token: str, expected: str) -> ValueError:
    shown = re.sub(r"\s", " ", notation)  # a tab or line break would move the caret off its place
    caret = " " * start + "^" * max(1, len(token))
    return ValueError(f"not a network:\n  {shown}\n  {caret}\n{expected}")
