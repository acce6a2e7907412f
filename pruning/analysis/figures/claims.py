"""The figure of a claim: every part with its seeds, their mean, and what it is compared with."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure

from pruning.analysis.claims import METHOD, Claim, measured_on
from pruning.analysis.figures.panels import log_axis, note, times
from pruning.analysis.figures.style import INK, look, styled
from pruning.analysis.statistics import average
from pruning.analysis.wording import formatted


@styled
def claim(judged: Claim, titles: Mapping[str, str]) -> Figure:
    """Draw a claim of the report, part by part: every seed, their mean, and what it is compared with."""
    rows, drawn = len(judged.parts), look(METHOD)
    means = [average(part.values, judged.kind) for part in judged.parts]
    seed, holds, fails = drawn.mark(4, alpha=0.7), drawn.mark(9), drawn.mark(9, filled=False, mew=1.4)
    figure = Figure(figsize=(8.4, 1.75 + 0.34 * rows), layout="constrained")
    figure.set_label(f"The report says: {judged.says}. Measured: {judged.measured}. Verdict: {judged.judged}.")
    axes = figure.subplots()
    if rows > 1:
        axes.axhspan(rows - 1.5, rows - 0.5, color="#f3f3f3", linewidth=0)
    for number, (part, mean) in enumerate(zip(judged.parts, means)):
        axes.plot([min(part.values), max(part.values)], [number, number], color=drawn.color, linewidth=1.6)
        axes.plot(part.values, [number] * len(part.values), **seed)
        axes.plot(mean, number, **(holds | {"mew": 1.4} if part.holds else fails))
    for (name, value), dashes in zip(judged.references, ((0, (4, 2)), "-", ":")):
        axes.axvline(value, color=INK, linewidth=1.3, linestyle=dashes, zorder=1.5, label=name)
    for label, kind in (("one seed", seed), ("mean: the part holds", holds), ("mean: it does not", fails)):
        axes.plot([], [], label=label, **kind)
    axes.set_yticks(range(rows), [part.name for part in judged.parts])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.tick_params(axis="y", length=0)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(rows), [formatted(mean, judged.kind) for mean in means])
    beside.tick_params(length=0)
    beside.spines["right"].set_visible(False)
    if judged.kind == "factor":
        values = [value for part in judged.parts for value in part.values]
        least, most = min(1.0, *values) / 1.15, max(1.0, *values) * 1.15
        log_axis(axes, "x", least, most, times, fine=5)
    else:
        unit = " %" if judged.kind == "percent" else ""
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}{unit}")
    axes.set_xlabel(textwrap.fill(judged.quantity + (" (points)" if judged.kind == "points" else ""), 84))
    figure.legend(loc="outside lower center", ncols=4 if len(judged.references) == 1 else 3)
    alone = {name: data for name, data in titles.items() if rows == 1 and name in judged.parts[0].name}
    note(figure, measured_on(alone or titles))
    return figure
