"""What all tests share: one thread a process, notebooks are slow, the longest files come first."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes of one thread beat one of two

import pytest
import torch

import pruning.study.vision  # noqa: F401  # lets torchvision be imported beside a CPU build of torch, by others too


@pytest.fixture(scope="module")
def as_in_a_run():
    """One thread, and denormal numbers taken as zero."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


# The longest files, so that no worker is left alone with one of them at the end.
FIRST = (
    "test_graph.py",
    "test_lab.py",
    "1-benchmark.ipynb",
    "test_methods.py",
    "test_convolution.py",
    "test_known_networks.py",
    "test_savings.py",
    "test_exports.py",
)


def pytest_collection_modifyitems(items):
    """Mark notebooks as slow and put the longest files first."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
