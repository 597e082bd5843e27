"""A SLURM for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, what_is_missing

from storage.mock_suite import MockSuite, write_mock_suite


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a running SLURM, whose commands work in this process and those that it starts."""
    reason = what_is_missing()
    if reason:
        pytest.skip(f"no SLURM can be started here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own would be too long for a socket
    cluster = Cluster(folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(cluster.configuration))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return four sound simulations; tests must not change them."""
    root = tmp_path_factory.mktemp("suite")
    return write_mock_suite(root, simulations=4, particles_per_side=16, halos_per_simulation=2)
