"""The report's drawings: how iterative pruning works (figure 1), how it is implemented (2), the networks (3)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from pruning.analysis.figures.panels import note
from pruning.analysis.figures.runs import run_title
from pruning.analysis.figures.style import FAINT, FEW, INK, SOFT, benchmarks, look, sparse, styled, title
from pruning.notation import Layer, input_shape, layers

CENTER = {"ha": "center", "va": "center"}
ARROW = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 2, "zorder": 3}
BLUE, ORANGE, GREEN = "#dcebf5", "#fbe3c4", "#d5efe5"


@styled
def iterative_pruning(record: dict) -> Figure:
    """Draw the report's figure 1: the cycle of iterative pruning, and a trained layer before and after it.

    A network without a linear layer that is small enough to draw has the cycle alone.
    """
    if not has_connections(record):
        figure = Figure(figsize=(5.2, 5), layout="constrained")
        _cycle(figure.subplots())
        note(figure, run_title(record))
        return figure
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    left, before, after = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    _cycle(left)
    _connections(before, after, record)
    note(figure, run_title(record))
    return figure


@styled
def cycle() -> Figure:
    """Draw the cycle: train, prune below the thresholds, retrain, and again while the requirement is met."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    _cycle(figure.subplots())
    return figure


@styled
def connections(record: dict) -> Figure:
    """Draw a layer's connections before and after pruning, from the mask in the record (its last linear layer's)."""
    figure = Figure(figsize=(6.8, 5), layout="constrained")
    before, after = figure.subplots(1, 2)
    _connections(before, after, record)
    note(figure, run_title(record))
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


def has_connections(record: dict) -> bool:
    """Tell whether the record holds the mask of a linear layer, which ``connections`` draws."""
    return bool(_drawable(record))


def _drawable(record: dict) -> list[dict]:
    return [part for part in record["layers"] if "mask" in part and len(part["shape"]) == 2]


def _connections(before, after, record: dict) -> None:
    linear = _drawable(record)
    if not linear:
        raise ValueError(f"the record of {record['run']['name']} holds no mask of a linear layer")
    part = linear[-1]
    outputs, inputs = part["shape"]
    bits = np.frombuffer(base64.b64decode(part["mask"]), np.uint8)
    mask = np.unpackbits(bits, count=outputs * inputs).reshape(outputs, inputs).astype(bool)
    idle = int((~mask.any(0)).sum())
    notes = (f"{inputs} neurons to {outputs} classes", f"{inputs} neurons, hollow: {idle} without a synapse")
    left, right = np.linspace(0, 1, inputs), np.linspace(0.04, 0.96, outputs)
    for axes, keep, when, text in ((before, np.ones_like(mask), "before", notes[0]), (after, mask, "after", notes[1])):
        lines = [((0, left[i]), (1, right[o])) for o, i in zip(*np.nonzero(keep))]
        # Fewer lines are drawn stronger, so that both pictures carry about the same ink.
        weight = float(np.clip(60 / max(len(lines), 1), 0.12, 1))
        drawn = {"linewidths": 0.5 + 0.6 * weight, "alpha": 0.25 + 0.6 * weight}
        axes.add_collection(LineCollection(lines, colors=look(record["run"]["method"]).color, **drawn))
        for x, places, used, size in ((0, left, keep.any(axis=0), 9), (1, right, keep.any(axis=1), 34)):
            fill = np.where(used, INK, "white")
            axes.scatter([x] * len(places), places, s=size, c=fill, edgecolors=INK, linewidths=0.6, zorder=3)
        axes.set(xlim=(-0.12, 1.12), ylim=(-0.03, 1.03))
        axes.axis("off")
        axes.set_title(f"{part['name']} {when} pruning\n{len(lines):,} synapses", loc="center", fontsize=10)
        axes.text(0.5, -0.05, text, ha="center", va="top", fontsize=8, color=SOFT)


@styled
def implementation() -> Figure:
    """Draw the report's figure 2: masks in the forward and backward pass, prune control between training steps."""
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 21), ylim=(0, 11.4))
    axes.axis("off")
    back = "#b04a00"
    text: dict[str, Any] = {"fontsize": 8.5, "va": "center"}
    head: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": SOFT, "va": "center"}
    _band(axes, 0.3, 7.1, 20.4, 4.2, "#f7f7f7", FAINT)
    axes.text(0.7, 10.9, "Between training steps, at every evaluation", **head)
    _band(axes, 0.3, 0.1, 20.4, 6.5, "#f7f7f7", FAINT)
    axes.text(0.7, 0.5, "Every iteration: one training step", **head)

    _box(axes, 17.4, 9.3, 4.4, 1.8, "Evaluation", "accuracy on the\nvalidation split", BLUE)
    _box(axes, 11.6, 9.3, 4.8, 1.8, "Prune control", "requirement met? recovered?\npatience or budget spent?", ORANGE)
    _box(axes, 5.6, 9.3, 4.8, 1.8, "Criterion, threshold", "a score per synapse,\na threshold per layer", ORANGE)
    _arrow(axes, (15.2, 9.3), (14.0, 9.3))
    _arrow(axes, (9.2, 9.3), (8.0, 9.3))
    axes.text(8.6, 9.65, "prune", ha="center", **text)
    _arrow(axes, (11.6, 8.4), (11.6, 7.4))
    axes.text(11.85, 7.8, "stop: deliver the sparsest\nmodel that met the requirement", **text)

    _band(axes, 3.5, 1.95, 10.9, 3.95, "white", SOFT)
    axes.text(14.1, 5.55, "each masked layer", ha="right", color=SOFT, **text)
    _box(axes, 1.85, 3.9, 2.2, 1.3, "Batch", "images", BLUE)
    _box(axes, 5.6, 4.8, 3.2, 1.35, "Mask", "a bit per synapse", ORANGE)
    _box(axes, 5.6, 2.9, 3.2, 1.35, "Weight", "a number per synapse", GREEN)
    _box(axes, 9.2, 3.9, 2.6, 1.5, "Select", "weight where\nmask, else 0", GREEN)
    _box(axes, 12.6, 3.9, 2.8, 1.5, "Layer", "convolution or\nfully connected", GREEN)
    _box(axes, 17.4, 3.9, 3.0, 1.35, "Loss", "cross-entropy", BLUE)
    _box(axes, 10.3, 0.95, 4.4, 1.2, "Optimizer", "a step of the weights", BLUE)
    for start, end in (
        ((2.95, 3.9), (3.5, 3.9)), ((7.2, 4.8), (7.9, 4.25)), ((7.2, 2.9), (7.9, 3.55)),
        ((10.5, 3.9), (11.2, 3.9)), ((14.4, 3.9), (15.9, 3.9)), ((17.4, 4.58), (17.4, 8.4)), ((5.6, 8.4), (5.6, 5.5)),
    ):  # fmt: skip
        _arrow(axes, start, end)
    axes.text(5.85, 7.8, "new mask: pruned\nsynapses stay pruned", **text)
    axes.text(17.65, 7.4, "the current model", **text)
    axes.plot([17.4, 17.4], [3.2, 0.95], color=back, linestyle="--")
    _arrow(axes, (17.4, 0.95), (12.5, 0.95), color=back, linestyle="--")
    axes.text(14.95, 1.45, "backward: gradient zero\nwhere the mask is off", ha="center", color=back, **text)
    axes.plot([8.1, 5.6], [0.95, 0.95], color=back, linestyle="--")
    _arrow(axes, (5.6, 0.95), (5.6, 2.2), color=back, linestyle="--")
    return figure


@styled
def benchmarks_table(table: pd.DataFrame, titles: Mapping[str, str], records: Iterable[Mapping] = ()) -> Figure:
    """Draw the report's figure 3: each benchmark's network, with synapses and multiply-accumulates per layer.

    ``table`` needs the columns benchmark and network; ``records`` tell the layers of networks that are not in the
    report's notation. Cells are shaded by their share of the total; of a network of many layers each is a bar.
    """
    networks = table.groupby("benchmark")["network"].first()[benchmarks(table)]
    own = {record["run"]["benchmark"]: _recorded(record) for record in records if "input" in record}
    parts = {name: own[name] if name in own else (input_shape(text), layers(text)) for name, text in networks.items()}
    most = min(max(len(described) for _, described in parts.values()), FEW)
    figure = Figure(figsize=(2.2 + 1.12 * (most + 2), 2.75 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, (benchmark, notation) in zip(grid, networks.items()):
        draw = _network if len(parts[benchmark][1]) <= FEW else _deep_network
        draw(axes, *parts[benchmark], most)
        axes.set_title(f"{title(benchmark, titles)}    {notation}", pad=2)
    return figure


def _recorded(record: Mapping) -> tuple[tuple[int, int, int], tuple[Layer, ...]]:
    """Return the input's shape and the layers of a network as its record tells them."""
    parts = (
        Layer(part["name"], part["kind"], tuple(part["shape"]), part["synapses"], 0, part["positions"])
        for part in record["layers"]
    )
    channels, height, width = record["input"]
    return (channels, height, width), tuple(parts)


def _input(axes, shape: tuple[int, int, int], most: int) -> None:
    """Draw the input's maps, and leave room for ``most`` layers beside them."""
    axes.set(xlim=(-2.0, most + 1.55), ylim=(-2.25, 2.0))
    axes.axis("off")
    channels, height, width = shape
    _maps(axes, 0, channels, height, width, "#b5b5b5")
    axes.text(0, -0.62, "input", fontsize=9, fontweight="bold", **CENTER)


def _deep_network(axes, shape: tuple[int, int, int], parts: Sequence[Layer], most: int) -> None:
    """Draw a network of many layers in a row: a bar a layer, its share of all synapses and of all work."""
    _input(axes, shape, most)
    places = np.linspace(0.75, most + 0.4, len(parts))
    colors = ["#0072b2" if layer.kind == "conv" else "#e69f00" for layer in parts]
    axes.text(most + 1, 1.85, "total", fontsize=9, fontweight="bold", **CENTER)
    rows = (
        (0.35, "synapses", [layer.synapses for layer in parts]),
        (-1.4, "multiply-accumulates\nper image", [layer.macs for layer in parts]),
    )
    for y, name, values in rows:
        tall = 1.4 * np.array(values) / max(values)
        axes.bar(places, tall, 0.8 * (places[1] - places[0]), bottom=y, color=colors)
        axes.plot([places[0], places[-1]], [y, y], color=FAINT, linewidth=0.8)
        axes.text(-0.55, y + 0.1, name, ha="right", va="center", fontsize=8.5, linespacing=0.95)
        axes.text(most + 1, y + 0.1, f"{sum(values):,}", fontsize=8.5, fontweight="bold", **CENTER)
    shown = sparse([layer.name for layer in parts])
    for place, layer in zip(places, parts):
        if layer.name in shown:
            axes.text(place, -1.5, layer.name, fontsize=7, rotation=25, ha="right", va="top")


def _network(axes, shape: tuple[int, int, int], parts: Sequence[Layer], most: int) -> None:
    """Draw one network in a row: its maps and neurons to scale (logarithmic), its numbers below."""
    _input(axes, shape, most)
    for number, layer in enumerate(parts, start=1):
        if layer.kind == "conv":
            side = round(layer.output_positions**0.5)
            _maps(axes, number, layer.shape[0], side, side, "#0072b2")
        else:
            tall = 0.42 * np.log10(layer.shape[0])
            axes.add_patch(Rectangle((number - 0.07, 0.75 - tall / 2), 0.14, tall, color="#e69f00", ec=INK, lw=0.8))
            axes.text(number, -0.2, f"{layer.shape[0]} neurons", fontsize=7.5, color=SOFT, **CENTER)
        axes.text(number, -0.62, layer.name, fontsize=9, fontweight="bold", **CENTER)
    axes.text(-0.55, -1.02, "weights (out × in)", ha="right", va="center", fontsize=8.5)
    for number, layer in enumerate(parts, start=1):
        axes.text(number, -1.02, " × ".join(map(str, layer.shape)), fontsize=8, **CENTER)
    axes.text(most + 1, -0.62, "total", fontsize=9, fontweight="bold", **CENTER)
    rows = (
        (-1.48, "synapses", [layer.synapses for layer in parts]),
        (-1.94, "multiply-accumulates\nper image", [layer.macs for layer in parts]),
    )
    for y, name, values in rows:
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


def _band(axes, x: float, y: float, width: float, height: float, color: str, edge: str) -> None:
    round_edges = "round,pad=0,rounding_size=0.25"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=round_edges, facecolor=color, edgecolor=edge))


def _box(axes, x: float, y: float, width: float, height: float, head: str, text: str, color: str) -> None:
    """Draw a rounded box around (x, y) with a bold head above its text."""
    _band(axes, x - width / 2, y - height / 2, width, height, color, INK)
    lines = text.count("\n") + 1
    axes.text(x, y + 0.24 * lines, head, fontsize=10, fontweight="bold", **CENTER)
    axes.text(x, y - 0.3, text, fontsize=8.5, linespacing=1.15, **CENTER)


def _arrow(axes, start: tuple, end: tuple, bend: float = 0.0, color: str = INK, **kind) -> None:
    style: dict[str, Any] = ARROW | {"connectionstyle": f"arc3,rad={bend}", "color": color}
    axes.add_patch(FancyArrowPatch(start, end, **style, **kind))
