"""Records as they lie on the disk: one run, one record, one line with a digest of its own.

    data/results/<study>/<benchmark>.jsonl     published, sorted, committed
    data/results/<study>/work/<run>.json       written by a run, until the table publishes it

A line begins with the record's key, so that one of many can be looked up without parsing them all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pruning.files import DamagedFile, write_whole
from pruning.study.paths import root

_MARK = b',"digest":"'


def folder(study: str) -> Path:
    """Return the folder of a study's results: under ``PRUNING_RESULTS``, else ``data/results``."""
    return Path(os.environ.get("PRUNING_RESULTS") or root() / "data" / "results") / study


def published_path(study: str, benchmark: str) -> Path:
    """Return the path of a benchmark's published records."""
    return folder(study) / f"{benchmark}.jsonl"


def digest(value: Mapping) -> str:
    """Return the SHA-256 of a mapping of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def to_line(record: Mapping) -> bytes:
    """Write a record as one line of JSON: its key first, a digest of all before it last."""
    first = {"key": record["key"]} if "key" in record else {}
    body = json.dumps({**first, **record}, separators=(",", ":")).encode()[:-1]
    return body + _MARK + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def from_line(line: bytes) -> dict:
    """Read the record that ``to_line`` wrote; ``DamagedFile`` if the line is anything else."""
    body, mark, end = line.rpartition(_MARK)
    if not mark or not end.rstrip().endswith(b'"}'):
        raise DamagedFile("not a whole record")
    if end.rstrip() != hashlib.sha256(body).hexdigest().encode() + b'"}':
        raise DamagedFile("altered: its digest does not fit")
    return json.loads(body + b"}")


def key_of(line: bytes) -> bytes:
    """Return the key that a line begins with, unchecked."""
    return line[len(b'{"key":"') :].partition(b'"')[0]


def lines(path: Path) -> list[bytes]:
    """Return the lines of a file of records, without empty ones; none where there is no file."""
    try:
        return [line for line in path.read_bytes().splitlines() if line.strip()]
    except (FileNotFoundError, NotADirectoryError):  # who writes there will say what is in the way
        return []


def read_record(path: Path) -> dict:
    """Read the one record of a file; ``DamagedFile`` names a file that holds anything else."""
    try:
        return from_line(path.read_bytes())
    except DamagedFile as error:
        raise DamagedFile(f"{path} is {error}") from error


def write_record(path: Path, record: Mapping) -> None:
    """Write a file of one record, whole or not at all."""
    write_whole(path, to_line(record))


def write_records(path: Path, records: Iterable[Mapping]) -> None:
    """Write a file of records, one a line, sorted by kind, requirement, method and seed."""
    ordered = sorted(records, key=lambda record: _order(record["run"]))
    write_whole(path, b"".join(map(to_line, ordered)))


def _order(run: Mapping) -> tuple:
    return run["kind"], run.get("requirement", 0), run["method"], run["seed"], run["name"]
