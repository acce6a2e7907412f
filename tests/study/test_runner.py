"""The runner: one record a run, whatever is harmed, in the way, full, killed or done at the same time."""

import errno
import math
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import ROOT, Stop, alter, numbers, published, retrained, run_of, stamps, truncate, untrained

from pruning.analysis.tables import frame
from pruning.files import load_state, save_state
from pruning.masks import density, masked_layers
from pruning.study.config import StudyError
from pruning.study.locks import locked
from pruning.study.machine import checked_device, environment
from pruning.study.records import folder, published_path, read_record, write_record
from pruning.study.runner import run as carry_out
from pruning.study.runner import run_all
from pruning.study.store import current, publish
from pruning.study.training import network

pytestmark = [pytest.mark.usefixtures("one_thread", "results"), pytest.mark.arithmetic]


@pytest.mark.arithmetic
def test_a_record_holds_what_it_must(tiny):
    run = tiny.runs[1]
    record = read_record(run.record_path)
    assert record == current(run) == untrained(run)
    assert record["run"] == run.description and record["run"]["fields"]["criterion"] == "random"
    result = record["result"]
    assert result["reached"] and 0 < result["density"] < 1
    assert result["density"] == result["significant"] / result["synapses"]
    assert result["validation_accuracy"] >= 0.5 and 0.3 < result["test_accuracy"] <= 1
    assert sum(layer["significant"] for layer in record["layers"]) == result["significant"]
    assert {"pruning", "revision", "python", "torch", "torchvision", "numpy", "device", "threads"} <= set(
        record["environment"]
    )
    assert record["environment"]["threads"] == 1 and record["seconds"] > 0
    assert len(record["fingerprint"]) == 64 and record["key"] == run.key
    assert run.record_path.stat().st_size < 10_000

    state = load_state(run.place("models", ".model"), run.key)
    model = network(state["network"], 0)
    model.load_state_dict(state["state"])
    assert density(model) == result["density"]
    assert {layer["name"]: layer["significant"] for layer in record["layers"]} == {
        name: layer.significant for name, layer in masked_layers(model).items()
    }


def test_without_training_there_are_the_records_that_are_there(tiny, monkeypatch):
    monkeypatch.setenv("PRUNING_TRAIN", "no")
    gone, kept = tiny.runs[:2]
    assert carry_out(kept) == read_record(kept.record_path)
    alter(gone.record_path)
    with pytest.raises(StudyError, match=f"{gone.name} is not trained, as train=no asks: its record is damaged"):
        carry_out(gone)
    gone.record_path.unlink()
    with pytest.raises(StudyError, match=f"{gone.name} is not trained, as train=no asks: its record is missing"):
        carry_out(gone)
    assert not gone.record_path.exists()


def test_a_record_that_is_gone_is_made_again_alone(tiny):
    gone, kept = (run.record_path for run in tiny.runs)
    expected, before = numbers(read_record(gone)), stamps(kept.parent, "*.json")
    gone.unlink()
    run_all(tiny.runs)
    after = stamps(kept.parent, "*.json")
    assert after[kept.name] == before[kept.name] and after[gone.name] != before[gone.name]
    assert numbers(read_record(gone)) == expected


def test_a_published_record_is_not_made_again(tiny):
    records = [current(run) for run in tiny.runs]
    publish(tiny, pytest.fail)
    shutil.rmtree(folder("tiny") / "work")  # as in a fresh clone
    shutil.rmtree(folder("tiny") / "models")
    assert [untrained(run) for run in tiny.runs] == records
    assert sorted(path.name for path in folder("tiny").iterdir()) == ["digits-2c.jsonl"]


def test_a_published_record_that_is_damaged_is_made_again_and_takes_its_place(tiny):
    expected = [numbers(current(run)) for run in tiny.runs]
    publish(tiny, pytest.fail)
    alter(published_path("tiny", "digits-2c"))
    (harmed,) = [run for run in tiny.runs if current(run) is None]
    _, said, _ = retrained(harmed)
    assert said == [f"the record of {harmed.name} is damaged; the run is done again"]
    publish(tiny, said.append)
    assert [numbers(current(run)) for run in tiny.runs] == expected and len(published()) == 2
    assert len(said) == 2 and "1 lines that are damaged" in said[1]


@pytest.mark.arithmetic
def test_a_requirement_that_is_never_reached(tiny):
    run = run_of("random", 0.9999, budget=40)
    record = carry_out(run)
    result = record["result"]
    assert result["reached"] is False and result["density"] == 1 and result["significant"] == result["synapses"]
    assert result["effort"] is None and result["iterations_unpruned"] is None and result["stopped"] == "budget spent"
    assert result["iterations"] == result["iterations_spent"] == 40 and record["rounds"] == []
    table = frame([*map(current, tiny.runs), record])
    row = table[~table["reached"]].to_dict("records")[0]
    assert (row["density"], row["requirement"]) == (1, 0.9999) and math.isnan(row["effort"])
    assert table["iterations_unpruned"].isna().tolist() == [False, False, True]
    assert untrained(run) == record


def foreign(path):
    write_record(path, read_record(path) | {"key": run_of(batch=33).key})


def other_data(path):
    write_record(path, read_record(path) | {"fingerprint": "0" * 64})


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "damaged"),
        (alter, "damaged"),
        (foreign, "of other parameters or data"),
        (other_data, "of other parameters or data"),
    ],
)
def test_a_record_that_cannot_be_used_is_set_aside_and_made_again(tiny, harm, reason):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    harm(run.record_path)
    harmed = run.record_path.read_bytes()
    assert current(run) is None
    record, said, _ = retrained(run)
    assert numbers(record) == expected == numbers(read_record(run.record_path))
    aside = folder("tiny") / "work" / "set-aside" / f"{run.name}.json.1"
    assert aside.read_bytes() == harmed
    assert said == [f"the record of {run.name} is {reason}; set aside as {aside}; the run is done again"]


def stopped(run, iteration):
    """Leave the checkpoint of the evaluation before ``iteration``."""

    def progress(event, training):
        if event.iteration == iteration:
            raise Stop

    with pytest.raises(Stop):
        carry_out(run, progress=progress, every=0)
    assert run.place("work", ".checkpoint").exists()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_run(path):
    save_state(path, {"iteration": 60}, "someone else's")


def of_another_program(path):
    path.write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "is truncated or altered: its checksum does not fit"),
        (flip_a_bit, "is truncated or altered"),
        (of_another_run, "belongs to another run"),
        (of_another_program, "is not a state file of this program"),
    ],
)
def test_a_state_that_cannot_be_used_is_set_aside_and_training_starts_again(tiny, harm, reason):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    dense = next((folder("tiny") / "work").glob("dense-*/*.dense"))
    run.record_path.unlink()
    stopped(run, 80)
    checkpoint = run.place("work", ".checkpoint")
    for path in (checkpoint, dense):
        harm(path)
    record, said, seen = retrained(run)
    assert numbers(record) == expected and seen[0] == 20
    assert [reason in line and "set aside as" in line for line in said] == [True, True]
    assert (checkpoint.parent / "set-aside" / f"{checkpoint.name}.1").exists()
    assert (dense.parent / "set-aside" / f"{dense.name}.1").exists()
    assert not checkpoint.exists() and dense.exists()


@pytest.mark.arithmetic
def test_a_whole_checkpoint_is_resumed(tiny):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    run.record_path.unlink()
    stopped(run, 80)
    record, said, seen = retrained(run)
    assert numbers(record) == expected and (said, seen) == ([], [80])
    assert not run.place("work", ".checkpoint").exists()


# Devices, folders, disks, processes


def test_devices(tiny):
    assert checked_device("cpu").type == "cpu"
    for name in ("gpu", "", "cuda:x", "meta"):
        with pytest.raises(StudyError, match=f"no device '{name}': say cpu, cuda or cuda:0"):
            checked_device(name)
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:1"):
            with pytest.raises(StudyError, match=f"device '{name}' was asked for, but torch sees no CUDA device"):
                carry_out(run_of(), device=name)
    assert environment()["threads"] >= 1


def test_a_file_in_the_folders_place(results):
    results.parent.mkdir(exist_ok=True)
    results.write_text("in the way")
    with pytest.raises(OSError, match=f"cannot write in {results}"):
        carry_out(run_of())
    assert results.read_text() == "in the way"


def test_a_file_in_one_folders_place_loses_nothing(tiny):
    run = run_of(requirement=0.4)
    place = folder("tiny") / "models"
    place.rename(place.with_name("away"))
    place.write_text("in the way")
    with pytest.raises(OSError, match=f"cannot write {run.place('models', '')}.*Make room or give the right to write"):
        carry_out(run)
    place.unlink()
    place.with_name("away").rename(place)
    for other in tiny.runs:
        untrained(other)
    assert carry_out(run)["result"]["reached"] and not list(place.rglob("*.tmp"))


@pytest.fixture
def full():
    """A call that leaves room for files of so many bytes only; the room is back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.arithmetic
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tiny, full, room):
    run = run_of("iterative")
    before = stamps(folder("tiny") / "work", "*.json")
    full(room)  # too little for a checkpoint; with 0 not even the lock can be written
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            carry_out(run, every=0)
    finally:
        full(None)
    assert caught.value.errno == errno.EFBIG
    assert f"cannot write {run.place('work', '.checkpoint')}: File too large. Make room" in str(caught.value)
    assert not list(folder("tiny").rglob("*.tmp")) and not run.record_path.exists()
    assert stamps(folder("tiny") / "work", "*.json") == before
    for other in tiny.runs:
        untrained(other)
    record, said, _ = retrained(run)
    assert record["result"]["reached"] and said == []


def test_what_a_killed_writer_left_is_cleared_away(tiny):
    run = tiny.runs[1]
    run.record_path.unlink()
    scraps = [run.place(kind, "").with_name(f".{run.name}.x.tmp") for kind in ("models", "work")]
    others = run.place("work", "").with_name(f".{run.name}0.x.tmp")
    for path in (*scraps, others):
        path.write_text("half")
    carry_out(run)
    assert others.exists() and not any(path.exists() for path in scraps)


@pytest.mark.slow
def test_two_processes_at_work_on_one_run(tiny, results):
    run = tiny.runs[1]
    run.record_path.unlink()
    for path in (folder("tiny") / "work").glob("dense-*/*"):
        path.unlink()
    command = [sys.executable, "-m", "pruning", "run", str(results / "tiny.yaml"), "--methods", "[random]"]
    second = []

    def progress(event, training):
        if second:
            return
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        second.append(subprocess.Popen(command, cwd=ROOT, env=buffered, text=True, **pipes))
        line = second[0].stdout.readline()
        assert line == f"process {os.getpid()} is at work on {run.name}: waiting for it\n", second[0].stderr.read()

    record = carry_out(run, progress=progress)
    made = run.record_path.stat().st_mtime_ns, run.place("models", ".model").stat().st_mtime_ns
    said, errors = second[0].communicate(timeout=300)
    assert (second[0].returncode, errors) == (0, "")
    result = record["result"]
    assert said == (
        f"1/1 {run.name}: density {result['density']:.4f}, test accuracy {result['test_accuracy']:.4f}, "
        f"{result['iterations']} iterations\n"
    )
    assert made == (run.record_path.stat().st_mtime_ns, run.place("models", ".model").stat().st_mtime_ns)
    with locked(run.place("work", ".lock"), waiting=pytest.fail):
        pass


@pytest.mark.slow
def test_runs_side_by_side_give_the_same_records(tiny, results, capfd):
    expected = [numbers(current(run)) for run in tiny.runs]
    more = tiny.select(seeds=[0, 1])
    for run in tiny.runs:
        run.record_path.unlink()
    run_all(more, processes=2)
    assert [numbers(current(run)) for run in tiny.runs] == expected and all(current(run) for run in more)
    lines = capfd.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [f"{n}/4 {run.name}" for n, run in enumerate(more, start=1)]
    with pytest.raises(StudyError, match="no device 'abacus'"):
        run_all(more, "abacus", processes=2)
