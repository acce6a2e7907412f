"""The notebooks as one HTML page: ``python -m pruning report`` writes ``build/report.html``.

The page needs nothing beside itself: pictures lie inside it, sharper than a plain screen shows
them, formulas are drawn, code is folded away. Notebooks come in the order of their numbers, behind
the README's own first part and what the reader can explore. Templates, style and scripts are in
``report/``.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import nbformat
from matplotlib.mathtext import math_to_image
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from pruning.analysis.explorers import explorers
from pruning.analysis.markup import SCREEN, SHARP, data_uri, section
from pruning.files import write_whole
from pruning.study.paths import root

EXECUTED = """<h1>The report's benchmarks, executed</h1>
<p>The first notebook, run with each benchmark of the report over all of its seeds, lies in the project's folder:</p>
"""


class ReportError(RuntimeError):
    """A report that cannot be made; the message names the file."""


class FormulaRenderer(IPythonRenderer):
    """Markdown to HTML with formulas drawn, where a browser would otherwise fetch a library."""

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return formula(body, block=True)


def notebooks() -> list[Path]:
    """List the story's notebooks by their number."""
    return sorted((root() / "notebooks").glob("[0-9]*-*.ipynb"), key=lambda path: int(path.name.split("-")[0]))


def build(paths: Iterable[Path], execute: bool = True) -> str:
    """Return the page made from notebooks; with ``execute`` they are run first, so that their figures are sharp.

    Without, they are taken as they are. Raises ``ReportError`` that names a notebook which cannot
    be read or fails.
    """
    prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(root())], **prompts)
    exporter.register_filter("markdown2html", markdown)
    exporter.register_filter("svg_uri", lambda text: data_uri(text.encode(), "image/svg+xml"))
    paths = list(paths)
    pages = {"README.md": "start"} | {f"notebooks/{path.name}": path.stem for path in paths}
    # The README up to where it lists the notebooks: they follow.
    readme = (root() / "README.md").read_text(encoding="utf-8").split("\n## Notebooks\n")[0]
    parts = [section(markdown(readme), "start", "", pages, lower=0)]
    for path in paths:
        notebook = _read(path)
        if execute:
            _execute(notebook, path)
        _measure(notebook, SHARP if execute else SCREEN)
        source = f'<p class="source">From the notebook <code>notebooks/{html.escape(path.name)}</code></p>'
        body = source + exporter.from_notebook_node(notebook)[0]
        parts.append(section(body, path.stem, "notebooks", pages))
    if executed := sorted(root().glob("data/results/report/notebooks/*.ipynb")):
        links = "".join(
            f'<li><a href="{name}">{name}</a></li>' for name in (str(path.relative_to(root())) for path in executed)
        )
        parts.append(section(f"{EXECUTED}<ul>{links}</ul>", "executed", "", pages))
    found = explorers()
    templates = root() / "report"
    scripts = ["page.js", *(["vendor/chart.umd.min.js", "explore.js"] if found else [])]
    return exporter.environment.get_template("page.html.j2").render(
        parts=parts,
        # A script's text may not end the script.
        explorers=found and found | {"data": json.dumps(found["data"], separators=(",", ":")).replace("</", "<\\/")},
        style=(templates / "style.css").read_text(encoding="utf-8"),
        scripts=[(templates / name).read_text(encoding="utf-8") for name in scripts],
    )


def markdown(source: str) -> str:
    """Return Markdown as HTML, formulas drawn."""
    return MarkdownWithMath(renderer=FormulaRenderer(escape=False, exclude_anchor_links=True)).render(source)


def formula(tex: str, block: bool = False) -> str:
    """Return a TeX formula as an inline SVG; as its source where matplotlib's mathtext cannot draw it."""
    picture = io.StringIO()
    plain = html.escape(tex.strip(), quote=True)
    try:
        math_to_image(f"${tex.strip()}$", picture, format="svg", dpi=72)
    except (ValueError, RuntimeError):
        return f"<code>{plain}</code>"
    svg = picture.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Names inside one page must differ: those of each formula follow from its text.
    own = f"f{zlib.crc32(tex.encode()):x}"
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    kind = "math block" if block else "math"
    return svg.replace("<svg", f'<svg class="{kind}" role="img" aria-label="{plain}"', 1)


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError) as error:
        raise ReportError(f"{path} is not a notebook that can be read: {error}") from error


def _execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", record_timing=False)
    with tempfile.TemporaryDirectory() as scratch:
        # What a notebook saves beside what it shows belongs to 'make figures'.
        own = {"PRUNING_DPI": str(SHARP), "PRUNING_FIGURES": scratch}
        try:
            client.execute(cwd=str(path.parent), env=os.environ | own)
        except CellExecutionError as error:
            raise ReportError(f"{path} failed: {error}") from error


def _measure(notebook: nbformat.NotebookNode, dpi: int) -> None:
    """Tell each picture its size on the page, in CSS pixels."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            head = base64.b64decode(output["data"]["image/png"][:64])
            width, height = (round(int.from_bytes(head[at : at + 4], "big") * SCREEN / dpi) for at in (16, 20))
            output.setdefault("metadata", {}).setdefault("image/png", {}).update(width=width, height=height)


def main(arguments: list[str] | None = None) -> int:
    """Put all notebooks into one HTML page."""
    parser = argparse.ArgumentParser(prog="python -m pruning report", description=main.__doc__)
    parser.add_argument("--output", type=Path, help="default build/report.html")
    parser.add_argument("--as-committed", action="store_true", help="take the notebooks' outputs as they are")
    given = parser.parse_args(arguments)
    try:
        output = given.output or root() / "build" / "report.html"
        page = build(notebooks(), execute=not given.as_committed)
        write_whole(output, page.encode())
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {len(page.encode()) / 2**20:.1f} MiB")
    return 0
