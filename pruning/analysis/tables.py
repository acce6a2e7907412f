"""From records to one tidy table: what the figures and the claims are made from.

    table = frame(records("report"))
    table.groupby(["benchmark", "requirement", "method"])["density"].mean()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from pruning.analysis import claims
from pruning.analysis import comparison as frontier
from pruning.files import DamagedFile, write_whole
from pruning.study.records import folder

COLUMNS = (
    "benchmark", "network", "dataset", "requirement", "method", "seed", "synapses", "significant", "density",
    "validation_accuracy", "test_accuracy", "iterations", "iterations_unpruned", "effort", "reached",
    "iterations_spent", "stopped", "macs_dense", "macs", "training_macs",
)
KEYS = ["benchmark", "requirement", "method", "seed"]


def frame(found: Iterable[dict]) -> pd.DataFrame:
    """One row a record with ``COLUMNS``, sorted by benchmark, requirement, method and seed.

    A run that did not reach its requirement has density 1, also where its method had pruned before.
    """
    rows = [record["run"] | record["result"] for record in found]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["iterations_unpruned"] = table["iterations_unpruned"].astype("Int64")
    table["effort"] = table["effort"].astype("float64")
    table["density"] = table["density"].where(table["reached"].astype(bool), 1.0)
    return table.sort_values(KEYS, ignore_index=True)


def write_table(study: str, found: Iterable[dict]) -> Path:
    """Write ``runs.csv`` of a study from its records; returns its path."""
    path = folder(study) / "runs.csv"
    write_whole(path, frame(found).to_csv(index=False, lineterminator="\n").encode())
    return path


def titles(found: Iterable[dict]) -> dict[str, str]:
    """Each benchmark with the data it was trained on, as figures name it: "cifar10-2c": "CIFAR-10 (JPEG copy)"."""
    return {record["run"]["benchmark"]: record["data"] for record in found}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, one row per benchmark, requirement and method.

    Columns: ``runs``, ``reached`` (how many met the requirement), ``density``, ``density_sd``,
    ``effort``, ``effort_sd`` (of those that reached it), ``iterations``, ``test_accuracy``.
    """
    groups = table.groupby(KEYS[:3])
    return groups.agg(
        runs=("seed", "size"), reached=("reached", "sum"),
        density=("density", "mean"), density_sd=("density", "std"),
        effort=("effort", "mean"), effort_sd=("effort", "std"),
        iterations=("iterations", "mean"), test_accuracy=("test_accuracy", "mean"),
    ).reset_index()


def markdown(table: pd.DataFrame, named: Mapping[str, str], methods: Iterable[str]) -> str:
    """The README's table: significant synapses in percent and the effort of each pruning method."""
    found = summary(table).set_index(KEYS[:3])
    methods = [method for method in methods if method != "unpruned" and method in set(table["method"])]
    lines = [
        "| benchmark | requirement | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for benchmark, requirement in sorted({key[:2] for key in found.index}):
        cells = []
        for method in methods:
            if (benchmark, requirement, method) not in found.index:
                cells.append("")
                continue
            row = found.loc[(benchmark, requirement, method)]
            spread = f" ± {100 * row.density_sd:.1f}" if row.runs > 1 else ""
            missed = f", {row.runs - row.reached:.0f} of {row.runs:.0f} not reached" if row.reached < row.runs else ""
            effort = f"{row.effort:.1f}×" if row.reached else "–"
            cells.append(f"{100 * row.density:.1f}{spread} % ({effort}{missed})")
        lines.append(f"| {benchmark}, {named[benchmark]} | {100 * requirement:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def saved(table: pd.DataFrame, named: Mapping[str, str], method: str = claims.METHOD) -> str:
    """The README's second table: what one method's networks are worth, mean and standard deviation over seeds.

    The compression ratio is all synapses over the significant ones, the theoretical speed-up all
    multiply-accumulates of an image over those of significant synapses.
    """
    found = table[table["method"] == method]
    found = found.assign(compression=compression(found), speedup=speedup(found), test=100 * found["test_accuracy"])
    heads = ("benchmark", "requirement", "compression ratio", "theoretical speed-up", "test accuracy")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for (benchmark, requirement), runs in found.groupby(KEYS[:2]):
        mean, sd = (getattr(runs[["compression", "speedup", "test"]], what)() for what in ("mean", "std"))
        forms = (("compression", ".1f", "×"), ("speedup", ".2f", "×"), ("test", ".2f", " %"))
        cells = [
            f"{mean[name]:{form}}" + (f" ± {sd[name]:{form}}" if len(runs) > 1 else "") + unit
            for name, form, unit in forms
        ]
        lines.append(f"| {benchmark}, {named[benchmark]} | {100 * requirement:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compression(table: pd.DataFrame) -> pd.Series:
    """Compression ratio (Blalock et al. 2020): all synapses over those that are left."""
    return table["synapses"] / table["significant"]


def speedup(table: pd.DataFrame) -> pd.Series:
    """Theoretical speed-up (Blalock et al. 2020): multiply-accumulates of an image, dense over remaining."""
    return table["macs_dense"] / table["macs"]


def readme(
    text: str, found: list[dict], methods: Iterable[str], tireless: list[dict] | None = None, known: Iterable[dict] = (),
) -> str:
    """``text`` with what stands between each pair of marks, as ``<!-- table -->`` and ``<!-- /table -->``, made anew.

    ``tireless`` are the records of the study `smallest`, ``known`` those of `methods`, where there are any. The marks are
    ``table``, ``saved``, ``claims``, ``targets`` and ``methods``; ``DamagedFile`` names a pair that is not there once.
    """
    table, named = frame(found), titles(found)
    smallest = frame(tireless) if tireless else None
    rivals = frontier.rivals(frontier.joined(table, frame(list(known))))
    made = {
        "table": markdown(table, named, methods), "saved": saved(table, named),
        "claims": claims.markdown(table, named), "targets": frontier.markdown(table, found, smallest),
        "methods": frontier.table_of_methods(rivals),
    }
    for name, content in made.items():
        text = between(text, name, content)
    return text


def between(text: str, mark: str, content: str) -> str:
    """``text`` with ``content`` as all that stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise DamagedFile(f"the README must hold the marks {start} and {end} once each")
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"
