"""What the figures look like: records or their table in, a matplotlib figure out.

    figure = significant_synapses(frame(found), titles(found))
    save(figure, folder("report"), "figure-4-significant-synapses")

A method has one colour, one marker and one hatch in every figure, so that it is found again
without colour too. Points and bars are means over the seeds; error bars span from the smallest
to the largest of them. The same records give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
import seaborn
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from pruning.analysis.claims import METHOD, REPORTED, REPORTED_REDUCTIONS, Claim, average, formatted, measured_on  # noqa: F401
from pruning.analysis.comparison import METHOD as OURS
from pruning.analysis.comparison import front
from pruning.files import write_whole
from pruning.study.networks import input_shape, layers
from pruning.study.benchmarks import BENCHMARKS
from pruning.study.paths import root

CENTER = {"ha": "center", "va": "center"}
BLUE, ORANGE, GREEN = "#dcebf5", "#fbe3c4", "#d5efe5"
INK, SOFT, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SOFT, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "lines.linewidth": 1.6,
    "legend.frameon": False, "figure.facecolor": "white", "hatch.linewidth": 0.9,
    "svg.hashsalt": "synapse pruning", "svg.fonttype": "path", "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn and named."""

    color: str
    marker: str | tuple
    hatch: str
    label: str


# In the order in which methods stand in legends. The colours of the first are those of Okabe and Ito (2008), safe
# for the colour-blind; there are no more of them, so the others are told apart by their markers first.
LOOKS = {
    "unpruned": Look("#999999", "s", "", "unpruned"),
    "iterative": Look("#0072b2", "o", "", "iterative (the report's)"),
    "gradual": Look("#e69f00", "^", "///", "gradual"),
    "oneshot": Look("#009e73", "D", "...", "one-shot"),
    "random": Look("#cc79a7", "X", "xxx", "random"),
    "small": Look("#56b4e9", "v", "---", "small dense network"),
    "adaptive": Look("#d55e00", "*", "\\\\\\", "adaptive (this study's)"),
    "uniform": Look("#7a5195", "<", "|||", "uniform"),
    "erk": Look("#9c755f", ">", "+++", "ERK"),
    "lamp": Look("#4e79a7", "p", "x", "LAMP"),
    "sensitivity": Look("#8cb369", "h", "|-", "sensitivity"),
    "snip": Look("#2f4b7c", "P", "/-", "SNIP"),
    "lottery": Look("#b5a200", "d", "//", "lottery ticket"),
    "raterewind": Look("#5f9ea0", "H", "..", "rate rewinding"),
    "rigl": Look("#a23b72", "8", "xx", "RigL"),
    "movement": Look("#6a994e", (4, 1, 0), "+", "movement"),
    "dsd": Look("#d4a5a5", (6, 1, 0), "||", "dense-sparse-dense"),
    "surgery": Look("#3d405b", (3, 1, 0), "++", "network surgery"),
    "biased": Look("#81a4cd", (3, 1, 180), "--", "biased decay"),
    "hashed": Look("#7f7f3f", (5, 0, 0), "o", "HashedNets"),
    "adaptive-patient": Look("#9a3d00", (5, 1, 36), "\\\\|", "adaptive, patient"),
    "adaptive-tireless": Look("#5c2200", (8, 1, 22), "|||", "adaptive, tireless"),
    "adaptive-uncompensated": Look("#e89a5b", (4, 0, 0), "\\\\", "adaptive, not compensated"),
    "adaptive-strict": Look("#f2c14e", (7, 1, 0), "\\\\-", "adaptive, no slack"),
    "adaptive-constant": Look("#c0705a", (8, 1, 0), "/", "adaptive, constant slack"),
    "adaptive-coarse": Look("#b07aa1", (3, 0, 0), "/|", "adaptive, large steps"),
    "adaptive-steep": Look("#59a14f", (6, 0, 0), "|-|", "adaptive, no limit on descents"),
}
_SPARE_COLORS = tuple(seaborn.color_palette("colorblind").as_hex()[index] for index in (5, 8, 6))
_NETWORKS = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5-Caffe"}
_SPARE_MARKERS = ("v", "P", "<", ">", "p", "h", "*")
_SPARE_HATCHES = ("\\\\\\", "+++", "ooo", "---", "|||", "OO", "**")

REPORTED_LINE = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4}

MEAN_AND_RANGE = "mean; {spread}: smallest to largest of {n} seeds"


def look(method: str) -> Look:
    """The method's look; one that ``LOOKS`` does not name gets one that follows from its name alone."""
    if method in LOOKS:
        return LOOKS[method]
    code = zlib.crc32(method.encode())
    kind = code // len(_SPARE_COLORS) % len(_SPARE_MARKERS)
    return Look(_SPARE_COLORS[code % len(_SPARE_COLORS)], _SPARE_MARKERS[kind], _SPARE_HATCHES[kind], method)


def ordered(methods: Iterable[str]) -> list[str]:
    """The methods once each: those of ``LOOKS`` in its order, then the others by name."""
    found = set(methods)
    return [method for method in LOOKS if method in found] + sorted(found - set(LOOKS))


def benchmarks(table: pd.DataFrame) -> list[str]:
    """The table's benchmarks: the known ones in the study's order of them, then the others by name."""
    found = set(table["benchmark"])
    return [name for name in BENCHMARKS if name in found] + sorted(found - set(BENCHMARKS))


def title(benchmark: str, titles: Mapping[str, str]) -> str:
    """A benchmark as figures name it: "CIFAR-10 (JPEG copy), 2 convolutions"."""
    network = _NETWORKS.get(benchmark) or f"{benchmark.rsplit('-', 1)[-1].removesuffix('c')} convolutions"
    return f"{titles.get(benchmark, benchmark)}, {network}"


def spread(values: Iterable[float], form: str = "{:.1%}") -> str:
    """Mean over the seeds (smallest to largest), as the error bars show them; "-" where there is no value."""
    found = [float(value) for value in values if not pd.isna(value)]
    if not found:
        return "-"
    mean, least, most = (form.format(value) for value in (np.mean(found), min(found), max(found)))
    return mean if least == most else f"{mean} ({least} to {most})"


def folder(study: str) -> Path:
    """Where a study's figures lie: under ``PRUNING_FIGURES``, else ``figures``."""
    return Path(os.environ.get("PRUNING_FIGURES") or root() / "figures") / study


def style():
    """A context in which matplotlib draws as all figures here do."""
    return matplotlib.rc_context(seaborn.axes_style("ticks") | STYLE)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name`` as PNG (200 dpi), SVG and PDF, the same bytes for the same figure; returns the paths."""
    # No dates and no version numbers: the bytes follow from the records alone.
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = []
    for kind, blank in metadata.items():
        path = Path(folder) / f"{name}.{kind}"
        write_whole(path, _rendered(figure, kind, 200, blank))
        paths.append(path)
    return paths


def png(figure: Figure, dpi: int | None = None) -> bytes:
    """The figure as PNG, for a notebook to show: at ``dpi``, else at ``PRUNING_DPI``, else at 100 dots an inch."""
    return _rendered(figure, "png", dpi or int(os.environ.get("PRUNING_DPI") or 100), {"Software": None})


def _rendered(figure: Figure, kind: str, dpi: int, metadata: dict) -> bytes:
    buffer, raw = io.BytesIO(), {"pil_kwargs": {"compress_level": 0}} if kind == "png" else {}
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata, **raw)
    if kind == "png":
        # The drawings have few colours: a palette of them takes a third of the bytes.
        flat = PIL.Image.open(buffer).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        buffer = io.BytesIO()
        flat.save(buffer, "png", dpi=(dpi, dpi))
    return buffer.getvalue()


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with style():
            figure = draw(*args, **kwargs)
            # Laid out once, here: each further layout would move things a little, and with them the bytes.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.set_label(draw.__doc__.splitlines()[0])  # what the picture shows, for those who cannot see it
        return figure

    return drawn


# One run.


@_styled
def learning_curve(record: dict) -> Figure:
    """Validation accuracy over iterations with the rounds of pruning marked, and the density below it."""
    run, result, seen = record["run"], record["result"], record["trajectory"]
    color = look(run["method"]).color
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rounds = [step["iteration"] for step in record["rounds"]]
    for axes in (above, below):
        for iteration in rounds:
            axes.axvline(iteration, color=FAINT, linewidth=1, zorder=0.5)
    requirement, start, end = run["requirement"], result["iterations_unpruned"], result["iterations"]
    # A method that prunes before the requirement is met leaves the training without pruning before its end.
    apart = start is not None and any(left < 1 for at, left in zip(seen["iteration"], seen["density"]) if at <= start)
    above.plot(seen["iteration"], seen["accuracy"], color=color, marker=".", markersize=4, label="validation accuracy")
    above.axhline(requirement, color=INK, linestyle="--", linewidth=1.2, label=f"requirement: {_percent(requirement)}")
    if apart:
        for axes in (above, below):
            axes.axvline(start, color=INK, linestyle=":", linewidth=1.4, zorder=2)
        above.plot([], [], color=INK, linestyle=":", linewidth=1.4,
                   label=f"without pruning, first met here (iteration {start:,})")
    elif start is not None:
        reached = float(np.interp(start, seen["iteration"], seen["accuracy"]))
        above.plot(start, reached, "o", color=INK, markerfacecolor="white", markersize=9, zorder=4,
                   label=f"requirement first met (iteration {start:,})")
    if result["reached"] and start is not None:
        above.plot(end, result["validation_accuracy"], "*", color=INK, markersize=13, zorder=5,
                   label=f"delivered (iteration {end:,}, density {_percent(result['density'])})")
    if rounds:
        above.plot([], [], "|", color="#b0b0b0", markersize=12, markeredgewidth=1.5,
                   label=f"pruning ({len(rounds)} rounds shown)")
    # What matters happens near the requirement: chance level and a collapse at the end are cut off.
    after = [value for at, value in zip(seen["iteration"], seen["accuracy"]) if start is not None and at >= start]
    worst = min(after, default=min(seen["accuracy"]))
    bottom = max(0.0, requirement - 6 * (1 - requirement), min(worst, requirement - 2 * (1 - requirement)) - 0.01)
    above.set_ylim(bottom, min(1.0, max(seen["accuracy"]) + 0.1 * (1 - bottom)))
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    above.set_ylabel("validation accuracy")
    figure.legend(loc="outside lower center", ncols=2)
    above.set_title(_run_title(record))

    # A density was in force from the evaluation before it up to the one that saw it.
    below.step([0, *seen["iteration"]], [1.0, *seen["density"]], where="pre", color=color)
    if start is not None and not apart:
        below.plot(start, 1.0, "o", color=INK, markerfacecolor="white", markersize=9, zorder=4)
    if result["reached"] and start is not None:
        below.plot(end, result["density"], "*", color=INK, markersize=13, zorder=5)
    _density_axis(below, min(seen["density"]))
    below.set_ylabel("density\n(synapses left)")
    below.set_xlabel("iterations (mini-batch updates)")
    below.set_xlim(0, result["iterations_spent"] * 1.01)
    _thousands(below.xaxis)
    return figure


@_styled
def layer_densities(record: dict) -> Figure:
    """Density of each layer over iterations, and the densities that were delivered."""
    result, rounds = record["result"], record["rounds"]
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.subplots()
    parts = record["layers"]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(parts)))
    lowest = 1.0
    first = rounds[0]["iteration"] if rounds else 0
    seen = record["trajectory"]
    early = any(left < 1 for at, left in zip(seen["iteration"], seen["density"]) if at < first)
    # Pruning before the requirement is met goes without rounds: of single layers nothing is known then.
    begin = {} if early else {0: 1.0}
    for number, (part, color) in enumerate(zip(parts, colors)):
        # A layer without synapses has no place on a logarithmic axis: half a synapse stands for none.
        least = 0.5 / part["synapses"]
        times = [*begin, *(step["iteration"] for step in rounds), result["iterations_spent"]]
        values = [*begin.values(), *(max(step["densities"][part["name"]], least) for step in rounds)]
        values.append(values[-1])
        lowest = min(lowest, *values)
        final = part["significant"] / part["synapses"]
        label = f"{part['name']}: {_percent(final)} of {part['synapses']:,}"
        axes.step(times, values, where="post", color=color, linestyle=("-", "--", "-.", ":")[number % 4], label=label)
        if result["reached"]:
            axes.plot(result["iterations"], max(final, least), "*", color=color, markersize=11,
                      markeredgecolor=INK, zorder=5)
    if result["reached"]:
        axes.axvline(result["iterations"], color=INK, linewidth=1, linestyle=":")
    axes.plot([], [], "*", color="white", markeredgecolor=INK, markersize=11, label="delivered model")
    _density_axis(axes, lowest)
    axes.set_ylabel("density of the layer (synapses left)")
    axes.set_xlabel("iterations (mini-batch updates)")
    axes.set_xlim(0, result["iterations_spent"] * 1.01)
    _thousands(axes.xaxis)
    axes.set_title(_run_title(record))
    figure.legend(loc="outside right center", title="layer: delivered density", alignment="left")
    return figure


@_styled
def weight_histograms(record: dict) -> Figure:
    """Weights of each layer before pruning and in the delivered model, pruned ones left out."""
    parts, columns = record["histograms"], 3
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(9, 2.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    color = look(record["run"]["method"]).color
    for axes, (name, part) in zip(grid, parts.items()):
        _outline(axes, part["before"], color="#9a9a9a", fill=True)
        _outline(axes, part["after"], color=color, fill=False)
        axes.set_yscale("log")
        axes.set_ylim(0.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(name)
        axes.set_xlabel("weight")
    for axes in grid[::columns]:
        axes.set_ylabel("weights per 0.01")
    for axes in grid[len(parts):]:
        axes.axis("off")
    handles = [Patch(color="#9a9a9a", alpha=0.55), Line2D([], [], color=color)]
    names = ["before pruning (requirement first met)", "delivered, synapses that are left"]
    if len(parts) % columns:
        grid[-1].legend(handles, names, loc="center")
    else:
        figure.legend(handles, names, ncols=2, loc="outside lower center")
    figure.suptitle(_run_title(record), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _outline(axes, histogram: dict, color: str, fill: bool) -> None:
    edges = np.linspace(-histogram["limit"], histogram["limit"], len(histogram["counts"]) + 1)
    # Before and after have bins of their own width: only counts per width compare.
    heights = np.array(histogram["counts"]) / (edges[1] - edges[0]) * 0.01
    axes.stairs(heights, edges, color=color, fill=fill, alpha=0.55 if fill else 1, linewidth=1.5)


# Many runs.


@_styled
def significant_synapses(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """The report's figure 4: significant synapses per benchmark, requirement and method.

    ``table`` as ``results.frame`` makes it. Every run is a small point; one that did not reach
    its requirement keeps all synapses, is drawn hollow and counted in the strip above 100 %.
    """
    pruned = table[table["method"] != "unpruned"]
    methods = ordered(pruned["method"])
    figure, grid = _panels(pruned, titles, heights=(3.9,))
    panels = [axes for (line,) in grid for axes in line]
    lowest, missing = pruned["density"].min(), not pruned["reached"].all()
    shown = []
    for (benchmark, part), axes in zip(_by_benchmark(pruned), panels):
        requirements = sorted(part["requirement"].unique())
        if missing:
            axes.axhspan(1.15, 2.6, color="#f0f0f0", linewidth=0)
        axes.axhline(1, color=look("unpruned").color, linewidth=1.6)
        for (requirement, method), runs in part.groupby(["requirement", "method"], sort=True):
            place = requirements.index(requirement) + _offset(method, methods)
            _points(axes, place, runs["density"], runs["reached"], look(method))
            if missed := _missed(runs):
                axes.text(place, 1.73, missed, ha="center", va="center", fontsize=8, rotation=90, fontweight="bold")
        for number, requirement in enumerate(requirements):
            if (value := REPORTED.get((benchmark, requirement))) is not None:
                axes.plot([number - 0.46, number + 0.46], [value, value], **REPORTED_LINE)
                shown.append(f"the report: about {_percent(value)}")
        _groups(axes, requirements)
        _density_axis(axes, lowest, top=2.6 if missing else 1.25)
        axes.set_ylabel("significant synapses\n(of all, log scale)" if axes.get_subplotspec().is_first_col() else "")
    handles = [_handle(method) for method in methods]
    handles.append(Line2D([], [], color=look("unpruned").color, label="unpruned: 100 %"))
    handles += [Line2D([], [], label=text, **REPORTED_LINE) for text in shown]
    if missing:
        handles.append(Line2D([], [], color=SOFT, marker="o", markerfacecolor="white", linestyle="",
                              label="hollow, n/m: n of m runs did not\nreach the requirement"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    _caption(figure, pruned, "small points: runs; large points: ")
    return figure


@_styled
def training_effort(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """The report's figure 5: iterations up to the delivered model, and their ratio to training without pruning.

    A run that did not reach its requirement counts with the iterations it spent, and its bar is
    hollow and marked; it has no ratio.
    """
    methods = ordered(table["method"])
    figure, grid = _panels(table, titles, heights=(3, 2.1))
    width = 0.84 / len(methods)
    highest = table["iterations"].max()
    for (_, part), (above, below) in zip(_by_benchmark(table), (pair for row in grid for pair in zip(*row))):
        requirements = sorted(part["requirement"].unique())
        below.axhline(1, color=look("unpruned").color, linewidth=1.6)
        for (requirement, method), runs in part.groupby(["requirement", "method"], sort=True):
            place = requirements.index(requirement) + _offset(method, methods)
            _bar(above, place, width, runs, look(method))
            ratios = runs.loc[runs["reached"], "effort"]
            if method != "unpruned" and len(ratios):
                _points(below, place, ratios, ratios.notna(), look(method))
        for axes in (above, below):
            _groups(axes, requirements)
        above.set_xlabel("")
        above.set_ylim(0, 1.15 * highest)
        below.set_ylim(0, 1.08 * max(table["effort"].max(), 1.5))
        _thousands(above.yaxis)
        if above.get_subplotspec().is_first_col():
            above.set_ylabel("training effort (iterations\nto the delivered model)")
            below.set_ylabel("ratio to training\nwithout pruning")
    handles = [(_handle(method, bar=True), _handle(method)) for method in methods]
    names = [look(method).label for method in methods]
    if not table["reached"].all():
        handles.append(Patch(facecolor="white", edgecolor=SOFT, linestyle="--"))
        names.append("hollow, n/m: n of m runs did not reach\nthe requirement (iterations spent)")
    side_by_side = {tuple: HandlerTuple(ndivide=None)}
    figure.legend(handles, names, loc="outside lower center", ncols=3, handlelength=3.6, handler_map=side_by_side)
    _caption(figure, table, "bars and large points: ")
    return figure


@_styled
def frontier(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """The frontier: training effort against significant synapses, a panel for each benchmark and requirement.

    Left and below is better. A method's place is its mean, its cross reaches from the smallest to the
    largest seed; the line joins the methods that no other beats in both (Pareto front), unpruned
    training included. A method is hollow where some of its runs did not reach the requirement: they
    count with all synapses and have no effort, and the method is not part of the front. One that
    never reached it is named in the panel.
    """
    table = table.assign(density=table["density"].where(table["reached"], 1.0))
    methods, names = ordered(table["method"]), benchmarks(table)
    asked = {name: sorted(part["requirement"].unique()) for name, part in _by_benchmark(table)}
    rows, columns = max(map(len, asked.values())), len(names)
    legend = max(columns, 3)
    size = (max(3.4 * columns + 0.5, 8), max(2.6 * rows, 4.4) + 0.22 * -(-len(methods) // legend) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    seen = [[] for _ in range(rows)]
    for column, (name, part) in enumerate(_by_benchmark(table)):
        first = rows - len(asked[name])  # the highest requirements stand side by side
        for axes in grid[:first, column]:
            axes.set_axis_off()
        for row, requirement in enumerate(asked[name], start=first):
            axes, runs = grid[row, column], part[part["requirement"] == requirement]
            _frontier(axes, runs)
            head = f"{title(name, titles)}\n" if row == first else ""
            axes.set_title(f"{head}at {_percent(requirement)}", fontsize=10)
            seen[row] += runs["effort"].dropna().tolist()
        _share_axis(grid[-1, column], part["density"])
        grid[-1, column].set_xlabel("significant synapses (of all, log scale)")
    for line, efforts in zip(grid, seen):
        line[0].set_ylabel("training effort\n(ratio, log scale)")
        _ratio_axis(line[0], efforts)
    handles = [_handle(method) for method in methods]
    handles.append(Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="Pareto front of the means"))
    if not table["reached"].all():
        handles.append(Line2D([], [], color=SOFT, marker="o", markerfacecolor="white", linestyle="",
                              label="hollow: not all runs reached it"))
    figure.legend(handles=handles, loc="outside lower center", ncols=legend)
    _counted(figure, table.groupby(["benchmark", "requirement", "method"]).size(), "points: ", "crosses")
    return figure


def _frontier(axes, part: pd.DataFrame) -> None:
    points, best = part.groupby("method")[["density", "effort"]].mean(), front(part)
    for method in ordered(part["method"]):
        runs, drawn = part[part["method"] == method], look(method)
        x, y = points.loc[method]
        if np.isnan(y):
            continue
        axes.errorbar(x, y, _range(runs["effort"]), _range(runs["density"]), color=drawn.color, linewidth=1, alpha=0.6, zorder=2)
        axes.plot(x, y, marker=drawn.marker, linestyle="", color=drawn.color, markersize=9, zorder=5 if method == OURS else 4,
                  markerfacecolor=drawn.color if runs["reached"].all() else "white", markeredgewidth=1.1)
    if len(best):
        across, up = best["density"].to_numpy(), best["effort"].to_numpy()
        axes.step([across[0], *across, 1.0], [points["effort"].max(), *up, up[-1]], where="post", color=INK,
                  linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
    never = [look(method).label for method in ordered(points.index[points["effort"].isna()])]
    if never:
        text = "never reached: " + ", ".join(never)
        axes.text(0.98, 0.97, textwrap.fill(text, 40), transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.grid(axis="x", visible=True)


def _share_axis(axes, values: pd.Series) -> None:
    axes.set_xscale("log")
    least, most = 0.75 * values.min(), min(1.3 * values.max(), 1.3)
    bases = (1, 1.5, 2, 3, 4, 5, 7) if most / least < 10 else (1, 2, 5)
    steps = [base * 10.0**power for power in range(-5, 1) for base in bases]
    shown = [step for step in steps if least <= step <= min(most, 1)]
    if most / least > 100:
        shown = [10.0**power for power in range(-5, 1) if 10.0**power >= least]
    axes.set_xticks(shown)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_xlim(least, most)


def _ratio_axis(axes, values: list[float]) -> None:
    axes.set_yscale("log")
    least, most = 0.8 * min(1.0, *values), 1.25 * max(2.0, *values)
    axes.set_yticks([step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if least <= step <= most])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_ylim(least, most)


@_styled
def claim(found: Claim, titles: Mapping[str, str]) -> Figure:
    """A claim of the report, part by part: every seed, their mean, and what it is compared with."""
    rows = len(found.parts)
    figure = Figure(figsize=(8.4, 1.75 + 0.34 * rows), layout="constrained")
    axes = figure.subplots()
    drawn, words = look(METHOD), [formatted(average(part.values, found.kind), found.kind) for part in found.parts]
    for number, part in enumerate(found.parts):
        last = number == rows - 1
        center = average(part.values, found.kind)
        if last and rows > 1:
            axes.axhspan(number - 0.5, number + 0.5, color="#f3f3f3", linewidth=0)
        axes.plot([min(part.values), max(part.values)], [number, number], color=drawn.color, linewidth=1.6)
        axes.plot(part.values, [number] * len(part.values), drawn.marker, color=drawn.color, markersize=4, alpha=0.7)
        axes.plot(center, number, drawn.marker, color=drawn.color, markersize=9, markeredgewidth=1.4,
                  markerfacecolor=drawn.color if part.holds else "white")
    for (name, value), dashes in zip(found.references, ((0, (4, 2)), "-", ":")):
        axes.axvline(value, color=INK, linewidth=1.3, linestyle=dashes, zorder=1.5,
                     label=name)
    axes.plot([], [], drawn.marker, color=drawn.color, markersize=4, alpha=0.7, linestyle="", label="one seed")
    axes.plot([], [], drawn.marker, color=drawn.color, markersize=9, linestyle="", label="mean: the part holds")
    axes.plot([], [], drawn.marker, color=drawn.color, markersize=9, markerfacecolor="white", markeredgewidth=1.4,
              linestyle="", label="mean: it does not")
    axes.set_yticks(range(rows), [part.name for part in found.parts])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.tick_params(axis="y", length=0)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(rows), words)
    beside.tick_params(length=0)
    beside.spines["right"].set_visible(False)
    if found.kind == "factor":
        _factor_axis(axes, [value for part in found.parts for value in part.values])
    else:
        unit = " %" if found.kind == "percent" else ""
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{unit}"))
    axes.set_xlabel("\n".join(textwrap.wrap(found.quantity + (" (points)" if found.kind == "points" else ""), 84)))
    figure.legend(loc="outside lower center", ncols=4 if len(found.references) == 1 else 3)
    alone = {name: data for name, data in titles.items() if rows == 1 and name in found.parts[0].name}
    figure.suptitle(measured_on(alone or titles), fontsize=9, color=SOFT, x=0.995, ha="right")
    return figure


def _factor_axis(axes, values: list[float]) -> None:
    axes.set_xscale("log")
    least, most = min(1.0, *values) / 1.15, max(1.0, *values) * 1.15
    steps = [base * 10.0**power for power in range(-4, 5) for base in (1, 2, 5)]
    if most / least < 5:
        steps = sorted({*steps, *(factor * 10.0**power for power in range(-2, 3) for factor in (1.5, 3, 4, 7))})
    if most / least > 500:
        steps = [10.0**power for power in range(-4, 5)]
    axes.set_xticks([step for step in steps if least <= step <= most])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlim(least, most)


@_styled
def tradeoff(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Test accuracy against compression ratio and theoretical speed-up, every method at equal training effort.

    ``table`` as ``tradeoff.frame`` makes it. The accuracy's axis is logarithmic in the error, so
    that one panel shows tenths of a percent near the top and chance at the bottom.
    """
    methods = ordered(table["method"])
    figure, grid = _panels(table, titles, heights=(3.3, 3.3))
    for (_, part), pair in zip(_by_benchmark(table), (pair for row in grid for pair in zip(*row))):
        for axes, along in zip(pair, ("compression", "speedup")):
            _tradeoff(axes, part, along, methods)
        pair[0].set_xlabel("compression ratio (all synapses / synapses left)")
        pair[1].set_xlabel("theoretical speed-up (all multiply-accumulates / those left)")
    handles = [_handle(method) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    seeds = table.groupby(["benchmark", "method", "ratio"]).size()
    _counted(figure, seeds, "points: ")
    return figure


def _tradeoff(axes, part: pd.DataFrame, along: str, methods: list[str]) -> None:
    error = 1 - part["test_accuracy"]
    for method in methods:
        drawn, runs = look(method), part[part["method"] == method]
        groups = runs.groupby("ratio")
        value = groups["test_accuracy"].agg(["mean", "min", "max"])
        if method == "unpruned":
            for row in value.itertuples():
                axes.axhline(1 - row.mean, color=drawn.color, linewidth=1.6, zorder=1.5)
                axes.axhspan(1 - row.max, 1 - row.min, color=drawn.color, alpha=0.2, linewidth=0)
            continue
        spread = [value["max"] - value["mean"], value["mean"] - value["min"]]
        axes.errorbar(groups[along].mean(), 1 - value["mean"], spread, color=drawn.color, capsize=2.5, linewidth=1.4,
                      marker=drawn.marker, markersize=6)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    least, most = 0.85 * error[error > 0].min(), min(1.0, 1.1 * error.max())
    steps = [0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9]
    shown = [step for step in steps if least <= step <= most]
    if most / least > 20:
        shown = [step for step in shown if step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)]
    axes.set_yticks(shown)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - value):.4g} %"))
    axes.set_ylim(most, least)
    axes.set_ylabel("test accuracy\n(log of the error)" if axes.get_subplotspec().is_first_col() else "")


@_styled
def sensitivity(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Validation accuracy as each layer alone is pruned by magnitude, without retraining (Han et al. 2015, figure 6).

    ``table`` as ``tradeoff.scans`` makes it. Lines are means over the seeds, bands reach from the
    smallest to the largest.
    """
    figure, grid = _panels(table, titles, heights=(3.6,))
    panels = [axes for (line,) in grid for axes in line]
    for (_, part), axes in zip(_by_benchmark(table), panels):
        names = list(dict.fromkeys(part["layer"]))
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
        for number, (name, color) in enumerate(zip(names, colors)):
            value = part[part["layer"] == name].groupby("density")["validation_accuracy"].agg(["mean", "min", "max"])
            axes.plot(value.index, value["mean"], color=color, linestyle=("-", "--", "-.", ":")[number % 4], label=name)
            axes.fill_between(value.index, value["min"], value["max"], color=color, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlim(1, part["density"].min())
        ticks = [tick for tick in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005) if tick >= part["density"].min()]
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_ylim(0, 1)
        axes.set_xlabel("density of the one layer that is pruned")
        axes.set_ylabel("validation accuracy" if axes.get_subplotspec().is_first_col() else "")
        axes.legend(loc="lower left", ncols=2)
    _counted(figure, table.groupby(["benchmark", "layer", "density"]).size(), "lines: ", "bands")
    return figure


def _by_benchmark(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(name, table[table["benchmark"] == name]) for name in benchmarks(table)]


def _panels(table: pd.DataFrame, titles: Mapping[str, str], heights: tuple[float, ...]) -> tuple[Figure, list]:
    """A figure of one panel a benchmark and height (inches), up to two benchmarks in a row.

    The panels come as rows of benchmarks, each a list for each height.
    """
    names = benchmarks(table)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    size = (5 * columns + (2 if columns == 1 else 0), sum(heights) * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(heights) * rows, columns, squeeze=False, height_ratios=heights * rows)
    for number, benchmark in enumerate(names):
        grid[len(heights) * (number // columns), number % columns].set_title(title(benchmark, titles))
    for axes in grid.T.flatten()[len(grid.flatten()) - len(heights) * (rows * columns - len(names)):]:
        axes.remove()
    return figure, [[list(line) for line in grid[len(heights) * row:len(heights) * (row + 1)]] for row in range(rows)]


def _missed(runs: pd.DataFrame) -> str:
    """How many runs did not reach their requirement, as 2/5; empty if all did."""
    missed = int((~runs["reached"]).sum())
    return f"{missed}/{len(runs)}" if missed else ""


def _offset(method: str, methods: list[str]) -> float:
    return 0.84 * ((methods.index(method) + 0.5) / len(methods) - 0.5)


def _points(axes, place: float, values: pd.Series, reached: pd.Series, drawn: Look) -> None:
    mean = values.mean()
    axes.errorbar(place, mean, _range(values), color=drawn.color, capsize=3, linewidth=1.6)
    axes.plot(place, mean, marker=drawn.marker, linestyle="", color=drawn.color, markersize=8, zorder=4,
              markerfacecolor=drawn.color if reached.all() else "white", markeredgewidth=1.4)
    for value, met in zip(values, reached):
        axes.plot(place, value, marker=drawn.marker, linestyle="", color=drawn.color, markersize=3.5, zorder=3,
                  alpha=0.7, markerfacecolor=drawn.color if met else "white")


def _range(values: pd.Series) -> list[list[float]]:
    """From the mean down to the smallest and up to the largest, as error bars want it; never below zero by rounding."""
    mean = values.mean()
    return [[max(mean - values.min(), 0.0)], [max(values.max() - mean, 0.0)]]


def _bar(axes, place: float, width: float, runs: pd.DataFrame, drawn: Look) -> None:
    values, missed = runs["iterations"], _missed(runs)
    mean = values.mean()
    colors = {"facecolor": "white", "edgecolor": drawn.color, "linestyle": "--"} if missed else {
        "facecolor": drawn.color, "edgecolor": "white"}
    axes.bar(place, mean, width, hatch=drawn.hatch, linewidth=1.2 if missed else 0.6, **colors)
    axes.errorbar(place, mean, _range(values), color=INK, capsize=2.5, linewidth=1.2)
    axes.annotate(missed, (place, values.max()), xytext=(0, 4), textcoords="offset points",
                  ha="center", va="bottom", fontsize=8, rotation=90, fontweight="bold")


def _handle(method: str, bar: bool = False):
    drawn = look(method)
    if bar:
        return Patch(facecolor=drawn.color, edgecolor="white", hatch=drawn.hatch, label=drawn.label)
    return Line2D([], [], color=drawn.color, marker=drawn.marker, markersize=8, label=drawn.label)


def _groups(axes, requirements: list[float]) -> None:
    axes.set_xticks(range(len(requirements)), [_percent(requirement) for requirement in requirements])
    axes.set_xlim(-0.5, len(requirements) - 0.5)
    for edge in range(1, len(requirements)):
        axes.axvline(edge - 0.5, color=FAINT, linewidth=0.8, zorder=0.5)
    axes.set_xlabel("required validation accuracy")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def _caption(figure: Figure, table: pd.DataFrame, before: str) -> None:
    _counted(figure, table.groupby(["benchmark", "requirement", "method"]).size(), before)


def _counted(figure: Figure, counts: pd.Series, before: str, spread: str = "error bars") -> None:
    n = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    text = before + MEAN_AND_RANGE.format(n=n, spread=spread)
    figure.suptitle(text, fontsize=9, color=SOFT, x=0.995, ha="right")


def _percent(fraction: float) -> str:
    """Three significant digits from 10 % on, two below: 37.6 %, 2.3 %, 0.12 %."""
    value = 100 * fraction
    return f"{value:.3g} %" if value >= 10 else f"{value:.2g} %"


def _density_axis(axes, lowest: float, top: float = 1.25) -> None:
    axes.set_yscale("log")
    ticks = [base * 10.0**power for power in range(-5, 0) for base in (1, 2, 5)] + [1.0]
    bottom = min(0.8 * lowest, 0.45)
    steps = [tick for tick in ticks if tick >= bottom]
    if len(steps) > 8:
        steps = [tick for tick in steps if np.isclose(np.log10(tick) % 1, 0) or np.isclose(np.log10(tick) % 1, 1)]
    axes.set_yticks(steps)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom, top)


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _run_title(record: dict) -> str:
    run = record["run"]
    text = f"{title(run['benchmark'], {run['benchmark']: record['data']})}: {look(run['method']).label}"
    return f"{text}, requirement {_percent(run['requirement'])}, seed {run['seed']}"


# Drawings.


@_styled
def benchmarks_table(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """The report's figure 3: each benchmark's network, with synapses and multiply-accumulates per layer.

    ``table`` needs the columns benchmark and network. Cells are shaded by their share of the total.
    """
    networks = {name: part["network"].iloc[0] for name, part in _by_benchmark(table)}
    most = max(len(layers(notation)) for notation in networks.values())
    figure = Figure(figsize=(2.2 + 1.12 * (most + 2), 2.75 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, (benchmark, notation) in zip(grid, networks.items()):
        _network(axes, notation, most)
        axes.set_title(f"{title(benchmark, titles)}    {notation}", pad=2)
    return figure


def _network(axes, notation: str, most: int) -> None:
    """One network in a row: its maps and neurons drawn to scale (logarithmic), its numbers below."""
    found = layers(notation)
    axes.set(xlim=(-2.0, most + 1.55), ylim=(-2.25, 2.0))
    axes.axis("off")
    channels, height, width = input_shape(notation)
    _maps(axes, 0, channels, height, width, "#b5b5b5")
    axes.text(0, -0.62, "input", fontsize=9, fontweight="bold", **CENTER)
    for number, layer in enumerate(found, start=1):
        if layer.kind == "conv":
            side = round(layer.output_positions**0.5)
            _maps(axes, number, layer.shape[0], side, side, "#0072b2")
        else:
            tall = 0.42 * np.log10(layer.shape[0])
            axes.add_patch(Rectangle((number - 0.07, 0.75 - tall / 2), 0.14, tall, color="#e69f00", ec=INK, lw=0.8))
            axes.text(number, -0.2, f"{layer.shape[0]} neurons", fontsize=7.5, color=SOFT, **CENTER)
        axes.text(number, -0.62, layer.name, fontsize=9, fontweight="bold", **CENTER)
    axes.text(-0.55, -1.02, "weights (out × in)", ha="right", va="center", fontsize=8.5)
    for number, layer in enumerate(found, start=1):
        axes.text(number, -1.02, " × ".join(map(str, layer.shape)), fontsize=8, **CENTER)
    axes.text(most + 1, -0.62, "total", fontsize=9, fontweight="bold", **CENTER)
    rows = {
        "synapses": [layer.synapses for layer in found],
        "multiply-accumulates\nper image": [layer.macs for layer in found],
    }
    for y, (name, values) in zip((-1.48, -1.94), rows.items()):
        axes.text(-0.55, y, name, ha="right", va="center", fontsize=8.5, linespacing=0.95)
        for number, value in enumerate(values, start=1):
            shade = 0.06 + 0.4 * value / sum(values)
            axes.add_patch(Rectangle((number - 0.48, y - 0.2), 0.96, 0.4, color="#0072b2", alpha=shade, lw=0))
            axes.text(number, y, f"{value:,}", fontsize=8, **CENTER)
        axes.text(most + 1, y, f"{sum(values):,}", fontsize=8.5, fontweight="bold", **CENTER)


def _maps(axes, x: float, count: int, height: int, width: int, color: str) -> None:
    side, drawn = 0.27 * np.log2(max(height, 2)) / 2, min(count, 4)
    for number in range(drawn):
        shift = 0.07 * (number - (drawn - 1) / 2)
        corner = (x - side / 2 + shift, 0.75 - side * 0.9 - shift)
        axes.add_patch(Rectangle(corner, side, 1.8 * side, fc=color, ec="white", lw=0.9))
    axes.text(x, -0.2, f"{count} × {height}×{width}", fontsize=7.5, color=SOFT, **CENTER)


@_styled
def iterative_pruning(record: dict, layer: str | None = None) -> Figure:
    """The report's figure 1: the cycle of iterative pruning, and a trained layer before and after it."""
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    left, before, after = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    _cycle(left)
    _connections(before, after, record, layer)
    figure.suptitle(_run_title(record), x=0.995, ha="right", fontsize=9, color=SOFT)
    return figure


@_styled
def cycle() -> Figure:
    """Train the connectivity, prune below the thresholds, retrain, and again while the requirement is met."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    _cycle(figure.subplots())
    return figure


@_styled
def connections(record: dict, layer: str | None = None) -> Figure:
    """A layer's connections before and after pruning, from the mask in the record (its last linear layer's)."""
    figure = Figure(figsize=(6.8, 5), layout="constrained")
    _connections(*figure.subplots(1, 2), record, layer)
    figure.suptitle(_run_title(record), x=0.995, ha="right", fontsize=9, color=SOFT)
    return figure


def _cycle(axes) -> None:
    axes.set(xlim=(-0.1, 11.2), ylim=(-0.4, 9.6))
    axes.axis("off")
    _box(axes, 3.6, 8.6, 6.8, 1.7, "Train the connectivity", "all synapses, until the\nrequirement is met", BLUE)
    _box(axes, 3.6, 5.4, 6.8, 1.7, "Prune", "cut every synapse with a weight\nat or below the threshold", ORANGE)
    _box(axes, 3.6, 2.2, 6.8, 1.7, "Retrain (recovery)", "the synapses that are left\nmake up for the others", GREEN)
    _arrow(axes, (3.6, 7.75), (3.6, 6.25))
    _arrow(axes, (3.6, 4.55), (3.6, 3.05))
    _arrow(axes, (7.0, 2.2), (7.0, 5.4), bend=0.6)
    axes.text(8.2, 3.8, "requirement\nmet again:\nnext round,\nthresholds rise", ha="left", va="center", fontsize=8.5)
    _arrow(axes, (3.6, 1.35), (3.6, 0.5))
    ending = "not recovered in time: deliver the sparsest\nmodel that met the requirement"
    axes.text(3.6, 0.0, ending, fontsize=8.5, **CENTER)


def _connections(before, after, record: dict, name: str | None) -> None:
    shown = {part["name"]: part for part in record["layers"] if "mask" in part and len(part["shape"]) == 2}
    if not shown or name not in (None, *shown):
        raise ValueError(
            f"the record of {record['run']['name']} holds masks of the linear layers {', '.join(shown) or '(none)'}, "
            f"not of {name or 'any'}"
        )
    part = shown[name or list(shown)[-1]]
    outputs, inputs = part["shape"]
    bits = np.frombuffer(base64.b64decode(part["mask"]), np.uint8)
    mask = np.unpackbits(bits, count=outputs * inputs).reshape(outputs, inputs).astype(bool)
    color = look(record["run"]["method"]).color
    for axes, keep, when in ((before, np.ones_like(mask), "before"), (after, mask, "after")):
        left, right = np.linspace(0, 1, inputs), np.linspace(0.04, 0.96, outputs)
        lines = [((0, left[i]), (1, right[o])) for o, i in zip(*np.nonzero(keep))]
        # Fewer lines are drawn stronger, so that both pictures carry about the same ink.
        weight = float(np.clip(60 / max(len(lines), 1), 0.12, 1))
        drawn = {"linewidths": 0.5 + 0.6 * weight, "alpha": 0.25 + 0.6 * weight}
        axes.add_collection(LineCollection(lines, colors=color, **drawn))
        for x, places, used, size in ((0, left, keep.any(0), 9), (1, right, keep.any(1), 34)):
            axes.scatter(np.full(len(places), x), places, s=size, c=[INK if on else "white" for on in used],
                         edgecolors=INK, linewidths=0.6, zorder=3)
        axes.set(xlim=(-0.12, 1.12), ylim=(-0.03, 1.03))
        axes.axis("off")
        axes.set_title(f"{part['name']} {when} pruning\n{len(lines):,} synapses", loc="center", fontsize=10)
    idle = int((~mask.any(0)).sum())
    notes = (f"{inputs} neurons to {outputs} classes", f"{inputs} neurons, hollow: {idle} without a synapse")
    for axes, note in zip((before, after), notes):
        axes.text(0.5, -0.05, note, ha="center", va="top", fontsize=8, color=SOFT)


@_styled
def implementation() -> Figure:
    """The report's figure 2: masks in the forward and backward pass, prune control between training steps."""
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 21), ylim=(0, 11.4))
    axes.axis("off")
    back, note = "#b04a00", {"fontsize": 8.5, "va": "center"}
    head = {"fontsize": 10, "fontweight": "bold", "color": SOFT, "va": "center"}
    _band(axes, 0.3, 7.1, 20.4, 4.2, "#f7f7f7", FAINT)
    axes.text(0.7, 10.9, "Between training steps, at every evaluation", **head)
    _band(axes, 0.3, 0.1, 20.4, 6.5, "#f7f7f7", FAINT)
    axes.text(0.7, 0.5, "Every iteration: one training step", **head)

    _box(axes, 17.4, 9.3, 4.4, 1.8, "Evaluation", "accuracy on the\nvalidation split", BLUE)
    _box(axes, 11.6, 9.3, 4.8, 1.8, "Prune control", "requirement met? recovered?\npatience or budget spent?", ORANGE)
    _box(axes, 5.6, 9.3, 4.8, 1.8, "Criterion, threshold", "a score for each synapse,\na threshold a layer", ORANGE)
    _arrow(axes, (15.2, 9.3), (14.0, 9.3))
    _arrow(axes, (9.2, 9.3), (8.0, 9.3))
    axes.text(8.6, 9.65, "prune", ha="center", **note)
    _arrow(axes, (11.6, 8.4), (11.6, 7.4))
    axes.text(11.85, 7.8, "stop: deliver the sparsest\nmodel that met the requirement", **note)

    _band(axes, 3.5, 1.95, 10.9, 3.95, "white", SOFT)
    axes.text(14.1, 5.55, "each masked layer", ha="right", color=SOFT, **note)
    _box(axes, 1.85, 3.9, 2.2, 1.3, "Batch", "images", BLUE)
    _box(axes, 5.6, 4.8, 3.2, 1.35, "Mask", "one bit a synapse", ORANGE)
    _box(axes, 5.6, 2.9, 3.2, 1.35, "Weight", "one number a synapse", GREEN)
    _box(axes, 9.2, 3.9, 2.6, 1.5, "Select", "weight where\nmask, else 0", GREEN)
    _box(axes, 12.6, 3.9, 2.8, 1.5, "Layer", "convolution or\nfully connected", GREEN)
    _box(axes, 17.4, 3.9, 3.0, 1.35, "Loss", "cross-entropy", BLUE)
    _box(axes, 10.3, 0.95, 4.4, 1.2, "Optimizer", "a step of the weights", BLUE)
    for start, end in (
        ((2.95, 3.9), (3.5, 3.9)), ((7.2, 4.8), (7.9, 4.25)), ((7.2, 2.9), (7.9, 3.55)),
        ((10.5, 3.9), (11.2, 3.9)), ((14.4, 3.9), (15.9, 3.9)), ((17.4, 4.58), (17.4, 8.4)), ((5.6, 8.4), (5.6, 5.5)),
    ):
        _arrow(axes, start, end)
    axes.text(5.85, 7.8, "new mask:\nwhat is cut stays cut", **note)
    axes.text(17.65, 7.4, "the model as it is", **note)
    axes.plot([17.4, 17.4], [3.2, 0.95], color=back, linestyle="--")
    _arrow(axes, (17.4, 0.95), (12.5, 0.95), color=back, linestyle="--")
    axes.text(14.95, 1.45, "backward: gradient zero\nwhere the mask is off", ha="center", color=back, **note)
    axes.plot([8.1, 5.6], [0.95, 0.95], color=back, linestyle="--")
    _arrow(axes, (5.6, 0.95), (5.6, 2.2), color=back, linestyle="--")
    return figure


def _band(axes, x: float, y: float, width: float, height: float, color: str, edge: str) -> None:
    round_edges = "round,pad=0,rounding_size=0.25"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=round_edges, facecolor=color, edgecolor=edge))


def _box(axes, x: float, y: float, width: float, height: float, head: str, text: str, color: str) -> None:
    """A rounded box around (x, y) with a bold head above its text."""
    _band(axes, x - width / 2, y - height / 2, width, height, color, INK)
    lines = text.count("\n") + 1
    axes.text(x, y + 0.24 * lines, head, fontsize=10, fontweight="bold", **CENTER)
    axes.text(x, y - 0.3, text, fontsize=8.5, linespacing=1.15, **CENTER)


def _arrow(axes, start: tuple, end: tuple, bend: float = 0.0, color: str = INK, **kind) -> None:
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=14,
                                   color=color, linewidth=1.4, shrinkA=0, shrinkB=2, zorder=3, **kind))
