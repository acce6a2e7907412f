"""The comparison with other methods, the Pareto front and the targets, on tables made for them."""

import numpy as np
import pandas as pd
import pytest

from pruning.analysis import comparison, figures, targets
from pruning.analysis.claims import BENCHMARKS
from pruning.analysis.comparison import BEST, METHOD, compared, joined, pareto, worded
from pruning.analysis.tables import COLUMNS
from pruning.analysis.targets import first_as_sparse

REQUIREMENTS = {name: (0.97, 0.98, 0.99) if name.startswith("mnist") else (0.55, 0.60, 0.65) for name in BENCHMARKS}


def row(benchmark="mnist-2c", requirement=0.99, method=METHOD, seed=0, **given):
    values = dict.fromkeys(COLUMNS, 0) | {
        "benchmark": benchmark,
        "requirement": requirement,
        "method": method,
        "seed": seed,
        "density": 0.02,
        "effort": 1.5,
        "cost": 1.6,
        "test_accuracy": 0.991,
        "reached": True,
        "synapses": 44190,
        "significant": 900,
    }
    return values | given


def record(row, trajectory=((100, 0.5, 1.0), (200, 0.999, 0.3)), unpruned=200, result=None):
    names = ("iteration", "accuracy", "density")
    return {
        "run": {name: row[name] for name in ("benchmark", "requirement", "method", "seed")},
        "result": {"iterations_unpruned": unpruned, "reached": False} | (result or {}),
        "trajectory": dict(zip(names, map(list, zip(*trajectory)))),
    }


def judged(rows, **given):
    others = [row | {"method": "gradual", "density": 0.1, "cost": 3.0, "reached": True} for row in rows]
    table = pd.DataFrame([*rows, *others], columns=list(COLUMNS))
    found = targets.targets(table, [record(row, **given) for row in rows])
    return dict(zip(("2c", "2c cost", "3c", "3c cost", "removed", "cost", "sparse", "wins", "smallest"), found))


def everything(seeds=5, **given):
    return [
        row(name, requirement, seed=seed, **given)
        for name, asked in REQUIREMENTS.items()
        for requirement in asked
        for seed in range(seeds)
    ]


def test_methods_are_compared_seed_by_seed():
    rows = [row(seed=seed, density=density) for seed, density in enumerate((0.02, 0.03, 0.04))]
    rows += [row(method="gradual", seed=seed, density=density) for seed, density in enumerate((0.03, 0.03, 0.03))]
    rows += [row(method="iterative", seed=seed, density=density) for seed, density in enumerate((0.01, 0.08, 0.05))]
    rows += [row(method="unpruned", seed=seed, density=1) for seed in range(3)]
    rows += [row(method=f"{METHOD}-late", seed=0, density=0.001), row(method="snip", seed=7, density=0.5)]
    found = compared(pd.DataFrame(rows)).set_index("method")
    counts = found[["wins", "ties", "pairs"]]
    assert tuple(counts.loc["gradual"]) == (1, 1, 3) and tuple(counts.loc["iterative"]) == (2, 0, 3)
    assert tuple(counts.loc[BEST]) == (0, 1, 3), "0.01, 0.03 and 0.03 are the sparsest of the others"
    assert tuple(counts.loc[f"{METHOD}-late"]) == (0, 0, 1) and tuple(counts.loc["snip"]) == (0, 0, 0)
    assert counts.loc[METHOD].isna().all() and "unpruned" not in found.index
    turned = compared(pd.DataFrame(rows), own="iterative").set_index("method")[["wins", "ties", "pairs"]]
    assert tuple(turned.loc[METHOD]) == (1, 0, 3) and turned.loc["iterative"].isna().all()
    assert found.loc[BEST, "runs"] == 4 and found.loc["gradual", "density_sd"] == 0
    assert found.loc["iterative", "density_sd"] == pytest.approx(np.std((0.01, 0.08, 0.05), ddof=1))


def test_a_run_that_did_not_reach_its_requirement_loses():
    rows = [row(seed=0), row(seed=1, reached=False, density=0.001, effort=np.nan)]
    rows += [row(method="gradual", seed=seed, density=0.9) for seed in range(2)]
    found = compared(pd.DataFrame(rows)).set_index("method")
    assert tuple(found.loc["gradual", ["wins", "ties", "pairs"]]) == (1, 0, 2)
    assert found.loc[METHOD, "density"] == pytest.approx(0.51) and found.loc[METHOD, "effort"] == 1.5


def test_the_comparison_in_words():
    rows = [row(seed=seed, density=density) for seed, density in enumerate((0.02, 0.04))]
    rows += [row(method="gradual", density=0.02), row(method="lamp", density=1, effort=np.nan, reached=False)]
    said = worded(compared(pd.DataFrame(rows))).set_index("method")
    assert list(said.loc[METHOD]) == [
        "mnist-2c",
        "99 %",
        "2 of 2",
        "3.00 ± 1.41 %",
        "1.50 ± 0.00×",
        "99.10 ± 0.00 %",
        "–",
    ]
    assert said.loc["gradual", f"{METHOD} wins"] == "0 of 1, 1 tied" and said.loc["gradual", "significant"] == "2.00 %"
    assert said.loc["lamp", "effort"] == "–" and said.loc["lamp", "met"] == "0 of 1"
    assert worded(compared(pd.DataFrame(rows)[:0])).empty


def test_nothing_on_the_front_is_beaten_and_all_else_is():
    generator = np.random.default_rng(0)
    for size in (1, 2, 30):
        points = pd.DataFrame(generator.integers(1, 9, (size, 2)), columns=["density", "effort"])
        front = pareto(points)
        for place, one in points.iterrows():
            beaten = ((points <= one).all(axis=1) & (points < one).any(axis=1)).any()
            assert not (place in front.index and beaten)
            assert beaten or (front == one).all(axis=1).any()
    assert list(pareto(pd.DataFrame({"density": [0.1, 0.2], "effort": [np.nan, 3]})).index) == [1]


def test_the_effort_to_the_first_network_as_sparse_as_the_reports():
    def effort(*trajectory, **given):
        return first_as_sparse(record(row(), trajectory, **given))

    assert effort((100, 0.995, 0.5), (150, 0.9, 0.3), (300, 0.99, 0.39), (400, 0.999, 0.1)) == 1.5
    assert effort((100, 0.99, 0.4)) is None and effort((100, 0.9899, 0.1)) is None
    assert effort((100, 0.99, 0.1), unpruned=None) is None
    delivered = {
        "reached": True,
        "density": 0.1,
        "effort": 1.7,
    }  # a long run's trajectory does not hold every evaluation
    assert effort((100, 0.99, 0.5), result=delivered) == 1.7 and effort((300, 0.99, 0.3), result=delivered) == 1.5
    assert effort((100, 0.99, 0.5), result=delivered | {"density": 0.5}) is None


def test_all_targets_are_reached_where_all_numbers_are_small():
    assert {name: target.verdict for name, target in judged(everything()).items()} == {
        "2c": "reached",
        "2c cost": "reached",
        "3c": "reached",
        "3c cost": "reached",
        "removed": "reached",
        "cost": "reached",
        "sparse": "reached",
        "wins": "reached",
        "smallest": "reached",
    }


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"density": 0.03}, {"3c"}),
        ({"density": 0.065}, {"2c", "3c", "removed"}),
        ({"density": 0.1}, {"2c", "3c", "removed", "wins"}),
        ({"cost": 2.1}, {"2c cost", "3c cost", "cost"}),
        ({"cost": 3.0}, {"2c cost", "3c cost", "cost", "wins"}),
        ({"test_accuracy": 0.9899}, {"smallest"}),
        ({"significant": 1001}, {"smallest"}),
        ({"reached": False}, {"2c", "2c cost", "3c", "3c cost", "removed", "cost", "wins", "smallest"}),
    ],
)
def test_a_target_that_is_missed_is_named(change, missed):
    found = judged(everything(**change))
    assert {name for name, target in found.items() if target.verdict == "not reached"} == missed
    assert {target.verdict for target in found.values()} <= {"reached", "not reached"}


def test_one_run_that_does_not_get_there_misses_the_cost():
    rows = everything()
    rows[0] = rows[0] | {"reached": False, "effort": np.nan}
    found = judged(rows)
    assert found["cost"].verdict == "not reached" and "1 did not get there" in found["cost"].measured
    assert found["removed"].mean == pytest.approx(1 - (0.02 * 59 + 1) / 60)
    late = judged(everything(), trajectory=((100, 0.999, 0.4),))["sparse"]
    assert late.verdict == "not reached" and late.measured == "60 did not get there"


def test_the_study_of_the_smallest_network_is_summarized():
    rows = [
        row(
            requirement=requirement,
            method=comparison.TIRELESS,
            seed=seed,
            significant=round(weights * (1 + seed / 10)),
            effort=20.0,
            test_accuracy=tested,
        )
        for requirement, weights, tested in ((0.988, 800, 0.9899), (0.99, 1000, 0.992))
        for seed in range(5)
    ]
    said = targets.smallest_summary(pd.DataFrame(rows))
    assert (
        "mnist-2c at 98.8 %, 960 weights (800 to 1,120), 2.17 % of the synapses, with 98.99 % of the test images right"
        in said
    )
    assert "at most 1,000: 1,200 (1,000 to 1,400, 5 seeds), **not reached**." in said, "98.99 % are not 99 %"
    rows = [one | {"test_accuracy": 0.991} for one in rows]
    assert "960 (800 to 1,120, 5 seeds), **reached**" in targets.smallest_summary(pd.DataFrame(rows))
    assert "seeds" not in targets.markdown(pd.DataFrame(rows), []).splitlines()[-1]
    assert targets.markdown(pd.DataFrame(rows), [], pd.DataFrame(rows)).count("**reached**.") == 1


def test_only_methods_that_were_measured_in_all_settings_are_compared_over_all():
    rows = everything(seeds=2)
    asked = [one["requirement"] for one in rows]
    rows += [
        one | {"method": "gradual", "density": 0.02, "effort": 4.0, "cost": 4.4}
        if one["seed"]
        else one | {"method": "gradual", "density": 0.06, "effort": 4.0, "cost": 4.8, "stopped": "budget spent"}
        for one in rows
    ]
    for one in rows[-2:]:
        one["test_accuracy"] -= 0.5
    rows += [row(method="snip", seed=seed) for seed in range(2)] + [row(method=f"{METHOD}-coarse", density=0.001)]
    rows[0] |= {"reached": False, "effort": np.nan}
    table = comparison.rivals(pd.DataFrame(rows))
    assert set(table["method"]) == {METHOD, "gradual", "snip"}
    found = comparison.overall(table).set_index("method")
    assert list(found.index) == [BEST, "gradual", METHOD], "snip was measured in one setting of twelve"
    assert found.loc[METHOD, "density"] == pytest.approx((11 * 0.02 + 0.51) / 12) and found.loc[METHOD, "dense"] == 1
    assert found.loc[METHOD, "compression"] == pytest.approx((50**11 / 0.51) ** (1 / 12))
    assert tuple(found.loc["gradual", ["runs", "density", "effort", "ended"]]) == pytest.approx((24, 0.04, 4.0, 12))
    assert found.loc["gradual", "tested"] == 22 and found.loc["gradual", "above"] == pytest.approx(
        0.991 - np.mean(asked) - 1 / 24
    )
    assert tuple(found.loc["gradual", [f"{METHOD}_wins", f"{METHOD}_pairs"]]) == (11, 24), "one of 12 was not reached"
    lines = comparison.markdown(table).splitlines()
    assert lines[0].startswith("| method | significant | compression | effort | cost | test − required | met on test |")
    row_of = next(line for line in lines if "`gradual`" in line)
    assert "| 4.00 % | 25.0× | 4.00× | 4.60× |" in row_of
    uncounted = table.assign(cost=table["cost"].where(table["method"] != "gradual"))
    assert sum("| not counted |" in line for line in comparison.markdown(uncounted).splitlines()) >= 1
    assert row_of.endswith("| 22 of 24 | 0 | 12 | 11 of 24 | – |")
    assert len(lines) == 2 + len(found)


def test_a_target_is_open_until_all_records_are_there():
    found = judged([row for row in everything() if row["benchmark"] != "cifar10-3c" and row["requirement"] != 0.97])
    assert found["2c"].verdict == "reached" and found["removed"].verdict == "open"
    assert found["removed"].measured.endswith("; no records of cifar10-3c")
    assert judged(everything(seeds=4))["2c"].verdict == "open"
    assert "(2.0 % to 2.0 %, 4 seeds)" in judged(everything(seeds=4))["2c"].measured
    nothing = judged([row(method="iterative")])
    assert {target.verdict for target in nothing.values()} == {"not measured"}
    assert nothing["removed"].measured == f"no records of {', '.join(BENCHMARKS)}"
    assert {target.verdict for target in judged([]).values()} == {"not measured"}


def test_a_requirement_that_only_other_methods_have_is_missing():
    rows = [row for row in everything() if row["benchmark"] == "mnist-2c" and row["requirement"] > 0.97]
    found = judged([*rows, row(requirement=0.97, method="iterative")])
    assert found["removed"].missing == ("mnist-3c", "cifar10-2c", "cifar10-3c", "mnist-2c at 97 %")


def test_the_table_of_targets_has_a_row_each():
    rows = everything()
    lines = targets.markdown(pd.DataFrame(rows), [record(row) for row in rows]).splitlines()
    assert len(lines) == 2 + 9 and all(line.count("|") == 8 for line in lines)
    assert lines[2] == (
        "| mnist-2c at 99 %: significant synapses | at most 6 % | 2.0 % (2.0 % to 2.0 %, 5 seeds) | **reached** "
        "| at most 3 % | no records of mnist-2c at 99 % | **not measured** |"
    )
    assert "| at least 97 % | 98.0 %" in lines[6] and "| at most 2× | 1.60×" in lines[7]
    assert "| at least 9 | no records of other methods | **not measured** |" in lines[9]
    assert "| at most 1,000 | 900 (900 to 900, 5 seeds) |" in lines[10]


def test_studies_are_joined_where_they_measured_the_same():
    table = pd.DataFrame([row(method="unpruned"), row()])
    more = pd.DataFrame([row(method="unpruned", density=0.5), row(method="snip"), row("digits-2c", method="snip")])
    found = joined(table, more)
    assert list(found["method"]) == ["unpruned", METHOD, "snip"] and set(found["benchmark"]) == {"mnist-2c"}
    assert found["density"].iloc[0] == table["density"].iloc[0]
    assert joined(table, more[:0]).equals(table) and joined(table[:0], more).empty


def test_our_networks_stand_beside_the_published_ones():
    rows = [
        row("lenet-5", seed=seed, synapses=430500, significant=significant, test_accuracy=accuracy)
        for seed, significant, accuracy in ((0, 4305, 0.99), (1, 2152.5, 0.992))
    ]
    found = comparison.beside_published(pd.DataFrame([*rows, row()]))
    assert len(found) == len(comparison.PUBLISHED) + 1
    assert list(found.iloc[-1]) == ["lenet-5", f"here: {METHOD}", "150.0 ± 70.7×", "0.90 ± 0.14 %"]
    assert len(comparison.beside_published(pd.DataFrame([row()])[:0])) == len(comparison.PUBLISHED)


# The figure


def drawn(rows):
    return figures.frontier(pd.DataFrame(rows), {"mnist-2c": "MNIST"})


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]


def some():
    rows = [row(method="unpruned", seed=seed, density=1, effort=1) for seed in range(2)]
    for method, density, effort in ((METHOD, 0.02, 2), ("gradual", 0.04, 3), ("iterative", 0.05, 1.5)):
        rows += [row(method=method, seed=seed, density=density * (1 + seed / 4), effort=effort) for seed in range(2)]
    return rows


@pytest.mark.slow
def test_the_frontier_has_a_panel_for_each_benchmark_and_requirement(tmp_path):
    rows = [*some(), *(row("mnist-3c", requirement, seed=0) for requirement in (0.97, 0.99))]
    figure = drawn(rows)
    heads = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert sorted(heads) == ["MNIST, 2 convolutions\nat 99 %", "at 99 %", "mnist-3c, 3 convolutions\nat 97 %"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *(figures.look(name).label for name in ("unpruned", "iterative", "gradual", METHOD)),
        "Pareto front of the means",
    }
    assert "smallest to largest of 1 to 2 seeds" in figure._suptitle.get_text()
    paths = figures.save(figure, tmp_path, "one")
    before = [path.read_bytes() for path in paths]
    again = drawn(rows)
    figures.png(again, dpi=50)
    assert [path.read_bytes() for path in figures.save(again, tmp_path, "one")] == before


def front(figure, number=0):
    """The corners of the dashed line in one of its panels: [methods, 2], density and effort, or cost."""
    axes = figure.axes[number]
    (line,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    return np.column_stack(line.get_data())[1:-1]


def test_the_front_joins_the_methods_that_none_beats():
    assert front(drawn(some())) == pytest.approx(np.array([(0.0225, 2), (0.05625, 1.5), (1, 1)]))


def test_the_overview_names_every_method_once_and_joins_the_front(tmp_path):
    rows = [{**line, "requirement": requirement} for requirement in (0.97, 0.99) for line in some()]
    rows += [row(method="lamp", requirement=0.97, seed=0)]  # not measured in all settings
    uncounted = figures.overview(pd.DataFrame(rows).assign(cost=np.nan))
    assert sorted(texts(uncounted)) == ["", "adaptive", "gradual", "iterative", "unpruned"]
    assert front(uncounted) == pytest.approx(np.array([(0.0225, 2), (0.05625, 1.5)]))
    # Where looks cost half as much again as the training, one method does not pay.
    rows = [line | {"cost": line["effort"] * (1 + (line["method"] == METHOD) / 2)} for line in rows]
    figure = figures.overview(pd.DataFrame(rows))
    named = [text for text in texts(figure) if text]
    assert sorted(named) == sorted(2 * ["adaptive", "gradual", "iterative", "unpruned"])
    assert front(figure) == pytest.approx(np.array([(0.0225, 2), (0.05625, 1.5)]))
    assert front(figure, 1) == pytest.approx(np.array([(0.0225, 3), (0.05625, 1.5)]))
    assert "means over 2 settings and 2 seeds" in figure._suptitle.get_text()
    before = [path.read_bytes() for path in figures.save(figure, tmp_path, "one")]
    again = figures.overview(pd.DataFrame(rows))
    assert [path.read_bytes() for path in figures.save(again, tmp_path, "one")] == before


def test_no_name_hides_a_point_where_points_crowd():
    spots = {"random": (0.055, 5.0), "sensitivity": (0.0595, 4.95), "lamp": (0.0685, 4.94), "oneshot": (0.07, 4.5)}
    spots |= {"rigl": (0.064, 6.2), "surgery": (0.0445, 4.6), "erk": (0.05, 4.4), "uniform": (0.06, 4.7)}
    rows = [row(method=name, seed=0, density=at[0], effort=at[1], cost=at[1]) for name, at in spots.items()]
    figure = figures.overview(pd.DataFrame([*some(), *rows]))
    for axes in figure.axes:
        named = [text for text in axes.texts if text.get_text()]
        assert len(named) == len(spots) + 4
        for text in named:
            box = text.get_window_extent()
            hidden = [name for name, spot in spots.items() if box.contains(*axes.transData.transform(spot))]
            assert not hidden, f"{text.get_text()} covers {hidden}"
            assert not any(box.overlaps(other.get_window_extent()) for other in named if other is not text)


def test_a_method_that_removed_nothing_does_not_stand_for_the_unpruned_training():
    rows = pd.DataFrame(
        [
            *some(),
            row(method="hashed", seed=0, density=1, effort=1),
            row(method="movement", seed=0, density=1, effort=1),
        ]
    )
    assert list(comparison.front(rows).index) == [METHOD, "iterative", "unpruned"]


def test_a_method_that_missed_its_requirement_is_hollow_and_off_the_front():
    rows = some()
    for number, found in enumerate(rows):
        if found["method"] == METHOD and found["seed"] == 0:
            rows[number] = found | {"reached": False, "effort": np.nan}
    figure = drawn(rows)
    assert front(figure) == pytest.approx(np.array([(0.045, 3), (0.05625, 1.5), (1, 1)]))
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1 and hollow[0].get_color() == figures.look(METHOD).color
    assert "hollow: not all runs reached it" in {text.get_text() for text in figure.legends[0].get_texts()}
    never = [row(method="snip", reached=False, density=1, effort=np.nan)]
    assert "never reached: SNIP" in texts(drawn([*some(), *never]))
    assert "never reached" not in " ".join(texts(drawn(some())))
