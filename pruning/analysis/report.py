"""The notebooks as one HTML page: ``python -m pruning report`` writes ``build/report.html``.

The page needs nothing beside itself: pictures lie inside it at twice the resolution of a plain
screen, formulas are drawn, code is folded away. Notebooks come in the order of their numbers,
behind the README's own first part. Templates and style are in ``report/``.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
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

from pruning.files import write_whole
from pruning.study.paths import root

SCREEN = 100  # dots per inch at which a figure has its natural size on the page
SHARP = 2 * SCREEN


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
    paths = list(paths)
    names = {path.stem for path in paths}
    parts = []
    for path in paths:
        notebook = _read(path)
        if execute:
            _execute(notebook, path)
        _measure(notebook, SHARP if execute else SCREEN)
        heading = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown").splitlines()[0]
        body = _section(exporter.from_notebook_node(notebook)[0], path.stem)
        parts.append({"name": path.stem, "title": heading.lstrip("# "), "body": _linked(body, names)})
    front = _front()
    page = exporter.environment.get_template("page.html.j2")
    return page.render(
        title=re.findall(r"<h1[^>]*>(.*?)</h1>", front)[0],
        front=_linked(front, names),
        parts=parts,
        executed=sorted(str(path.relative_to(root())) for path in root().glob("data/results/report/notebooks/*.ipynb")),
        style=(root() / "report" / "style.css").read_text(),
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


def _section(body: str, name: str) -> str:
    """Return a notebook's HTML as a section: headings one level lower, names its own."""
    body = re.sub(r"(</?h)([1-5])\b", lambda match: f"{match[1]}{int(match[2]) + 1}", body)
    body = re.sub(r'(<h\d[^>]*\bid=")', rf"\g<1>{name}-", body)
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL)
    return body.replace('border="1" ', "")


def _linked(body: str, names: set[str]) -> str:
    """Return HTML whose links to the notebooks ``names`` lead to their sections."""
    link = re.compile(r'href="(?:\.\./)?(?:notebooks/)?([\w.-]+)\.ipynb"')
    return link.sub(lambda match: f'href="#{match[1]}"' if match[1] in names else match[0], body)


def _front() -> str:
    """Return the README up to where it lists the notebooks, its pictures inside, its links seen from the page."""
    body = markdown((root() / "README.md").read_text(encoding="utf-8").split("\n## Notebooks\n")[0])
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inside(match: re.Match) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((root() / match[1]).read_bytes()).decode()}"'

    body = re.sub(r'src="((?!data:)[^":]+\.png)"', inside, body)
    body = re.sub(r'href="(?!#|\.\./)([^":]+)"', r'href="../\1"', body)
    return re.sub(r"<p>(<img[^>]*>)</p>", r"<figure>\1</figure>", body)


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
