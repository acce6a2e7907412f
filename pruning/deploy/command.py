"""Make a pruned network small, and ready for a device.

python -m pruning deploy MODEL OUT_DIR [--network NETWORK] [--input 3x32x32] [--quantize 8]
"""

from __future__ import annotations

import argparse
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.deploy import storage
from pruning.deploy.c99 import table_bytes, to_c
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.onnx import to_onnx
from pruning.deploy.quantization import share_weights
from pruning.deploy.stages import Shape, described, notation_of, stages
from pruning.files import write_whole
from pruning.masks import masked, masked_layers
from pruning.notation import INPUT, input_shape, lenet

NETWORK = "--network 28x28-6c5-16c5-120-84-10, or --network package.module:function --input 3x32x32"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a network as model.prn, model.onnx and model.c; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m pruning deploy", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="a stored network (.prn), or a state dict of PyTorch")
    add("folder", type=Path, metavar="OUT_DIR", help="where model.prn, model.onnx and model.c are written")
    add(
        "--network",
        help="what a state dict belongs to: a notation such as 28x28-6c5-16c5-120-84-10, or package.module:function, "
        "which returns a sequential network, given the shape of an image and the number of classes or nothing",
    )
    add("--input", type=_size, metavar="CxHxW", help="the size of an image, for a network made by a function")
    add("--quantize", type=int, choices=[8], help="8-bit weights in model.c")
    add("--clusters", type=int, default=64, metavar="N", help="shared weights per layer, 0 to keep each (default 64)")
    options = parser.parse_args(arguments)
    try:
        model, shape, notation = opened(options.model, options.network, options.input)
        dense = len(storage.encode(model, "dense32", notation))
        stored, small, short = _narrowed(model, shape, notation, options.clusters)
        source = to_c(small, shape, options.quantize)
        encoding = "entropy" if options.clusters else "relative"
        written = {
            "model.prn": storage.save(options.folder / "model.prn", stored, encoding, short),
            "model.onnx": to_onnx(small, shape, options.folder / "model.onnx"),
        }
        write_whole(options.folder / "model.c", source.encode())
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counted = [(layer.significant, layer.synapses) for layer in masked_layers(model).values()]
    significant, synapses = (sum(column) for column in zip(*counted))
    narrow = short or described(stages(small, shape))
    print(f"{notation or options.network}: {significant} of {synapses} synapses; without dead neurons {narrow}")
    sharing = f"{options.clusters} shared weights per layer" if options.clusters else "every weight kept"
    lines = [
        ("dense, 32 bits", dense, ""),
        ("model.prn", written["model.prn"], f"{encoding}, {sharing}{'' if short else ', dead neurons kept'}"),
        ("model.onnx", written["model.onnx"], "dense, without dead neurons"),
        ("model.c", len(source), "source text"),
        ("  its tables", table_bytes(small, shape, options.quantize), "what it takes on the device beside code"),
    ]
    for name, size, note in lines:
        print(f"{name:<16}{size:>10} bytes{dense / size:>8.1f}x  {note}".rstrip())
    return 0


def _size(text: str) -> Shape:
    size = INPUT.fullmatch(text)
    if not size:
        raise argparse.ArgumentTypeError(f"an image's size is 3x32x32 or 28x28, not {text!r}")
    channels, height, width = (int(number or 1) for number in size.groups())
    return channels, height, width


def _narrowed(model: nn.Module, shape: Shape, notation: str, clusters: int) -> tuple[nn.Module, nn.Module, str]:
    """Return what to store, the network without dead neurons, and the notation of what is stored."""
    if notation:
        small = remove_dead_neurons(model, shape)
        short = notation_of(small, shape)
        small = share_weights(small, clusters) if clusters else small
        return small, small, short
    # A file without a notation is read into the network that its function makes, so it keeps the shapes of that.
    stored = share_weights(model, clusters) if clusters else model
    return stored, remove_dead_neurons(stored, shape), ""


def opened(path: str | Path, network: str | None = None, size: Shape | None = None) -> tuple[nn.Module, Shape, str]:
    """Read a masked model, the shape of an image and the notation, "" if it has none.

    ``path`` is a stored network or PyTorch's state dict. The latter needs ``network``: a notation, or
    ``package.module:function`` with the ``size`` (C, H, W) of an image; so does a stored network without
    notation. The function takes nothing, or as in a study that size and the number of classes. Tensors
    of other names are taken in their order where all shapes fit. Without masks among them, weights of
    zero count as pruned. No pickled code is run. Raises ``ValueError`` that says what is wrong.
    """
    path = Path(path)
    with path.open("rb") as file:
        stored = file.read(3) == storage.MAGIC[:3]
    if stored and not (network and ":" in network):
        model, notation = storage.load_network(path)
        if network not in (None, notation):
            raise ValueError(f"{path} holds the network {notation!r}, not {network!r}")
        return model, input_shape(notation), notation
    if not network:
        raise ValueError(f"{path} is not a stored network; for a state dict of PyTorch say which: {NETWORK}")
    own = ":" in network
    if own is (size is None):
        raise ValueError("--input CxHxW and --network package.module:function go together")
    state = storage.decode_state(path.read_bytes()) if stored else _state(path)
    model = _made(network, size, state) if size else lenet(network)
    has_masks = any(name.endswith(".mask") for name in state)
    try:
        (masked(model) if has_masks else model).load_state_dict(_named(state, model.state_dict()))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {network!r}: {error}") from error
    model = model if has_masks else masked(model, zeros_pruned=True)
    return model, size or input_shape(network), "" if own else network


def _made(network: str, size: Shape, state: dict[str, Tensor]) -> nn.Module:
    classes = next((len(tensor) for tensor in reversed(state.values()) if tensor.dim()), 0)
    try:
        function = pkgutil.resolve_name(network)
        model = function(size, classes) if inspect.signature(function).parameters else function()
    except Exception as error:  # the function is anyone's
        raise ValueError(f"--network {network} makes no network: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"--network {network} returned {type(model).__name__}, not a network")
    return model


def _state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file of another kind
        raise ValueError(f"{path} is neither a stored network nor a state dict of PyTorch") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no state dict: tensors by name, as torch.save(model.state_dict(), ...) writes them"
        )
    return state


def _named(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of other names those that are expected, in order, where all shapes are the same."""
    shapes = [[tensor.shape for tensor in tensors.values()] for tensors in (state, expected)]
    if state.keys() == expected.keys() or shapes[0] != shapes[1]:
        return state
    return dict(zip(expected, state.values()))
