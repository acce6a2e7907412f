"""The project's folder and the caches: found from where one works, by variables, or one clear error."""

import sys
from pathlib import Path

import pytest

from pruning.files import cache_folder
from pruning.study import records
from pruning.study.paths import find_root, root

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def unnamed(monkeypatch):
    for variable in ("PRUNING_ROOT", "PRUNING_CACHE", "PRUNING_RESULTS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("place", [".", "notebooks", "data/results/report/notebooks"])
def test_the_project_is_found_from_its_folders(place, monkeypatch):
    monkeypatch.chdir(HERE / place)
    assert root() == HERE and records.folder("report") == HERE / "data" / "results" / "report"


@pytest.mark.parametrize("mark", ["Snakefile", "pyproject.toml"])
def test_another_project_is_found_wherever_the_package_lies(mark, tmp_path, monkeypatch):
    deep = tmp_path / "studies" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_root() is None
    (tmp_path / mark).touch()
    assert root() == tmp_path


def test_the_variable_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    assert root() == tmp_path
    monkeypatch.setenv("PRUNING_ROOT", "notebooks")
    assert root() == HERE / "notebooks"
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match="PRUNING_ROOT names .*typo, which is not a folder"):
        root()


def test_outside_a_project_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"neither {tmp_path} nor .*studies/.*PRUNING_ROOT"):
        records.folder("report")
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    assert records.folder("report") == tmp_path / "results" / "report"


@pytest.mark.parametrize(
    ("system", "variable", "usual"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_caches_lie_in_the_users_cache_folder(system, variable, usual, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / usual / "synapse-pruning"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "own"))
        assert cache_folder() == tmp_path / "own" / "synapse-pruning"
    monkeypatch.setenv("PRUNING_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
