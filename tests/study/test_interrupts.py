"""Ctrl-C: one line says it, and the same again goes on where it was and leaves no more files than without."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill import execute_notebook

from pruning.study.studies import load

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("results", "figures"):
        monkeypatch.setenv(f"PRUNING_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # What is interrupted is not measured: an interrupt that falls into coverage's own lock leaves it locked for ever.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    monkeypatch.chdir(ROOT)
    return tmp_path


def interrupted(command, after):
    """Start a command, send it and its children what Ctrl-C sends once it prints ``after``; return status and lines."""
    # Where this process ignores the signal, as a job in a shell's background does, its children would too.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{heard}; os.execvp(sys.argv[1], sys.argv[1:])", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        before = []
        for line in process.stdout:
            before.append(line)
            if after in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.stdout.read().splitlines()
    assert after in "".join(before[-1:]), "".join(before)
    return process.returncode, [line for line in rest if line.strip()]


def test_the_readmes_papermill_trains_shows_progress_and_is_interrupted(place):
    (command,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("papermill ")]
    words = shlex.split(command.replace(" out.ipynb ", f" {place / 'out.ipynb'} "))
    status, lines = interrupted(words, "(1 of 10): iteration ")
    # Papermill is stopped with its kernel. Where it hears of the kernel first, its event loop reports a task last.
    ours, theirs = lines[: lines.index("Aborted!")], lines[lines.index("Aborted!") + 1 :]
    assert status and not [line for line in ours if "Traceback" in line], lines
    assert not theirs or theirs[0] == "Task exception was never retrieved", lines
    outputs = [output for cell in nbformat.read(place / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    errors = ["".join(output.traceback) for output in outputs if output.output_type == "error"]
    assert all(error.count("\n") == 0 and "goes on from its last checkpoint" in error for error in errors), errors

    runs = load("digits").select("digits-3c", [0.95], ["unpruned", "iterative"], [3])
    parameters = {"benchmark": "digits-3c", "seeds": [3], "requirements": [0.95], "methods": ["unpruned", "iterative"]}
    execute_notebook("notebooks/1-benchmark.ipynb", place / "again.ipynb", parameters, progress_bar=False)
    left = {path.name for path in (place / "results/digits/work").iterdir() if not path.name.startswith("dense-")}
    assert left == {f"{run.name}.{kind}" for run in runs for kind in ("json", "lock", "claims")}
    assert not list(place.glob("results/**/*.tmp")) and not list(place.glob("results/**/*.checkpoint"))


def test_a_verb_says_it_in_one_line(place):
    command = [sys.executable, "-m", "pruning", "run", "digits", "--benchmark", "digits-2c"]
    status, lines = interrupted(command, "1/30 ")
    assert status == 130 and lines[-1] == "interrupted: the same command goes on where it was"
    assert all(": density " in line for line in lines[:-1])


def test_a_polite_end_of_the_main_process_ends_its_workers(place):
    command = [sys.executable, "-m", "pruning", "run", "digits", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        first = process.stdout.readline()
        process.terminate()
        said, _ = process.communicate(timeout=60)  # which waits for whoever else holds its output open
    assert ": density " in first and process.returncode == 128 + signal.SIGTERM, first + said
    assert said.count(": density ") <= 2, said
