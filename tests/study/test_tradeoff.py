"""Trade-offs: study files, exact ratios, equal effort, the same numbers again, interrupted or not."""

import json
import shutil

import pandas as pd
import pytest
import torch

from pruning.__main__ import main
from pruning.analysis import figures
from pruning.analysis.tables import titles
from pruning.analysis.tradeoff import COLUMNS, SCAN_COLUMNS, frame, scans
from pruning.masks import masked_layers
from pruning.methods import METHODS
from pruning.notation import layers
from pruning.study import tradeoff
from pruning.study.benchmarks import BENCHMARKS
from pruning.study.config import CURVES, PRUNERS, STEPS, Recipe
from pruning.study.records import folder, read_record
from pruning.study.runner import run
from pruning.study.store import all_current, current, recorded
from pruning.study.studies import load
from pruning.study.tradeoff import cut, prunings, scaled
from pruning.study.training import generator, prepare

pytestmark = pytest.mark.arithmetic

YAML = """
title: Tiny
benchmarks: {digits-2c: {settings: {batch: 32, warmup: 20, averaging: 0.9}}}
methods: [unpruned, iterative, gradual, oneshot, random, adaptive, small]
seeds: [0]
plan: {ratios: [2, 8], dense: 60, stage: 24, rounds: 3, densities: [0.5, 0.1]}
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of the study ``tiny``, run once."""
    place = tmp_path_factory.mktemp("finished")
    (place / "tiny.yaml").write_text(YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        assert main(["run", str(place / "tiny.yaml")]) == 0
    return place


@pytest.fixture
def tiny(finished, tmp_path, monkeypatch):
    """A copy of ``finished`` as this test's results; returns the study."""
    shutil.copytree(finished, tmp_path / "results")
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    return load(tmp_path / "results" / "tiny.yaml")


def numbers(record):
    return json.loads(json.dumps({key: value for key, value in record.items() if key != "environment"}))


def test_every_method_has_the_same_ratios_and_the_same_effort(tiny):
    table = frame(recorded(tiny))
    assert tuple(table.columns) == COLUMNS and not table.duplicated(list(COLUMNS[:4])).any()
    for method in (*PRUNERS, "small"):
        part = table[table["method"] == method]
        assert list(part["ratio"]) == [2, 8] and list(part["iterations"]) == [60 + 24, 60 + 48]
        assert (part["compression"] >= part["ratio"] * 0.999).all() and (part["speedup"] > 1).all()
        tolerance = 0.05 if method == "small" else 0.001
        assert (part["compression"] / part["ratio"] - 1).abs().max() < tolerance
    (whole,) = table[table["method"] == "unpruned"].to_dict("records")
    assert whole["iterations"] == 60 + 48 and whole["density"] == whole["compression"] == whole["speedup"] == 1
    assert (table["compression"] * table["density"]).sub(1).abs().max() < 1e-12


def test_a_speedup_is_what_the_masks_say(tiny):
    table = layers(BENCHMARKS["digits-2c"].network)
    record = next(record for record in recorded(tiny) if record["run"]["method"] == "iterative")
    for point in record["points"]:
        left = sum(round(point["densities"][layer.name] * layer.synapses) * layer.output_positions for layer in table)
        assert point["speedup"] == pytest.approx(sum(layer.macs for layer in table) / left, rel=0.01)


def test_a_scan_starts_from_the_dense_network_and_prunes_one_layer(tiny):
    found = recorded(tiny)
    table = scans(found)
    assert tuple(table.columns) == SCAN_COLUMNS
    assert list(table["layer"].unique()) == [layer.name for layer in layers(BENCHMARKS["digits-2c"].network)]
    assert table.groupby("layer").size().eq(3).all()
    assert table.loc[table["density"] == 1, "validation_accuracy"].nunique() == 1
    # Pruned alone to a tenth, some layer costs accuracy: the scan sees a difference between layers.
    assert table.loc[table["density"] == 0.1, "validation_accuracy"].nunique() > 1


def test_a_record_that_is_there_is_read_and_a_damaged_one_is_made_again_the_same(tiny, monkeypatch):
    curve = next(curve for curve in tiny.runs if curve.method == "gradual")
    path = curve.record_path
    before, kept = path.read_bytes(), numbers(read_record(path))
    with monkeypatch.context() as patch:
        patch.setattr(tradeoff, "step", lambda *given: pytest.fail("trained again"))
        run(curve)
    path.write_bytes(before[:-20])
    said = []
    assert current(curve) is None and len(all_current(tiny.runs)) == len(tiny.runs) - 1
    assert numbers(run(curve, warn=said.append)) == kept
    assert "damaged" in said[0] and numbers(read_record(path)) == kept
    # The same without what other curves left behind.
    path.unlink()
    for state in path.parent.glob("dense-*/*.dense"):
        state.unlink()
    assert numbers(run(curve)) == kept


def test_a_damaged_dense_state_is_set_aside_and_trained_again(tiny):
    curve = next(curve for curve in tiny.runs if curve.method == "random")
    path = curve.record_path
    kept, said = numbers(read_record(path)), []
    path.unlink()
    (state,) = path.parent.glob("dense-*/60-iterations.dense")
    state.write_bytes(state.read_bytes()[:-1])
    assert numbers(run(curve, warn=said.append)) == kept and "checksum does not fit" in said[0]


def test_a_record_of_other_parameters_is_not_current(tiny, tmp_path):
    (tmp_path / "results" / "tiny.yaml").write_text(YAML.replace("stage: 24", "stage: 30"))
    other = load(tmp_path / "results" / "tiny.yaml")
    assert [record["run"]["method"] for record in recorded(other)] == ["scan"], "the scan depends on no stage"


def test_the_tables_are_the_records(tiny, tmp_path):
    place, expected = folder("tiny"), recorded(tiny)
    assert main(["table", str(tmp_path / "results" / "tiny.yaml")]) == 0
    assert recorded(tiny) == expected and not list(place.glob("work/*.json"))
    pd.testing.assert_frame_equal(pd.read_csv(place / "tradeoff.csv"), frame(expected), check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(place / "sensitivity.csv"), scans(expected), check_exact=True)


def test_the_verb_trains_what_is_missing_and_writes_the_tables(tiny, tmp_path, capsys):
    file = str(tmp_path / "results" / "tiny.yaml")
    assert main(["fresh", file, "--methods", "[random, scan]"]) == 0
    assert len(all_current(tiny.runs)) == len(tiny.runs) - 2
    capsys.readouterr()
    assert main(["tradeoff", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-2]] == [f"{n}/8 {one.name}" for n, one in enumerate(tiny.runs, 1)]
    assert lines[-2:] == [f"{folder('tiny') / name}.csv: 8 of 8 runs" for name in ("tradeoff", "sensitivity")]


def test_no_records_and_no_benchmark_are_one_error_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    assert main(["table", "tradeoff"]) == 1 and "run 'make tradeoff'" in capsys.readouterr().err
    assert main(["status", "tradeoff", "--benchmark", "none"]) == 1
    assert "benchmark 'none' is not in the study 'tradeoff'" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_a_cut_leaves_what_was_asked_for_and_never_brings_a_synapse_back(name, density):
    training = prepare("28x28-6c5-16c5-120-84-10", Recipe(), 0.5, METHODS["unpruned"], 0)
    lots, found = generator(0, 0), masked_layers(training.model)
    cut(training, METHODS[name], 0.7, lots)
    before = {key: layer.mask.clone() for key, layer in found.items()}
    cut(training, METHODS[name], density, lots)
    left = sum(layer.significant for layer in found.values())
    assert left == pytest.approx(density * 44190, abs=len(found))
    for key, layer in masked_layers(training.average).items():
        assert not (layer.mask & ~before[key]).any() and torch.equal(layer.mask, found[key].mask)
        assert not layer.weight[~layer.mask].any()


def test_prunings_go_down_to_the_density_asked_for():
    rounds = prunings(METHODS["iterative"], 0.5, 0.25, 300, 3)
    assert list(rounds) == [0, 75, 150] and rounds[150] == pytest.approx(0.25)
    assert rounds[0] / 0.5 == pytest.approx(rounds[150] / rounds[75]), "equal factors"
    assert prunings(METHODS["iterative"], 1, 0.5, 300, 1) == {0: 0.5}
    gradual = prunings(METHODS["gradual"], 0.5, 0.25, 300, 3)
    values = list(gradual.values())
    assert max(gradual) == 150 and values[-1] == pytest.approx(0.25) and values == sorted(values, reverse=True)
    assert len(gradual) == STEPS and values[0] - values[1] > values[-2] - values[-1]


def test_small_networks_have_the_size_asked_for():
    for notation in {benchmark.network for benchmark in BENCHMARKS.values()}:
        whole = sum(layer.synapses for layer in layers(notation))
        for ratio in (2, 4, 8, 16, 32, 64):
            found = layers(scaled(notation, ratio))
            assert 0.97 < ratio * sum(layer.synapses for layer in found) / whole <= 1
            assert [layer.kind for layer in found] == [layer.kind for layer in layers(notation)]
    with pytest.raises(ValueError, match="cannot be made 1000 times smaller"):
        scaled("28x28-6c5-16c5-120-84-10", 1000)


def test_both_figures_show_every_method_and_layer(tiny):
    found = recorded(tiny)
    shown = {text.get_text() for text in figures.tradeoff(frame(found), titles(found)).legends[0].get_texts()}
    assert shown == {figures.look(method).label for method in CURVES}
    axes = figures.sensitivity(scans(found), titles(found)).axes[0]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(scans(found)["layer"])
