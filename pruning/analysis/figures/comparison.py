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
from pruning.analysis.figures.panels import caption, handle, hollow, log_axis, note, percents, settle, span, times
from pruning.analysis.figures.style import GREY, INK, SOFT, benchmarks, look, ordered, percent, styled, title

FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 2))}
NAMED = (REPORTS, METHOD, PATIENT)
SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.8), (-0.7, 0.8), (0.7, -0.8), (-0.7, -0.8)]
FAR = [(right, up) for up in (1.9, -1.9, 3.0, -3.0) for right in (-0.7, 0.7, -2.0, 2.0)]  # with a line to the point
# By which methods are compared with the synapses they leave.
MEASURES = {"effort": "effort: iterations of training", "cost": "cost: all images, evaluated ones included"}
BELOW = [(-0.7, -0.8), (0.7, -0.8), *SIDES]  # of the front, where nothing is


@styled
def overview(table: pd.DataFrame) -> Figure:
    """Draw every method over all settings: training effort and training cost against significant synapses, two fronts.

    Effort counts iterations; cost counts all images, trained on or evaluated. A setting is a benchmark with a
    requirement. A method is drawn at its mean if it was measured in all of them; a run that missed its requirement
    counts with all synapses. Lower left is better; a dashed line is the Pareto front. Where the images of a method were
    not counted, effort stands alone.
    """
    rows = overall(table)
    rows = rows[rows["method"] != BEST].dropna(subset=["effort"])
    unpruned = pd.DataFrame({"method": ["unpruned"], "density": [1.0], "effort": [1.0], "cost": [1.0]})
    rows = pd.concat([rows[["method", "density", *MEASURES]], unpruned], ignore_index=True)
    counted = [measure for measure in MEASURES if measure == "effort" or rows[measure].notna().all()]
    figure = Figure(figsize=(11.4, 5.4) if len(counted) > 1 else (8.3, 4.9), layout="constrained")
    grid = figure.subplots(1, len(counted), squeeze=False, sharey=True)[0]
    for axes, measure in zip(grid, counted):
        _overview(axes, rows.dropna(subset=[measure]), measure)
        log_axis(axes, "x", 0.45 * rows["density"].min(), 1.3, percents, coarse=200)
        log_axis(axes, "y", 0.85, 1.3 * rows[counted].max().max(), times)
        axes.set(xlabel="significant synapses (of all, log scale)")
        axes.set_ylabel(f"training {measure} (ratio, log scale)")
        axes.set_title(MEASURES[measure] if len(counted) > 1 else "", fontsize=10)
        axes.grid(axis="x", visible=True)
        axes.yaxis.set_tick_params(labelleft=True)
    settings, seeds = len(table[["benchmark", "requirement"]].drop_duplicates()), table["seed"].nunique()
    note(figure, f"means over {settings} settings and {seeds} seeds; dashed: Pareto front")
    settle(figure)
    for axes, measure in zip(grid, counted):
        points = rows.dropna(subset=[measure])
        points = points.assign(named=_named(points, measure)).sort_values(["named", "density"], ascending=[False, True])
        label_points(axes, points, measure, {name: look(name).label.split(" (")[0] for name in points["method"]})
    return figure


def _named(rows: pd.DataFrame, measure: str) -> pd.Series:
    return rows["method"].isin({*pareto(rows, measure)["method"], *NAMED})


def _overview(axes: Axes, rows: pd.DataFrame, measure: str) -> None:
    """Draw points and front of one measure."""
    import seaborn  # takes a second, with scipy

    named, best = _named(rows, measure), pareto(rows, measure)
    seaborn.scatterplot(rows[~named], x="density", y=measure, color=GREY, s=45, ax=axes, legend=False)
    for row in rows[named].to_dict("records"):
        mark = look(row["method"]).mark(13 if row["method"] == METHOD else 11, zorder=5)
        axes.plot(row["density"], row[measure], **mark)
    x, y = best["density"].to_numpy(), best[measure].to_numpy()
    axes.step([x[0], *x], [rows[measure].max(), *y], where="post", zorder=1, **FRONT)


def label_points(axes: Axes, points: pd.DataFrame, measure: str, labels: Mapping[str, str]) -> None:
    """Name points (``method``, ``density``, the ``measure``, ``named``), each where it covers no other and no name."""
    places = axes.transData.transform(points[["density", measure]].to_numpy())
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in places]
    frame = axes.get_window_extent()
    for number, row in enumerate(points.to_dict("records")):
        own, named = taken[number], row["named"]
        drawn = {"color": look(row["method"]).color, "fontweight": "bold"} if named else {"color": SOFT}
        near, found = BELOW if named else SIDES, list[tuple]()
        for right, up in near + FAR:
            text = axes.annotate(
                labels[row["method"]],
                (row["density"], row[measure]),
                (9 * right, 9 * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                va="bottom" if up > 0 else "top" if up < 0 else "center",
                fontsize=9.5 if named else 8,
                zorder=6,
                in_layout=False,
                path_effects=[withStroke(linewidth=3, foreground="white")],  # readable across a line
                **drawn,
            )
            box = text.get_window_extent()
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            found.append(
                (sum(box.overlaps(other) for other in taken if other is not own) + 3 * outside, len(found), text, box)
            )
            if not found[-1][0]:
                break
        chosen = min(found, key=lambda each: each[:2])
        taken.append(chosen[3])
        if chosen[1] >= len(near):
            line = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            name = chosen[2]
            axes.annotate(
                "", name.xy, name.get_position(), textcoords="offset points", arrowprops=line, in_layout=False
            )
        for each in found:
            if each is not chosen:
                each[2].remove()


@styled
def frontier(table: pd.DataFrame, titles: Mapping[str, str], measure: str = "effort") -> Figure:
    """Draw the frontier: training effort against significant synapses, a panel for each benchmark and requirement.

    With ``measure="cost"`` it is the training cost, every image counted.

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
            coloured |= _panel(column[row], runs, measure)
            head = f"{title(name, titles)}\n" if row == first else ""
            column[row].set_title(f"{head}at {percent(requirement)}", fontsize=10)
            efforts[row] += runs[measure].dropna().tolist()
        least, most = 0.75 * part["density"].min(), min(1.3 * part["density"].max(), 1.3)
        log_axis(column[-1], "x", least, most, percents, fine=10, coarse=100)
        column[-1].set_xlabel("significant synapses (of all, log scale)")
    for line, values in zip(grid, efforts):
        least, most = 0.8 * min([1.0, *values]), 1.25 * max([2.0, *values])
        line[0].set_ylabel(f"training {measure}\n(ratio, log scale)")
        log_axis(line[0], "y", least, most, times)
    more = [] if table["reached"].all() else [hollow("hollow: not all runs reached it")]
    entries = [handle(method, grey=method not in coloured) for method in methods]
    dashed = Line2D([], [], label="Pareto front of the means", **FRONT)
    figure.legend(handles=[*entries, dashed, *more], loc="outside lower center", ncols=ncols)
    caption(figure, table, "points: ", "crosses")
    return figure


def _panel(axes, runs: pd.DataFrame, measure: str) -> set[str]:
    """Draw one setting; returns the methods that have their colour in it."""
    means, best = runs.groupby("method")[["density", measure]].mean(), front(runs, measure)
    for method in ordered(means.index[means[measure].notna()]):
        own, named = runs[runs["method"] == method], method in {*best.index, *NAMED}
        drawn = look(method) if named else replace(look(method), color=GREY)
        x, y = means.loc[method]
        cross: dict[str, Any] = {"color": drawn.color, "linewidth": 1, "alpha": 0.6, "zorder": 2 if named else 1}
        axes.errorbar(x, y, span(own[measure]), span(own["density"]), **cross)
        place = 3 + named + (method == METHOD)
        axes.plot(x, y, **drawn.mark(9 if named else 6, own["reached"].all(), mew=1.1, zorder=place))
    if len(best):
        x, y = best["density"].to_numpy(), best[measure].to_numpy()
        axes.step([x[0], *x, 1.0], [means[measure].max(), *y, y[-1]], where="post", zorder=3, **FRONT)
    absent = means.index[means[measure].isna()]
    never = [method for method in ordered(absent) if not runs.loc[runs["method"] == method, "reached"].any()]
    uncounted = [method for method in ordered(absent) if method not in never]
    said = {"never reached: ": never, f"{measure} not counted: ": uncounted}
    text = "; ".join(start + ", ".join(look(name).label for name in names) for start, names in said.items() if names)
    if text:
        axes.text(0.98, 0.97, textwrap.fill(text, 40), transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.grid(axis="x", visible=True)
    return {*best.index, *NAMED}
