"""The tables of README.md, docs/results.md and docs/fashion.md, made from the records and put between their marks.

>>> print(between("<!-- a -->old<!-- /a -->", "a", "new"))
<!-- a -->
new
<!-- /a -->
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import pandas as pd

from pruning.analysis import claims, comparison, targets
from pruning.analysis.tables import KEYS, compression, frame, speedup, summary, titles, trained_on
from pruning.analysis.wording import markdown_table, percent, plus_minus
from pruning.files import DamagedFile

PAGES = ("README.md", "docs/results.md")
FASHION = "docs/fashion.md"  # from the records of the study `fashion`
SHORT = ("random", claims.METHOD, comparison.METHOD, comparison.PATIENT)


def readme(
    text: str,
    records: list[dict],
    methods: Iterable[str],
    smallest: Iterable[dict] = (),
    others: Iterable[dict] = (),
    certified: Iterable[dict] = (),
) -> str:
    """Return ``text`` with what stands between each pair of marks, such as ``<!-- claims -->``, made from records.

    ``smallest`` are the records of the study `smallest`, ``others`` those of `methods`, ``certified`` those of
    `certified`, where there are any. The marks are ``found``, ``short``, ``table``, ``saved``, ``claims``, ``targets``,
    ``methods``, ``settings``, ``cost`` and ``certified``; others stay.
    ``DamagedFile`` names a mark without its other one.
    """
    table, names, smallest, others, tested = (
        frame(records), titles(records), list(smallest), list(others), frame(certified)
    )  # fmt: skip
    rivals = comparison.rivals(comparison.joined(table, frame(others)))
    shown = set(rivals["method"])
    told = [record for record in [*records, *others] if record["run"]["method"] in shown]
    parts = {
        "found": lambda: found(rivals),
        "short": lambda: methods_table(ends(table), names, SHORT),
        "table": lambda: methods_table(table, names, methods),
        "saved": lambda: compression_table(table, names),
        "claims": lambda: claims.markdown(table, names),
        "targets": lambda: targets.markdown(rivals, records, frame(smallest) if smallest else None),
        "methods": lambda: f"{comparison.markdown(rivals)}\n\n{trained_on(told)}",
        "settings": lambda: settings_table(rivals),
        "cost": lambda: cost_table(table),
        "certified": lambda: "No run is recorded." if tested.empty else certified_table(tested, table),
    }
    for mark in dict.fromkeys(re.findall(r"<!-- /?(\w+) -->", text)):
        if mark in parts:
            text = between(text, mark, parts[mark]())
    return text


def found(table: pd.DataFrame) -> str:
    """Say in two sentences what the study found, from the runs of all methods."""
    rows = comparison.overall(table).set_index("method")

    def told(method: str) -> tuple[str, str]:
        row = rows.loc[method]
        return f"{100 * row['density']:.1f} %", f"{row['cost']:.1f}"

    (few, much), (some, twice), (report, its) = map(told, (comparison.PATIENT, comparison.METHOD, claims.METHOD))
    return (
        f"LeNets on MNIST and CIFAR-10 keep the accuracy asked of them with {few} of their synapses, on average, at "
        f"{much} times the cost of training them unpruned. `adaptive` leaves {some} at {twice} times that "
        f"cost, the report's own method {report} at {its} times."
    )


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs at each benchmark's lowest and highest requirement."""
    asked = table.groupby("benchmark")["requirement"]
    return table[(table["requirement"] == asked.transform("min")) | (table["requirement"] == asked.transform("max"))]


def between(text: str, mark: str, content: str) -> str:
    """Return ``text`` with ``content`` as all that stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise DamagedFile(f"the page must hold the marks {start} and {end} once each")
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"


def methods_table(table: pd.DataFrame, titles: Mapping[str, str], methods: Iterable[str]) -> str:
    """Write each pruning method's significant synapses in percent, effort and cost, per benchmark and requirement."""
    rows = summary(table).set_index(KEYS[:3])
    methods = [method for method in methods if method != "unpruned" and method in set(table["method"])]

    def cell(place: tuple) -> str:
        if place not in rows.index:
            return ""
        row = rows.loc[place]
        missed = f", {row.runs - row.reached:.0f} of {row.runs:.0f} not reached" if row.reached < row.runs else ""
        effort = f"{row.effort:.1f}×" if row.reached else "–"
        if row.reached and not pd.isna(row.cost):
            effort += f", {row.cost:.1f}×"
        return f"{plus_minus(100 * row.density, 100 * row.density_sd, '.1f', ' %')} ({effort}{missed})"

    settings = sorted({key[:2] for key in rows.index})
    return markdown_table(
        ["benchmark", "requirement", *methods],
        [[*setting(place, titles), *(cell((*place, method)) for method in methods)] for place in settings],
    )


def settings_table(table: pd.DataFrame) -> str:
    """Write every method in every setting, folded: a setting is a benchmark with a requirement."""
    rows = comparison.worded(comparison.compared(table))
    body = markdown_table(list(rows.columns), rows.to_numpy().tolist())
    return f"<details><summary>Every method in every setting: {len(rows)} rows</summary>\n\n{body}\n\n</details>"


def cost_table(table: pd.DataFrame) -> str:
    """Write what each method cost, every image counted: means over settings of the means over seeds."""
    runs = table[table["method"] != "unpruned"]
    means = runs.groupby(KEYS[:3])[["density", "effort", "cost", "macs_cost"]].mean().groupby("method").mean()
    rows = [
        [f"`{method}`", f"{100 * row['density']:.2f} %", f"{row['effort']:.2f}×", f"{row['cost']:.2f}×",
         f"{row['cost'] / row['effort']:.2f}", f"{row['macs_cost']:.2f}×"]
        for method, row in means.sort_values("density").iterrows()
    ]  # fmt: skip
    return markdown_table(["method", "significant", "effort", "cost", "cost ÷ effort", "multiply-accumulates"], rows)


def certified_table(table: pd.DataFrame, naive: pd.DataFrame) -> str:
    """Write what a requirement with confidence gives, beside the naive rule: by benchmark and method, and by method.

    ``naive`` are runs of the same settings that deliver what meets the requirement on validation. The ratio compares
    the synapses of runs with the same seed, where both delivered something (geometric mean).
    """
    table, naive = (part.assign(met=part["reached"] & (part["test_accuracy"] >= part["requirement"]))
                    for part in (table, naive))  # fmt: skip
    pairs = table[table["reached"]].merge(naive[naive["reached"]], on=KEYS, suffixes=("", "_naive"))

    def row(benchmark: str, method: str, runs: pd.DataFrame) -> list[str]:
        others, same = naive.merge(runs[KEYS]), pairs.merge(runs[KEYS])
        ratios = (same["density"] / same["density_naive"]).map(math.log)
        shown = f"{math.exp(ratios.mean()):.2f}×" if len(ratios) else "–"
        certified, otherwise = (f"{part['met'].sum()} of {part['reached'].sum()}" for part in (runs, others))
        return [benchmark, f"`{method}`", f"{runs['reached'].sum()} of {len(runs)}", certified, otherwise, shown]

    rows = [row(benchmark, method, runs) for (benchmark, method), runs in table.groupby(["benchmark", "method"])]
    rows += [row("all", method, runs) for method, runs in table.groupby("method")]
    heads = ["benchmark", "method", "certified", "of these met on test", "naive rule: met on test", "synapses, ratio"]
    return markdown_table(heads, rows)


def compression_table(table: pd.DataFrame, titles: Mapping[str, str], method: str = claims.METHOD) -> str:
    """Write what one method's networks are worth: mean and standard deviation over seeds.

    The compression ratio is all synapses over the significant ones, the theoretical speed-up all
    multiply-accumulates of an image over those of significant synapses.
    """
    own = table[table["method"] == method]
    columns = {
        "compression ratio": (compression(own), ".1f", "×"), "theoretical speed-up": (speedup(own), ".2f", "×"),
        "test accuracy": (100 * own["test_accuracy"], ".2f", " %"),
    }  # fmt: skip
    rows = []
    for place, runs in own.groupby(KEYS[:2]):
        cells = ((values[runs.index], form, unit) for values, form, unit in columns.values())
        rows.append([*setting(place, titles), *(plus_minus(part.mean(), part.std(), *rest) for part, *rest in cells)])
    return markdown_table(["benchmark", "requirement", *columns], rows)


def setting(place: tuple[str, float], titles: Mapping[str, str]) -> tuple[str, str]:
    """Write a benchmark with its data, and a requirement, for a table's first two columns."""
    benchmark, requirement = place
    return f"{benchmark}, {titles[benchmark]}", percent(requirement)
