"""What tests of trainings share."""

import pytest
import torch

from pruning.study import datasets


@pytest.fixture(scope="module")
def as_in_a_run():
    """One thread, and denormal numbers taken as zero."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    """The digits that come with scikit-learn."""
    return datasets.load("digits")
