"""Workers: each run once, dense trainings first, and who is at work is left alone."""

import subprocess
import sys

import pytest
from tiny import ROOT, numbers

from pruning.study import work
from pruning.study.locks import locked
from pruning.study.store import current
from pruning.study.studies import load

pytestmark = [pytest.mark.usefixtures("one_thread")]


def test_dense_trainings_come_first_then_what_took_longest():
    runs = load("report").select("mnist-2c", [0.97, 0.99], seeds=[0])
    ordered = work.in_order(runs)
    assert [run.name for run in ordered[:2]] == ["mnist-2c-0.97-unpruned-0", "mnist-2c-0.99-unpruned-0"]
    took = {run.method: 0.0 for run in runs}
    for run in load("report").select("mnist-2c"):
        took[run.method] += current(run)["seconds"]
    assert [run.method for run in ordered[2:]] == [
        method for method in sorted(took, key=lambda one: -took[one]) if method != "unpruned" for _ in range(2)
    ]


def test_what_is_watched_from_its_first_iteration_waits_for_no_other_training():
    def shares(method):
        return work.shares_dense(load("digits").select("digits-2c", methods=[method])[0])

    assert shares("iterative") and shares("gradual")
    assert not any(map(shares, ("unpruned", "hashed", "lottery", "snip")))


@pytest.mark.slow
def test_two_workers_share_the_runs_and_give_what_one_process_gives(tiny, results):
    expected = {run.name: numbers(current(run)) for run in tiny.runs}
    for run in tiny.runs:
        run.record_path.unlink()
    command = [sys.executable, "-m", "pruning", "work", str(results / "tiny.yaml")]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [worker.communicate(timeout=300)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(int(lines[-1].split()[1]) for lines in told) == 2
    assert {run.name: numbers(current(run)) for run in tiny.runs} == expected


def test_who_resumes_a_dense_training_waits_for_it(tiny, monkeypatch):
    dense, pruned = tiny.runs
    for run in tiny.runs:
        run.record_path.unlink()
    held, waited = locked(dense.place("work", ".lock")), []
    held.__enter__()

    def sleep(seconds):
        waited.append([current(run) for run in tiny.runs])
        held.__exit__(None, None, None)

    monkeypatch.setattr(work.time, "sleep", sleep)
    said = []
    assert work.work(tiny.runs, say=said.append) == 2
    assert waited == [[None, None]] and [line.split(":")[0] for line in said] == [dense.name, pruned.name]


def test_runs_in_the_hands_of_living_workers_are_left_to_them(tiny):
    (pruned,) = tiny.select(methods=["random"])
    pruned.record_path.unlink()
    said = []
    with locked(pruned.place("work", ".lock")):
        assert work.work(tiny.runs, say=said.append) == 0
    assert said == ["1 runs are in the hands of other workers"] and current(pruned) is None
