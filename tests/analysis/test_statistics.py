"""The exact sign-flip test against a count of all sign flips, ties and zeros included."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from pruning.analysis.statistics import probability, sign_flip


def counted(values):
    """The share of all sign flips whose sum, in whole numbers, is at least the one given."""
    flips = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=len(values))]
    return Fraction(sum(int(flip) >= sum(values) for flip in flips), 2 ** len(values))


@pytest.mark.parametrize("size", range(1, 11))
def test_the_p_value_is_the_share_of_all_sign_flips(size):
    generator = np.random.default_rng(size)
    for width in (1, 3, 30, 1000):  # the narrower, the more ties and zeros
        values = generator.integers(-width, 2 * width + 1, size).tolist()
        for scale in (1, 0.1, 1e-3, 1e6 / 7):  # sums that tie in whole numbers tie whatever the rounding
            assert sign_flip(np.array(values) * scale) == counted(values), (values, scale)


def test_known_p_values():
    assert sign_flip([1, 2, 3, 4, 5]) == Fraction(1, 32) and sign_flip([-1, -2, -3, -4, -5]) == 1
    assert sign_flip([0, 0, 0]) == 1 and sign_flip([0.1, 0.2, 0, 0.3, 0.4]) == Fraction(2, 32)
    assert sign_flip([0.1, 0.2, -0.3]) == Fraction(5, 8), "rounding must not break a tie"
    assert sign_flip([0.2]) == Fraction(1, 2) and sign_flip([0.0]) == sign_flip([-0.2]) == 1
    assert probability(Fraction(1, 16), 5) == "2/32"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0] * 21])
def test_the_sign_flip_test_refuses_what_it_cannot_take(values):
    with pytest.raises(ValueError, match="1 to 20 finite differences"):
        sign_flip(values)
