"""Figures of one run, from its record.

    figure = learning_curve(record)
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from pruning.analysis.figures.panels import density_axis, percents
from pruning.analysis.figures.style import FAINT, INK, dashes, look, percent, shades, styled, title

GREY = "#9a9a9a"


def run_title(record: dict) -> str:
    """Name a run: benchmark, method, requirement and seed."""
    run = record["run"]
    text = f"{title(run['benchmark'], {run['benchmark']: record['data']})}: {look(run['method']).label}"
    return f"{text}, requirement {percent(run['requirement'])}, seed {run['seed']}"


@styled
def learning_curve(record: dict) -> Figure:
    """Draw validation accuracy over iterations with the rounds of pruning marked, and the density below it."""
    run, result, seen = record["run"], record["result"], record["trajectory"]
    rounds = [step["iteration"] for step in record["rounds"]]
    requirement, start, end = run["requirement"], result["iterations_unpruned"], result["iterations"]
    # A method that prunes before the requirement is met leaves the training without pruning before its end.
    apart = start is not None and any(left < 1 for at, left in zip(seen["iteration"], seen["density"]) if at <= start)
    color = look(run["method"]).color
    first = {"color": INK, "marker": "o", "linestyle": "", "markerfacecolor": "white", "markersize": 9, "zorder": 4}
    delivered = {"color": INK, "marker": "*", "linestyle": "", "markersize": 13, "zorder": 5}
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        for iteration in rounds:
            axes.axvline(iteration, color=FAINT, linewidth=1, zorder=0.5)
    above.plot(seen["iteration"], seen["accuracy"], color=color, marker=".", markersize=4, label="validation accuracy")
    above.axhline(requirement, color=INK, linestyle="--", linewidth=1.2, label=f"requirement: {percent(requirement)}")
    if apart:
        for axes in (above, below):
            axes.axvline(start, color=INK, linestyle=":", linewidth=1.4, zorder=2)
        above.plot([], [], color=INK, linestyle=":", linewidth=1.4,
                   label=f"without pruning, first met here (iteration {start:,})")
    elif start is not None:
        reached = float(np.interp(start, seen["iteration"], seen["accuracy"]))
        above.plot(start, reached, label=f"requirement first met (iteration {start:,})", **first)
    if result["reached"] and start is not None:
        above.plot(end, result["validation_accuracy"], **delivered,
                   label=f"delivered (iteration {end:,}, density {percent(result['density'])})")
    if rounds:
        above.plot([], [], "|", color="#b0b0b0", markersize=12, markeredgewidth=1.5,
                   label=f"pruning ({len(rounds)} rounds shown)")
    # What matters happens near the requirement: chance level and a collapse at the end are cut off.
    after = [value for at, value in zip(seen["iteration"], seen["accuracy"]) if start is not None and at >= start]
    worst = min(after, default=min(seen["accuracy"]))
    bottom = max(0.0, requirement - 6 * (1 - requirement), min(worst, requirement - 2 * (1 - requirement)) - 0.01)
    above.set_ylim(bottom, min(1.0, max(seen["accuracy"]) + 0.1 * (1 - bottom)))
    above.yaxis.set_major_formatter(percents)
    above.set_ylabel("validation accuracy")
    figure.legend(loc="outside lower center", ncols=2)
    above.set_title(run_title(record))

    # A density was in force from the evaluation before it up to the one that saw it.
    below.step([0, *seen["iteration"]], [1.0, *seen["density"]], where="pre", color=color)
    if start is not None and not apart:
        below.plot(start, 1.0, **first)
    if result["reached"] and start is not None:
        below.plot(end, result["density"], **delivered)
    density_axis(below, min(seen["density"]))
    below.set_ylabel("density\n(synapses left)")
    _iterations_axis(below, result)
    return figure


@styled
def layer_densities(record: dict) -> Figure:
    """Draw density of each layer over iterations, and the densities that were delivered."""
    result, rounds, parts, seen = (record[name] for name in ("result", "rounds", "layers", "trajectory"))
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    first = rounds[0]["iteration"] if rounds else 0
    early = any(left < 1 for at, left in zip(seen["iteration"], seen["density"]) if at < first)
    # Pruning before the requirement is met is not recorded in rounds: the layers' densities are unknown then.
    begin = {} if early else {0: 1.0}
    for part, color, line in zip(parts, shades(len(parts)), dashes(len(parts))):
        # A layer without synapses has no place on a logarithmic axis: half a synapse stands for none.
        least = 0.5 / part["synapses"]
        times = [*begin, *(step["iteration"] for step in rounds), result["iterations_spent"]]
        values = [*begin.values(), *(max(step["densities"][part["name"]], least) for step in rounds)]
        values.append(values[-1])
        lowest = min(lowest, *values)
        final = part["significant"] / part["synapses"]
        label = f"{part['name']}: {percent(final)} of {part['synapses']:,}"
        axes.step(times, values, where="post", color=color, linestyle=(0, line) if line else "-", label=label)
        if result["reached"]:
            axes.plot(result["iterations"], max(final, least), "*", color=color, markersize=11,
                      markeredgecolor=INK, zorder=5)
    if result["reached"]:
        axes.axvline(result["iterations"], color=INK, linewidth=1, linestyle=":")
    axes.plot([], [], "*", color="white", markeredgecolor=INK, markersize=11, label="delivered model")
    density_axis(axes, lowest)
    axes.set_ylabel("density of the layer (synapses left)")
    _iterations_axis(axes, result)
    axes.set_title(run_title(record))
    figure.legend(loc="outside right center", title="layer: delivered density", alignment="left")
    return figure


def _iterations_axis(axes, result: dict) -> None:
    axes.set_xlabel("iterations (mini-batch updates)")
    axes.set_xlim(0, result["iterations_spent"] * 1.01)
    axes.xaxis.set_major_formatter("{x:,.0f}")


@styled
def weight_histograms(record: dict) -> Figure:
    """Draw weights of each layer before pruning and in the delivered model, pruned ones left out."""
    parts, columns = record["histograms"], 3
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(9, 2.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    color = look(record["run"]["method"]).color
    for axes, (name, part) in zip(grid, parts.items()):
        _outline(axes, part["before"], color=GREY, fill=True)
        _outline(axes, part["after"], color=color, fill=False)
        axes.set_yscale("log")
        axes.set_ylim(0.1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(name)
        axes.set_xlabel("weight")
    for axes in grid[::columns]:
        axes.set_ylabel("weights per 0.01")
    for axes in grid[len(parts) :]:
        axes.axis("off")
    handles = [Patch(color=GREY, alpha=0.55), Line2D([], [], color=color)]
    names = ["before pruning (requirement first met)", "delivered, synapses that are left"]
    if len(parts) % columns:
        grid[-1].legend(handles, names, loc="center")
    else:
        figure.legend(handles, names, ncols=2, loc="outside lower center")
    figure.suptitle(run_title(record), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _outline(axes, histogram: dict, color: str, fill: bool) -> None:
    edges = np.linspace(-histogram["limit"], histogram["limit"], len(histogram["counts"]) + 1)
    # Before and after have bins of their own width: only counts per width compare.
    heights = np.array(histogram["counts"]) / (edges[1] - edges[0]) * 0.01
    axes.stairs(heights, edges, color=color, fill=fill, alpha=0.55 if fill else 1, linewidth=1.5)
