"""Files that appear whole or not at all and carry their own checksum, and the folder for what can be made again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DamagedFile(ValueError):
    """A file that is not what it says: truncated, altered or of another kind."""


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    OSError names the file where the folder cannot be written or the disk is full; the old file is then untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        reason = f"{error.strerror or error}. Make room or give the right to write; what is finished is kept"
        raise OSError(error.errno, f"cannot write {path}: {reason}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_MAGIC = b"pruning state 1\n"


def save_state(path: Path, state: dict, owner: str) -> None:
    """Save tensors and plain values with a SHA-256 and ``owner``, one line that ``load_state`` must be given."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = owner.encode() + b"\n" + buffer.getvalue()
    write_whole(path, _MAGIC + hashlib.sha256(body).digest() + body)


def load_state(path: Path, owner: str, device: torch.device | str = "cpu") -> dict:
    """Load what ``save_state`` wrote for the same owner; DamagedFile says why it cannot be used."""
    import torch

    data = path.read_bytes()
    head = len(_MAGIC)
    if not data.startswith(_MAGIC):
        raise DamagedFile(f"{path} is not a state file of this program")
    digest, body = data[head : head + 32], data[head + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedFile(f"{path} is truncated or altered: its checksum does not fit")
    written_for, _, payload = body.partition(b"\n")
    if written_for.decode(errors="replace") != owner:
        raise DamagedFile(f"{path} belongs to another run")
    return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)


def set_aside(path: Path, folder: Path) -> Path:
    """Move a file that cannot be used into ``folder`` under a free name; return the new path.

    It is no error if another process moved the file first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := folder / f"{path.name}.{number}").exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        path.replace(target)
    return target


def cache_folder() -> Path:
    """Return the folder ``PRUNING_CACHE``, else ``synapse-pruning`` in the user's cache folder.

    Written out instead of taken from platformdirs, so that the compiled convolution needs PyTorch alone.
    """
    if named := os.environ.get("PRUNING_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        folder = "~/Library/Caches"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(folder).expanduser() / "synapse-pruning"
    except RuntimeError as error:
        raise OSError("this user has no home folder; PRUNING_CACHE can name a folder for caches") from error
