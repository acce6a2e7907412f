"""The report's claims, one by one: what it says, what the records say, a test, a verdict.

    >>> from pruning.study.records import folder
    >>> judged = claims(pd.read_csv(folder("report") / "runs.csv"))
    >>> judged[2].says, judged[2].verdict
    ('The lower the required accuracy, the more is pruned', 'holds')

A claim is taken apart into parts, each with one value per seed. The last part takes the others
together, so that a claim has one test: runs of one seed share their images and first weights and
are paired, and the exact paired permutation test (Fisher 1935) flips the signs of the seeds'
differences in all 2^n ways. Five seeds have 32 ways: no one-sided p is smaller than 1/32, and p is
at most 0.05 only where all five point the same way. The range of five seeds is at the same time
the 1 - 2/32 = 93.75 % confidence interval of their median (sign test).

A claim holds when all of its parts hold, does not hold when none does, and holds in part
otherwise. A claim of how much can be pruned that does not hold as a number, since significantly
more is pruned here, goes further. A run that did not reach its requirement counts with density 1 and effort 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from pruning.analysis.statistics import probability, sign_flip
from pruning.analysis.wording import described, markdown_table, percent

METHOD = "iterative"  # the report's own method
BENCHMARKS = ("mnist-2c", "mnist-3c", "cifar10-2c", "cifar10-3c")

# What the report says of its own networks: synapses left, by benchmark and requirement, and the
# reductions over all of its benchmarks (smallest, largest, mean).
REPORTED = {("mnist-2c", 0.99): 0.40}
REPORTED_REDUCTIONS = (0.38, 0.79, 0.61)

LEVEL = 0.05  # the largest p, one-sided, that counts
ABOUT = 0.05  # so far from the report's fraction a value may lie and still be "about" it
LOSS = 0.005  # so small a loss of test accuracy counts as none

HOLDS, FURTHER, PARTLY, FAILS, UNKNOWN = "holds", "goes further", "holds in part", "does not hold", "not measured"


@dataclass(frozen=True)
class Part:
    """One comparison: ``values`` hold one number per seed, ``holds`` whether the claim is true of it."""

    name: str
    values: tuple[float, ...]
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim of the report and its verdict.

    ``kind`` is the values' unit: ``percent`` and ``points`` are fractions, ``factor`` a ratio whose
    mean is geometric. ``references`` names values to compare with. ``p`` is the one-sided p of the
    last part, ``against`` what it tests; ``missing`` what has no records yet. ``surpassed`` says that
    this test shows more to be pruned than the report says, ``construction`` that nothing else could come out;
    ``beside`` tells in words what else was measured.
    """

    name: str
    says: str
    quantity: str
    kind: str
    rule: str
    against: str
    references: tuple[tuple[str, float], ...] = ()
    parts: tuple[Part, ...] = ()
    p: Fraction | None = None
    missing: tuple[str, ...] = ()
    surpassed: bool = False
    construction: bool = False
    beside: str = ""

    @property
    def verdict(self) -> str:
        """``holds``, ``goes further``, ``holds in part``, ``does not hold`` or ``not measured``."""
        holding = sum(part.holds for part in self.parts)
        if not self.parts:
            return UNKNOWN
        if self.surpassed and holding < len(self.parts):
            return FURTHER
        return FAILS if not holding else HOLDS if holding == len(self.parts) else PARTLY

    @property
    def judged(self) -> str:
        """The verdict, and whether it follows from how the number is made."""
        return f"{self.verdict}, by construction" if self.construction and self.parts else self.verdict

    @property
    def measured(self) -> str:
        """The last part in words: mean over the seeds (smallest to largest), and how many parts hold."""
        if not self.parts:
            return f"no records of {', '.join(self.missing)}" if self.missing else "no records"
        holding = sum(part.holds for part in self.parts)
        text = f"{self.quantity}: {described(self.parts[-1].values, self.kind)}"
        if len(self.parts) > 1:
            text += f"; {holding} of {len(self.parts)} parts hold"
        text += f"; {self.beside}" if self.beside else ""
        return text + (f"; not measured: {', '.join(self.missing)}" if self.missing else "")

    @property
    def test(self) -> str:
        """The test in words: what is tested, and its p as a fraction of all sign flips."""
        if self.p is None:
            return "–"
        return f"{self.against}: p = {probability(self.p, len(self.parts[-1].values))}"


def claims(table: pd.DataFrame) -> tuple[Claim, ...]:
    """Judge all claims of the report by a table as ``tables.frame`` makes it.

    Only what is there is judged: a part needs all of its records, the whole of a claim the seeds
    that all of its parts have.
    """
    density = _pivot(table.assign(density=table["density"].where(table["reached"], 1.0)), "density")
    of_density = (_reductions(density), _significant(density), _requirement(density), _size(density, table))
    return (*of_density, _most(density), _effort(table), _accuracy(table))


def measured_on(titles: Mapping[str, str]) -> str:
    """Say which data stands behind which benchmarks: "mnist-2c, mnist-3c: MNIST; cifar10-2c: CIFAR-10 (JPEG copy)"."""
    order = [name for name in BENCHMARKS if name in titles] + sorted(set(titles) - set(BENCHMARKS))
    data = dict.fromkeys(titles[name] for name in order)
    return "; ".join(f"{', '.join(name for name in order if titles[name] == title)}: {title}" for title in data)


def markdown(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Write the README's table of claims; ``titles`` as ``tables.titles`` gives it."""
    heads = ("", "the report says", "measured here", "test over paired seeds", "verdict")
    judged = enumerate(claims(table), start=1)
    rows = [(f"{number}", one.says, one.measured, one.test, f"**{one.judged}**") for number, one in judged]
    measured = f"Measured on {measured_on(titles)}." if titles else "Nothing measured."
    return f"{markdown_table(heads, rows)}\n\n{measured}"


def _reductions(density: pd.DataFrame) -> Claim:
    reductions = 1 - density
    means, parts, p = reductions.mean(), [], None
    least, most, mean = REPORTED_REDUCTIONS
    smallest, largest, usual = map(percent, REPORTED_REDUCTIONS)
    if len(means):
        low, high = means.idxmin(), means.idxmax()
        parts = [
            Part(f"smallest: {_setting(low)}", _values(reductions[low]), bool(means[low] >= least - ABOUT)),
            Part(f"largest: {_setting(high)}", _values(reductions[high]), bool(means[high] <= most + ABOUT)),
        ]
    if len(together := reductions.dropna().mean(axis=1)):
        parts.append(Part("average of all", _values(together), _near(together, mean)))
        p = sign_flip(together - mean)
    rule = f"smallest at least {smallest}, largest at most {largest}, average {usual}"
    beyond = f"no reduction is below them and the average is above {usual}, p at most {LEVEL}"
    names = (f"the report's smallest, {smallest}", f"average, {usual}", f"and largest, {largest}")
    return Claim(
        name="reductions",
        says=f"Pruning removes {smallest} to {largest} of the synapses, {usual} on average",
        quantity="synapses removed, on average over benchmarks and requirements",
        kind="percent",
        rule=f"{rule}; each within {100 * ABOUT:.0f} points; it goes further where {beyond}",
        against=f"more than {usual} on average",
        references=tuple(zip(names, (least, mean, most))),
        parts=tuple(parts),
        p=p,
        missing=_missing(density),
        surpassed=p is not None and p <= LEVEL and parts[0].holds,
    )


def _significant(density: pd.DataFrame) -> Claim:
    ((place, value),) = REPORTED.items()
    values = density[place].dropna() if place in density else pd.Series(dtype=float)
    below = not len(values) or values.mean() <= value
    p = sign_flip(value - values if below else values - value) if len(values) else None
    return Claim(
        name="significant",
        says=f"{_setting(place)} has about {percent(value)} significant synapses",
        quantity="significant synapses",
        kind="percent",
        rule=(
            f"the range of the seeds comes within {100 * ABOUT:.0f} points of {percent(value)}; "
            f"it goes further where fewer are left, p at most {LEVEL}"
        ),
        against=f"{'fewer' if below else 'more'} than {percent(value)}",
        references=((f"the report's {percent(value)}", value),),
        parts=(Part(_setting(place), _values(values), _near(values, value)),) if len(values) else (),
        p=p,
        missing=() if len(values) else (_setting(place),),
        surpassed=below and p is not None and p <= LEVEL,
    )


def _requirement(density: pd.DataFrame) -> Claim:
    ratios = {}
    for benchmark in _names(density):
        for low, high in itertools.pairwise(sorted(density[benchmark].columns)):
            ratio = density[benchmark, high] / density[benchmark, low]
            ratios[f"{benchmark}, {percent(high)} over {percent(low)}"] = np.log(ratio)
    quantity = "synapses left at a requirement over those at the next lower one"
    return _directed("requirement", "The lower the required accuracy, the more is pruned", quantity, density, ratios)


def _size(density: pd.DataFrame, table: pd.DataFrame) -> Claim:
    sizes = table.groupby("benchmark")[["dataset", "synapses"]].first().reindex(_names(density))
    ratios = {}
    for _, part in sizes.groupby("dataset", sort=False):
        for small, big in itertools.pairwise(part.sort_values("synapses").index):
            for requirement in sorted(set(density[small].columns) & set(density[big].columns)):
                ratio = density[small, requirement] / density[big, requirement]
                ratios[f"{small} against {big}, {percent(requirement)}"] = np.log(ratio)
    quantity = "fraction left of the smaller network over that of the bigger"
    return _directed("size", "At equal accuracy, more of the bigger network is pruned", quantity, density, ratios)


def _most(density: pd.DataFrame) -> Claim:
    most, means = "cifar10-2c", _means(np.log(density))
    others = {name: value for name, value in means.items() if name != most and name in BENCHMARKS}
    ratios, together = {}, None
    if most in means and others:
        ratios = {f"{most} against {name}": means[most] - value for name, value in others.items()}
        together = means[most] - pd.concat(others, axis=1).max(axis=1, skipna=False)
    says = "CIFAR-10 on two convolutions keeps the largest fraction of its synapses"
    quantity = f"fraction left of {most} over the largest of the others (geometric means over requirements)"
    return _directed("most", says, quantity, density, ratios, together, whole="against the largest of the others")


def _effort(table: pd.DataFrame) -> Claim:
    # A run that never met its requirement was never pruned: it is the same training as without pruning.
    effort = _pivot(table.assign(effort=table["effort"].where(table["reached"], 1.0)), "effort")
    quantity = "iterations with pruning over those without"
    judged = _directed("effort", "Pruning raises the training effort", quantity, effort, _means(np.log(effort)))
    why = "it cannot be below 1×, as every pruned training contains an unpruned one"
    cost = _pivot(table.assign(cost=table["cost"].where(table["reached"], 1.0)), "cost")
    every = pd.concat(_means(np.log(cost)), axis=1).mean(axis=1, skipna=False).dropna() if len(cost.columns) else cost
    beside = (
        f"counted in images, evaluated ones included: {described(_values(np.exp(every)), 'factor')}"
        if len(every)
        else ""
    )
    return replace(judged, rule=f"{judged.rule}; {why}", construction=True, beside=beside)


def _accuracy(table: pd.DataFrame) -> Claim:
    change = (_pivot(table, "test_accuracy") - _pivot(table, "test_accuracy", "unpruned")).dropna(axis=1, how="all")
    margin = f"{100 * LOSS:g} points"
    quantity = "test accuracy of the pruned network less that of the unpruned one"
    rule = f"a mean loss below {margin} on every benchmark, and p at most {LEVEL} over all"
    about: dict[str, Any] = {"against": f"a loss below {margin}", "kind": "points", "bound": -LOSS, "rule": rule}
    references = (("no change", 0.0), (f"a loss of {margin}", -LOSS))
    says = "Pruning costs no accuracy"
    return _directed("accuracy", says, quantity, change, _means(change), references=references, **about)


def _directed(
    name: str, says: str, quantity: str, pivot: pd.DataFrame, effects: Mapping[str, pd.Series],
    together: pd.Series | None = None, *, kind: str = "factor", bound: float = 0.0, whole: str = "all together",
    against: str = "more than 1×", rule: str = f"above 1× in every comparison, and p at most {LEVEL} over all",
    references: tuple[tuple[str, float], ...] = (("no difference", 1.0),),
) -> Claim:  # fmt: skip
    """Judge the claim that all ``effects`` (one value per seed; logarithms of factors) lie above ``bound``."""
    effects = {name: present for name, effect in effects.items() if len(present := effect.dropna())}
    shown = np.exp if kind == "factor" else np.asarray
    parts = [Part(name, _values(shown(effect)), bool(effect.mean() > bound)) for name, effect in effects.items()]
    p = None
    if effects:
        together = pd.concat(effects, axis=1).mean(axis=1, skipna=False) if together is None else together
        if len(together := together.dropna()):
            p = sign_flip(together - bound)
            parts.append(Part(whole, _values(shown(together)), bool(p <= LEVEL)))
    return Claim(name, says, quantity, kind, rule, against, references, tuple(parts), p, _missing(pivot))


def _pivot(table: pd.DataFrame, value: str, method: str = METHOD) -> pd.DataFrame:
    """Return one method's ``value``: a row per seed, a column per benchmark and requirement, the report's first."""
    wide = table[table["method"] == method].pivot(index="seed", columns=["benchmark", "requirement"], values=value)
    known = {name: number for number, name in enumerate(BENCHMARKS)}
    return wide[sorted(wide.columns, key=lambda key: (known.get(key[0], math.inf), *key))].astype(float)


def _names(pivot: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(pivot.columns.get_level_values(0)))


def _means(pivot: pd.DataFrame) -> dict[str, pd.Series]:
    """Return each benchmark's mean over its requirements, of the seeds that have all of them."""
    return {name: pivot[name].mean(axis=1, skipna=False) for name in _names(pivot)}


def _missing(pivot: pd.DataFrame) -> tuple[str, ...]:
    """Name the benchmarks of the report without records, where the study has any of them."""
    present = set(_names(pivot))
    return tuple(name for name in BENCHMARKS if name not in present) if present & set(BENCHMARKS) else ()


def _near(values: pd.Series, value: float) -> bool:
    return bool(values.min() - ABOUT <= value <= values.max() + ABOUT)


def _setting(place: tuple[str, float]) -> str:
    return f"{place[0]} at {percent(place[1])}"


def _values(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers if not math.isnan(number))
