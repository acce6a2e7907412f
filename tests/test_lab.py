"""JupyterLab in a real browser: a notebook opens unchanged, "Run All" runs it to its end, and bars are one line.

Where Chromium is installed, ``make test`` runs the notebooks here: what nbval compares is compared.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
COMMITTED = [*NOTEBOOKS, *sorted(ROOT.glob("data/results/*/notebooks/*.ipynb"))]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# JupyterLab hands these out where it was started with --expose-app-in-browser.
OPEN = "async (path) => { await window.jupyterapp.commands.execute('docmanager:open', { path }); }"
READY = """(path) => {
    const panel = window.jupyterapp.shell.currentWidget;
    const shown = panel?.context?.path === path && panel.context.isReady;
    return shown && panel.sessionContext.session?.kernel?.status === "idle";
}"""
CLOSE = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.shutdown();
    panel.dispose();
}"""
DIRTY = "() => window.jupyterapp.shell.currentWidget.context.model.dirty"
ENDED = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const cells = [...panel.content.model.cells].filter((cell) => cell.type === "code");
    const failed = cells.some((cell) => cell.outputs.toJSON().some((output) => output.output_type === "error"));
    const ran = cells.every((cell) => cell.executionCount);
    return failed || (ran && panel.sessionContext.session.kernel.status === "idle");
}"""
# The height of what a cell has printed, in lines.
LINES = "(shown) => Math.round(shown.getBoundingClientRect().height / parseFloat(getComputedStyle(shown).lineHeight))"


def noted(path):
    """Read a notebook, with the version of Python that its kernel will have."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info.version = platform.python_version()
    return notebook


@pytest.mark.parametrize("path", COMMITTED, ids=[str(path.relative_to(ROOT)) for path in COMMITTED])
def test_a_committed_notebook_is_what_jupyterlab_writes(path):
    notebook = nbformat.read(path, as_version=4)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"
    }  # fmt: skip
    assert path.read_text(encoding="utf-8").rstrip() == nbformat.writes(notebook)


def compared(path):
    """What a notebook's cells marked for it have printed or returned; pictures apart, as in nbval."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    texts = [{"text": output.get("text")} | output.get("data", {}) for cell in cells for output in cell.outputs]
    return [{kind: text for kind, text in each.items() if kind != "image/png"} for each in texts]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the project's notebooks and records: its address and its folder."""
    place = tmp_path_factory.mktemp("lab")
    (place / "Snakefile").touch()
    (place / "studies").symlink_to(ROOT / "studies")
    shutil.copytree(
        ROOT / "data/results", place / "data/results", ignore=shutil.ignore_patterns("digits", "own-*", "work")
    )
    (place / "notebooks").mkdir()
    for path in NOTEBOOKS:
        nbformat.write(noted(path), place / "notebooks" / path.name)
    own = {"PYTHONPATH": str(ROOT), "PRUNING_ROOT": str(place), "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces")}
    own |= {f"JUPYTER_{name}_DIR": str(place / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    # Kernels that are measured for coverage start too slowly.
    gone = ("PRUNING_RESULTS", "PRUNING_FIGURES", "COV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(gone)}
    if "PRUNING_DATA" in kept:  # a relative one counts from the project's root, which here is another
        own["PRUNING_DATA"] = str(ROOT / kept["PRUNING_DATA"])
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",
        "--IdentityProvider.token=",
        "--expose-app-in-browser",
    ]
    with (place / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={place}"],
            env=kept | own, cwd=place, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while not (found := list((place / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None, (place / "server.log").read_text()
            time.sleep(0.1)
        yield json.loads(found[0].read_text())["url"], place
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def page(lab):
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{lab[0]}lab?reset")
        page.wait_for_function("() => window.jupyterapp?.shell && document.querySelector('.jp-Launcher')")
        yield page
        browser.close()


def choose(page, menu, entry):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_a_notebook_opens_unchanged_and_runs_to_its_end(lab, page, name):
    _, place = lab
    path = place / "notebooks" / name
    before = path.read_bytes()
    page.evaluate(OPEN, f"notebooks/{name}")
    page.wait_for_function(READY, arg=f"notebooks/{name}")
    page.wait_for_timeout(1000)
    assert not page.evaluate(DIRTY)
    assert not page.locator(".lm-DockPanel-tabBar .jp-mod-dirty").count()
    page.keyboard.press("Control+s")
    page.wait_for_timeout(500)
    assert path.read_bytes() == before

    choose(page, "Edit", "Clear Outputs of All Cells")
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(ENDED, polling=200)
    page.keyboard.press("Control+s")
    page.wait_for_function(f"() => !({DIRTY})()")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [(cell, output) for cell in cells for output in cell.outputs]
    assert not [output for _, output in outputs if output.output_type == "error"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for _, output in outputs if output.get("name") == "stderr"]
    assert compared(path) == compared(ROOT / "notebooks" / name)
    bars = [output.text for cell, output in outputs if "progress=" in cell.source and "text" in output]
    if name.startswith("1-"):
        (text,) = bars
        lines = text.splitlines()
        assert "\r" not in text and len(lines) == 5 and all(" (" in line and "100%|" in line for line in lines[2:])
        shown = page.locator(".jp-OutputArea-output pre", has_text="100%|")
        shown.scroll_into_view_if_needed()
        assert shown.evaluate(LINES) == len(lines)
    page.evaluate(CLOSE)
