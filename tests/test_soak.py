"""Runs that are killed at random moments, again and again: in the end, each data set is as if nothing had happened.

``BIND_SOAK_RUNS`` is the number of data sets, ``BIND_SOAK_SEED`` the seed of the first one: those of the others follow.
"""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from soak_runs import Soak

from storage.mock_suite import write_mock_suite

pytestmark = [pytest.mark.mpi, pytest.mark.prefect]

FIRST = int(os.environ.get("BIND_SOAK_SEED", "0"))
RUNS = int(os.environ.get("BIND_SOAK_RUNS", "3"))


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    home = tmp_path_factory.mktemp("soak")
    yield Soak(home, write_mock_suite(home / "suite", simulations=2, particles_per_side=16, halos_per_simulation=2))
    shutil.rmtree(home)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
def test_a_killed_run_can_be_repeated_until_it_is_done(
    seed: int, soak: Soak, record_property: Callable[[str, object], None]
) -> None:
    """Whatever process is killed at whatever moment, reruns end as an undisturbed run does, and leave nobody."""
    record_property("soak", str(soak.disturbed(seed)))
