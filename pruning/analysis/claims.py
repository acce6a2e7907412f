"""The report's claims, one by one: what it says, what the records say, a test, a verdict.

    for claim in claims(frame(found)):
        print(claim.says, claim.measured, claim.test, claim.verdict)

A claim is taken apart into parts, each with one value a seed. The last part takes the others
together, so that a claim has one test: runs of one seed share their images and first weights and
are paired, and the exact paired permutation test (Fisher 1935) flips the signs of the seeds'
differences in all 2^n ways. Five seeds have 32 ways: no one-sided p is smaller than 1/32, and p is
at most 0.05 only where all five point the same way. The range of five seeds is at the same time
the 1 - 2/32 = 93.75 % confidence interval of their median (sign test).

A claim holds when all of its parts hold, does not hold when none does, and holds in part
otherwise. A run that did not reach its requirement counts with density 1 and effort 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

METHOD = "iterative"  # the report's own method
BENCHMARKS = ("mnist-2c", "mnist-3c", "cifar10-2c", "cifar10-3c")

# What the report says of its own networks: synapses left, by benchmark and requirement, and the
# reductions over all of its benchmarks (smallest, largest, mean).
REPORTED = {("mnist-2c", 0.99): 0.40}
REPORTED_REDUCTIONS = (0.38, 0.79, 0.61)

LEVEL = 0.05  # the largest p, one-sided, that counts
ABOUT = 0.05  # so far from the report's fraction a value may lie and still be "about" it
LOSS = 0.005  # so small a loss of test accuracy counts as none

HOLDS, PARTLY, FAILS, UNKNOWN = "holds", "holds in part", "does not hold", "not measured"


@dataclass(frozen=True)
class Part:
    """One comparison: ``values`` hold one number a seed, ``holds`` whether the claim is true of it."""

    name: str
    values: tuple[float, ...]
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim of the report and what became of it.

    ``kind`` is the values' unit: ``percent`` and ``points`` are fractions, ``factor`` a ratio whose
    mean is geometric. ``references`` names values to compare with. ``p`` is the one-sided p of the
    last part, ``against`` what it tests; ``missing`` what has no records yet.
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

    @property
    def verdict(self) -> str:
        """``holds``, ``holds in part``, ``does not hold`` or ``not measured``, from the parts alone."""
        holding = sum(part.holds for part in self.parts)
        if not self.parts:
            return UNKNOWN
        return FAILS if not holding else HOLDS if holding == len(self.parts) else PARTLY

    @property
    def measured(self) -> str:
        """The last part in words: mean over the seeds (smallest to largest), and how many parts hold."""
        if not self.parts:
            return f"no records of {', '.join(self.missing)}" if self.missing else "no records"
        last, holding = self.parts[-1], sum(part.holds for part in self.parts)
        text = f"{self.quantity}: {described(last.values, self.kind)}"
        if len(self.parts) > 1:
            text += f"; {holding} of {len(self.parts)} parts hold"
        return text + (f"; not measured: {', '.join(self.missing)}" if self.missing else "")

    @property
    def test(self) -> str:
        """The test in words: what is tested, and its p as a fraction of all sign flips."""
        if self.p is None:
            return "–"
        return f"{self.against}: p = {probability(self.p, len(self.parts[-1].values))}"


def sign_flip(differences: Iterable[float]) -> Fraction:
    """One-sided p of the exact paired permutation test that the mean difference is above zero.

    ``differences`` are those of n pairs, here one a seed: the share of all 2^n sign flips whose
    mean is at least the one found. Its smallest value is 1 / 2^n. Raises ``ValueError`` where there
    is no pair, a value that is no number, or more than 20 pairs.
    """
    values = np.asarray(list(differences), dtype=float)
    if not 0 < len(values) <= 20 or not np.isfinite(values).all():
        raise ValueError(f"the test takes 1 to 20 finite differences, got {values.tolist()}")
    sums = np.array(list(itertools.product((1, -1), repeat=len(values)))) @ values
    # Flips that give the same mean but for rounding count as equal.
    return Fraction(int((sums >= values.sum() - 1e-12 * np.abs(values).sum()).sum()), 2 ** len(values))


def probability(p: Fraction, seeds: int) -> str:
    """p as a count of sign flips: ``2/32``, not ``1/16``."""
    return f"{p * 2**seeds}/{2**seeds}"


def average(values: Iterable[float], kind: str) -> float:
    """Mean over seeds: geometric for factors."""
    found = np.asarray(list(values), dtype=float)
    return float(np.exp(np.log(found).mean()) if kind == "factor" else found.mean())


def formatted(value: float, kind: str) -> str:
    """A value with its unit: 6.9 %, 2.7×, +0.12 points."""
    if kind == "factor":
        return f"{value:.2f}×"
    return f"{100 * value:.1f} %" if kind == "percent" else f"{100 * value:+.2f} points"


def percent(fraction: float) -> str:
    """A fraction as the report gives it: 38 %."""
    return f"{100 * fraction:g} %"


def described(values: Iterable[float], kind: str) -> str:
    """Mean over seeds (smallest to largest)."""
    found = list(values)
    least, most = formatted(min(found), kind), formatted(max(found), kind)
    return f"{formatted(average(found, kind), kind)} ({least} to {most})"


def claims(table: pd.DataFrame) -> tuple[Claim, ...]:
    """All claims of the report, judged by a table as ``results.frame`` makes it.

    Only what is there is judged: a part needs all of its records, the whole of a claim the seeds
    that all of its parts have.
    """
    left = _pivot(table.assign(density=table["density"].where(table["reached"], 1.0)), "density")
    return (
        _reductions(left), _significant(left), _requirement(left), _size(left, table), _most(left), _effort(table),
        _accuracy(table),
    )


def measured_on(named: Mapping[str, str]) -> str:
    """Which data stands behind which benchmarks: "mnist-2c, mnist-3c: MNIST; cifar10-2c: CIFAR-10 (JPEG copy)"."""
    order = [name for name in BENCHMARKS if name in named] + sorted(set(named) - set(BENCHMARKS))
    data = dict.fromkeys(named[name] for name in order)
    return "; ".join(f"{', '.join(name for name in order if named[name] == title)}: {title}" for title in data)


def markdown(table: pd.DataFrame, named: Mapping[str, str]) -> str:
    """The README's table of claims; ``named`` as ``results.titles`` gives it."""
    lines = ["| | the report says | measured here | test over paired seeds | verdict |", "|---|---|---|---|---|"]
    for number, claim in enumerate(claims(table), start=1):
        lines.append(f"| {number} | {claim.says} | {claim.measured} | {claim.test} | **{claim.verdict}** |")
    return "\n".join([*lines, "", f"Measured on {measured_on(named)}." if named else "Nothing measured."])


def _reductions(left: pd.DataFrame) -> Claim:
    least, most, mean = REPORTED_REDUCTIONS
    claim = {
        "name": "reductions",
        "says": (
            f"Pruning removes {percent(least)} to {percent(most)} of the synapses, {percent(mean)} on average"
        ),
        "quantity": "synapses removed, on average over benchmarks and requirements", "kind": "percent",
        "rule": (
            f"smallest at least {percent(least)}, largest at most {percent(most)}, average {percent(mean)}; "
            f"each within {100 * ABOUT:.0f} points"
        ),
        "against": f"more than {percent(mean)} on average",
        "references": (
            (f"the report's smallest, {percent(least)}", least), (f"average, {percent(mean)}", mean),
            (f"and largest, {percent(most)}", most),
        ),
    }
    reductions = 1 - left
    if reductions.empty:
        return Claim(**claim, missing=_missing(left))
    means = reductions.mean()
    together = reductions.dropna().mean(axis=1)
    low, high = means.idxmin(), means.idxmax()
    parts = [
        Part(f"smallest: {_setting(low)}", _values(reductions[low]), bool(means[low] >= least - ABOUT)),
        Part(f"largest: {_setting(high)}", _values(reductions[high]), bool(means[high] <= most + ABOUT)),
    ]
    if together.empty:
        return Claim(**claim, parts=tuple(parts), missing=_missing(left))
    parts.append(Part("average of all", _values(together), _near(together, mean)))
    return Claim(**claim, parts=tuple(parts), p=sign_flip(together - mean), missing=_missing(left))


def _significant(left: pd.DataFrame) -> Claim:
    ((benchmark, requirement), value), = REPORTED.items()
    place = (benchmark, requirement)
    below = place not in left or left[place].mean() <= value
    claim = {
        "name": "significant",
        "says": f"{benchmark} at {percent(requirement)} has about {percent(value)} significant synapses",
        "quantity": "significant synapses", "kind": "percent",
        "rule": f"the range of the seeds comes within {100 * ABOUT:.0f} points of {percent(value)}",
        "against": f"{'fewer' if below else 'more'} than {percent(value)}",
        "references": ((f"the report's {percent(value)}", value),),
    }
    if place not in left:
        return Claim(**claim, missing=(_setting(place),))
    found = left[place].dropna()
    part = Part(_setting(place), _values(found), _near(found, value))
    return Claim(**claim, parts=(part,), p=sign_flip(value - found if below else found - value))


def _requirement(left: pd.DataFrame) -> Claim:
    logs = {}
    for benchmark in _names(left):
        steps = sorted(left[benchmark].columns)
        for low, high in itertools.pairwise(steps):
            ratio = left[benchmark, high] / left[benchmark, low]
            logs[f"{benchmark}, {percent(high)} over {percent(low)}"] = np.log(ratio)
    return _directed(
        logs, missing=_missing(left), name="requirement", says="The lower the required accuracy, the more is pruned",
        quantity="synapses left at a requirement over those at the next lower one", against="more than 1×",
    )


def _size(left: pd.DataFrame, table: pd.DataFrame) -> Claim:
    sizes = table.groupby("benchmark")[["dataset", "synapses"]].first().reindex(_names(left))
    logs = {}
    for _, part in sizes.groupby("dataset", sort=False):
        for small, big in itertools.pairwise(part.sort_values("synapses").index):
            for requirement in sorted(set(left[small].columns) & set(left[big].columns)):
                ratio = left[small, requirement] / left[big, requirement]
                logs[f"{small} against {big}, {percent(requirement)}"] = np.log(ratio)
    return _directed(
        logs, missing=_missing(left), name="size", says="At equal accuracy, more of the bigger network is pruned",
        quantity="fraction left of the smaller network over that of the bigger", against="more than 1×",
    )


def _most(left: pd.DataFrame) -> Claim:
    most = "cifar10-2c"
    means = {name: np.log(left[name]).mean(axis=1, skipna=False) for name in _names(left)}
    others = {name: value for name, value in means.items() if name != most and name in BENCHMARKS}
    logs, together = {}, None
    if most in means and others:
        logs = {f"{most} against {name}": means[most] - value for name, value in others.items()}
        together = means[most] - pd.concat(others, axis=1).max(axis=1, skipna=False)
    return _directed(
        logs, together, missing=_missing(left), name="most",
        says="CIFAR-10 on two convolutions keeps the largest fraction of its synapses",
        quantity=f"fraction left of {most} over the largest of the others (geometric means over requirements)",
        against="more than 1×", whole="against the largest of the others",
    )


def _effort(table: pd.DataFrame) -> Claim:
    # A run that never met its requirement was never pruned: it is the same training as without pruning.
    effort = _pivot(table.assign(effort=table["effort"].where(table["reached"], 1.0)), "effort")
    logs = {name: np.log(effort[name]).mean(axis=1, skipna=False) for name in _names(effort)}
    return _directed(
        logs, missing=_missing(effort), name="effort", says="Pruning raises the training effort",
        quantity="iterations with pruning over those without", against="more than 1×",
    )


def _accuracy(table: pd.DataFrame) -> Claim:
    pruned, dense = _pivot(table, "test_accuracy"), _pivot(table, "test_accuracy", "unpruned")
    change = (pruned - dense).dropna(axis=1, how="all")
    changes = {name: change[name].mean(axis=1, skipna=False) for name in _names(change)}
    margin = f"{100 * LOSS:g} points"
    return _directed(
        changes, missing=_missing(change), name="accuracy", says="Pruning costs no accuracy",
        quantity="test accuracy of the pruned network less that of the unpruned one", against=f"a loss below {margin}",
        kind="points", bound=-LOSS,
        rule=f"a mean loss below {margin} on every benchmark, and p at most {LEVEL} over all",
        references=(("no change", 0.0), (f"a loss of {margin}", -LOSS)),
    )


def _directed(
    effects: Mapping[str, pd.Series], together: pd.Series | None = None, *, kind: str = "factor", bound: float = 0.0,
    whole: str = "all together", rule: str = f"above 1× in every comparison, and p at most {LEVEL} over all",
    references: tuple[tuple[str, float], ...] = (("no difference", 1.0),), **claim,
) -> Claim:
    """A claim that every one of ``effects`` (one value a seed; logarithms of factors) lies above ``bound``."""
    effects = {name: found for name, effect in effects.items() if len(found := effect.dropna())}
    claim |= {"kind": kind, "rule": rule, "references": references}
    if not effects:
        return Claim(**claim)
    shown = np.exp if kind == "factor" else np.asarray
    parts = [Part(name, _values(shown(effect)), bool(effect.mean() > bound)) for name, effect in effects.items()]
    together = pd.concat(effects, axis=1).mean(axis=1, skipna=False) if together is None else together
    together = together.dropna()
    if together.empty:
        return Claim(**claim, parts=tuple(parts))
    p = sign_flip(together - bound)
    parts.append(Part(whole, _values(shown(together)), bool(p <= LEVEL)))
    return Claim(**claim, parts=tuple(parts), p=p)


def _pivot(table: pd.DataFrame, value: str, method: str = METHOD) -> pd.DataFrame:
    """``value`` of one method: a row a seed, columns (benchmark, requirement), the report's benchmarks first."""
    found = table[table["method"] == method].pivot(index="seed", columns=["benchmark", "requirement"], values=value)
    known = {name: number for number, name in enumerate(BENCHMARKS)}
    order = sorted(found.columns, key=lambda key: (known.get(key[0], math.inf), *key))
    return found[order].astype(float)


def _names(pivot: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(pivot.columns.get_level_values(0)))


def _missing(pivot: pd.DataFrame) -> tuple[str, ...]:
    """Benchmarks of the report without records, where the study has any of them."""
    found = set(_names(pivot))
    return tuple(name for name in BENCHMARKS if name not in found) if found & set(BENCHMARKS) else ()


def _near(values: pd.Series, value: float) -> bool:
    return bool(values.min() - ABOUT <= value <= values.max() + ABOUT)


def _setting(place: tuple[str, float]) -> str:
    return f"{place[0]} at {percent(place[1])}"


def _values(found: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in found if not math.isnan(value))
