"""What docs/fashion.md says in words, held against the committed records."""

import pandas as pd
import pytest

from pruning.analysis.comparison import METHOD, PATIENT, front
from pruning.analysis.tables import KEYS, frame
from pruning.study.records import folder
from pruning.study.store import recorded
from pruning.study.studies import load

SETTING = KEYS[:2]


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PRUNING_RESULTS", raising=False)
        others = pd.concat([pd.read_csv(folder(name) / "runs.csv") for name in ("report", "methods")])
        clothes = frame(recorded(load("fashion")))
    alike = (
        others["method"].isin(clothes["method"]) & (others["seed"] < 3) & others["benchmark"].str.startswith("mnist")
    )
    return clothes, others[alike].drop_duplicates(KEYS)


def pruned(table):
    return table[table["method"] != "unpruned"]


def test_what_carries_over(tables):
    clothes, _ = tables
    assert len(clothes) == 84 and clothes["reached"].all()
    mean = pruned(clothes).groupby(KEYS[:3])["density"].mean()
    assert mean.min() >= 0.0065 and mean.max() < 0.0545
    by_requirement, by_network = mean.unstack("requirement"), mean.unstack("benchmark")
    assert (by_requirement[0.88] > by_requirement[0.86]).all()
    assert (by_network["fashion-3c"] < by_network["fashion-2c"]).all()
    assert (mean.unstack("method").idxmin(axis=1) == PATIENT).all()
    effort = pruned(clothes).groupby(KEYS[:3])["effort"].mean().unstack("method")
    assert (effort.idxmin(axis=1) == METHOD).all() and effort[METHOD].between(1.9, 2.1).all()
    assert effort[PATIENT].between(3.5, 5.05).all()
    for _, runs in clothes.groupby(SETTING):
        assert {METHOD, PATIENT} <= set(front(runs).index)


def test_what_does_not(tables):
    clothes, digits = tables
    tested = [(table["test_accuracy"] >= table["requirement"]).mean() for table in (pruned(digits), pruned(clothes))]
    assert tested[0] > 0.9 and (pruned(clothes)["test_accuracy"] >= pruned(clothes)["requirement"]).sum() == 3
    gaps = clothes.assign(gap=clothes["test_accuracy"] - clothes["validation_accuracy"]).groupby("method")["gap"].mean()
    assert (gaps < 0).all() and round(100 * gaps["unpruned"], 1) == -0.7
    means = [pruned(table).groupby(KEYS[:3])["density"].mean().unstack("method") for table in (clothes, digits)]
    assert (means[0].idxmax(axis=1) == "gradual").sum() == 3 and len(means[0]) == 4
    there = means[1].loc["mnist-2c"].loc[[0.97, 0.98]]
    assert (there["gradual"] / there["iterative"]).between(0.8, 1.2).all()
    assert (there["raterewind"] / there[PATIENT]).between(0.9, 1.1).all()
    assert (means[0]["raterewind"] > 1.1 * means[0][PATIENT]).all()
