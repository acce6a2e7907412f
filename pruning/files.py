"""Files that appear whole or not at all, carry their own checksum, and are locked by one process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind: there a study runs unlocked.
    fcntl = None


class DamagedFile(ValueError):
    """A file that is not what it says: truncated, altered or of another kind."""


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises ``OSError`` that names the file where the folder cannot be written or the disk is
    full; the old file is then untouched.
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
    """Save tensors and plain values with ``owner`` (one line, who may load it) and a SHA-256."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = owner.encode() + b"\n" + buffer.getvalue()
    write_whole(path, _MAGIC + hashlib.sha256(body).digest() + body)


def load_state(path: Path, owner: str, device: torch.device | str = "cpu") -> dict:
    """Load what ``save_state`` wrote for the same owner; ``DamagedFile`` says why it cannot be used."""
    import torch

    data = path.read_bytes()
    head = len(_MAGIC)
    if not data.startswith(_MAGIC):
        raise DamagedFile(f"{path} is not a state file of this program")
    digest, body = data[head : head + 32], data[head + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedFile(f"{path} is truncated or altered: its checksum does not fit")
    found, _, payload = body.partition(b"\n")
    if found.decode(errors="replace") != owner:
        raise DamagedFile(f"{path} belongs to another run")
    return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)


def set_aside(path: Path, folder: Path) -> Path:
    """Move a file that cannot be used into ``folder`` under a free name; returns the new path.

    That another process has moved it meanwhile is no error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := folder / f"{path.name}.{number}").exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        path.replace(target)
    return target


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold ``path`` as this process's alone; the lock goes with the process, however it ends.

    Where another process holds it: wait for it, after a call of ``waiting`` with its number.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below, after the error is named)
    except OSError as error:
        raise OSError(error.errno, f"cannot write in {path.parent}: {error.strerror}") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    file.seek(0)
                    waiting(file.read().decode() or "unknown")
                fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # a word to who waits; a full disk does not take the lock away
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield
