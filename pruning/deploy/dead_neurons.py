"""The same function in fewer neurons: those without a synapse in or out do nothing a constant could not do.

>>> from pruning import masked
>>> from pruning.notation import lenet
>>> model = masked(lenet("28x28-300-100-10"))
>>> model.fc2.mask[:40] = False      # 40 of 100 neurons without a synapse in
>>> remove_dead_neurons(model, (1, 28, 28)).fc2.out_features
60
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pruning.masks import masked, unmasked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MULTIPLY = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
# Operations that work on each channel alone, or on the same channel of several tensors.
CHANNELWISE = {
    *NORMS, *MULTIPLY, operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub, "sub",
    operator.truediv, "mean", torch.mean,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, F.dropout, F.dropout2d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish,
    F.hardswish, F.hardsigmoid, F.hardtanh, torch.relu, torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "tanh",
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, F.max_pool1d, F.max_pool2d, F.avg_pool1d,
    F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, nn.Upsample, F.interpolate,
    "contiguous",
}  # fmt: skip
RESHAPES = ("view", "reshape", torch.reshape)
FLATTEN = {nn.Flatten, torch.flatten, "flatten", *RESHAPES}
LAYERS = {nn.Linear, *CONVOLUTIONS, *TRANSPOSED}
KNOWN = CHANNELWISE | FLATTEN | LAYERS


def remove_dead_neurons(model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Copy a network without the neurons and filters that have no synapse in or none out.

    What such a neuron puts out without any input, its bias as BatchNorm and ReLU pass it on, is
    folded into the biases of the next layer; where zeros are padded to it, it stays. A channel of
    a residual sum goes where no layer reads it. Channels of grouped convolutions stay, depthwise
    ones apart, and so do those that the code counts in numbers (``x.view(-1, 400)``). A layer
    keeps at least one neuron.

    ``shape`` (C, H, W) is that of one image. Returns a masked model of the same classes on the
    CPU; a weight of zero counts as pruned. Outputs in evaluation mode change by no more than the
    rounding of the biases, which is checked in double precision on random inputs. Raises
    ``ValueError`` that names the place of an operation that is not known here, such as LayerNorm,
    or a branch used in training only that no longer fits what feeds it, if training takes images alone.
    """
    small = unmasked(copy.deepcopy(model)).cpu()
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    precise = copy.deepcopy(small).double().eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(precise)
    except Exception as error:  # whatever the model's own code does with a tensor that has no values
        raise ValueError(f"the model cannot be traced by torch.fx: {error}") from error
    follower = _Follower(precise, graph, tracer.node_name_to_scope)
    with torch.no_grad():
        follower.run(inputs)
        _narrow(small, follower)
        wanted, found = (_outputs(copy.deepcopy(network), inputs) for network in (model, small))
    for before, after in zip(wanted, found, strict=True):
        tolerance = 1e3 * max(1.0, float(before.abs().max())) * torch.finfo(next(small.parameters()).dtype).eps
        if not torch.allclose(before, after, rtol=0, atol=tolerance, equal_nan=True):
            raise RuntimeError(
                f"the outputs would change by {(before - after).abs().max()}: the model does what tracing cannot see"
            )
    _check_training(model, small, graph, inputs)
    return masked(small, zeros_pruned=True)


def _check_training(model: nn.Module, small: nn.Module, graph: fx.Graph, inputs: Tensor) -> None:
    """Raise ``ValueError`` where only the narrowed network cannot be run in training mode."""
    used = tuple(f"{node.target}." for node in graph.nodes if node.op in ("call_module", "get_attr"))
    rest = [name for name, _ in small.named_parameters() if not f"{name}.".startswith(used)]
    if not rest or not _trains(model, inputs) or _trains(small, inputs):
        return
    places = ", ".join(dict.fromkeys(repr(name.rpartition(".")[0] or name) for name in rest))
    raise ValueError(
        f"what is used in training only, among {places}, no longer fits the narrowed layers that feed it: remove it "
        "from the model before"
    )


def _trains(model: nn.Module, inputs: Tensor) -> bool:
    model = unmasked(copy.deepcopy(model)).cpu().double().train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(inputs)
    except Exception:  # whatever the model's own code raises, such as for targets that are lacking
        return False
    return True


def _outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    return _leaves(unmasked(model).cpu().double().eval()(inputs))


def _leaves(values) -> list:
    leaves: list = []

    def add(value):
        leaves.append(value)
        return value

    fx.node.map_aggregate(values, add)
    return leaves


def _kind(module: nn.Module) -> type:
    """Find the known class whose ``forward`` a module has, its own where there is none."""
    known = (base for base in type(module).__mro__ if base in KNOWN)
    return next((base for base in known if type(module).forward is getattr(base, "forward", None)), type(module))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _kind(m) in KNOWN


@dataclass
class _Channels:
    """Of a tensor [N, C, ...]: the unit [C] that each channel is, and its value [C] if constant, else NaN."""

    units: Tensor
    constant: Tensor


@dataclass
class _Layer:
    """A layer with the units that its rows are and its columns read; ``inputs`` None where each row reads its own."""

    place: str
    module: Any
    outputs: Tensor
    inputs: Tensor | None = None

    @property
    def reads(self) -> Tensor:
        """Which output reads which input, [out, in]."""
        return (_by_row(self.module) != 0).flatten(2).any(2)


def _by_row(layer: Any) -> Tensor:
    """View the weights as [out, in, weights of each]."""
    weight = layer.weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else layer.weight
    return weight.unsqueeze(-1)


class _Units:
    """Numbers for channels; joined ones are one unit. What is ``pinned`` has to stay."""

    def __init__(self):
        self._parents: list[int] = []
        self.pinned: list[Tensor] = []

    def new(self, count: int) -> Tensor:
        self._parents += range(len(self._parents), len(self._parents) + count)
        return torch.arange(len(self._parents) - count, len(self._parents))

    def join(self, some: Tensor, others: Tensor) -> None:
        for one, two in zip(some.tolist(), others.tolist()):
            self._parents[self._root(two)] = self._root(one)

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            unit = self._parents[unit]
        return unit

    def roots(self) -> Tensor:
        """Return the unit of each number."""
        return torch.tensor([self._root(unit) for unit in range(len(self._parents))])


class _Follower(fx.Interpreter):
    """Run a traced network and follow each channel: which unit it is and whether it is constant.

    Channels that are added, or that pass a depthwise convolution, are one unit. Constants are
    folded into the layers on the way, so what is run stays the same function.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, scopes: dict):
        super().__init__(fx.GraphModule(model, graph))
        self.extra_traceback = False
        self._scopes = scopes
        self._channels: dict[fx.Node, _Channels] = {}
        self.units = _Units()
        self.layers: list[_Layer] = []
        self.norms: list[_Layer] = []

    def run_node(self, n: fx.Node):
        arriving = [self._channels[node] for node in n.all_input_nodes if node in self._channels]
        module: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        kind = n.target if module is None else _kind(module)
        if n.op == "output":
            self.units.pinned += [channels.units for channels in arriving]
        elif module is not None and (kind in LAYERS or kind in NORMS):
            self._check(n, module)
            if kind in LAYERS:
                self._channels[n] = self._layer(n, module, arriving[0])
        try:
            result = super().run_node(n)
        except Exception as error:  # whatever the model's own code checks
            raise self._fault(n, f"cannot be run for an image of this shape: {error}") from error
        if n.op == "output" or kind in LAYERS or not isinstance(result, Tensor):
            return result
        if n.op == "placeholder":
            self._channels[n] = _Channels(
                self.units.new(result.shape[1]), torch.full(result.shape[1:2], math.nan).double()
            )
            self.units.pinned.append(self._channels[n].units)
        elif kind in FLATTEN:
            self._channels[n] = self._flattened(n, arriving[0], result)
        elif kind is torch.cat and (*n.args, n.kwargs.get("dim", 0))[1] in (1, 1 - result.dim()):
            parts = [self._channels[node] for node in cast(list, n.args[0])]
            units, constants = ([getattr(part, name) for part in parts] for name in ("units", "constant"))
            self._channels[n] = _Channels(torch.cat(units), torch.cat(constants))
        elif kind in CHANNELWISE or getattr(kind, "__name__", "") == "stochastic_depth":
            self._channels[n] = self._channelwise(n, kind, arriving, result)
            if module is not None and kind in NORMS:
                self.norms.append(_Layer(str(n.target), module, arriving[0].units))
                if module.affine:
                    constant = self._channels[n].constant
                    self._channels[n].constant = torch.where(module.weight == 0, module.bias, constant)
        else:
            raise self._fault(n, "is not known: neurons before and after it cannot be told apart")
        return result

    def _check(self, node: fx.Node, module: Any) -> None:
        """Refuse a layer whose weights are not its alone."""
        if any(layer.module is module for layer in self.layers + self.norms):
            raise self._fault(node, "is used at two places: give each place a layer of its own")
        if module.weight is not None and any(layer.module.weight is module.weight for layer in self.layers):
            raise self._fault(node, "has the weight of another layer: give each a weight of its own")
        if module.weight is not None and not isinstance(module.weight, nn.Parameter):
            raise self._fault(node, "has a weight that something else computes: remove the parametrization before")
        if isinstance(module, NORMS) and module.running_mean is None:
            raise self._fault(node, "has no running statistics: it normalises by the batch")

    def _fault(self, node: fx.Node, text: str) -> ValueError:
        place, owner = self._scopes.get(node.name, ("", nn.Module))
        if node.op == "call_module":
            return ValueError(f"layer {node.target!r} ({type(self.fetch_attr(str(node.target))).__name__}) {text}")
        name = getattr(node.target, "__name__", node.target)
        return ValueError(f"{name!r} in {f'layer {place!r} ({owner.__name__})' if place else 'the model'} {text}")

    def _layer(self, node: fx.Node, layer: Any, arriving: _Channels) -> _Channels:
        size = self.env[node.all_input_nodes[0]].dim()
        if size != (2 if isinstance(layer, nn.Linear) else layer.weight.dim()):
            raise self._fault(node, f"has an input of {size} dimensions: its neurons are not those of dimension 1")
        weights, groups = _by_row(layer), getattr(layer, "groups", 1)
        if isinstance(layer, TRANSPOSED) and groups > 1:
            raise self._fault(node, "must not have groups")
        if weights.shape[1] * groups != len(arriving.units):
            arrives = "x".join(map(str, self.env[node.all_input_nodes[0]].shape[1:]))
            raise self._fault(node, f"does not fit what arrives, {arrives}")
        alone = groups == len(weights) == len(arriving.units) > 1
        known = ~arriving.constant.isnan()
        if _pads(layer):  # at the border others than the constant arrive
            known &= arriving.constant == 0
        constant = arriving.constant.masked_fill(~known, 0)
        added = torch.zeros(len(weights), dtype=torch.float64)
        if alone:
            added = weights.flatten(1).sum(1) * constant
            weights[known] = 0
        elif groups == 1:
            added = weights.flatten(2).sum(2) @ constant
            weights[:, known] = 0
        bias = added if layer.bias is None else layer.bias + added
        if layer.bias is not None or added.any():
            layer.bias = nn.Parameter(bias)
        outputs = arriving.units if alone else self.units.new(len(weights))
        if groups > 1 and not alone:
            self.units.pinned += [arriving.units, outputs]
        self.layers.append(_Layer(str(node.target), layer, outputs, arriving.units if groups == 1 else None))
        return _Channels(outputs, torch.where(weights.flatten(1).any(1), math.nan, bias))

    def _flattened(self, node: fx.Node, arriving: _Channels, result: Tensor) -> _Channels:
        positions = math.prod(self.env[node.all_input_nodes[0]].shape[2:])
        if result.shape != (2, len(arriving.units) * positions):
            raise self._fault(node, "must flatten all but the batch")
        sizes = _leaves((node.args[1:], node.kwargs))
        if node.target in RESHAPES and any(isinstance(size, int) and size != -1 for size in sizes):
            self.units.pinned.append(arriving.units)
        return _Channels(*(part.repeat_interleave(positions) for part in (arriving.units, arriving.constant)))

    def _channelwise(self, node: fx.Node, kind, arriving: list[_Channels], result: Tensor) -> _Channels:
        """Unite the channels that meet, and see what becomes of constants by running the operation on them."""
        sources = [self.env[source] for source in node.all_input_nodes if source in self._channels]
        units = arriving[0].units
        alike = {(tensor.dim(), tensor.shape[1]) for tensor in sources} == {(sources[0].dim(), len(units))}
        dims = (*node.args, node.kwargs.get("dim"))[1] if kind in ("mean", torch.mean) else ()
        over = {size % sources[0].dim() for size in (dims if isinstance(dims, Sequence) else [dims or 0])}
        if not alike or result.shape[1:2] != units.shape or over & {0, 1}:
            raise self._fault(node, "mixes channels")
        for other in arriving[1:]:
            self.units.join(units, other.units)

        def filled(source: fx.Node):
            tensor = self.env[source]
            if source not in self._channels:
                return tensor
            shape = 1, len(units), *[1] * (tensor.dim() - 2)
            constant = self._channels[source].constant
            return constant.masked_fill(constant.isnan(), 0).view(shape).expand(1, -1, *tensor.shape[2:]).clone()

        given = fx.node.map_arg((node.args, node.kwargs), filled)
        values = getattr(self, node.op)(node.target, *given).flatten(1).view(len(units), -1)
        low, high = values.aminmax(dim=1)
        known = torch.stack([~channels.constant.isnan() for channels in arriving]).all(0)
        constant = values[:, 0].masked_fill(~known | (high - low > 1e-12 * high.abs().clamp(min=1)), math.nan)
        if kind in MULTIPLY:
            constant[torch.stack([channels.constant == 0 for channels in arriving]).any(0)] = 0
        return _Channels(units, constant)


def _pads(layer: Any) -> bool:
    """Whether a layer's outputs at the border come from fewer inputs than those within."""
    if isinstance(layer, nn.Linear) or getattr(layer, "padding_mode", "") != "zeros":
        return False
    if isinstance(layer, TRANSPOSED):
        return True
    padding = {"valid": (0,), "same": [size - 1 for size in layer.kernel_size]}.get(layer.padding, layer.padding)
    return any(padding)


def _narrow(model: nn.Module, follower: _Follower) -> None:
    """Leave the units that nothing reads out of a model of the layers that were followed, in place."""
    roots = follower.units.roots()
    kept = torch.zeros(len(roots), dtype=torch.bool)
    for units in follower.units.pinned:
        kept[roots[units]] = True
    reading = [
        (roots[layer.outputs], roots[layer.inputs], layer.reads)
        for layer in follower.layers
        if layer.inputs is not None
    ]
    count = -1
    while count < (count := int(kept.sum())):  # until no more are read by those that are kept
        for outputs, inputs, reads in reversed(reading):
            kept[inputs[reads[kept[outputs]].any(0)]] = True
    idle = torch.zeros_like(kept)
    for layer in follower.layers:
        outputs = roots[layer.outputs]
        if not kept[outputs].any():
            kept[outputs[0]] = idle[outputs[0]] = True
    for layer in follower.layers:
        outputs = roots[layer.outputs]
        columns = None if layer.inputs is None else kept[roots[layer.inputs]]
        _take(model.get_submodule(layer.place), layer.module, kept[outputs], columns, idle[outputs])
    for layer in follower.norms:
        norm, channels = cast(Any, model.get_submodule(layer.place)), kept[roots[layer.outputs]]
        norm.num_features = int(channels.sum())
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (values := getattr(norm, name)) is not None:
                values.data = values.data[channels]


def _take(layer: Any, precise: Any, rows: Tensor, columns: Tensor | None, idle: Tensor) -> None:
    """Give a layer the rows and columns that are kept; an idle row is zero."""
    weight = _by_row(precise).clone()
    weight[idle] = 0
    weight = (weight[rows] if columns is None else weight[rows][:, columns]).squeeze(-1)
    weight = weight.transpose(0, 1).contiguous() if isinstance(layer, TRANSPOSED) else weight
    like = layer.weight
    layer.weight = nn.Parameter(weight.to(like.dtype), requires_grad=like.requires_grad)
    if precise.bias is not None:
        layer.bias = nn.Parameter(precise.bias.masked_fill(idle, 0)[rows].to(like.dtype), like.requires_grad)
    names = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
    setattr(layer, names[0], int(rows.sum()))
    if columns is not None:
        setattr(layer, names[1], int(columns.sum()))
    elif layer.groups == layer.in_channels == len(rows):
        layer.groups = layer.in_channels = layer.out_channels
