"""Datasets as tensors in memory, with a fixed training, validation and test split.

    >>> data = load("digits")
    >>> data.train.images.shape      # float32, normalised over the training part
    torch.Size([1077, 1, 28, 28])
    >>> data.validation.labels.shape      # int64
    torch.Size([360])

``pruning.study.sources`` says where the files are searched, ``pruning.study.own_data`` which others a study file may
bring. Where none are found, a prepared copy from an earlier load is taken, and failing that the original is fetched.

Every load leaves a prepared copy in the user's cache folder (or the folder PRUNING_CACHE), which the next one reads
instead if the files that it was made from are still the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.files import cache_folder, write_whole
from pruning.study import own_data, sources
from pruning.study.benchmarks import Data
from pruning.study.readers import draw, fifths, read
from pruning.study.sources import KINDS, DataError, Source

__all__ = ["KINDS", "PARTS", "DataError", "Dataset", "Split", "fingerprint", "form", "load", "validation_images"]

FORMAT = 1  # of the prepared copy; raise it when other pixels or splits are made of the same files
PARTS = ("train", "validation", "test")
MOST = 500  # images per class that are drawn from a dataset of one's own for validation, and as many for testing


@dataclass(frozen=True, eq=False)
class Split:
    """Normalised ``images`` float32 [N, C, H, W] and ``labels`` int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits; ``mean`` and ``std`` per channel, of the training part with pixels in 0..1.

    ``fingerprint`` is the SHA-256 of all pixels, labels and split indices, wherever they came from.
    """

    name: str
    title: str
    fingerprint: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def black(self) -> Tensor:
        """The value [C] that black has in the images, for padding; on their device."""
        pixel = torch.zeros(1, len(self.mean), 1, 1, device=self.train.images.device)
        return _normalise(pixel, self.mean, self.std).flatten()


def load(name: str | Data, device: torch.device | str = "cpu") -> Dataset:
    """Load the dataset to ``device``; ValueError for an unknown name, DataError if it cannot be had."""
    source = _find(name)
    content = _read_copy(name, source)
    header, arrays = content or _prepare(name, source or _fetch(name))
    mean, std = tuple(header["mean"]), tuple(header["std"])

    def split(part: str) -> Split:
        images = torch.from_numpy(arrays[f"{part}_images"]).to(device).to(torch.float32)
        labels = torch.from_numpy(arrays[f"{part}_labels"]).to(device).to(torch.int64)
        return Split(_normalise(images, mean, std), labels)

    shape, classes = _form(name, header)
    label = name if isinstance(name, str) else name.label
    return Dataset(label, header["title"], header["fingerprint"], classes, shape, mean, std, *map(split, PARTS))


def fingerprint(name: str | Data) -> str | None:
    """Return the fingerprint that ``load`` would give, None if the data is not at hand; fetch nothing.

    Reads the prepared copy's header alone where there is a current one, otherwise prepares one; raises as ``load``.
    """
    header = _header(name)
    return header["fingerprint"] if header else None


def form(name: str | Data) -> tuple[tuple[int, int, int], int] | None:
    """Return an image's shape (C, H, W) and the number of classes, None if the data is not at hand; fetch nothing."""
    if isinstance(name, str):
        return KINDS[name].shape, len(KINDS[name].classes)
    if (header := _header(name)) is None:
        return None
    shape, classes = _form(name, header)
    return shape, len(classes)


def validation_images(name: str | Data) -> int | None:
    """Return the number of images in the validation split, None if the data is not at hand; fetch nothing."""
    if isinstance(name, str):
        return KINDS[name].drawn * len(KINDS[name].classes)
    header = _header(name)
    return header["validation"] if header else None


def _header(name: str | Data) -> dict | None:
    source = _find(name)
    content = _read_copy(name, source, pixels=False) or (source and _prepare(name, source))
    return content[0] if content else None


def _form(name: str | Data, header: dict) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    if isinstance(name, str):
        return KINDS[name].shape, KINDS[name].classes
    channels, height, width = header["shape"]
    return (channels, height, width), tuple(header["classes"])


def _find(name: str | Data) -> Source | None:
    return sources.find(name) if isinstance(name, str) else own_data.find(name)


def _fetch(name: str | Data) -> Source:
    return sources.fetch(name) if isinstance(name, str) else own_data.fetch(name)


def _normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Bring ``images`` [N, C, H, W] of 0..255 in place to mean 0 and deviation 1 per channel."""
    shift, scale = (images.new_tensor(values).mul_(255).view(-1, 1, 1) for values in (mean, std))
    return images.sub_(shift).div_(scale)


def _read_copy(name: str | Data, source: Source | None, pixels: bool = True) -> tuple[dict, dict] | None:
    """Read header and arrays of the prepared copy; None if it is not there, damaged or out of date."""
    try:
        with _copy(name).open("rb") as file, np.load(file) as stored:
            header = json.loads(stored["header"].tobytes())
            if header["format"] != FORMAT or (source and header["source"] != source.signature):
                return None
            keys = set(stored.files) - {"header"} if pixels else ()
            arrays = {key: stored[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None
    if pixels and _fingerprint(arrays) != header["fingerprint"]:
        return None
    return header, arrays


def _prepare(name: str | Data, source: Source) -> tuple[dict, dict]:
    """Make header and arrays from the source, and keep a copy for the next time."""
    own: dict[str, Any] = {}
    if isinstance(name, str):
        title, images, labels, test = read(name, source)
        rest = np.setdiff1d(np.arange(len(labels)), test)
        validation = draw(labels, rest, KINDS[name].drawn)
    else:
        found = own_data.read(name, source)
        title, images, labels = name.label, found.images, found.labels
        every = np.arange(len(labels))
        test = draw(labels, every, fifths(labels, every, MOST)) if found.test is None else found.test
        rest = np.setdiff1d(every, test)
        validation = draw(labels, rest, fifths(labels, rest, MOST))
        classes = [str(label) for label in found.classes]
        own = {"shape": list(images.shape[1:]), "classes": classes, "validation": len(validation)}
    arrays: dict[str, Any] = {}
    for part, indices in zip(PARTS, (np.setdiff1d(rest, validation), validation, test), strict=True):
        arrays[f"{part}_indices"] = indices.astype("<i8")
        arrays[f"{part}_labels"] = labels[indices]
        arrays[f"{part}_images"] = images[indices]
    # Sums of whole numbers, so that mean and deviation are the same to the last bit everywhere.
    pixels = arrays["train_images"]
    count, axes = pixels[:, 0].size, (0, 2, 3)
    mean = pixels.sum(axes, dtype=np.uint64) / count
    square = np.square(pixels, dtype=np.uint16).sum(axes, dtype=np.uint64) / count
    header = {
        "format": FORMAT,
        "title": title,
        "source": source.signature,
        "fingerprint": _fingerprint(arrays),
        "mean": (mean / 255).tolist(),
        "std": (np.sqrt(square - mean**2) / 255).tolist(),
        **own,
    }
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    try:
        write_whole(_copy(name), buffer.getbuffer())
    except OSError as error:
        advice = "PRUNING_CACHE can name another folder for it"
        warnings.warn(f"{title}: no prepared copy is kept ({error}); {advice}", stacklevel=3)
    return header, arrays


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for array in (arrays[f"{part}_{what}"] for what in ("indices", "labels", "images")):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


def _copy(name: str | Data) -> Path:
    if isinstance(name, str):
        return cache_folder() / f"{name}.npz"
    told = hashlib.sha256(name.model_dump_json().encode()).hexdigest()  # the whole path: two folders may share a name
    return cache_folder() / f"{name.label.replace(' ', '-')}-{told[:12]}.npz"
