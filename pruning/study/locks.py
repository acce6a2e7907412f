"""Locks between processes that tell who holds them.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with locked(Path(folder, "run.lock"), waiting=lambda pid: print(f"process {pid} is at work: waiting")):
...         print("at work")
at work
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock ``path`` for this process alone; the lock ends with the process, however it ends.

    While another process holds it, call ``waiting`` once with that process's id ("unknown" before it is written),
    then wait. ``waiting`` may raise instead. OSError names a folder that cannot be written.
    """
    lock, owner = FileLock(path), path.with_suffix(".pid")  # beside the lock: some versions of filelock empty that file
    if not _acquired(lock, path, blocking=False):
        if waiting:
            waiting(_read(owner))
        _acquired(lock, path, blocking=True)
    try:
        with contextlib.suppress(OSError):  # a full disk does not take the lock away
            owner.write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _acquired(lock: FileLock, path: Path, blocking: bool) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=blocking)
    except Timeout:
        return False
    except OSError as error:
        raise OSError(error.errno, f"cannot write in {path.parent}: {error.strerror}") from error
    return True


def _read(owner: Path) -> str:
    try:
        return owner.read_text() or "unknown"
    except OSError:
        return "unknown"
