"""Bytes and energy of a study's delivered models: honest, whole, made once, and never without the models."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from pruning.analysis import figures, measurement, savings
from pruning.analysis.figures import savings as savings_figures
from pruning.analysis.measurement import ENCODINGS, ENERGY_COLUMNS, ON_CHIP, TABLES, pruned, quantized, write_tables
from pruning.analysis.savings import held, main, markdown, shown, write_compressed
from pruning.analysis.tables import KEYS, frame, titles
from pruning.deploy import storage
from pruning.deploy.energy import DRAM_PJ, SRAM_PJ
from pruning.files import DamagedFile, load_state
from pruning.masks import masked_layers
from pruning.study import datasets, runner
from pruning.study.config import HASHED, StudyError
from pruning.study.paths import root
from pruning.study.records import folder, read_record, write_record
from pruning.study.store import recorded
from pruning.study.studies import load
from pruning.study.training import accuracy, network

STUDY = """
title: a few quick runs
benchmarks:
  digits-2c:
    requirements: [0.4, 0.5]
methods: [unpruned, iterative, gradual]
seeds: [0, 1, 2]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 3, ramp: 60, budget: 160}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small study with its models and tables; the study, and what ``write_tables`` gave."""
    place = tmp_path_factory.mktemp("savings")
    (place / "quick.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        quick = load(place / "quick.yaml")
        for run in quick.runs:
            runner.run(run)
        yield quick, write_tables(quick, lambda line: None)


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """The same study in a folder that a test may spoil."""
    shutil.copytree(folder("quick"), tmp_path / "quick")
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    return made[0]


def model_of(run):
    state = load_state(run.place("models", ".model"), run.key)
    return storage.rebuilt(state["network"], state["state"])


def test_shared_weights_are_not_taken_for_pruned_ones(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    methods = load("methods")
    assert {run.method for run in pruned(methods)} == set(methods.methods) - {"unpruned", HASHED}


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_storage_table_has_every_pruned_run_in_every_encoding_at_its_true_size(made):
    quick, _ = made
    table = pd.read_csv(folder("quick") / "storage.csv")
    assert list(table.columns) == [
        "benchmark", "requirement", "method", "seed", "encoding", "bytes", "dense_bytes", "ratio", "test_accuracy",
    ]  # fmt: skip
    pruned = [run for run in quick.runs if run.method != "unpruned"]
    assert len(table) == len(pruned) * len(ENCODINGS) and not table.duplicated([*KEYS, "encoding"]).any()
    by_run = table.set_index([*KEYS, "encoding"])
    for run in pruned:
        model = model_of(run)
        for encoding in ("dense32", "bitmask", "csr", "relative"):
            row = by_run.loc[(run.benchmark, run.requirement, run.method, run.seed, encoding)]
            assert row["bytes"] == len(storage.encode(model, encoding, run.network))
            assert row["test_accuracy"] == read_record(run.record_path)["result"]["test_accuracy"]
            assert row["dense_bytes"] == len(storage.encode(model, "dense32", run.network))
            assert row["ratio"] == pytest.approx(row["dense_bytes"] / row["bytes"], abs=1e-3)


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_file_of_a_run_is_the_network_whose_accuracy_the_table_gives(made):
    _, stored = made
    data, table = datasets.load("digits"), pd.read_csv(folder("quick") / "storage.csv")
    rows = table.query("encoding == 'entropy'").set_index(KEYS)
    kept = pd.read_csv(folder("quick") / "energy.csv").query("variant == 'compressed'").drop_duplicates(KEYS)
    kept = kept.set_index(KEYS)
    for run, content in stored.items():
        key = (run.benchmark, run.requirement, run.method, run.seed)
        model = storage.decode(content)
        assert rows.loc[key, "bytes"] == len(content)
        assert rows.loc[key, "test_accuracy"] == accuracy(model, data.test)
        assert kept.loc[key, "validation_accuracy"] == accuracy(model, data.validation)
        assert kept.loc[key, "validation_accuracy"] >= run.requirement  # these tasks are easy: all keep it
        delivered = masked_layers(model_of(run))
        for name, layer in masked_layers(model).items():
            assert torch.equal(layer.mask, delivered[name].mask)
            assert len(layer.weight[layer.mask].unique()) <= 2 ** kept.loc[key, "weight_bits"]


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_energy_table_sums_up_and_is_the_model_of_45_nm(made):
    table = pd.read_csv(folder("quick") / "energy.csv")
    assert tuple(table.columns) == ENERGY_COLUMNS
    assert table.groupby(KEYS).size().eq(3 * len(ON_CHIP)).all()
    assert np.allclose(table["dram_nj"], table["dram_accesses"] * DRAM_PJ / 1e3, atol=0.05)
    assert np.allclose(table["sram_nj"], table["sram_accesses"] * SRAM_PJ / 1e3, atol=0.01)
    assert np.allclose(table[["dram_nj", "sram_nj", "arithmetic_nj"]].sum(axis=1), table["total_nj"], atol=0.01)
    dense = table.query("variant == 'dense'")
    # 6c5-16c5-120-84-10 on 28x28: 44,190 synapses, 281,640 multiply-accumulates, 236 biases, worked out by hand.
    assert dense["synapses"].eq(44190).all() and dense["macs"].eq(281640).all()
    assert dense["weight_bytes"].eq(4 * (44190 + 236)).all()
    runs = frame(recorded(made[0])).set_index(KEYS)
    pruned = table.query("variant == 'pruned'").set_index(KEYS)
    assert (pruned["synapses"] == runs["significant"].reindex(pruned.index)).all()
    assert (pruned["macs"] == runs["macs"].reindex(pruned.index)).all()


@pytest.mark.slow
def test_tables_are_made_again_from_what_was_measured_to_the_same_bytes(copied, monkeypatch):
    before = [(folder("quick") / f"{name}.csv").read_bytes() for name in TABLES]
    measured = []
    monkeypatch.setattr(measurement, "measure", lambda *given: measured.append(given))
    write_tables(copied)
    assert not measured and before == [(folder("quick") / f"{name}.csv").read_bytes() for name in TABLES]


@pytest.mark.slow
def test_one_run_is_measured_again_to_the_same_rows(copied):
    before = (folder("quick") / "storage.csv").read_bytes()
    said = []
    damaged, missing = sorted((folder("quick") / "work" / "savings").glob("*.json"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    missing.unlink()
    write_tables(copied, said.append)
    assert len(said) == 2 and damaged.stem in "".join(said) and missing.stem in "".join(said)
    assert (folder("quick") / "storage.csv").read_bytes() == before


@pytest.mark.slow
def test_without_models_the_tables_stay_as_they_are(copied):
    shutil.rmtree(folder("quick") / "models")
    shutil.rmtree(folder("quick") / "work" / "savings")
    before = [(folder("quick") / f"{name}.csv").read_bytes() for name in TABLES]
    with pytest.raises(StudyError, match="12 of the 12 pruned models .*'make study STUDY=quick FRESH=1'"):
        write_tables(copied)
    assert before == [(folder("quick") / f"{name}.csv").read_bytes() for name in TABLES]


@pytest.mark.slow
def test_a_model_of_another_run_is_refused(copied):
    shutil.rmtree(folder("quick") / "work" / "savings")
    one, other = (run for run in copied.select(methods=["iterative"], requirements=[0.4], seeds=[0, 1]))
    shutil.copy(other.place("models", ".model"), one.place("models", ".model"))
    with pytest.raises(DamagedFile, match="belongs to another run"):
        write_tables(copied)


@pytest.mark.slow
def test_tables_of_other_records_are_refused(copied):
    stored, energies = savings.tables(copied)
    assert stored["reached"].all() and (energies["significant"] > 0).all()
    run = next(run for run in copied.runs if run.method == "gradual")
    record = read_record(run.record_path)
    write_record(run.record_path, record | {"result": record["result"] | {"test_accuracy": 0.123}})
    with pytest.raises(StudyError, match="made from other records: run 'make savings STUDY=quick'"):
        savings.tables(copied)
    (folder("quick") / "energy.csv").unlink()
    with pytest.raises(StudyError, match=r"no table .*energy.csv: run 'make savings"):
        savings.tables(copied)


@pytest.mark.arithmetic
def test_the_smallest_codebook_that_keeps_the_goal_is_taken():
    model = network("28x28-6c5-16c5-120-84-10", seed=0)
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.1)
    seen = []

    def validate(small):
        seen.append(max(len(layer.weight[layer.mask].unique()) for layer in masked_layers(small).values()))
        return {32: 0.9, 64: 0.99}.get(seen[-1], 0.5)

    def stream():
        while True:
            yield torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)

    small, clusters, found = quantized(model, 0.95, validate, stream())
    assert (clusters, found) == (64, 0.99) and max(seen) == 64
    assert max(len(layer.weight[layer.mask].unique()) for layer in masked_layers(small).values()) == 64
    small, clusters, found = quantized(model, 0.999, validate, stream())
    assert (clusters, found) == (64, 0.99) and max(seen) > 64, "the best that was seen"


@pytest.mark.arithmetic
@pytest.mark.slow
def test_what_is_shown_is_the_median_of_the_highest_requirement_that_was_met(copied):
    (run,) = shown(copied, "iterative")
    chosen = [read_record(other.record_path) for other in copied.select(requirements=[0.5], methods=["iterative"])]
    densities = sorted(record["result"]["density"] for record in chosen)
    assert run.requirement == 0.5 and read_record(run.record_path)["result"]["density"] == densities[1]
    for record, value in zip(chosen, (0.1, 0.3, 0.2)):
        result = record["result"] | {"density": value, "reached": value < 0.3}
        write_record(folder("quick") / "work" / f"{record['run']['name']}.json", record | {"result": result})
    assert shown(copied, "iterative")[0].seed == 0, "of two the sparser, and never one that missed the requirement"
    for record in chosen:
        result = record["result"] | {"reached": False}
        write_record(folder("quick") / "work" / f"{record['run']['name']}.json", record | {"result": result})
    with pytest.raises(StudyError, match="no run of 'iterative' met the highest requirement"):
        shown(copied, "iterative")


@pytest.mark.slow
def test_compressed_models_are_written_read_and_replaced(copied, made):
    (path,) = write_compressed(copied, made[1], "gradual")
    (run,) = shown(copied, "gradual")
    assert path.read_bytes() == made[1][run]
    assert torch.equal(savings.opened(run).fc3.weight, storage.decode(made[1][run]).fc3.weight)
    (other,) = write_compressed(copied, made[1], "iterative")
    assert list(path.parent.iterdir()) == [other]
    with pytest.raises(StudyError, match="savings tables quick --method gradual"):
        savings.opened(run)


def test_held_counts_only_what_had_met_the_requirement():
    rows = pd.DataFrame(
        {
            "benchmark": "a",
            "requirement": 0.9,
            "method": "m",
            "seed": [0, 1, 2, 2],
            "variant": "compressed",
            "reached": [True, True, False, False],
            "validation_accuracy": [0.9, 0.89, 0.5, 0.5],
        }
    )
    assert held(rows).tolist() == [True, False]


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_readme_table_says_what_the_tables_say(made):
    quick, _ = made
    stored, energies = savings.tables(quick)
    text = markdown(quick, "gradual")
    (line,) = text.splitlines()[2:]
    rows = stored.query("requirement == 0.5 and method == 'gradual' and encoding == 'compact'")
    costs = energies.query("requirement == 0.5 and method == 'gradual'").query("on_chip_bytes == @ON_CHIP[0]")
    assert line.startswith(f"| digits-2c, Digits | 50 % | 3 of 3 | {rows['significant'].mean():,.0f} |")
    assert f"{rows['bytes'].mean():,.0f} bytes" in line and f"{100 * rows['test_accuracy'].mean():.2f} %" in line
    dense, small = (costs.query("variant == @variant")["total_nj"].mean() / 1e3 for variant in ("dense", "compressed"))
    assert f"{dense:.1f} to {small:.1f} µJ, {dense / small:.1f}× less" in line
    assert f"{rows['dense_bytes'].iloc[0] / rows['bytes'].mean():.1f} ({rows['ratio'].min():.1f} to" in line
    page = "before\n<!-- savings -->\nold\n<!-- /savings -->\nafter\n"
    once = savings.readme(page, quick, "gradual")
    assert once == f"before\n<!-- savings -->\n{text}\n<!-- /savings -->\nafter\n"
    assert savings.readme(once, quick, "gradual") == once


@pytest.mark.slow
def test_every_figure_renders_to_the_same_bytes_and_shows_what_was_missed(made, tmp_path):
    quick, _ = made
    stored, energies = savings.tables(quick)
    names = titles(recorded(quick))
    curves = pd.DataFrame(
        [
            {
                "benchmark": "digits-2c",
                "variant": variant,
                "on_chip_bytes": size,
                "total_nj": 1e7 / size + number,
                "dram_accesses": 0 if size > 2**14 else 9,
            }
            for number, variant in enumerate(savings_figures.VARIANTS)
            for size in (2**10, 2**13, 2**16)
        ]
    )
    missed = stored.assign(reached=stored["seed"] > 0)
    draws = {
        "bytes": lambda: savings_figures.bytes_by_encoding(missed, names),
        "energy": lambda: savings_figures.energy_split(energies, names, "iterative"),
        "memory": lambda: savings_figures.on_chip_memory(curves, names),
        "digits": lambda: savings_figures.classified(np.eye(8)[None].repeat(3, 0), [1, 2, 3], [1, 7, 3], "it", "eyes"),
    }
    for name, draw in draws.items():
        figure = draw()
        assert figure.get_label(), f"{name} does not say what it shows"
        image = PIL.Image.open(io.BytesIO(figures.png(figure, dpi=60)))
        assert len(np.unique(np.asarray(image.convert("L")))) > 20, f"{name} is empty"
        first = [path.read_bytes() for path in figures.save(figure, tmp_path, name)]
        assert first == [path.read_bytes() for path in figures.save(draw(), tmp_path, name)]

    def texts(figure):
        return " ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))

    assert "hollow" in texts(draws["bytes"]())
    assert "hollow" not in texts(savings_figures.bytes_by_encoding(stored, names))
    assert (
        "7, not 2" in texts(draws["digits"]())
        and "eyes; above" in texts(draws["digits"]())
        and "39× smaller" in texts(draws["bytes"]())
    )


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_command_makes_everything_and_names_what_is_wrong(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(savings, "load", lambda name: copied if name == "quick" else load(name))
    assert main(["tables", "quick", "--method", "gradual"]) == 0
    said = capsys.readouterr().out
    assert "12 models; 12 of 12 keep their requirement" in said and ".prn" in said
    assert len(list((folder("quick") / "compressed").glob("digits-2c-0.5-gradual-*.prn"))) == 1
    assert main(["tables", "nothing"]) == 1 and "no study 'nothing'" in capsys.readouterr().err
    assert main(["tables", "quick", "--method", "magic"]) == 1 and "no method 'magic'" in capsys.readouterr().err


@pytest.fixture
def report(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    return load("report")


def test_the_committed_tables_belong_to_the_committed_records(report):
    stored, energies = savings.tables(report)  # an error where they were made from other records
    pruned = [record for record in recorded(report) if record["run"]["method"] != "unpruned"]
    assert len(stored) == len(pruned) * len(ENCODINGS) and len(energies) == len(pruned) * 3 * len(ON_CHIP)


def test_the_committed_page_holds_what_the_committed_tables_give(report):
    text = (root() / "docs/results.md").read_text(encoding="utf-8")
    assert savings.readme(text, report) == text, "run 'make readme'"


def test_the_notebooks_show_the_method_whose_models_are_committed():
    for name in ("6-memory-and-energy", "7-deploy"):
        cells = json.loads((root() / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        (given,) = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        assert f'method = "{savings.SHOWN}"' in given.splitlines()


def test_the_committed_compressed_models_are_those_shown_at_the_size_of_the_table(report):
    stored, _ = savings.tables(report)
    rows = stored.query("encoding == 'entropy'").set_index(KEYS)
    chosen = shown(report)
    there = {path.name for path in (folder("report") / "compressed").glob("*.prn")}
    assert there == {run.place("compressed", ".prn").name for run in chosen}
    for run in chosen:
        row = rows.loc[(run.benchmark, run.requirement, run.method, run.seed)]
        assert run.place("compressed", ".prn").stat().st_size == row["bytes"]
        model = savings.opened(run)
        assert sum(layer.significant for layer in masked_layers(model).values()) == row["significant"]
