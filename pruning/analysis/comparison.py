"""What the study's own prune control is worth: beside every other method, and against its targets.

    rows = compared(table)              # density, effort, test accuracy, and in how many seeds it wins
    rows = overall(table)               # the same over all benchmarks and requirements
    for target in targets(table, found):
        print(target.what, target.goal, target.measured, target.verdict)

Runs of one seed share their images and first weights, so methods are compared seed by seed. A run
that did not meet its requirement counts with density 1 and has no effort.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from pruning.analysis.claims import BENCHMARKS, REPORTED_REDUCTIONS, formatted, percent

METHOD = "adaptive"  # the study's own; its variants and ablations are named after it
PATIENT = "adaptive-patient"  # the same control, given more training
TIRELESS = "adaptive-tireless"  # and very much: the method of the study `smallest`
BEST = "best other"
SETTING = ["benchmark", "requirement"]
SEEDS = 5  # so many a target needs
REPORTED_DENSITY = 1 - REPORTED_REDUCTIONS[2]  # what the report leaves, on average

REACHED, MISSED, OPEN, UNKNOWN = "reached", "not reached", "open", "not measured"

# Networks of the literature on pruning, MNIST: times fewer weights, and test error. As in the table of the authors of
# SparseVD, https://github.com/bayesgroup/variational-dropout-sparsifies-dnn, but for LeNet-5 by Guo et al., which
# stands there as 111 and in their own abstract, https://arxiv.org/abs/1608.04493, as 108, and SNIP: up to 98 % and 99 % of
# the weights, https://arxiv.org/abs/1810.02340, the errors at that not at hand.
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
    """Whether a method is another one that prunes: not ours, and not a variant or an ablation of ours."""
    return method not in (METHOD, "unpruned") and not method.startswith(f"{METHOD}-")


def rivals(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table but those of our variants and ablations: ``adaptive``, ``adaptive-patient`` and the others."""
    ours = table["method"].isin((METHOD, PATIENT, "unpruned"))
    return table[ours | table["method"].map(other).astype(bool)]


def compared(table: pd.DataFrame, own: str = METHOD) -> pd.DataFrame:
    """Every pruning method beside the method ``own``: a row a benchmark, requirement and method.

    Columns: ``runs``, ``reached``; ``density``, ``effort`` (of those that reached it),
    ``test_accuracy``, each with its standard deviation over seeds as ``..._sd``; ``wins``, ``ties``
    and ``pairs``: seeds in which ``own`` left fewer synapses than this method, as many, and all
    that both have. The method ``BEST`` is at each seed the sparsest of the others.
    """
    pruned = _with_best(table)
    values = {"density": "density", "effort": "effort", "test_accuracy": "test_accuracy"}
    columns = {"runs": ("seed", "size"), "reached": ("reached", "sum")}
    for name in values:
        columns |= {name: (name, "mean"), f"{name}_sd": (name, "std")}
    left = pruned[pruned["method"] == own].set_index([*SETTING, "seed"])["density"].rename("own")
    paired = pruned[pruned["method"] != own].join(left, on=[*SETTING, "seed"])
    paired = paired.assign(
        wins=paired["own"] < paired["density"], ties=paired["own"] == paired["density"], pairs=paired["own"].notna()
    )
    groups = [*SETTING, "method"]
    counts = paired.groupby(groups)[["wins", "ties", "pairs"]].sum()
    return pruned.groupby(groups).agg(**columns).join(counts.astype("Int64")).reset_index()


def _with_best(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that prune, and once more, as the method ``BEST``, the sparsest of the others at each seed."""
    pruned = table[table["method"] != "unpruned"]
    pruned = pruned.assign(density=pruned["density"].where(pruned["reached"], 1.0))
    others = pruned[pruned["method"].map(other).astype(bool)].sort_values([*SETTING, "seed", "density", "method"])
    return pd.concat([pruned, others.drop_duplicates([*SETTING, "seed"]).assign(method=BEST)])


def worded(rows: pd.DataFrame) -> pd.DataFrame:
    """``compared`` in words, the sparsest first: mean ± standard deviation, and wins of the seeds."""
    rows = rows.sort_values([*SETTING, "density", "method"])

    def spread(name: str, form: str, scale: float, unit: str) -> list[str]:
        pairs = zip(scale * rows[name], scale * rows[f"{name}_sd"])
        return ["–" if math.isnan(mean) else f"{mean:{form}}" + ("" if math.isnan(sd) else f" ± {sd:{form}}") + unit
                for mean, sd in pairs]

    wins = [
        "–" if pd.isna(row.pairs) or not row.pairs
        else f"{row.wins} of {row.pairs}" + (f", {row.ties} tied" if row.ties else "")
        for row in rows.itertuples()
    ]
    return pd.DataFrame({
        "benchmark": rows["benchmark"], "requirement": [percent(value) for value in rows["requirement"]],
        "method": rows["method"], "met": [f"{row.reached} of {row.runs}" for row in rows.itertuples()],
        "significant": spread("density", ".2f", 100, " %"), "effort": spread("effort", ".2f", 1, "×"),
        "test accuracy": spread("test_accuracy", ".2f", 100, " %"), f"{METHOD} wins": wins,
    }).reset_index(drop=True)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Every method that was measured in all settings, over all of them: a row a method, the sparsest first.

    A setting is a benchmark and a requirement. Columns: ``method``; ``density`` and ``effort``, the mean over settings of
    the mean over seeds (as in ``compared``); ``compression``, the geometric mean over settings of one over that density;
    ``above``, the test accuracy less the requirement (mean); ``runs``, and of them ``tested``, whose test accuracy meets
    the requirement too, ``dense``, that removed nothing, and ``ended``, that the budget of iterations ended; and for each
    of ``adaptive`` and ``adaptive-patient`` the ``wins`` and ``pairs`` against this method, as ``adaptive_wins``.
    """
    runs = _with_best(table)
    means = runs.groupby([*SETTING, "method"])[["density", "effort"]].mean().groupby("method")
    found = means.mean().assign(
        compression=means["density"].agg(lambda density: math.exp(-density.map(math.log).mean())), settings=means.size()
    )
    runs = runs.assign(
        above=runs["test_accuracy"] - runs["requirement"], tested=runs["test_accuracy"] >= runs["requirement"],
        dense=runs["density"] == 1, ended=runs["stopped"] == "budget spent",
    )
    sums = {name: (name, "sum") for name in ("tested", "dense", "ended")}
    found = found.join(runs.groupby("method").agg(runs=("seed", "size"), above=("above", "mean"), **sums))
    for own in (METHOD, PATIENT):
        counts = compared(table, own).groupby("method")[["wins", "pairs"]].sum()
        found = found.join(counts.add_prefix(f"{own}_"))
    found = found[found["settings"] == len(runs[SETTING].drop_duplicates())].drop(columns="settings")
    return found.sort_values("density").reset_index()


def table_of_methods(table: pd.DataFrame) -> str:
    """``overall`` in words, as Markdown: densities in percent, test accuracy less requirement in percentage points."""
    heads = (
        "method", "significant", "compression", "effort", "test − required", "met on test", "removed nothing",
        "ended by budget", f"`{METHOD}` wins", f"`{PATIENT}` wins",
    )
    lines = [heads, ["---"] * len(heads)]
    for row in overall(table).to_dict("records"):
        wins = [(row[f"{own}_wins"], row[f"{own}_pairs"]) for own in (METHOD, PATIENT)]
        lines.append([
            row["method"] if row["method"] == BEST else f"`{row['method']}`", f"{100 * row['density']:.2f} %",
            f"{row['compression']:.1f}×", "–" if math.isnan(row["effort"]) else f"{row['effort']:.2f}×",
            f"{100 * row['above']:+.2f}", f"{row['tested']} of {row['runs']}", f"{row['dense']}", f"{row['ended']}",
            *(f"{won} of {pairs}" if pairs else "–" for won, pairs in wins),
        ])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def joined(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the rows of another study for the same benchmarks and requirements, none twice."""
    keys = [*SETTING, "method", "seed"]
    here = set(table[SETTING].itertuples(index=False, name=None))
    same = [place in here for place in more[SETTING].itertuples(index=False, name=None)]
    parts = [part for part in (table, more[same]) if len(part)]
    return pd.concat(parts, ignore_index=True).drop_duplicates(keys) if parts else table


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other beats in ``density`` and ``effort`` together, by rising density."""
    rows = points.dropna(subset=["density", "effort"]).sort_values(["density", "effort"])
    effort = rows["effort"].astype(float)
    return rows[effort < effort.cummin().shift(fill_value=math.inf)]


def front(runs: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front of one setting: ``pareto`` of the methods' means, of those that reached the requirement in every run.

    A method that removed nothing stands for nothing but the unpruned training, and is left out.
    """
    means = runs.assign(density=runs["density"].where(runs["reached"], 1.0)).groupby("method")[["density", "effort"]].mean()
    whole = runs.groupby("method")["reached"].all() & ((means["density"] < 1) | (means.index == "unpruned"))
    return pareto(means[whole])


def first_as_sparse(record: Mapping, density: float = REPORTED_DENSITY) -> float | None:
    """Effort at which a run first had a model of at most ``density`` that met the requirement.

    From the record's trajectory, which is thinned in long runs, and the delivered model: then an upper bound. None where
    there was no such model, or where the requirement is never met without pruning.
    """
    seen, result = record["trajectory"], record["result"]
    unpruned = result["iterations_unpruned"]
    for iteration, accuracy, left in zip(seen["iteration"], seen["accuracy"], seen["density"]):
        if left <= density and accuracy >= record["run"]["requirement"]:
            return iteration / unpruned if unpruned else None
    return result["effort"] if result["reached"] and result["density"] <= density else None


@dataclass(frozen=True)
class Target:
    """A number that a method is to reach in the mean over ``SEEDS`` seeds, and what became of it.

    ``kind`` is the unit as in ``claims``, or ``count``. ``values`` holds one number a seed;
    ``missed`` counts runs that have none because they did not get there, ``missing`` names what has
    no records yet.
    """

    what: str
    bound: float
    kind: str
    least: bool = False
    values: tuple[float, ...] = ()
    missed: int = 0
    missing: tuple[str, ...] = ()

    @property
    def goal(self) -> str:
        """The bound in words: at most 4 %."""
        worded = {"percent": percent(self.bound), "factor": f"{self.bound:g}×"}.get(self.kind, f"{self.bound:,}")
        return f"at {'least' if self.least else 'most'} {worded}"

    @property
    def mean(self) -> float | None:
        """Arithmetic mean over the seeds, None where there is no value."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def measured(self) -> str:
        """Mean (smallest to largest), and what is missing."""
        notes = []
        if self.missed:
            notes.append(f"{self.missed} did not get there")
        if self.missing:
            notes.append(f"no records of {', '.join(self.missing)}")
        if not self.values:
            return "; ".join(notes) or "no records"
        form = {"count": lambda value, _: f"{value:,.0f}"}.get(self.kind, formatted)
        mean, *ends = (form(value, self.kind) for value in (self.mean, min(self.values), max(self.values)))
        return "; ".join([f"{mean} ({ends[0]} to {ends[1]}, {len(self.values)} seeds)", *notes])

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached``, ``open`` while records are missing, ``not measured`` without any."""
        if not self.values and not self.missed:
            return UNKNOWN
        if self.missing or len(self.values) + self.missed < SEEDS:
            return OPEN
        within = self.values and (self.mean >= self.bound if self.least else self.mean <= self.bound)
        return REACHED if within and not self.missed else MISSED


def targets(table: pd.DataFrame, found: Iterable[Mapping], method: str = METHOD) -> tuple[Target, ...]:
    """All targets, judged for a method by a study's table and the records it was made of."""
    own = table[table["method"] == method]
    records = {_place(record["run"]): record for record in found if record["run"]["method"] == method}
    sparse = [first_as_sparse(records[_place(row)]) for row in own.to_dict("records")]
    own = own.assign(
        density=own["density"].where(own["reached"], 1.0), effort=own["effort"].where(own["reached"]),
        reduction=1 - own["density"].where(own["reached"], 1.0), sparse=pd.array(sparse, dtype="Float64"),
    )
    asked = set(table[table["benchmark"].isin(BENCHMARKS)][SETTING].itertuples(index=False, name=None))
    absent = tuple(name for name in BENCHMARKS if name not in set(own["benchmark"]))
    lacking = sorted(asked - set(own[SETTING].itertuples(index=False, name=None)))
    missing = absent + tuple(f"{name} at {percent(value)}" for name, value in lacking if name not in absent)
    found = []
    for benchmark, bound in (("mnist-2c", 0.04), ("mnist-3c", 0.02)):
        here = own.query("benchmark == @benchmark and requirement == 0.99")
        what = f"{benchmark} at 99 %"
        gap = () if len(here) else (what,)
        found.append(_target(here, "density", f"{what}: significant synapses", bound, "percent", gap))
        found.append(_target(here, "effort", f"{what}: training effort", 2, "factor", gap))
    every = own[own["benchmark"].isin(BENCHMARKS)]
    mean = "all benchmarks and requirements, on average"
    found.append(_target(every, "reduction", f"{mean}: synapses removed", 0.96, "percent", missing, least=True))
    found.append(_target(every, "effort", f"{mean}: training effort", 2, "factor", missing))
    as_sparse = f"{mean}: effort to the first network as sparse as the report's ({percent(REPORTED_REDUCTIONS[2])} removed)"
    found.append(_target(every, "sparse", as_sparse, 1, "factor", missing))
    return (*found, smallest(own))


def _target(
    rows: pd.DataFrame, name: str, what: str, bound: float, kind: str, missing: tuple[str, ...], least: bool = False
) -> Target:
    settings = rows[SETTING].drop_duplicates().shape[0]
    whole = rows.groupby("seed").filter(lambda part: len(part) == settings)
    means = whole.groupby("seed")[name].mean().dropna()
    values = tuple(float(value) for value in means)
    return Target(what, bound, kind, least, values, int(whole[name].isna().sum()), missing)


def smallest(own: pd.DataFrame, benchmarks: tuple[str, ...] = ("mnist-2c", "mnist-3c")) -> Target:
    """The fewest weights of a seed's MNIST networks that classify 99 % of the test images, in one method's table."""
    here = own[own["benchmark"].isin(benchmarks)]
    good = here[here["reached"] & (here["test_accuracy"] >= 0.99)]
    least = good.groupby("seed")["significant"].min()
    missing = tuple(name for name in benchmarks if name not in set(here["benchmark"]))
    return Target(
        f"{' or '.join(benchmarks)}: weights of the smallest network with a test accuracy of 99 %", 1000, "count",
        values=tuple(float(value) for value in least), missed=here["seed"].nunique() - len(least), missing=missing,
    )


def _place(run: Mapping) -> tuple:
    return tuple(run[name] for name in (*SETTING, "seed"))


def markdown(table: pd.DataFrame, found: Iterable[Mapping], tireless: pd.DataFrame | None = None) -> str:
    """The README's table of targets: what the study's own method measured, and the same given more training.

    ``tireless`` is the table of the study `smallest`, told of below.
    """
    found = list(found)
    columns = [targets(table, found, method) for method in (METHOD, PATIENT)]
    lines = [f"| | target | `{METHOD}` | verdict | `{PATIENT}` | verdict |", "|---|---|---|---|---|---|"]
    for judged in zip(*columns):
        cells = " | ".join(f"{target.measured} | **{target.verdict}**" for target in judged)
        lines.append(f"| {judged[0].what} | {judged[0].goal} | {cells} |")
    if tireless is not None:
        lines += ["", told_smallest(tireless)]
    return "\n".join(lines)


def told_smallest(tireless: pd.DataFrame) -> str:
    """What the study `smallest` found, in words: the target of the smallest network, and each requirement's networks."""
    own = tireless[tireless["method"] == TIRELESS]
    judged = smallest(own, tuple(own["benchmark"].unique()))
    parts = []
    for (benchmark, requirement), runs in own[own["reached"]].groupby(SETTING):
        weights, tested = runs["significant"], 100 * runs["test_accuracy"]
        parts.append(
            f"{benchmark} at {percent(requirement)}, {weights.mean():,.0f} weights ({weights.min():,} to {weights.max():,}), "
            f"{100 * (weights / runs['synapses']).mean():.2f} % of the synapses, "
            f"with {tested.mean():.2f} % of the test images right ({tested.min():.2f} % to {tested.max():.2f} %), "
            f"effort {runs['effort'].mean():.1f}×"
        )
    return (
        f"`{TIRELESS}`, the same control given far more training (study `smallest`): {'; '.join(parts)}. "
        f"The target, {judged.what}, {judged.goal}: {judged.measured}, **{judged.verdict}**. It takes from the networks of "
        "each seed the smallest with that test accuracy, so it is chosen by test images, where the networks themselves are not."
    )


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """The networks of ``PUBLISHED`` and ours of the same shape: compression ratio and test error.

    Ours come as mean ± standard deviation over seeds; a run that did not meet its requirement is not left out.
    """
    rows = [
        {"network": network, "from": source, "compression": f"{ratio}×", "test error": f"{100 * error:.2f} %" if error else "–"}
        for source, network, ratio, error in PUBLISHED
    ]
    networks = {network for _, network, _, _ in PUBLISHED}
    for (network, method), runs in table[table["benchmark"].isin(networks)].groupby(["benchmark", "method"]):
        ratios, errors = runs["synapses"] / runs["significant"], 100 * (1 - runs["test_accuracy"])
        cells = [f"{values.mean():{form}}" + (f" ± {values.std():{form}}" if len(runs) > 1 else "") + unit
                 for values, form, unit in ((ratios, ".1f", "×"), (errors, ".2f", " %"))]
        rows.append({"network": network, "from": f"here: {method}", "compression": cells[0], "test error": cells[1]})
    return pd.DataFrame(rows).sort_values("network", kind="stable", ignore_index=True)
