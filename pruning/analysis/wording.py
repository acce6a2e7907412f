"""Numbers and tables in words, the same way everywhere.

>>> described([0.069, 0.071], "percent")
'7.0 % (6.9 % to 7.1 %)'
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from pruning.analysis.statistics import average


def formatted(value: float, kind: str) -> str:
    """Write a value with its unit: 6.9 %, 2.7×, +0.12 points."""
    if kind == "factor":
        return f"{value:.2f}×"
    return f"{100 * value:.1f} %" if kind == "percent" else f"{100 * value:+.2f} points"


def described(values: Iterable[float], kind: str) -> str:
    """Write the mean over seeds (smallest to largest)."""
    numbers = list(values)
    least, most = formatted(min(numbers), kind), formatted(max(numbers), kind)
    return f"{formatted(average(numbers, kind), kind)} ({least} to {most})"


def plus_minus(mean: float, sd: float, form: str, unit: str) -> str:
    """Write mean ± standard deviation; a dash for a mean that is no number, no deviation where that is none."""
    if math.isnan(mean):
        return "–"
    return f"{mean:{form}}" + ("" if math.isnan(sd) else f" ± {sd:{form}}") + unit


def percent(fraction: float) -> str:
    """Write a fraction as the report gives it: 38 %."""
    return f"{100 * fraction:g} %"


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table: our own, for that of pandas wants one more library (tabulate)."""
    lines = [[f" {cell} " if cell else " " for cell in cells] for cells in (heads, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"|{'|'.join(cells)}|" for cells in lines)


def folded(table: pd.DataFrame, most: int = 25) -> str:
    """Return a table as HTML, folded away where it has more than ``most`` rows."""
    body = table.to_html(border=0)
    if len(table) <= most:
        return body
    return f"<details><summary>All {len(table)} rows</summary>\n{body}\n</details>"
