"""Claims: every verdict on tables made for it, the committed records as they are."""

import numpy as np
import pandas as pd
import pytest

from pruning.analysis import claims, figures
from pruning.analysis.claims import BENCHMARKS
from pruning.analysis.readme import compression_table
from pruning.analysis.tables import compression, frame, speedup, titles
from pruning.study.store import recorded
from pruning.study.studies import load

# Synapses left by the report's method in the table below, at the lower and the higher requirement.
LEFT = {"mnist-2c": (0.30, 0.40), "mnist-3c": (0.25, 0.35), "cifar10-2c": (0.55, 0.62), "cifar10-3c": (0.33, 0.37)}
DATA = {name: "MNIST" if name.startswith("mnist") else "CIFAR-10 (JPEG copy)" for name in LEFT}
NOISE = (0.0, 0.01, -0.01, 0.02, -0.02)


def runs(left=LEFT, effort=2.0, loss=0.0, seeds=5):
    """A table of records in which the report's method leaves ``left``, but for a little noise."""
    rows = []
    for benchmark, densities in left.items():
        mnist = benchmark.startswith("mnist")
        for requirement, density in zip((0.97, 0.99) if mnist else (0.55, 0.65), densities):
            for seed in range(seeds):
                own = density * (1 + NOISE[seed])
                shared = {
                    "benchmark": benchmark,
                    "dataset": benchmark.split("-")[0],
                    "requirement": requirement,
                    "seed": seed,
                    "synapses": 40000 if benchmark.endswith("2c") else 80000,
                    "reached": True,
                }
                rows.append(
                    shared | {"method": "unpruned", "density": 1.0, "effort": 1.0, "cost": 1.0, "test_accuracy": 0.9}
                )
                rows.append(
                    shared
                    | {
                        "method": "iterative",
                        "density": own,
                        "effort": effort * (1 + NOISE[seed]),
                        "cost": effort * (1 + NOISE[seed]),
                        "test_accuracy": 0.9 - loss + NOISE[seed] / 100,
                    }
                )
    return pd.DataFrame(rows)


def verdicts(table):
    return {claim.name: claim.verdict for claim in claims.claims(table)}


def test_every_claim_holds_where_the_records_are_as_the_report_says():
    assert verdicts(runs()) == dict.fromkeys(
        ("reductions", "significant", "requirement", "size", "most", "effort", "accuracy"), "holds"
    )


@pytest.mark.parametrize(
    ("name", "table", "verdict"),
    [
        ("reductions", runs(dict.fromkeys(LEFT, (0.02, 0.05))), "goes further"),
        ("reductions", runs(dict.fromkeys(LEFT, (0.02, 0.05)), seeds=3), "holds in part"),
        ("reductions", runs(dict.fromkeys(LEFT, (0.95, 0.97))), "holds in part"),
        ("significant", runs(LEFT | {"mnist-2c": (0.03, 0.07)}), "goes further"),
        ("significant", runs(LEFT | {"mnist-2c": (0.03, 0.07)}, seeds=3), "does not hold"),
        ("significant", runs(LEFT | {"mnist-2c": (0.03, 0.46)}), "does not hold"),
        ("significant", runs(LEFT | {"mnist-2c": (0.03, 0.44)}), "holds"),
        ("requirement", runs(LEFT | {"mnist-2c": (0.41, 0.40)}), "holds in part"),
        ("requirement", runs({name: values[::-1] for name, values in LEFT.items()}), "does not hold"),
        ("size", runs(LEFT | {"mnist-3c": (0.25, 0.45)}), "holds in part"),
        ("size", runs(LEFT | {"mnist-3c": (0.35, 0.45), "cifar10-3c": (0.7, 0.7)}), "does not hold"),
        ("most", runs(LEFT | {"mnist-3c": (0.7, 0.7)}), "holds in part"),
        ("most", runs(LEFT | {"cifar10-2c": (0.02, 0.03)}), "does not hold"),
        ("effort", runs(effort=1.0), "does not hold"),
        ("accuracy", runs(loss=0.004), "holds"),
        ("accuracy", runs(loss=0.006), "does not hold"),
        ("effort", runs(seeds=3), "holds in part"),  # three seeds cannot bring p below 1/8
    ],
)
def test_a_verdict_follows_from_the_records(name, table, verdict):
    assert verdicts(table)[name] == verdict


def test_what_could_not_come_out_otherwise_says_so():
    judged = {claim.name: claim for claim in claims.claims(runs())}
    assert judged["effort"].judged == "holds, by construction" and "cannot be below 1×" in judged["effort"].rule
    assert [name for name, claim in judged.items() if claim.judged != claim.verdict] == ["effort"]
    assert "**holds, by construction**" in claims.markdown(runs(), DATA)


def test_a_run_that_was_not_reached_counts_with_everything_left():
    table = runs()
    found = (table["benchmark"] == "mnist-2c") & (table["requirement"] == 0.99) & (table["seed"] == 0)
    missed = found & (table["method"] == "iterative")
    table.loc[missed, ["reached", "density", "effort"]] = [False, 0.4, np.nan]
    by_name = {claim.name: claim for claim in claims.claims(table)}
    (part,) = by_name["significant"].parts
    assert len(part.values) == 5 and max(part.values) == 1
    (effort,) = (part for part in by_name["effort"].parts if part.name == "mnist-2c")
    assert effort.values[0] == pytest.approx(2**0.5), "the geometric mean of 2 and 1"


def test_what_has_no_records_is_not_measured_and_named():
    by_name = {claim.name: claim for claim in claims.claims(runs({"mnist-2c": (0.3, 0.4), "mnist-3c": (0.2, 0.3)}))}
    assert by_name["most"].verdict == "not measured" and by_name["most"].p is None
    assert by_name["most"].measured == "no records of cifar10-2c, cifar10-3c"
    assert by_name["effort"].verdict == "holds"
    assert by_name["effort"].measured.endswith("not measured: cifar10-2c, cifar10-3c")
    assert set(verdicts(runs()[:0]).values()) == {"not measured"}
    digits = runs({"digits-2c": (0.03, 0.05)})
    assert verdicts(digits)["requirement"] == "holds"
    assert all(not set(claim.missing) & set(BENCHMARKS) for claim in claims.claims(digits) if claim.parts)
    unpaired = runs().query("method == 'iterative'")
    assert verdicts(unpaired)["accuracy"] == "not measured"


def test_a_seed_that_lacks_a_record_is_left_out_of_the_whole_alone():
    table = runs()
    gone = (table["benchmark"] == "mnist-3c") & (table["seed"] == 4)
    (claim,) = (claim for claim in claims.claims(table[~gone]) if claim.name == "effort")
    assert [len(part.values) for part in claim.parts] == [5, 4, 5, 5, 4] and claim.test.endswith("p = 1/16")


def test_the_table_says_on_what_it_was_measured():
    said = claims.markdown(runs(), DATA).splitlines()[-1]
    assert said == "Measured on mnist-2c, mnist-3c: MNIST; cifar10-2c, cifar10-3c: CIFAR-10 (JPEG copy)."


def test_other_methods_do_not_touch_a_verdict():
    table = runs()
    other = table.query("method == 'iterative'").assign(method="adaptive", density=0.001, effort=0.1)
    assert claims.markdown(pd.concat([table, other]), DATA) == claims.markdown(table, DATA)


def test_every_claim_is_drawn():
    for claim in claims.claims(runs()):
        figure = figures.claim(claim, DATA)
        shown = {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}
        assert {part.name for part in claim.parts} <= shown
        assert claim.says in figure.get_label() and claim.verdict in figure.get_label()
        cifar = any("cifar10" in part.name for part in claim.parts)
        assert not cifar or "CIFAR-10 (JPEG copy)" in figure._suptitle.get_text()


def test_the_committed_records_give_each_claim_a_row(monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    found = recorded(load("report"))
    table = frame(found)
    lines = claims.markdown(table, titles(found)).splitlines()[:-2]
    assert len(lines) == 2 + len(claims.claims(table)) == 9 and all(line.count("|") == 6 for line in lines)


def test_compression_and_speedup_are_ratios_of_dense_to_left():
    table = pd.DataFrame(
        {
            "benchmark": "mnist-2c",
            "requirement": 0.99,
            "method": "iterative",
            "seed": [0, 1],
            "synapses": 1000,
            "significant": [100, 50],
            "macs_dense": 8000,
            "macs": [4000, 2000],
            "test_accuracy": [0.99, 0.98],
        }
    )
    assert list(compression(table)) == [10, 20] and list(speedup(table)) == [2, 4]
    row = compression_table(table, {"mnist-2c": "MNIST"}).splitlines()[-1]
    assert row == "| mnist-2c, MNIST | 99 % | 15.0 ± 7.1× | 3.00 ± 1.41× | 98.50 ± 0.71 % |"
