"""Masks as pictures: strips over the rounds, an animation of all layers, the paths from pixels to classes.

from pruning.analysis.masks import rounds_of
rounds = rounds_of(run)
figure, moving = filters(rounds, "MNIST"), animation(rounds, "MNIST")     # a figure, and a GIF's bytes
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pruning.analysis.figures.panels import note
from pruning.analysis.figures.style import FEW, SOFT, percent, png, style, styled
from pruning.analysis.masks import Rounds

THERE, GONE = "#0072b2", "#e4e4e4"
COLUMNS = 12  # of a strip
MOST = 500_000  # synapses that are drawn one by one
WIDTH, MARGIN = 830, 14  # of the animation, in pixels
FRAME, LAST = 1000, 4000  # milliseconds of a frame, and of the last one


def drawable(record: Mapping) -> bool:
    """Tell whether a record's network is one of few layers, linear and 2-d convolutional, small enough to be drawn."""
    shapes, synapses = [part["shape"] for part in record["layers"]], record["result"]["synapses"]
    return {len(shape) for shape in shapes} <= {2, 4} and len(shapes) <= FEW and synapses <= MOST


def tiled(layer: np.ndarray) -> np.ma.MaskedArray:
    """Lay a layer out as one picture: linear [out, in] as it is, filters [out, in, H, W] in a row, a gap between them.

    >>> tiled(np.ones((6, 1, 5, 5))).shape
    (5, 35)
    """
    if layer.ndim == 2:
        return np.ma.masked_array(layer)
    outputs, inputs, height, width = layer.shape
    grid = np.ma.masked_all((inputs, height + 1, outputs, width + 1), layer.dtype)
    grid[:, :height, :, :width] = layer.transpose(1, 2, 0, 3)
    return grid.reshape(inputs * (height + 1), outputs * (width + 1))[:-1, :-1]


@styled
def filters(rounds: Rounds, title: str) -> Figure:
    """Draw the masks of the first convolution and of the first linear layer, round after round.

    A convolution's filters stand below each other, its input channels side by side; of a linear layer a row is an
    input, a column a neuron. Of many rounds a choice is drawn.
    """
    chosen = np.unique(np.linspace(0, rounds.count, COLUMNS).round().astype(int))
    named = {layer.ndim: name for name, layer in reversed(rounds.outlived.items()) if layer.ndim in (2, 4)}
    strips = [(named[kind], rounds.outlived[named[kind]]) for kind in (4, 2) if kind in named]
    figure = Figure(figsize=(10.5, 3.4 * len(strips) - 0.6), layout="constrained")
    grid = figure.subplots(len(strips), len(chosen), squeeze=False)
    densities = rounds.densities()
    for line, (name, layer) in zip(grid, strips):
        picture = tiled(layer.swapaxes(0, 1) if layer.ndim == 4 else layer.T)
        for axes, number in zip(line, chosen):
            _picture(axes, picture >= number, [GONE, THERE])
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_xlabel(percent(float((layer >= number).mean())), fontsize=9)
        line[0].set_ylabel(f"{name}\n({' × '.join(map(str, layer.shape))})")
    for axes, number in zip(grid[0], chosen):
        head = f"round {number}" if number else "before"
        axes.set_title(f"{head}\n{percent(densities[number])}", loc="center", fontsize=9)
    note(figure, f"{title}; blue: synapses left, of the network above, of a layer below it")
    return figure


@styled
def outlived(rounds: Rounds, title: str) -> Figure:
    """Draw every synapse of a network in the shade of the round that cuts it, blue where it stays."""
    # Light to dark, a shade for each round.
    light, dark = np.array([0.98, 0.89, 0.77]), np.array([0.60, 0.20, 0.02])
    shades = [tuple(light + (dark - light) * number / max(rounds.count - 1, 1)) for number in range(rounds.count)]
    labels = [f"{(layer == rounds.count).sum():,} of {layer.size:,} stay" for layer in rounds.outlived.values()]
    figure, axes, y = _scene(rounds.outlived, labels, f"{title}: which round cuts which synapse", [*shades, THERE])
    axes.text(MARGIN, y, "cut in round", fontsize=9, va="center")
    wide = min(46, (WIDTH - 220) / max(rounds.count, 1))
    for number, shade in enumerate([*shades, THERE]):
        x = MARGIN + 90 + number * wide
        axes.add_patch(Rectangle((x, y - 7), 14, 14, color=shade, linewidth=0))
        last = number == rounds.count
        if wide > 24 or last or number % 5 == 0:
            axes.text(x + 18, y, "stays" if last else f"{number + 1}", fontsize=9, va="center")
    return figure


def animation(rounds: Rounds, title: str) -> bytes:
    """Return a GIF of a network's masks, a frame after each round, over and over.

    The first frame, which is seen where nothing moves, as on paper, is that of the last round. ``outlived`` is the
    still picture beside it.
    """
    frames = []
    for number, (iteration, density) in enumerate(zip(rounds.iterations, rounds.densities())):
        when = (
            f"after round {number} of {rounds.count}, iteration {iteration:,}" if number else "before the first round"
        )
        left = {name: layer >= number for name, layer in rounds.outlived.items()}
        labels = [f"{layer.sum():,} of {layer.size:,}" for layer in left.values()]
        with style():
            figure, axes, y = _scene(left, labels, f"{title}, {when}: {percent(density)} left", [GONE, THERE])
            axes.text(MARGIN, y, "blue: synapses left; grey: cut", fontsize=9, va="center")
            frames.append(PIL.Image.open(io.BytesIO(png(figure, dpi=100))).convert("RGB"))
    # One palette for all, so that nothing flickers: the colours, and greys for the edges of letters.
    palette = PIL.Image.new("P", (1, 1))
    greys = [(grey, grey, grey) for grey in range(34, 256, 17)]
    colours = [tuple(round(255 * part) for part in to_rgb(colour)) for colour in ("white", THERE, GONE)]
    palette.putpalette([part for colour in (*colours, *greys) for part in colour])
    flat = [frame.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for frame in frames]
    times = [LAST, *[FRAME] * rounds.count]
    buffer = io.BytesIO()
    flat[-1].save(buffer, "gif", save_all=True, append_images=flat[:-1], duration=times, loop=0, optimize=True)
    return buffer.getvalue()


def moving(gif: bytes, still: Figure, alt: str) -> str:
    """Return an animation as HTML, with the still figure for print and for readers who want nothing to move."""
    inside = {kind: base64.b64encode(data).decode() for kind, data in (("gif", gif), ("png", png(still, dpi=100)))}
    return (
        '<picture><source media="print, (prefers-reduced-motion: reduce)" '
        f'srcset="data:image/png;base64,{inside["png"]}">'
        f'<img style="max-width: 100%; height: auto" src="data:image/gif;base64,{inside["gif"]}" alt="{escape(alt)}">'
        "</picture>"
    )


def _scene(
    layers: Mapping[str, np.ndarray], labels: Sequence[str], head: str, colours: Sequence
) -> tuple[Figure, Axes, float]:
    """Draw all layers beside and below each other, whole pixels a synapse; returns figure, axes and a line below."""
    parts, x, y, tall = [], MARGIN, 62, 0
    for (name, layer), label in zip(layers.items(), labels):
        picture = tiled(layer)
        cells = picture.shape[1]
        cell = 8 if picture.size < 500 else 4 if picture.size < 5000 else 2 if 2 * cells < WIDTH - 2 * MARGIN else 1
        height, width = cell * picture.shape[0], cell * cells
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y, tall = MARGIN, y + tall + 34, 0
        parts.append((picture, f"{name}: {label}", x, y, width, height))
        x, tall = x + max(width, 150) + 22, max(tall, height)
    bottom = y + tall + 26
    figure = Figure(figsize=(WIDTH / 100, (bottom + 22) / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(MARGIN, 20, head, fontsize=11, fontweight="bold", va="center")
    for picture, text, left, top, width, height in parts:
        axes.text(left, top - 6, text, fontsize=9, va="bottom")
        _picture(axes, picture, colours, extent=(left, left + width, top + height, top))
    axes.set(xlim=(0, WIDTH), ylim=(bottom + 22, 0), aspect="auto")
    return figure, axes, bottom


def _picture(axes: Axes, picture: np.ndarray, colours: Sequence, **more) -> None:
    axes.imshow(picture, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, interpolation="nearest", **more)
    axes.grid(False)


@styled
def reach(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Draw for each class how many paths through the masks lead to it from each input pixel, white where none does.

    ``counts`` has for each network, by its name, what ``paths`` gives: [classes, C, H, W]; channels are summed up.
    """
    figure = Figure(figsize=(1.05 * len(classes) + 0.9, 1.5 * len(counts) + 0.3), layout="constrained")
    grid = figure.subplots(len(counts), len(classes), squeeze=False)
    for line, (name, maps) in zip(grid, counts.items()):
        pixels = np.ma.masked_equal(maps.sum(1), 0)
        for axes, seen, label in zip(line, pixels, classes):
            drawn = axes.imshow(
                seen, cmap="viridis_r", norm=LogNorm(pixels.min(), pixels.max()), interpolation="nearest"
            )
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set(visible=True, color=SOFT, linewidth=0.8)
            axes.set_title(label, loc="center", fontsize=9, fontweight="normal")
        line[0].set_ylabel(name, fontsize=9)
        figure.colorbar(drawn, ax=line, pad=0.01, label="paths")
    return figure
