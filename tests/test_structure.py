"""What keeps the package readable: short modules and classes, private names at home, pages that follow the code."""

import ast
import re
import runpy
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(ROOT.glob("pruning/**/*.py"))


def names(paths):
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_modules_and_classes_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 170, node.name


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_no_private_name_crosses_a_border(path):
    """Ruff sees private attributes, and private imports from other packages; these are the package's own."""
    home = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != home:
            parts = node.module.removeprefix(f"{home}.").split(".")
            away = parts[:-1] if node.module.startswith(f"{home}.") else parts  # a private module serves its own room
            private = [name for name in (*away, *(one.name for one in node.names)) if is_private(name)]
            assert not private, f"line {node.lineno}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_examples_in_docstrings_run(path):
    """An indented block that is Python is an example, and pytest runs those of ``>>>``."""
    described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, described) and (text := ast.get_docstring(node, clean=False)):
            indent = node.body[0].col_offset + 4
            for block in re.findall(rf"(?:^ {{{indent}}}.*\n?|^\n)+", text, re.MULTILINE):
                example = textwrap.dedent(block).strip()
                assert example.startswith(">>>") or not is_python(example), example


def is_python(text):
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data/README.md"])


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_page_of_methods_follows_the_code():
    written = runpy.run_path(str(ROOT / "docs/build.py"))["methods_page"]()
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == written, "run 'make docs'"
