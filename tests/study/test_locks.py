"""Locks between real processes: one at a time, who waits learns for whom, a killed holder lets go."""

import os
import subprocess
import sys

import pytest

from pruning.study.locks import locked

HOLD = """
import sys
from pathlib import Path
from pruning.study.locks import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "run-0.97.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_learns_the_holders_id_and_gets_the_lock_after_it(path, holder):
    told = []

    def waiting(pid):
        assert holder.poll() is None
        told.append(pid)
        holder.stdin.close()

    with locked(path, waiting):
        assert told == [str(holder.pid)] and holder.wait(60) == 0
        assert path.with_suffix(".pid").read_text() == str(os.getpid())
    assert not path.with_suffix(".pid").exists()


def test_a_killed_process_lets_go(path, holder):
    with locked(path, lambda pid: holder.kill()):
        assert holder.wait(60) < 0
    with locked(path, waiting=pytest.fail):
        pass


def test_who_waits_may_refuse(path, holder):
    class Busy(Exception):
        pass

    def refuse(pid):
        raise Busy(pid)

    with pytest.raises(Busy, match=str(holder.pid)), locked(path, refuse):
        pytest.fail("two processes hold the lock")
    assert holder.poll() is None and path.with_suffix(".pid").read_text() == str(holder.pid)


def test_an_error_inside_releases_the_lock(path):
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path, waiting=pytest.fail):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write in {tmp_path / 'file'}"), locked(tmp_path / "file" / "run.lock"):
        pytest.fail("locked in a file")
