"""Records on the disk: one line each, current by key and data, published and joined without loss."""

import json
import os
import random
import shutil
import subprocess

import pytest
from tiny import ROOT, YAML, alter, run_of, truncate

from pruning.__main__ import main
from pruning.analysis import tables
from pruning.files import DamagedFile
from pruning.study.config import StudyError
from pruning.study.datasets import fingerprint
from pruning.study.records import (
    folder,
    from_line,
    key_of,
    lines,
    published_path,
    read_record,
    to_line,
    write_record,
    write_records,
)
from pruning.study.store import all_current, current, forget, outdated, publish, recorded
from pruning.study.studies import load, names

BYTES = {"runs.csv", "tradeoff.csv", "sensitivity.csv"}


@pytest.fixture
def study(results, tmp_path):
    """A study of two benchmarks, three methods and two seeds, without records."""
    text = YAML.replace("methods: [unpruned, random]", "methods: [unpruned, random, hashed]").replace("[0]", "[0, 10]")
    text = text.replace("benchmarks:\n", "benchmarks:\n  digits-3c: {requirements: [0.5]}\n")
    (tmp_path / "tiny.yaml").write_text(text)
    return load(tmp_path / "tiny.yaml")


def made(run, **changes):
    """A record such as ``run`` leaves, of made-up numbers."""
    result = dict.fromkeys(tables.COLUMNS[6:]) | {"test_accuracy": 0.1 + 0.2, "density": 0.5, "reached": True}
    head = {"key": run.key, "fingerprint": fingerprint(run.dataset), "run": run.description, "data": "Digits"}
    return head | {"result": result} | changes


def written(runs, **changes):
    """Write a record of each run where the run itself would; returns the records."""
    records = [made(run, **changes) for run in runs]
    for run, record in zip(runs, records, strict=True):
        write_record(run.record_path, record)
    return records


def of_file(study, benchmark):
    return [from_line(line) for line in lines(published_path(study.name, benchmark))]


# One record


def test_a_record_is_whole_or_damaged(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, {"key": "k", "value": 0.1 + 0.2})
    assert read_record(path) == {"key": "k", "value": 0.1 + 0.2}
    whole = path.read_bytes()
    foreign = [b"", b"[]", b"3", b"null", b'"a"', b"{}", b"\xff"]
    for other in (whole[:-9], whole + whole, whole.replace(b"0.3", b"0.4"), whole.replace(b'"k"', b'"l"'), *foreign):
        path.write_bytes(other)
        with pytest.raises(DamagedFile, match=r"a\.json is"):
            read_record(path)
    path.write_bytes(whole.replace(b"\n", b"\r\n"))
    assert read_record(path)["key"] == "k", "line ends are no part of a record"


def test_a_line_is_json_that_begins_with_its_key():
    line = to_line({"value": "\n€", "key": "k"})
    assert key_of(line) == b"k" and line.count(b"\n") == 1 and line.isascii()
    assert list(json.loads(line)) == ["key", "value", "digest"]


# Current or not


def test_a_record_is_current_whatever_the_file_times(study):
    records = written(study.runs)
    publish(study)
    for stamp in (0, 4_000_000_000):
        for path in folder("tiny").rglob("*.jsonl"):
            os.utime(path, (stamp, stamp))
        assert recorded(study) == records


def test_only_current_records_of_its_runs_are_a_studys(study):
    records = written(study.runs)
    write_record(study.runs[0].record_path, records[0] | {"key": "of other parameters"})
    write_record(study.runs[1].record_path, records[1] | {"fingerprint": "of other data"})
    truncate(study.runs[2].record_path)
    written([run_of(requirement=0.6)])
    assert recorded(study) == records[3:] and current(study.runs[1]) is None
    assert [outdated(run) for run in study.runs[:4]] == [
        "of other parameters or data",
        "of other parameters or data",
        "damaged",
        "of other parameters or data",
    ]
    publish(study, lambda text: None)
    assert recorded(study) == records[3:]
    shutil.rmtree(folder("tiny"))
    assert outdated(study.runs[0]) is None
    wanted = "no current record of the study 'tiny' in .*: run 'make study STUDY=/.*/tiny.yaml'"
    with pytest.raises(StudyError, match=wanted):
        recorded(study)


def test_a_record_counts_where_the_data_is_not_at_hand(results, monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path))
    monkeypatch.setattr("pruning.study.store.fingerprint_of", lambda name: None)
    run = run_of()
    (record,) = written([run], fingerprint="of data that is elsewhere")
    assert current(run) == record


# Published


def test_the_table_publishes_sorted_lines_and_clears_away_what_runs_wrote(study, capsys):
    records = written(random.Random(0).sample(study.runs, len(study.runs)))
    said = []
    publish(study, said.append)
    assert said == [] and not list(folder("tiny").glob("work/*.json"))
    for benchmark in study.benchmarks:
        found = of_file(study, benchmark)
        assert sorted(map(str, found)) == sorted(str(one) for one in records if one["run"]["benchmark"] == benchmark)
        order = [(one["run"]["kind"], one["run"]["method"], one["run"]["seed"]) for one in found]
        assert order == sorted(order) and order[0] == ("ladder", "hashed", 0) and order[-1][2] == 10
    before = {path: path.read_bytes() for path in folder("tiny").glob("*.jsonl")}
    publish(study, said.append)
    assert said == [] and before == {path: path.read_bytes() for path in folder("tiny").glob("*.jsonl")}


def test_a_new_record_takes_the_place_of_one_of_other_parameters(study):
    old, extra = run_of(batch=33), run_of(requirement=0.7, batch=33)
    written([old, extra])
    publish(study, pytest.fail)
    new = written([study.select("digits-2c", methods="random", seeds=[0])[0], run_of(requirement=0.7)])
    said = []
    publish(study, said.append)
    assert of_file(study, "digits-2c") == new and current(run_of(requirement=0.7)) == new[1]
    aside = folder("tiny") / "work" / "set-aside" / "digits-2c.jsonl.1"
    assert len(said) == 1 and str(aside) in said[0] and "2 lines" in said[0]
    assert [from_line(line)["key"] for line in lines(aside)] == [old.key, extra.key], "beyond the study's own as well"


def conflict(path):
    path.write_bytes(b"<<<<<<< ours\n" + path.read_bytes())


@pytest.mark.parametrize("harm", [truncate, alter, conflict])
def test_what_cannot_be_read_is_set_aside_with_a_word(study, harm):
    records = written(study.runs)
    publish(study, pytest.fail)
    path, said = published_path("tiny", "digits-2c"), []
    harm(path)
    readable = []
    for line in lines(path):
        try:
            readable.append(from_line(line))
        except DamagedFile:
            bad = line
    publish(study, said.append)
    assert of_file(study, "digits-2c") == readable and len(readable) >= len(records) // 2 - 1
    (aside,) = (folder("tiny") / "work" / "set-aside").iterdir()
    assert lines(aside) == [bad] and len(said) == 1 and str(aside) in said[0] and str(path) in said[0]


def test_a_file_without_one_whole_record_is_left_empty(study):
    path, said = published_path("tiny", "digits-2c"), []
    path.parent.mkdir(parents=True)
    path.write_text("nonsense\n")
    publish(study, said.append)
    publish(study, said.append)
    assert path.read_bytes() == b"" and len(said) == 1


def git(place, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=place, check=True, capture_output=True, text=True).stdout


def test_two_machines_records_merged_by_git_lose_none(study, tmp_path, monkeypatch):
    shared, mine, yours = study.runs[::3], study.runs[1::3], [*study.runs[7:8], *study.runs[2::3]]
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "data" / "results"))
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    (tmp_path / ".gitignore").write_text("work/\ntiny.yaml\nresults/tiny.yaml\n")
    git(tmp_path, "init", "--initial-branch=mine")
    records = written(shared)
    publish(study, pytest.fail)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "shared")
    git(tmp_path, "branch", "yours")
    records += written(mine)
    publish(study, pytest.fail)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "mine")
    git(tmp_path, "switch", "yours")
    theirs = written(yours, seconds=3.0)  # one of them trained on both machines
    publish(study, pytest.fail)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "yours")
    git(tmp_path, "switch", "mine")
    git(tmp_path, "merge", "yours")
    assert len(all_current(study.runs)) == len(study.runs), "even before the table is made"
    said = []
    publish(study, said.append)
    both = {one["run"]["name"] for one in records} & {one["run"]["name"] for one in theirs}
    kept = recorded(study)
    assert [one["run"]["name"] for one in kept] == [run.name for run in study.runs] and len(both) == 1
    for record in (*records, *theirs):
        assert record in kept or record["run"]["name"] in both
    assert len(said) == 1 and "1 lines" in said[0]
    text = b"".join(path.read_bytes() for path in folder("tiny").glob("*.jsonl"))
    publish(study, pytest.fail)
    assert text == b"".join(path.read_bytes() for path in folder("tiny").glob("*.jsonl"))


def test_two_files_in_one_are_joined(study):
    first, second = written(study.runs[:8]), [made(run) for run in study.runs[4:]]
    publish(study, pytest.fail)
    for benchmark in study.benchmarks:
        path = published_path("tiny", benchmark)
        more = [to_line(one) for one in second if one["run"]["benchmark"] == benchmark]
        path.write_bytes(b"".join(more) + b"\n" + path.read_bytes())
    publish(study, pytest.fail)
    assert recorded(study) == first[:4] + second


def test_records_that_are_forgotten_are_gone_and_no_others(study):
    written(study.runs)
    publish(study)
    written(study.runs[:3])
    gone = study.select("digits-2c", seeds=[10])
    forget([*gone, study.runs[0]])
    assert set(all_current(study.runs)) == {*study.runs} - {*gone, study.runs[0]}


# The committed records


@pytest.mark.parametrize("name", [name for name in names() if name != "digits"])
def test_the_committed_records_are_current_and_the_committed_tables_follow_from_them(name, tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    study, committed = load(name), folder(name)
    kept = all_current(study.runs)
    lacking = [run.name for run in study.runs if run not in kept]
    assert not lacking, "a fresh clone would train"
    for path in committed.glob("*.jsonl"):
        found = [from_line(line) for line in lines(path)]
        assert len(found) == sum(run.benchmark == path.stem for run in study.runs)
        write_records(tmp_path / name / path.name, reversed(found))
        assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), "lines are sorted"
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    assert main(["table", name]) == 0
    made_here = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.csv")}
    assert made_here == {name: (committed / name).read_bytes() for name in made_here} and set(made_here) <= BYTES
    expected = {"runs.csv"} if study.plan is None else BYTES - {"runs.csv"}
    assert set(made_here) == expected, f"run 'python -m pruning table {name}'"
