"""Rows of the manifest, against the files and inputs that they speak of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from block_runs import layout_of, make, manifest_of, outcomes_of, project, record, times, work_of

from bind_core.config import DatasetConfig
from bind_core.findings import Finding, FindingCode
from bind_core.rotations import quaternion_matrix
from bind_core.splits import split_of
from storage.columns import SAMPLES, SIMULATIONS, SimulationStatus
from storage.manifest import ManifestError
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.recording import code_version, new_run_id
from storage.results import SampleRecord, SimulationResult
from storage.samples import read_sample
from storage.schemas import validate_rows
from storage.workload import Reason

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"),
        simulations=5,
        particles_per_side=8,
        halos_per_simulation=2,
        defects={
            "SB35_1": [Defect.EMPTY_CATALOGUE],
            "SB35_2": [Defect.MISSING_HYDRO_SNAPSHOT],
            "SB35_3": [Defect.NO_MASSIVE_HALO],
            "SB35_4": [Defect.NAN_POSITIONS],
        },
    )


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    return config_of(suite, output_root=tmp_path, resolution=16, strata=[{"rotations": 2}])


def newest(config: DatasetConfig, name: str) -> dict:
    return manifest_of(config).latest_simulations().row(by_predicate=pl.col("simulation") == name, named=True)


def test_rows_say_what_is_in_the_files(config: DatasetConfig) -> None:
    """Rotation, halo, masses, split, size and path in a sample's row are those of its file."""
    make(config, ["SB35_0"])
    rows = manifest_of(config).samples()
    assert rows.height == 4
    for row in rows.iter_rows(named=True):
        path = layout_of(config).absolute(row["path"])
        sample = read_sample(path)
        quaternion = np.array([row[f"quaternion_{part}"] for part in "wxyz"])
        np.testing.assert_allclose(quaternion_matrix(quaternion), sample.rotation, atol=1e-12)
        assert row["halo_mass"] == sample.halo_mass
        assert [row[f"halo_center_{axis}"] for axis in "xyz"] == sample.halo_center.tolist()
        assert row["bytes"] == path.stat().st_size
        assert row["split"] == path.relative_to(config.output_root).parts[0] == split_of("SB35_0", 0, config)
        maps = {"condition": sample.condition} | dict(
            zip(("target_dark_matter", "target_gas", "target_stars"), sample.target, strict=True)
        )
        for name, values in maps.items():
            assert row[f"mass_{name}"] == pytest.approx(np.sum(values, dtype=np.float64), rel=1e-12)
        for index, values in enumerate(sample.large_scale):
            pixel = (config.context_sizes[index] / config.window_size) ** 2  # native pixels in one of this map's
            assert row[f"mass_large_scale_{index}"] == pytest.approx(pixel * np.sum(values, dtype=np.float64))


def test_seeds_in_the_rows_give_the_rotations(config: DatasetConfig) -> None:
    """A row's seed entropy and stratum are those of the planned sample, so its orientation can be drawn again."""
    targets = {target.sample_id: target for target in work_of(config, "SB35_0").predicted.targets()}
    make(config, ["SB35_0"])
    for row in manifest_of(config).samples().iter_rows(named=True):
        target = targets.pop(row["sample_id"])
        assert tuple(int(number) for number in row["seed_entropy"].split(",")) == target.entropy
        assert row["stratum"] == target.stratum == "(1e+13, inf]"
    assert targets == {}


def test_rows_obey_the_schemas(config: DatasetConfig) -> None:
    """What is read back passes validation unchanged, and names run, configuration and version in every row."""
    make(config, run_id="the run")
    manifest = manifest_of(config)
    for rows, model in ((manifest.samples(), SAMPLES), (manifest.simulations(), SIMULATIONS)):
        assert validate_rows(rows, model).equals(rows)
        assert set(rows["run_id"]) == {"the run"}
        assert set(rows["config_digest"]) == {config.digest}
        assert set(rows["code_version"]) == {code_version()}


def test_a_whole_block_gets_its_statuses(config: DatasetConfig) -> None:
    """In one commit, sound simulations are complete, those without massive haloes no work, bad ones blocked."""
    statuses = make(config)
    assert statuses == {
        "SB35_0": SimulationStatus.COMPLETE,
        "SB35_1": SimulationStatus.NO_WORK,
        "SB35_2": SimulationStatus.BLOCKED,
        "SB35_3": SimulationStatus.NO_WORK,
        "SB35_4": SimulationStatus.BLOCKED,
    }
    rows = manifest_of(config).latest_simulations()
    assert dict(zip(rows["simulation"], rows["status"], strict=True)) == {k: str(v) for k, v in statuses.items()}
    assert set(manifest_of(config).samples()["simulation"]) == {"SB35_0"}
    for name, code in (("SB35_2", FindingCode.MISSING_FILES), ("SB35_4", FindingCode.NON_FINITE_POSITIONS)):
        row = newest(config, name)
        findings = [Finding.from_dict(finding) for finding in json.loads(row["findings"])]
        assert [finding.code for finding in findings] == [code]
        assert row["message"] == findings[0].message
        assert (row["n_halos"], row["n_planned"], row["n_committed"]) == (2, 4, 0)
    assert "no halo" in newest(config, "SB35_1")["message"]


@pytest.mark.parametrize(("lost", "status"), [(1, SimulationStatus.PARTIAL), (4, SimulationStatus.FAILED)])
def test_what_is_lost_before_packaging_is_not_recorded(
    config: DatasetConfig, lost: int, status: SimulationStatus
) -> None:
    """With one file gone a simulation is partial, with all gone failed; only whole files get rows; a rerun mends it."""
    block = project(config, ["SB35_0"])
    paths = block.paths(config)
    for path in paths[:lost]:
        path.unlink()
    assert record(config, block) == {"SB35_0": status}
    recorded = manifest_of(config).samples()
    assert {layout_of(config).absolute(path) for path in recorded["path"]} == set(paths[lost:])
    assert str(paths[0]) in newest(config, "SB35_0")["message"]
    assert (work_of(config, "SB35_0").reason, len(work_of(config, "SB35_0").missing)) == (Reason.SAMPLES_MISSING, lost)
    before = times(config)
    assert make(config, ["SB35_0"], "second") == {"SB35_0": SimulationStatus.COMPLETE}
    assert times(config).items() >= before.items()
    assert (newest(config, "SB35_0")["n_planned"], newest(config, "SB35_0")["n_committed"]) == (lost, 4)


def test_a_file_swapped_for_another_sample_is_not_recorded(config: DatasetConfig) -> None:
    """A file with another sample's whole content is not taken for the one that was written."""
    block = project(config, ["SB35_0"])
    first, second = block.paths(config)[:2]
    shutil.copy(first, second)
    assert record(config, block) == {"SB35_0": SimulationStatus.PARTIAL}
    assert manifest_of(config).samples().height == 3


def test_a_job_that_fails_leaves_its_reason(config: DatasetConfig) -> None:
    """A projection that ended with an error is failed, with the error as message, and stays outstanding."""
    block = project(config, ["SB35_0"])
    block.results.clear()
    assert record(config, block, error="rank 1 was killed") == {"SB35_0": SimulationStatus.FAILED}
    assert newest(config, "SB35_0")["message"] == "rank 1 was killed"
    assert work_of(config, "SB35_0").outstanding


def test_input_that_goes_bad_keeps_what_was_made(
    mock_suite: Callable[..., MockSuite], config_of: Callable[..., DatasetConfig]
) -> None:
    """A simulation that is blocked on extension keeps its samples, and its row counts them."""
    suite = mock_suite(particles_per_side=8, halos_per_simulation=1)
    config = config_of(suite, resolution=16, strata=[{"rotations": 2}])
    make(config)
    for path in (suite.hydro_base / "SB35_0").rglob("*.hdf5"):
        path.unlink()
    more = config_of(suite, resolution=16, strata=[{"rotations": 3}])
    assert make(more, run_id="second") == {"SB35_0": SimulationStatus.BLOCKED}
    assert newest(more, "SB35_0")["n_committed"] == manifest_of(more).samples().height == 2


def test_without_catalogue_the_number_of_haloes_is_unknown(
    mock_suite: Callable[..., MockSuite], config_of: Callable[..., DatasetConfig]
) -> None:
    """A simulation without catalogue is blocked, and its row does not claim that it has no halo."""
    config = config_of(mock_suite(particles_per_side=8, defects={"SB35_0": [Defect.MISSING_CATALOGUE]}))
    assert make(config) == {"SB35_0": SimulationStatus.BLOCKED}
    assert newest(config, "SB35_0")["n_halos"] is None


def test_the_same_samples_cannot_be_recorded_twice(config: DatasetConfig) -> None:
    """A run that made what another has committed meanwhile is refused, and changes nothing in the record."""
    block = project(config, ["SB35_0"])
    record(config, block)
    before = manifest_of(config).samples(), manifest_of(config).simulations()
    with pytest.raises(ManifestError, match="another run may have"):
        record(config, block, "second")
    after = manifest_of(config).samples(), manifest_of(config).simulations()
    assert all(one.equals(other) for one, other in zip(before, after, strict=True))


def test_results_travel_as_json_unchanged(config: DatasetConfig) -> None:
    """A result read back from its JSON is equal, findings, awkward texts and floats included."""
    (finding,) = outcomes_of(config, project(config, ["SB35_2"]))[0].findings
    sample = SampleRecord("SB35_0_halo_0_rot_0", "train/a.npz", 17, "0" * 64, {"mass_condition": 0.1 + 0.2})
    result = SimulationResult("SB35_0", (sample,), (finding,), {"a.hdf5": "0" * 64}, {"read": 1e-300}, 'said "no"\n')
    assert SimulationResult.from_json(result.to_json()) == result
    assert SimulationResult.from_json(SimulationResult("SB35_0").to_json()) == SimulationResult("SB35_0")


def test_run_ids_are_unique_and_sort_by_time() -> None:
    """Runs that begin in the same second have different ids, and a later second sorts after an earlier one."""
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    starts = [run.split("-")[0] for run in ids]
    assert starts == sorted(starts)
