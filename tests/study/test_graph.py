"""The whole digits study through Snakemake and Papermill: killed, resumed, repeated, repaired."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from pruning.study.records import digest, from_line, lines

ROOT = Path(__file__).resolve().parents[2]

PICTURES = (
    "figure-1-iterative-pruning", "figure-2-implementation", "figure-3-benchmarks",
    "figure-4-significant-synapses", "figure-5-training-effort",
)


def environment(place: Path) -> dict:
    binaries = str(Path(sys.executable).parent)
    return os.environ | {
        "PRUNING_RESULTS": str(place / "results"), "PRUNING_FIGURES": str(place / "figures"),
        "PATH": binaries + os.pathsep + os.environ["PATH"], "OMP_NUM_THREADS": "1",
    }


def started(place: Path, *targets: str, device: str = "cpu") -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", *targets, "--config", "study=digits", f"device={device}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(place), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=900)
    return said


def graph(place: Path) -> str:
    process = started(place)
    said = finished(process)
    assert process.returncode == 0, said
    return said


def written(place: Path) -> dict[str, bytes]:
    """The records that runs have written or the table has published: name and digest."""
    results = place / "results/digits"
    files = [*results.glob("work/*.json"), *results.glob("*.jsonl")]
    records = [from_line(line) for path in files for line in lines(path)]
    return {record["run"]["name"]: digest(record) for record in records}


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> Path:
    """The digits study, killed once on its way and asked for twice at once afterwards."""
    place = tmp_path_factory.mktemp("graph")
    first = started(place)
    while len(written(place)) < 8:
        assert first.poll() is None, finished(first)
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = written(place)

    second = started(place)
    lock = place / "results/digits/work/study.lock"
    while not any(place.glob("results/digits/work/log-*.ipynb")) or len(written(place)) <= len(before):
        assert second.poll() is None, finished(second)
        time.sleep(0.2)
    assert lock.exists()
    third = started(place)
    said = finished(third)
    assert third.returncode != 0 and "another process is running the study 'digits'" in said
    assert second.poll() is None, "the study was over before it was asked for a second time"
    said = finished(second)
    assert second.returncode == 0, said
    assert written(place).items() >= before.items(), "a finished run was done again"
    assert not list(place.glob("results/digits/work/*.json")), "every record is published"
    return place


def test_a_killed_study_ends_with_every_run_figure_and_notebook(studied):
    results = studied / "results/digits"
    table = pd.read_csv(results / "runs.csv")
    assert len(table) == 60 and set(table["benchmark"]) == {"digits-2c", "digits-3c"}
    assert table.groupby("method").size().to_dict() == dict.fromkeys(table["method"].unique(), 12)
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
    results, name = studied / "results/digits", "digits-3c-0.97-iterative-1"
    path, before = results / "digits-3c.jsonl", written(studied)
    kept = [line for line in lines(path) if f'"name":"{name}"'.encode() not in line]
    (gone,) = [from_line(line) for line in lines(path) if line not in kept]
    path.write_bytes(b"\n".join(kept) + b"\n")
    table, dice = (results / "runs.csv").read_bytes(), random.Random(0)
    for one in results.glob("*.jsonl"):
        os.utime(one, (0, dice.randrange(10**9)))
    graph(studied)
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
    graph(studied)
    assert written(studied) == before and path.is_file() and not list(work.glob("*.json"))
    assert "Nothing to be done" in graph(studied)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_failed_notebook_is_kept_and_named(tmp_path):
    job = started(tmp_path, str(tmp_path / "results/digits/work/digits-2c-0.ipynb"), device="cuda")
    said = finished(job)
    kept = tmp_path / "results/digits/work/log-digits-2c-0.ipynb"
    assert job.returncode != 0 and f"with the error in it: {kept}" in said
    assert "torch sees no CUDA device" in kept.read_text()
    assert not (tmp_path / "results/digits/runs.csv").exists()


@pytest.mark.parametrize(("config", "said"), [
    ("study=diggits", "no study 'diggits'"), ("study=diggits", "there are digits, ingredients, lenet, methods, report"),
    ("study=tradeoff", "the study 'tradeoff' measures trade-offs: run 'make tradeoff'"),
    ("studdy=report", "--config studdy=report: unknown key; known are study, device, train"),
    ("train=never", "--config train=never: expected yes or no"),
    ("device=gpu", "--config device=gpu: expected cpu, cuda or cuda:0"),
])
def test_a_wrong_configuration_is_one_clear_error(config, said):
    process = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--config", config],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )
    assert process.returncode != 0 and said in process.stdout


@pytest.mark.parametrize("study", ["report", "methods", "smallest", "lenet", "ingredients"])
def test_a_fresh_clone_trains_nothing_that_is_committed(study, tmp_path):
    command = [sys.executable, "-m", "snakemake", "-n", "--config", f"study={study}"]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PRUNING_FIGURES": str(tmp_path)}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0 and "\nrule runs:" not in process.stdout, process.stdout
    assert "figures" in process.stdout
