"""The targets of the study's own prune control, and what became of each.

>>> target = Target("weights", 1000, "count", values=(900.0, 940.0))
>>> target.goal, target.measured, target.verdict
('at most 1,000', '920 (900 to 940, 2 seeds)', 'open')
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from pruning.analysis.claims import BENCHMARKS, REPORTED_REDUCTIONS
from pruning.analysis.comparison import METHOD, PATIENT, SETTING, TIRELESS, other
from pruning.analysis.wording import formatted, markdown_table, percent

SEEDS = 5  # so many a target needs
REPORTED_DENSITY = 1 - REPORTED_REDUCTIONS[2]  # what the report leaves, on average

REACHED, MISSED, OPEN, UNKNOWN = "reached", "not reached", "open", "not measured"


def first_as_sparse(record: Mapping, density: float = REPORTED_DENSITY) -> float | None:
    """Return the effort at which a run first had a model of at most ``density`` that met the requirement.

    From the record's trajectory, which is thinned in long runs, and the delivered model: then an upper bound. None
    where there was no such model, or where the requirement is never met without pruning.
    """
    seen, result = record["trajectory"], record["result"]
    unpruned = result["iterations_unpruned"]
    for iteration, accuracy, left in zip(seen["iteration"], seen["accuracy"], seen["density"]):
        if left <= density and accuracy >= record["run"]["requirement"]:
            return iteration / unpruned if unpruned else None
    return result["effort"] if result["reached"] and result["density"] <= density else None


@dataclass(frozen=True)
class Target:
    """A bound on a method's mean over ``SEEDS`` seeds, and what was measured.

    ``kind`` is the unit as in ``claims``, or ``count``. ``values`` holds one number per seed;
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

    def _formatted(self, number: float) -> str:
        """Write a number; a small count with a decimal, so that a mean that misses its bound is not rounded to it."""
        return f"{number:,.{1 if self.bound < 100 else 0}f}" if self.kind == "count" else formatted(number, self.kind)

    @property
    def mean(self) -> float:
        """Arithmetic mean over the seeds, not a number where there is no value."""
        return sum(self.values) / len(self.values) if self.values else math.nan

    @property
    def measured(self) -> str:
        """Mean (smallest to largest), and what is missing."""
        parts = []
        if self.values:
            numbers = (self.mean, min(self.values), max(self.values))
            mean, least, most = map(self._formatted, numbers)
            parts.append(f"{mean} ({least} to {most}, {len(self.values)} seeds)")
        if self.missed:
            parts.append(f"{self.missed} did not get there")
        if self.missing:
            parts.append(f"no records of {', '.join(self.missing)}")
        return "; ".join(parts) or "no records"

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached``, ``open`` while records are missing, ``not measured`` without any."""
        if not self.values and not self.missed:
            return UNKNOWN
        if self.missing or len(self.values) + self.missed < SEEDS:
            return OPEN
        within = self.mean >= self.bound if self.least else self.mean <= self.bound
        return REACHED if within and not self.missed else MISSED


# By method: the highest training cost (a ratio to unpruned), the largest fraction of synapses left on each MNIST
# benchmark at 99 %, and the smallest mean fraction removed.
BOUNDS = {
    METHOD: {"cost": 2, "mnist-2c": 0.06, "mnist-3c": 0.02, "reduction": 0.97},
    PATIENT: {"cost": 5, "mnist-2c": 0.03, "mnist-3c": 0.02, "reduction": 0.983},
}


def targets(table: pd.DataFrame, records: Iterable[Mapping], method: str = METHOD) -> tuple[Target, ...]:
    """Judge all targets for a method of ``BOUNDS`` by a table and the records of the method's own study.

    The table may hold the runs of other methods besides, which one target compares with.
    """
    bounds, own = BOUNDS[method], table[table["method"] == method]
    by_place = {_place(record["run"]): record for record in records if record["run"]["method"] == method}
    sparse = [first_as_sparse(by_place[_place(row)]) for row in own.to_dict("records")]
    density = own["density"].where(own["reached"], 1.0)
    own = own.assign(
        density=density, reduction=1 - density, cost=own["cost"].where(own["reached"]).astype(float),
        sparse=pd.array(sparse, dtype="Float64"),
    )  # fmt: skip
    required = set(table[table["benchmark"].isin(BENCHMARKS)][SETTING].itertuples(index=False, name=None))
    absent = tuple(name for name in BENCHMARKS if name not in set(own["benchmark"]))
    lacking = sorted(required - set(own[SETTING].itertuples(index=False, name=None)))
    missing = absent + tuple(f"{name} at {percent(value)}" for name, value in lacking if name not in absent)
    judged = []
    for benchmark in ("mnist-2c", "mnist-3c"):
        here = own.query("benchmark == @benchmark and requirement == 0.99")
        what = f"{benchmark} at 99 %"
        gap = () if len(here) else (what,)
        judged.append(_target(here, "density", f"{what}: significant synapses", bounds[benchmark], "percent", gap))
        judged.append(_target(here, "cost", f"{what}: training cost", bounds["cost"], "factor", gap))
    every = own[own["benchmark"].isin(BENCHMARKS)]
    mean = "all benchmarks and requirements, on average"
    as_sparse = f"effort to the first network as sparse as the report's ({percent(REPORTED_REDUCTIONS[2])} removed)"
    return (
        *judged,
        _target(every, "reduction", f"{mean}: synapses removed", bounds["reduction"], "percent", missing, least=True),
        _target(every, "cost", f"{mean}: training cost", bounds["cost"], "factor", missing),
        _target(every, "sparse", f"{mean}: {as_sparse}", 1.05, "factor", missing),
        _wins(every, table, missing),
        smallest(own),
    )


def _wins(own: pd.DataFrame, table: pd.DataFrame, missing: tuple[str, ...]) -> Target:
    """Count a seed's settings in which a method left fewer synapses than the best other one, at a lower cost."""
    what = "of twelve settings, those with fewer synapses and a lower cost than the sparsest other, chosen in hindsight"
    place = [*SETTING, "seed"]
    others = table[table["method"].map(other).astype(bool)]
    others = others.assign(density=others["density"].where(others["reached"], 1.0))
    best = others.sort_values([*place, "density", "method"]).drop_duplicates(place)
    pairs = own.merge(best[[*place, "density", "cost", "reached"]], on=place, how="left", suffixes=("", "_other"))
    if len(own) and pairs["density_other"].isna().any():
        missing = (*missing, "other methods")
    # One that did not get there has no cost that could be lower.
    cost = pairs["cost_other"].astype(float).where(pairs["reached_other"].eq(True), math.inf)
    if (pairs["cost"].isna() & pairs["reached"]).any() or cost.isna().any():
        missing = (*missing, "images evaluated")
    if missing or not len(own):
        return Target(what, 9, "count", True, missing=missing)
    won = (pairs["density"] < pairs["density_other"]) & (pairs["cost"] < cost)
    whole = pairs.groupby("seed")["seed"].transform("size") == pairs[SETTING].drop_duplicates().shape[0]
    values = tuple(float(value) for value in won[whole].groupby(pairs["seed"]).sum())
    return Target(what, 9, "count", True, values)


def _target(
    rows: pd.DataFrame, name: str, what: str, bound: float, kind: str, missing: tuple[str, ...], least: bool = False
) -> Target:
    settings = rows[SETTING].drop_duplicates().shape[0]
    whole = rows.groupby("seed").filter(lambda part: len(part) == settings)
    if name == "cost" and (whole["cost"].isna() & whole["reached"]).any():
        return Target(what, bound, kind, least, missing=(*missing, "images evaluated"))
    values = tuple(float(value) for value in whole.groupby("seed")[name].mean().dropna())
    return Target(what, bound, kind, least, values, int(whole[name].isna().sum()), missing)


def smallest(own: pd.DataFrame, benchmarks: tuple[str, ...] = ("mnist-2c", "mnist-3c")) -> Target:
    """Judge the fewest weights with which a seed's MNIST network of one method classifies 99 % of the test images."""
    here = own[own["benchmark"].isin(benchmarks)]
    good = here[here["reached"] & (here["test_accuracy"] >= 0.99)]
    least = good.groupby("seed")["significant"].min()
    missing = tuple(name for name in benchmarks if name not in set(here["benchmark"]))
    return Target(
        f"{' or '.join(benchmarks)}: weights of the smallest network with a test accuracy of 99 %", 1000, "count",
        values=tuple(float(value) for value in least), missed=here["seed"].nunique() - len(least), missing=missing,
    )  # fmt: skip


def _place(run: Mapping) -> tuple:
    return tuple(run[name] for name in (*SETTING, "seed"))


def markdown(table: pd.DataFrame, records: Iterable[Mapping], tireless: pd.DataFrame | None = None) -> str:
    """Write the README's table of targets: what the study's own method measured, and the same given more training.

    ``tireless`` is the table of the study `smallest`, summarized below it.
    """
    records = list(records)
    rows = [
        (judged[0].what, *(cell for one in judged for cell in (one.goal, one.measured, f"**{one.verdict}**")))
        for judged in zip(*(targets(table, records, method) for method in (METHOD, PATIENT)))
    ]
    text = markdown_table(("", "target", f"`{METHOD}`", "verdict", "target", f"`{PATIENT}`", "verdict"), rows)
    return text if tireless is None else f"{text}\n\n{smallest_summary(tireless)}"


def smallest_summary(tireless: pd.DataFrame) -> str:
    """Summarize the study `smallest`: the target of the smallest network, and each requirement's networks."""
    own = tireless[tireless["method"] == TIRELESS]
    judged = smallest(own, tuple(own["benchmark"].unique()))
    parts = []
    for (benchmark, requirement), runs in own[own["reached"]].groupby(SETTING):
        weights, tested = runs["significant"], 100 * runs["test_accuracy"]
        parts.append(
            f"{benchmark} at {percent(requirement)}, "
            f"{weights.mean():,.0f} weights ({weights.min():,} to {weights.max():,}), "
            f"{100 * (weights / runs['synapses']).mean():.2f} % of the synapses, "
            f"with {tested.mean():.2f} % of the test images right ({tested.min():.2f} % to {tested.max():.2f} %), "
            f"effort {runs['effort'].mean():.1f}×"
        )
    return (
        f"`{TIRELESS}`, the same control given far more training (study `smallest`): {'; '.join(parts)}. "
        f"The target, {judged.what}, {judged.goal}: {judged.measured}, **{judged.verdict}**. It takes from the "
        "networks of each seed the smallest with that test accuracy, so it is chosen by test images, where the "
        "networks themselves are not."
    )
