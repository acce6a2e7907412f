"""Locks between processes, on one machine and between the machines of a cluster, that tell who holds them.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     with locked(Path(folder, "run.lock"), waiting=lambda who: print(f"process {who} is at work: waiting")):
...         print("at work")
at work

A lock is a row of claims, the files ``run.claims/0``, ``run.claims/1`` and so on. Each is made by exclusive creation,
which a network file system grants to one machine alone, also where it does not lock files. Who made the last claim
holds the lock, until the claim says that it was released, or its time has not been renewed for ``silence()`` seconds.
Taking over is making the next claim. What was released stays: a machine that still sees the folder as it was cannot
make the same claim again. On one machine the file lock beside it tells at once that a holder was killed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

BEATS = 8  # renewals of a claim in the time after which a silent holder counts as gone
KEPT = 86400.0  # seconds for which claims that were taken over are kept


class LockLost(OSError):
    """A lock that another machine has taken over, because this one had been silent for too long."""


def silence() -> float:
    """Return the seconds without a sign of life after which a holder on another machine counts as gone.

    Two minutes, twice as long as network file systems remember a file's times; ``PRUNING_LOCK_SECONDS`` names another.
    """
    return float(os.environ.get("PRUNING_LOCK_SECONDS") or 120)


@dataclass(frozen=True)
class Holder:
    """Who made a claim, what became of it, and for how long it has been ``silent``, by the file server's clock."""

    pid: int | str = "unknown"
    host: str = ""
    machine: str = ""
    job: str = ""
    seconds: float = field(default_factory=silence)
    native: bool = False
    released: bool = False
    note: str = ""
    silent: float = 0.0

    @property
    def here(self) -> bool:
        """Whether the claim was made on this machine, since it was started."""
        return self.machine == _machine()

    @property
    def who(self) -> str:
        """The process's id, and where it is unless that is here."""
        if self.here or not self.host:
            return str(self.pid)
        job = f", job {self.job}" if self.job else ""
        return f"{self.pid} on {self.host}{job}, last heard of {max(self.silent, 0):.0f} s ago"


@dataclass
class Claim:
    """A lock that is held, and who had it ``before``; ``note`` is left for who comes after."""

    path: Path
    before: Holder | None
    native: bool
    note: str = ""
    lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise ``LockLost`` where another machine has taken the lock over."""
        if self.lost.is_set() or _next(self.path).exists():
            own = f"process {os.getpid()} on {socket.gethostname()}"
            raise LockLost(
                f"process {_read(_next(self.path)).who} took {self.path.parent.with_suffix('.lock')} over: {own} had "
                f"given no sign of life for {silence():.0f} seconds. What was finished is kept"
            )

    def write(self, released: bool) -> None:
        """Say who made this claim; a full disk does not take the lock away."""
        own = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "seconds": silence()}
        own |= {"job": _job(), "native": self.native, "released": released, "note": self.note}
        try:
            with self.path.open("r+b", buffering=0) as file:
                # One write of a fixed length: a reader sees the old words or the new ones.
                file.write(json.dumps(own).encode().ljust(640))
                os.fsync(file.fileno())
        except OSError:
            if released:
                self.path.unlink(missing_ok=True)

    def beat(self, ended: threading.Event) -> None:
        """Renew the claim's time, as the file server's clock has it, until it is released or lost."""
        while not ended.wait(silence() / BEATS):
            with contextlib.suppress(OSError):
                if _next(self.path).exists():
                    return self.lost.set()
                os.utime(self.path)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[Claim]:
    """Hold the lock ``path`` for this process alone; the lock ends with the process, however it ends.

    While another process holds it, call ``waiting`` once with that process's id ("unknown" before it is written), and
    its machine where that is another one; then wait. ``waiting`` may raise instead. OSError names a folder that cannot
    be written.
    """
    lock, claims = FileLock(path, fallback_to_soft=False), path.with_suffix(".claims")
    claim, pause, told = None, 0.02, False
    try:
        while claim is None:
            native = _acquired(lock, path)
            number, last = _last(claims)
            if _free(last, native):
                claim = _made(claims / str(number + 1), last, bool(native))
                continue
            # Who has the file lock may not have written the claim yet.
            if waiting and not told and (pause > 0.4 or not last.released):
                told = True
                waiting("unknown" if last.released else last.who)
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5 if last.here else 2.0)
        claim.write(released=False)
        _clear(claim.path)
        ended = threading.Event()
        beating = threading.Thread(target=claim.beat, args=[ended], daemon=True)
        try:
            beating.start()
            yield claim
        finally:
            ended.set()
            # Where the interpreter ends, the thread is stopped already, and joins no more.
            if beating.is_alive() and not sys.is_finalizing():
                beating.join()
            if not claim.lost.is_set():
                claim.write(released=True)
    finally:
        lock.release()


def holder(path: Path) -> Holder | None:
    """Return who has, or had last, the lock ``path``; None where nobody ever had."""
    number, last = _last(path.with_suffix(".claims"))
    return last if number >= 0 else None


def _free(last: Holder, native: bool | None) -> bool:
    """Say whether the lock can be claimed after this holder, by a process that has the file lock, or has not."""
    if last.silent > last.seconds and not (last.here and last.native):
        return True  # also where a file server keeps the file lock of a machine that is gone
    if native is False:
        return False
    return last.released or (native is True and last.here and last.native)


def _made(path: Path, before: Holder, native: bool) -> Claim | None:
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return Claim(path, before if before.machine else None, native)
    except OSError as error:
        raise OSError(error.errno, f"cannot write in {path.parent}: {error.strerror}") from error
    return None


def _last(claims: Path) -> tuple[int, Holder]:
    """Return the number of the last claim and its holder; -1 and one who has released it where there is none."""
    try:
        number = max((int(name) for name in os.listdir(claims) if name.isdecimal()), default=-1)
    except (FileNotFoundError, NotADirectoryError):
        number = -1
    while _next(claims / str(number)).exists():  # where a listing is out of date
        number += 1
    return number, _read(claims / str(number)) if number >= 0 else Holder(released=True)


def _read(path: Path) -> Holder:
    """Read a claim; who made it is unknown before it is written, and it has been released where it is gone."""
    try:
        with path.open("rb") as file:
            told, silent = file.read(), 0.0
            # By the times of two files, which the file server's clock gives both: this machine's may be off.
            with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=path.parent) as probe:
                silent = os.fstat(probe.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return Holder(released=True)
    try:
        return Holder(**json.loads(told), silent=silent)
    except (ValueError, TypeError):
        return Holder(silent=silent)


def _clear(newest: Path) -> None:
    """Delete claims so old that no machine can still believe in them."""
    with contextlib.suppress(OSError):
        for old in newest.parent.iterdir():
            if old.name.isdecimal() and newest.stat().st_mtime - old.stat().st_mtime > KEPT:
                old.unlink()


def _next(path: Path) -> Path:
    return path.with_name(str(int(path.name) + 1))


def _acquired(lock: BaseFileLock, path: Path) -> bool | None:
    """Take the file lock; False where another process has it, None where the file system has no locks."""
    try:
        if lock.is_locked:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise OSError(error.errno, f"cannot write in {path.parent}: {error.strerror}") from error
    return True


@functools.cache
def _machine() -> str:
    """Return a name of this machine that no other has, also where two machines have the same host name."""
    try:
        own = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        own = f"{uuid.getnode():x}"
    return f"{socket.gethostname()} {own}"


def _job() -> str:
    """Return the id of the cluster's job that this process is part of, as Slurm tells; empty outside one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
