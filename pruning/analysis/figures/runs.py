"""Figures of one run, from its record."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pruning.analysis.figures.panels import density_axis, percents, ticks
from pruning.analysis.figures.style import FAINT, INK, dashes, look, percent, shades, sparse, styled, title

GREY = "#9a9a9a"


def run_title(record: dict) -> str:
    """Name a run: benchmark, method, requirement and seed."""
    run = record["run"]
    text = f"{title(run['benchmark'], {run['benchmark']: record['data']})}: {look(run['method']).label}"
    return f"{text}, requirement {percent(run['requirement'])}, seed {run['seed']}"


@styled
def learning_curve(record: dict) -> Figure:
    """Draw validation accuracy over iterations with the rounds of pruning marked, and the density below it."""
    run, result, rounds = record["run"], record["result"], [step["iteration"] for step in record["rounds"]]
    at, accuracy, density = (np.array(record["trajectory"][name]) for name in ("iteration", "accuracy", "density"))
    requirement, start, end = run["requirement"], result["iterations_unpruned"], result["iterations"]
    delivered = result["reached"] and start is not None
    # A method that prunes before the requirement is met leaves the training without pruning before its end.
    apart = start is not None and (density[at <= start] < 1).any()
    color = look(run["method"]).color
    circle: dict[str, Any] = {
        "color": INK,
        "marker": "o",
        "linestyle": "",
        "markerfacecolor": "white",
        "markersize": 9,
        "zorder": 4,
    }
    star: dict[str, Any] = {"color": INK, "marker": "*", "linestyle": "", "markersize": 13, "zorder": 5}
    dotted: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 1.4, "zorder": 2}
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        for iteration in rounds:
            axes.axvline(iteration, color=FAINT, linewidth=1, zorder=0.5)
    above.plot(at, accuracy, color=color, marker=".", markersize=4, label="validation accuracy")
    above.axhline(requirement, color=INK, linestyle="--", linewidth=1.2, label=f"requirement: {percent(requirement)}")
    if apart:
        for axes in (above, below):
            axes.axvline(start, **dotted)
        above.plot([], [], label=f"without pruning, first met here (iteration {start:,})", **dotted)
    elif start is not None:
        label = f"requirement first met (iteration {start:,})"
        above.plot(start, np.interp(start, at, accuracy), label=label, **circle)
    if delivered:
        label = f"delivered (iteration {end:,}, density {percent(result['density'])})"
        above.plot(end, result["validation_accuracy"], label=label, **star)
    if rounds:
        few: dict[str, Any] = {"color": "#b0b0b0", "markersize": 12, "markeredgewidth": 1.5}
        above.plot([], [], "|", label=f"pruning ({len(rounds)} rounds shown)", **few)
    # What matters happens near the requirement, or the best there was: chance level and a collapse at the end are cut
    # off.
    worst = (accuracy if start is None else accuracy[at >= start]).min()
    best, near = max(accuracy.max(), requirement), min(accuracy.max(), requirement)
    bottom = max(0.0, near - 6 * (1 - near), min(worst, near - 2 * (1 - near)) - 0.01)
    above.set(ylim=(bottom, min(1.0, best + 0.1 * (1 - bottom))), ylabel="validation accuracy")
    above.set_title(run_title(record))
    above.yaxis.set_major_formatter(percents)
    figure.legend(loc="outside lower center", ncols=2)

    # A density was in force from the evaluation before it up to the one that saw it.
    below.step([0, *at], [1.0, *density], where="pre", color=color)
    if start is not None and not apart:
        below.plot(start, 1.0, **circle)
    if delivered:
        below.plot(end, result["density"], **star)
    density_axis(below, density.min())
    below.set_ylabel("density\n(synapses left)")
    _iterations_axis(below, result)
    return figure


@styled
def layer_densities(record: dict) -> Figure:
    """Draw density of each layer over iterations, and the densities that were delivered."""
    result, rounds, parts, seen = (record[name] for name in ("result", "rounds", "layers", "trajectory"))
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.subplots()
    first = rounds[0]["iteration"] if rounds else 0
    early = any(left < 1 for at, left in zip(seen["iteration"], seen["density"]) if at < first)
    # Pruning before the requirement is met is not recorded in rounds: the layers' densities are unknown then.
    begin = {} if early else {0: 1.0}
    times = [*begin, *(step["iteration"] for step in rounds), result["iterations_spent"]]
    star: dict[str, Any] = {"marker": "*", "linestyle": "", "markersize": 11, "markeredgecolor": INK}
    lowest, named = 1.0, sparse([part["name"] for part in parts])
    for part, color, line in zip(parts, shades(len(parts)), dashes(len(parts))):
        # A layer without synapses has no place on a logarithmic axis: half a synapse stands for none.
        least = 0.5 / part["synapses"]
        values = [*begin.values(), *(max(step["densities"][part["name"]], least) for step in rounds)]
        lowest = min(lowest, *values)
        final = part["significant"] / part["synapses"]
        style: dict[str, Any] = {"color": color, "linestyle": (0, line) if line else "-"}
        label = f"{part['name']}: {percent(final)} of {part['synapses']:,}" if part["name"] in named else None
        axes.step(times, [*values, values[-1]], where="post", label=label, **style)
        if result["reached"]:
            axes.plot(result["iterations"], max(final, least), color=color, zorder=5, **star)
    if result["reached"]:
        axes.axvline(result["iterations"], color=INK, linewidth=1, linestyle=":")
        axes.plot([], [], color="white", label="delivered model", **star)
    density_axis(axes, lowest)
    axes.set_ylabel("density of the layer (synapses left)")
    _iterations_axis(axes, result)
    axes.set_title(run_title(record))
    heading = "layer: delivered density" if result["reached"] else "layer: density at the end"
    heading += f"\n({len(named)} of {len(parts)}, input to output)" if len(named) < len(parts) else ""
    figure.legend(loc="outside right center", title=heading, alignment="left")
    return figure


def _iterations_axis(axes, result: dict) -> None:
    axes.set(xlabel="iterations (mini-batch updates)", xlim=(0, result["iterations_spent"] * 1.01))
    axes.xaxis.set_major_formatter("{x:,.0f}")


@styled
def weight_histograms(record: dict) -> Figure:
    """Draw weights of each layer before pruning and in the delivered model, pruned ones left out.

    Of a network of many layers a choice is drawn.
    """
    every, columns, color = record["histograms"], 3, look(record["run"]["method"]).color
    parts = {name: every[name] for name in sparse(list(every))}
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(9, 2.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, part) in zip(grid, parts.items()):
        for when, drawn in (
            ("before", {"color": GREY, "fill": True, "alpha": 0.55}),
            ("after", {"color": color, "alpha": 1}),
        ):
            limit, counts = part[when]["limit"], part[when]["counts"]
            edges = np.linspace(-limit, limit, len(counts) + 1)
            # Before and after have bins of their own width: only counts per width compare.
            axes.stairs(np.array(counts) / (edges[1] - edges[0]) * 0.01, edges, linewidth=1.5, **drawn)
        axes.set(yscale="log", ylim=(0.1, None), title=name, xlabel="weight")
        ticks(axes.yaxis, None, "{x:g}")
    for axes in grid[::columns]:
        axes.set_ylabel("weights per 0.01")
    for axes in grid[len(parts) :]:
        axes.axis("off")
    handles = [Patch(color=GREY, alpha=0.55), Line2D([], [], color=color)]
    names = ["before pruning (requirement first met)", "delivered, synapses that are left"]
    if not record["result"]["reached"]:
        names = ["first weights (the requirement was never met)", "at the end of training"]
    if len(parts) % columns:
        grid[-1].legend(handles, names, loc="center")
    else:
        figure.legend(handles, names, ncols=2, loc="outside lower center")
    some = f"\n{len(parts)} of {len(every)} layers, input to output" if len(parts) < len(every) else ""
    figure.suptitle(run_title(record) + some, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure
