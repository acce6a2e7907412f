"""Pruned networks as files: what they weigh in bytes, and nothing but the network in them.

    >>> from pruning.deploy.quantization import share_weights
    >>> model = masked(lenet("28x28-300-100-10"))
    >>> small = decode(encode(share_weights(model), "entropy", "28x28-300-100-10"))      # bit for bit the same
    >>> len(encode(small, "dense32", "28x28-300-100-10"))      # bytes under another encoding
    1066469

``save`` and ``load`` do the same with a file, whole or not at all.

Without a notation any model can be stored, or its ``state_dict``, masked or not: the tensors come back by name.

    >>> own = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> masked(own)[0].prune(own[0].weight.abs() > 0.09)
    >>> data = encode(own, "relative")
    >>> own.load_state_dict(decode_state(data))
    <All keys matched successfully>
    >>> from pruning import unmasked
    >>> plain = unmasked(own)      # its zeros are not stored either
    >>> len(encode(plain.state_dict(), "relative")) < len(encode(plain, "dense32")) / 2
    True
    >>> plain.load_state_dict(decode_state(encode(plain, "relative")))
    <All keys matched successfully>

Every encoding is lossless: what is lost, is lost in ``quantization.share_weights``. A file is, in this
order: the bytes ``PRN`` and the version; the encoding; the notation, or where there is none the names,
dtypes and shapes of all tensors; the tensors; a CRC-32 of all before it. All of that counts as size.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.deploy.binary import Reader, StorageError, number, text
from pruning.deploy.encodings import ENCODINGS, SHARED, decode_values, decode_weights, encode_values, encode_weights
from pruning.files import write_whole
from pruning.layers import mask_name
from pruning.masks import masked, masked_layers
from pruning.notation import layers, lenet

MAGIC = b"PRN\x01"
DIMENSIONS = 8  # of a tensor, at most
LIMIT = 1 << 24  # elements a file may declare unless its reader allows more: 64 MiB of weights
DTYPES = {
    torch.float32: "<f4", torch.float16: "<f2", torch.float64: "<f8", torch.bool: "?",
    torch.int8: "<i1", torch.uint8: "<u1", torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip


def encode(model: nn.Module | Mapping[str, Tensor], encoding: str, notation: str = "") -> bytes:
    """Write a model, or a state dict, as bytes without any loss.

    Of masked layers only the significant weights are stored, with where they are: ``dense32``
    with zeros in place (a significant weight that is exactly zero then reads as pruned),
    ``bitmask`` one bit per synapse, ``csr`` rows and columns in whole bytes, ``relative`` the gap
    to the last synapse in few bits (Han et al. 2016, section 2), ``codebook`` the same with
    weights as indices into the layer's shared ones, ``entropy`` both entropy coded. Biases and
    other tensors are stored as they are, in the last two as float16 where that is exact.

    Weights without a mask are stored without their zeros where that takes fewer bytes, as
    ``relative`` where the encoding asks for shared weights and theirs are not; the sign of a zero
    is not kept. With the ``notation`` of the network the file needs no names and shapes, and
    ``decode`` can rebuild the model, masked; a model without masks is masked where it is zero.
    Raises ``ValueError`` for what an encoding cannot hold.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; there are {', '.join(ENCODINGS)}")
    if notation and isinstance(model, nn.Module) and not masked_layers(model):
        model = masked(copy.deepcopy(model), zeros_pruned=True)
    state, masks = _state(model)
    table, parts = [], []
    for name, tensor in state.items():
        if name not in masks.values():
            entry, data = _encoded(name, tensor, state[masks[name]] if name in masks else None, encoding)
            table.append(entry)
            parts.append(data)
    if notation and table != _expected(notation):
        raise ValueError(f"the model is not a masked lenet({notation!r}): its layers, their order or names differ")
    head = MAGIC + bytes([ENCODINGS.index(encoding)]) + text(notation)
    data = b"".join([head, b"" if notation else _described(table), *parts])
    return data + zlib.crc32(data).to_bytes(4, "little")


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
        data = file.read(16 * limit + 1)
    try:
        if len(data) > 16 * limit:
            raise StorageError(f"more than 16 bytes for each of limit={limit} elements; a larger limit= allows them")
        return _network(data, limit)
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Entry:
    """One tensor of a file.

    A ``masked`` one stands for a weight and its mask, a ``sparse`` one for a weight without a
    mask that was stored in an encoding of its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    masked: bool = False
    sparse: str = ""

    @property
    def mask(self) -> str:
        return _mask_of(self.name)

    @property
    def rows(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])


def _mask_of(name: str) -> str:
    path, dot, own = name.rpartition(".")
    return path + dot + mask_name(own)


def _state(model: nn.Module | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and the name of the mask of each masked weight."""
    if isinstance(model, nn.Module):
        state = model.state_dict()
        places = [layer.place for layer in masked_layers(model).values()]
        paths = list(model.named_modules(remove_duplicate=False))
        names = [f"{path}.{own}".lstrip(".") for path, module in paths for owner, own in places if module is owner]
    else:
        state = dict(model)
        names = [name for name in state if _is_mask(state.get(_mask_of(name)), state[name])]
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{name} is {kind}: tensors must be one of {list(DTYPES)}")
    return {name: tensor.detach().cpu() for name, tensor in state.items()}, {name: _mask_of(name) for name in names}


def _is_mask(mask: object, weight: object) -> bool:
    """Whether a tensor that has a mask's name is one, which hides nothing but zeros."""
    if not isinstance(mask, Tensor) or not isinstance(weight, Tensor) or mask.dtype != torch.bool:
        return False
    return mask.shape == weight.shape and mask.dim() > 1 and not bool(weight[~mask].any())


def _encoded(name: str, tensor: Tensor, mask: Tensor | None, encoding: str) -> tuple[_Entry, bytes]:
    shape, values = tuple(tensor.shape), tensor.numpy()
    if mask is not None:
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}: masked weights must be float32")
        entry = _Entry(name, shape, masked=True)
        try:
            return entry, encode_weights(encoding, mask.numpy().reshape(entry.rows), values.reshape(entry.rows))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    keep = values != 0
    entry = _Entry(name, shape, tensor.dtype)
    forms = [(entry, encode_values(values.ravel(), narrow=encoding in SHARED))]
    if encoding != "dense32" and tensor.dtype == torch.float32 and len(shape) > 1 and not keep.all():
        try:
            sparse, data = encoding, encode_weights(encoding, keep.reshape(entry.rows), values.reshape(entry.rows))
        except ValueError:  # too many distinct weights for a codebook
            sparse, data = "relative", encode_weights("relative", keep.reshape(entry.rows), values.reshape(entry.rows))
        forms.append((_Entry(name, shape, sparse=sparse), data))
    return min(forms, key=lambda form: len(form[1]))


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
        if len(entry.shape) > DIMENSIONS:
            raise ValueError(f"{entry.name} has {len(entry.shape)} dimensions; a file holds at most {DIMENSIONS}")
        if entry.sparse:
            kind = 2 * len(DTYPES) + ENCODINGS.index(entry.sparse)
        data += text(entry.name) + bytes([kind]) + number(len(entry.shape))
        data += b"".join(map(number, entry.shape))
    return bytes(data)


def _read_table(reader: Reader) -> list[_Entry]:
    table = []
    for _ in range(reader.number()):
        name, kind = reader.text(), reader.byte()
        shape = tuple(reader.number() for _ in range(reader.number(most=DIMENSIONS)))
        known = 2 * len(DTYPES)
        if kind < known and kind % 2 == 0:
            table.append(_Entry(name, shape, list(DTYPES)[kind // 2]))
        elif kind in (1, *range(known + 1, known + len(ENCODINGS))) and len(shape) > 1:
            table.append(_Entry(name, shape, masked=kind == 1, sparse=ENCODINGS[kind - known] if kind > 1 else ""))
        else:
            raise StorageError(f"{name!r} is of an unknown kind ({kind}, shape {shape})")
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
        raise StorageError(
            f"the file declares {elements} elements, more than the {limit} allowed; limit={elements} allows them"
        )
    state = {}
    for entry in table:
        try:
            if entry.masked or entry.sparse:
                keep, weights = decode_weights(entry.sparse or encoding, reader, entry.rows)
                state[entry.name] = torch.from_numpy(weights).reshape(entry.shape)
                if entry.masked:
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
