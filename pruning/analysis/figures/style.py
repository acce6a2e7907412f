"""What all figures share: each method's look, the names of benchmarks, rendering to the same bytes.

>>> look("rigl").label, title("cifar10-2c", {"cifar10-2c": "CIFAR-10"})
('RigL', 'CIFAR-10, 2 convolutions')
"""

from __future__ import annotations

import functools
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.figure import Figure

from pruning.files import write_whole
from pruning.study.benchmarks import BENCHMARKS

INK, SOFT, GREY, FAINT = "#222222", "#6b6b6b", "#a6a6a6", "#d9d9d9"
# Of these matplotlib's own values, whatever a user's matplotlibrc says.
PLAIN = {
    key: value
    for key, value in matplotlib.rcParamsDefault.items()
    if key.split(".")[0] in ("axes", "font", "grid", "image", "lines", "patch", "text", "xtick", "ytick")
}
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SOFT, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "lines.linewidth": 1.6,
    "legend.frameon": False, "figure.facecolor": "white", "hatch.linewidth": 0.9,
    "lines.solid_capstyle": "round", "patch.edgecolor": "w", "patch.force_edgecolor": True,
    "svg.hashsalt": "synapse pruning", "svg.fonttype": "path", "pdf.fonttype": 42,
}  # fmt: skip
REPORTED_LINE: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4}


@dataclass(frozen=True)
class Look:
    """How a method is drawn and named: its label begins with its code."""

    color: str
    marker: str | tuple
    hatch: str
    label: str

    def mark(self, size: float, filled: bool = True, **more) -> dict[str, Any]:
        """Return how ``Axes.plot`` draws the method's marker, hollow where it is not filled."""
        face = self.color if filled else "white"
        return {"marker": self.marker, "ls": "", "color": self.color, "ms": size, "mfc": face} | more


# In the order in which methods stand in legends. The colours of the first are those of Okabe and Ito (2008), safe
# for the colour-blind; there are no more of them, so the others are told apart by their markers first.
LOOKS = {
    "unpruned": Look("#999999", "s", "", "unpruned"),
    "iterative": Look("#0072b2", "o", "", "iterative (the report's)"),
    "gradual": Look("#e69f00", "^", "///", "gradual"),
    "oneshot": Look("#009e73", "D", "...", "one-shot"),
    "random": Look("#cc79a7", "X", "xxx", "random"),
    "small": Look("#56b4e9", "v", "---", "small (dense network)"),
    "adaptive": Look("#d55e00", "*", "\\\\\\", "adaptive (this study's)"),
    "uniform": Look("#7a5195", "<", "|||", "uniform"),
    "erk": Look("#9c755f", ">", "+++", "ERK"),
    "lamp": Look("#4e79a7", "p", "x", "LAMP"),
    "sensitivity": Look("#8cb369", "h", "|-", "sensitivity (averaged SNIP)"),
    "snip": Look("#2f4b7c", "P", "/-", "SNIP"),
    "lottery": Look("#b5a200", "d", "//", "lottery (ticket)"),
    "raterewind": Look("#5f9ea0", "H", "..", "rate rewind"),
    "rigl": Look("#a23b72", "8", "xx", "RigL"),
    "movement": Look("#6a994e", (4, 1, 0), "+", "movement"),
    "dsd": Look("#d4a5a5", (6, 1, 0), "||", "DSD (dense-sparse-dense)"),
    "surgery": Look("#3d405b", (3, 1, 0), "++", "surgery (dynamic network surgery)"),
    "biased": Look("#81a4cd", (3, 1, 180), "--", "biased (weight decay)"),
    "hashed": Look("#7f7f3f", (5, 0, 0), "o", "hashed (HashedNets)"),
    "adaptive-patient": Look("#9a3d00", (5, 1, 36), "\\\\|", "adaptive, patient"),
    "adaptive-tireless": Look("#5c2200", (8, 1, 22), "|||", "adaptive, tireless"),
    "adaptive-magnitude": Look("#c8553d", (5, 1, 0), "/o", "adaptive, magnitude (alone)"),
    "adaptive-thorough": Look("#7a2e1d", (7, 1, 26), "\\o", "adaptive, thorough (each step evaluated)"),
    "adaptive-uncompensated": Look("#e89a5b", (4, 0, 0), "\\\\", "adaptive, uncompensated"),
    "adaptive-strict": Look("#f2c14e", (7, 1, 0), "\\\\-", "adaptive, strict (no tolerance)"),
    "adaptive-constant": Look("#c0705a", (8, 1, 0), "/", "adaptive, constant (tolerance)"),
    "adaptive-coarse": Look("#b07aa1", (3, 0, 0), "/|", "adaptive, coarse (large steps)"),
    "adaptive-steep": Look("#59a14f", (6, 0, 0), "|-|", "adaptive, steep (no limit on descents)"),
}
SPARE = [
    (color, marker, hatch)
    for color in ("#ca9161", "#ece133", "#fbafe4")  # of seaborn's colour-blind palette
    for marker, hatch in zip("vP<>ph*", ("\\\\\\", "+++", "ooo", "---", "|||", "OO", "**"))
]
FEW = 12  # layers that are told apart by name; of a deeper network a choice is
NETWORKS = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5-Caffe"}


def look(method: str) -> Look:
    """Return the method's look; one that ``LOOKS`` lacks gets a look that follows from its name alone."""
    return LOOKS.get(method) or Look(*SPARE[zlib.crc32(method.encode()) % len(SPARE)], method)


def ordered(methods: Iterable[str], known: Iterable[str] = LOOKS) -> list[str]:
    """Sort methods, each once: those of ``LOOKS`` in its order, then the others by name."""
    present = set(methods)
    return [name for name in known if name in present] + sorted(present - set(known))


def benchmarks(table: pd.DataFrame) -> list[str]:
    """List the table's benchmarks: the known ones in the study's order, then the others by name."""
    return ordered(table["benchmark"], BENCHMARKS)


def title(benchmark: str, titles: Mapping[str, str]) -> str:
    """Name a benchmark as figures do: "CIFAR-10 (JPEG copy), 2 convolutions"; one of a study's own by its name."""
    data, convolutions = titles.get(benchmark, benchmark), re.search(r"-(\d+)c$", benchmark)
    network = f"{convolutions[1]} convolutions" if convolutions else NETWORKS.get(benchmark, benchmark)
    return data if network == data else f"{data}, {network}"


def spread(values: Iterable[float], form: str = "{:.1%}") -> str:
    """Write mean over seeds (smallest to largest), as the error bars show them; "-" where there is no value."""
    present = [float(value) for value in values if not pd.isna(value)]
    if not present:
        return "-"
    mean, least, most = (form.format(value) for value in (np.mean(present), min(present), max(present)))
    return mean if least == most else f"{mean} ({least} to {most})"


def shades(count: int) -> list[tuple]:
    """Return the colours of a network's layers, dark to light."""
    return [tuple(color) for color in matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))]


def sparse(names: Sequence[str]) -> list[str]:
    """Choose of a network's layers those that a figure names: all, or ``FEW`` from the first to the last."""
    if len(names) <= FEW:
        return list(names)
    return [names[round(place)] for place in np.linspace(0, len(names) - 1, FEW)]


def dashes(count: int) -> list[tuple]:
    """Return the dashes of a network's layers, matplotlib's own, so that they are told apart without colour."""
    kinds = ((), (3.7, 1.6), (6.4, 1.6, 1, 1.6), (1, 1.65))
    return [kinds[number % len(kinds)] for number in range(count)]


def percent(fraction: float) -> str:
    """Write a fraction in percent, three significant digits from 10 % on, two below: 37.6 %, 2.3 %, 0.12 %.

    What is not all is not written as all: 99.99 %.
    """
    value = 100 * fraction
    if value < 10:
        return f"{value:.2g} %"
    return next(text for digits in range(3, 18) if (text := f"{value:.{digits}g} %") != "100 %" or value >= 100)


def style():
    """Return a context in which matplotlib draws as all figures here do."""
    return matplotlib.rc_context(PLAIN | STYLE)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a function draw in this style, lay its figure out and label it with its first docstring line."""
    shows = (draw.__doc__ or "a figure").splitlines()[0].removeprefix("Draw ")

    @functools.wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with style():
            figure = draw(*args, **kwargs)
            # Laid out once, here: each further layout would move things a little, and with them the bytes.
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        # What the picture shows, for those who cannot see it.
        figure.set_label(figure.get_label() or shows[0].upper() + shows[1:])
        return figure

    return drawn


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name`` as PNG (200 dpi), SVG and PDF, the same bytes for the same figure; return the paths."""
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
    """Render the figure as PNG for a notebook: at ``dpi``, else at ``PRUNING_DPI``, else at 100 dots per inch."""
    return _rendered(figure, "png", dpi or int(os.environ.get("PRUNING_DPI") or 100), {"Software": None})


def _rendered(figure: Figure, kind: str, dpi: int, metadata: dict) -> bytes:
    buffer = io.BytesIO()
    raw: dict[str, Any] = {"pil_kwargs": {"compress_level": 0}} if kind == "png" else {}
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata, **raw)
    if kind == "png":
        # The drawings have few colours: a palette of them takes a third of the bytes.
        flat = PIL.Image.open(buffer).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
        buffer = io.BytesIO()
        flat.save(buffer, "png", dpi=(dpi, dpi))
    return buffer.getvalue()
