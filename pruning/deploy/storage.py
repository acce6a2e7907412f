"""Pruned networks as files: what they weigh in bytes, and nothing but the network in them.

    >>> from pruning.deploy.quantization import share_weights
    >>> model = masked(lenet("28x28-300-100-10"))
    >>> small = decode(encode(share_weights(model), "entropy", "28x28-300-100-10"))      # bit for bit the same
    >>> len(encode(small, "dense32", "28x28-300-100-10"))      # bytes under another encoding
    1066469

``save`` and ``load`` do the same with a file, whole or not at all.

Every encoding is lossless: what is lost, is lost in ``quantization.share_weights``. A file is, in this
order: the bytes ``PRN`` and the version; the encoding; the notation, or where there is none the names,
dtypes and shapes of all tensors; the tensors; a CRC-32 of all before it. All of that counts as size.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.deploy.binary import Reader, StorageError, number, text
from pruning.deploy.encodings import ENCODINGS, SHARED, decode_values, decode_weights, encode_values, encode_weights
from pruning.files import write_whole
from pruning.masks import masked, masked_layers
from pruning.notation import layers, lenet

MAGIC = b"PRN\x01"
LIMIT = 1 << 24  # elements a file may declare unless its reader allows more: 64 MiB of weights
DTYPES = {
    torch.float32: "<f4", torch.float16: "<f2", torch.float64: "<f8", torch.bool: "?",
    torch.int8: "<i1", torch.uint8: "<u1", torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip


def encode(model: nn.Module, encoding: str, notation: str = "") -> bytes:
    """Write a model as bytes, without any loss.

    Of masked layers only the significant weights are stored, with where they are: ``dense32``
    with zeros in place (a significant weight that is exactly zero then reads as pruned),
    ``bitmask`` one bit per synapse, ``csr`` rows and columns in whole bytes, ``relative`` the gap
    to the last synapse in few bits (Han et al. 2016, section 2), ``codebook`` the same with
    weights as indices into the layer's shared ones, ``entropy`` both entropy coded. Biases and
    other tensors are stored as they are, in the last two as float16 where that is exact. With
    the ``notation`` of the network the file needs no names and shapes, and ``decode`` can rebuild
    the model. Raises ``ValueError`` for what an encoding cannot hold, and for a model without any
    masked layer in other encodings than ``dense32``, which would store its zeros too.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; there are {', '.join(ENCODINGS)}")
    prunable = masked_layers(model)
    if not prunable and encoding != "dense32":
        raise ValueError(
            f"{encoding!r} is for masked layers, and the model has none: call masked(model, zeros_pruned=True) first"
        )
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    table = _table(state, {f"{name}." if name else "" for name in prunable})
    data = bytearray(MAGIC)
    data.append(ENCODINGS.index(encoding))
    data += text(notation)
    if not notation:
        data += _described(table)
    elif table != _expected(notation):
        raise ValueError(
            f"the model is not a masked lenet({notation!r}): its layers differ, or masked(model) was not called"
        )
    for entry in table:
        if entry.masked:
            keep = state[entry.mask].numpy().reshape(entry.shape[0], math.prod(entry.shape[1:]))
            weights = state[entry.name].numpy().reshape(keep.shape)
            try:
                data += encode_weights(encoding, keep, weights)
            except ValueError as error:
                raise ValueError(f"{entry.name}: {error}") from None
        else:
            data += encode_values(state[entry.name].numpy().ravel(), narrow=encoding in SHARED)
    return bytes(data + zlib.crc32(data).to_bytes(4, "little"))


def decode_state(data: bytes, limit: int = LIMIT) -> dict[str, Tensor]:
    """Read the state dict of the model that was encoded, masks included; see ``decode``."""
    return _decode(data, limit)[1]


def decode(data: bytes, limit: int = LIMIT) -> nn.Module:
    """Read the masked network from a file that holds its notation.

    Raises ``StorageError`` for a file that is truncated, altered or of another kind, before it
    takes memory for more than ``limit`` elements (some 14 bytes each).
    """
    return _network(data, limit)[0]


def rebuilt(notation: str, state: dict[str, Tensor]) -> nn.Module:
    """Build the masked network of a notation around the tensors of ``state``."""
    with torch.device("meta"):  # no random weights are drawn only to be replaced
        model = masked(lenet(notation))
    model.load_state_dict(state, assign=True)
    return model


def save(path: str | Path, model: nn.Module, encoding: str = "entropy", notation: str = "") -> int:
    """Write the encoded model to ``path``, whole or not at all; its size in bytes."""
    data = encode(model, encoding, notation)
    write_whole(Path(path), data)
    return len(data)


def load(path: str | Path, limit: int = LIMIT) -> nn.Module:
    """``decode`` the file at ``path``; errors name it."""
    return load_network(path, limit)[0]


def load_network(path: str | Path, limit: int = LIMIT) -> tuple[nn.Module, str]:
    """Read the masked network in the file at ``path``, and its notation."""
    with open(path, "rb") as file:
        data = file.read(16 * limit)
    try:
        return _network(data, limit)
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Entry:
    """One tensor of a file; a ``masked`` one stands for a weight and its mask."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    masked: bool = False

    @property
    def mask(self) -> str:
        return self.name.removesuffix("weight") + "mask"


def _table(state: dict[str, Tensor], prefixes: set[str]) -> list[_Entry]:
    weights = {f"{prefix}weight" for prefix in prefixes}
    masks = {f"{prefix}mask" for prefix in prefixes}
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES or (name in weights and tensor.dtype != torch.float32):
            raise ValueError(f"{name} is {tensor.dtype}: weights must be float32, other tensors one of {list(DTYPES)}")
    return [_Entry(name, tuple(t.shape), t.dtype, name in weights) for name, t in state.items() if name not in masks]


def _expected(notation: str) -> list[_Entry]:
    table = []
    for layer in layers(notation):
        table.append(_Entry(f"{layer.name}.weight", layer.shape, masked=True))
        table.append(_Entry(f"{layer.name}.bias", (layer.biases,)))
    return table


def _described(table: list[_Entry]) -> bytes:
    data = bytearray(number(len(table)))
    for entry in table:
        kind = 2 * list(DTYPES).index(entry.dtype) + entry.masked
        data += text(entry.name) + bytes([kind]) + number(len(entry.shape))
        data += b"".join(map(number, entry.shape))
    return bytes(data)


def _read_table(reader: Reader) -> list[_Entry]:
    table = []
    for _ in range(reader.number()):
        name, kind = reader.text(), reader.byte()
        shape = tuple(reader.number() for _ in range(reader.number(most=8)))
        if kind >= 2 * len(DTYPES) or (kind % 2 and (kind != 1 or len(shape) < 2 or not name.endswith("weight"))):
            raise StorageError(f"{name!r} is of an unknown kind ({kind}, shape {shape})")
        table.append(_Entry(name, shape, list(DTYPES)[kind // 2], bool(kind % 2)))
    names = [entry.name for entry in table] + [entry.mask for entry in table if entry.masked]
    if len(set(names)) < len(names):
        raise StorageError("two tensors have one name")
    return table


def _decode(data: bytes, limit: int) -> tuple[str, dict[str, Tensor]]:
    if data[:3] != MAGIC[:3]:
        raise StorageError("not a stored network: the file does not begin with PRN")
    if data[3:4] != MAGIC[3:]:
        raise StorageError(
            f"version {data[3:4].hex() or 'missing'} of the format; this program reads version {MAGIC[3]}"
        )
    if len(data) < 8 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise StorageError("the file is truncated or altered: its checksum does not fit")
    reader = Reader(data[4:-4])
    encoding = ENCODINGS[reader.byte(most=len(ENCODINGS) - 1)]
    notation = reader.text()
    try:
        table = _expected(notation) if notation else _read_table(reader)
    except StorageError:
        raise
    except ValueError as error:
        raise StorageError(f"the notation is damaged: {error}") from error
    elements = sum(math.prod(max(size, 1) for size in entry.shape) for entry in table)
    if elements > limit:
        raise StorageError(f"the file declares {elements} elements, more than the {limit} allowed")
    state = {}
    for entry in table:
        try:
            if entry.masked:
                shape = entry.shape[0], math.prod(entry.shape[1:])
                keep, weights = decode_weights(encoding, reader, shape)
                state[entry.name] = torch.from_numpy(weights).reshape(entry.shape)
                state[entry.mask] = torch.from_numpy(keep).reshape(entry.shape)
            else:
                values = decode_values(reader, math.prod(entry.shape), DTYPES[entry.dtype])
                state[entry.name] = torch.from_numpy(values).reshape(entry.shape)
        except StorageError as error:
            raise StorageError(f"{entry.name}: {error}") from error
    reader.end()
    return notation, state


def _network(data: bytes, limit: int) -> tuple[nn.Module, str]:
    notation, state = _decode(data, limit)
    if not notation:
        raise StorageError("the file holds no notation to rebuild the model: load decode_state(data) into your model")
    return rebuilt(notation, state), notation
