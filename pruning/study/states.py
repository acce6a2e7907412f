"""Training states on the disk: the checkpoint of one run, and the dense training that many runs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning.files import DamagedFile, load_state, save_state, set_aside
from pruning.study.datasets import Dataset
from pruning.study.networks import Network


@dataclass(frozen=True)
class StateFile:
    """A state that one ``owner`` writes and reads; what cannot be used is set aside with a word to ``warn``."""

    path: Path
    owner: str
    warn: Callable[[str], None] = print

    def save(self, state: dict) -> None:
        save_state(self.path, state, self.owner)

    def load(self, device: torch.device | str = "cpu") -> dict | None:
        """Load the state; None where there is none of this owner."""
        try:
            return load_state(self.path, self.owner, device)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            aside = set_aside(self.path, self.path.parent / "set-aside")
            self.warn(f"{error}; set aside as {aside}, training starts again")
            return None


@dataclass(frozen=True)
class DenseStates:
    """States of one unpruned training, by name, in a folder.

    Until it prunes, every training of the same network, recipe, seed and data is the same one: what
    the ``owner`` stands for. One run saves it, the others resume it.
    """

    folder: Path
    owner: str
    warn: Callable[[str], None] = print

    def at(self, name: str) -> StateFile:
        """Return the state of this name, such as the requirement that it met."""
        return StateFile(self.folder / f"{name}.dense", self.owner, self.warn)

    def met(self) -> list[float]:
        """Return the requirements that saved states met, highest first."""
        return sorted((float(path.stem) for path in self.folder.glob("0.*.dense")), reverse=True)


@dataclass(frozen=True)
class Context:
    """What a run is given to work with: data, network, device, and the states it resumes."""

    dataset: Dataset
    network: Network
    device: torch.device
    checkpoint: StateFile
    dense: DenseStates
    every: float
    progress: Callable | None
