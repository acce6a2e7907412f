"""What tests of trainings share."""

import pytest

from pruning.study import datasets


@pytest.fixture(scope="module")
def digits():
    """The digits that come with scikit-learn."""
    return datasets.load("digits")
