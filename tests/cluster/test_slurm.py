"""A small study through a real Slurm: as jobs of Snakemake and as an array of workers, interrupted in every way."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_slurm import node, said, until

from pruning.files import load_state, save_state
from pruning.study.locks import holder
from pruning.study.records import from_line, lines

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

STUDY = """
title: Digits in runs of seconds
benchmarks:
  digits-2c: {requirements: [0.4]}
methods: [unpruned, iterative, gradual]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 400, ramp: 1000, budget: 1400}
"""
OFTEN = "--seconds-between-status-checks 2 --slurm-init-seconds-before-status-checks 2"  # looks at what became of jobs
RUNS = ("digits-2c-0.4-gradual-0", "digits-2c-0.4-iterative-0", "digits-2c-0.4-unpruned-0")
LONG = RUNS[:2]


class Project:
    """A clone of the project on a file system that both nodes see, and its results."""

    def __init__(self, place: Path):
        self.place, self.results = place, place / "results/digits"
        self.work = self.results / "work"
        for name in ("pruning", "notebooks", "profiles", "studies"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in ("Snakefile", "Makefile"):
            shutil.copy(ROOT / name, place)
        (place / "studies/digits.yaml").write_text(STUDY)
        (place / ".venv").symlink_to(sys.prefix)
        own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        self.environment = own | {
            "PRUNING_RESULTS": str(place / "results"),
            "PRUNING_FIGURES": str(place / "figures"),
            "PRUNING_CHECKPOINT_SECONDS": "0.2",
            "PYTHONPATH": str(place),
            "PATH": str(place / ".venv/bin") + os.pathsep + own["PATH"],
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.place,
            env=self.environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def main(self) -> subprocess.Popen:
        """The main process of `make study PROFILE=slurm`, up to the table; the notebooks are tested without Slurm."""
        make = subprocess.run(
            ["make", "-n", "-o", ".venv/installed", "study", "PROFILE=slurm"],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        command = make.stdout.splitlines()[0]
        return self.start("sh", "-c", f"exec {command} --until table {OFTEN}")

    def records(self) -> dict[str, dict]:
        """What a run made, without what it says of its making."""
        files = [*self.work.glob("*.json"), *self.results.glob("*.jsonl")]
        made = [from_line(line) for path in files for line in lines(path)]
        return {
            one["run"]["name"]: {key: one[key] for key in one if key not in ("seconds", "environment")} for one in made
        }

    def seconds(self, name: str) -> float:
        made = [from_line(line) for line in lines(self.results / "digits-2c.jsonl")]
        return next(one["seconds"] for one in made if one["run"]["name"] == name)

    def checkpoints(self) -> list[Path]:
        return sorted(self.work.glob("*.checkpoint"))


def jobs(*options: str) -> list[str]:
    return said("squeue", "--me", "--noheader", "--format=%i", *options).split()


def output(process: subprocess.Popen, seconds: float = 300) -> str:
    return process.communicate(timeout=seconds)[0]


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Project:
    """The study done on this machine, without Slurm."""
    project = Project(tmp_path_factory.mktemp("local"))
    process = project.start(sys.executable, "-m", "pruning", "run", "digits")
    told = output(process)
    assert process.returncode == 0, told
    assert tuple(sorted(project.records())) == RUNS
    return project


def test_a_study_as_jobs_that_is_killed_cancelled_and_requeued_gives_what_this_machine_gives(slurm, local, tmp_path):
    project = Project(tmp_path)
    first = project.main()
    until(lambda: project.checkpoints() or first.poll() is not None, what="a run at work")
    assert first.poll() is None, output(first)
    subprocess.run(["scontrol", "suspend", ",".join(jobs("--states=RUNNING"))], check=True)  # not over too soon

    second = project.main()
    told = output(second)
    assert second.returncode != 0 and "another process is running the study 'digits' (process " in told

    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = project.main()
    told, left = output(third), jobs()
    assert (
        third.returncode != 0
        and "Slurm still has jobs of the study 'digits'" in told
        and f"'scancel {' '.join(left)}'" in told
    )

    subprocess.run(["scancel", *left], check=True)
    until(lambda: not jobs(), what="jobs gone")
    for path in project.checkpoints():  # a record that goes on from here says that it took an hour
        # After the first line come 32 bytes of a checksum, any of which may be a line's end.
        owner = path.read_bytes().partition(b"\n")[2][32:].partition(b"\n")[0].decode()
        save_state(path, load_state(path, owner) | {"seconds": 3600.0}, owner)
    cancelled = [path.stem for path in project.checkpoints()]
    assert cancelled and not {*cancelled} & project.records().keys()

    fourth = project.main()
    until(lambda: jobs("--states=RUNNING") and project.checkpoints(), what="runs at work again")
    subprocess.run(["scontrol", "requeue", jobs("--states=RUNNING")[0]], check=True)
    told = output(fourth)
    assert fourth.returncode == 0, told
    assert project.records() == local.records() and (project.results / "runs.csv").is_file()
    assert all(project.seconds(name) > 3600 for name in cancelled)
    assert not project.checkpoints() and not list(project.work.glob("*.json"))


def test_an_array_of_workers_gives_what_this_machine_gives_though_a_node_dies(slurm, local, tmp_path):
    project = Project(tmp_path)
    make = project.start("make", "-o", ".venv/installed", "cluster", "WORKERS=2")
    told = output(make)
    assert make.returncode == 0 and "(2 workers)" in told, told
    until(project.checkpoints, what="a run at work")
    run = project.checkpoints()[0].stem
    worker = holder(project.work / f"{run}.lock")
    where = said("squeue", "--noheader", "--format=%N", f"--jobs={worker.job}").strip()
    for pid in (int((slurm / f"slurmd-{where}.pid").read_text()), worker.pid):
        os.kill(pid, signal.SIGKILL)
    until(lambda: said("sinfo", "-h", "-n", where, "-t", "down"), what="the node down")
    node(slurm, where)
    until((project.results / "runs.csv").is_file, 240, "the table")
    assert project.records() == local.records()
    subprocess.run(["scancel", *jobs()], check=False)
    until(lambda: not jobs(), what="jobs gone")
