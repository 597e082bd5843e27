"""What a block's simulations are taken to be before their projection, and what is believed after it."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from block_runs import layout_of, make, outcomes_of, project, times

from bind_core.config import DatasetConfig
from bind_core.findings import FindingCode
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.provenance import PARAMETERS, to_json

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"),
        simulations=4,
        particles_per_side=8,
        halos_per_simulation=1,
        defects={
            "SB35_1": [Defect.MISSING_HYDRO_SNAPSHOT],
            "SB35_2": [Defect.NAN_POSITIONS],
            "SB35_3": [Defect.EMPTY_CATALOGUE],
        },
    )


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    return config_of(suite, output_root=tmp_path, resolution=16, strata=[{"rotations": 3}])


def test_only_usable_simulations_with_missing_samples_are_planned(config: DatasetConfig) -> None:
    """The plan leaves out what screening blocked and what has no halo, and is None where nothing is left."""
    block = project(config)
    assert [simulation.work.files.name for simulation in block.screened] == ["SB35_0", "SB35_1", "SB35_2", "SB35_3"]
    assert block.plan is not None
    assert [simulation.simulation for simulation in block.plan.simulations] == ["SB35_0", "SB35_2"]
    assert project(config, ["SB35_1", "SB35_3"]).plan is None


def test_the_plan_asks_for_missing_samples_only(config: DatasetConfig) -> None:
    """Samples that are committed are not in the plan of an extension, and their files stay as they are."""
    make(config, ["SB35_0"])
    before = times(config)
    block = project(DatasetConfig.from_values(config.model_dump() | {"strata": [{"rotations": 5}]}), ["SB35_0"])
    assert block.plan is not None
    assert [target.rotation for target in block.plan.simulations[0].targets] == [3, 4]
    assert times(config).items() > before.items()


def test_input_files_are_described(config: DatasetConfig, suite: MockSuite) -> None:
    """Every input is recorded with role, size, time of change and digest: of catalogues the whole file's."""
    (outcome,) = outcomes_of(config, project(config, ["SB35_0"]))
    assert outcome.inputs[-1].role == PARAMETERS and outcome.inputs[-1].digest
    described = json.loads(to_json(outcome.inputs[:-1]))
    on_disk = {
        str(path): path
        for base in (suite.dmo_base, suite.hydro_base, suite.catalogue_base)
        for path in (base / "SB35_0").rglob("*.hdf5")
    }
    assert {entry["path"] for entry in described} == set(on_disk)
    roles = {entry["role"] for entry in described}
    assert len(roles) == 3
    for entry in described:
        path = on_disk[entry["path"]]
        assert entry["bytes"] == path.stat().st_size
        assert datetime.fromisoformat(entry["mtime"]).timestamp() == pytest.approx(path.stat().st_mtime, abs=1e-5)
        assert len(entry["digest"]) == 64
        if suite.catalogue_base in path.parents:
            assert entry["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_are_as_written_are_believed(config: DatasetConfig) -> None:
    """After an undisturbed projection, every planned sample is verified and there is no error."""
    (outcome,) = outcomes_of(config, project(config, ["SB35_0"]))
    assert outcome.error == ""
    assert outcome.plan is not None
    assert [sample.sample_id for sample in outcome.samples] == [target.sample_id for target in outcome.plan.targets]


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [altered, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda p: p.write_bytes(b"")],
)
def test_a_file_that_changed_since_it_was_written_is_not_believed(
    config: DatasetConfig, damage: Callable[[Path], object]
) -> None:
    """A sample that was altered, deleted or cut short before packaging is left out, and the error names it."""
    block = project(config, ["SB35_0"])
    victim = block.paths(config)[1]
    damage(victim)
    (outcome,) = outcomes_of(config, block)
    assert [layout_of(config).absolute(sample.path) for sample in outcome.samples] == [
        path for path in block.paths(config) if path != victim
    ]
    assert outcome.error.startswith("1 sample is not as it was written")
    assert str(victim) in outcome.error


def test_findings_of_screening_and_projection_meet(config: DatasetConfig) -> None:
    """What only the projection could see, such as a NaN, is a finding of the outcome like what screening saw."""
    by_name = {outcome.work.files.name: outcome for outcome in outcomes_of(config, project(config))}
    assert [finding.code for finding in by_name["SB35_1"].findings] == [FindingCode.MISSING_FILES]
    assert [finding.code for finding in by_name["SB35_2"].findings] == [FindingCode.NON_FINITE_POSITIONS]
    assert by_name["SB35_2"].samples == ()
    assert by_name["SB35_0"].findings == by_name["SB35_3"].findings == ()


def test_a_projection_without_result_says_why(config: DatasetConfig) -> None:
    """A planned simulation that came back with no result carries the job's error; others that came back do not."""
    block = project(config, ["SB35_0", "SB35_3"])
    block.results.clear()
    lost, without_work = outcomes_of(config, block, "the job was killed")
    assert (lost.samples, lost.error) == ((), "the job was killed")
    assert (without_work.plan, without_work.error) == (None, "")
    assert outcomes_of(config, block)[0].error == "The projection left no result."
