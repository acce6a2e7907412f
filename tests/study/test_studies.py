"""Study files: strict, spelled out as runs, selected by lists and their text."""

from pathlib import Path

import pytest

from pruning.methods import METHODS
from pruning.notation import layers
from pruning.study.benchmarks import BENCHMARKS
from pruning.study.config import CURVES, HASHED, SCAN, StudyError
from pruning.study.studies import find, load, names

ROOT = Path(__file__).resolve().parents[2]
YAML = """
title: Tiny
benchmarks:
  digits-2c:
    requirements: [0.5]
methods: [unpruned, random]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 4, budget: 80, ramp: 40}
"""
TRADEOFF = """
title: Tiny
benchmarks: {digits-2c: {settings: {batch: 32, warmup: 20, averaging: 0.9}}}
methods: [unpruned, iterative, gradual, oneshot, random, small]
seeds: [0]
plan: {ratios: [2, 8], dense: 60, stage: 24, rounds: 3, densities: [0.5, 0.1]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    return path


def test_the_committed_studies_load():
    assert set(names()) >= {"digits", "report", "methods", "ingredients", "lenet", "smallest", "certified", "tradeoff"}
    report, digits = load("report"), load("digits")
    assert report.benchmarks[:2] == ("mnist-2c", "mnist-3c") and report.requirements["mnist-2c"] == (0.97, 0.98, 0.99)
    assert len({run.name for run in report.runs}) == len(report.benchmarks) * 3 * len(report.methods) * 5
    assert set(digits.methods) == {"unpruned", "iterative", "oneshot", "gradual", "random"} <= set(METHODS)
    assert digits.settings["digits-3c"].batch == 32 and load(ROOT / "studies" / "digits.yaml") == digits
    assert BENCHMARKS["cifar10-3c"].network == "3x32x32-6c3-16c3-36c4-240-120-84-10"


def test_the_study_of_methods_goes_with_the_reports():
    report, methods, ingredients, lenet, smallest = map(load, ("report", "methods", "ingredients", "lenet", "smallest"))
    assert "adaptive" in ingredients.methods and set(ingredients.seeds) > set(report.seeds)
    every = {method for one in (report, methods, ingredients, smallest) for method in one.methods}
    assert every == {*METHODS, HASHED} and ingredients.settings["mnist-2c"] == report.settings["mnist-2c"]
    assert set(report.methods) & set(methods.methods) == {"unpruned"}
    assert methods.settings == report.settings and methods.seeds == report.seeds
    assert methods.requirements == report.requirements
    assert set(lenet.settings.values()) == {report.settings["mnist-2c"]}
    synapses = {name: sum(layer.synapses for layer in layers(BENCHMARKS[name].network)) for name in lenet.benchmarks}
    assert synapses == {"lenet-300-100": 266_200, "lenet-5": 430_500}


def test_a_benchmarks_study_is_the_largest_that_has_it_and_the_reports_method():
    found = {name: find(name).name for name in ("mnist-2c", "digits-3c", "cifar10-3c", "lenet-5")}
    assert found == {"mnist-2c": "report", "digits-3c": "digits", "cifar10-3c": "report", "lenet-5": "lenet"}
    assert find("mnist-2c", "methods").name == "methods"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("title: Tiny", "titel: Tiny"),
            [
                "titel: unknown key; known are title, plan, benchmarks, methods, seeds, settings",
                "title: the key is missing",
            ],
        ),
        (("title: Tiny", ""), ["title: the key is missing"]),
        (("title: Tiny", "title: 3"), ["title: Input should be a valid string (got 3)"]),
        (("title: Tiny", "title: a\ntitle: b"), ["not valid YAML", "the key 'title' stands twice"]),
        (
            ("requirements: [0.5]", "requirement: [0.5]"),
            ["benchmarks.digits-2c.requirement: unknown key; known are dataset, network, requirements, settings"],
        ),
        (
            ("requirements: [0.5]", "requirements: [0]"),
            ["benchmarks.digits-2c.requirements.0", "greater than 0 (got 0)"],
        ),
        (("requirements: [0.5]", "requirements: [1]"), ["requirements.0", "less than 1 (got 1)"]),
        (("requirements: [0.5]", "requirements: [0.5, 1.5]"), ["requirements.1", "less than 1 (got 1.5)"]),
        (("requirements: [0.5]", "requirements: ['0.5']"), ["requirements.0", "valid number (got '0.5')"]),
        (("requirements: [0.5]", "requirements: 0.5"), ["benchmarks.digits-2c.requirements", "valid list (got 0.5)"]),
        (("requirements: [0.5]", "settings: {}"), ["benchmarks.digits-2c.requirements: the key is missing"]),
        (("requirements: [0.5]", "requirements: []"), ["benchmarks.digits-2c.requirements", "at least 1 item"]),
        (
            ("requirements: [0.5]", "requirements: [0.5, 0.50]"),
            ["benchmarks.digits-2c.requirements lists something twice"],
        ),
        (
            ("requirements: [0.5]", "requirements: [0.5]\n    settings: {flop: true}"),
            ["benchmarks.digits-2c.settings.flop: unknown key; known are batch, learning_rate"],
        ),
        (("requirements: [0.5]", "requirements: [0.5]\n    settings: 3"), ["benchmarks.digits-2c.settings", "(got 3)"]),
        (
            ("digits-2c", "digits-9c"),
            ["benchmarks: no benchmark 'digits-9c'; known are digits-2c, digits-3c, mnist-2c"],
        ),
        (("digits-2c:", "digits-2c: {requirements: [0.6]}\n  digits-2c:"), ["the key 'digits-2c' stands twice"]),
        (("[unpruned, random]", "[unpruned, randon]"), ["methods: no method 'randon'; known are unpruned, iterative"]),
        (("[unpruned, random]", "[random, random]"), ["methods lists something twice: ['random', 'random']"]),
        (("[unpruned, random]", "[]"), ["methods", "at least 1 item"]),
        (("seeds: [0]", "seeds: []"), ["seeds", "at least 1 item"]),
        (("seeds: [0]", "seeds: [0, 1, 0]"), ["seeds lists something twice: [0, 1, 0]"]),
        (("seeds: [0]", "seeds: [-1]"), ["seeds.0", "greater than or equal to 0 (got -1)"]),
        (("seeds: [0]", "seeds: [true]"), ["seeds.0", "valid integer (got True)"]),
        (("seeds: [0]", "seeds: [0.5]"), ["seeds.0", "valid integer"]),
        (("batch: 32", "bacth: 32"), ["settings.bacth: unknown key; known are batch, learning_rate"]),
        (("batch: 32", "batch: '32'"), ["settings.batch", "valid integer (got '32')"]),
        (("batch: 32", "batch: 0"), ["settings.batch", "greater than or equal to 1 (got 0)"]),
        (("batch: 32", "batch: 32, batch: 64"), ["the key 'batch' stands twice"]),
        (("batch: 32", "1: 32"), ["settings.1", "string"]),
        (("batch: 32", "[1]: 32"), ["not valid YAML"]),
        (("seeds: [0]", "seeds: [0"), ["not valid YAML", "line 8"]),
        ((YAML, "- title"), ["a study is a mapping with the keys title, plan, benchmarks, methods, seeds, settings"]),
        ((YAML, ""), ["a study is a mapping"]),
    ],
)
def test_a_study_file_is_checked_strictly(file, change, said):
    assert change[0] in YAML
    file.write_text(YAML.replace(*change))
    with pytest.raises(StudyError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    for part in said:
        assert part in str(caught.value)


def test_a_study_file_that_is_not_text(file):
    file.write_bytes(b"title: \xff\xfe\x00")
    with pytest.raises(StudyError, match="not valid YAML"):
        load(file)


def test_an_unknown_study_or_benchmark(tmp_path):
    with pytest.raises(StudyError, match=r"no study 'nothing' \(.*yaml is missing\); there are .*digits.*report"):
        load("nothing")
    with pytest.raises(StudyError, match="no study"):
        load(tmp_path / "none.yaml")
    with pytest.raises(StudyError, match="no study has a benchmark 'imagenet'; known are .*digits-2c"):
        find("imagenet")
    assert find("mnist-2c").name == "report" and find("digits-2c", "digits").name == "digits"


def test_runs_are_selected_by_lists_and_their_text():
    digits = load("digits")
    every = digits.select()
    assert every == digits.runs and len(every) == 2 * 2 * 5 * 3
    chosen = digits.select("digits-2c", "[0.95]", "[iterative, random]", "[3]")
    assert [run.name for run in chosen] == ["digits-2c-0.95-iterative-3", "digits-2c-0.95-random-3"]
    assert digits.select("digits-2c", [0.95], ["iterative", "random"], [3]) == chosen
    assert digits.select(["digits-2c"], 0.95, "iterative", "3") == chosen[:1]
    assert all(run.settings == digits.settings["digits-2c"] for run in chosen)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"benchmark": "mnist-2c"},
            "benchmark 'mnist-2c' is not in the study 'digits', which has digits-2c, digits-3c",
        ),
        ({"seeds": "[]"}, "seeds must be a list of one or more ints, such as -y 'seeds: [...]'; got []"),
        ({"seeds": []}, "seeds must be a list"),
        ({"seeds": "[3"}, "got '[3'"),
        ({"seeds": "[a]"}, "got ['a']"),
        ({"seeds": [True]}, "got [True]"),
        ({"seeds": [0.5]}, "got [0.5]"),
        ({"seeds": [-1]}, "seed: Input should be greater than or equal to 0 (got -1)"),
        ({"methods": "guessing"}, "method: no method 'guessing'; known are unpruned, iterative"),
        ({"methods": [3]}, "methods must be a list"),
        ({"requirements": [0]}, "requirement: Input should be greater than 0 (got 0.0)"),
        ({"requirements": "[1]"}, "less than 1 (got 1.0)"),
        ({"requirements": [1.5]}, "less than 1 (got 1.5)"),
        ({"requirements": ["high"]}, "requirements must be a list of one or more floats"),
    ],
)
def test_a_wrong_selection(given, said):
    with pytest.raises(StudyError) as caught:
        load("digits").select(**given)
    assert said in str(caught.value)


def test_the_committed_study_of_tradeoffs():
    study = load("tradeoff")
    assert {run.method for run in study.runs} == {*CURVES, SCAN}
    assert study.plan.ratios == (2, 4, 8, 16, 32, 64)
    assert study.benchmarks == ("mnist-2c", "mnist-3c", "cifar10-2c", "cifar10-3c")
    assert all(run.settings.flip == run.benchmark.startswith("cifar") for run in study.runs)
    assert len({run.name for run in study.runs}) == len({run.key for run in study.runs}) == 4 * 3 * 8
    with pytest.raises(StudyError, match="measures trade-offs: its runs have no requirement"):
        study.select(requirements=[0.9])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: Tiny", "titel: Tiny", "titel: unknown key; known are title, plan"),
        ("digits-2c", "digits-9c", "no benchmark 'digits-9c'; known are digits-2c"),
        ("settings: {batch", "{batch", "not valid YAML"),
        ("batch: 32", "patience: 3", "benchmarks.digits-2c.settings.patience: unknown key; known are batch"),
        ("batch: 32", "batch: 0", "benchmarks.digits-2c.settings.batch"),
        ("{digits-2c: {", "{digits-2c: {requirements: [0.9], ", "requirements: unknown key in a study with a plan"),
        ("small]", "tiny]", "no method 'tiny'; known are unpruned, iterative"),
        ("small]", "random]", "methods lists something twice"),
        ("[2, 8]", "[8, 2]", "plan.ratios: must rise"),
        ("[2, 8]", "[1, 2]", "plan.ratios.0"),
        ("[0.5, 0.1]", "[1.5]", "plan.densities.0"),
        ("stage: 24", "stage: 5", "has no room for 3 rounds"),
        ("dense: 60", "dense: many", "plan.dense"),
        ("dense: 60", "dense: 60, dense: 70", "the key 'dense' stands twice"),
        ("plan: ", "plan: 3  # ", "plan: Input should be a valid dictionary"),
        ("seeds: [0]", "seeds: [0, 0]", "seeds lists something twice"),
    ],
)
def test_a_wrong_study_of_tradeoffs_is_one_error_that_names_the_key(tmp_path, old, new, said):
    assert old in TRADEOFF
    (tmp_path / "wrong.yaml").write_text(TRADEOFF.replace(old, new))
    with pytest.raises(StudyError, match="wrong.yaml") as error:
        load(tmp_path / "wrong.yaml")
    assert said in str(error.value)
