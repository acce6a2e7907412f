"""The command line: every verb, and one line for what is wrong."""

import re
import subprocess
import sys

import pytest
from tiny import ROOT, published

from pruning.__main__ import main
from pruning.analysis.claims import markdown
from pruning.analysis.readme import FASHION, PAGES, readme
from pruning.analysis.tables import frame, titles
from pruning.files import DamagedFile
from pruning.methods import METHODS
from pruning.study import store
from pruning.study.records import folder, read_record, write_record
from pruning.study.store import current, recorded
from pruning.study.studies import load


def test_commands(tiny, results, capsys):
    file = str(results / "tiny.yaml")

    def said(*arguments):
        assert main(list(arguments)) == 0
        found = capsys.readouterr()
        assert found.err == ""
        return found.out

    assert any(line.startswith("digits ") for line in said("list").splitlines())
    assert f"{len(load('report').runs)} runs" in said("list")
    assert said("status", file) == "tiny: 2 of 2 runs have a current record\n"
    assert said("status", file, "--methods", "[random]").endswith("1 of 1 runs have a current record\n")
    assert said("table", file) == f"{folder('tiny') / 'runs.csv'}: 2 of 2 runs\n"
    before = published()
    lines = said("run", file).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n}/2 {run.name}" for n, run in enumerate(tiny.runs, start=1)]
    assert published() == before and not list(folder("tiny").glob("work/*.json"))
    assert said("fresh", file, "--methods", "random") == "tiny: 1 runs will be done again\n"
    assert [current(run) is None for run in tiny.runs] == [False, True]
    assert not list(folder("tiny").rglob("*.dense")), "the dense phase is trained again as well"
    said("fresh", file)
    assert said("status", file) == "tiny: 0 of 2 runs have a current record\n"


def test_a_whole_table_waits_for_records_and_names_those_that_are_missing(tiny, results, monkeypatch, capsys):
    monkeypatch.setattr(store, "LAG", 0.0)
    run = tiny.runs[1]
    hidden = run.record_path.rename(run.record_path.with_suffix(".hidden"))
    assert main(["table", str(results / "tiny.yaml"), "--whole"]) == 1
    assert (
        f"1 of 2 runs of the study 'tiny' have no current record in {folder('tiny')}: {run.name};"
        in capsys.readouterr().err
    )
    assert not (folder("tiny") / "runs.csv").exists()

    monkeypatch.setattr(store, "LAG", 60.0)
    monkeypatch.setattr(store.time, "sleep", lambda seconds: hidden.rename(run.record_path))
    assert main(["table", str(results / "tiny.yaml"), "--whole"]) == 0
    assert capsys.readouterr().out.endswith("runs.csv: 2 of 2 runs\n")


def test_a_table_of_several_kinds_of_processor_says_so(tiny, results, capsys):
    run = tiny.runs[1]
    record = read_record(run.record_path)
    write_record(run.record_path, record | {"environment": record["environment"] | {"device": "Abacus"}})
    assert main(["table", str(results / "tiny.yaml")]) == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: the runs of digits-2c were made on 2 kinds of processor: ") and "Abacus" in told


def test_the_table_for_the_readme(tiny):
    records = recorded(tiny)
    missed = records[1]["result"] | {"density": 1.0, "reached": False, "effort": None}
    for seed, result in ((1, records[1]["result"] | {"density": 0.2, "effort": 3.0}), (2, missed)):
        place = {"benchmark": "mnist-2c", "requirement": 0.985, "seed": seed}
        records.append(records[1] | {"run": records[1]["run"] | place, "result": result})
    others = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("claims", "saved", "targets", "methods"))
    text = f"before\n<!-- table -->\nold\n<!-- /table -->\nafter\n{others}"
    made = readme(text, records, ["unpruned", "random"])
    result, cost = records[1]["result"], frame(records).query("requirement == 0.985")["cost"].mean()
    assert made.startswith(
        "before\n<!-- table -->\n| benchmark | requirement | random |\n|---|---|---|\n"
        f"| digits-2c, Digits | 50 % | {100 * result['density']:.1f} % "
        f"({result['effort']:.1f}×, {result['cost']:.1f}×) |\n"
        f"| mnist-2c, Digits | 98.5 % | 60.0 ± 56.6 % (3.0×, {cost:.1f}×, 1 of 2 not reached) |\n"
        "<!-- /table -->\nafter\n"
    )
    assert readme(made, records, ["unpruned", "random"]) == made
    claims = markdown(frame(records), titles(records))
    assert "old" not in made and f"<!-- claims -->\n{claims}\n<!-- /claims -->" in made
    device = records[0]["environment"]["device"]
    assert f"\n\nAll of them were trained on one kind of processor, {device}.\n<!-- /methods -->" in made
    elsewhere = [records[0], *(record | {"environment": {"device": "Abacus"}} for record in records[1:])]
    assert readme(made, elsewhere, ["random"]).endswith(
        f"\n\nTrained on {device}: `unpruned`. Trained on Abacus: `random`.\n<!-- /methods -->\n"
    )
    with pytest.raises(DamagedFile, match="marks <!-- claims --> and <!-- /claims --> once each"):
        readme(text.replace("<!-- claims -->", ""), records, ["random"])
    assert readme("no marks", records, []) == "no marks"


def test_the_readme_is_short_and_says_first_what_was_found():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    first = text.split("<!-- found -->")[1].split("<!-- /found -->")[0]
    assert re.search(r"\d", first.split(".")[0])
    tables = [block.count("\n|") + block.startswith("|") - 2 for block in text.split("\n\n") if "|---" in block]
    assert len(tables) == 2 and max(tables) <= 8
    marks = ("<!-- found -->", "![", "make study", "<!-- short -->", "## Notebooks", "```python")
    order = [text.index(mark) for mark in marks]
    assert order == sorted(order)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_hold_what_the_committed_records_give(page, monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = [recorded(load(name)) for name in ("report", "smallest", "methods", "certified")]
    assert readme(text, parts[0], METHODS, *parts[1:]) == text, "run 'make readme'"


def test_the_page_on_fashion_holds_what_its_records_give(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    text = (ROOT / FASHION).read_text(encoding="utf-8")
    assert readme(text, recorded(load("fashion")), METHODS) == text, "run 'make readme'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "no study 'nothing'"),
        (["run", "digits", "--benchmark", "imagenet"], "benchmark 'imagenet' is not in the study 'digits'"),
        (["run", "digits", "--seeds", "[3"], "seeds must be a list"),
        (["run", "digits", "--methods", "[magic]"], "no method 'magic'"),
        (["run", "digits", "--requirements", "[1.5]"], "less than 1"),
        (["run", "digits", "--device", "abacus"], "no device 'abacus'"),
    ],
)
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


@pytest.mark.slow
def test_the_module_is_a_command():
    answer = subprocess.run(
        [sys.executable, "-m", "pruning", "status", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1 and answer.stdout == ""
    assert answer.stderr.startswith("error: no study 'nothing'") and "Traceback" not in answer.stderr


@pytest.mark.slow
def test_help_lists_every_verb_and_loads_no_torch():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pruning", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for verb in ("list", "run", "work", "status", "table", "readme", "fresh"):
        assert f"\n    {verb} " in answer.stdout
    for verb in ("tradeoff", "savings", "deploy", "report"):
        assert f"\n    {verb} " in answer.stdout
    loaded = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "pruning" in loaded and not loaded & {"torch", "numpy", "pandas", "pydantic", "yaml"}


@pytest.mark.parametrize("verb", ["savings", "deploy", "report"])
def test_a_verb_of_another_room_has_help_of_its_own(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0 and verb in capsys.readouterr().out


def test_an_unknown_word_is_an_error(capsys):
    for words in (["magic"], ["status", "digits", "--magic"], ["status", "digits", "more"], []):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2 and "usage: python -m pruning" in capsys.readouterr().err
