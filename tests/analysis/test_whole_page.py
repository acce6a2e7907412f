"""The page of the committed notebooks, whole, and in a browser: by keyboard, light and dark, on a phone, on paper."""

import json
import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from pruning.analysis import report
from pruning.study.paths import root

LIMIT = 3_000_000  # bytes
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert report.main(["--as-committed", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, path):
    """Return a function that opens the page in a window of its own; in the end nothing was amiss or loaded."""
    amiss = []
    contexts = []

    def open_page(width=1600, **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **more))
        page = contexts[-1].new_page()
        page.on("console", lambda message: amiss.append(message.text))
        page.on("pageerror", lambda error: amiss.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith(("data:", path.as_uri())) or amiss.append(request.url)
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not amiss


def test_the_page_is_whole(soup):
    found = report.notebooks()
    names = [part["id"] for part in soup.select("section")]
    assert names == ["start", "explore", *(path.stem for path in found), "executed"]
    ids = [part["id"] for part in soup.select("[id]")]
    assert len(ids) == len(set(ids))
    headings = soup.select("main :is(h2, h3, h4, h5, h6)")
    assert len(headings) > 50 and all(heading.a["href"][1:] in ids for heading in headings)
    assert all(image.get("alt") for image in soup.select("img"))
    assert "No description" not in {image["alt"] for image in soup.select("img")}
    tables = soup.select("main table:not(.live table)")
    assert len(tables) > 10 and all(table.caption and table.find("th", scope="col") for table in tables)
    assert not soup.select("th:not([scope])")


def test_the_page_needs_nothing_from_outside(soup, path):
    assert not soup.select("link, iframe, object, embed, script[src]")
    assert all(found["src"].startswith("data:") for found in soup.select("[src]"))
    page = path.read_text(encoding="utf-8")
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert all(link["href"].startswith(("#", "https://")) for link in soup.select("a[href]"))
    assert "sourceMappingURL" not in page
    version = re.search(r"Chart\.js v([\d.]+)", page)[1]
    assert version in (root() / "report/vendor/README.md").read_text()


def test_the_page_is_no_larger_than_agreed(soup, path):
    pictures = sum(len(image["src"]) for image in soup.select("img"))
    text = path.stat().st_size - pictures
    # `make report` draws the figures at one and a half times the resolution, which takes 1.6 times the bytes.
    assert text + 1.6 * pictures < LIMIT


@in_a_browser
def test_the_contents_mark_where_one_is(opened):
    page = opened()
    marked = page.locator("nav a[aria-current]")
    for name in ("3-training-effort-the-table", "explore-rounds", "start"):
        page.evaluate("(name) => document.getElementById(name).scrollIntoView()", name)
        page.wait_for_function("(name) => document.querySelector('nav a[aria-current]').hash === `#${name}`", arg=name)
        assert marked.count() == 1 and marked.is_visible()
    assert page.locator("nav").get_by_role("link", name="The mask").is_hidden()  # of another part

    page = opened(390)
    assert page.locator("nav ol").first.is_hidden()
    page.locator("nav summary").click()
    page.locator("nav").get_by_role("link", name="3 · Training effort").click()
    page.wait_for_function("document.querySelector('summary .here').textContent === ': 3 · Training effort'")
    assert page.locator("nav ol").first.is_hidden()


@in_a_browser
def test_by_keyboard_the_first_stop_skips_the_contents_and_every_stop_is_seen(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(
            "[document.activeElement.name || document.activeElement.tagName.toLowerCase(),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        ))  # fmt: skip
    assert {outline for _, outline in seen} <= {"solid", "auto"}
    stops = [name for name, _ in seen]
    assert [name for name in stops if name in {"setting", "canvas", "all", "none"}] == [
        "setting",
        "canvas",
        "all",
        "none",
    ]


@in_a_browser
def test_the_runs_can_be_explored_by_keyboard_and_by_pointing(opened):
    page = opened()
    front = page.locator("#front")
    assert front.locator(".still").is_hidden() and front.get_by_label("Measure").is_visible()
    rows, told = front.locator("tbody tr"), front.locator(".told")
    methods = front.get_by_role("checkbox").count()
    assert methods > 10 and rows.count() == methods

    front.get_by_label("Benchmark and accuracy required").focus()
    page.keyboard.type("MNIST, 2 convolutions: 98")
    page.keyboard.press("Tab")  # to the measure
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    first = told.inner_text()
    page.keyboard.press("ArrowRight")
    assert re.match(r"[\w-]+, (seed \d|mean), [\d.]+\s% of the synapses left", first) and told.inner_text() != first
    assert "MNIST, 2 convolutions: 98 % required" in front.locator("caption").text_content()

    front.get_by_label("adaptive (this study's)").focus()
    page.keyboard.press("Space")
    assert rows.count() == methods - 1 and not front.locator("tbody th", has_text=re.compile("^adaptive$")).count()
    front.get_by_role("button", name="hide all").press("Enter")
    assert rows.count() == 0
    front.get_by_label("adaptive (this study's)").press("Space")
    assert rows.count() == 1

    # What is under the pointer is named: the mean, all alone but for its runs.
    chart = "Chart.getChart(document.querySelector('#front canvas'))"
    place = page.evaluate(f"(({{ x, y }}) => ({{ x, y }}))({chart}.getDatasetMeta(0).data[0])")
    front.locator("canvas").hover(position=place)
    page.wait_for_function(f"{chart}.tooltip.title?.[0]?.startsWith('adaptive, ')")


@in_a_browser
def test_the_slider_leads_through_the_rounds(opened, soup):
    explored = json.loads(soup.find(id="explored").string)["rounds"]
    page = opened(390, color_scheme="dark")
    box = page.locator("#rounds")
    slider, told = box.get_by_role("slider", name="Round"), box.locator(".told")
    box.get_by_role("combobox", name="Run").select_option(index=1)
    one = explored[1]
    slider.focus()
    for _ in range(one["delivered"]):
        page.keyboard.press("ArrowRight")
    begin, left, accuracy = one["rounds"][one["delivered"]]
    whole = sum(count for _, count in one["layers"])
    assert f"{sum(left):,} of {whole:,} connections left" in told.inner_text()
    assert "This network was delivered" in told.inner_text() and f"iteration {begin:,}" in told.inner_text()
    assert slider.get_attribute("aria-valuetext") == told.inner_text()
    shown = [cell.replace(",", "") for cell in box.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert shown == [str(count) for count in (*left, sum(left))]
    page.keyboard.press("End")
    assert "before the end" in told.inner_text() and accuracy >= one["requirement"]


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (390, "dark")])
def test_an_accessibility_checker_finds_nothing_and_nothing_sticks_out(opened, width, scheme):
    page = opened(width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # The first rows of a table are like the others, which would take most of the time.
    found = Axe().run(page, {"exclude": [["tbody tr:nth-child(n + 4)"], ["svg *"]]}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in {"serious", "critical"}] == []
    if width == 390:
        frame = page.locator(".table.scrolls").first
        assert frame.get_attribute("tabindex") == "0" and frame.get_attribute("aria-label")
        assert "scrolls sideways" in frame.evaluate("(frame) => getComputedStyle(frame, '::before').content")
        frame.evaluate("(frame) => { frame.scrollLeft = 200; }")
        cell = frame.locator("tbody .first:not(.loose)").first
        assert abs(cell.bounding_box()["x"] - frame.bounding_box()["x"]) < 2


@in_a_browser
def test_on_paper_and_without_scripts_there_are_still_pictures_and_whole_tables(opened):
    page = opened(680)  # A4 less its margins
    page.emulate_media(media="print")
    wide = (
        "() => [...document.querySelectorAll('table, pre, img')].filter((one) => one.offsetWidth > innerWidth).length"
    )
    assert page.evaluate(wide) == 0
    assert page.locator(".still img").first.is_visible() and page.locator(".live").first.is_hidden()
    assert page.locator("nav").is_hidden()

    page = opened(java_script_enabled=False)
    assert page.locator(".still img").first.is_visible() and page.locator(".live").first.is_hidden()
    assert page.locator("nav").get_by_role("link", name="The mask").is_visible()
