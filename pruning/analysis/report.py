"""The notebooks as one page: ``python -m pruning.analysis.report`` writes ``build/report.html``.

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
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import ExecutePreprocessor

from pruning.files import write_whole
from pruning.study.paths import root

SCREEN = 100  # dots an inch at which a figure has its natural size on the page
SHARP = 2 * SCREEN


class ReportError(RuntimeError):
    """A report that cannot be made; the message names the file."""


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas drawn, where a browser would otherwise fetch a library."""

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return formula(body, block=True)


def notebooks() -> list[Path]:
    """The story's notebooks, by their number."""
    found = [path for path in (root() / "notebooks").glob("*.ipynb") if path.name[0].isdigit()]
    return sorted(found, key=lambda path: int(re.match(r"\d+", path.name)[0]))


def build(paths: Iterable[Path], execute: bool = True) -> str:
    """The page from notebooks; with ``execute`` they are run first, so that their figures are sharp.

    Without, they are taken as they are. Raises ``ReportError`` that names a notebook which cannot
    be read or fails.
    """
    exporter = HTMLExporter(
        template_name="report", extra_template_basedirs=[str(root())],
        exclude_input_prompt=True, exclude_output_prompt=True,
    )
    exporter.register_filter("markdown2html", markdown)
    paths = list(paths)
    names = {path.stem for path in paths}
    parts = []
    for path in paths:
        notebook = _run(path) if execute else _read(path)
        _measure(notebook, SHARP if execute else SCREEN)
        body = exporter.from_notebook_node(notebook)[0]
        heading = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown").splitlines()[0]
        parts.append({"name": path.stem, "title": heading.lstrip("# "), "body": _placed(body, path.stem, names)})
    front = markdown(_front())
    title = re.search(r"<h1[^>]*>(.*?)</h1>", front)[1]
    executed = sorted(str(path.relative_to(root())) for path in root().glob("data/results/report/notebooks/*.ipynb"))
    page = exporter.environment.get_template("page.html.j2")
    return page.render(
        title=title, parts=parts, front=_linked(_inlined(_scrolling(front)), names), executed=executed,
        style=(root() / "report" / "style.css").read_text(),
    )


def markdown(source: str) -> str:
    """Markdown as HTML, formulas drawn."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def formula(tex: str, block: bool = False) -> str:
    """A TeX formula as an inline SVG; as its source where matplotlib's mathtext cannot draw it."""
    picture = io.StringIO()
    plain = html.escape(tex.strip(), quote=True)
    try:
        math_to_image(f"${tex.strip()}$", picture, format="svg", dpi=72)
    except (ValueError, RuntimeError):
        return f"<code>{plain}</code>"
    svg = picture.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
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


def _run(path: Path) -> nbformat.NotebookNode:
    notebook = _read(path)
    with tempfile.TemporaryDirectory() as scratch:
        # What a notebook saves beside what it shows belongs to 'make figures'.
        own = {"PRUNING_DPI": str(SHARP), "PRUNING_FIGURES": scratch}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            runner = ExecutePreprocessor(timeout=1800, kernel_name="python3", record_timing=False)
            return runner.preprocess(notebook, {"metadata": {"path": str(path.parent)}})[0]
        except CellExecutionError as error:
            raise ReportError(f"{path} failed: {error}") from error
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _measure(notebook: nbformat.NotebookNode, dpi: int) -> None:
    """Tell each picture its size on the page, in CSS pixels."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                head = base64.b64decode(output["data"]["image/png"][:64])
                width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
                about = output.setdefault("metadata", {}).setdefault("image/png", {})
                about.update(width=round(width * SCREEN / dpi), height=round(height * SCREEN / dpi))


def _placed(body: str, name: str, names: set[str]) -> str:
    """A notebook's HTML as a section: headings one level lower, names its own, links within the page."""
    body = re.sub(r"(</?h)([1-5])\b", lambda found: f"{found[1]}{int(found[2]) + 1}", body)
    body = re.sub(r'(<h\d[^>]*\bid=")', rf"\g<1>{name}-", body)
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL)
    return _linked(body.replace('border="1" ', ""), names)


def _linked(body: str, names: set[str]) -> str:
    inside = re.compile(r'href="(?:\.\./)?(?:notebooks/)?([\w.-]+)\.ipynb"')
    return inside.sub(lambda found: f'href="#{found[1]}"' if found[1] in names else found[0], body)


def _front() -> str:
    """The README up to where it lists the notebooks."""
    text = (root() / "README.md").read_text(encoding="utf-8")
    return text.split("\n## Read\n")[0]


def _scrolling(body: str) -> str:
    return body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def _inlined(body: str) -> str:
    """The README's pictures put into the page, its links seen from there."""

    def inside(found: re.Match) -> str:
        data = base64.b64encode((root() / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="((?!data:)[^":]+\.png)"', inside, body)
    body = re.sub(r'href="(?!#|\.\./)([^":]+)"', r'href="../\1"', body)
    return re.sub(r"<p>(<img[^>]*>)</p>", r"<figure>\1</figure>", body)


def main(arguments: list[str] | None = None) -> int:
    """Put all notebooks into one HTML page."""
    parser = argparse.ArgumentParser(prog="python -m pruning.analysis.report", description=main.__doc__)
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


if __name__ == "__main__":
    sys.exit(main())
