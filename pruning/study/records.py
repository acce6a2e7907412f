"""Records: one run, one record, written whole, with a digest of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pruning.files import DamagedFile, write_whole
from pruning.study.paths import root


def folder(study: str) -> Path:
    """Where a study's results lie: under ``PRUNING_RESULTS``, else ``data/results``."""
    return Path(os.environ.get("PRUNING_RESULTS") or root() / "data" / "results") / study


def digest(value: Mapping) -> str:
    """SHA-256 of a mapping of plain values, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_record(path: Path) -> dict:
    """A record as it was written; ``DamagedFile`` if it is anything else."""
    try:
        record = json.loads(path.read_bytes())
        found = record.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{path} is not a whole record ({type(error).__name__})") from error
    if found != digest(record):
        raise DamagedFile(f"{path} was altered: its digest does not fit")
    return record


def write_record(path: Path, record: dict) -> None:
    """Write a record with its digest, whole or not at all."""
    text = json.dumps(record | {"digest": digest(record)}, separators=(",", ":"))
    write_whole(path, (text + "\n").encode())


def records(study: str) -> list[dict]:
    """All records in a study's folder, ordered by file name; ``DamagedFile`` names one that cannot be read.

    Whether they are current, and of the study's own runs, is not looked at: see ``study.recorded``.
    """
    found = [read_record(path) for path in sorted((folder(study) / "runs").glob("*.json"))]
    if not found:
        raise FileNotFoundError(f"no records in {folder(study) / 'runs'}: run 'make study STUDY={study}' first")
    return found
