"""The project's folder, found from where one works, so that an installed package serves any project.

>>> (root() / "studies").is_dir()      # the nearest project's, or that of the folder PRUNING_ROOT names
True
"""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """Return the project's folder; FileNotFoundError says how to name one where there is none.

    The variable PRUNING_ROOT names it. Otherwise it is the nearest folder, from the current one upwards, that holds
    ``studies/`` and a ``Snakefile`` or ``pyproject.toml``: notebooks run in their own folder, Papermill in its
    caller's.
    """
    if (folder := find_root()) is None:
        raise FileNotFoundError(
            f"no project here: neither {Path.cwd()} nor a folder above it holds studies/ and a Snakefile or "
            "pyproject.toml; work inside a project's folder, or name it by the variable PRUNING_ROOT"
        )
    return folder


def figures_folder(study: str) -> Path:
    """Return the folder of a study's figures: under ``PRUNING_FIGURES``, else ``figures``."""
    return Path(os.environ.get("PRUNING_FIGURES") or root() / "figures") / study


def find_root() -> Path | None:
    """Return what ``root`` returns, or None outside a project."""
    if named := os.environ.get("PRUNING_ROOT"):
        folder = Path(named).expanduser().absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"PRUNING_ROOT names {folder}, which is not a folder")
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "studies").is_dir() and any((folder / mark).is_file() for mark in ("Snakefile", "pyproject.toml")):
            return folder
    return None
