"""What a benchmark is: a dataset and a network, by name; those of the study, and those that a study file brings.

>>> BENCHMARKS["digits-2c"].network
'28x28-6c5-16c5-120-84-10'
>>> own = Benchmark(dataset={"folder": "flowers", "size": 32}, network="my_networks:small_resnet")
>>> own.dataset.label, own.is_notation
('flowers at 32x32', False)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pruning.notation import layers

Pixels = Annotated[int, Field(ge=1)]
BUILT_IN = ("digits", "mnist", "cifar10")  # datasets that ``sources`` knows beyond what torchvision says of them
CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class StudyError(ValueError):
    """A study, a run or a parameter that cannot be carried out, with what would be right."""


class Strict(BaseModel):
    """Parameters that cannot change, of the right types, with no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Strict):
    """A dataset that a study file brings: one of ``torchvision``'s by name, a ``folder`` of images, or an ``npz``.

    ``size`` is the height and width in pixels, one number for both, that images are cut and scaled to; without it they
    must have one size. ``split`` is what torchvision's EMNIST calls so, such as ``letters``. ``label`` names the
    dataset in records and figures.
    """

    torchvision: str | None = None
    folder: str | None = None
    npz: str | None = None
    size: Pixels | Annotated[tuple[Pixels, Pixels], Field(strict=False)] | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Data:
        given = [name for name in ("torchvision", "folder", "npz") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a dataset is one of 'torchvision', 'folder' and 'npz'")
        if self.npz and self.size:
            raise ValueError("the images of an npz have one size: leave 'size' out")
        if self.split and not self.torchvision:
            raise ValueError("'split' is an option of torchvision's datasets alone")
        return self

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size as height and width, None where images stay as they are."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def label(self) -> str:
        """The dataset's name without the folder that it lies in: what a record says of it."""
        name = self.torchvision or (Path(self.folder).name if self.folder else Path(self.npz or "").stem)
        size = self.height_width
        return name + (f"-{self.split}" if self.split else "") + (f" at {size[0]}x{size[1]}" if size else "")

    def beside(self, folder: Path) -> Data:
        """Return the dataset with its path made absolute; a relative one counts from ``folder``."""
        paths = {name: path for name in ("folder", "npz") if (path := getattr(self, name)) is not None}
        return self.model_copy(update={name: str(folder / Path(path).expanduser()) for name, path in paths.items()})


class Benchmark(Strict):
    """A dataset and a network.

    The dataset is ``digits``, ``mnist``, ``cifar10``, the name of one of torchvision's, or what ``Data`` takes. The
    network is written in the report's notation, or names a function as ``package.module:function`` that is given the
    shape (channels, height, width) of an image and the number of classes; its module is looked for in the folder
    ``place``, the study file's, and then where Python finds modules.
    """

    dataset: str | Data
    network: str
    place: str = ""

    @field_validator("dataset", mode="before")
    @classmethod
    def _dataset(cls, given):
        if isinstance(given, str) and given not in BUILT_IN:
            return Data(torchvision=given)
        return given if isinstance(given, (str, Data)) else Data.model_validate(given)

    @field_validator("network")
    @classmethod
    def _network(cls, network: str) -> str:
        if ":" not in network:
            layers(network)  # raises a ValueError that shows the place of a fault
        elif not CALLABLE.fullmatch(network):
            raise ValueError("a network of one's own is written package.module:function")
        return network

    def beside(self, folder: Path) -> Benchmark:
        """Return the benchmark of a study file in ``folder``, from which relative paths count."""
        dataset = self.dataset if isinstance(self.dataset, str) else self.dataset.beside(folder)
        return self.model_copy(update={"dataset": dataset, "place": str(folder)})

    @property
    def is_notation(self) -> bool:
        """Whether the network is written in the report's notation."""
        return ":" not in self.network

    @property
    def label(self) -> str:
        """The dataset's name in records."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.label


def member(names: Iterable[str], what: str, name: str) -> str:
    """Return ``name`` if it is one of ``names``; else a ``ValueError`` lists them."""
    if name not in names:
        raise ValueError(f"no {what} '{name}'; known are {', '.join(names)}")
    return name


BENCHMARKS = {
    f"{dataset}-{depth}": Benchmark(dataset=dataset, network=f"{shape}-{rest}")
    for dataset, shape in (("digits", "28x28"), ("mnist", "28x28"), ("cifar10", "3x32x32"))
    for depth, rest in (("2c", "6c5-16c5-120-84-10"), ("3c", "6c3-16c3-36c4-240-120-84-10"))
} | {
    # Not the report's: the networks that papers on pruning compare at (Han et al. 2015, tables 3 and 4).
    "lenet-300-100": Benchmark(dataset="mnist", network="28x28-300-100-10"),
    "lenet-5": Benchmark(dataset="mnist", network="28x28-20c5-50c5-500-10"),
}
