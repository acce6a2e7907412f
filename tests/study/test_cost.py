"""What a training costs: images counted by hand, of a control's events and of whole runs."""

import pytest

from pruning.analysis.tables import frame
from pruning.events import Event
from pruning.study.config import Run, Settings
from pruning.study.cost import delivered, derived, passes
from pruning.study.runner import run
from pruning.study.studies import load

MACS = {"conv": 1000, "fc": 100}


def event(iteration, phase, action, densities, examples, density=1.0):
    return Event(iteration, phase, 0.9, density, action, dict(zip(MACS, densities)), None, examples)


EVENTS = (
    event(10, "train", "wait", (1, 1), 50),
    event(20, "train", "prune", (0.5, 0.5), 50),
    event(22, "look", "prune", (0.5, 0.5), 7),
    event(22, "look", "undo", (0.1, 0.1), 5),
    event(30, "recover", "effort spent", (0.5, 0.5), 50),
    event(22, "confirm", "effort spent", (0.5, 0.5), 50),
)


def test_images_and_multiply_accumulates_are_counted_as_by_hand():
    whole = passes(EVENTS, 30, batch=4, macs=MACS)
    assert (whole.evaluated, whole.trained) == (50 * 4 + 12, 120) and whole.images == 212 + 3 * 120
    dense = 3 * 4 * 20 * 1100 + 100 * 1100
    pruned = 3 * 4 * 10 * 550 + 7 * 550 + 5 * 110 + 50 * 550 + 50 * 550
    assert whole.macs == dense + pruned
    first = delivered(EVENTS, 3, 22, batch=4, macs=MACS)  # the model of the first look, which was confirmed at the end
    assert (first.evaluated, first.trained) == (50 + 50 + 7 + 50, 88)
    assert derived(250, 100, 5000, 128).images == 3 * 5000 + 3 * 250 * 128


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))


def digits(method, **settings):
    short = load("digits").settings["digits-2c"].model_dump() | {"budget": 400} | settings
    return Run(
        study="digits", benchmark="digits-2c", requirement=0.9, method=method, seed=0, settings=Settings(**short)
    )


@pytest.mark.usefixtures("results")
def test_records_count_images_as_old_ones_let_derive():
    record = run(digits("gradual"))
    result = record["result"]
    assert result["images_trained"] == 32 * result["iterations"] and result["cost"] > 1
    table = frame([record])
    old = {name: value for name, value in result.items() if not name.startswith(("cost", "images", "macs_cost"))}
    derived_table = frame([{**record, "result": old}])
    for column in ("images_evaluated", "images_trained", "cost"):
        assert table[column].item() == pytest.approx(derived_table[column].item())
    assert table["macs_cost"].item() < table["cost"].item(), "what is pruned is not multiplied"


@pytest.mark.usefixtures("results")
def test_looks_that_end_early_cost_less_than_whole_ones():
    settings = {"interval": 20, "budget": 300}
    records = {method: run(digits(method, **settings)) for method in ("unpruned", "adaptive", "adaptive-thorough")}
    found = {method: record["result"] for method, record in records.items()}
    assert found["unpruned"]["cost"] == 1 == found["unpruned"]["effort"]
    extra = {name: result["cost"] / result["effort"] for name, result in found.items()}
    assert 1 < extra["adaptive"] < extra["adaptive-thorough"]
    for method, result in found.items():  # a trajectory holds no estimates, and is in order
        seen = records[method]["trajectory"]
        assert seen["iteration"] == sorted(seen["iteration"])
        met = [left for right, left in zip(seen["accuracy"], seen["density"]) if right >= digits(method).requirement]
        assert min(met) == pytest.approx(result["density"], abs=1e-5)
    assert frame([{**records["adaptive"], "result": {**found["adaptive"]}}])["cost"].notna().all()
    old = {name: value for name, value in found["adaptive"].items() if name not in ("cost", "macs_cost")}
    assert frame([{**records["adaptive"], "result": old}])["cost"].isna().all(), "looks cannot be derived"


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("method", ["unpruned", "iterative", "adaptive"])
def test_a_run_with_confidence_delivers_what_is_certified(method):
    record = run(digits(method, confidence=0.9))
    certificate, result = record["certificate"], record["result"]
    assert record["run"]["settings"]["confidence"] == 0.9 and certificate["count"] >= 2
    if result["reached"]:
        assert certificate["bound"] >= 0.9 and result["density"] == certificate["tested"][certificate["chosen"]][0]
    else:
        assert certificate["chosen"] is None and frame([record])["density"].item() == 1
    assert digits(method).key != digits(method, confidence=0.9).key
    assert "confidence" not in digits(method).parameters["settings"], "keys of old records stay"
