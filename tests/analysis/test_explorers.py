"""What the page lets its reader explore follows from the records: counts, means, rounds, what was delivered."""

import json
from itertools import pairwise

import pandas as pd
import pytest

from pruning.analysis import comparison, explorers
from pruning.analysis.tables import titles
from pruning.study.records import folder, from_line, lines, published_path


@pytest.fixture(scope="module")
def table():
    parts = [pd.read_csv(folder(study) / "runs.csv") for study in (explorers.STUDY, explorers.OTHERS)]
    return comparison.rivals(comparison.joined(*parts))


@pytest.fixture(scope="module")
def records():
    return [from_line(line) for line in lines(published_path(explorers.STUDY, "mnist-2c"))]


def test_every_run_that_met_its_requirement_is_listed_with_what_the_table_holds(table, records):
    found = explorers.front(table, titles(records))
    settings = found["settings"][1:]
    assert len(settings) == len(table.groupby(["benchmark", "requirement"]))
    assert sum(len(runs) for one in settings for runs in one["runs"].values()) == table["reached"].sum()
    mnist = next(one for one in settings if one["title"] == "MNIST, 2 convolutions: 98 % required")
    row = table.query("benchmark == 'mnist-2c' and requirement == 0.98 and method == 'adaptive' and seed == 3").iloc[0]
    (run,) = (run for run in mnist["runs"]["adaptive"] if run[0] == 3)
    assert run[1:3] == [row["significant"], row["test_accuracy"]] and run[3] == pytest.approx(row["effort"], rel=1e-3)
    assert set(found["methods"]) == set(table["method"]) and json.loads(json.dumps(found)) == found


def test_the_means_and_the_front_are_those_of_the_figures(table):
    everything, *settings = explorers.front(table, {})["settings"]
    expected = comparison.overall(table).set_index("method")
    means = {method: mean for method, mean in everything["means"].items() if method != "unpruned"}
    assert set(means) == set(expected.index) - {comparison.BEST}
    for method, (density, effort, *_) in means.items():
        assert (density, effort) == pytest.approx(tuple(expected.loc[method, ["density", "effort"]]), rel=1e-3)
    groups = [runs for _, runs in table.groupby(["benchmark", "requirement"])]
    by_size = {tuple(sorted((method, mean[-3]) for method, mean in one["means"].items())): one for one in settings}
    for runs in groups:
        met = runs.groupby("method")["reached"].sum()
        one = by_size[tuple(sorted(met.items()))]
        able = {method for method, mean in one["means"].items() if mean[-1]}
        assert set(comparison.front(runs).index) <= able <= set(met.index[met == runs.groupby("method").size()])


def test_another_measure_is_one_more_column(table):
    found = explorers.front(table.assign(cost=2 * table["effort"]), {})
    assert list(found["measures"]) == ["effort", "cost"]
    one = found["settings"][1]
    (_, _, _, effort, cost), *_ = one["runs"]["iterative"]
    assert cost == pytest.approx(2 * effort, rel=1e-3) and len(one["means"]["iterative"]) == 6


def test_runs_that_missed_their_requirement_count_but_are_not_listed(table):
    missed = (table["method"] == "iterative") & (table["seed"] == 0)
    found = explorers.front(table.assign(reached=table["reached"] & ~missed), {})["settings"][1]
    density, _, _, met, runs, able = found["means"]["iterative"]
    assert len(found["runs"]["iterative"]) == met == runs - 1 and not able and density > 1 / runs
    never = explorers.front(table.assign(reached=False, effort=float("nan")), {})["settings"][1]
    assert never["runs"] == {} and never["means"]["iterative"][:2] == [1.0, None]


def test_a_run_is_followed_round_by_round(records):
    chosen = explorers.choose(records)
    assert [(one["run"]["method"], one["run"]["requirement"], one["run"]["seed"]) for one in chosen] == [
        ("iterative", 0.98, 0),
        ("adaptive", 0.98, 0),
    ]
    for record in chosen:
        found = explorers.rounds(record)
        begins, left, accuracies = zip(*found["rounds"])
        assert list(begins) == sorted(set(begins)) and left[0] == [count for _, count in found["layers"]]
        totals = [sum(counts) for counts in left]
        # Every round of the report's method removes synapses; the study's own also takes a step back.
        assert all(one != other for one, other in pairwise(totals))
        assert record["run"]["method"] != "iterative" or totals == sorted(totals, reverse=True)
        # What was delivered is the network whose layers the record tells, and it met the requirement.
        assert left[found["delivered"]] == [part["significant"] for part in record["layers"]]
        assert accuracies[found["delivered"]] >= record["run"]["requirement"]


def test_nothing_to_explore_without_records(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    assert explorers.explorers() is None
