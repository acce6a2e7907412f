"""Tables of trade-off curves and of scans of layers.

>>> from pruning.study.store import recorded
>>> from pruning.study.studies import load
>>> records = recorded(load("tradeoff"))
>>> len(frame(records)), len(scans(records))
(444, 864)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pruning.files import write_whole
from pruning.study.config import SCAN
from pruning.study.records import folder

COLUMNS = (
    "benchmark",
    "method",
    "ratio",
    "seed",
    "density",
    "compression",
    "speedup",
    "validation_accuracy",
    "test_accuracy",
    "iterations",
)
SCAN_COLUMNS = ("benchmark", "layer", "kind", "density", "seed", "validation_accuracy")


def frame(records: Iterable[dict]) -> pd.DataFrame:
    """Make a table of one row per point with ``COLUMNS``, sorted; the scans of layers left out."""
    return _rows((record for record in records if record["run"]["method"] != SCAN), COLUMNS, COLUMNS[:4])


def scans(records: Iterable[dict]) -> pd.DataFrame:
    """Make a table of one row per layer, density and seed with ``SCAN_COLUMNS``, layers in the network's order."""
    return _rows((record for record in records if record["run"]["method"] == SCAN), SCAN_COLUMNS, ("benchmark", "seed"))


def write_tables(study: str, records: list[dict]) -> list[Path]:
    """Write ``tradeoff.csv`` and ``sensitivity.csv`` of a study from its records; returns their paths."""
    paths = []
    for name, table in (("tradeoff", frame(records)), ("sensitivity", scans(records))):
        paths.append(folder(study) / f"{name}.csv")
        write_whole(paths[-1], table.to_csv(index=False, lineterminator="\n").encode())
    return paths


def _rows(records: Iterable[dict], columns: tuple[str, ...], keys: tuple[str, ...]) -> pd.DataFrame:
    rows = [record["run"] | point for record in records for point in record["points"]]
    return pd.DataFrame(rows, columns=list(columns)).sort_values(list(keys), ignore_index=True, kind="stable")
