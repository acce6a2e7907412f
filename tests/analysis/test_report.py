"""The page: everything inside it, code folded, formulas drawn, links that lead somewhere; faults named."""

import base64
import io

import nbformat
import PIL.Image
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pruning.analysis import report


def picture(width=300, height=200):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" id="own"><path d="M0 0h9"/></svg>'


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Two notebooks that point at each other, with every kind of output."""
    tmp_path = tmp_path_factory.mktemp("story")
    outputs = [
        new_output("stream", name="stdout", text="3 < 4 runs\n"),
        new_output(
            "display_data",
            {"image/png": picture(), "text/plain": "<Image>"},
            metadata={"image/png": {"alt": "a curve"}},
        ),
        new_output("display_data", {"image/svg+xml": DRAWING}, metadata={"image/svg+xml": {"alt": "a drawing"}}),
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


@pytest.fixture(scope="module")
def page(story):
    return report.build(story, execute=False)


@pytest.fixture(scope="module")
def soup(page):
    return BeautifulSoup(page, "html.parser")


def test_the_page_holds_everything_in_reading_order(soup):
    assert [section["id"] for section in soup.select("section")][:4] == ["start", "explore", "1-first", "10-second"]
    entries = soup.select("nav > details > ol > li")
    assert [entry.a["href"] for entry in entries][:4] == ["#start", "#explore", "#1-first", "#10-second"]
    assert [link["href"] for link in entries[3].ol.select("a")] == ["#10-second-part"]
    assert soup.title.text == soup.h1.text == "Synapse pruning" and len(soup.select("h1")) == 1
    first = soup.find(id="1-first")
    assert [found.text for found in first.select("h2")] == ["1 · First"]
    (code,) = first.select("details.code")
    assert not code.has_attr("open") and code.pre.text == "print('3 < 4 runs')"
    assert first.select("pre.said")[0].text.strip() == "3 < 4 runs"
    assert first.select(".table td")[0].text == "7"
    assert first.select(".found strong")[0].text == "What we see."
    image, drawing = first.select("figure img")
    assert (image["alt"], image["width"], image["height"]) == ("a curve", "300", "200")
    assert image.find_next_sibling("figcaption").text == "a curve"
    assert drawing["alt"] == "a drawing"
    assert base64.b64decode(drawing["src"].partition("base64,")[2]).decode() == DRAWING


def test_links_lead_somewhere(soup):
    names = [found["id"] for found in soup.select("[id]")]
    assert len(names) == len(set(names))
    links = [link["href"] for link in soup.select("a[href]")]
    assert {"#10-second", "#1-first"} <= set(links)
    assert all(link[1:] in names for link in links if link.startswith("#"))
    # A file beside the page would be missed where the page is moved to: its path is told instead.
    assert all(link.startswith(("#", "https://")) for link in links)
    assert "data (data/README.md)" in soup.find(id="1-first").text


def test_formulas_are_drawn_and_what_cannot_be_is_shown_as_it_is(soup):
    drawn = soup.select("svg.math")
    assert {found["aria-label"] for found in drawn} == {r"\sum_i w_i \geq \theta", "x^2"}
    assert all(found.select("path") for found in drawn)
    names = [found["id"] for found in soup.select("svg [id]")]
    assert len(names) == len(set(names))
    assert "a$b" in [found.text for found in soup.select("code")] and r"\undrawable{x}" in soup.text
    assert report.formula("x^2") == report.formula("x^2")


def test_without_records_there_is_nothing_to_explore(story, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    soup = BeautifulSoup(report.build(story, execute=False), "html.parser")
    assert not soup.find(id="explore") and len(soup.select("script")) == 1


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
    assert inside.size == (300, 150)
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
