"""The main flow, for real: an embedded Prefect server, real files, real MPI jobs."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flow_runs import configuration
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.testing.utilities import prefect_test_harness

from bind_core.config import DatasetConfig, Stratum
from flows.generate import IncompleteRunError, generate_dataset, run_summary
from storage.columns import SimulationStatus
from storage.layout import DatasetLayout
from storage.manifest import ConfigurationMismatchError, Manifest
from storage.mock_suite import Defect, MockSuite, write_mock_suite

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16)


def blocks_of_two(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    return configuration(suite, root, **({"simulations_per_block": 2} | settings))


def digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.npz")}


def artifacts(key: str) -> list[Artifact]:
    async def read() -> list[Artifact]:
        async with get_client() as client:
            return await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

    return asyncio.run(read())


def test_makes_every_sample_records_it_and_leaves_artifacts(suite: MockSuite, tmp_path: Path) -> None:
    """A run makes all samples and leaves summary, progress and picture behind, and no work, a killed run's neither."""
    killed = tmp_path / ".work" / "killed" / "block_00000"
    killed.mkdir(parents=True)
    (killed.parent / "run.lock").touch()
    config = blocks_of_two(suite, tmp_path)
    summary = generate_dataset(config)
    assert summary.ok
    assert not list(tmp_path.glob(".work/*/block_*"))
    rows = Manifest(DatasetLayout(tmp_path, "SB35")).samples()
    assert rows.height == summary.made == sum(simulation.planned for simulation in summary.simulations) > 0
    found = digests(tmp_path)
    assert {row["path"]: row["sha256"] for row in rows.iter_rows(named=True)} == found
    assert (tmp_path / "contact_sheet.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = json.loads(str(artifacts("generation-summary")[-1].data))
    assert {row["simulation"]: row["status"] for row in table} == dict.fromkeys(suite.names, "complete")
    assert any(artifact.data == 100.0 for artifact in artifacts("generation-progress"))
    assert "](data:image/jpeg;base64," in str(artifacts("contact-sheet")[-1].data)


def test_a_second_run_does_nothing_and_says_so(
    suite: MockSuite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Running again touches no sample, makes no commit, says so, and draws the sheet that a killed run did not."""
    config = blocks_of_two(suite, tmp_path)
    run_summary(config)
    sheet = tmp_path / "contact_sheet.png"
    drawn = sheet.read_bytes()
    sheet.write_bytes(b"of an earlier version")
    os.utime(sheet, (0, 0))
    manifest = Manifest(DatasetLayout(tmp_path, "SB35"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}, manifest.version
    caplog.clear()
    again = run_summary(config)
    assert again.ok
    assert again.made == 0
    assert "nothing was to be made" in again.headline
    assert ({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}, manifest.version) == before
    assert any("Nothing to do" in record.getMessage() for record in caplog.records)
    assert sheet.read_bytes() == drawn


def test_extending_makes_only_what_is_missing(suite: MockSuite, tmp_path: Path) -> None:
    """More simulations or more rotations add samples and leave the existing ones untouched."""
    first = run_summary(blocks_of_two(suite, tmp_path), [suite.names[0]])
    assert [simulation.simulation for simulation in first.simulations] == [suite.names[0]]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    all_of_them = run_summary(blocks_of_two(suite, tmp_path))
    assert {s.simulation: s.made > 0 for s in all_of_them.simulations} == {
        name: name != suite.names[0] for name in suite.names
    }
    more = run_summary(blocks_of_two(suite, tmp_path, strata=[Stratum(rotations=3)]))
    assert more.made == sum(simulation.planned for simulation in more.simulations) // 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_bad_simulation_is_blocked_and_the_others_are_made(tmp_path: Path) -> None:
    """Bad input blocks its simulation with findings; the others are made, and the run ends as failed saying why."""
    suite = write_mock_suite(
        tmp_path / "suite",
        simulations=4,
        particles_per_side=16,
        defects={"SB35_1": [Defect.NAN_POSITIONS], "SB35_2": [Defect.MISSING_HYDRO_SNAPSHOT]},
    )
    config = blocks_of_two(suite, tmp_path / "dataset")
    with pytest.raises(IncompleteRunError, match="SB35_1 is blocked") as caught:
        generate_dataset(config)
    by_name = {simulation.simulation: simulation for simulation in caught.value.summary.simulations}
    assert by_name["SB35_0"].status is SimulationStatus.COMPLETE
    assert by_name["SB35_3"].status is SimulationStatus.COMPLETE
    for name in ("SB35_1", "SB35_2"):
        assert by_name[name].status is SimulationStatus.BLOCKED
        assert by_name[name].findings
        assert not list((tmp_path / "dataset").rglob(f"*sim_{name[-1]}_halo*"))
    assert "SB35_2" in str(artifacts("generation-problems")[-1].data)


def test_another_configuration_is_refused_before_anything_is_done(suite: MockSuite, tmp_path: Path) -> None:
    """Settings that change what is in a sample are refused for an existing data set, naming them."""
    run_summary(blocks_of_two(suite, tmp_path), [suite.names[0]])
    before = digests(tmp_path)
    with pytest.raises(ConfigurationMismatchError, match="root_seed"):
        generate_dataset(blocks_of_two(suite, tmp_path, root_seed=7))
    assert digests(tmp_path) == before


def test_a_job_that_dies_is_repeated_and_loses_nothing(suite: MockSuite, tmp_path: Path) -> None:
    """A rank that is killed ends its job; the task is repeated, and the result is that of an undisturbed run."""
    undisturbed = run_summary(blocks_of_two(suite, tmp_path / "undisturbed"))
    config = blocks_of_two(suite, tmp_path / "disturbed", ranks=2)
    killer = subprocess.Popen([sys.executable, "-c", _KILL_FIRST_RANK, str(config.output_root)])
    try:
        summary = run_summary(config)
    finally:
        killer.wait(timeout=120)
    assert killer.returncode == 0, "no rank was there to be killed"
    assert summary.ok
    assert summary.made == undisturbed.made
    assert digests(tmp_path / "disturbed") == digests(tmp_path / "undisturbed")


_KILL_FIRST_RANK = """
import os, signal, sys, time
from pathlib import Path
root = sys.argv[1]
deadline = time.monotonic() + 100
while time.monotonic() < deadline:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            progress = list(Path(root).rglob("progress.jsonl"))
        except OSError:
            continue
        is_rank = root.encode() in command and b"projection_job" in command and b"mpiexec" not in command
        if is_rank and any(file.stat().st_size for file in progress):
            os.kill(int(process.name), signal.SIGKILL)
            sys.exit(0)
    time.sleep(0.005)
sys.exit(1)
"""
