"""Pruned networks as files: what they really weigh, and nothing but the network in them.

    small = shared(model, clusters=32)                   # weights shared by k-means, a copy
    save(path, small, "entropy", notation)               # one file, whole or not at all
    model = load(path)                                   # a masked lenet, bit for bit `small`
    sizes(model, notation)                               # {"dense32": 177743, ..., "entropy": 3444}

Every encoding is lossless: what is lost, is lost in `shared`. A file is, in this order: the bytes
``PRN`` and the version; the encoding; the notation, or where there is none the names, dtypes and
shapes of all tensors; the tensors; a CRC-32 of all before it. All of that is counted as size.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import constriction
import numpy as np
import torch
from torch import Tensor, nn

from pruning.files import write_whole
from pruning.masks import masked, masked_layers
from pruning.study.networks import layers, lenet

ENCODINGS = ("dense32", "bitmask", "csr", "relative", "codebook", "entropy")
SHARED = ("codebook", "entropy")
MAGIC = b"PRN\x01"
LIMIT = 1 << 24  # elements a file may declare unless its reader allows more: 64 MiB of weights
DTYPES = {
    torch.float32: "<f4", torch.float16: "<f2", torch.float64: "<f8", torch.bool: "?",
    torch.int8: "<i1", torch.uint8: "<u1", torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip
WIDTHS = ("<u1", "<u2", "<u4")


class StorageError(ValueError):
    """A file that is truncated, altered, of another kind or version, or larger than allowed."""


def encode(model: nn.Module, encoding: str, notation: str = "") -> bytes:
    """The whole file as bytes, without any loss.

    Of masked layers only the significant weights are stored, with where they are: ``dense32``
    with zeros in place (a significant weight that is exactly zero then reads as pruned),
    ``bitmask`` one bit a synapse, ``csr`` rows and columns in whole bytes, ``relative`` the gap
    to the last synapse in few bits (Han et al. 2016, section 2), ``codebook`` the same with
    weights as indices into the layer's shared ones, ``entropy`` both entropy coded. Biases and
    other tensors are stored as they are, in the last two as float16 where that is exact. With
    ``notation`` (of the network that the model is) the file needs no names and shapes, and
    ``decode`` can rebuild the model. Raises ``ValueError`` for what an encoding cannot hold.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; there are {', '.join(ENCODINGS)}")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    table = _table(state, {f"{name}." if name else "" for name in masked_layers(model)})
    data = bytearray(MAGIC)
    data.append(ENCODINGS.index(encoding))
    data += _text(notation)
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
                data += _encode_weights(encoding, keep, weights)
            except ValueError as error:
                raise ValueError(f"{entry.name}: {error}") from None
        else:
            data += _encode_values(state[entry.name].numpy().ravel(), narrow=encoding in SHARED)
    return bytes(data + zlib.crc32(data).to_bytes(4, "little"))


def decode_state(data: bytes, limit: int = LIMIT) -> dict[str, Tensor]:
    """The state dict of the model that was encoded, masks included; see ``decode``."""
    return _decode(data, limit)[1]


def decode(data: bytes, limit: int = LIMIT) -> nn.Module:
    """The masked network from a file that holds its notation.

    Raises ``StorageError`` for a file that is truncated, altered or of another kind, before it
    takes memory for more than ``limit`` elements (some 14 bytes each).
    """
    notation, state = _decode(data, limit)
    if not notation:
        raise StorageError(
            "the file holds no notation to rebuild the model from: load decode_state(data) into your model"
        )
    return rebuilt(notation, state)


def notation_of(data: bytes) -> str:
    """The notation that a file holds, "" for none."""
    return _opened(data)[1]


def rebuilt(notation: str, state: dict[str, Tensor]) -> nn.Module:
    """The masked network of a notation, with the tensors of ``state`` as its own."""
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
    """The masked network in the file at ``path`` and its notation."""
    with open(path, "rb") as file:
        data = file.read(16 * limit)
    try:
        return decode(data, limit), notation_of(data)
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error


def sizes(model: nn.Module, notation: str = "", clusters: int = 32) -> dict[str, int]:
    """Bytes of the model's file under every encoding; the last two after ``shared``."""
    small = shared(model, clusters)
    return {name: len(encode(small if name in SHARED else model, name, notation)) for name in ENCODINGS}


@torch.no_grad()
def shared(model: nn.Module, clusters: int = 32) -> nn.Module:
    """A copy whose masked layers have at most ``clusters`` (1 to 256) distinct weights each.

    K-means per layer from centroids spread evenly over its weights' range, which keeps the few
    large weights (Han et al. 2016, section 3.2: linear initialisation). Shared weights and the
    biases of masked layers are rounded to float16. A layer with few enough distinct weights
    that float16 holds stays as it is.
    """
    if not 1 <= clusters <= 256:
        raise ValueError(f"clusters must be 1 to 256 a layer, got {clusters}")
    model = copy.deepcopy(model)
    for layer in masked_layers(model).values():
        layer.set_mask(layer.mask)
        weights = layer.weight[layer.mask]
        if len(weights):
            centroids, labels = _kmeans(weights.cpu().double().numpy(), clusters)
            layer.weight[layer.mask] = torch.from_numpy(centroids)[torch.from_numpy(labels)].to(weights)
    return _rounded(model)


def tune(
    model: nn.Module, loss: Callable[[nn.Module, object], Tensor], batches: Iterable, rate: float = 1e-3
) -> nn.Module:
    """Train the shared weights of a ``shared`` model in place, and return it.

    ``loss(model, batch)`` is a scalar; one Adam update a batch. The gradient of a shared weight
    is the sum over its synapses (Han et al. 2016, section 3.3). Biases and other parameters are
    trained along; at the end all are rounded as ``shared`` does.
    """
    groups = []
    for layer in masked_layers(model).values():
        centroids, labels = layer.weight.detach()[layer.mask].unique(return_inverse=True)
        groups.append((layer, nn.Parameter(centroids), labels))
    weights = {id(layer.weight) for layer, _, _ in groups}
    others = [parameter for parameter in model.parameters() if id(parameter) not in weights]
    optimizer = torch.optim.Adam([centroids for _, centroids, _ in groups] + others, lr=rate)
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        for layer, centroids, labels in groups:
            centroids.grad = torch.zeros_like(centroids).index_add_(0, labels, layer.weight.grad[layer.mask])
        optimizer.step()
        with torch.no_grad():
            for layer, centroids, labels in groups:
                layer.weight[layer.mask] = centroids[labels]
    model.zero_grad()
    return _rounded(model)


@torch.no_grad()
def _rounded(model: nn.Module) -> nn.Module:
    for layer in masked_layers(model).values():
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.copy_(parameter.half())
    return model


def _kmeans(values: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [at most ``clusters``] and the label of every value [N]; the same every time."""
    distinct, labels = np.unique(values, return_inverse=True)
    if len(distinct) <= clusters:
        return distinct, labels
    centroids = np.linspace(distinct[0], distinct[-1], clusters)
    for _ in range(300):
        labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        counts = np.bincount(labels, minlength=clusters)
        means = np.bincount(labels, values, clusters) / np.maximum(counts, 1)
        updated = np.where(counts > 0, means, centroids)
        if np.array_equal(updated, centroids):
            break
        centroids = updated
    return centroids, labels


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
    return [
        entry
        for layer in layers(notation)
        for entry in (
            _Entry(f"{layer.name}.weight", layer.shape, masked=True),
            _Entry(f"{layer.name}.bias", (layer.biases,)),
        )
    ]


def _described(table: list[_Entry]) -> bytes:
    data = bytearray(_number(len(table)))
    for entry in table:
        kind = 2 * list(DTYPES).index(entry.dtype) + entry.masked
        data += _text(entry.name) + bytes([kind]) + _number(len(entry.shape))
        data += b"".join(map(_number, entry.shape))
    return bytes(data)


def _read_table(reader: _Reader) -> list[_Entry]:
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


def _opened(data: bytes) -> tuple[str, str, _Reader]:
    """Encoding, notation and what follows, once the file is known to be whole."""
    if data[:3] != MAGIC[:3]:
        raise StorageError("not a stored network: the file does not begin with PRN")
    if data[3:4] != MAGIC[3:]:
        raise StorageError(
            f"version {data[3:4].hex() or 'missing'} of the format; this program reads version {MAGIC[3]}"
        )
    if len(data) < 8 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise StorageError("the file is truncated or altered: its checksum does not fit")
    reader = _Reader(data[4:-4])
    encoding = ENCODINGS[reader.byte(most=len(ENCODINGS) - 1)]
    return encoding, reader.text(), reader


def _decode(data: bytes, limit: int) -> tuple[str, dict[str, Tensor]]:
    encoding, notation, reader = _opened(data)
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
                keep, weights = _decode_weights(encoding, reader, shape)
                state[entry.name] = torch.from_numpy(weights).reshape(entry.shape)
                state[entry.mask] = torch.from_numpy(keep).reshape(entry.shape)
            else:
                values = _decode_values(reader, math.prod(entry.shape), DTYPES[entry.dtype])
                state[entry.name] = torch.from_numpy(values).reshape(entry.shape)
        except StorageError as error:
            raise StorageError(f"{entry.name}: {error}") from error
    reader.end()
    return notation, state


def _encode_weights(encoding: str, keep: np.ndarray, weights: np.ndarray) -> bytes:
    """A layer's significant weights and where they are; mask and weights [outputs, inputs of each]."""
    if encoding == "dense32":
        return np.where(keep, weights, 0).astype("<f4").tobytes()
    values = weights[keep].astype("<f4")
    data = bytearray(_number(len(values)))
    if not len(values):
        return bytes(data)
    if encoding == "entropy":
        return bytes(data) + _entropy(keep, values)
    data += _POSITIONS[encoding][0](keep)
    return bytes(data) + (_codebook(values) if encoding == "codebook" else values.tobytes())


def _decode_weights(encoding: str, reader: _Reader, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mask and weights [outputs, inputs of each] with zeros in place."""
    size = math.prod(shape)
    if encoding == "dense32":
        weights = reader.array("<f4", size).reshape(shape).copy()
        return weights != 0, weights
    count = reader.number(most=size)
    if count == 0:
        return np.zeros(shape, bool), np.zeros(shape, np.float32)
    # What the file must hold is read before memory is taken for what it declares.
    if encoding == "entropy":
        positions, values = _read_entropy(reader, count, size)
    else:
        positions = _POSITIONS[encoding][1](reader, count, shape)
        values = _read_codebook(reader, count) if encoding == "codebook" else reader.array("<f4", count)
    keep, weights = np.zeros(size, bool), np.zeros(size, np.float32)
    keep[positions], weights[positions] = True, values
    return keep.reshape(shape), weights.reshape(shape)


def _codebook(values: np.ndarray) -> bytes:
    centroids, labels = _distinct(values)
    return _encode_centroids(centroids) + _packed(labels, _bits(len(centroids)))


def _read_codebook(reader: _Reader, count: int) -> np.ndarray:
    centroids = _decode_centroids(reader)
    labels = reader.packed(count, _bits(len(centroids)))
    if labels.max() >= len(centroids):
        raise StorageError("a synapse refers to no shared weight")
    return centroids[labels]


def _entropy(keep: np.ndarray, values: np.ndarray) -> bytes:
    """The mask bit by bit, which is as short as its gaps, and the labels by their frequencies."""
    centroids, labels = _distinct(values)
    counts = np.bincount(labels)
    frequencies = (-(-counts * 255 // counts.max())).astype(np.uint8)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(keep.ravel().astype(np.int32), _bernoulli(len(values), keep.size))
    if len(centroids) > 1:
        coder.encode(labels.astype(np.int32), _categorical(frequencies))
    words = coder.get_compressed().astype("<u4")
    return _encode_centroids(centroids) + frequencies.tobytes() + _number(len(words)) + words.tobytes()


def _read_entropy(reader: _Reader, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    centroids = _decode_centroids(reader)
    frequencies = reader.array("<u1", len(centroids))
    if not frequencies.all():
        raise StorageError("a shared weight that no synapse has")
    decoder = constriction.stream.queue.RangeDecoder(reader.array("<u4", reader.number()).astype(np.uint32))
    labels = np.zeros(count, np.int32)
    try:
        positions = np.flatnonzero(decoder.decode(_bernoulli(count, size), size))
        if len(centroids) > 1:
            labels = decoder.decode(_categorical(frequencies), count)
    except AssertionError as error:
        raise StorageError("the entropy coded part is damaged") from error
    if len(positions) != count or not decoder.maybe_exhausted():
        raise StorageError("the entropy coded part is damaged")
    return positions, centroids[labels]


def _bernoulli(count: int, size: int):
    return constriction.stream.model.Bernoulli(count / size, perfect=False)


def _categorical(frequencies: np.ndarray):
    return constriction.stream.model.Categorical(frequencies.astype(np.float64), perfect=False)


def _bitmask(keep: np.ndarray) -> bytes:
    return np.packbits(keep, bitorder="little").tobytes()


def _read_bitmask(reader: _Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
    positions = np.flatnonzero(reader.packed(math.prod(shape), 1))
    if len(positions) != count:
        raise StorageError(f"the mask has {len(positions)} synapses, the file says {count}")
    return positions


def _csr(keep: np.ndarray) -> bytes:
    rows = np.concatenate([[0], keep.sum(1).cumsum()])
    columns = np.nonzero(keep)[1]
    return rows.astype(_width(rows[-1])).tobytes() + columns.astype(_width(keep.shape[1] - 1)).tobytes()


def _read_csr(reader: _Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
    rows = reader.array(_width(count), shape[0] + 1).astype(np.int64)
    columns = reader.array(_width(shape[1] - 1), count).astype(np.int64)
    lengths = np.diff(rows)
    if rows[0] != 0 or rows[-1] != count or lengths.min() < 0 or columns.max() >= shape[1]:
        raise StorageError("a row or column lies outside the layer")
    positions = np.repeat(np.arange(shape[0]), lengths) * shape[1] + columns
    if (np.diff(positions) <= 0).any():
        raise StorageError("the columns of a row are not in order")
    return positions


def relative_codes(keep: np.ndarray) -> tuple[int, int]:
    """Index width in bits and number of codes that make ``relative`` smallest for a mask."""
    gaps = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    codes = {width: int((gaps // (2**width - 1) + 1).sum()) for width in range(1, 17)}
    width = min(codes, key=lambda width: width * codes[width])
    return width, codes[width]


def _relative(keep: np.ndarray) -> bytes:
    # The widest code is the filler zero: it moves on by that many places. Han et al. store a
    # weight of zero with it; here it has none, so it cannot be taken for a synapse of weight zero.
    width, number = relative_codes(keep)
    filler = 2**width - 1
    gaps = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    codes = np.full(number, filler)
    codes[np.cumsum(gaps // filler + 1) - 1] = gaps % filler
    return bytes([width]) + _number(number) + _packed(codes, width)


def _read_relative(reader: _Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
    width = reader.byte(most=16)
    codes = reader.packed(reader.number(), width) if width else np.zeros(0, np.int64)
    filler = 2**width - 1
    positions = np.cumsum(np.where(codes == filler, filler, codes + 1))[codes != filler] - 1
    if len(positions) != count or codes[-1] == filler or positions[-1] >= math.prod(shape):
        raise StorageError("the indices do not fit the layer")
    return positions


_POSITIONS = {
    "bitmask": (_bitmask, _read_bitmask),
    "csr": (_csr, _read_csr),
    "relative": (_relative, _read_relative),
    "codebook": (_relative, _read_relative),
}


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct weights by their bits, so that no two zeros or NaNs are confused, and labels."""
    bits, labels = np.unique(values.view("<u4"), return_inverse=True)
    if len(bits) > 256:
        raise ValueError(f"{len(bits)} distinct weights; a codebook holds 256: call shared(model) first")
    return bits.view("<f4"), labels


def _encode_centroids(centroids: np.ndarray) -> bytes:
    return bytes([len(centroids) - 1]) + _encode_values(centroids, narrow=True)


def _decode_centroids(reader: _Reader) -> np.ndarray:
    return _decode_values(reader, reader.byte() + 1, "<f4")


def _encode_values(values: np.ndarray, narrow: bool) -> bytes:
    """Values as they are, or as float16 where allowed and exact; the first byte tells which."""
    if narrow and values.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if half.astype("<f4").tobytes() == values.astype("<f4").tobytes():
            return b"\x01" + half.tobytes()
    return b"\x00" + values.astype(values.dtype.newbyteorder("<")).tobytes()


def _decode_values(reader: _Reader, count: int, dtype: str) -> np.ndarray:
    half = reader.byte(most=dtype == "<f4")
    values = reader.array("<u1" if dtype == "?" else "<f2" if half else dtype, count)
    if dtype == "?" and values.max(initial=0) > 1:
        raise StorageError("a truth value that is neither 0 nor 1")
    return values.astype(np.dtype(dtype).newbyteorder("="))


def _width(largest: int) -> str:
    return next(width for width in WIDTHS if largest < 256 ** np.dtype(width).itemsize)


def _bits(values: int) -> int:
    return (values - 1).bit_length()


def _packed(codes: np.ndarray, width: int) -> bytes:
    """Codes of ``width`` bits each, lowest bit first, without gaps."""
    return np.packbits((codes[:, None] >> np.arange(width)) & 1, bitorder="little").tobytes()


def _number(value: int) -> bytes:
    """A number in groups of seven bits, lowest first; the high bit says that more follow."""
    data = bytearray()
    while value >= 128:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes(data) + bytes([value])


def _text(text: str) -> bytes:
    data = text.encode()
    return _number(len(data)) + data


class _Reader:
    """Reads a file's parts in order; a ``StorageError`` where one is missing or out of range."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise StorageError(f"{count} bytes are declared where {len(self._data) - self._at} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self, most: int = 255) -> int:
        value = self.take(1)[0]
        if value > most:
            raise StorageError(f"{value} where at most {most} is known")
        return value

    def number(self, most: int = 2**32) -> int:
        value = 0
        for shift in range(0, 35, 7):
            group = self.byte()
            value |= (group & 127) << shift
            if group < 128:
                break
        else:
            raise StorageError("a number of more than five bytes")
        if value > most:
            raise StorageError(f"{value} where at most {most} is possible")
        return value

    def text(self) -> str:
        try:
            return self.take(self.number(most=1024)).decode()
        except UnicodeDecodeError as error:
            raise StorageError("a text is not UTF-8") from error

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def packed(self, count: int, width: int) -> np.ndarray:
        """What ``_packed`` wrote: codes [count] as int64."""
        bits = np.unpackbits(np.frombuffer(self.take((count * width + 7) // 8), np.uint8), bitorder="little")
        if bits[count * width :].any():
            raise StorageError("bits are set after the last code")
        bits = bits[: count * width].reshape(count, width)
        codes = np.zeros(count, np.int64)
        for place in range(width):
            codes |= bits[:, place].astype(np.int64) << place
        return codes

    def end(self) -> None:
        if self._at != len(self._data):
            raise StorageError(f"{len(self._data) - self._at} bytes follow the last tensor")
