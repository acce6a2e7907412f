"""The figures of memory, energy and deployment, in the style of ``pruning.analysis.figures``.

stored, energies = savings.tables(study)
figure = bytes_by_encoding(stored, titles(records))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pruning.analysis.figures.panels import caption, handle, hollow, label_first, note, offset, panels, points
from pruning.analysis.figures.style import INK, REPORTED_LINE, SOFT, look, ordered, percent, styled
from pruning.analysis.measurement import ENCODINGS

# Han et al. 2016, "Deep Compression", table 1: LeNet-5 on MNIST takes 39 times less memory.
DEEP_COMPRESSION = 39
NAMES = {
    "dense32": "dense\n32 bits", "bitmask": "bitmask", "csr": "CSR", "relative": "relative\nindices",
    "codebook": "+ shared\nweights", "entropy": "+ entropy\ncoding", "compact": "+ no dead\nneurons",
}  # fmt: skip
# Blue, orange and green of Okabe and Ito (2008), as everywhere, light to dark in grey too.
PARTS = {"dram_nj": ("DRAM", "#0072b2", ""), "sram_nj": ("SRAM", "#e69f00", "///"),
         "arithmetic_nj": ("arithmetic, registers", "#009e73", "...")}  # fmt: skip
VARIANTS = {"dense": ("#999999", "s", "-"), "pruned": ("#0072b2", "o", "--"), "compressed": ("#d55e00", "^", "-.")}


def highest(table: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of each benchmark's highest requirement."""
    return table[table["requirement"] == table.groupby("benchmark")["requirement"].transform("max")]


@styled
def bytes_by_encoding(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Size of the pruned networks' files under each encoding, at the highest requirement of each benchmark.

    ``table`` is ``savings.tables``' first. Numbers at a point say how many times smaller than
    dense its mean is, the smallest of its encoding; a run that did not meet its requirement is hollow.
    """
    table = highest(table)
    methods = ordered(table["method"])
    figure, parts = panels(table, titles, heights=(3.9,))
    for part, (axes,) in parts:
        dense = part["dense_bytes"].iloc[0]
        for number, encoding in enumerate(ENCODINGS):
            rows = part[part["encoding"] == encoding]
            for method, runs in rows.groupby("method"):
                place = number + offset(method, methods)
                points(axes, place, runs["bytes"], runs["reached"], look(method))
            means = rows.groupby("method")["bytes"].mean()
            if encoding != "dense32":
                best = means.idxmin()
                axes.annotate(
                    f"{dense / means[best]:.3g}×",
                    (number + offset(best, methods), rows.loc[rows["method"] == best, "bytes"].min()),
                    xytext=(7, -9),
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    fontsize=8.5,
                    fontweight="bold",
                    color=look(best).color,
                    bbox={"color": "white", "pad": 0.5},
                )
        axes.axhline(dense / DEEP_COMPRESSION, **REPORTED_LINE)
        axes.set_yscale("log")
        axes.set_ylim(0.45 * part["bytes"].min(), 1.6 * part["bytes"].max())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xticks(range(len(ENCODINGS)), [NAMES[encoding] for encoding in ENCODINGS], fontsize=7.5)
        axes.set_xlim(-0.5, len(ENCODINGS) - 0.5)
        axes.tick_params(axis="x", length=0)
        label_first(axes, "file in bytes, log scale")
        requirement = part["requirement"].iloc[0]
        axes.set_title(f"at {percent(requirement)}", loc="right", fontsize=9, color=SOFT, fontweight="normal")
    handles = [handle(method) for method in methods]
    handles.append(
        Line2D([], [], label=f"{DEEP_COMPRESSION}× smaller than dense (Han et al. 2016, LeNet-5)", **REPORTED_LINE)
    )
    if not table["reached"].all():
        handles.append(hollow("hollow: not all runs met the requirement"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    caption(figure, table[table["encoding"] == "dense32"], "small points: runs; large points: ")
    return figure


@styled
def energy_split(table: pd.DataFrame, titles: Mapping[str, str], method: str) -> Figure:
    """Energy of one classification, dense, pruned and compressed, for each size of on-chip memory.

    ``table`` is ``savings.tables``' second. Bars are means over the runs of ``method`` that met
    each benchmark's highest requirement; numbers give the energy that dense takes over theirs.
    """
    table = highest(table).query("method == @method and reached")
    figure, parts = panels(table, titles, heights=(3.6,))
    for part, (axes,) in parts:
        means = part.groupby(["on_chip_bytes", "variant"])[[*PARTS, "total_nj"]].mean() / 1e3
        sizes = sorted(part["on_chip_bytes"].unique())
        top = means["total_nj"].max()
        places = {(size, variant): 3.6 * i + j for i, size in enumerate(sizes) for j, variant in enumerate(VARIANTS)}
        for key, place in places.items():
            bottom = 0.0
            for name, (_, color, hatch) in PARTS.items():
                value = means.loc[key, name]
                axes.bar(place, value, 0.78, bottom, color=color, hatch=hatch, edgecolor="white", linewidth=0.6)
                bottom += value
            ratio = means.loc[(key[0], "dense"), "total_nj"] / means.loc[key, "total_nj"]
            text = f"{bottom:.3g}" if key[1] == "dense" else f"{bottom:.2g}\n{ratio:.3g}× less"
            axes.text(place, bottom + 0.015 * top, text, ha="center", va="bottom", fontsize=8)
        axes.set_xticks(list(places.values()), [variant for _, variant in places], fontsize=8)
        for i, size in enumerate(sizes):
            axes.text(
                3.6 * i + 1,
                -0.13,
                f"{size // 1024} KiB on chip",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=9,
                fontweight="bold",
            )
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.12 * top)
        label_first(axes, "energy a classification (µJ)")
        axes.set_title(
            f"at {percent(part['requirement'].iloc[0])}", loc="right", fontsize=9, color=SOFT, fontweight="normal"
        )
    handles = [
        Patch(facecolor=color, edgecolor="white", hatch=hatch, label=label) for label, color, hatch in PARTS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    count = table.groupby("benchmark")["seed"].nunique()
    n = f"{count.min()}" if count.min() == count.max() else f"{count.min()} to {count.max()}"
    note(figure, f"{look(method).label}; mean of {n} seeds; 45 nm")
    return figure


@styled
def on_chip_memory(curves: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Energy of one classification against the size of the on-chip memory.

    ``curves`` has one row per benchmark, variant and size, with the columns benchmark, variant,
    on_chip_bytes, total_nj and ``dram_accesses``; the marker shows the first size at which
    nothing comes from DRAM.
    """
    figure, parts = panels(curves, titles, heights=(3.4,))
    for part, (axes,) in parts:
        for variant, (color, marker, line) in VARIANTS.items():
            rows = part[part["variant"] == variant].sort_values("on_chip_bytes")
            axes.plot(rows["on_chip_bytes"] / 1024, rows["total_nj"] / 1e3, color=color, linestyle=line)
            if len(fits := rows[rows["dram_accesses"] < 0.5]):
                axes.plot(
                    fits["on_chip_bytes"].iloc[0] / 1024,
                    fits["total_nj"].iloc[0] / 1e3,
                    marker,
                    color=color,
                    markersize=8,
                    markeredgecolor=INK,
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("on-chip memory (KiB)")
        label_first(axes, "energy a classification\n(µJ, log scale)")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=line, label=variant)
        for variant, (color, marker, line) in VARIANTS.items()
    ]
    handles.append(
        Line2D(
            [],
            [],
            color="white",
            marker="o",
            markeredgecolor=INK,
            linestyle="",
            label="from here on nothing comes from DRAM",
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@styled
def classified(images: np.ndarray, labels: Sequence[int], classes: Sequence[int], by: str, data: str) -> Figure:
    """Images with the class that a program gave each; a wrong one is framed and says what is right.

    ``images`` [N, H, W], ``labels`` and ``classes`` [N]; ``by`` names the program, ``data`` what the images are.
    """
    columns = min(10, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(0.95 * columns + 0.2, 1.3 * rows + 0.25), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, image, label, answer in zip(grid, images, labels, classes):
        right = label == answer
        axes.imshow(image, cmap="gray_r", interpolation="nearest")
        axes.set_title(
            f"{answer}" if right else f"{answer}, not {label}",
            loc="center",
            fontsize=11,
            color=INK if right else "#b04a00",
        )
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=SOFT if right else "#b04a00", linewidth=0.8 if right else 2.5)
    for axes in grid[len(images) :]:
        axes.axis("off")
    note(figure, f"{data}; above each image: what {by} says")
    return figure
