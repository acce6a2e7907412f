"""The figure of the comparison: training effort against significant synapses, and the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pruning.analysis.comparison import METHOD, front
from pruning.analysis.figures.panels import caption, hollow, legend, log_axis, percents, span, times
from pruning.analysis.figures.style import INK, benchmarks, look, ordered, percent, styled, title

FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 2))}


@styled
def frontier(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw the frontier: training effort against significant synapses, a panel for each benchmark and requirement.

    Left and below is better. A method's place is its mean, its cross reaches from the smallest to the
    largest seed; the line joins the methods that no other beats in both (Pareto front), unpruned
    training included. A method is hollow where some of its runs did not reach the requirement: they
    count with all synapses and have no effort, and the method is not part of the front. One that
    never reached it is named in the panel.
    """
    table = table.assign(density=table["density"].where(table["reached"], 1.0))
    methods, names = ordered(table["method"]), benchmarks(table)
    parts = {name: table[table["benchmark"] == name] for name in names}
    required = {name: sorted(part["requirement"].unique()) for name, part in parts.items()}
    rows, columns = max(map(len, required.values())), len(names)
    ncols = max(columns, 3)
    size = (max(3.4 * columns + 0.5, 8), max(2.6 * rows, 4.4) + 0.22 * -(-len(methods) // ncols) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    efforts: list[list[float]] = [[] for _ in range(rows)]
    for column, (name, part) in zip(grid.T, parts.items()):
        first = rows - len(required[name])  # the highest requirements stand side by side
        for axes in column[:first]:
            axes.set_axis_off()
        for row, requirement in enumerate(required[name], start=first):
            runs = part[part["requirement"] == requirement]
            _panel(column[row], runs)
            head = f"{title(name, titles)}\n" if row == first else ""
            column[row].set_title(f"{head}at {percent(requirement)}", fontsize=10)
            efforts[row] += runs["effort"].dropna().tolist()
        least, most = 0.75 * part["density"].min(), min(1.3 * part["density"].max(), 1.3)
        log_axis(column[-1], "x", least, most, percents, fine=10, coarse=100)
        column[-1].set_xlabel("significant synapses (of all, log scale)")
    for line, values in zip(grid, efforts):
        least, most = 0.8 * min(1.0, *values), 1.25 * max(2.0, *values)
        line[0].set_ylabel("training effort\n(ratio, log scale)")
        log_axis(line[0], "y", least, most, times)
    more = [] if table["reached"].all() else [hollow("hollow: not all runs reached it")]
    legend(figure, methods, Line2D([], [], label="Pareto front of the means", **FRONT), *more, ncols=ncols)
    caption(figure, table, "points: ", "crosses")
    return figure


def _panel(axes, runs: pd.DataFrame) -> None:
    means, best = runs.groupby("method")[["density", "effort"]].mean(), front(runs)
    for method in ordered(means.index[means["effort"].notna()]):
        own, drawn = runs[runs["method"] == method], look(method)
        x, y = means.loc[method]
        cross: dict[str, Any] = {"color": drawn.color, "linewidth": 1, "alpha": 0.6, "zorder": 2}
        axes.errorbar(x, y, span(own["effort"]), span(own["density"]), **cross)
        axes.plot(x, y, **drawn.mark(9, own["reached"].all(), mew=1.1, zorder=5 if method == METHOD else 4))
    if len(best):
        x, y = best["density"].to_numpy(), best["effort"].to_numpy()
        axes.step([x[0], *x, 1.0], [means["effort"].max(), *y, y[-1]], where="post", zorder=3, **FRONT)
    never = [look(method).label for method in ordered(means.index[means["effort"].isna()])]
    if never:
        text = "never reached: " + ", ".join(never)
        axes.text(0.98, 0.97, textwrap.fill(text, 40), transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.grid(axis="x", visible=True)
