"""A section of the page: headings, links, pictures and tables, each made fit for one file that can be moved."""

import io

import pandas as pd
import PIL.Image
import pytest
from bs4 import BeautifulSoup

from pruning.analysis import markup

PYPROJECT = '[project]\nname = "x"\n[project.urls]\n"Source Code" = "https://example.org/x/"\n'


def shaped(body, **more):
    options = {"name": "part", "folder": "notebooks", "pages": {"notebooks/2-b.ipynb": "2-b", "README.md": "start"}}
    return BeautifulSoup(markup.section(body, **(options | more)).body, "html.parser")


def test_headings_are_anchors_of_their_own():
    found = markup.section("<h1>A cut</h1><h2>Run it</h2><h2>Run <code>it</code></h2>", "part", "", {})
    assert found.title == "A cut" and found.headings == (("part-run-it", "Run it"), ("part-run-it-2", "Run it"))
    headings = BeautifulSoup(found.body, "html.parser").find_all(["h2", "h3"])
    assert [heading.a["href"] for heading in headings] == ["#part", "#part-run-it", "#part-run-it-2"]
    assert [heading.get("id") for heading in headings] == [None, "part-run-it", "part-run-it-2"]
    assert str(headings[2].code) == "<code>it</code>"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("2-b.ipynb", "#2-b"), ("2-b.ipynb#The-cut", "#2-b-the-cut"), ("../README.md", "#start"),
        ("#Own-part", "#part-own-part"), ("https://example.org", "https://example.org"),
    ],
)  # fmt: skip
def test_links_lead_into_the_page_or_away_from_the_machine(address, expected):
    assert shaped(f'<a href="{address}">there</a>').a["href"] == expected


def test_a_file_of_the_project_is_linked_where_the_project_has_an_address(tmp_path, monkeypatch):
    body = '<a href="../docs/results.md">all tables</a>, <a href="../docs/a.md">docs/a.md</a>'
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    assert shaped(body).text == "all tables (docs/results.md), docs/a.md" and not shaped(body).find("a")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    assert shaped(body).a["href"] == "https://example.org/x/blob/HEAD/docs/results.md"


def test_a_picture_lies_inside_at_its_natural_size_with_a_caption(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    PIL.Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png", dpi=(200, 200))
    found = shaped('<p><img src="../a.png" alt="Loss at 3.5 % of all. More of it."></p>')
    assert found.figure.figcaption.text == "Loss at 3.5 % of all." and found.img["alt"].endswith("More of it.")
    assert found.img["width"] == "150" and found.img["src"].startswith("data:image/webp;base64,")


def test_an_animation_with_a_still_is_a_figure_and_both_lie_inside(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    for name in ("a.gif", "a.png"):
        PIL.Image.new("RGB", (300, 200), "red").save(tmp_path / name)
    body = '<picture><source media="print" srcset="../a.png"><img src="../a.gif" alt="Masks."></picture>'
    found = shaped(body).figure
    assert found.figcaption.text == "Masks." and found.img["src"].startswith("data:image/gif;base64,")
    assert found.source["srcset"].startswith("data:image/webp;base64,")


def test_a_picture_takes_no_more_than_its_own_bytes():
    tiny = io.BytesIO()
    PIL.Image.new("1", (1, 1)).save(tiny, "png")
    assert (
        len(markup.data_uri(tiny.getvalue(), "image/png"))
        <= len("data:image/webp;base64,") + 4 * len(tiny.getvalue()) / 3 + 3
    )


def test_a_table_of_two_index_levels_says_what_heads_what():
    index = pd.MultiIndex.from_product([["a", "b"], [0.5, 0.9]], names=["benchmark", "requirement"])
    table = shaped("<h1>The table</h1>" + pd.DataFrame({"density": range(4)}, index).to_html()).table
    assert table.parent["class"] == ["table"] and table.caption.text == "The table" and not table.has_attr("border")
    rows = table.select("tr")
    assert [cell.text for cell in rows[0].select("th[scope=col]")] == ["benchmark", "requirement", "density"]
    assert [cell["scope"] for cell in rows[1].select("th")] == ["rowgroup", "row"]
    assert [cell["scope"] for cell in rows[2].select("th")] == ["row"]
    # In the second row the first cell stands in the second column: the one above it spans both rows.
    assert rows[2].th["data-column"] == "1" and rows[1].th["data-column"] == "0"
    assert {cell["class"][0] for cell in table.select("tbody th")} == {"first"} and not table.select("td.first")


def test_columns_of_two_levels_keep_both_rows():
    columns = pd.MultiIndex.from_tuples([("bytes", "mean"), ("bytes", "sd")])
    table = shaped(pd.DataFrame([[1, 2]], columns=columns).to_html()).table
    assert [cell["scope"] for cell in table.thead.select("th")] == ["colgroup", "col", "col"]


def test_the_first_column_of_a_plain_table_is_marked_and_a_caption_kept():
    body = (
        "<table><caption>Own</caption><thead><tr><th>a</th><th></th></tr></thead><tr><td>1</td><td>2</td></tr></table>"
    )
    table = shaped(body).table
    assert [cell.text for cell in table.select(".first")] == ["a", "1"] and table.caption.text == "Own"
    assert [cell["scope"] for cell in table.select("th")] == ["col"]
