"""HTML of a notebook or a Markdown file as a section of the page: headings, links, pictures and tables made fit for it.

>>> section("<h1>A cut</h1>", "1-cut", "notebooks", pages={}).body
'<h2><a class="anchor" href="#1-cut" tabindex="-1">A cut</a></h2>'
"""

from __future__ import annotations

import base64
import io
import mimetypes
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import PIL.Image
from bs4 import BeautifulSoup, Tag

from pruning.study.paths import root

SCREEN = 100  # dots per inch at which a figure has its natural size on the page
SHARP = 150  # those of the page's figures; 200 would take it beyond 3 MB
HEADINGS = ("h1", "h2", "h3", "h4", "h5")


@dataclass(frozen=True)
class Section:
    """A section of the page: its name, title and HTML, and its ``headings`` below the title as (name, text)."""

    name: str
    title: str
    body: str
    headings: tuple[tuple[str, str], ...]


def section(body: str, name: str, folder: str, pages: Mapping[str, str], lower: int = 1) -> Section:
    """Return HTML as the section ``name``, which needs no file beside the page.

    ``folder`` is the one that relative links start from, seen from the project's. ``pages`` maps files of the project
    to the sections that show them. Headings come ``lower`` levels down.
    """
    soup = BeautifulSoup(body, "html.parser")
    for style in soup.select("style"):  # pandas brings one with every table
        style.decompose()
    headings = _name_headings(soup, name, lower)
    for link in soup.select("a[href]"):
        _lead(link, name, folder, pages)
    for picture in soup.select("img[src], source[srcset]"):
        _embed(picture, "src" if picture.name == "img" else "srcset", folder)
    for image in soup.select("img"):
        _frame(soup, image)
    for table in soup.select("table"):
        _shape(soup, table)
    title, *others = headings or [("", name)]
    return Section(name, title[1], str(soup).strip(), tuple(others))


def home() -> str | None:
    """Return the address of the project's repository as ``pyproject.toml`` tells it, None where it tells none."""
    try:
        project = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        return None
    urls = {re.sub(r"\W", "", label).lower(): url for label, url in project.get("urls", {}).items()}
    known = ("repository", "source", "sourcecode", "github")
    return next((urls[label].rstrip("/") for label in known if label in urls), None)


def data_uri(content: bytes, kind: str) -> str:
    """Return a file's bytes as an address that holds them; a PNG as WebP where that is smaller.

    Figures have few colours, so 64 of them without loss look the same and take half the bytes; what is more like a
    photograph takes less with loss.

    >>> data_uri(b"<svg/>", "image/svg+xml")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    if kind == "image/png":
        picture = PIL.Image.open(io.BytesIO(content)).convert("RGB")
        flat = picture.quantize(64, dither=PIL.Image.Dither.NONE).convert("RGB")
        smallest = min(_webp(flat, lossless=True), _webp(picture, quality=75), key=len)
        if len(smallest) < len(content):
            content, kind = smallest, "image/webp"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _webp(picture: PIL.Image.Image, **how: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "webp", **how)
    return buffer.getvalue()


def _name_headings(soup: BeautifulSoup, name: str, lower: int) -> list[tuple[str, str]]:
    """Lower the headings, make each an anchor; return (name, text) in their order."""
    found: list[tuple[str, str]] = []
    for heading in soup.find_all(HEADINGS):
        text = heading.get_text().strip()
        own = first = f"{name}-{_slug(text)}" if found else name
        taken, number = {other for other, _ in found}, 2
        while own in taken:
            own, number = f"{first}-{number}", number + 1
        heading.name = f"h{int(heading.name[1]) + lower}"
        if found:  # the first one heads the section, which has the name already
            heading["id"] = own
        if heading.name != "h1" and not heading.find("a"):
            # The contents lead to the same places by keyboard.
            link = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{own}", "tabindex": "-1"})
            for part in list(heading.contents):
                link.append(part.extract())
            heading.append(link)
        found.append((own, text))
    return found


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _lead(link: Tag, name: str, folder: str, pages: Mapping[str, str]) -> None:
    """Lead a link to a section of the page or to the project's repository; make it plain text where neither is."""
    address = urlsplit(str(link["href"]))
    if address.scheme or link.has_attr("tabindex"):  # an anchor
        return
    if not address.path:
        link["href"] = f"#{name}-{_slug(address.fragment)}"
        return
    path = posixpath.normpath(posixpath.join(folder, unquote(address.path)))
    if path in pages:
        link["href"] = f"#{pages[path]}" + (f"-{_slug(address.fragment)}" if address.fragment else "")
    elif repository := home():
        link["href"] = f"{repository}/blob/HEAD/{path}"
    else:
        if path not in link.get_text():
            link.append(f" ({path})")
        link.unwrap()


def _embed(picture: Tag, mark: str, folder: str) -> None:
    """Put a picture inside the page, which the attribute ``mark`` of an ``img`` or a ``source`` names."""
    source = str(picture[mark])
    if source.startswith("data:"):
        kind, _, content = source.removeprefix("data:").partition(";base64,")
        picture[mark] = data_uri(base64.b64decode(content), kind) if kind == "image/png" else source
    elif not urlsplit(source).scheme:
        path = root() / posixpath.normpath(posixpath.join(folder, unquote(source)))
        kind = mimetypes.guess_type(path.name)[0] or "image/png"
        picture[mark] = data_uri(path.read_bytes(), kind)
        if kind == "image/png" and picture.name == "img":
            with PIL.Image.open(path) as image:
                picture["width"] = str(round(image.width * SCREEN / image.info.get("dpi", (SCREEN, SCREEN))[0]))


def _frame(soup: BeautifulSoup, image: Tag) -> None:
    """Make a figure of a picture that stands alone; what it shows is the caption."""
    shown = image.find_parent("picture") or image
    figure = shown.parent
    if figure is soup:
        figure = shown.wrap(soup.new_tag("figure"))
    elif (
        figure is not None and figure.name == "p" and not figure.get_text().strip() and len(figure.find_all("img")) == 1
    ):
        figure.name = "figure"
    if figure is not None and figure.name == "figure" and image.get("alt") and not figure.find("figcaption"):
        # The whole description is for those who cannot see it; its first sentence says to all what is shown.
        caption = soup.new_tag("figcaption")
        caption.string = re.split(r"(?<=[^\d]\.)\s", str(image["alt"]), maxsplit=1)[0]
        figure.append(caption)


def _shape(soup: BeautifulSoup, table: Tag) -> None:
    """Give a table a caption, its header cells a scope, its first columns a mark, and a frame in which it scrolls."""
    for mark in ("border", "style"):
        del table[mark]
    head = table.find("thead")
    if isinstance(head, Tag):
        _join_index_names(head)
    cells = list(_cells(table))
    heads = {column for cell, column in cells if cell.name == "th" and not cell.find_parent("thead")}
    for cell, column in cells:
        if cell.name == "th" and not cell.get_text().strip():
            cell.name = "td"
        if cell.name == "th":
            across, down = _spans(cell)
            above = cell.find_parent("thead") is not None
            cell["scope"] = ("colgroup" if across > 1 else "col") if above else ("rowgroup" if down > 1 else "row")
        del cell["valign"]
        if column == 0 or column in heads:
            cell["class"] = "first"
            cell["data-column"] = str(column)
    if not table.find("caption"):
        heading = table.find_previous(re.compile("h[1-6]"))
        caption = soup.new_tag("caption")
        caption.string = heading.get_text().strip() if heading else "Table"
        table.insert(0, caption)
    table.wrap(soup.new_tag("div", attrs={"class": "table"}))


def _join_index_names(head: Tag) -> None:
    """Put the names of pandas' index, which have a row of their own, into the gaps of the row above it."""
    rows = head.find_all("tr")
    if len(rows) != 2:
        return
    above, below = (row.find_all(["th", "td"]) for row in rows)
    named = [bool(cell.get_text().strip()) for cell in below]
    if len(above) == len(below) and not any(name and cell.get_text().strip() for cell, name in zip(above, named)):
        for cell, other, name in zip(above, below, named):
            if name:
                cell.string = other.get_text().strip()
        rows[1].decompose()


def _cells(table: Tag) -> Iterator[tuple[Tag, int]]:
    """Yield a table's cells with the column in which each begins, cells that span rows counted in."""
    busy: dict[int, int] = {}  # column: rows below this one that a cell from above still covers
    for row in table.find_all("tr"):
        column, following = 0, {at: left - 1 for at, left in busy.items() if left > 1}
        for cell in row.find_all(["th", "td"], recursive=False):
            while busy.get(column):
                column += 1
            yield cell, column
            across, down = _spans(cell)
            following |= {column + step: down - 1 for step in range(across) if down > 1}
            column += across
        busy = following


def _spans(cell: Tag) -> tuple[int, int]:
    return int(str(cell.get("colspan") or 1)), int(str(cell.get("rowspan") or 1))
