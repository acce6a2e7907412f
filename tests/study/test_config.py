"""Keys: all that a run's numbers follow from, the method's own fields included, and nothing else."""

import dataclasses
import json

import pytest

from pruning.methods import METHODS
from pruning.schedules import GeometricSchedule
from pruning.strategies import Rounds
from pruning.study import config
from pruning.study.config import Plan, Run, Settings
from pruning.study.records import digest

SETTINGS = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=80, ramp=40)
PLAN = Plan(dense=60, stage=24, rounds=3, ratios=(2, 8), densities=(0.5, 0.1))


def run_of(method="random", **settings):
    settings = SETTINGS.model_copy(update=settings)
    return Run(study="tiny", benchmark="digits-2c", requirement=0.5, method=method, seed=0, settings=settings)


def curve_of(method="random", **plan):
    plan = PLAN.model_copy(update=plan)
    return Run(study="tiny", benchmark="digits-2c", method=method, seed=0, plan=plan)


def test_a_key_follows_from_the_parameters_alone():
    run = run_of()
    assert run.key == run_of().key == run.model_copy(update={"study": "other"}).key
    changed = [
        run.model_copy(update={name: value})
        for name, value in (("benchmark", "digits-3c"), ("requirement", 0.51), ("method", "gradual"), ("seed", 1))
    ] + [run_of(**{name: value}) for name, value in (("batch", 33), ("patience", 5), ("budget", 81), ("ramp", 41))]
    assert len({one.key for one in [run, *changed]}) == 1 + len(changed)
    dense = {one.dense_key for one in changed}
    assert len(dense) == 4 and run.dense_key in dense  # its own, and of another benchmark, seed and batch
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_curves_key_follows_from_its_plan_where_it_is_used():
    curve, scan = curve_of(), curve_of("scan")
    changed = [curve_of(**{name: 30}) for name in ("dense", "stage")] + [curve_of(ratios=(2, 4)), curve_of("gradual")]
    assert len({one.key for one in [curve, scan, *changed]}) == 2 + len(changed)
    assert curve.key == curve_of(densities=(0.3,)).key and scan.key == curve_of("scan", stage=30, ratios=(2,)).key
    assert scan.key != curve_of("scan", densities=(0.3,)).key
    whole = run_of().model_copy(update={"settings": Settings()})
    assert curve.dense_key == whole.dense_key, "both train the same at first"


@pytest.mark.parametrize(
    "change",
    [
        {"criterion": METHODS["movement"].criterion},
        {"allocation": METHODS["erk"].allocation},
        {"strategy": Rounds(GeometricSchedule(0.79))},
        {"hook": METHODS["rigl"].hook},
    ],
)
def test_a_method_that_became_another_one_has_other_keys(monkeypatch, change):
    before = [make(method).key for make in (run_of, curve_of) for method in ("random", "gradual")]
    monkeypatch.setattr(config, "METHODS", METHODS | {"random": dataclasses.replace(METHODS["random"], **change)})
    after = [make(method).key for make in (run_of, curve_of) for method in ("random", "gradual")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False, True]


def test_every_method_has_a_key_of_its_own_and_parameters_that_any_json_reader_takes():
    runs = [run_of(name) for name in [*METHODS, config.HASHED]]
    curves = [curve_of(name) for name in [*config.CURVES, config.SCAN]]
    assert len({one.key for one in (*runs, *curves)}) == len(runs) + len(curves)
    for one in (*runs, *curves):
        assert json.loads(json.dumps(one.description, allow_nan=False)) == one.description
        named = {name: one.description[name] for name in ("study", "name", "benchmark", "method")}
        assert named | one.parameters == one.description and digest(one.parameters) == one.key


def test_a_run_that_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="no method 'magic'; known are unpruned"):
        run_of("magic")
    with pytest.raises(ValueError, match="no method 'hashed'; known are unpruned, iterative, gradual"):
        curve_of("hashed")
    with pytest.raises(ValueError, match="no benchmark 'mnist'"):
        Run(study="tiny", benchmark="mnist", requirement=0.5, method="random", seed=0)
    for goal in ({}, {"requirement": 0.5, "plan": PLAN}):
        with pytest.raises(ValueError, match="either a requirement or a plan"):
            Run(study="tiny", benchmark="digits-2c", method="random", seed=0, **goal)
    with pytest.raises(ValueError, match="frozen"):
        run_of().seed = 1
