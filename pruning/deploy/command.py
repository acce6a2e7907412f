"""Make a pruned network small, and ready for a device.

python -m pruning deploy MODEL OUT_DIR [--network NOTATION] [--quantize 8]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.deploy import storage
from pruning.deploy.c99 import table_bytes, to_c
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.onnx import to_onnx
from pruning.deploy.quantization import share_weights
from pruning.deploy.stages import notation_of
from pruning.files import write_whole
from pruning.masks import masked, masked_layers
from pruning.notation import input_shape, lenet


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a network as model.prn, model.onnx and model.c; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m pruning deploy", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="a stored network (.prn), or a state dict of PyTorch")
    add("folder", type=Path, metavar="OUT_DIR", help="where model.prn, model.onnx and model.c are written")
    add("--network", metavar="NOTATION", help="what a state dict belongs to, such as 28x28-6c5-16c5-120-84-10")
    add("--quantize", type=int, choices=[8], help="8-bit weights in model.c")
    add("--clusters", type=int, default=64, metavar="N", help="shared weights per layer, 0 to keep each (default 64)")
    options = parser.parse_args(arguments)
    try:
        model, notation = opened(options.model, options.network)
        shape = input_shape(notation)
        dense = len(storage.encode(model, "dense32", notation))
        small = remove_dead_neurons(model, shape)
        short = notation_of(small, shape)
        if options.clusters:
            small = share_weights(small, options.clusters)
        encoding = "entropy" if options.clusters else "relative"
        written = {
            "model.prn": storage.save(options.folder / "model.prn", small, encoding, short),
            "model.onnx": to_onnx(small, shape, options.folder / "model.onnx"),
        }
        source = to_c(small, shape, options.quantize)
        write_whole(options.folder / "model.c", source.encode())
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counted = [(layer.significant, layer.synapses) for layer in masked_layers(model).values()]
    significant, synapses = (sum(column) for column in zip(*counted))
    print(f"{notation}: {significant} of {synapses} synapses; without dead neurons {short}")
    sharing = f"{options.clusters} shared weights per layer" if options.clusters else "every weight kept"
    lines = [
        ("dense, 32 bits", dense, ""),
        ("model.prn", written["model.prn"], f"{encoding}, {sharing}"),
        ("model.onnx", written["model.onnx"], "dense, without dead neurons"),
        ("model.c", len(source), "source text"),
        ("  its tables", table_bytes(small, shape, options.quantize), "what it takes on the device beside code"),
    ]
    for name, size, note in lines:
        print(f"{name:<16}{size:>10} bytes{dense / size:>8.1f}x  {note}".rstrip())
    return 0


def opened(path: str | Path, network: str | None = None) -> tuple[nn.Module, str]:
    """Read a masked model and its notation from a stored network or from PyTorch's state dict.

    A state dict needs ``network``, its notation; without masks in it, weights of zero count as
    pruned. No pickled code is run. Raises ``ValueError`` that says what is wrong with the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        stored = file.read(3) == storage.MAGIC[:3]
    if stored:
        model, notation = storage.load_network(path)
        if network not in (None, notation):
            raise ValueError(f"{path} holds the network {notation!r}, not {network!r}")
        return model, notation
    if not network:
        raise ValueError(
            f"{path} is not a stored network; for a state dict of PyTorch say which: --network 28x28-6c5-16c5-120-84-10"
        )
    model = lenet(network)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file of another kind
        raise ValueError(f"{path} is neither a stored network nor a state dict of PyTorch") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no state dict: tensors by name, as torch.save(model.state_dict(), ...) writes them"
        )
    has_masks = any(name.endswith(".mask") for name in state)
    try:
        (masked(model) if has_masks else model).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {network!r}: {error}") from error
    return (model if has_masks else masked(model, zeros_pruned=True)), network
