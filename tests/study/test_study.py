import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruning.analysis.claims import markdown
from pruning.analysis.readme import readme
from pruning.analysis.tables import COLUMNS, frame, titles, write_table
from pruning.files import DamagedFile, load_state, save_state, set_aside, write_whole
from pruning.masks import density, masked_layers
from pruning.methods import METHODS
from pruning.study import runner as study
from pruning.study.locks import locked
from pruning.notation import layers
from pruning.study.records import digest, folder, read_record, records, write_record
from pruning.study.runner import (
    BENCHMARKS,
    Run,
    Settings,
    StudyError,
    checked_device,
    current,
    environment,
    load,
    main,
    perform,
    recorded,
)
from pruning.study.training import network

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
SETTINGS = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=80, ramp=40)


class Stop(Exception):
    pass


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(YAML)
    return path


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
def tiny(finished, results):
    """A copy of ``finished`` as this test's results; returns the study."""
    shutil.copytree(finished, results)
    return load(results / "tiny.yaml")


def run_of(method="random", requirement=0.5, **settings):
    settings = SETTINGS.model_copy(update=settings)
    return Run(study="tiny", benchmark="digits-2c", requirement=requirement, method=method, seed=0, settings=settings)


def numbers(record):
    own = {key: value for key, value in record.items() if key not in ("seconds", "environment")}
    return json.loads(json.dumps(own))


def stamps(place):
    return {path.name: path.stat().st_mtime_ns for path in sorted(place.glob("*"))}


def untrained(run, **given):
    """The run's record, which must be there and current."""
    def progress(event, training):
        pytest.fail(f"{run.name} was trained again")

    return perform(run, progress=progress, **given)


def retrained(run):
    """The run's record after training for it again, and what was said meanwhile."""
    said, seen = [], []
    record = perform(run, progress=lambda event, training: seen.append(event.iteration), warn=said.append)
    assert seen, "nothing was trained"
    return record, said, seen


# Study files


def test_the_committed_studies_load():
    assert set(study.names()) >= {"digits", "report", "methods", "ingredients", "lenet", "smallest"}
    report, digits = load("report"), load("digits")
    assert report.benchmarks[:2] == ("mnist-2c", "mnist-3c") and report.requirements["mnist-2c"] == (0.97, 0.98, 0.99)
    assert len({run.name for run in report.runs}) == len(report.benchmarks) * 3 * len(report.methods) * 5
    assert set(digits.methods) == {"unpruned", "iterative", "oneshot", "gradual", "random"} <= set(METHODS)
    assert digits.settings["digits-3c"].batch == 32 and load(ROOT / "studies" / "digits.yaml") == digits
    assert BENCHMARKS["cifar10-3c"] == ("cifar10", "3x32x32-6c3-16c3-36c4-240-120-84-10")


def test_the_study_of_methods_goes_with_the_reports():
    report, methods, ingredients, lenet, smallest = map(load, ("report", "methods", "ingredients", "lenet", "smallest"))
    assert "adaptive" in ingredients.methods and set(ingredients.seeds) > set(report.seeds)
    every = {method for one in (report, methods, ingredients, smallest) for method in one.methods}
    assert every == {*METHODS, study.HASHED} and ingredients.settings["mnist-2c"] == report.settings["mnist-2c"]
    assert set(report.methods) & set(methods.methods) == {"unpruned"}
    assert methods.settings == report.settings and methods.seeds == report.seeds
    assert methods.requirements == report.requirements
    assert set(lenet.settings.values()) == {report.settings["mnist-2c"]}
    synapses = {name: sum(layer.synapses for layer in layers(BENCHMARKS[name][1])) for name in lenet.benchmarks}
    assert synapses == {"lenet-300-100": 266_200, "lenet-5": 430_500}


def test_a_benchmarks_study_is_the_largest_that_has_it_and_the_reports_method():
    found = {name: study.find(name).name for name in ("mnist-2c", "digits-3c", "cifar10-3c", "lenet-5")}
    assert found == {"mnist-2c": "report", "digits-3c": "digits", "cifar10-3c": "report", "lenet-5": "lenet"}
    assert study.find("mnist-2c", "methods").name == "methods"


@pytest.mark.parametrize(("change", "said"), [
    (("title: Tiny", "titel: Tiny"),
     ["titel: unknown key; known are title, benchmarks, methods, seeds, settings", "title: the key is missing"]),
    (("title: Tiny", ""), ["title: the key is missing"]),
    (("title: Tiny", "title: 3"), ["title: Input should be a valid string (got 3)"]),
    (("title: Tiny", "title: a\ntitle: b"), ["not valid YAML", "the key 'title' stands twice"]),
    (("requirements: [0.5]", "requirement: [0.5]"),
     ["benchmarks.digits-2c.requirement: unknown key; known are requirements, settings"]),
    (("requirements: [0.5]", "requirements: [0]"), ["benchmarks.digits-2c.requirements.0", "greater than 0 (got 0)"]),
    (("requirements: [0.5]", "requirements: [1]"), ["requirements.0", "less than 1 (got 1)"]),
    (("requirements: [0.5]", "requirements: [0.5, 1.5]"), ["requirements.1", "less than 1 (got 1.5)"]),
    (("requirements: [0.5]", "requirements: ['0.5']"), ["requirements.0", "valid number (got '0.5')"]),
    (("requirements: [0.5]", "requirements: 0.5"), ["benchmarks.digits-2c.requirements", "valid list (got 0.5)"]),
    (("requirements: [0.5]", "requirements: []"), ["benchmarks.digits-2c.requirements", "at least 1 item"]),
    (("requirements: [0.5]", "requirements: [0.5, 0.50]"), ["benchmarks.digits-2c.requirements lists something twice"]),
    (("requirements: [0.5]", "requirements: [0.5]\n    settings: {flop: true}"),
     ["benchmarks.digits-2c.settings.flop: unknown key; known are batch, learning_rate"]),
    (("requirements: [0.5]", "requirements: [0.5]\n    settings: 3"), ["benchmarks.digits-2c.settings", "(got 3)"]),
    (("digits-2c", "digits-9c"), ["benchmarks: no benchmark 'digits-9c'; known are digits-2c, digits-3c, mnist-2c"]),
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
    ((YAML, "- title"), ["a study is a mapping with the keys title, benchmarks, methods, seeds, settings"]),
    ((YAML, ""), ["a study is a mapping"]),
])
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
    with pytest.raises(StudyError, match="no study has a benchmark 'imagenet'; known are digits-2c"):
        study.find("imagenet")
    assert study.find("mnist-2c").name == "report" and study.find("digits-2c", "digits").name == "digits"


def test_runs_are_selected_by_lists_and_their_text():
    digits = load("digits")
    every = digits.select()
    assert every == digits.runs and len(every) == 2 * 2 * 5 * 3
    chosen = digits.select("digits-2c", "[0.95]", "[iterative, random]", "[3]")
    assert [run.name for run in chosen] == ["digits-2c-0.95-iterative-3", "digits-2c-0.95-random-3"]
    assert digits.select("digits-2c", [0.95], ["iterative", "random"], [3]) == chosen
    assert digits.select(["digits-2c"], 0.95, "iterative", "3") == chosen[:1]
    assert all(run.settings == digits.settings["digits-2c"] for run in chosen)


@pytest.mark.parametrize(("given", "said"), [
    ({"benchmark": "mnist-2c"}, "benchmark 'mnist-2c' is not in the study 'digits', which has digits-2c, digits-3c"),
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
])
def test_a_wrong_selection(given, said):
    with pytest.raises(StudyError) as caught:
        load("digits").select(**given)
    assert said in str(caught.value)


def test_a_key_follows_from_the_parameters_alone():
    run = run_of()
    assert run.key == run_of().key == run.model_copy(update={"study": "other"}).key
    changed = [
        run.model_copy(update={name: value}) for name, value in
        (("benchmark", "digits-3c"), ("requirement", 0.51), ("method", "gradual"), ("seed", 1))
    ] + [run_of(**{name: value}) for name, value in (("batch", 33), ("patience", 5), ("budget", 81), ("ramp", 41))]
    assert len({one.key for one in [run, *changed]}) == 1 + len(changed)
    dense = {one.dense_key for one in changed}
    assert len(dense) == 4 and run.dense_key in dense  # its own, and of another benchmark, seed and batch
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_method_that_became_another_one_has_other_keys(monkeypatch):
    run, other = run_of("adaptive"), run_of("gradual")
    keys = run.key, other.key
    assert run.parameters["revision"] == 2 and "revision" not in other.parameters
    monkeypatch.setattr(study, "REVISIONS", {"adaptive": 3})
    assert run.key != keys[0] and other.key == keys[1]


# Records


def test_a_record_holds_what_it_must(tiny):
    run = tiny.runs[1]
    record = read_record(run.record_path)
    assert record == current(run) == untrained(run)
    assert record["run"] == {"study": "tiny", "name": run.name} | run.parameters
    result = record["result"]
    assert result["reached"] and 0 < result["density"] < 1
    assert result["density"] == result["significant"] / result["synapses"]
    assert result["validation_accuracy"] >= 0.5 and 0.3 < result["test_accuracy"] <= 1
    assert sum(layer["significant"] for layer in record["layers"]) == result["significant"]
    assert {"pruning", "revision", "python", "torch", "torchvision", "numpy", "device", "threads"} <= set(
        record["environment"])
    assert record["environment"]["threads"] == 1 and record["seconds"] > 0
    assert len(record["fingerprint"]) == 64 and record["key"] == run.key
    assert run.record_path.stat().st_size < 10_000

    state = load_state(run.place("models", ".model"), run.key)
    model = network(state["network"], 0)
    model.load_state_dict(state["state"])
    assert density(model) == result["density"]
    assert {layer["name"]: layer["significant"] for layer in record["layers"]} == {
        name: layer.significant for name, layer in masked_layers(model).items()}


def test_the_table(tiny):
    path = write_table("tiny", records("tiny"))
    head = path.read_text().splitlines()[0].split(",")
    pruned, unpruned = frame(records("tiny")).to_dict("records")
    assert head == list(COLUMNS) and path == folder("tiny") / "runs.csv"
    assert (unpruned["method"], pruned["method"]) == ("unpruned", "random")
    assert unpruned["effort"] == 1 and unpruned["density"] == 1 and pruned["density"] < 1
    before = path.read_bytes()
    assert write_table("tiny", records("tiny")[::-1]).read_bytes() == before
    with pytest.raises(FileNotFoundError, match="run 'make study STUDY=nothing' first"):
        records("nothing")


def test_the_table_for_the_readme(tiny):
    record = read_record(tiny.runs[1].record_path)
    for seed, density in ((1, 0.2), (2, 1.0)):  # the second never reached the requirement
        result = record["result"] | {"density": density, "reached": seed < 2}
        result["effort"] = 3.0 if seed < 2 else None
        write_record(folder("tiny") / "runs" / f"{seed}.json", record | {
            "run": record["run"] | {"benchmark": "mnist-2c", "requirement": 0.985, "seed": seed}, "result": result})
    others = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("claims", "saved", "targets", "methods"))
    text = f"before\n<!-- table -->\nold\n<!-- /table -->\nafter\n{others}"
    made = readme(text, records("tiny"), ["unpruned", "random"])
    result = record["result"]
    assert made.startswith(
        "before\n<!-- table -->\n| benchmark | requirement | random |\n|---|---|---|\n"
        f"| digits-2c, Digits | 50 % | {100 * result['density']:.1f} % ({result['effort']:.1f}×) |\n"
        "| mnist-2c, Digits | 98.5 % | 60.0 ± 56.6 % (3.0×, 1 of 2 not reached) |\n<!-- /table -->\nafter\n"
    )
    assert readme(made, records("tiny"), ["unpruned", "random"]) == made
    assert "old" not in made and f"<!-- claims -->\n{markdown(frame(records('tiny')), titles(records('tiny')))}\n<!-- /claims -->" in made
    with pytest.raises(DamagedFile, match="marks <!-- claims --> and <!-- /claims --> once each"):
        readme(text.replace("<!-- claims -->", ""), records("tiny"), ["random"])
    with pytest.raises(DamagedFile, match="marks <!-- table --> and <!-- /table --> once each"):
        readme("no marks", [], [])


def test_only_current_records_of_its_runs_are_a_studys(tiny):
    kept = [read_record(run.record_path) for run in tiny.runs]
    write_record(folder("tiny") / "runs" / "another.json", kept[0] | {"key": "of other parameters"})
    assert recorded(tiny) == kept
    write_record(tiny.runs[0].record_path, kept[0] | {"key": "of other parameters"})
    assert recorded(tiny) == kept[1:]
    shutil.rmtree(folder("tiny") / "runs")
    with pytest.raises(StudyError, match="no current record of the study 'tiny'"):
        recorded(tiny)


def test_the_readme_holds_what_the_committed_records_give(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    text, found = (ROOT / "README.md").read_text(encoding="utf-8"), recorded(load("report"))
    assert readme(text, found, METHODS, recorded(load("smallest")), recorded(load("methods"))) == text, "run 'make readme'"
    committed = (ROOT / "data/results/report/runs.csv").read_text()
    assert frame(found).to_csv(index=False, lineterminator="\n") == committed, "run 'python -m pruning.study.runner table report'"


def test_a_record_is_whole_or_damaged(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, {"key": "k", "value": 0.1 + 0.2})
    assert read_record(path) == {"key": "k", "value": 0.1 + 0.2}
    whole = path.read_bytes()
    foreign = [b"", b"[]", b"3", b"null", b'"a"', b"{}", b"\xff"]
    for other in (whole[:-9], whole + whole, whole.replace(b"0.3", b"0.4"), *foreign):
        path.write_bytes(other)
        with pytest.raises(DamagedFile, match=r"a\.json"):
            read_record(path)


def test_records_are_current_whatever_the_file_times(tiny):
    for stamp in (0, 4_000_000_000):
        for run in tiny.runs:
            os.utime(run.record_path, (stamp, stamp))
            untrained(run)
    shutil.rmtree(folder("tiny") / "work")  # as in a fresh clone
    shutil.rmtree(folder("tiny") / "models")
    for run in tiny.runs:
        untrained(run)
    assert sorted(path.name for path in folder("tiny").iterdir()) == ["runs"]


def test_deleting_one_record_runs_that_one_again_alone(tiny, results, capsys):
    one, other = (run.record_path for run in tiny.runs)
    expected, before = numbers(read_record(one)), stamps(one.parent)
    one.unlink()
    assert main(["run", str(results / "tiny.yaml")]) == 0
    after = stamps(one.parent)
    assert after[other.name] == before[other.name] and after[one.name] != before[one.name]
    assert numbers(read_record(one)) == expected


def test_a_requirement_that_is_never_reached(tiny):
    run = run_of("random", 0.9999, budget=40)
    record = perform(run)
    result = record["result"]
    assert result["reached"] is False and result["density"] == 1 and result["significant"] == result["synapses"]
    assert result["effort"] is None and result["iterations_unpruned"] is None and result["stopped"] == "budget spent"
    assert result["iterations"] == result["iterations_spent"] == 40 and record["rounds"] == []
    rows = write_table("tiny", records("tiny")).read_text().splitlines()
    row = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert len(rows) == 4 and row["requirement"] == "0.9999"
    assert (row["density"], row["effort"], row["iterations_unpruned"], row["reached"]) == ("1.0", "", "", "False")
    assert frame(records("tiny"))["iterations_unpruned"].isna().tolist() == [False, False, True]
    assert untrained(run) == record


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    """One digit of a number is another one."""
    text = path.read_text()
    at = text.index('"test_accuracy":0.') + len('"test_accuracy":0.')
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def foreign(path):
    write_record(path, read_record(path) | {"key": run_of(batch=33).key})


def other_data(path):
    write_record(path, read_record(path) | {"fingerprint": "0" * 64})


@pytest.mark.parametrize(("harm", "reason"), [
    (truncate, "damaged (.*is not a whole record"), (alter, "damaged (.*was altered: its digest does not fit"),
    (foreign, "of other parameters or data"), (other_data, "of other parameters or data"),
])
def test_a_record_that_cannot_be_used_is_set_aside_and_made_again(tiny, harm, reason):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    harm(run.record_path)
    harmed = run.record_path.read_bytes()
    assert current(run) is None
    record, said, _ = retrained(run)
    assert numbers(record) == expected == numbers(read_record(run.record_path))
    aside = folder("tiny") / "work" / "set-aside" / f"{run.name}.json.1"
    assert aside.read_bytes() == harmed
    start, _, end = reason.partition("(.*")
    assert len(said) == 1 and str(aside) in said[0]
    assert f"the record of {run.name} is {start}" in said[0] and end in said[0]


def test_records_name_one_that_is_damaged(tiny):
    alter(tiny.runs[0].record_path)
    with pytest.raises(DamagedFile, match=tiny.runs[0].name):
        records("tiny")


def stopped(run, iteration):
    """Leave the checkpoint of the evaluation before ``iteration``."""
    def progress(event, training):
        if event.iteration == iteration:
            raise Stop

    with pytest.raises(Stop):
        perform(run, progress=progress, every=0)
    assert run.place("work", ".checkpoint").exists()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_run(path):
    save_state(path, {"iteration": 60}, "someone else's")


def of_another_program(path):
    path.write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize(("harm", "reason"), [
    (truncate, "is truncated or altered: its checksum does not fit"), (flip_a_bit, "is truncated or altered"),
    (of_another_run, "belongs to another run"), (of_another_program, "is not a state file of this program"),
])
def test_a_state_that_cannot_be_used_is_set_aside_and_training_starts_anew(tiny, harm, reason):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    dense = next((folder("tiny") / "work").glob("dense-*/*.dense"))
    run.record_path.unlink()
    stopped(run, 80)
    checkpoint = run.place("work", ".checkpoint")
    for path in (checkpoint, dense):
        harm(path)
    record, said, seen = retrained(run)
    assert numbers(record) == expected and seen[0] == 20
    assert [reason in line and "set aside as" in line for line in said] == [True, True]
    assert (checkpoint.parent / "set-aside" / f"{checkpoint.name}.1").exists()
    assert (dense.parent / "set-aside" / f"{dense.name}.1").exists()
    assert not checkpoint.exists() and dense.exists()


def test_a_whole_checkpoint_is_gone_on_from(tiny):
    run = tiny.runs[1]
    expected = numbers(read_record(run.record_path))
    run.record_path.unlink()
    stopped(run, 80)
    record, said, seen = retrained(run)
    assert numbers(record) == expected and (said, seen) == ([], [80])
    assert not run.place("work", ".checkpoint").exists()


# Devices, folders, disks, processes


def test_devices(tiny):
    assert checked_device("cpu").type == "cpu"
    for name in ("gpu", "", "cuda:x", "meta"):
        with pytest.raises(StudyError, match=f"no device '{name}': say cpu, cuda or cuda:0"):
            checked_device(name)
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:1"):
            with pytest.raises(StudyError, match=f"device '{name}' was asked for, but torch sees no CUDA device"):
                perform(run_of(), device=name)
    assert environment()["threads"] >= 1


def test_a_file_in_the_folders_place(results):
    results.parent.mkdir(exist_ok=True)
    results.write_text("in the way")
    with pytest.raises(OSError, match=f"cannot write in {results}"):
        perform(run_of())
    assert results.read_text() == "in the way"


@pytest.mark.parametrize("kind", ["runs", "models"])
def test_a_file_in_one_folders_place_loses_nothing(tiny, kind):
    run = run_of(requirement=0.4)
    place = folder("tiny") / kind
    place.rename(place.with_name("away"))
    place.write_text("in the way")
    with pytest.raises(OSError, match=f"cannot write {run.place(kind, '')}.*Make room or give the right to write"):
        perform(run)
    place.unlink()
    place.with_name("away").rename(place)
    for other in tiny.runs:
        untrained(other)
    assert perform(run)["result"]["reached"] and not list(place.rglob("*.tmp"))


@pytest.fixture
def full():
    """A call that leaves room for files of so many bytes only; the room is back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tiny, full, room):
    run = run_of("iterative")
    before = stamps(folder("tiny") / "runs")
    full(room)  # too little for a checkpoint; with 0 not even the lock can be written
    try:
        with pytest.raises(OSError) as caught:
            perform(run, every=0)
    finally:
        full(None)
    assert caught.value.errno == errno.EFBIG
    assert f"cannot write {run.place('work', '.checkpoint')}: File too large. Make room" in str(caught.value)
    assert not list(folder("tiny").rglob("*.tmp")) and not run.record_path.exists()
    assert stamps(folder("tiny") / "runs") == before
    for other in tiny.runs:
        untrained(other)
    record, said, _ = retrained(run)
    assert record["result"]["reached"] and said == []


def test_write_whole(tmp_path, full):
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644
    full(1000)
    try:
        write_whole(path, b"new")
        with pytest.raises(OSError, match=f"cannot write {path}: File too large"):
            write_whole(path, bytes(2000))
    finally:
        full(None)
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_whole(path, "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'folder'}: Is a directory"):
        write_whole(tmp_path / "folder", b"")
    assert path.read_bytes() == b"new"
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["deep", "file", "folder"]


def test_set_aside_takes_a_free_name_and_lets_another_process_go_first(tmp_path):
    path = tmp_path / "a"
    for number in (1, 2):
        path.write_text(str(number))
        assert set_aside(path, tmp_path / "aside").name == f"a.{number}"
    assert (tmp_path / "aside" / "a.1").read_text() == "1"
    set_aside(path, tmp_path / "aside")  # gone already


def test_what_a_killed_writer_left_is_cleared_away(tiny):
    run = tiny.runs[1]
    run.record_path.unlink()
    scraps = [run.place(kind, "").with_name(f".{run.name}.x.tmp") for kind in ("runs", "models", "work")]
    others = run.place("runs", "").with_name(f".{run.name}0.x.tmp")
    for path in (*scraps, others):
        path.write_text("half")
    perform(run)
    assert others.exists() and not any(path.exists() for path in scraps)


def test_two_processes_at_work_on_one_run(tiny, results):
    run = tiny.runs[1]
    run.record_path.unlink()
    for path in (folder("tiny") / "work").glob("dense-*/*"):
        path.unlink()
    command = [sys.executable, "-m", "pruning.study.runner", "run", str(results / "tiny.yaml"), "--methods", "[random]"]
    second = []

    def progress(event, training):
        if second:
            return
        second.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        line = second[0].stdout.readline()
        assert line == f"process {os.getpid()} is at work on {run.name}: waiting for it\n", second[0].stderr.read()

    record = perform(run, progress=progress)
    made = run.record_path.stat().st_mtime_ns, run.place("models", ".model").stat().st_mtime_ns
    said, errors = second[0].communicate(timeout=60)
    assert (second[0].returncode, errors) == (0, "")
    result = record["result"]
    assert said == (
        f"1/1 {run.name}: density {result['density']:.4f}, test accuracy {result['test_accuracy']:.4f}, "
        f"{result['iterations']} iterations\n")
    assert made == (run.record_path.stat().st_mtime_ns, run.place("models", ".model").stat().st_mtime_ns)
    with locked(run.place("work", ".lock"), waiting=pytest.fail):
        pass


# The command line


def test_commands(tiny, results, capsys):
    file = str(results / "tiny.yaml")

    def said(*arguments):
        assert main(list(arguments)) == 0
        found = capsys.readouterr()
        assert found.err == ""
        return found.out

    assert said("list").splitlines()[0].startswith("digits ") and f"{len(load('report').runs)} runs" in said("list")
    assert said("status", file) == "tiny: 2 of 2 runs have a current record\n"
    assert said("status", file, "--methods", "[random]").endswith("1 of 1 runs have a current record\n")
    assert said("table", file) == f"{folder('tiny') / 'runs.csv'}: 2 of 2 runs\n"
    before = stamps(folder("tiny") / "runs")
    lines = said("run", file).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n}/2 {run.name}" for n, run in enumerate(tiny.runs, start=1)]
    assert stamps(folder("tiny") / "runs") == before
    assert said("fresh", file, "--methods", "random") == "tiny: 1 runs will be done again\n"
    assert [current(run) is None for run in tiny.runs] == [False, True]
    assert not list(folder("tiny").rglob("*.dense")), "the dense phase is trained again as well"
    said("fresh", file)
    assert said("status", file) == "tiny: 0 of 2 runs have a current record\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "nothing"], "no study 'nothing'"),
    (["run", "digits", "--benchmark", "imagenet"], "benchmark 'imagenet' is not in the study 'digits'"),
    (["run", "digits", "--seeds", "[3"], "seeds must be a list"),
    (["run", "digits", "--methods", "[magic]"], "no method 'magic'"),
    (["run", "digits", "--requirements", "[1.5]"], "less than 1"),
    (["run", "digits", "--device", "abacus"], "no device 'abacus'"),
])
def test_a_wrong_command_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and message in found.err
    assert found.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line(results, capsys):
    results.write_text("in the way")
    assert main(["run", "digits", "--seeds", "[0]"]) == 1
    found = capsys.readouterr()
    assert found.err.count("\n") == 1 and f"cannot write in {results}" in found.err


def test_the_module_is_a_command():
    answer = subprocess.run(
        [sys.executable, "-m", "pruning.study.runner", "status", "nothing"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    assert answer.returncode == 1 and answer.stdout == ""
    assert answer.stderr.startswith("error: no study 'nothing'") and "Traceback" not in answer.stderr
