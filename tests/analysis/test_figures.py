"""Every figure from real records: it renders, to the same bytes twice, and shows what must not be left out."""

import hashlib
import io
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_hex

from pruning.analysis import figures
from pruning.analysis.tables import frame, titles
from pruning.methods import METHODS
from pruning.study.paths import root
from pruning.study.progress import progress
from pruning.study.runner import run
from pruning.study.studies import load

STUDY = """
title: a few quick runs
benchmarks:
  digits-2c:
    requirements: [0.4]
methods: [unpruned, iterative, gradual]
seeds: [0, 1]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 3, ramp: 60, budget: 120}
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Seven records: three methods with two seeds, and one run that did not reach its requirement."""
    place = tmp_path_factory.mktemp("figures")
    (place / "quick.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        quick = load(place / "quick.yaml")
        missed = quick.select(requirements=[0.999], methods=["iterative"], seeds=[0])
        yield [run(one) for one in sorted((*quick.runs, *missed), key=lambda one: one.name)]


DEEP = """
from torch import nn

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, values):
        return values + self.linear(values).relu() / 5

def deep(shape, classes):
    steps = [Step() for _ in range(48)]
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 7, stride=7), nn.Flatten(), nn.Linear(64, 16), *steps, nn.Linear(16, classes)
    )
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The record of a network of 51 layers, made by a function, with a round of pruning."""
    place = tmp_path_factory.mktemp("deep")
    (place / "deep.yaml").write_text(
        STUDY.replace("  digits-2c:", "  ladder:\n    dataset: digits\n    network: deep_networks:deep")
        .replace("[0.4]", "[0.15]")
        .replace("interval: 20", "interval: 10")
        .replace("budget: 120", "budget: 30")
    )
    (place / "deep_networks.py").write_text(DEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        yield run(load(place / "deep.yaml").select(methods=["iterative"], seeds=[0])[0])


@pytest.mark.slow
def test_figures_cope_with_fifty_layers(deep):
    table, names = frame([deep]), titles([deep])
    assert len(deep["layers"]) == 51 and deep["rounds"]
    drawn = {
        "densities": figures.layer_densities(deep),
        "histograms": figures.weight_histograms(deep),
        "benchmarks": figures.benchmarks_table(table, names, [deep]),
        "cycle": figures.iterative_pruning(deep),
        "synapses": figures.significant_synapses(table, names),
    }
    for name, figure in drawn.items():
        width, height = figure.get_size_inches()
        assert width < 18 and height < 12, name
        assert len(np.unique(np.asarray(PIL.Image.open(io.BytesIO(figures.png(figure, dpi=40))).convert("L")))) > 20, (
            name
        )
    assert "(12 of 51, input to output)" in texts(drawn["densities"])
    assert "12 of 51 layers, input to output" in texts(drawn["histograms"])
    shown = texts(drawn["benchmarks"])
    assert "13,668" in shown and "16,608" in shown, "all synapses and multiply-accumulates"
    assert "Digits, ladder" in shown and "deep_networks:deep" in shown and "1 × 28×28" in shown


def drawn(found):
    table, names = frame(found), titles(found)
    one = {record["run"]["name"]: record for record in found}["digits-2c-0.4-iterative-0"]
    return {
        "learning-curve": lambda: figures.learning_curve(one),
        "layer-densities": lambda: figures.layer_densities(one),
        "weight-histograms": lambda: figures.weight_histograms(one),
        "connections": lambda: figures.connections(one),
        "cycle": figures.cycle,
        "iterative-pruning": lambda: figures.iterative_pruning(one),
        "implementation": figures.implementation,
        "benchmarks": lambda: figures.benchmarks_table(table, names),
        "significant-synapses": lambda: figures.significant_synapses(table, names),
        "training-effort": lambda: figures.training_effort(table, names),
    }


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text)).replace("\n", " ")


@pytest.mark.slow
def test_every_figure_renders_and_is_not_empty(found):
    for name, draw in drawn(found).items():
        figure = draw()
        image = PIL.Image.open(io.BytesIO(figures.png(figure, dpi=60)))
        assert min(image.size) > 150 and len(np.unique(np.asarray(image.convert("L")))) > 20, f"{name} is empty"
        assert figure.get_label(), f"{name} does not say what it shows"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning-curve", "iterative-pruning", "significant-synapses", "training-effort"])
def test_a_figure_is_saved_with_the_same_bytes_twice(found, tmp_path, name):
    draw = drawn(found)[name]
    paths = figures.save(draw(), tmp_path, name)
    assert [path.name for path in paths] == [f"{name}.{kind}" for kind in ("png", "svg", "pdf")]
    before = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    figure = draw()
    figures.png(figure, dpi=60)  # shown first, which must not move anything
    again = figures.save(figure, tmp_path, name)
    assert [hashlib.sha256(path.read_bytes()).digest() for path in again] == before
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


@pytest.mark.arithmetic
def test_runs_without_a_round_have_their_pictures_too(found):
    kinds = {(record["run"]["method"], record["result"]["reached"]): record for record in found}
    assert set(kinds) == {("unpruned", True), ("iterative", True), ("gradual", True), ("iterative", False)}
    for kind in (("unpruned", True), ("iterative", False)):
        for draw in (figures.learning_curve, figures.layer_densities, figures.weight_histograms, figures.connections):
            assert "Digits, 2 convolutions" in texts(draw(kinds[kind]))


def test_a_method_has_one_color_in_every_figure(found):
    table, names = frame(found), titles(found)
    for method in ("iterative", "gradual"):
        color = figures.look(method).color
        record = next(record for record in found if record["run"]["method"] == method)
        for figure in (
            figures.learning_curve(record),
            figures.significant_synapses(table, names),
            figures.training_effort(table, names),
        ):
            assert color in {to_hex(line.get_color()) for line in figure.findobj(matplotlib.lines.Line2D)}


def test_looks_differ_in_color_marker_and_hatch_and_unknown_methods_get_a_fixed_one():
    looks = list(figures.LOOKS.values())
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)
    # Bars that share a hatch must differ in grey.
    plain = [np.dot(matplotlib.colors.to_rgb(look.color), (0.299, 0.587, 0.114)) for look in looks if not look.hatch]
    assert all(abs(one - other) > 0.15 for number, one in enumerate(plain) for other in plain[:number])
    assert figures.look("taylor") == figures.look("taylor") and figures.look("taylor").label == "taylor"
    assert figures.look("taylor").color not in {look.color for look in looks}
    assert figures.ordered(["taylor", "random", "unpruned", "random"]) == ["unpruned", "random", "taylor"]


@pytest.mark.arithmetic
def test_a_run_that_did_not_reach_its_requirement_is_shown(found):
    table, names = frame(found), titles(found)
    assert list(table.loc[~table["reached"], "requirement"]) == [0.999]
    for draw in (figures.significant_synapses, figures.training_effort):
        shown = texts(draw(table, names))
        assert "1/1" in shown and "did not reach" in shown and "99.9 %" in shown
        shown = texts(draw(table[table["reached"]], names))
        assert "1/1" not in shown and "did not reach" not in shown


@pytest.mark.arithmetic
def test_a_requirement_that_was_never_met_is_told_as_that(found):
    (record,) = [record for record in found if not record["result"]["reached"]]
    figure = figures.learning_curve(record)
    low, high = figure.axes[0].get_ylim()
    seen = max(record["trajectory"]["accuracy"])
    assert low < seen < high and low < record["run"]["requirement"] <= high, "upright, with all that matters in it"
    assert "delivered" not in texts(figure) and "first met" not in texts(figure)
    shown = texts(figures.weight_histograms(record))
    assert "the requirement was never met" in shown and "before pruning" not in shown and "delivered" not in shown
    assert "density at the end" in texts(figures.layer_densities(record))


@pytest.mark.parametrize(
    ("fraction", "written"),
    [(1, "100 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %"), (0.376, "37.6 %"), (0.55, "55 %"), (0.0012, "0.12 %")],
)
def test_only_all_is_written_as_all(fraction, written):
    assert figures.percent(fraction) == written


def test_what_a_figure_must_say_it_says(found):
    table = frame(found)
    others = table.assign(benchmark="cifar10-2c", network="3x32x32-6c5-16c5-120-84-10")
    for draw in (figures.significant_synapses, figures.training_effort, figures.benchmarks_table):
        assert "CIFAR-10 (JPEG copy), 2 convolutions" in texts(draw(others, {"cifar10-2c": "CIFAR-10 (JPEG copy)"}))
    assert "mean; error bars: smallest to largest of 1 to 2 seeds" in texts(figures.significant_synapses(table, {}))
    mnist = table.assign(benchmark="mnist-2c", requirement=0.99)
    assert "the report: about 40 %" in texts(figures.significant_synapses(mnist, {"mnist-2c": "MNIST"}))


@pytest.mark.arithmetic
def test_a_run_that_was_pruned_early_does_not_say_where_it_first_met_the_requirement(found):
    record = {record["run"]["name"]: record for record in found}["digits-2c-0.4-iterative-0"]
    plain = texts(figures.learning_curve(record))
    assert "requirement first met (iteration" in plain and "without pruning" not in plain
    seen = record["trajectory"]
    early = record | {"trajectory": seen | {"density": [min(left, 0.9) for left in seen["density"]]}}
    shown = texts(figures.learning_curve(early))
    assert "without pruning, first met here (iteration" in shown and "requirement first met" not in shown
    for one, starts in ((record, True), (early, False)):
        lines = figures.layer_densities(one).axes[0].lines
        assert all((line.get_xdata()[0] == 0) == starts for line in lines if line.get_drawstyle() == "steps-post")


def test_networks_that_are_not_the_reports_have_their_names():
    assert figures.title("lenet-5", {"lenet-5": "MNIST"}) == "MNIST, LeNet-5-Caffe"
    assert figures.title("lenet-300-100", {}) == "lenet-300-100, LeNet-300-100"
    assert figures.title("mnist-3c", {"mnist-3c": "MNIST"}) == "MNIST, 3 convolutions"
    assert figures.title("fashion-2c", {"fashion-2c": "FashionMNIST"}) == "FashionMNIST, 2 convolutions"
    assert figures.title("small-resnet", {"small-resnet": "flowers"}) == "flowers, small-resnet"
    assert figures.title("flowers", {"flowers": "flowers"}) == figures.title("flowers", {}) == "flowers"


def test_every_method_has_a_look_of_its_own_whose_label_begins_with_its_code():
    assert set(METHODS) <= set(figures.LOOKS)
    for method, look in figures.LOOKS.items():
        assert re.sub("[^a-z]", "", look.label.split(" (")[0].lower()) == method.replace("-", "")


def test_the_benchmarks_table_holds_every_layer(found):
    shown = texts(figures.benchmarks_table(frame(found), titles(found)))
    for number in ("44,190", "281,640", "30,720", "153,600", "16 × 6 × 5 × 5", "28x28-6c5-16c5-120-84-10"):
        assert number in shown


def test_connections_need_a_mask_of_a_linear_layer(found):
    bare = found[0] | {"layers": [part for part in found[0]["layers"] if len(part["shape"]) > 2]}
    with pytest.raises(ValueError, match=f"the record of {found[0]['run']['name']} holds no mask of a linear layer"):
        figures.connections(bare)


def test_spread_and_folder(monkeypatch, tmp_path):
    assert figures.spread([0.1, 0.2, 0.3]) == "20.0% (10.0% to 30.0%)"
    assert figures.spread([2, 2], "{:.0f}") == "2" and figures.spread([np.nan]) == "-"
    monkeypatch.delenv("PRUNING_FIGURES", raising=False)
    assert figures.folder("report") == root() / "figures" / "report"
    monkeypatch.setenv("PRUNING_FIGURES", str(tmp_path))
    assert figures.folder("report") == tmp_path / "report"


def test_progress_is_plain_lines_where_nobody_watches(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    run = SimpleNamespace(name="digits-2c-0.97-iterative-0", settings=SimpleNamespace(budget=100))
    report = progress(run, 2, 12)
    for iteration in (20, 40):
        report(SimpleNamespace(iteration=iteration, accuracy=0.9, density=0.5, action="wait", finished=False), None)
    assert capsys.readouterr().out == ""
    report(SimpleNamespace(iteration=60, accuracy=0.98, density=0.25, action="not recovered", finished=True), None)
    said = capsys.readouterr().out
    assert said == "digits-2c-0.97-iterative-0 (2 of 12): iteration 60, accuracy 0.980, density 25.0%; not recovered\n"


def test_progress_is_a_bar_in_jupyterlab(monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "1-benchmark.ipynb")
    run = SimpleNamespace(name="a run", settings=SimpleNamespace(budget=100))
    report = progress(run)
    report(SimpleNamespace(iteration=60, accuracy=0.98, density=0.25, action="not recovered", finished=True), None)
    assert "a run (1 of 1): 100%" in capsys.readouterr().out
