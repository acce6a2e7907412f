"""What is said of clusters that nobody here has: simulated from the committed records."""

from pathlib import Path

import pytest

from benchmarks.cluster import Task, makespan, table

PAGE = Path(__file__).resolve().parents[2] / "docs/clusters.md"


@pytest.mark.slow
def test_the_page_of_clusters_holds_what_the_simulation_gives(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    assert table() in PAGE.read_text(encoding="utf-8"), "put what 'python -m benchmarks.cluster' prints into the page"


def test_makespans_that_can_be_counted_by_hand():
    alike = {name: Task(10) for name in range(6)}
    assert [makespan(alike, workers) for workers in (1, 2, 4, 6, 99)] == [60, 30, 20, 10, 10]
    assert makespan({"long": Task(30), "a": Task(10), "b": Task(10), "c": Task(10)}, 2) == 30
    chained = {"dense": Task(5), "pruned": Task(20, {"dense"}), "more": Task(7, {"dense"}), "own": Task(6)}
    assert makespan(chained, 99) == 25 and makespan(chained, 1) == 38 and makespan(chained, 2) == 25
