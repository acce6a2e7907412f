"""The records of a study: which are current, and how what runs wrote becomes what is published.

    >>> from pruning.study.studies import load
    >>> study = load("lenet")
    >>> current(study.runs[0])["result"]["reached"], len(recorded(study))
    (True, 24)

A record is current by its key and the fingerprint of its data, never by file times.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pruning.files import DamagedFile, set_aside, write_whole
from pruning.study import datasets
from pruning.study.config import Run, StudyError
from pruning.study.locks import locked
from pruning.study.paths import root
from pruning.study.records import folder, from_line, key_of, lines, published_path, to_line, write_records
from pruning.study.studies import Study

LAG = 60.0  # seconds after which a network file system shows every machine a file that was written on another


@functools.cache
def fingerprint_of(name: str) -> str | None:
    """Return the fingerprint of the dataset as it is here, None where it is not at hand."""
    return datasets.fingerprint(name)


def current(run: Run) -> dict | None:
    """Return the run's record if it is whole and made from the same parameters and data, else None.

    Where the data is not at hand its fingerprint cannot be compared, and the record counts.
    """
    return all_current([run]).get(run)


def all_current(runs: Iterable[Run]) -> dict[Run, dict]:
    """Return the current record of each run that has one, published ones first."""
    published: dict[Path, dict[bytes, list[bytes]]] = {}
    records = {}
    for run in runs:
        path, key = published_path(run.study, run.benchmark), run.key
        if path not in published:
            by_key = published[path] = {}
            for line in lines(path):
                by_key.setdefault(key_of(line), []).append(line)
        for line in (*published[path].get(key.encode(), ()), *lines(run.record_path)):
            record = _readable(line)
            if record is not None and _belongs(record, run, key):
                records[run] = record
                break
    return records


def recorded(study: Study) -> list[dict]:
    """Return the current records of the study's runs, in their order; ``StudyError`` where there is none.

    Records of other parameters, or of runs no longer asked for, are left out.
    """
    records = list(all_current(study.runs).values())
    if not records:
        named = study.name if study.file == root() / "studies" / study.file.name else study.file
        make = "make tradeoff" if study.plan else f"make study STUDY={named}"
        raise StudyError(f"no current record of the study '{study.name}' in {folder(study.name)}: run '{make}'")
    return records


def wait_for_all(study: Study) -> None:
    """Wait until every run has a current record here, however late the file system shows what other machines wrote.

    ``StudyError`` names the runs that have none when the time is over.
    """
    ends = time.monotonic() + LAG
    while missing := _missing(study):
        if time.monotonic() > ends:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise StudyError(
                f"{len(missing)} of {len(study.runs)} runs of the study '{study.name}' have no current record in "
                f"{folder(study.name)}: {some}; run 'make study STUDY={study.name}'"
            )
        time.sleep(1)


def outdated(run: Run) -> str | None:
    """Say why the run's record is not current; None where it has none."""
    name = f'"name":"{run.name}"'.encode()
    own = [line for line in lines(published_path(run.study, run.benchmark)) if name in line] + lines(run.record_path)
    if not own:
        return None
    return "damaged" if any(_readable(line) is None for line in own) else "of other parameters or data"


def _missing(study: Study) -> list[str]:
    current = all_current(study.runs)
    return [run.name for run in study.runs if run not in current]


def publish(study: Study, warn: Callable[[str], None] = print) -> None:
    """Write each benchmark's file of records: what is published, joined with what lies under ``work/``.

    Two files that git has merged are one file with more lines, in any order, some twice: all are taken. Of several
    records of one run the current one stays, else the first. What else there is of that run, and lines that cannot be
    read, are set aside with a word to ``warn``.
    """
    place = folder(study.name)
    with locked(place / "work" / "publish.lock"):
        files = [*sorted(place.glob("*.jsonl")), *sorted((place / "work").glob("*.json"))]
        records: dict[tuple[str, str], list[tuple[dict, Path]]] = {}
        aside: dict[Path, list[bytes]] = {}
        for path, line in ((file, line) for file in files for line in lines(file)):
            record = _readable(line)
            if record is None:
                aside.setdefault(path, []).append(line + b"\n")
            else:
                records.setdefault((record["run"]["benchmark"], record["run"]["name"]), []).append((record, path))
        chosen: dict[str, list[dict]] = {path.stem: [] for path in place.glob("*.jsonl")}
        for (benchmark, _), several in records.items():
            kept = _chosen(study, [record for record, _ in several])
            chosen.setdefault(benchmark, []).append(kept)
            for record, path in several:
                if record != kept:
                    aside.setdefault(path, []).append(to_line(record))
        for path, rest in aside.items():
            copy = place / "work" / path.name
            write_whole(copy, b"".join(rest))
            moved = set_aside(copy, copy.parent / "set-aside")
            warn(f"{path}: {len(rest)} lines that are damaged, or of a run with another record: set aside as {moved}")
        for benchmark, all_kept in chosen.items():
            write_records(published_path(study.name, benchmark), all_kept)
        for path in files:
            if path.suffix == ".json":
                path.unlink(missing_ok=True)


def forget(runs: Iterable[Run]) -> None:
    """Remove the records of runs, published or not, and all else that would spare them a training."""
    names: dict[Path, set[str]] = {}
    for run in runs:
        names.setdefault(published_path(run.study, run.benchmark), set()).add(run.name)
        dense = (folder(run.study) / "work").glob(f"dense-{run.benchmark}-{run.seed}-*/*.dense")
        # Claims that say that the run is done, too.
        claims = (folder(run.study) / "work" / f"{run.name}.claims").glob("*")
        for path in (run.record_path, run.place("work", ".checkpoint"), run.place("models", ".model"), *dense, *claims):
            path.unlink(missing_ok=True)
    for path, gone in names.items():
        with locked(path.parent / "work" / "publish.lock"):
            pairs = [(line, _readable(line)) for line in lines(path)]
            if pairs:
                kept = [line for line, record in pairs if record is None or record["run"]["name"] not in gone]
                write_whole(path, b"".join(line + b"\n" for line in kept))


def _chosen(study: Study, records: list[dict]) -> dict:
    """Choose of the records of one run the current one, else the first."""
    run = records[0]["run"]
    if any(record != records[0] for record in records):
        with contextlib.suppress(StudyError):  # a benchmark or method that the study has no more
            goal = run.get("requirement")
            (there,) = study.select(run["benchmark"], goal and [goal], run["method"], [run["seed"]])
            return next((record for record in records if _belongs(record, there, there.key)), records[0])
    return records[0]


def _readable(line: bytes) -> dict | None:
    """Return the record of a line, None where it is damaged or not a run's."""
    try:
        record = from_line(line)
    except DamagedFile:
        return None
    return record if "run" in record else None


def _belongs(record: dict, run: Run, key: str) -> bool:
    same = record.get("key") == key and record["run"]["name"] == run.name
    return same and fingerprint_of(run.dataset) in (None, record["fingerprint"])
