import shutil

import pytest
import torch
from tiny import YAML

from pruning.__main__ import main
from pruning.study.studies import load


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The results of the study ``tiny``, run once and not yet published."""
    place, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    (place / "tiny.yaml").write_text(YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        assert main(["run", str(place / "tiny.yaml")]) == 0
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    return place


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def tiny(finished, results):
    """A copy of ``finished`` as this test's results; returns the study."""
    shutil.copytree(finished, results)
    return load(results / "tiny.yaml")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)
