"""Statistics over paired seeds.

>>> sign_flip([0.8, 0.5, 0.9, 0.3, -0.2])
Fraction(1, 16)
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np


def sign_flip(differences: Iterable[float]) -> Fraction:
    """Return the one-sided p of the exact paired permutation test that the mean difference is above zero.

    ``differences`` are those of n pairs, here one per seed: p is the share of all 2^n sign flips whose
    mean is at least the one measured, 1 / 2^n at the smallest. Raises ``ValueError`` where there
    is no pair, a value that is no number, or more than 20 pairs.
    """
    from scipy.stats import permutation_test  # takes a second, and few need it

    values = np.asarray(list(differences), dtype=float)
    if not 0 < len(values) <= 20 or not np.isfinite(values).all():
        raise ValueError(f"the test takes 1 to 20 finite differences, got {values.tolist()}")
    # Sums that are equal but for rounding tie. scipy's own margin is relative to the sum, which may be zero.
    least = values.sum() - 1e-12 * np.abs(values).sum()
    # scipy wants two differences at least; one more of zero leaves every p as it is.
    sample = values if len(values) > 1 else np.append(values, 0.0)
    test = permutation_test(
        (sample,), lambda flipped, axis: (flipped.sum(axis) >= least).astype(float),
        permutation_type="samples", n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    return Fraction(float(test.pvalue))  # a count over a power of two is exact


def probability(p: Fraction, seeds: int) -> str:
    """Write p as a count of sign flips: ``2/32``, not ``1/16``."""
    return f"{p * 2**seeds}/{2**seeds}"


def average(values: Iterable[float], kind: str) -> float:
    """Return the mean over seeds, the geometric one for factors."""
    from scipy.stats import gmean

    numbers = np.asarray(list(values), dtype=float)
    return float(gmean(numbers) if kind == "factor" else numbers.mean())
