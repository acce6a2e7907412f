"""Parts of figures over many runs: a panel per benchmark, points with their spread, legends, axes.

>>> table = pd.DataFrame({"benchmark": ["mnist-2c", "mnist-3c"]})
>>> figure, parts = panels(table, {}, heights=(3.9,))
>>> [axes.get_title() for _, (axes,) in parts]
['mnist-2c, 2 convolutions', 'mnist-3c, 3 convolutions']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from pruning.analysis.figures.style import FAINT, GREY, SOFT, Look, benchmarks, look, percent, title
from pruning.analysis.tables import KEYS


def panels(table: pd.DataFrame, titles: Mapping[str, str], heights: tuple[float, ...]) -> tuple[Figure, list[tuple]]:
    """Lay out one panel per benchmark and height (inches), up to two benchmarks in a row.

    Returns the figure and, per benchmark, its rows of ``table`` with its axes, one per height.
    """
    names = benchmarks(table)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    size = (5 * columns + (2 if columns == 1 else 0), sum(heights) * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(heights) * rows, columns, squeeze=False, height_ratios=heights * rows)
    grid = grid.reshape(rows, len(heights), columns).swapaxes(1, 2).reshape(-1, len(heights))
    for axes in grid[len(names) :].flatten():
        axes.remove()
    for name, axes in zip(names, grid):
        axes[0].set_title(title(name, titles))
    return figure, [(table[table["benchmark"] == name], tuple(axes)) for name, axes in zip(names, grid)]


def settle(figure: Figure) -> None:
    """Lay a figure out once and for all: with many panels the solver's last digits differ from drawing to drawing."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    for axes in figure.axes:
        axes.set_position([round(edge, 6) for edge in axes.get_position().bounds])


def label_first(axes, label: str) -> None:
    """Label the y axis of a panel in the first column, and no other."""
    axes.set_ylabel(label if axes.get_subplotspec().is_first_col() else "")


def offset(method: str, methods: list[str]) -> float:
    """Return a method's place beside the others, from -0.42 to 0.42 of a group's width."""
    return 0.84 * ((methods.index(method) + 0.5) / len(methods) - 0.5)


def points(axes, place: float, values: pd.Series, reached: pd.Series, drawn: Look) -> None:
    """Draw mean and range, and every run as a small point; hollow where a requirement was not met."""
    mean = values.mean()
    axes.errorbar(place, mean, span(values), color=drawn.color, capsize=3, linewidth=1.6)
    axes.plot(place, mean, **drawn.mark(8, reached.all(), zorder=4, mew=1.4))
    for value, met in zip(values, reached):
        axes.plot(place, value, **drawn.mark(3.5, met, zorder=3, alpha=0.7))


def span(values: pd.Series) -> list[list[float]]:
    """Return the mean's distances to the smallest and the largest value for error bars, never negative by rounding."""
    mean = values.mean()
    return [[max(mean - values.min(), 0.0)], [max(values.max() - mean, 0.0)]]


def missed(runs: pd.DataFrame) -> str:
    """Count the runs that did not reach their requirement, as 2/5; empty if all did."""
    count = int((~runs["reached"]).sum())
    return f"{count}/{len(runs)}" if count else ""


def groups(axes, requirements: list[float]) -> None:
    """Give the x axis one group per requirement, at 0, 1, 2 ..."""
    axes.set_xticks(range(len(requirements)), map(percent, requirements))
    axes.set(xlim=(-0.5, len(requirements) - 0.5), xlabel="required validation accuracy")
    for edge in range(1, len(requirements)):
        axes.axvline(edge - 0.5, color=FAINT, linewidth=0.8, zorder=0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def handle(method: str, bar: bool = False, grey: bool = False) -> Line2D | Patch:
    """Return a method's entry in a legend."""
    drawn = replace(look(method), color=GREY) if grey else look(method)
    if bar:
        return Patch(facecolor=drawn.color, edgecolor="white", hatch=drawn.hatch, label=drawn.label)
    return Line2D([], [], color=drawn.color, marker=drawn.marker, markersize=8, label=drawn.label)


def legend(figure: Figure, methods: Iterable[str], *more: Line2D | Patch, ncols: int = 3) -> None:
    """Name the methods below the figure, and what ``more`` there is."""
    figure.legend(handles=[*map(handle, methods), *more], loc="outside lower center", ncols=ncols)


def hollow(label: str) -> Line2D:
    """Return the legend's entry of what is drawn hollow."""
    return Line2D([], [], color=SOFT, marker="o", markerfacecolor="white", linestyle="", label=label)


def caption(
    figure: Figure, table: pd.DataFrame, before: str, spread: str = "error bars", by: Iterable[str] = KEYS[:3]
) -> None:
    """Say above the figure what points and error bars are, and of how many seeds; ``by`` has a group per point."""
    counts = table.groupby(list(by)).size()
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    note(figure, f"{before}mean; {spread}: smallest to largest of {n} seeds")


def note(figure: Figure, text: str) -> None:
    """Write a note above the figure, at its right."""
    figure.suptitle(text, fontsize=9, color=SOFT, x=0.995, ha="right")


def percents(value: float, _: int | None = None) -> str:
    """Write a tick in percent."""
    return f"{100 * value:.4g} %"


def times(value: float, _: int | None = None) -> str:
    """Write a tick as a factor."""
    return f"{value:g}×"


def ticks(axis, steps: list[float] | None, form) -> None:
    """Put ticks at ``steps``, or where they are, and no minor ticks."""
    if steps is not None:
        axis.set_ticks(steps)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(form)


def log_axis(axes, axis: str, least: float, most: float, form, fine: float = 0, coarse: float = 500) -> None:
    """Make ``axis``, "x" or "y", logarithmic from ``least`` to ``most``, with ticks at 1, 2, 5 times powers of ten.

    Where ``most / least`` is below ``fine`` there are more ticks, above ``coarse`` powers of ten alone.
    """
    axes.set(**{f"{axis}scale": "log"})
    bases = (1, 1.5, 2, 3, 4, 5, 7) if most / least < fine else (1,) if most / least > coarse else (1, 2, 5)
    steps = [base * 10.0**power for power in range(-5, 5) for base in bases]
    ticks(getattr(axes, f"{axis}axis"), [step for step in steps if least <= step <= most], form)
    axes.set(**{f"{axis}lim": (least, most)})


def density_axis(axes, lowest: float, top: float = 1.25) -> None:
    """Make the y axis a density's, logarithmic, from below ``lowest`` to 1 and a margin."""
    log_axis(axes, "y", min(0.8 * lowest, 0.45), 1, percents)
    axes.set_ylim(top=top)
