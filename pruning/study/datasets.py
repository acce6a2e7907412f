"""Datasets as tensors in memory, with a fixed training, validation and test split.

    data = load("digits")
    data.train.images      # float32 [1077, 1, 28, 28], normalised over the training part
    data.validation.labels # int64 [360]

MNIST and CIFAR-10 are looked for in the folder that the environment variable PRUNING_DATA names
(a relative one counts from the project's root), then in ``data/``; the first place that holds any
of their files is the one that counts, and a fault there is an error. In neither place, a prepared
copy from an earlier load is taken, and failing that the original is fetched into ``data/``.

Every load leaves a prepared copy in ``data/prepared/`` (or the folder PRUNING_CACHE), which the
next one reads instead, if the files that it was made from are still the same.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import socket
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pruning.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1  # of the prepared copy; raise it when other pixels or splits are made of the same files
SPLIT_SEED = 2015
TIMEOUT = 5  # seconds without an answer until the network counts as absent
JPEG = (".jpg", ".jpeg")
PARTS = ("train", "validation", "test")
DIGITS = tuple("0123456789")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Kind:
    """What is known of a dataset beforehand.

    ``drawn`` images a class make the validation split; ``originals`` are the published files and
    their MD5, ``forms`` says how they or a copy of them may lie in a folder.
    """

    title: str
    classes: tuple[str, ...]
    drawn: int
    forms: str = ""
    originals: tuple[tuple[str, str], ...] = ()


KINDS = {
    "digits": _Kind("Digits", DIGITS, 36),
    "mnist": _Kind(
        "MNIST", DIGITS, 500, "MNIST/raw/*-ubyte (four files, gzipped or not)",
        (("MNIST/raw/train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
         ("MNIST/raw/train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
         ("MNIST/raw/t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
         ("MNIST/raw/t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"))),
    "cifar10": _Kind(
        "CIFAR-10", OBJECTS, 500, "cifar-10-batches-py, or the images as "
        "cifar10/{train,test}/<class>/*.png or *.jpg, or a zip of these named cifar10*.zip",
        (("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
         ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
         ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
         ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
         ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
         ("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"))),
}


class DataError(RuntimeError):
    """A dataset that is missing, damaged or out of reach; the message says what and what to do."""


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


def load(name: str, device: torch.device | str = "cpu") -> Dataset:
    """The dataset on ``device``; ValueError for an unknown name, DataError if it cannot be had."""
    source = _find(name)
    content = _kept(name, source)
    if content is None and source is None:
        _fetch(name, ROOT / "data")
        source = _find(name)
    header, arrays = content or _prepare(name, source)
    mean, std = tuple(header["mean"]), tuple(header["std"])

    def split(part: str) -> Split:
        images = torch.from_numpy(arrays[f"{part}_images"]).to(device).to(torch.float32)
        labels = torch.from_numpy(arrays[f"{part}_labels"]).to(device).to(torch.int64)
        return Split(_normalise(images, mean, std), labels)

    return Dataset(name, header["title"], header["fingerprint"], KINDS[name].classes,
                   arrays["test_images"].shape[1:], mean, std, *map(split, PARTS))


def fingerprint(name: str) -> str | None:
    """The fingerprint that ``load`` would give, None if the data is not at hand; fetches nothing.

    Reads the prepared copy's header alone where there is a current one, otherwise prepares one;
    raises as ``load`` does.
    """
    source = _find(name)
    content = _kept(name, source, pixels=False) or (source and _prepare(name, source))
    return content[0]["fingerprint"] if content else None


def _normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``images`` [N, C, H, W] of 0..255 in place to mean 0 and deviation 1 a channel."""
    shift, scale = (images.new_tensor(values).mul_(255).view(-1, 1, 1) for values in (mean, std))
    return images.sub_(shift).div_(scale)


@dataclass(frozen=True)
class _Source:
    """Where a dataset lies: its folder or zip, and the SHA-256 of each file it is made from."""

    path: Path
    signature: dict[str, str]


def _find(name: str) -> _Source | None:
    """The first place that holds any of the dataset's files; originals go before copies."""
    if name not in KINDS:
        raise ValueError(f"unknown dataset {name!r}; there are {', '.join(KINDS)}")
    if name == "digits":
        try:
            return _Source(Path(), {"scikit-learn": importlib.metadata.version("scikit-learn")})
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError("Digits come with scikit-learn, which is not installed") from error
    places = [ROOT / "data"]
    if named := os.environ.get("PRUNING_DATA"):
        places.insert(0, ROOT / Path(named).expanduser())
        if not places[0].is_dir():
            raise _error(name, f"PRUNING_DATA names {places[0]}, which is not a folder")
    for place in places:
        files = [_variant(place / file) for file, _ in KINDS[name].originals]
        if any(file.exists() for file in files):
            return _Source(place, {file.name: _sha256(name, file) for file in files})
        if name == "cifar10":
            trees = [place / "cifar10"] if (place / "cifar10").is_dir() else []
            trees += sorted(place.glob("cifar10*.zip"))
            if len(trees) > 1:
                trees.sort(key=lambda tree: _has_jpeg(_names(tree)))
            if trees:
                return _Source(trees[0], {trees[0].name: _sha256(name, trees[0])})
    return None


def _variant(file: Path) -> Path:
    """``file``, or its gzipped form where only that exists."""
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.exists() and not file.exists() else file


def _sha256(name: str, path: Path) -> str:
    """SHA-256 of a file, or of the names, sizes and times of all files below a folder."""
    digest = hashlib.sha256()
    try:
        for folder, _, files in sorted(os.walk(path)):
            for file in sorted(files):
                at = os.path.join(folder, file)
                status = os.stat(at)
                line = f"{at[len(str(path)):]}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogateescape"))
        if path.is_dir():
            return digest.hexdigest()
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _error(name, f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _kept(name: str, source: _Source | None, pixels: bool = True) -> tuple[dict, dict] | None:
    """Header and arrays of the prepared copy; None if it is not there, damaged or out of date."""
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


def _prepare(name: str, source: _Source) -> tuple[dict, dict]:
    """Header and arrays made from the source, and kept for the next time."""
    read = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}[name]
    title, images, labels, test = read(source)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    validation = _draw(labels, rest, KINDS[name].drawn)
    arrays = {}
    for part, indices in zip(PARTS, (np.setdiff1d(rest, validation), validation, test)):
        arrays[f"{part}_indices"] = indices.astype("<i8")
        arrays[f"{part}_labels"] = labels[indices]
        arrays[f"{part}_images"] = images[indices]
    # Sums of whole numbers, so that mean and deviation are the same to the last bit everywhere.
    pixels = arrays["train_images"]
    count, axes = pixels[:, 0].size, (0, 2, 3)
    mean = pixels.sum(axes, dtype=np.uint64) / count
    square = np.square(pixels, dtype=np.uint16).sum(axes, dtype=np.uint64) / count
    header = {
        "format": FORMAT, "title": title, "source": source.signature,
        "fingerprint": _fingerprint(arrays),
        "mean": (mean / 255).tolist(), "std": (np.sqrt(square - mean**2) / 255).tolist(),
    }
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    try:
        write_whole(_copy(name), buffer.getbuffer())
    except OSError as error:
        warnings.warn(f"{title}: no prepared copy is kept ({error}); PRUNING_CACHE can name "
                      "another folder for it", stacklevel=3)
    return header, arrays


def _draw(labels: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` images a class from the indices ``among``, the same on all machines."""
    # NumPy keeps a bit generator's raw stream the same in all versions, unlike a Generator's.
    rank = np.random.PCG64(SPLIT_SEED).random_raw(len(labels))
    among = among[np.argsort(rank[among], kind="stable")]
    return np.sort(np.concatenate([among[labels[among] == c][:count] for c in np.unique(labels)]))


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for array in (arrays[f"{part}_{what}"] for what in ("indices", "labels", "images")):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)
    return digest.hexdigest()


def _copy(name: str) -> Path:
    folder = os.environ.get("PRUNING_CACHE") or "data/prepared"
    return ROOT / Path(folder).expanduser() / f"{name}.npz"


def _digits(source: _Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Title, images uint8 [N, 1, 28, 28], labels uint8 [N] and the test images' indices."""
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.uint8)
    # Bilinear x3 is each pixel three times, then the mean of 3 x 3: in whole numbers, so that it
    # is the same to the last bit everywhere. Levels are 0..16, their sums of nine 0..144.
    large = found.images.astype(np.int64).repeat(3, axis=1).repeat(3, axis=2)
    edged = np.pad(large, ((0, 0), (1, 1), (1, 1)), mode="edge")
    sums = sum(edged[:, y:y + 24, x:x + 24] for y in range(3) for x in range(3))
    images = np.pad(((sums * 255 + 72) // 144).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    test = _draw(labels, np.arange(len(labels)), KINDS["digits"].drawn)
    return KINDS["digits"].title, images[:, None], labels, test


def _mnist(source: _Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """As ``_digits``, from the IDX files."""
    files = _originals("mnist", source.path)
    images = [np.frombuffer(data, np.uint8, offset=16) for data in files[::2]]
    labels = [np.frombuffer(data, np.uint8, offset=8) for data in files[1::2]]
    test = np.arange(len(labels[0]), len(labels[0]) + len(labels[1]))
    images = np.concatenate(images).reshape(-1, 1, 28, 28)
    return KINDS["mnist"].title, images, np.concatenate(labels), test


def _cifar10(source: _Source) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """As ``_digits``, images [N, 3, 32, 32], from the batches or from a tree of images."""
    title = KINDS["cifar10"].title
    if "test_batch" in source.signature:
        images, labels = _batches(_originals("cifar10", source.path))
    else:
        images, labels, jpeg = _pictures(source.path)
        title += " (JPEG copy)" if jpeg else ""
    return title, *_by_content(images, labels, 50_000), np.arange(50_000, 60_000)


def _by_content(
    images: np.ndarray, labels: np.ndarray, train: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``train`` images and the others, each in the order of their SHA-256."""
    # A tree has no order of its own. In this one the same pixels give the same dataset from any
    # source, and the first n images are a mixture of the classes.
    keys = [hashlib.sha256(image).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda i: (i >= train, keys[i], labels[i]))
    return images[order], labels[order]


def _originals(name: str, place: Path) -> list[bytes]:
    """Contents of the published files, in their order; DataError unless their MD5 is right."""
    contents = []
    for file, expected in KINDS[name].originals:
        path = _variant(place / file)
        try:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
        except (OSError, EOFError, zlib.error) as error:
            raise _error(name, f"{path} cannot be read ({error})") from error
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != expected:
            raise _error(name, f"{path} is damaged: its {len(data):,} bytes have the MD5 {found}, "
                         f"expected {expected}")
        contents.append(data)
    return contents


def _batches(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels uint8 [N] of CIFAR-10's pickled batches."""
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn of pickles as old as these (numpy/numpy#31211).
        warnings.simplefilter("ignore")
        batches = [pickle.loads(data, encoding="latin1") for data in contents]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([batch["labels"] for batch in batches]).astype(np.uint8)


def _pictures(
    tree: Path, train: int = 5000, test: int = 1000
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Images and labels as ``_batches``, from a folder or zip; and whether any is a JPEG.

    ``train`` and ``test`` are the images a class; other numbers and damage are a DataError.
    """
    from PIL import Image

    names = sorted(_names(tree), key=lambda name: (_folder(name)[0] != "train", name))
    expected = Counter({("train", label): train for label in OBJECTS})
    expected.update({("test", label): test for label in OBJECTS})
    found = Counter(map(_folder, names))
    if wrong := sorted(folder for folder in found | expected if found[folder] != expected[folder]):
        raise _error("cifar10", f"{tree} holds {found[wrong[0]]:,} images in {'/'.join(wrong[0])}, "
                     f"expected {expected[wrong[0]]:,}")
    images = np.empty((len(names), 3, 32, 32), np.uint8)
    with _archive(tree) as archive:
        for index, name in enumerate(names):
            try:
                data = archive.read(name) if archive else (tree / name).read_bytes()
                with Image.open(io.BytesIO(data)) as image:
                    pixels = np.asarray(image.convert("RGB"))
                if pixels.shape != (32, 32, 3):
                    raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels")
            except Exception as error:  # decoders fail in many ways, all of them the file's fault
                raise _error("cifar10", f"{tree}: {name} is not a whole image of 32 x 32 pixels "
                             f"({error})") from error
            images[index] = pixels.transpose(2, 0, 1)
    labels = np.array([OBJECTS.index(_folder(name)[1]) for name in names], np.uint8)
    return images, labels, _has_jpeg(names)


def _names(tree: Path) -> list[str]:
    """Names of the images in a folder or zip."""
    with _archive(tree) as archive:
        files = archive.namelist() if archive else (
            os.path.join(folder, file)[len(str(tree)) + 1:].replace(os.sep, "/")
            for folder, _, found in os.walk(tree) for file in found)
        return [file for file in files if file.lower().endswith((".png", *JPEG))
                and not file.rpartition("/")[2].startswith(".")]


def _has_jpeg(names: list[str]) -> bool:
    return any(name.lower().endswith(JPEG) for name in names)


def _folder(name: str) -> tuple[str, str]:
    """The split and the class that an image's name tells."""
    half, _, label = name.rpartition("/")[0].rpartition("/")
    return half.rpartition("/")[2], label


def _archive(tree: Path):
    """The open zip as a context, or a context of None for a folder."""
    try:
        return nullcontext() if tree.is_dir() else zipfile.ZipFile(tree)
    except (OSError, zipfile.BadZipFile) as error:
        raise _error("cifar10", f"{tree} is not a whole zip file ({error})") from error


def _fetch(name: str, folder: Path) -> None:
    """Fetches the original into ``folder`` through torchvision, whole or not at all."""
    target = Path(KINDS[name].originals[0][0]).parent
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        from pruning.study._torchvision import datasets

        folder.mkdir(parents=True, exist_ok=True)
        with (tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch,
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")  # torchvision unpickles too, see _batches
            {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name](scratch, download=True)
            if _find(name) is None:  # unless another process has fetched it meanwhile
                (folder / target).parent.mkdir(exist_ok=True)
                os.replace(Path(scratch) / target, folder / target)
    except (OSError, RuntimeError, EOFError, ImportError, HTTPException, zlib.error,
            tarfile.TarError) as error:
        raise _error(name, f"it is not at hand and could not be fetched ({error})") from error
    finally:
        socket.setdefaulttimeout(before)


def _error(name: str, what: str) -> DataError:
    return DataError(
        f"{KINDS[name].title}: {what}.\nThere are three ways to have it: set PRUNING_DATA to a "
        f"folder that holds {KINDS[name].forms}; or put these into {ROOT / 'data'}; or, with none "
        "of them in either place, run with a network connection, and it is fetched.")
