"""Datasets that a study file brings: torchvision's by name, folders of images, arrays in an ``.npz``.

A folder holds ``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*`` alone, of which a fifth of each class is
then drawn for testing. An ``.npz`` holds ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``:
images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] of 1 or 3 channels, labels [N] of any values. The validation
split is drawn from the training images by ``datasets``.

torchvision's files are searched in the folder that PRUNING_DATA names, then in the project's ``data/``, in
torchvision's own layout, and else fetched into the latter through torchvision.
"""

from __future__ import annotations

import difflib
import inspect
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pruning.study.benchmarks import Data
from pruning.study.sources import DataError, Source, data_error, download, places, signature

LEAST = 5  # images that each class needs for training, validation among them
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Images:
    """What was read: uint8 ``images`` [N, C, H, W], ``labels`` [N] as numbers of ``classes``, the ``test`` indices.

    ``test`` is None where the images come undivided.
    """

    def __init__(self, data: Data, images: np.ndarray, named: np.ndarray, count: int | None):
        self.classes, labels = np.unique(named, return_inverse=True)
        self.images, self.labels = images, labels.astype(np.uint8 if len(self.classes) <= 256 else "<i8")
        self.test = None if count is None else np.arange(count, len(labels))
        known = np.bincount(labels[:count], minlength=len(self.classes))
        if len(self.classes) < 2:
            raise _error(data, f"all images are of the class {self.classes[0]}: it takes two to tell apart")
        for name, images_of in zip(self.classes, known):
            if images_of < LEAST:
                raise _error(data, f"{images_of} training images of the class '{name}', where {LEAST} are needed")


def find(data: Data) -> Source | None:
    """Return where the dataset's files are, None where there are none."""
    if data.torchvision:
        kind = _torchvision(data)
        return next((found for place in places(data.label) if (found := _files(data, kind, place))), None)
    path = Path(data.folder or data.npz or "")
    return Source(path, {path.name: signature(data.label, path)}) if path.exists() else None


def fetch(data: Data) -> Source:
    """Fetch a dataset through torchvision into the project's ``data/``; DataError where it cannot be had."""
    if not data.torchvision:
        raise _error(data, f"there is no {'folder' if data.folder else 'file'} {data.folder or data.npz}")
    kind = _torchvision(data)
    with download(data.label) as (scratch, folder):
        for half in ("test", "train"):  # where there is no test split, nothing is fetched
            _open(data, kind, half, scratch, download=True)
        for path in scratch.iterdir():
            if not (folder / path.name).exists():  # unless another process has fetched it meanwhile
                path.replace(folder / path.name)
    if (source := find(data)) is None:
        raise data_error(data.label, f"it was fetched into {folder} and is not found there")
    return source


def read(data: Data, source: Source) -> Images:
    """Read a dataset's images; DataError names what cannot be read, or has another size than the rest."""
    if data.npz:
        return _npz(data, source.path)
    pairs: list[tuple[np.ndarray, Any]] = []
    ends = []
    for pictures in _folders(data, source.path) if data.folder else _splits(data, source.path):
        for name, picture, label in pictures:
            try:
                pixels = _pixels(data, picture() if callable(picture) else picture)
            except Exception as error:  # decoders fail in many ways, all of them the file's fault
                raise _error(data, f"{name} cannot be read: {error}") from error
            if pairs and pixels.shape[:2] != pairs[0][0].shape[:2]:
                sizes = [" x ".join(map(str, one.shape[:2])) for one in (pixels, pairs[0][0])]
                raise _error(
                    data, f"{name} has {sizes[0]} pixels, the images before it {sizes[1]}: give the dataset a 'size'"
                )
            pairs.append((pixels, label))
        ends.append(len(pairs))
    if not pairs:
        raise _error(data, f"{source.path} holds no image")
    shape = (*pairs[0][0].shape[:2], 3 if any(pixels.ndim == 3 for pixels, _ in pairs) else 1)
    images = np.empty((len(pairs), *shape), np.uint8)
    for number, (pixels, _) in enumerate(pairs):
        images[number] = pixels.reshape(*pixels.shape[:2], -1)  # a grey image among coloured ones has equal channels
    named = np.array([label for _, label in pairs])
    return Images(data, images.transpose(0, 3, 1, 2).copy(), named, ends[0] if len(ends) > 1 else None)


def _pixels(data: Data, image) -> np.ndarray:
    """Return an image's pixels, uint8 [H, W] where it is grey and [H, W, 3] where it has colours."""
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise ValueError(f"it is {type(image).__name__}, not a picture")
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        raise ValueError(f"its pixels are not of 8 bits (mode {image.mode})")
    image = ImageOps.exif_transpose(image).convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if size := data.height_width:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image)


def _folders(data: Data, root: Path) -> list[Iterator[tuple[str, Any, Any]]]:
    """Return the images of a folder, in one part or in two, each with its name, a way to read it, and its class."""
    from PIL import Image

    endings = set(Image.registered_extensions())

    def images(folder: Path) -> Iterator[tuple[str, Any, Any]]:
        for kind in _visible(folder):
            if not kind.is_dir():
                raise _error(data, f"{kind} lies beside the folders of the classes: take it out")
            for file in _visible(kind):
                if file.suffix.lower() not in endings:
                    raise _error(data, f"{file} is not an image that Pillow reads: take it out")
                yield str(file), lambda file=file: _opened(file), kind.name

    halves = [root / "train", root / "test"]
    if not root.is_dir():
        raise _error(data, f"{root} is not a folder")
    if not any(half.is_dir() for half in halves):
        return [images(root)]
    for half, other in zip(halves, reversed(halves)):
        if not half.is_dir():
            raise _error(data, f"there is {other} and no {half}")
    return list(map(images, halves))


def _visible(folder: Path) -> list[Path]:
    """List what is in a folder, by name, without what begins with a dot."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _opened(file: Path):
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return image


def _npz(data: Data, file: Path) -> Images:
    try:
        with np.load(file) as stored:
            if missing := [name for name in ARRAYS if name not in stored.files]:
                raise _error(data, f"{file} has no array {', '.join(missing)}; it takes {', '.join(ARRAYS)}")
            arrays = {name: stored[name] for name in ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise _error(data, f"{file} cannot be read: {error}") from error
    parts, named = [], []
    for half in ("train", "test"):
        images, labels = arrays[f"{half}_images"], arrays[f"{half}_labels"]
        if images.dtype != np.uint8:
            raise _error(data, f"{half}_images must be uint8, 0 to 255, and are {images.dtype}")
        if images.ndim == 3:
            images = images[:, None]
        elif images.ndim == 4 and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            shape = arrays[f"{half}_images"].shape
            raise _error(data, f"{half}_images must be [N, H, W] or have 1 or 3 channels, and have the shape {shape}")
        if labels.shape != images.shape[:1] or not len(labels):
            raise _error(
                data, f"{half}_labels must be one label an image, {len(images)}, and have the shape {labels.shape}"
            )
        parts.append(images)
        named.append(labels)
    if parts[0].shape[1:] != parts[1].shape[1:]:
        raise _error(
            data, f"train_images and test_images differ in shape: {parts[0].shape[1:]} and {parts[1].shape[1:]}"
        )
    return Images(data, np.concatenate(parts), np.concatenate(named), len(parts[0]))


def _torchvision(data: Data) -> type:
    """Return torchvision's class of this name."""
    from pruning.study.vision import datasets

    kinds = [
        name for name in datasets.__all__ if name not in ("FakeData", "ImageFolder", "DatasetFolder", "VisionDataset")
    ]
    if data.torchvision not in kinds:
        near = difflib.get_close_matches(str(data.torchvision), kinds, 3, 0.5)
        said = f"near it are {', '.join(near)}" if near else f"it has {', '.join(kinds)}"
        raise DataError(f"torchvision has no dataset '{data.torchvision}'; {said}")
    return getattr(datasets, str(data.torchvision))


def _files(data: Data, kind: type, place: Path) -> Source | None:
    """Return the files in ``place`` that belong to one of torchvision's datasets, by their names; None without any."""
    own = {str(entry[1]) for entry in getattr(kind, "split_list", {}).values()}  # SVHN and USPS have no folder
    stem, every = _plain(kind.__name__), _visible(place) if place.is_dir() else []
    paths = [path for path in every if _plain(path.name).startswith(stem) or path.name in own]
    return Source(place, {path.name: signature(data.label, path) for path in paths}) if paths else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _open(data: Data, kind: type, half: str, root: Path, download: bool = False):
    """Open the ``train`` or ``test`` half of one of torchvision's datasets."""
    takes: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__[:-1]):  # EMNIST hands on to MNIST what it does not name
        takes |= inspect.signature(base.__init__).parameters  # type: ignore[misc]
    given: dict[str, Any] = {"download": download} if "download" in takes else {}
    if "train" in takes:
        given["train"] = half == "train"
        if data.split:
            given["split"] = data.split
        elif "split" in takes and takes["split"].default is inspect.Parameter.empty:
            raise _error(data, "it comes in several parts: say which by 'split', such as split: letters")
    elif "split" in takes:
        given["split"] = half
    else:
        raise _error(data, "torchvision has no test split of it: lay its images out as a folder, which is then split")
    try:
        return kind(root, **given)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        if download and isinstance(error, (RuntimeError, OSError)):
            raise
        raise _error(data, f"torchvision cannot open its {half} split in {root}: {error}") from error


def _splits(data: Data, root: Path) -> list[Iterator[tuple[str, Any, Any]]]:
    """Return the images of torchvision's two splits, each with its name, a way to read it, and its class."""
    kind = _torchvision(data)

    def images(half: str) -> Iterator[tuple[str, Any, Any]]:
        opened = _open(data, kind, half, root)
        for number in range(len(opened)):
            try:
                picture, label = opened[number]
            except Exception as error:
                raise _error(data, f"image {number} of its {half} split cannot be read: {error}") from error
            if isinstance(label, bool) or not isinstance(label, (int, np.integer, str)):
                raise _error(data, f"it labels an image with {type(label).__name__}, not with one class")
            yield f"image {number} of its {half} split", picture, int(label) if not isinstance(label, str) else label

    return [images("train"), images("test")]


def _error(data: Data, what: str) -> DataError:
    return DataError(f"{data.label}: {what}")
