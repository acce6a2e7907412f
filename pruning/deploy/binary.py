"""The words a stored network is written in: numbers, texts and codes of a few bits, and their reader."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 1024  # bytes of a text


class StorageError(ValueError):
    """A file that is truncated, altered, of another kind or version, or larger than allowed."""


def number(value: int) -> bytes:
    """Write a number in groups of seven bits, lowest first; the high bit says that more follow."""
    data = bytearray()
    while value >= 128:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes(data) + bytes([value])


def text(value: str) -> bytes:
    """Write a text in UTF-8 after its length; ``ValueError`` for one that ``Reader.text`` would not take."""
    data = value.encode()
    if len(data) > LONGEST:
        raise ValueError(f"the text {value[:40]!r}... has {len(data)} bytes; a file holds at most {LONGEST}")
    return number(len(data)) + data


def packed(codes: np.ndarray, width: int) -> bytes:
    """Write codes [N] of ``width`` bits each, lowest bit first, without gaps."""
    return np.packbits((codes[:, None] >> np.arange(width)) & 1, bitorder="little").tobytes()


class Reader:
    """Read a file's parts in order; ``StorageError`` where one is missing or out of range."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        """Read ``count`` bytes."""
        rest = len(self._data) - self._at
        if count > rest:
            raise StorageError(f"{count} bytes are declared where {rest} follow")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self, most: int = 255) -> int:
        """Read one byte, at most ``most``."""
        value = self.take(1)[0]
        if value > most:
            raise StorageError(f"{value} where at most {most} is known")
        return value

    def number(self, most: int = 2**32) -> int:
        """Read what ``number`` wrote."""
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
        """Read what ``text`` wrote."""
        try:
            return self.take(self.number(most=LONGEST)).decode()
        except UnicodeDecodeError as error:
            raise StorageError("a text is not UTF-8") from error

    def array(self, dtype: npt.DTypeLike, count: int) -> np.ndarray:
        """Read ``count`` values of ``dtype``."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def packed(self, count: int, width: int) -> np.ndarray:
        """Read what ``packed`` wrote: codes [count] as int64."""
        bits = np.unpackbits(self.array("<u1", (count * width + 7) // 8), bitorder="little")
        if bits[count * width :].any():
            raise StorageError("bits are set after the last code")
        codes = np.zeros(count, np.int64)
        for place in range(width):
            codes |= bits[place : count * width : width].astype(np.int64) << place
        return codes

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at != len(self._data):
            raise StorageError(f"{len(self._data) - self._at} bytes follow the last tensor")
