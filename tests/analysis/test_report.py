"""The page: everything inside it, code folded, formulas drawn, links that lead somewhere; faults named."""

import base64
import io
import re

import nbformat
import PIL.Image
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pruning.analysis import report
from pruning.study.paths import root


def picture(width=300, height=200):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def story(tmp_path):
    """Two notebooks that point at each other, with every kind of output."""
    outputs = [
        new_output("stream", name="stdout", text="3 < 4 runs\n"),
        new_output(
            "display_data",
            {"image/png": picture(), "text/plain": "<Image>"},
            metadata={"image/png": {"alt": "a curve"}},
        ),
        new_output("display_data", {"text/markdown": "**What we see.** $x^2$", "text/plain": "<Markdown>"}),
        new_output(
            "execute_result", {"text/html": "<table class='dataframe'><tr><td>7</td></tr></table>", "text/plain": "7"}
        ),
    ]
    first = new_notebook(
        cells=[
            new_markdown_cell(
                "# 1 · First\n\nSee [the second](10-second.ipynb), [data](../data/README.md).\n\n"
                r"$$\sum_i w_i \geq \theta$$"
                "\n\nand `a$b`, or $\\undrawable{x}$."
            ),
            new_code_cell("print('3 < 4 runs')", outputs=outputs),
        ]
    )
    second = new_notebook(cells=[new_markdown_cell("# 10 · Second\n\n## Part\n\nback to [the first](1-first.ipynb)")])
    paths = [tmp_path / "1-first.ipynb", tmp_path / "10-second.ipynb"]
    for path, notebook in zip(paths, (first, second)):
        nbformat.write(notebook, path)
    return paths


def test_the_page_holds_everything_in_reading_order(story):
    page = report.build(story, execute=False)
    soup = BeautifulSoup(page, "html.parser")
    assert [section["id"] for section in soup.select("section")][:3] == ["start", "1-first", "10-second"]
    assert [link["href"] for link in soup.select("nav a")] == ["#start", "#1-first", "#10-second"]
    assert soup.title.text == soup.h1.text == "Synapse pruning" and len(soup.select("h1")) == 1
    assert [found.text for found in soup.select("#\\31 -first h2")] == ["1 · First"]
    (code,) = soup.select("#\\31 -first details.code")
    assert not code.has_attr("open") and "print" in code.text
    assert soup.select("#\\31 -first pre.said")[0].text.strip() == "3 < 4 runs"
    assert soup.select("#\\31 -first .table td")[0].text == "7"
    assert soup.select("#\\31 -first .found strong")[0].text == "What we see."
    image = soup.select("#\\31 -first figure img")[0]
    assert (image["alt"], image["width"], image["height"]) == ("a curve", "300", "200")


def test_the_page_needs_nothing_from_outside(story):
    page = report.build(story, execute=False)
    soup = BeautifulSoup(page, "html.parser")
    assert not soup.select("script, link, iframe, object, embed") and "@import" not in page
    assert all(found["src"].startswith("data:") for found in soup.select("[src]"))
    assert not re.search(r"url\((?!#)", page)
    assert re.search(r'name="viewport" content="width=device-width', page)


def test_links_lead_somewhere(story):
    soup = BeautifulSoup(report.build(story, execute=False), "html.parser")
    names = {found["id"] for found in soup.select("[id]")}
    inside = [link["href"] for link in soup.select("main a") if link["href"].startswith("#")]
    assert {"#10-second", "#1-first"} <= set(inside) and all(link[1:] in names for link in inside)
    beside = [link["href"] for link in soup.select("main a") if link["href"].startswith("../")]
    assert "../data/README.md" in beside and "../notebooks/1-first.ipynb" in beside
    for link in beside:
        if "-first" not in link and "-second" not in link:
            assert (root() / "build" / link).resolve().exists(), link


def test_formulas_are_drawn_and_what_cannot_be_is_shown_as_it_is(story):
    soup = BeautifulSoup(report.build(story, execute=False), "html.parser")
    drawn = soup.select("svg.math")
    assert {found["aria-label"] for found in drawn} == {r"\sum_i w_i \geq \theta", "x^2"}
    assert all(found.select("path") for found in drawn)
    names = [found["id"] for found in soup.select("svg [id]")]
    assert len(names) == len(set(names))
    assert "a$b" in [found.text for found in soup.select("code")] and r"\undrawable{x}" in soup.text
    assert report.formula("x^2") == report.formula("x^2")


@pytest.mark.slow
def test_notebooks_are_run_for_sharp_figures(tmp_path):
    path = tmp_path / "1-run.ipynb"
    cell = new_code_cell(
        "import os\nfrom IPython.display import Image, display\nfrom matplotlib.figure import Figure\n"
        "from pruning.analysis import figures\ndisplay(Image(figures.png(Figure(figsize=(2, 1)))))\n"
        "print(os.path.exists(os.environ['PRUNING_FIGURES']))"
    )
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 1 · Run"), cell]), path)
    soup = BeautifulSoup(report.build([path]), "html.parser")
    image = soup.select("#\\31 -run img")[0]
    assert (image["width"], image["height"]) == ("200", "100")
    inside = PIL.Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
    assert inside.size == (400, 200)
    assert soup.select("pre.said")[0].text.strip() == "True"


@pytest.mark.slow
def test_a_notebook_that_fails_or_is_none_is_named(tmp_path, monkeypatch, capsys):
    broken, failing = tmp_path / "1-broken.ipynb", tmp_path / "2-failing.ipynb"
    broken.write_text("{")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 2"), new_code_cell("1 / 0")]), failing)
    with pytest.raises(report.ReportError, match="1-broken.ipynb is not a notebook"):
        report.build([broken], execute=False)
    with pytest.raises(report.ReportError, match="2-failing.ipynb failed"):
        report.build([failing])
    monkeypatch.setattr(report, "notebooks", lambda: [broken])
    output = tmp_path / "page.html"
    assert report.main(["--as-committed", "--output", str(output)]) == 1
    assert "1-broken.ipynb" in capsys.readouterr().err and not output.exists()


@pytest.mark.slow
def test_the_committed_notebooks_make_a_page(tmp_path, capsys):
    found = report.notebooks()
    assert [path.stem for path in found][:4] == [
        "1-benchmark",
        "2-significant-synapses",
        "3-training-effort",
        "4-claims",
    ]
    assert report.main(["--as-committed", "--output", str(tmp_path / "page.html")]) == 0
    soup = BeautifulSoup((tmp_path / "page.html").read_text(encoding="utf-8"), "html.parser")
    assert {path.stem for path in found} <= {section["id"] for section in soup.select("section")}
    assert all(image.get("alt") for image in soup.select("img"))
    assert "No description" not in {image["alt"] for image in soup.select("img")}
