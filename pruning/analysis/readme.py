"""The README's tables, made from the records and put between their marks.

>>> print(between("<!-- a -->old<!-- /a -->", "a", "new"))
<!-- a -->
new
<!-- /a -->
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from pruning.analysis import claims, comparison, targets
from pruning.analysis.tables import KEYS, compression, frame, speedup, summary, titles
from pruning.analysis.wording import markdown_table, percent, plus_minus
from pruning.files import DamagedFile


def readme(
    text: str, records: list[dict], methods: Iterable[str], smallest: Iterable[dict] = (), others: Iterable[dict] = ()
) -> str:
    """Return ``text`` with what stands between each pair of marks, such as ``<!-- claims -->``, made from records.

    ``smallest`` are the records of the study `smallest`, ``others`` those of `methods`, where there are any. The marks
    are ``table``, ``saved``, ``claims``, ``targets`` and ``methods``. ``DamagedFile`` names a pair that is missing.
    """
    table, names, smallest = frame(records), titles(records), list(smallest)
    rivals = comparison.rivals(comparison.joined(table, frame(others)))
    parts = {
        "table": methods_table(table, names, methods), "saved": compression_table(table, names),
        "claims": claims.markdown(table, names),
        "targets": targets.markdown(table, records, frame(smallest) if smallest else None),
        "methods": comparison.markdown(rivals),
    }  # fmt: skip
    for mark, content in parts.items():
        text = between(text, mark, content)
    return text


def between(text: str, mark: str, content: str) -> str:
    """Return ``text`` with ``content`` as all that stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise DamagedFile(f"the README must hold the marks {start} and {end} once each")
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"


def methods_table(table: pd.DataFrame, titles: Mapping[str, str], methods: Iterable[str]) -> str:
    """Write each pruning method's significant synapses in percent and its effort, per benchmark and requirement."""
    rows = summary(table).set_index(KEYS[:3])
    methods = [method for method in methods if method != "unpruned" and method in set(table["method"])]

    def cell(place: tuple) -> str:
        if place not in rows.index:
            return ""
        row = rows.loc[place]
        missed = f", {row.runs - row.reached:.0f} of {row.runs:.0f} not reached" if row.reached < row.runs else ""
        effort = f"{row.effort:.1f}×" if row.reached else "–"
        return f"{plus_minus(100 * row.density, 100 * row.density_sd, '.1f', ' %')} ({effort}{missed})"

    settings = sorted({key[:2] for key in rows.index})
    return markdown_table(
        ["benchmark", "requirement", *methods],
        [[*setting(place, titles), *(cell((*place, method)) for method in methods)] for place in settings],
    )


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
