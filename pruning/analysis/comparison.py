"""The study's own prune control beside every other method, seed by seed.

    >>> from pruning.study.records import folder
    >>> table = pd.read_csv(folder("report") / "runs.csv")
    >>> overall(rivals(table))["method"].iloc[0]                  # the sparsest over all benchmarks and requirements
    'adaptive-patient'

Runs of one seed share their images and first weights, so methods are compared seed by seed. A run
that did not meet its requirement counts with density 1 and has no effort.
"""

from __future__ import annotations

import math

import pandas as pd

from pruning.analysis.tables import KEYS, compression, summary
from pruning.analysis.wording import markdown_table, percent, plus_minus

METHOD = "adaptive"  # the study's own; its variants and ablations are named after it
PATIENT = "adaptive-patient"  # the same control, given more training
TIRELESS = "adaptive-tireless"  # and very much: the method of the study `smallest`
BEST = "best other"
SETTING = ["benchmark", "requirement"]

# Networks of the literature on pruning, MNIST: times fewer weights, and test error. As in the table of the authors of
# SparseVD, https://github.com/bayesgroup/variational-dropout-sparsifies-dnn, except LeNet-5 by Guo et al., 111 there
# and 108 in their own abstract, https://arxiv.org/abs/1608.04493, and SNIP: up to 98 % and 99 % of the weights,
# https://arxiv.org/abs/1810.02340, without the errors at that.
PUBLISHED = (
    ("Han et al. 2015", "lenet-300-100", 12, 0.0159),
    ("Han et al. 2015", "lenet-5", 12, 0.0077),
    ("Guo et al. 2016", "lenet-300-100", 56, 0.0199),
    ("Guo et al. 2016", "lenet-5", 108, 0.0091),
    ("Lee et al. 2019 (SNIP), up to", "lenet-300-100", 50, None),
    ("Lee et al. 2019 (SNIP), up to", "lenet-5", 100, None),
    ("Ullrich et al. 2017 (SWS)", "lenet-300-100", 23, 0.0194),
    ("Ullrich et al. 2017 (SWS)", "lenet-5", 200, 0.0097),
    ("Molchanov et al. 2017 (SparseVD)", "lenet-300-100", 68, 0.0192),
    ("Molchanov et al. 2017 (SparseVD)", "lenet-5", 280, 0.0075),
)


def other(method: str) -> bool:
    """Tell whether a method is another one that prunes: not ours, and not a variant or an ablation of ours."""
    return method not in (METHOD, "unpruned") and not method.startswith(f"{METHOD}-")


def rivals(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without our ablations and variants, but for ``adaptive`` and ``adaptive-patient``."""
    ours = table["method"].isin((METHOD, PATIENT, "unpruned"))
    return table[ours | table["method"].map(other).astype(bool)]


def compared(table: pd.DataFrame, own: str = METHOD) -> pd.DataFrame:
    """Compare every pruning method with the method ``own``: a row per benchmark, requirement and method.

    Columns: those of ``tables.summary``; ``wins``, ``ties`` and ``pairs``: seeds in which ``own`` left
    fewer synapses than this method, as many, and all that both have. The method ``BEST`` is at each
    seed the sparsest of the others.
    """
    pruned = _with_best(table)
    left = pruned[pruned["method"] == own].set_index([*SETTING, "seed"])["density"].rename("own")
    paired = pruned[pruned["method"] != own].join(left, on=[*SETTING, "seed"])
    paired = paired.assign(
        wins=paired["own"] < paired["density"], ties=paired["own"] == paired["density"], pairs=paired["own"].notna()
    )
    counts = paired.groupby(KEYS[:3])[["wins", "ties", "pairs"]].sum().astype("Int64")
    return summary(pruned).join(counts, on=KEYS[:3])


def _with_best(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that prune, and once more, as the method ``BEST``, the sparsest of the others at each seed."""
    pruned = table[table["method"] != "unpruned"]
    pruned = pruned.assign(density=pruned["density"].where(pruned["reached"], 1.0))
    others = pruned[pruned["method"].map(other).astype(bool)].sort_values([*SETTING, "seed", "density", "method"])
    return pd.concat([pruned, others.drop_duplicates([*SETTING, "seed"]).assign(method=BEST)])


def worded(rows: pd.DataFrame) -> pd.DataFrame:
    """Write ``compared`` in words, the sparsest first: mean ± standard deviation, and wins of the seeds."""
    rows = rows.sort_values([*SETTING, "density", "method"])

    def spread(name: str, scale: float, unit: str) -> list[str]:
        return [plus_minus(mean, sd, ".2f", unit) for mean, sd in zip(scale * rows[name], scale * rows[f"{name}_sd"])]

    wins = [
        "–" if pd.isna(row.pairs) or not row.pairs
        else f"{row.wins} of {row.pairs}" + (f", {row.ties} tied" if row.ties else "")
        for row in rows.itertuples()
    ]  # fmt: skip
    return pd.DataFrame({
        "benchmark": rows["benchmark"], "requirement": [percent(value) for value in rows["requirement"]],
        "method": rows["method"], "met": [f"{row.reached} of {row.runs}" for row in rows.itertuples()],
        "significant": spread("density", 100, " %"), "effort": spread("effort", 1, "×"),
        "test accuracy": spread("test_accuracy", 100, " %"), f"{METHOD} wins": wins,
    }).reset_index(drop=True)  # fmt: skip


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the methods that were measured in all settings over all of them: a row per method, the sparsest first.

    A setting is a benchmark and a requirement. Columns: ``method``; ``density``, ``effort`` and ``cost`` (missing where
    a record has no counts), the mean over settings of the mean over seeds; ``compression``, the geometric mean over
    settings of one over that density; ``above``, the test accuracy less the requirement (mean); ``runs``, and of them
    ``tested``, whose test accuracy meets the requirement too, ``dense``, that removed nothing, and ``ended``, that the
    budget of iterations ended; and for each of ``adaptive`` and ``adaptive-patient`` the ``wins`` and ``pairs`` against
    this method: ``adaptive_wins``.
    """
    from scipy.stats import gmean  # takes a second

    runs = _with_best(table)
    runs = runs.assign(cost=runs["cost"].astype(float))
    means = runs.groupby(KEYS[:3])[["density", "effort", "cost"]].mean().groupby("method")
    rows = means.mean().assign(
        cost=means["cost"].agg(lambda costs: costs.mean(skipna=False)),
        compression=1 / means["density"].agg(gmean),
        settings=means.size(),
    )
    runs = runs.assign(
        above=runs["test_accuracy"] - runs["requirement"], tested=runs["test_accuracy"] >= runs["requirement"],
        dense=runs["density"] == 1, ended=runs["stopped"] == "budget spent",
    )  # fmt: skip
    sums = {name: (name, "sum") for name in ("tested", "dense", "ended")}
    rows = rows.join(runs.groupby("method").agg(runs=("seed", "size"), above=("above", "mean"), **sums))
    for own in (METHOD, PATIENT):
        counts = compared(table, own).groupby("method")[["wins", "pairs"]].sum()
        rows = rows.join(counts.add_prefix(f"{own}_"))
    rows = rows[rows["settings"] == len(runs[SETTING].drop_duplicates())].drop(columns="settings")
    return rows.sort_values("density").reset_index()


def markdown(table: pd.DataFrame) -> str:
    """Write ``overall`` as a Markdown table: densities in percent, accuracies above the requirement in points."""
    heads = (
        "method", "significant", "compression", "effort", "cost", "test − required", "met on test", "removed nothing",
        "ended by budget", f"`{METHOD}` wins", f"`{PATIENT}` wins",
    )  # fmt: skip
    rows = []
    for row in overall(table).to_dict("records"):
        wins = [(row[f"{own}_wins"], row[f"{own}_pairs"]) for own in (METHOD, PATIENT)]
        rows.append([
            row["method"] if row["method"] == BEST else f"`{row['method']}`", f"{100 * row['density']:.2f} %",
            f"{row['compression']:.1f}×", plus_minus(row["effort"], math.nan, ".2f", "×"),
            "not counted" if math.isnan(row["cost"]) else f"{row['cost']:.2f}×", f"{100 * row['above']:+.2f}",
            f"{row['tested']} of {row['runs']}", f"{row['dense']}", f"{row['ended']}",
            *(f"{won} of {pairs}" if pairs else "–" for won, pairs in wins),
        ])  # fmt: skip
    return markdown_table(heads, rows)


def joined(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with the rows of another study for the same benchmarks and requirements, none twice."""
    parts = [part for part in (table, more.merge(table[SETTING].drop_duplicates())) if len(part)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(KEYS) if parts else table


def pareto(points: pd.DataFrame, measure: str = "effort") -> pd.DataFrame:
    """Return the rows that no other beats in ``density`` and ``measure`` together, by rising density."""
    rows = points.dropna(subset=["density", measure]).sort_values(["density", measure])
    values = rows[measure].astype(float)
    return rows[values < values.cummin().shift(fill_value=math.inf)]


def front(runs: pd.DataFrame, measure: str = "effort") -> pd.DataFrame:
    """Return the Pareto front of one setting: of the means of the methods that reached the requirement in every run.

    ``measure`` is ``effort`` or ``cost``. A method that removed nothing stands for nothing but the unpruned training,
    and is left out.
    """
    runs = runs.assign(density=runs["density"].where(runs["reached"], 1.0))
    means = runs.groupby("method")[["density", measure]].mean()
    whole = runs.groupby("method")["reached"].all() & ((means["density"] < 1) | (means.index == "unpruned"))
    return pareto(means[whole], measure)


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """List the networks of ``PUBLISHED`` and ours of the same shape: compression ratio and test error.

    Ours come as mean ± standard deviation over seeds; a run that did not meet its requirement is not left out.
    """
    columns = ["network", "from", "compression", "test error"]
    rows = [
        (network, source, f"{ratio}×", f"{100 * error:.2f} %" if error else "–")
        for source, network, ratio, error in PUBLISHED
    ]
    table = table.assign(ratio=compression(table), error=100 * (1 - table["test_accuracy"]))
    ours = table[table["benchmark"].isin({network for _, network, _, _ in PUBLISHED})].groupby(["benchmark", "method"])
    for (network, method), runs in ours[["ratio", "error"]]:
        mean, sd = runs.mean(), runs.std()
        cells = (plus_minus(mean.ratio, sd.ratio, ".1f", "×"), plus_minus(mean.error, sd.error, ".2f", " %"))
        rows.append((network, f"here: {method}", *cells))
    return pd.DataFrame(rows, columns=columns).sort_values("network", kind="stable", ignore_index=True)
