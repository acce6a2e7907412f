"""What the page lets its reader explore, computed beforehand: every run of a setting, and one run round by round.

Both are plain values, which ``report/explore.js`` draws; each has a still picture, for where no script runs and for
paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pruning.analysis.claims import METHOD as REPORTS
from pruning.analysis.comparison import METHOD, SETTING, joined, rivals
from pruning.analysis.figures import benchmarks, learning_curve, look, ordered, overview, percent, png, title
from pruning.analysis.figures.runs import run_title
from pruning.analysis.markup import SCREEN, SHARP, data_uri
from pruning.analysis.tables import titles
from pruning.study.records import folder, from_line, lines, published_path

STUDY, OTHERS = "report", "methods"  # every method, in the same settings
# What the training took, in times of what it takes unpruned: the columns of the table that stand against density.
MEASURES = {
    "effort": "training effort (iterations, times those of unpruned training)",
    "cost": "training cost (images passed, times those of unpruned training)",
}
# Chart.js's nearest to matplotlib's markers, and how far they are turned.
SHAPES = {
    "s": ("rect", 0), "o": ("circle", 0), "^": ("triangle", 0), "D": ("rectRot", 0), "X": ("crossRot", 0),
    "v": ("triangle", 180), "*": ("star", 0), "<": ("triangle", -90), ">": ("triangle", 90), "P": ("cross", 0),
    "p": ("rectRounded", 0), "h": ("rectRounded", 45), "d": ("rectRot", 0),
}  # fmt: skip


def explorers() -> dict[str, Any] | None:
    """Return what the page explores, ``data`` and ``stills``; None where the report's benchmarks have no records."""
    path = folder(STUDY) / "runs.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    if (more := folder(OTHERS) / "runs.csv").is_file():
        table = rivals(joined(table, pd.read_csv(more)))
    names = benchmarks(table)
    records = [from_line(line) for name in names for line in lines(published_path(STUDY, name))]
    chosen = choose(records)
    if not chosen:
        return None
    figures = {"front": overview(table), "rounds": learning_curve(chosen[0])}
    return {
        "data": {"front": front(table, titles(records)), "rounds": [rounds(record) for record in chosen]},
        "stills": {
            name: {
                "source": data_uri(png(figure, SHARP), "image/png"),
                "alt": figure.get_label(),
                "width": round(SCREEN * figure.get_size_inches()[0]),
            }
            for name, figure in figures.items()
        },
    }


def front(table: pd.DataFrame, names: Mapping[str, str]) -> dict[str, Any]:
    """Return every run of a table of runs by setting, a benchmark with a requirement, and the methods' means.

    A run is ``[seed, synapses left, test accuracy, *measures]``; a mean ``[density, *measures, runs that met the
    requirement, runs, whether it may be on the front]``. Runs that did not meet it have no measures: they count in the
    mean's density with all synapses, as in the figures, and are not listed. The first setting is all of them together.
    """
    measures = [name for name in MEASURES if name in table]
    pruned = table.assign(density=table["density"].where(table["reached"], 1.0))
    methods = ordered(pruned["method"])
    values = ["density", *measures]
    means = pruned.groupby([*SETTING, "method"])[values].mean()
    counts = pruned.groupby([*SETTING, "method"])["reached"].agg(["sum", "size"])
    everywhere = means.groupby("method").size() == len(pruned[SETTING].drop_duplicates())
    overall = _means(means.groupby("method").mean()[everywhere], counts.groupby("method").sum())
    settings: list[dict[str, Any]] = [
        {"title": "all settings together", "synapses": None, "runs": {}, "means": overall}
    ]
    for benchmark in benchmarks(pruned):
        for requirement, runs in pruned[pruned["benchmark"] == benchmark].groupby("requirement"):
            met = runs[runs["reached"]].groupby("method")
            settings.append({
                "title": f"{title(benchmark, names)}: {percent(requirement)} required",
                "synapses": int(runs["synapses"].iloc[0]),
                "runs": {method: [_run(row, measures) for row in own.to_dict("records")] for method, own in met},
                "means": _means(means.loc[benchmark, requirement], counts.loc[benchmark, requirement]),
            })  # fmt: skip
    looks = {method: _drawn(method) for method in methods}
    return {"measures": {name: MEASURES[name] for name in measures}, "methods": looks, "settings": settings}


def rounds(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run round by round: what each left of every layer, and the accuracy before the next one.

    Rounds at one iteration count as one, and one that removed nothing as none. A round's accuracy is that of the last
    evaluation before the next, None where there is none. ``delivered`` is the round whose network was delivered.
    """
    layers, seen, result = record["layers"], record["trajectory"], record["result"]
    steps: dict[int, list[int]] = {0: [part["synapses"] for part in layers]}
    for step in record["rounds"]:
        left = [round(step["densities"][part["name"]] * part["synapses"]) for part in layers]
        if left != list(steps.values())[-1]:
            steps[step["iteration"]] = left
    begins = [*steps, result["iterations_spent"]]
    accuracies = dict(zip(seen["iteration"], seen["accuracy"]))
    told = []
    for (begin, left), end in zip(steps.items(), begins[1:]):
        within = [value for at, value in accuracies.items() if begin < at <= end]
        told.append([begin, left, within[-1] if within else None])
    delivered = [number for number, left in enumerate(steps.values()) if sum(left) == result["significant"]]
    return {
        "title": run_title(dict(record)),
        "requirement": record["run"]["requirement"],
        "layers": [[part["name"], part["synapses"]] for part in layers],
        "trajectory": [seen[name] for name in ("iteration", "accuracy", "density")],
        "rounds": told,
        "delivered": delivered[-1] if delivered and result["reached"] else None,
    }


def choose(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose the runs to follow: the report's method and this study's, a benchmark's middle requirement, one seed."""
    records = [record for record in records if record["rounds"]]
    chosen = []
    for benchmark in dict.fromkeys(record["run"]["benchmark"] for record in records):
        for method in (REPORTS, METHOD):
            runs = [one for one in records if (one["run"]["benchmark"], one["run"]["method"]) == (benchmark, method)]
            required = sorted({record["run"]["requirement"] for record in runs})
            middle = [one for one in runs if one["run"]["requirement"] == required[len(required) // 2]]
            chosen += sorted(middle, key=lambda record: record["run"]["seed"])[:1]
    return chosen


def _run(row: Mapping[str, Any], measures: Iterable[str]) -> list:
    return [row["seed"], row["significant"], row["test_accuracy"], *_rounded(row[name] for name in measures)]


def _means(means: pd.DataFrame, counts: pd.DataFrame) -> dict[str, list]:
    """Return the means by method; one that never met the requirement, or removed nothing, is not on the front."""
    rows = {}
    for method, row in means.iterrows():
        met, runs = (int(counts.loc[method, name]) for name in ("sum", "size"))
        rows[str(method)] = [
            *_rounded(row),
            met,
            runs,
            bool(met == runs and (row["density"] < 1 or method == "unpruned")),
        ]
    return rows


def _rounded(values: Iterable[float]) -> list[float | None]:
    """Return values at four significant digits, None for what is no number."""
    return [None if pd.isna(value) else float(f"{value:.4g}") for value in values]


def _drawn(method: str) -> dict[str, Any]:
    drawn = look(method)
    shape, turned = SHAPES.get(drawn.marker, ("rectRounded", 0)) if isinstance(drawn.marker, str) else ("star", 22)
    return {"label": drawn.label, "color": drawn.color, "shape": shape, "turned": turned}
