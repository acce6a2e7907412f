"""A study through Snakemake and Papermill, in a clone of its own: killed, resumed, repeated, repaired."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from pruning.study.graph import Graph
from pruning.study.graph import decide as graph_of
from pruning.study.records import digest, from_line, lines
from pruning.study.studies import load, names

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

# The digits study of the clone: all that the graph has, in trainings of a second.
STUDY = """
title: Digits in a few short runs
benchmarks:
  digits-2c: {requirements: [0.4]}
  digits-3c: {requirements: [0.4]}
methods: [unpruned, iterative, gradual]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 3, ramp: 60, budget: 160}
"""
RUNS = 2 * 3
PICTURES = (
    "figure-1-iterative-pruning",
    "figure-2-implementation",
    "figure-3-benchmarks",
    "figure-4-significant-synapses",
    "figure-5-training-effort",
)


def environment(place: Path) -> dict:
    binaries = str(Path(sys.executable).parent)
    return os.environ | {
        "PRUNING_RESULTS": str(place / "results"),
        "PRUNING_FIGURES": str(place / "figures"),
        "PYTHONPATH": str(place / "clone"),
        "PATH": binaries + os.pathsep + os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
    }


def started(place: Path, *given: str, study: str = "digits", device: str = "cpu", train="yes") -> subprocess.Popen:
    config = f"study={study}", f"device={device}", f"train={train}"
    command = [sys.executable, "-m", "snakemake", *given, "--config", *config]
    return subprocess.Popen(
        command,
        cwd=place / "clone",
        env=environment(place),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=900)
    return said


def graph(place: Path, *given: str) -> str:
    process = started(place, *given)
    said = finished(process)
    assert process.returncode == 0, said
    return said


def written(place: Path) -> dict[str, bytes]:
    """The records that runs have written or the table has published: name and digest."""
    results = place / "results/digits"
    files = [*results.glob("work/*.json"), *results.glob("*.jsonl")]
    records = [from_line(line) for path in files for line in lines(path)]
    return {record["run"]["name"]: digest(record) for record in records}


@pytest.fixture
def place(tmp_path) -> Path:
    return cloned(tmp_path)


def cloned(place: Path) -> Path:
    """A folder with a clone of the project, whose results and figures go beside it."""
    clone = place / "clone"
    clone.mkdir()
    for name in ("pruning", "notebooks", "profiles", "studies"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "Snakefile", clone)
    return place


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """A short digits study, killed once on its way and asked for twice at once afterwards."""
    place = cloned(tmp_path_factory.mktemp("graph"))
    (place / "clone/studies/digits.yaml").write_text(STUDY)
    first = started(place)
    while not written(place):
        assert first.poll() is None, finished(first)
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = written(place)
    assert len(before) < RUNS

    second = started(place)
    while not any(place.glob("results/digits/work/log-*.ipynb")) or len(written(place)) <= len(before):
        assert second.poll() is None, finished(second)
        time.sleep(0.05)
    os.killpg(second.pid, signal.SIGSTOP)  # so that it is not over before it is asked for again
    assert (place / "results/digits/work/study.lock").exists()
    third = started(place)
    said = finished(third)
    assert third.returncode != 0 and "another process is running the study 'digits'" in said
    os.killpg(second.pid, signal.SIGCONT)
    said = finished(second)
    assert second.returncode == 0, said
    assert written(place).items() >= before.items(), "a finished run was done again"
    assert not list(place.glob("results/digits/work/*.json")), "every record is published"
    return place


def test_a_killed_study_ends_with_every_run_figure_and_notebook(studied):
    results = studied / "results/digits"
    table = pd.read_csv(results / "runs.csv")
    assert len(table) == RUNS and set(table["benchmark"]) == {"digits-2c", "digits-3c"}
    assert table.groupby("method").size().to_dict() == {"unpruned": 2, "iterative": 2, "gradual": 2}
    for name in PICTURES:
        for kind, head in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
            assert (studied / f"figures/digits/{name}.{kind}").read_bytes().startswith(head)
    for benchmark in ("digits-2c", "digits-3c"):
        cells = json.loads((results / f"notebooks/{benchmark}.ipynb").read_text())["cells"]
        assert not any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))
        assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def test_a_second_time_does_nothing(studied):
    assert "Nothing to be done" in graph(studied)


def test_a_deleted_record_reruns_that_run_alone_whatever_the_file_times(studied):
    results, name = studied / "results/digits", "digits-3c-0.4-iterative-0"
    path, before = results / "digits-3c.jsonl", written(studied)
    kept = [line for line in lines(path) if f'"name":"{name}"'.encode() not in line]
    (gone,) = [from_line(line) for line in lines(path) if line not in kept]
    path.write_bytes(b"\n".join(kept) + b"\n")
    table, dice = (results / "runs.csv").read_bytes(), random.Random(0)
    for one in results.glob("*.jsonl"):
        os.utime(one, (0, dice.randrange(10**9)))
    graph(studied, str(results / "runs.csv"))
    after = written(studied)
    assert after.keys() == before.keys() and after.items() - before.items() <= {(name, after[name])}
    (again,) = [from_line(line) for line in lines(path) if f'"name":"{name}"'.encode() in line]
    assert {key: again[key] for key in again if again[key] != gone[key]}.keys() <= {"seconds", "environment"}
    assert (results / "runs.csv").read_bytes() == table


def test_records_that_a_killed_study_left_unpublished_are_published(studied):
    results = studied / "results/digits"
    path, work = results / "digits-2c.jsonl", results / "work"
    for line in lines(path):
        (work / f"{from_line(line)['run']['name']}.json").write_bytes(line + b"\n")
    path.unlink()
    before = written(studied)
    for one in work.glob("*.json"):
        os.utime(one, (0, 0))
    graph(studied, str(results / "runs.csv"))
    assert written(studied) == before and path.is_file() and not list(work.glob("*.json"))
    assert "Nothing to be done" in graph(studied, str(results / "runs.csv"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_failed_notebook_is_kept_and_named(place):
    old = place / "results/digits/work/digits-2c-0.ipynb"
    old.parent.mkdir(parents=True)
    old.write_text("of other settings")
    job = started(place, str(old), device="cuda")
    said = finished(job)
    kept = place / "results/digits/work/log-digits-2c-0.ipynb"
    assert job.returncode != 0 and f"with the error in it: {kept}" in said
    assert "torch sees no CUDA device" in kept.read_text()
    assert not old.exists() and not (place / "results/digits/runs.csv").exists()


def test_a_job_on_a_node_reads_what_was_decided_without_importing_torch(tmp_path):
    decided = graph_of(load("digits"), "digits", tmp_path)
    script = "from pruning.study import graph; print(graph.read('digits').to_json())"
    script += "; import sys; assert not {'torch', 'pandas', 'pydantic'} & set(sys.modules)"
    command, own = [sys.executable, "-c", script], {"PRUNING_RESULTS": str(tmp_path)}
    answer = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1 and "study.plan is missing, which the main process writes" in answer.stderr
    path = tmp_path / "digits/work/study.plan"
    path.parent.mkdir(parents=True)
    path.write_text(decided.to_json())
    answer = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Graph.from_json(answer.stdout) == decided


def test_without_training_nothing_is_trained_whatever_is_asked_for(place):
    (place / "clone/studies/digits.yaml").write_text(STUDY)
    said = finished(started(place, "-n", train="no"))
    jobs = set(re.findall(r"^(\S+) +\d+$", said, re.MULTILINE))
    assert "2-significant-synapses" in jobs and not jobs & {"runs", "benchmark"}, said
    job = started(place, str(place / "results/digits/work/digits-2c-0.ipynb"), train="no")
    said = finished(job)
    assert job.returncode != 0, said
    log = (place / "results/digits/work/log-digits-2c-0.ipynb").read_text()
    assert "digits-2c-0.4-unpruned-0 is not trained, as train=no asks: its record is missing" in log
    assert not written(place)


def test_the_committed_digits_study_trains_each_benchmark_and_seed(place):
    job = started(place, "-n")
    said = finished(job)
    assert job.returncode == 0, said
    jobs = {name: int(count) for name, count in re.findall(r"^(\S+) +(\d+)$", said, re.MULTILINE)}
    assert jobs == {
        "all": 1,
        "runs": 6,
        "table": 1,
        "benchmark": 2,
        "2-significant-synapses": 1,
        "3-training-effort": 1,
        "total": 12,
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("study=diggits", f"there are {', '.join(names())}"),
        ("study=tradeoff", "the study 'tradeoff' measures trade-offs: run 'make tradeoff'"),
        ("studdy=report", "--config studdy=report: unknown key; known are study, device, train"),
        ("train=never", "--config train=never: expected yes or no"),
        ("device=gpu", "--config device=gpu: expected cpu, cuda or cuda:0"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(config, said):
    process = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--config", config],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert process.returncode != 0 and said in process.stdout


@pytest.mark.parametrize("study", ["report", "lenet"])
def test_a_fresh_clone_trains_nothing_that_is_committed(study, tmp_path):
    command = [sys.executable, "-m", "snakemake", "-n", "--config", f"study={study}"]
    process = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PRUNING_FIGURES": str(tmp_path)},
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    jobs = set(re.findall(r"^(\S+) +\d+$", process.stdout, re.MULTILINE))
    assert process.returncode == 0 and "2-significant-synapses" in jobs and "runs" not in jobs, process.stdout
