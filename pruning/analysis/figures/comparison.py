"""The figures of the comparison: training effort against significant synapses, and the Pareto front.

What is on the front and what is this study's own has its colour and its name beside it; the others are grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from pruning.analysis.claims import METHOD as REPORTS
from pruning.analysis.comparison import BEST, METHOD, PATIENT, front, overall, pareto
from pruning.analysis.figures.panels import caption, handle, hollow, log_axis, note, percents, span, times
from pruning.analysis.figures.style import GREY, INK, SOFT, benchmarks, look, ordered, percent, styled, title

FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 2))}
NAMED = (REPORTS, METHOD, PATIENT)
SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.8), (-0.7, 0.8), (0.7, -0.8), (-0.7, -0.8), (-0.7, 1.9), (0.7, 1.9)]
BELOW = [(-0.7, -0.8), (0.7, -0.8), *SIDES]  # of the front, where nothing is


@styled
def overview(table: pd.DataFrame) -> Figure:
    """Draw every method over all settings: training effort against significant synapses, means, and the Pareto front.

    A setting is a benchmark with a requirement; a method counts where it was measured in all of them, a run that did
    not reach its requirement with all synapses. Left and below is better.
    """
    import seaborn  # takes a second, with scipy

    rows = overall(table)
    rows = rows[rows["method"] != BEST].dropna(subset=["effort"])
    unpruned = pd.DataFrame({"method": ["unpruned"], "density": [1.0], "effort": [1.0]})
    rows = pd.concat([rows[["method", "density", "effort"]], unpruned], ignore_index=True)
    best = pareto(rows)
    rows["named"] = rows["method"].isin({*best["method"], *NAMED})
    figure = Figure(figsize=(8.3, 4.9), layout="constrained")
    axes = figure.subplots()
    seaborn.scatterplot(rows[~rows["named"]], x="density", y="effort", color=GREY, s=45, ax=axes, legend=False)
    for row in rows[rows["named"]].itertuples():
        axes.plot(row.density, row.effort, **look(row.method).mark(13 if row.method == METHOD else 11, zorder=5))
    x, y = best["density"].to_numpy(), best["effort"].to_numpy()
    axes.step([x[0], *x], [rows["effort"].max(), *y], where="post", zorder=1, **FRONT)
    log_axis(axes, "x", 0.75 * rows["density"].min(), 1.5, percents, coarse=100)
    log_axis(axes, "y", 0.85, 1.3 * rows["effort"].max(), times)
    axes.set(xlabel="significant synapses (of all, log scale)", ylabel="training effort (ratio, log scale)")
    axes.grid(axis="x", visible=True)
    settings, seeds = len(table[["benchmark", "requirement"]].drop_duplicates()), table["seed"].nunique()
    note(figure, f"means over {settings} settings and {seeds} seeds; dashed: Pareto front")
    figure.draw_without_rendering()
    points = rows.sort_values("named", ascending=False)
    label_points(axes, points, {name: look(name).label.split(" (")[0] for name in points["method"]})
    return figure


def label_points(axes: Axes, points: pd.DataFrame, labels: Mapping[str, str]) -> None:
    """Name points (``method``, ``density``, ``effort``, ``named``), each where it covers none and no name before it."""
    places = axes.transData.transform(points[["density", "effort"]].to_numpy())
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in places]
    frame = axes.get_window_extent()
    for row in points.itertuples():
        drawn = {"color": look(row.method).color, "fontweight": "bold"} if row.named else {"color": SOFT}
        found: list = []
        for right, up in BELOW if row.named else SIDES:
            text = axes.annotate(
                labels[row.method],
                (row.density, row.effort),
                (9 * right, 9 * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                va="bottom" if up > 0 else "top" if up < 0 else "center",
                fontsize=9.5 if row.named else 8,
                zorder=6,
                path_effects=[withStroke(linewidth=3, foreground="white")],  # readable across a line
                **drawn,
            )
            box = text.get_window_extent()
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            found.append((sum(box.overlaps(other) for other in taken) + outside, len(found), text, box))
            if not found[-1][0]:
                break
        chosen = min(found, key=lambda each: each[:2])
        taken.append(chosen[3])
        for each in found:
            if each is not chosen:
                each[2].remove()


@styled
def frontier(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw the frontier: training effort against significant synapses, a panel for each benchmark and requirement.

    Left and below is better. A method's place is its mean, its cross reaches from the smallest to the
    largest seed; the line joins the methods that no other beats in both (Pareto front), unpruned
    training included, and others are grey. A method is hollow where some of its runs did not reach the
    requirement: they count with all synapses and have no effort, and the method is not part of the
    front. One that never reached it is named in the panel.
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
    coloured: set[str] = set()
    for column, (name, part) in zip(grid.T, parts.items()):
        first = rows - len(required[name])  # the highest requirements stand side by side
        for axes in column[:first]:
            axes.set_axis_off()
        for row, requirement in enumerate(required[name], start=first):
            runs = part[part["requirement"] == requirement]
            coloured |= _panel(column[row], runs)
            head = f"{title(name, titles)}\n" if row == first else ""
            column[row].set_title(f"{head}at {percent(requirement)}", fontsize=10)
            efforts[row] += runs["effort"].dropna().tolist()
        least, most = 0.75 * part["density"].min(), min(1.3 * part["density"].max(), 1.3)
        log_axis(column[-1], "x", least, most, percents, fine=10, coarse=100)
        column[-1].set_xlabel("significant synapses (of all, log scale)")
    for line, values in zip(grid, efforts):
        least, most = 0.8 * min([1.0, *values]), 1.25 * max([2.0, *values])
        line[0].set_ylabel("training effort\n(ratio, log scale)")
        log_axis(line[0], "y", least, most, times)
    more = [] if table["reached"].all() else [hollow("hollow: not all runs reached it")]
    entries = [handle(method, grey=method not in coloured) for method in methods]
    dashed = Line2D([], [], label="Pareto front of the means", **FRONT)
    figure.legend(handles=[*entries, dashed, *more], loc="outside lower center", ncols=ncols)
    caption(figure, table, "points: ", "crosses")
    return figure


def _panel(axes, runs: pd.DataFrame) -> set[str]:
    """Draw one setting; returns the methods that have their colour in it."""
    means, best = runs.groupby("method")[["density", "effort"]].mean(), front(runs)
    for method in ordered(means.index[means["effort"].notna()]):
        own, named = runs[runs["method"] == method], method in {*best.index, *NAMED}
        drawn = look(method) if named else replace(look(method), color=GREY)
        x, y = means.loc[method]
        cross: dict[str, Any] = {"color": drawn.color, "linewidth": 1, "alpha": 0.6, "zorder": 2 if named else 1}
        axes.errorbar(x, y, span(own["effort"]), span(own["density"]), **cross)
        place = 3 + named + (method == METHOD)
        axes.plot(x, y, **drawn.mark(9 if named else 6, own["reached"].all(), mew=1.1, zorder=place))
    if len(best):
        x, y = best["density"].to_numpy(), best["effort"].to_numpy()
        axes.step([x[0], *x, 1.0], [means["effort"].max(), *y, y[-1]], where="post", zorder=3, **FRONT)
    never = [look(method).label for method in ordered(means.index[means["effort"].isna()])]
    if never:
        text = "never reached: " + ", ".join(never)
        axes.text(0.98, 0.97, textwrap.fill(text, 40), transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.grid(axis="x", visible=True)
    return {*best.index, *NAMED}
