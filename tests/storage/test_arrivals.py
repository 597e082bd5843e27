"""Which simulations a scheduled run takes for new."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from block_runs import make, manifest_of, project, record, workload_of

from bind_core.config import DatasetConfig
from storage.arrivals import Arrival, arrivals, names
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.workload import plan_workload

pytestmark = pytest.mark.mpi


@pytest.fixture
def suite(tmp_path: Path) -> MockSuite:
    return write_mock_suite(
        tmp_path / "suite",
        simulations=3,
        particles_per_side=8,
        halos_per_simulation=1,
        defects={"SB35_1": [Defect.MISSING_HYDRO_SNAPSHOT]},
    )


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    return config_of(suite, output_root=tmp_path / "out", resolution=16, strata=[{"rotations": 1}])


def found(config: DatasetConfig, *, refresh: bool = False) -> dict[str, Arrival]:
    manifest = manifest_of(config)
    workload = plan_workload(config, manifest, refresh=refresh)
    return {simulation.name: simulation.arrival for simulation in arrivals(workload, manifest)}


def test_what_was_never_tried_is_new(config: DatasetConfig) -> None:
    """In a fresh data set every simulation is new; afterwards, only those that the run did not try."""
    assert set(found(config).values()) == {Arrival.NEW}
    make(config, ["SB35_0"])
    assert found(config) == {"SB35_0": Arrival.SETTLED, "SB35_1": Arrival.NEW, "SB35_2": Arrival.NEW}


def test_blocked_input_waits_until_any_of_it_changes(config: DatasetConfig, suite: MockSuite) -> None:
    """A simulation without its snapshot stays blocked, and is taken up again once the snapshot has arrived."""
    make(config)
    assert found(config)["SB35_1"] is Arrival.STILL_BLOCKED
    assert found(config)["SB35_1"] is Arrival.STILL_BLOCKED
    shutil.copytree(suite.hydro_base / "SB35_0", suite.hydro_base / "SB35_1", dirs_exist_ok=True)
    assert found(config) == {"SB35_0": Arrival.SETTLED, "SB35_1": Arrival.CHANGED, "SB35_2": Arrival.SETTLED}


def test_a_mended_row_of_the_parameter_table_counts(config: DatasetConfig, suite: MockSuite) -> None:
    """A simulation that was refused because the table had no row for it is taken up when the row is there."""
    whole = suite.parameter_file.read_text()
    suite.parameter_file.write_text("".join(line for line in whole.splitlines(keepends=True) if "SB35_2" not in line))
    make(config)
    assert found(config)["SB35_2"] is Arrival.STILL_BLOCKED
    suite.parameter_file.write_text(whole)
    assert found(config)["SB35_2"] is Arrival.CHANGED


def test_a_failed_attempt_is_told_from_a_new_simulation(config: DatasetConfig) -> None:
    """What failed although its input is sound is unfinished, so that a schedule does not repeat it for ever."""
    block = project(config, ["SB35_0"])
    for path in block.paths(config):
        path.unlink()
    block.results.clear()
    record(config, block, error="a node died")
    assert found(config)["SB35_0"] is Arrival.UNFINISHED


def test_a_replaced_input_is_stale_until_a_refresh_is_asked_for(config: DatasetConfig, suite: MockSuite) -> None:
    """Samples of another catalogue are left as they are; with refresh, the simulation counts as mended."""
    make(config, ["SB35_0"])
    (catalogue,) = workload_of(config, ["SB35_0"]).simulations[0].files.catalogue.files
    other = next((suite.catalogue_base / "SB35_2").rglob("*.hdf5"))
    shutil.copyfile(other, catalogue)
    assert found(config)["SB35_0"] is Arrival.STALE
    assert found(config, refresh=True)["SB35_0"] is Arrival.CHANGED


def test_a_touched_input_is_looked_at_once(config: DatasetConfig) -> None:
    """A file with another time of modification and the same content is looked at, recorded, and then settled."""
    make(config, ["SB35_0"])
    (catalogue,) = workload_of(config, ["SB35_0"]).simulations[0].files.catalogue.files
    os.utime(catalogue, (1e9, 1e9))
    assert found(config)["SB35_0"] is Arrival.CHANGED
    make(config, ["SB35_0"])
    assert found(config)["SB35_0"] is Arrival.SETTLED


def test_names_are_those_of_the_kinds_asked_for(config: DatasetConfig) -> None:
    """Names come in the natural order of the simulations, whichever order the kinds are given in."""
    make(config, ["SB35_1"])
    manifest = manifest_of(config)
    arrived = arrivals(plan_workload(config, manifest), manifest)
    assert names(arrived, Arrival.STILL_BLOCKED, Arrival.NEW) == ["SB35_0", "SB35_1", "SB35_2"]
    assert names(arrived, Arrival.SETTLED) == []
