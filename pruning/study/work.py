"""Workers that take a study's runs one after the other, as many as there are, on any number of machines.

>>> from pruning.study.studies import load
>>> [run.name for run in in_order(load("digits").select("digits-2c", [0.95, 0.97], ["gradual", "unpruned"], [0]))]
... # doctest: +NORMALIZE_WHITESPACE
['digits-2c-0.95-unpruned-0', 'digits-2c-0.97-unpruned-0',
 'digits-2c-0.97-gradual-0', 'digits-2c-0.95-gradual-0']

A run is taken by its lock, which holds between machines. Nobody hands runs out: a worker that dies leaves its run to
the others, and another worker may join at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from statistics import fmean

from pruning.files import DamagedFile
from pruning.methods import METHODS
from pruning.notation import layers
from pruning.study.config import HASHED, Run
from pruning.study.locks import BEATS, Holder, LockLost, holder, silence
from pruning.study.records import from_line, lines, published_path
from pruning.study.runner import check
from pruning.study.runner import run as carry_out
from pruning.study.store import all_current

POLL = 5.0  # seconds between two looks at what the others have finished
MACS_PER_SECOND = 5e9  # of training on one core; only the order of runs without a record follows from it


class _Taken(Exception):
    """Another worker has the run."""


def shares_dense(run: Run) -> bool:
    """Say whether the run resumes the training before any pruning that ``unpruned`` of its requirement has saved."""
    if run.plan or run.method in ("unpruned", HASHED):
        return False
    method = METHODS[run.method]
    return not (method.strategy.checkpoint or method.hook.early)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Order runs as workers take them: dense trainings, which others wait for, then what takes longest first.

    Those of one benchmark and seed follow each other by requirement: each resumes the one before.
    """
    seconds = _seconds(runs)

    def place(run: Run) -> tuple:
        dense = run.method == "unpruned" and not run.plan
        return not dense, run.requirement if dense else 0, -seconds[run], -(run.requirement or 0)

    return sorted(runs, key=place)


def work(runs: Sequence[Run], device: str = "cpu", say: Callable[[str], None] = print) -> int:
    """Carry out those of the runs that no other worker has; return how many.

    Ends when all are done or in the hands of workers that show signs of life.
    """
    check(runs)
    ordered, done = in_order(runs), 0
    while waiting := _undone(ordered):
        ready = [run for run in waiting if _ready(run, waiting)]
        if any(_took(run, device, say) for run in ready):
            done += 1
        elif ready == waiting and all(_alive(holder(run.place("work", ".lock"))) for run in ready):
            say(f"{len(ready)} runs are in the hands of other workers")
            break
        else:
            time.sleep(POLL)
    return done


def _took(run: Run, device: str, say: Callable[[str], None]) -> bool:
    def taken(who: str) -> None:
        raise _Taken

    if not _free(holder(run.place("work", ".lock"))):
        return False
    began = time.monotonic()
    try:
        carry_out(run, device, warn=say, waiting=taken)
    except _Taken:
        return False
    except LockLost as error:
        say(str(error))
        return False
    say(f"{run.name}: {time.monotonic() - began:.1f} s")
    return True


def _free(last: Holder | None) -> bool:
    return last is None or last.released or last.here or last.silent > last.seconds


def _alive(last: Holder | None) -> bool:
    return last is not None and not last.released and last.silent < 2 * silence() / BEATS


def _ready(run: Run, waiting: Sequence[Run]) -> bool:
    """Say whether nothing that the run resumes is still to be made; a dense training resumes that of a lower goal."""
    if run.plan or not (shares_dense(run) or run.method == "unpruned"):
        return True
    return not any(
        (other.benchmark, other.seed, other.method) == (run.benchmark, run.seed, "unpruned")
        and (other.requirement or 0) <= (run.requirement or 0)
        for other in waiting
        if other is not run
    )


def _undone(runs: Sequence[Run]) -> list[Run]:
    current = all_current(runs)
    return [run for run in runs if run not in current]


def _seconds(runs: Sequence[Run]) -> dict[Run, float]:
    """Estimate the seconds of runs by the records of the same benchmark and method, else by the arithmetic to do."""
    told: dict[tuple[str, str], list[float]] = {}
    for path in {published_path(run.study, run.benchmark) for run in runs}:
        for line in lines(path):
            try:
                record = from_line(line)
                told.setdefault((record["run"]["benchmark"], record["run"]["method"]), []).append(record["seconds"])
            except (DamagedFile, KeyError):
                continue
    return {run: fmean(told.get((run.benchmark, run.method), [_arithmetic(run)])) for run in runs}


def _arithmetic(run: Run) -> float:
    """Return the seconds of a training to the end of its budget; infinite for a network that only code knows."""
    if not run.made_of.is_notation:
        return inf
    macs = 3 * sum(layer.macs for layer in layers(run.network)) * run.settings.batch * run.settings.budget
    return macs / MACS_PER_SECOND
