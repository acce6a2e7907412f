"""How one tensor is written: a masked layer's weights under each encoding, or plain values.

    >>> keep = np.eye(3, dtype=bool)
    >>> data = encode_weights("relative", keep, np.where(keep, np.float32(0.5), 0))
    >>> decode_weights("relative", Reader(data), keep.shape)[1]
    array([[0.5, 0. , 0. ],
           [0. , 0.5, 0. ],
           [0. , 0. , 0.5]], dtype=float32)

Masks and weights are arrays [outputs, inputs of each]; the position of a synapse is its place in the
flattened layer. A reader raises ``StorageError`` for whatever no writer here has written.
"""

from __future__ import annotations

import math

import constriction
import numpy as np

from pruning.deploy.binary import Reader, StorageError, number, packed

ENCODINGS = ("dense32", "bitmask", "csr", "relative", "codebook", "entropy")
SHARED = ("codebook", "entropy")


def encode_weights(encoding: str, keep: np.ndarray, weights: np.ndarray) -> bytes:
    """Write a layer's significant weights and where they are."""
    if encoding == "dense32":
        return np.where(keep, weights, 0).astype("<f4").tobytes()
    values = weights[keep].astype("<f4")
    data = number(len(values))
    if not len(values):
        return data
    if encoding == "entropy":
        return data + _entropy(keep, values)
    return data + _POSITIONS[encoding][0](keep) + (_codebook(values) if encoding == "codebook" else values.tobytes())


def decode_weights(encoding: str, reader: Reader, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read a layer of ``shape``: its mask, and its weights with zeros in place."""
    size = math.prod(shape)
    if encoding == "dense32":
        dense = reader.array("<f4", size).reshape(shape).copy()
        return dense != 0, dense
    count = reader.number(most=size)
    if count == 0:
        return np.zeros(shape, bool), np.zeros(shape, np.float32)
    # Read what the file must hold before taking memory for what it declares.
    if encoding == "entropy":
        positions, values = _read_entropy(reader, count, size)
    else:
        positions = _POSITIONS[encoding][1](reader, count, shape)
        values = _read_codebook(reader, count) if encoding == "codebook" else reader.array("<f4", count)
    keep, weights = np.zeros(size, bool), np.zeros(size, np.float32)
    keep[positions], weights[positions] = True, values
    return keep.reshape(shape), weights.reshape(shape)


def encode_values(values: np.ndarray, narrow: bool) -> bytes:
    """Write values as they are, or as float16 where ``narrow`` and exact; the first byte tells which."""
    if narrow and values.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if half.astype("<f4").tobytes() == values.astype("<f4").tobytes():
            return b"\x01" + half.tobytes()
    return b"\x00" + values.astype(values.dtype.newbyteorder("<")).tobytes()


def decode_values(reader: Reader, count: int, dtype: str) -> np.ndarray:
    """Read ``count`` values of ``dtype``."""
    half = reader.byte(most=dtype == "<f4")
    values = reader.array("<u1" if dtype == "?" else "<f2" if half else dtype, count)
    if dtype == "?" and values.max(initial=0) > 1:
        raise StorageError("a truth value that is neither 0 nor 1")
    return values.astype(np.dtype(dtype).newbyteorder("="))


def relative_codes(keep: np.ndarray) -> tuple[int, int]:
    """Find the index width in bits, and the number of codes, that make ``relative`` smallest for a mask."""
    gaps = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    codes = {width: int((gaps // (2**width - 1) + 1).sum()) for width in range(1, 17)}
    width = min(codes, key=lambda width: width * codes[width])
    return width, codes[width]


def _bitmask(keep: np.ndarray) -> bytes:
    return np.packbits(keep, bitorder="little").tobytes()


def _read_bitmask(reader: Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
    positions = np.flatnonzero(reader.packed(math.prod(shape), 1))
    if len(positions) != count:
        raise StorageError(f"the mask has {len(positions)} synapses, the file says {count}")
    return positions


def _csr(keep: np.ndarray) -> bytes:
    rows = np.concatenate([[0], keep.sum(1).cumsum()])
    columns = np.nonzero(keep)[1]
    return rows.astype(_width(rows[-1])).tobytes() + columns.astype(_width(keep.shape[1] - 1)).tobytes()


def _read_csr(reader: Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
    rows = reader.array(_width(count), shape[0] + 1).astype(np.int64)
    columns = reader.array(_width(shape[1] - 1), count).astype(np.int64)
    lengths = np.diff(rows)
    if rows[0] != 0 or rows[-1] != count or lengths.min() < 0 or columns.max() >= shape[1]:
        raise StorageError("a row or column lies outside the layer")
    positions = np.repeat(np.arange(shape[0]), lengths) * shape[1] + columns
    if (np.diff(positions) <= 0).any():
        raise StorageError("the columns of a row are not in order")
    return positions


def _width(largest: int) -> np.dtype:
    return np.min_scalar_type(int(largest)).newbyteorder("<")


def _relative(keep: np.ndarray) -> bytes:
    # The widest code is a filler: it moves on by that many places. Han et al. store a weight of zero
    # with it; here it has none, so it cannot be mistaken for a synapse of weight zero.
    width, count = relative_codes(keep)
    filler = 2**width - 1
    gaps = np.diff(np.flatnonzero(keep), prepend=-1) - 1
    codes = np.full(count, filler)
    codes[np.cumsum(gaps // filler + 1) - 1] = gaps % filler
    return bytes([width]) + number(count) + packed(codes, width)


def _read_relative(reader: Reader, count: int, shape: tuple[int, int]) -> np.ndarray:
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
    """Distinct weights, told apart by their bits so that no two zeros or NaNs are confused, and labels."""
    bits, labels = np.unique(values.view("<u4"), return_inverse=True)
    if len(bits) > 256:
        raise ValueError(f"{len(bits)} distinct weights; a codebook holds 256: call share_weights(model) first")
    return bits.view("<f4"), labels


def _codebook(values: np.ndarray) -> bytes:
    centroids, labels = _distinct(values)
    return _centroids(centroids) + packed(labels, _bits(len(centroids)))


def _read_codebook(reader: Reader, count: int) -> np.ndarray:
    centroids = _read_centroids(reader)
    labels = reader.packed(count, _bits(len(centroids)))
    if labels.max() >= len(centroids):
        raise StorageError("a synapse refers to no shared weight")
    return centroids[labels]


def _bits(values: int) -> int:
    return (values - 1).bit_length()


def _centroids(centroids: np.ndarray) -> bytes:
    return bytes([len(centroids) - 1]) + encode_values(centroids, narrow=True)


def _read_centroids(reader: Reader) -> np.ndarray:
    return decode_values(reader, reader.byte() + 1, "<f4")


def _entropy(keep: np.ndarray, values: np.ndarray) -> bytes:
    """Code the mask bit by bit, which takes no more than coding its gaps, and labels by their frequencies."""
    centroids, labels = _distinct(values)
    counts = np.bincount(labels)
    frequencies = (-(-counts * 255 // counts.max())).astype(np.uint8)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(keep.ravel().astype(np.int32), _bernoulli(len(values), keep.size))
    if len(centroids) > 1:
        coder.encode(labels.astype(np.int32), _categorical(frequencies))
    words = coder.get_compressed().astype("<u4")
    return _centroids(centroids) + frequencies.tobytes() + number(len(words)) + words.tobytes()


def _read_entropy(reader: Reader, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    centroids = _read_centroids(reader)
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
