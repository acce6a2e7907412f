"""The pages on one's own data and network, followed to the letter; notebooks on a study file by its path."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError

from pruning.study.config import StudyError
from pruning.study.parameters import check_parameters
from pruning.study.runner import run
from pruning.study.studies import load

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def blocks(page, kind):
    """The code blocks of a kind in a page of docs/, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as a reader's project, in which results, figures and prepared data stay too."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "Snakefile").touch()
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRUNING_ROOT", raising=False)
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    monkeypatch.delenv("PRUNING_FIGURES", raising=False)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "prepared"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path
    sys.modules.pop("my_networks", None)


def made(place):
    """Make the examples' data there."""
    subprocess.run([sys.executable, "examples/data.py"], check=True, capture_output=True)
    assert len(list((place / "examples/data/digits").glob("*/*.png"))) == 1797


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_own_data_from_zero_to_figure_4(place):
    (study,), (code,) = blocks("own-data.md", "yaml"), blocks("own-data.md", "python")
    assert len(code.strip().splitlines()) <= 10
    made(place)
    (place / "mine.yaml").write_text(study)
    values = {}
    exec(code, values)
    assert {record["run"]["dataset"] for record in values["records"]} == {"digits at 28x28"}
    assert any(record["result"]["density"] < 0.2 for record in values["records"])
    for kind in ("png", "svg", "pdf"):
        assert (place / f"figures/mine/figure-4-significant-synapses.{kind}").stat().st_size > 5000
    assert len(list((place / "data/results/mine/work").glob("*.json"))) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_own_network_as_the_page_has_it(place):
    (study,), (code,) = blocks("own-network.md", "yaml"), blocks("own-network.md", "python")
    (place / "my_networks.py").write_text(code)
    (place / "mine.yaml").write_text(study)
    records = [run(each) for each in load("mine.yaml").runs]
    assert all(record["result"]["reached"] for record in records) and records[1]["result"]["density"] < 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_notebook_takes_a_study_by_its_path(place):
    """Counted from the project's folder, from which papermill is started."""
    made(place)
    for each in load("examples/own-arrays.yaml").select("arrays-small", [0.9], ["unpruned", "iterative"], [0]):
        run(each)
    done = executed("2-significant-synapses", place, {"study": "examples/own-arrays.yaml"})
    assert "digits, arrays-small" in text(done), "the title of the study's own benchmark"
    assert (place / "figures/own-arrays/figure-4-significant-synapses.png").is_file()
    assert (place / "figures/own-arrays/figure-11-filters.png").is_file(), "the run was trained again, its masks kept"


def executed(name, place, parameters):
    out = place / f"{name}.ipynb"
    return execute_notebook(ROOT / f"notebooks/{name}.ipynb", out, parameters, progress_bar=False)


def text(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return " ".join(f"{output.get('text', '')} {dict(output.get('data', {}))}" for output in outputs)


@pytest.mark.slow
def test_a_misspelt_parameter_is_an_error(place):
    with pytest.raises(PapermillExecutionError, match="no parameter 'benchmarc'; this notebook has benchmark, study"):
        executed("1-benchmark", place, {"benchmarc": "mnist-2c"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_every_notebook_checks_its_parameters_first(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata["tags"] and "parameters" not in cells[1].metadata.get("tags", [])
    lines = [line for line in cells[1].source.splitlines() if line and not line.startswith(("#", "import ", "from "))]
    assert lines[0] == "check_parameters(globals())"


def test_only_what_papermill_injected_is_checked():
    cells = [
        "",
        "study = 'report'",
        "# Parameters\nstudy = 'digits'\n",
        "more = 3",
        "# Parameters\nmore = 4\nstudy = ''",
    ]
    check_parameters({"In": cells})
    check_parameters({})
    with pytest.raises(StudyError, match="no parameter 'studdy'; this notebook has study, seeds"):
        check_parameters({"In": ["study = 'report'\nseeds: list = [0]", "# Parameters\nstuddy = 'digits'\n"]})


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_studies_without_a_download(path):
    study = load(path)
    assert study.own and all(run.made_of.label.startswith("digits") for run in study.runs)


def test_the_default_requirement_belongs_to_the_default_benchmark():
    """What notebook 1's cell does with its parameters, read from the notebook itself."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[0], as_version=4).cells if cell.cell_type == "code"]
    (chooses,) = [source for source in cells if source.startswith("chosen = find(")]
    parts = chooses.split("runs = ")[0]
    for benchmark, study, requirements in (
        ("digits-2c", "", [0.97]),
        ("digits-3c", "", None),
        ("cifar10-2c", "", None),
        ("digits-2c", "digits", None),
    ):
        values = {"find": lambda *given: given, "benchmark": benchmark, "study": study}
        exec(parts, values | (kept := {"requirements": None, "methods": None}), kept)
        assert kept["requirements"] == requirements and (kept["methods"] is None) == (requirements is None)


@pytest.mark.slow
def test_the_graph_takes_a_study_file_and_checks_its_networks_before_any_training(tmp_path):
    study = (ROOT / "examples/own-network.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(study.replace("networks:small_resnet", "28x28-6c5-7"))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--config", f"study={tmp_path / 'mine.yaml'}"],
        cwd=ROOT,
        env=os.environ | {"PRUNING_RESULTS": str(tmp_path / "results"), "PRUNING_FIGURES": str(tmp_path / "figures")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = "benchmark 'digits-resnet': the network 28x28-6c5-7 takes images of 1x28x28 and has 7 outputs"
    assert done.returncode and said in done.stdout
