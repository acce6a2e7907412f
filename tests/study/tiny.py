"""A study of two runs that takes seconds, for tests of what becomes of its records."""

import json
from pathlib import Path

import pytest

from pruning.study.config import Run, Settings
from pruning.study.records import lines, published_path
from pruning.study.runner import run as carry_out

ROOT = Path(__file__).resolve().parents[2]
YAML = """
title: Tiny
benchmarks:
  digits-2c:
    requirements: [0.5]
methods: [unpruned, random]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 4, budget: 80, ramp: 40}
"""
SETTINGS = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=80, ramp=40)


class Stop(Exception):
    """Ends a training from outside."""


def run_of(method="random", requirement=0.5, **settings):
    settings = SETTINGS.model_copy(update=settings)
    return Run(study="tiny", benchmark="digits-2c", requirement=requirement, method=method, seed=0, settings=settings)


def numbers(record):
    """A record without what it says of its making."""
    own = {key: value for key, value in record.items() if key not in ("seconds", "environment")}
    return json.loads(json.dumps(own))


def stamps(place, pattern="*"):
    return {path.name: path.stat().st_mtime_ns for path in sorted(place.glob(pattern))}


def published():
    """The lines of the study's file of records."""
    return lines(published_path("tiny", "digits-2c"))


def untrained(run, **given):
    """The run's record, which must be there and current."""

    def progress(event, training):
        pytest.fail(f"{run.name} was trained again")

    return carry_out(run, progress=progress, **given)


def retrained(run):
    """The run's record after training for it again, and what was said meanwhile."""
    said, seen = [], []
    record = carry_out(run, progress=lambda event, training: seen.append(event.iteration), warn=said.append)
    assert seen, "nothing was trained"
    return record, said, seen


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    """One digit of a number is another one."""
    text = path.read_text()
    at = text.index('"test_accuracy":0.') + len('"test_accuracy":0.')
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
