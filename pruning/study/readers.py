"""A dataset's files to pixels: the digits of scikit-learn, MNIST's IDX files, CIFAR-10 as batches or as images.

>>> title, images, labels, test = read("digits", Source(Path(), {}))
>>> images.shape, labels.shape      # uint8
((1797, 1, 28, 28), (1797,))
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pruning.study.sources import KINDS, OBJECTS, Source, archive, data_error, has_jpeg, image_names, variant

SPLIT_SEED = 2015


def read(name: str, source: Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Return title, images uint8 [N, C, H, W], labels uint8 [N] and the test images' indices; DataError if damaged."""
    return {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}[name](source)


def draw(labels: np.ndarray, among: np.ndarray, count: int | Mapping[int, int]) -> np.ndarray:
    """Return indices of ``count`` images per class from the indices ``among``, the same on all machines.

    ``count`` is one number for all classes, or one for each.
    """
    # NumPy keeps a bit generator's raw stream the same in all versions, unlike a Generator's.
    rank = np.random.PCG64(SPLIT_SEED).random_raw(len(labels))
    among = among[np.argsort(rank[among], kind="stable")]
    counts = count if isinstance(count, Mapping) else dict.fromkeys(np.unique(labels), count)
    return np.sort(np.concatenate([among[labels[among] == c][: counts[c]] for c in np.unique(labels)]))


def fifths(labels: np.ndarray, among: np.ndarray, most: int) -> dict[int, int]:
    """Return a fifth of the images of each class from the indices ``among``, at least one and at most ``most``."""
    classes, counts = np.unique(labels[among], return_counts=True)
    return {label: min(max(count // 5, 1), most) for label, count in zip(classes, counts)}


def batches(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 3, 32, 32] and labels uint8 [N] of CIFAR-10's pickled batches."""
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn of pickles as old as these (numpy/numpy#31211).
        warnings.simplefilter("ignore")
        parts = [pickle.loads(data, encoding="latin1") for data in contents]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([part["labels"] for part in parts]).astype(np.uint8)


def pictures(tree: Path, train: int = 5000, test: int = 1000) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return images and labels as ``batches``, from a folder or zip; and whether any is a JPEG.

    ``train`` and ``test`` are the images per class; other numbers and damage are a DataError.
    """
    from PIL import Image

    names = sorted(image_names(tree), key=lambda name: (_folder(name)[0] != "train", name))
    halves = {"train": train, "test": test}
    expected = Counter({(half, label): count for half, count in halves.items() for label in OBJECTS})
    present = Counter(map(_folder, names))
    if wrong := sorted(folder for folder in present | expected if present[folder] != expected[folder]):
        reason = f"{present[wrong[0]]:,} images in {'/'.join(wrong[0])}, expected {expected[wrong[0]]:,}"
        raise data_error("cifar10", f"{tree} holds {reason}")
    images = np.empty((len(names), 3, 32, 32), np.uint8)
    with archive(tree) as opened:
        for index, name in enumerate(names):
            try:
                data = opened.read(name) if opened else (tree / name).read_bytes()
                with Image.open(io.BytesIO(data)) as image:
                    pixels = np.asarray(image.convert("RGB"))
                if pixels.shape != (32, 32, 3):
                    raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels")
            except Exception as error:  # decoders fail in many ways, all of them the file's fault
                reason = f"{name} is not a whole image of 32 x 32 pixels ({error})"
                raise data_error("cifar10", f"{tree}: {reason}") from error
            images[index] = pixels.transpose(2, 0, 1)
    labels = np.array([OBJECTS.index(_folder(name)[1]) for name in names], np.uint8)
    return images, labels, has_jpeg(names)


def by_content(images: np.ndarray, labels: np.ndarray, train: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``train`` images and the others, each in the order of their SHA-256."""
    # A tree has no order of its own. In this one the same pixels give the same dataset from any
    # source, and the first n images are a mixture of the classes.
    keys = [hashlib.sha256(image).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda i: (i >= train, keys[i], labels[i]))
    return images[order], labels[order]


def _digits(source: Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    small = load_digits()
    labels = small.target.astype(np.uint8)
    # Bilinear x3 is each pixel three times, then the mean of 3 x 3: in whole numbers, so that it
    # is the same to the last bit everywhere. Levels are 0..16, their sums of nine 0..144.
    large = small.images.astype(np.int64).repeat(3, axis=1).repeat(3, axis=2)
    edged = np.pad(large, ((0, 0), (1, 1), (1, 1)), mode="edge")
    sums = np.sum([edged[:, y : y + 24, x : x + 24] for y in range(3) for x in range(3)], axis=0)
    images = np.pad(((sums * 255 + 72) // 144).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    test = draw(labels, np.arange(len(labels)), KINDS["digits"].drawn)
    return KINDS["digits"].title, images[:, None], labels, test


def _mnist(source: Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    files = _originals("mnist", source.path)
    images = [np.frombuffer(data, np.uint8, offset=16) for data in files[::2]]
    labels = [np.frombuffer(data, np.uint8, offset=8) for data in files[1::2]]
    test = np.arange(len(labels[0]), len(labels[0]) + len(labels[1]))
    return KINDS["mnist"].title, np.concatenate(images).reshape(-1, 1, 28, 28), np.concatenate(labels), test


def _cifar10(source: Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    title = KINDS["cifar10"].title
    if "test_batch" in source.signature:
        images, labels = batches(_originals("cifar10", source.path))
    else:
        images, labels, jpeg = pictures(source.path)
        title += " (JPEG copy)" if jpeg else ""
    return title, *by_content(images, labels, 50_000), np.arange(50_000, 60_000)


def _originals(name: str, place: Path) -> list[bytes]:
    """Return the contents of the published files, in their order; DataError unless their MD5 is right."""
    contents = []
    for file, expected in KINDS[name].originals:
        path = variant(place / file)
        try:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
        except (OSError, EOFError, zlib.error) as error:
            raise data_error(name, f"{path} cannot be read ({error})") from error
        actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if actual != expected:
            reason = f"its {len(data):,} bytes have the MD5 {actual}, expected {expected}"
            raise data_error(name, f"{path} is damaged: {reason}")
        contents.append(data)
    return contents


def _folder(name: str) -> tuple[str, str]:
    """Return the split and the class that an image's name tells."""
    half, _, label = name.rpartition("/")[0].rpartition("/")
    return half.rpartition("/")[2], label
