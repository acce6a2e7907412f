"""Where a dataset's files lie: what is published, finding it on this machine, fetching it.

``find("mnist").path`` is the folder that holds ``MNIST/raw``; ``find`` returns None where no place does.

MNIST and CIFAR-10 are searched in the folder that the variable PRUNING_DATA names (a relative one counts from the
project's folder, outside a project from the current one), then in the project's ``data/``. The first place that holds
any of a dataset's files is the one that counts, and a fault there is an error.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from pruning.study.paths import find_root

TIMEOUT = 5  # seconds without an answer until the network counts as absent
JPEG = (".jpg", ".jpeg")
DIGITS = tuple("0123456789")
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Kind:
    """What is known of a dataset before its files are read.

    ``shape`` is an image's (C, H, W). ``drawn`` images per class make the validation split; ``originals`` are the
    published files and their MD5, ``forms`` says how they or a copy of them may lie in a folder.
    """

    title: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    drawn: int
    forms: str = ""
    originals: tuple[tuple[str, str], ...] = ()


KINDS = {
    "digits": Kind("Digits", (1, 28, 28), DIGITS, 36),
    "mnist": Kind(
        "MNIST",
        (1, 28, 28),
        DIGITS,
        500,
        "MNIST/raw/*-ubyte (four files, gzipped or not)",
        (
            ("MNIST/raw/train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
            ("MNIST/raw/train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
            ("MNIST/raw/t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
            ("MNIST/raw/t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
        ),
    ),
    "cifar10": Kind(
        "CIFAR-10",
        (3, 32, 32),
        OBJECTS,
        500,
        "cifar-10-batches-py, or the images as cifar10/{train,test}/<class>/*.png or *.jpg, or a zip of these named "
        "cifar10*.zip",
        (
            ("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"),
        ),
    ),
}


class DataError(RuntimeError):
    """A dataset that is missing, damaged or out of reach; the message says what and what to do."""


def data_error(name: str, what: str) -> DataError:
    """Return the error with the dataset's title before ``what``, and after it the ways to have the data."""
    project = find_root()
    place = project / "data" if project else "data/ of a project and work there"
    if name not in KINDS:
        return DataError(
            f"{name}: {what}.\nThere are three ways to have it: set PRUNING_DATA to a folder that holds it as "
            f"torchvision lays it out; or put it so into {place}; or run with a network connection, and it is fetched."
        )
    return DataError(
        f"{KINDS[name].title}: {what}.\nThere are three ways to have it: set PRUNING_DATA to a folder that holds "
        f"{KINDS[name].forms}; or put these into {place}; "
        "or, with none of them in either place, run with a network connection, and it is fetched."
    )


@dataclass(frozen=True)
class Source:
    """Where a dataset lies: its folder or zip, and the SHA-256 of each file it is made from."""

    path: Path
    signature: dict[str, str]


def find(name: str) -> Source | None:
    """Return the first place that holds any of the dataset's files; originals go before copies."""
    if name not in KINDS:
        raise ValueError(f"unknown dataset {name!r}; there are {', '.join(KINDS)}")
    if name == "digits":
        try:
            return Source(Path(), {"scikit-learn": importlib.metadata.version("scikit-learn")})
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError("Digits come with scikit-learn, which is not installed") from error
    for place in places(name):
        files = [variant(place / file) for file, _ in KINDS[name].originals]
        if any(file.exists() for file in files):
            return Source(place, {file.name: signature(name, file) for file in files})
        if name == "cifar10":
            trees = [place / "cifar10"] if (place / "cifar10").is_dir() else []
            trees += sorted(place.glob("cifar10*.zip"))
            if len(trees) > 1:
                trees.sort(key=lambda tree: has_jpeg(image_names(tree)))
            if trees:
                return Source(trees[0], {trees[0].name: signature(name, trees[0])})
    return None


def places(name: str) -> list[Path]:
    """Return the folders in which files are searched, in this order; DataError if PRUNING_DATA names no folder."""
    project = find_root()
    found = [project / "data"] if project else []
    if named := os.environ.get("PRUNING_DATA"):
        found.insert(0, (project or Path.cwd()) / Path(named).expanduser())
        if not found[0].is_dir():
            raise data_error(name, f"PRUNING_DATA names {found[0]}, which is not a folder")
    return found


def fetch(name: str) -> Source:
    """Fetch the original into the project's ``data/`` through torchvision, whole or not at all; return its place."""
    target = Path(KINDS[name].originals[0][0]).parent
    with download(name) as (scratch, folder):
        from pruning.study.vision import datasets

        {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name](scratch, download=True)
        if find(name) is None:  # unless another process has fetched it meanwhile
            (folder / target).parent.mkdir(exist_ok=True)
            os.replace(scratch / target, folder / target)
    if (source := find(name)) is None:
        raise data_error(name, f"it was fetched into {folder} and is not found there")
    return source


@contextmanager
def download(name: str) -> Iterator[tuple[Path, Path]]:
    """Give a scratch folder to fetch a dataset into, and the project's ``data/``, for which it is meant.

    Whatever fails in between is a DataError.
    """
    project, before = find_root(), socket.getdefaulttimeout()
    if project is None:
        raise data_error(name, "it is not at hand, and there is no project to fetch it into")
    folder = project / "data"
    socket.setdefaulttimeout(TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision unpickles too, see ``readers.batches``
            yield Path(scratch), folder
    except DataError:
        raise
    except (OSError, RuntimeError, EOFError, ImportError, HTTPException, zlib.error, tarfile.TarError) as error:
        raise data_error(name, f"it is not at hand and could not be fetched ({error})") from error
    finally:
        socket.setdefaulttimeout(before)


def variant(file: Path) -> Path:
    """Return ``file``, or its gzipped form where only that exists."""
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.exists() and not file.exists() else file


def image_names(tree: Path) -> list[str]:
    """Return the names of the images in a folder or zip."""
    with archive(tree) as opened:
        names = (
            opened.namelist()
            if opened
            else (
                os.path.join(folder, file)[len(str(tree)) + 1 :].replace(os.sep, "/")
                for folder, _, files in os.walk(tree)
                for file in files
            )
        )
        return [
            name
            for name in names
            if name.lower().endswith((".png", *JPEG)) and not name.rpartition("/")[2].startswith(".")
        ]


def has_jpeg(names: list[str]) -> bool:
    """Tell whether any of the names is a JPEG's."""
    return any(name.lower().endswith(JPEG) for name in names)


def archive(tree: Path) -> zipfile.ZipFile | nullcontext[None]:
    """Return the open zip as a context, or a context of None for a folder."""
    try:
        return nullcontext() if tree.is_dir() else zipfile.ZipFile(tree)
    except (OSError, zipfile.BadZipFile) as error:
        raise data_error("cifar10", f"{tree} is not a whole zip file ({error})") from error


def signature(name: str, path: Path) -> str:
    """Return the SHA-256 of a file, or of the names, sizes and times of all files below a folder."""
    digest = hashlib.sha256()
    try:
        for folder, _, files in sorted(os.walk(path)):
            for file in sorted(files):
                at = os.path.join(folder, file)
                status = os.stat(at)
                line = f"{at[len(str(path)) :]}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogateescape"))
        if path.is_dir():
            return digest.hexdigest()
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise data_error(name, f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()
