import pytest
from real_slurm import daemons, down, missing


@pytest.fixture(scope="package")
def slurm(tmp_path_factory):
    """The folder of a Slurm that is up."""
    if reason := missing():
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("slurm")
    try:
        daemons(place)
        yield place
    finally:
        down(place)
