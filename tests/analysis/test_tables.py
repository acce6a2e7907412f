"""Records to a table and back: columns in order, rows sorted, nothing lost."""

import random

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from pruning.analysis import tables
from pruning.analysis.readme import certified_table
from pruning.analysis.wording import folded
from pruning.study.paths import root

MOST = 25  # rows of a table that stand open
NOTEBOOKS = sorted([*root().glob("notebooks/*.ipynb"), *root().glob("data/results/report/notebooks/*.ipynb")])


def made(benchmark="digits-2c", requirement=0.95, method="iterative", seed=0, **result):
    """A record with all that the table takes from one."""
    values = {
        "synapses": 44190,
        "significant": 1000,
        "density": 1000 / 44190,
        "validation_accuracy": 0.95,
        "test_accuracy": 0.1 + 0.2,
        "iterations": 500,
        "iterations_unpruned": 160,
        "effort": 3.125,
        "reached": True,
        "iterations_spent": 700,
        "stopped": "not recovered",
        "macs_dense": 281640,
        "macs": 89469,
        "training_macs": 10**13,
    }
    run = {
        "study": "some",
        "name": f"{benchmark}-{requirement}-{method}-{seed}",
        "benchmark": benchmark,
        "network": "28x28-6c5-16c5-120-84-10",
        "dataset": "digits",
        "requirement": requirement,
        "method": method,
        "seed": seed,
        "settings": {"batch": 32},
    }
    return {"run": run, "result": values | result, "data": "Digits"}


MISSED = {"reached": False, "effort": None, "iterations_unpruned": None, "density": 1.0, "significant": 44190}


@pytest.fixture
def some():
    found = [
        made(benchmark, requirement, method, seed)
        for benchmark in ("digits-2c", "digits-3c")
        for requirement in (0.95, 0.97)
        for method in ("gradual", "iterative")
        for seed in (0, 2, 10)
    ]
    return [*found, made(requirement=0.999, **MISSED)]


def test_the_table_has_its_columns_in_order_and_its_rows_sorted(some):
    table = tables.frame(some)
    assert tuple(table.columns) == tables.COLUMNS and len(table) == len(some)
    assert table.equals(table.sort_values(tables.KEYS, ignore_index=True))
    shuffled = random.Random(0).sample(some, len(some))
    pd.testing.assert_frame_equal(tables.frame(shuffled), table)


def test_a_run_that_was_not_reached_stays_in_the_table(some):
    table = tables.frame(some)
    row = table[~table["reached"]].iloc[0]
    assert row["density"] == 1 and pd.isna(row["effort"]) and pd.isna(row["iterations_unpruned"])
    assert table["iterations_unpruned"].dtype == "Int64"


def test_a_run_that_pruned_early_and_was_not_reached_counts_with_all_synapses():
    table = tables.frame([made(seed=0, **MISSED | {"density": 0.4, "significant": 17676}), made(seed=1)])
    assert list(table["density"]) == [1, 1000 / 44190] and list(table["significant"]) == [17676, 1000]


def test_the_written_table_reads_back_exactly_and_is_the_same_file_again(some, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    path = tables.write_table("some", some)
    assert path == tmp_path / "some" / "runs.csv"
    before = path.read_bytes()
    assert b"\r" not in before and before.endswith(b"\n")
    back = pd.read_csv(path, dtype={"iterations_unpruned": "Int64"})
    pd.testing.assert_frame_equal(back, tables.frame(some), check_dtype=False, check_exact=True)
    assert tables.write_table("some", reversed(some)).read_bytes() == before


def test_titles_name_the_data_of_each_benchmark(some):
    assert tables.titles(some) == {"digits-2c": "Digits", "digits-3c": "Digits"}


def test_a_long_table_is_folded_and_a_short_one_is_not():
    table = pd.DataFrame({"number": range(MOST + 1)})
    (details,) = BeautifulSoup(folded(table), "html.parser").select("details")
    assert details.summary.text == "All 26 rows" and len(details.select("tbody tr")) == 26
    assert "details" not in folded(table[:-1]) and folded(table[:-1]).count("<tr") == MOST + 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_long_tables_in_notebooks_are_folded(path):
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    for output in outputs:
        data = output.get("data", {})
        for table in BeautifulSoup(data.get("text/html", ""), "html.parser").select("table"):
            assert table.find_parent("details") or len(table.select("tbody tr")) <= MOST
        plain = data.get("text/markdown", "").split("<details>")[0].splitlines()
        assert sum(line.startswith("|") for line in plain) <= MOST + 2


def test_certified_runs_stand_beside_the_naive_rule():
    def run(seed, density, tested, reached=True, benchmark="digits-2c"):
        return made(benchmark, seed=seed, density=density, test_accuracy=tested, reached=reached)

    naive = tables.frame(
        [run(0, 0.1, 0.94), run(1, 0.1, 0.96), run(2, 0.1, 0.96), run(0, 0.1, 0.9, False, "digits-3c")]
    )
    kept = [run(0, 0.2, 0.96), run(1, 0.8, 0.95), run(2, 1.0, 0.97, False), run(0, 0.3, 0.96, benchmark="digits-3c")]
    text = certified_table(tables.frame(kept), naive)
    assert [line.strip("| ") for line in text.splitlines()[2:]] == [
        "digits-2c | `iterative` | 2 of 3 | 2 of 2 | 2 of 3 | 4.00×",
        "digits-3c | `iterative` | 1 of 1 | 1 of 1 | 0 of 0 | –",
        "all | `iterative` | 3 of 4 | 3 of 3 | 2 of 3 | 4.00×",
    ]
