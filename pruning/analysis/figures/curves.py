"""Figures over a whole range of densities: the trade-off with accuracy, and each layer's sensitivity."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from pruning.analysis.figures.panels import caption, label_first, legend, panels, percents, ticks, times
from pruning.analysis.figures.style import dashes, look, ordered, shades, sparse, styled


@styled
def tradeoff(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw test accuracy against compression ratio and theoretical speed-up, every method at equal training effort.

    ``table`` as ``tradeoff.frame`` makes it. The accuracy's axis is logarithmic in the error, so
    that one panel shows tenths of a percent near the top and chance at the bottom.
    """
    methods = ordered(table["method"])
    figure, parts = panels(table, titles, heights=(3.3, 3.3))
    for part, (above, below) in parts:
        _panel(above, part, "compression", methods)
        above.set_xlabel("compression ratio (all synapses / synapses left)")
        _panel(below, part, "speedup", methods)
        below.set_xlabel("theoretical speed-up (all multiply-accumulates / those left)")
    legend(figure, methods)
    caption(figure, table, "points: ", by=["benchmark", "method", "ratio"])
    return figure


def _panel(axes, part: pd.DataFrame, along: str, methods: list[str]) -> None:
    error = 1 - part["test_accuracy"]
    for method in methods:
        drawn, groups = look(method), part[part["method"] == method].groupby("ratio")
        value = groups["test_accuracy"].agg(["mean", "min", "max"])
        if method == "unpruned":
            for row in value.itertuples():
                axes.axhline(1 - row.mean, color=drawn.color, linewidth=1.6, zorder=1.5)
                axes.axhspan(1 - row.max, 1 - row.min, color=drawn.color, alpha=0.2, linewidth=0)
            continue
        spread = [value["max"] - value["mean"], value["mean"] - value["min"]]
        marked = drawn.mark(6, ls="-", capsize=2.5, linewidth=1.4)
        axes.errorbar(groups[along].mean(), 1 - value["mean"], spread, **marked)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(times)
    least, most = 0.85 * error[error > 0].min(), min(1.0, 1.1 * error.max())
    steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9]
    if most / least <= 20:
        steps = sorted([*steps, 0.003, 0.007, 0.015, 0.03, 0.3, 0.4, 0.7])
    ticks(axes.yaxis, [step for step in steps if least <= step <= most], lambda value, _: percents(1 - value))
    axes.set_ylim(most, least)
    label_first(axes, "test accuracy\n(log of the error)")


@styled
def sensitivity(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw validation accuracy as each layer alone is pruned by magnitude, without retraining.

    As in figure 6 of Han et al. 2015. ``table`` as ``tradeoff.scans`` makes it. Lines are means over
    the seeds, bands reach from the smallest to the largest.
    """
    import seaborn  # takes a second, with scipy

    figure, parts = panels(table, titles, heights=(3.6,))
    for part, (axes,) in parts:
        names = list(dict.fromkeys(part["layer"]))
        seaborn.lineplot(
            part, x="density", y="validation_accuracy", hue="layer", style="layer", ax=axes, legend=False,
            palette=shades(len(names)), dashes=dashes(len(names)),
            errorbar=("pi", 100), err_kws={"alpha": 0.15, "linewidth": 0},
        )  # fmt: skip
        least = part["density"].min()
        axes.set(xscale="log", xlim=(1, least), xlabel="density of the one layer that is pruned", ylim=(0, 1))
        ticks(axes.xaxis, [step for step in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005) if step >= least], percents)
        axes.yaxis.set_major_formatter(percents)
        label_first(axes, "validation accuracy")
        named = sparse(names)
        lines = [line for line, name in zip(axes.lines, names) if name in named]
        axes.legend(lines, named, loc="lower left", ncols=2)
    caption(figure, table, "lines: ", "bands", by=["benchmark", "layer", "density"])
    return figure
