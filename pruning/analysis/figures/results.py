"""The report's figures 4 and 5: synapses left, and training effort, per benchmark, requirement and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pruning.analysis.claims import REPORTED
from pruning.analysis.figures.panels import (
    caption,
    density_axis,
    groups,
    handle,
    hollow,
    label_first,
    legend,
    log_axis,
    missed,
    offset,
    panels,
    points,
    settle,
    span,
    times,
)  # fmt: skip
from pruning.analysis.figures.style import INK, REPORTED_LINE, SOFT, Look, look, ordered, percent, styled

MEASURES = {
    "effort": "effort: iterations over\nthose without pruning\n(log scale)",
    "cost": "cost: images passed over\nthose without pruning\n(log scale)",
}
UPRIGHT: dict[str, Any] = {"ha": "center", "fontsize": 8, "rotation": 90, "fontweight": "bold"}


@styled
def significant_synapses(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw the report's figure 4: significant synapses per benchmark, requirement and method.

    ``table`` as ``tables.frame`` makes it. Every run is a small point; one that did not reach
    its requirement keeps all synapses, is drawn hollow and counted in the strip above 100 %.
    """
    pruned = table[table["method"] != "unpruned"]
    methods = ordered(pruned["method"])
    figure, parts = panels(pruned, titles, heights=(3.9,))
    lowest, missing = pruned["density"].min(), not pruned["reached"].all()
    shown = []
    for part, (axes,) in parts:
        benchmark, requirements = part["benchmark"].iloc[0], sorted(part["requirement"].unique())
        if missing:
            axes.axhspan(1.15, 2.6, color="#f0f0f0", linewidth=0)
        axes.axhline(1, color=look("unpruned").color, linewidth=1.6)
        for (requirement, method), runs in part.groupby(["requirement", "method"], sort=True):
            place = requirements.index(requirement) + offset(method, methods)
            points(axes, place, runs["density"], runs["reached"], look(method))
            if count := missed(runs):
                axes.text(place, 1.73, count, va="center", **UPRIGHT)
        for number, requirement in enumerate(requirements):
            if (value := REPORTED.get((benchmark, requirement))) is not None:
                axes.plot([number - 0.46, number + 0.46], [value, value], **REPORTED_LINE)
                shown.append(f"the report: about {percent(value)}")
        groups(axes, requirements)
        density_axis(axes, lowest, top=2.6 if missing else 1.25)
        label_first(axes, "significant synapses\n(of all, log scale)")
    more = [Line2D([], [], color=look("unpruned").color, label="unpruned: 100 %")]
    more += [Line2D([], [], label=text, **REPORTED_LINE) for text in shown]
    if missing:
        more.append(hollow("hollow, n/m: n of m runs did not\nreach the requirement"))
    legend(figure, methods, *more)
    caption(figure, pruned, "small points: runs; large points: ")
    return figure


@styled
def training_effort(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw the report's figure 5: iterations up to the delivered model, and their ratio to training without pruning.

    Below it is the ratio of all images, evaluated ones included, where the records of all runs count them.
    A run that did not reach its requirement counts with the iterations it spent, and its bar is
    hollow and marked; it has no ratio.
    """
    methods, counted = ordered(table["method"]), bool(table.loc[table["reached"], "cost"].notna().all())
    figure, parts = panels(table, titles, heights=(3, 2.1, 2.1) if counted else (3, 2.1))
    width = 0.84 / len(methods)
    for part, (above, *below) in parts:
        requirements = sorted(part["requirement"].unique())
        for (requirement, method), runs in part.groupby(["requirement", "method"], sort=True):
            place = requirements.index(requirement) + offset(method, methods)
            _bar(above, place, width, runs, look(method))
            for axes, measure in zip(below, MEASURES):
                ratios = runs.loc[runs["reached"], measure].dropna()
                if method != "unpruned" and len(ratios):
                    points(axes, place, ratios, ratios.notna(), look(method))
        for axes in (above, *below):
            groups(axes, requirements)
        above.set(xlabel="", ylim=(0, 1.15 * table["iterations"].max()))
        for axes, (measure, says) in zip(below, MEASURES.items()):
            axes.axhline(1, color=look("unpruned").color, linewidth=1.6)
            log_axis(axes, "y", 0.85, 1.2 * max(2, table[measure].max()), times)  # 2 where no run has one
            label_first(axes, says)
            if axes is not below[-1]:
                axes.set(xlabel="")
        above.yaxis.set_major_formatter("{x:,.0f}")
        label_first(above, "training effort (iterations\nto the delivered model)")
    handles: list[Any] = [(handle(method, bar=True), handle(method)) for method in methods]
    names = [look(method).label for method in methods]
    if not table["reached"].all():
        handles.append(Patch(facecolor="white", edgecolor=SOFT, linestyle="--"))
        names.append("hollow, n/m: n of m runs did not reach\nthe requirement (iterations spent)")
    side_by_side = {tuple: HandlerTuple(ndivide=None)}
    figure.legend(handles, names, loc="outside lower center", ncols=3, handlelength=3.6, handler_map=side_by_side)
    caption(figure, table, "bars and large points: ")
    settle(figure)
    return figure


def _bar(axes, place: float, width: float, runs: pd.DataFrame, drawn: Look) -> None:
    values, count = runs["iterations"], missed(runs)
    colors: dict[str, Any] = {"facecolor": drawn.color, "edgecolor": "white", "linewidth": 0.6}
    if count:
        colors = {"facecolor": "white", "edgecolor": drawn.color, "linewidth": 1.2, "linestyle": "--"}
    axes.bar(place, values.mean(), width, hatch=drawn.hatch, **colors)
    axes.errorbar(place, values.mean(), span(values), color=INK, capsize=2.5, linewidth=1.2)
    where: dict[str, Any] = {
        "xy": (place, values.max()),
        "xytext": (0, 4),
        "textcoords": "offset points",
        "va": "bottom",
    }
    axes.annotate(count, **where, **UPRIGHT)
