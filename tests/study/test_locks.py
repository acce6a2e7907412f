"""Locks between real processes, on one machine and on two: one at a time, and who is gone lets go.

A second machine is acted out by namespaces: a host name of its own, and a view of the folder in which file locks do not
meet those of the first.
"""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import run_of, untrained

from pruning.study.locks import LockLost, locked
from pruning.study.records import read_record
from pruning.study.runner import run as carry_out

HOLD = """
import sys, time
from pathlib import Path
from pruning.study.locks import LockLost, locked

off, own = float(sys.argv[2]), time.time
time.time = lambda: own() + off
with locked(Path(sys.argv[1])) as claim:
    print("held", flush=True)
    sys.stdin.read()
    try:
        claim.check()
    except LockLost as error:
        print(error, flush=True)
"""
ELSEWHERE = ("unshare", "--map-root-user", "--mount", "--uts", "sh", "-c")
two_machines = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*ELSEWHERE, "hostname n2"], capture_output=True).returncode != 0,
    reason="needs namespaces, as Linux has them",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "run-0.97.lock"


def started(path, script=HOLD, elsewhere=False, off=0.0):
    """Another process with the lock's path, on this machine or another one, whose clock is so many seconds off."""
    command = [sys.executable, "-c", script, str(path), str(off)]
    if elsewhere:
        own = path.with_suffix(".n2")
        path.parent.mkdir(exist_ok=True)
        own.touch()
        path.touch()
        command = [*ELSEWHERE, 'hostname n2; mount --bind "$0" "$1"; shift; exec "$@"', str(own), str(path), *command]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def held(path):
    """A call that starts another process that holds the lock."""
    processes = []

    def hold(**where):
        processes.append(started(path, **where))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield hold
    for process in processes:
        with process:
            process.kill()


def test_who_waits_learns_the_holders_id_and_gets_the_lock_after_it(path, held):
    told, holder = [], held()

    def waiting(who):
        assert holder.poll() is None
        told.append(who)
        holder.stdin.close()

    with locked(path, waiting) as claim:
        assert told == [str(holder.pid)] and holder.wait(60) == 0
        assert claim.before.pid == holder.pid and claim.before.released


def test_a_killed_process_lets_go(path, held):
    holder = held()
    with locked(path, lambda who: holder.kill()):
        assert holder.wait(60) < 0
    with locked(path, waiting=pytest.fail):
        pass


class Busy(Exception):
    pass


def refuse(who):
    raise Busy(who)


def test_who_waits_may_refuse(path, held):
    holder = held()
    with pytest.raises(Busy, match=str(holder.pid)), locked(path, refuse):
        pytest.fail("two processes hold the lock")
    assert holder.poll() is None
    with pytest.raises(Busy, match=str(holder.pid)), locked(path, refuse):
        pytest.fail("refusing has taken the lock away")


def test_a_lock_that_is_held_until_the_interpreter_ends_lets_it_end(path):
    script = """
import contextlib, sys
from pathlib import Path
from pruning.study.locks import locked

held = contextlib.ExitStack()
held.enter_context(locked(Path(sys.argv[1])))
print("held")
"""
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "held\n"
    with locked(path, waiting=pytest.fail):
        pass


def test_an_error_inside_releases_the_lock(path):
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path, waiting=pytest.fail):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write in {tmp_path / 'file'}"), locked(tmp_path / "file" / "run.lock"):
        pytest.fail("locked in a file")


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_claims_serve_where_the_file_system_has_no_locks(path, error, monkeypatch):
    def missing(*given):
        raise OSError(error, "no locks here")

    monkeypatch.setattr(fcntl, "flock", missing)
    with locked(path), pytest.raises(Busy, match=str(os.getpid())), locked(path, refuse):
        pytest.fail("locked twice")
    with locked(path, waiting=pytest.fail):
        pass


def test_claims_that_nobody_can_still_believe_in_are_cleared_away(path):
    for _ in range(3):
        with locked(path):
            pass
    claims = path.with_suffix(".claims")
    os.utime(claims / "0", (0, 0))
    with locked(path):
        assert sorted(os.listdir(claims)) == ["1", "2", "3"]


@pytest.mark.slow
@two_machines
@pytest.mark.parametrize("off", [86400.0, -86400.0])
def test_a_lock_holds_between_machines_whatever_their_clocks_say(path, held, off, monkeypatch):
    monkeypatch.setenv("PRUNING_LOCK_SECONDS", "3")
    told, holder = [], held(elsewhere=True, off=off)
    time.sleep(4)  # longer than a silent holder would keep it

    def waiting(who):
        told.append(who)
        holder.stdin.close()

    with locked(path, waiting) as claim:
        assert holder.wait(60) == 0 and claim.before.host == "n2"
    assert len(told) == 1 and told[0].startswith(f"{holder.pid} on n2, last heard of ")


@pytest.mark.slow
@two_machines
def test_a_machine_that_is_gone_lets_go_after_the_stated_time(path, held, monkeypatch):
    monkeypatch.setenv("PRUNING_LOCK_SECONDS", "4")
    holder = held(elsewhere=True, off=-86400.0)
    holder.kill()
    holder.wait(60)
    with pytest.raises(Busy, match="on n2, last heard of"), locked(path, refuse):
        pytest.fail("taken over at once")
    began = time.monotonic()
    with locked(path) as claim:
        assert time.monotonic() - began > 2 and claim.before.host == "n2" and not claim.before.released


@pytest.mark.slow
@two_machines
def test_who_was_silent_and_comes_back_learns_that_the_lock_is_lost(path, held, monkeypatch):
    monkeypatch.setenv("PRUNING_LOCK_SECONDS", "1")
    holder = held(elsewhere=True)
    holder.send_signal(signal.SIGSTOP)
    with locked(path) as claim:
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate(timeout=60)
        assert f"process {os.getpid()} on " in said and "took" in said and "over" in said
        claim.check()
    with locked(path, waiting=pytest.fail):
        pass


COUNT = """
import sys, time
from pathlib import Path
from pruning.study.locks import locked

path = Path(sys.argv[1])
for _ in range(10):
    with locked(path):
        count = int(path.with_suffix(".count").read_text())
        time.sleep(0.01)
        path.with_suffix(".count").write_text(str(count + 1))
"""


@pytest.mark.slow
@two_machines
@pytest.mark.slow
def test_many_processes_on_two_machines_hold_it_one_at_a_time(path):
    path.parent.mkdir()
    path.with_suffix(".count").write_text("0")
    processes = [started(path, COUNT, elsewhere) for elsewhere in (False, True, False, True)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0] * 4
    assert path.with_suffix(".count").read_text() == "40"


MARKED = """
import sys
from pathlib import Path
from pruning.study.locks import locked

with locked(Path(sys.argv[1])) as claim:
    claim.note = sys.stdin.read()
"""


@pytest.mark.slow
@two_machines
@pytest.mark.usefixtures("one_thread")
def test_a_run_done_on_another_machine_is_not_done_again_while_its_record_cannot_be_seen_here(tiny, monkeypatch):
    run = tiny.runs[1]
    hidden = run.record_path.rename(run.record_path.with_suffix(".hidden"))
    started(run.place("work", ".lock"), MARKED, elsewhere=True).communicate(run.key, timeout=60)
    waited, own = [], time.sleep

    def sleep(seconds):
        waited.append(seconds)
        own(0.01)
        if len(waited) == 3:
            hidden.rename(run.record_path)

    monkeypatch.setattr("pruning.study.runner.time.sleep", sleep)
    assert untrained(run) == read_record(run.record_path) and len(waited) == 3


@pytest.mark.usefixtures("one_thread", "results")
def test_a_run_that_another_machine_took_over_is_left_to_it():
    run, seen = run_of(), []
    claims = run.place("work", ".claims")

    def progress(event, training):
        seen.append(event.iteration)
        (claims / "1").touch()

    with pytest.raises(LockLost, match=r"took .*random-0.lock over"):
        carry_out(run, progress=progress)
    assert seen == [20] and not run.record_path.exists()
