"""A benchmark's network: in the report's notation, or made by a function of one's own.

    >>> fitting("digits-2c", BENCHMARKS["digits-2c"], (1, 28, 28), classes=10)
    '28x28-6c5-16c5-120-84-10'
    >>> [layer.macs for layer in counted(masked(nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU())), (1, 28, 28))]
    [86400]

A function is given the shape (channels, height, width) of an image and the number of classes, and returns a module,
images [N, C, H, W] to logits [N, classes]. What its layers hold and do is counted by passing one image through it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pruning.masks import masked, masked_layers
from pruning.notation import Layer, input_shape, layers, lenet
from pruning.study.benchmarks import BENCHMARKS, Benchmark, StudyError

__all__ = ["BENCHMARKS", "Network", "OwnNetwork", "build", "counted", "described", "fitting", "module_file", "source"]

Shape = tuple[int, int, int]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Where a layer that uses each weight once for every vector of inputs says how long such a vector is.
WIDTHS = ("in_features", "in1_features", "embed_dim", "input_size")


def module_file(benchmark: Benchmark) -> Path:
    """Return the file of the module that a network's function is in; nothing of it is run."""
    name = benchmark.network.partition(":")[0]
    beside = Path(benchmark.place, *name.split("."))
    for file in (beside.with_suffix(".py"), beside / "__init__.py"):
        if benchmark.place and file.is_file():
            return file
    try:
        found = importlib.util.find_spec(name)
    except Exception as error:  # a package above it, which is anyone's, is imported for this
        raise StudyError(f"network {benchmark.network}: {type(error).__name__}: {error}") from error
    if found is None or not found.origin or not Path(found.origin).is_file():
        beside_it = f" beside the study file ({beside.with_suffix('.py')})" if benchmark.place else ""
        raise StudyError(f"network {benchmark.network}: there is no module '{name}'{beside_it} or among the installed")
    return Path(found.origin)


def source(benchmark: Benchmark) -> str:
    """Return the SHA-256 of a network's module: where it changes, records are no longer current."""
    return hashlib.sha256(module_file(benchmark).read_bytes()).hexdigest()


@dataclass(frozen=True)
class OwnNetwork:
    """A network made by a benchmark's function for images of ``shape`` (C, H, W) and so many ``classes``."""

    benchmark: Benchmark
    shape: Shape
    classes: int

    def build(self) -> nn.Module:
        """Make the network; its first weights are drawn from PyTorch's global generator."""
        model = _function(self.benchmark, source(self.benchmark))(self.shape, self.classes)
        if not isinstance(model, nn.Module):
            raise StudyError(f"network {self.benchmark.network} returned {type(model).__name__}, not a torch module")
        return model

    def layers(self) -> tuple[Layer, ...]:
        """Describe the layers that get masks, in the order of the model's modules."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what gets no mask is said when the model is trained
            return counted(masked(self.build()), self.shape)


Network = str | OwnNetwork


def build(network: Network) -> nn.Module:
    """Make a network, its weights drawn from PyTorch's global generator."""
    return lenet(network) if isinstance(network, str) else network.build()


def described(network: Network) -> tuple[Layer, ...]:
    """Describe a network's layers: shapes, synapses, and how often an image uses each weight."""
    return layers(network) if isinstance(network, str) else network.layers()


def fitting(name: str, benchmark: Benchmark, shape: Shape, classes: int) -> Network:
    """Return a benchmark's network for its dataset; ``StudyError`` where the two do not fit.

    ``name`` is the benchmark's, ``shape`` (C, H, W) an image's.
    """
    has = f"{benchmark.label} has images of {_times(shape)} and {classes} classes"
    if benchmark.is_notation:
        takes, outputs = input_shape(benchmark.network), layers(benchmark.network)[-1].shape[0]
        if (takes, outputs) == (shape, classes):
            return benchmark.network
        middle = benchmark.network.split("-")[1:-1]
        right = "-".join([_times(shape if shape[0] > 1 else shape[1:]), *middle, str(classes)])
        raise StudyError(
            f"benchmark '{name}': the network {benchmark.network} takes images of {_times(takes)} and has {outputs} "
            f"outputs, but {has}: write {right}"
        )
    network = OwnNetwork(benchmark, shape, classes)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = network.build().eval()(torch.zeros(2, *shape))
    except StudyError:
        raise
    except Exception as error:  # the function is anyone's
        reason = f"{type(error).__name__}: {error}"
        raise StudyError(
            f"benchmark '{name}': {benchmark.network} fails on two images, where {has}: {reason}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2, classes):
        gave = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise StudyError(
            f"benchmark '{name}': {benchmark.network} makes of two images {gave}, but {has}: "
            f"it has to make logits of shape (2, {classes})"
        )
    return network


@torch.no_grad()
def counted(model: nn.Module, shape: Shape) -> tuple[Layer, ...]:
    """Describe the masked layers of a model by passing one image of ``shape`` (C, H, W) through it.

    A layer that is used several times counts each time. ``StudyError`` names one that is not used, or whose
    multiply-accumulates are not known.
    """
    positions: dict[str, int] = {}

    def observe(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, given: dict, output) -> None:
            taken = inputs[0] if inputs else next(iter(given.values()))
            count = _positions(name, module, taken, output)
            # Attention multiplies by the weights of its last layer itself, without calling it.
            more = [f"{name}.out_proj".lstrip(".")] if isinstance(module, nn.MultiheadAttention) else []
            for place in (name, *more):
                positions[place] = positions.get(place, 0) + count

        return hook

    parts = masked_layers(model)
    owners = {name: layer.place[0] for name, layer in parts.items()}
    paths = {id(module): path for path, module in model.named_modules()}
    hooks = [
        owner.register_forward_hook(observe(paths[id(owner)]), with_kwargs=True)
        for owner in dict.fromkeys(owners.values())
    ]
    training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, *shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    found = []
    for name, layer in parts.items():
        owner, path = owners[name], paths[id(owners[name])]
        if path not in positions:
            raise StudyError(f"layer '{name}' takes no part in classifying an image: leave it out of the network")
        kind = "conv" if isinstance(owner, (*CONVOLUTIONS, *TRANSPOSED)) else "linear"
        biases = owner.bias.numel() if isinstance(getattr(owner, "bias", None), Tensor) else 0
        found.append(Layer(name, kind, tuple(layer.parameter.shape), layer.synapses, biases, positions[path]))
    return tuple(found)


def _positions(name: str, module: nn.Module, taken: Tensor, output) -> int:
    """Count how often one image uses each weight of a module."""
    if isinstance(module, TRANSPOSED):
        return taken.numel() // module.in_channels
    if isinstance(module, CONVOLUTIONS):
        return output.numel() // module.out_channels
    width = next((getattr(module, name) for name in WIDTHS if hasattr(module, name)), None)
    if not width:
        raise StudyError(f"the multiply-accumulates of layer '{name}' ({type(module).__name__}) are not known")
    return taken.numel() // width


def _function(benchmark: Benchmark, digest: str) -> Callable:
    name, _, function = benchmark.network.partition(":")
    found = getattr(_module(module_file(benchmark), name, digest), function, None)
    if not callable(found):
        raise StudyError(
            f"network {benchmark.network}: the module {module_file(benchmark)} has no function '{function}'"
        )
    return found


@functools.lru_cache(maxsize=8)
def _module(file: Path, name: str, digest: str) -> ModuleType:
    """Import a module from its file, again where the file has changed."""
    top = str(file.parents[name.count(".") + (file.name == "__init__.py")])
    before = sys.modules.get(name)
    sys.path.insert(0, top)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        if Path(module.__file__ or "") != file:
            raise StudyError(f"{file}: another module is called '{name}' here, {module.__file__}: rename the file")
        return importlib.reload(module) if module is before else module
    except StudyError:
        raise
    except Exception as error:  # the module is anyone's
        raise StudyError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(top)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
