"""The MPI program of a block, on real ranks and real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from batch_runs import (
    MPIEXEC,
    REPOSITORY,
    digests,
    environment,
    last_line,
    message_of,
    output,
    processes,
    ranks_of,
    run_job,
    run_mpi,
    temporaries,
    wait_for,
)

from bind_core.config import DatasetConfig, Stratum
from bind_core.parameters import read_parameter_table
from bind_core.plan import BlockPlan
from bind_core.projection import Backend
from bind_core.validation import check_content, inspect_simulation
from storage.blocks import plan_block, screen_block
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.mock_suite import Compression, Defect, MockFormat, MockSuite, SnapshotLayout, write_mock_suite
from storage.results import SimulationResult
from storage.samples import read_sample
from storage.workload import plan_workload
from tasks import block_files
from tasks.block_job import BlockJob
from tasks.launchers import Listener
from tasks.projection_job import result_file

pytestmark = pytest.mark.mpi

CHUNKED = MockFormat(
    dmo_layout=SnapshotLayout.CHUNKED_NEW,
    hydro_layout=SnapshotLayout.CHUNKED_OLD,
    hydro_compression=Compression.GZIP,
)
CONTENT_DEFECTS = {
    "SB35_1": Defect.NAN_POSITIONS,
    "SB35_2": Defect.POSITIONS_OUT_OF_BOX,
    "SB35_3": Defect.NEGATIVE_MASS,
    "SB35_4": Defect.MISPAIRED,
    "SB35_5": Defect.INFINITE_POSITIONS,
    "SB35_6": Defect.POSITIONS_IN_MPC,
    "SB35_7": Defect.ZERO_MASS,
}

LONG = 25
"""Rotations of a job that is to be killed before its end."""

IN_PASSES = """
from tasks import simulation_job
simulation_job.MAPS_MEMORY = 5 * 7 * 32 * 32 * 4
passes = []
fill = simulation_job.SimulationJob._fill
def counted(*arguments):
    passes.append(1)
    return fill(*arguments)
simulation_job.SimulationJob._fill = counted
run()
assert len(passes) > len(plan.simulations)
"""
SCRIPT = """
import sys
from pathlib import Path
from mpi4py import MPI
import tasks.projection_job as job
from bind_core.plan import BlockPlan
from bind_core.projection import Backend
comm = MPI.COMM_WORLD
plan = BlockPlan.from_json(Path(sys.argv[1]).read_text())
def run(**options):
    results = job.project_block(comm, plan, lambda progress: None, **options)
    if comm.rank == 0:
        print("[" + ", ".join(result.to_json() for result in results) + "]", flush=True)
    else:
        assert results == []
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return three sound simulations, each in another layout; tests must not change them."""
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16)


def config_of(suite: MockSuite, root: Path, rotations: int = 2) -> DatasetConfig:
    return DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        parameter_file=suite.parameter_file,
        output_root=root,
        resolution=32,
        strata=(Stratum(rotations=rotations),),
    )


def plan_of(config: DatasetConfig) -> BlockPlan:
    """Return the block of everything that screening lets pass."""
    assert config.parameter_file is not None
    table = read_parameter_table(config.parameter_file)
    work = plan_workload(config, Manifest(DatasetLayout(config.output_root, config.set_name))).outstanding
    plan = plan_block(screen_block(work, config, table), config, "run", 0)
    assert plan is not None
    return plan


def written(plan: BlockPlan, folder: Path) -> Path:
    """Write a plan where launchers put it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(plan.to_json())
    return path


def results_in(folder: Path, plan: BlockPlan) -> dict[str, SimulationResult]:
    """Return the results that a job has left, without how long it took."""
    found = {}
    for simulation in plan.simulations:
        path = result_file(folder, simulation.simulation)
        if path.exists():
            found[simulation.simulation] = replace(SimulationResult.from_json(path.read_text()), seconds={})
    return found


@pytest.fixture(scope="module")
def undisturbed(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SimulationResult]]:
    """Return the samples and the results of a job of one rank that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    plan = plan_of(config_of(suite, root))
    output(run_job(written(plan, root / "work"), 1))
    return root, results_in(root / "work", plan)


@pytest.fixture(scope="module")
def undisturbed_long(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the samples of a job that is long enough to be killed in its middle, and was not."""
    root = tmp_path_factory.mktemp("undisturbed")
    output(run_job(written(plan_of(config_of(suite, root, LONG)), root / "work"), 1))
    return root


# What it makes


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_number_of_ranks_decides_nothing(
    suite: MockSuite, undisturbed: tuple[Path, dict[str, SimulationResult]], tmp_path: Path, ranks: int
) -> None:
    """On any number of ranks, a job writes the same files and reports the same results."""
    root, results = undisturbed
    plan = plan_of(config_of(suite, tmp_path))
    output(run_job(written(plan, tmp_path / "work"), ranks))
    assert digests(tmp_path) == digests(root)
    assert results_in(tmp_path / "work", plan) == results
    assert set(results) == set(suite.names)


def test_results_say_what_was_written(undisturbed: tuple[Path, dict[str, SimulationResult]]) -> None:
    """A result names every sample with its size, digest and masses, as a reader of the file finds them."""
    root, results = undisturbed
    found = digests(root)
    records = [record for result in results.values() for record in result.samples]
    assert {record.path: record.sha256 for record in records} == found
    for record in records:
        assert (root / record.path).stat().st_size == record.bytes
    sample = read_sample(root / records[0].path)
    assert records[0].masses == pytest.approx(sample.map_masses(config_of_root(root).windows), rel=1e-12)


def config_of_root(root: Path) -> DatasetConfig:
    return BlockPlan.from_json((root / "work" / "plan.json").read_text()).config


def test_a_damaged_result_is_as_good_as_none(
    suite: MockSuite, undisturbed: tuple[Path, dict[str, SimulationResult]], tmp_path: Path
) -> None:
    """A block whose result was damaged makes that simulation again, and takes the other results as they are."""
    root, results = undisturbed
    shutil.copytree(root / "work", tmp_path / "work")
    plan = plan_of(config_of(suite, tmp_path))
    damaged, *others = results
    result_file(tmp_path / "work", damaged).write_text('{"simulation": ')
    assert block_files.results_in(tmp_path / "work", plan).keys() == set(others)
    made = BlockJob(plan, tmp_path / "work").run(Listener(print, print, lambda: False))
    assert {name: replace(result, seconds={}) for name, result in made.items()} == results
    assert set(digests(tmp_path)) == {file for file in digests(root) if file.split("/")[1] == f"sim_{damaged[5:]}"}


@pytest.mark.parametrize(("ranks", "per_node"), [(4, 2), (3, 2)])
def test_the_number_of_nodes_decides_nothing(
    suite: MockSuite,
    undisturbed: tuple[Path, dict[str, SimulationResult]],
    tmp_path: Path,
    ranks: int,
    per_node: int,
) -> None:
    """Over several nodes, unequal ones and idle ones too, the files and results are the same, in the plan's order."""
    plan = plan_of(config_of(suite, tmp_path))
    found = last_line(run_mpi(SCRIPT + f"run(ranks_per_node={per_node})", ranks, written(plan, tmp_path / "work")))
    assert digests(tmp_path) == digests(undisturbed[0])
    results = [replace(SimulationResult.from_json(json.dumps(values)), seconds={}) for values in found]
    assert results == [undisturbed[1][simulation.simulation] for simulation in plan.simulations]


def test_several_passes_make_the_same_samples(
    suite: MockSuite, undisturbed: tuple[Path, dict[str, SimulationResult]], tmp_path: Path
) -> None:
    """Where the maps of a simulation do not fit into the memory for them, it is done in passes, with the same bytes."""
    plan = plan_of(config_of(suite, tmp_path))
    found = last_line(run_mpi(SCRIPT + IN_PASSES, 2, written(plan, tmp_path / "work")))
    assert digests(tmp_path) == digests(undisturbed[0])
    results = {
        values["simulation"]: replace(SimulationResult.from_json(json.dumps(values)), seconds={}) for values in found
    }
    assert results == undisturbed[1]


def test_progress_comes_in_whole_lines(suite: MockSuite, tmp_path: Path) -> None:
    """Every line that the ranks print is one report, and each phase is reported to its end."""
    plan = plan_of(config_of(suite, tmp_path))
    lines = output(run_job(written(plan, tmp_path / "work"), 2)).splitlines()
    reports = [json.loads(line) for line in lines]
    ended = {(report["simulation"], report["phase"]) for report in reports if report["done"] == report["of"]}
    assert ended == {(name, phase) for name in suite.names for phase in ("dmo", "dark_matter", "gas", "stars", "write")}


# Bad input


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return a sound simulation, one with each defect of content, and one with a damaged chunk in a middle file."""
    suite = write_mock_suite(
        tmp_path_factory.mktemp("spoilt"),
        simulations=9,
        particles_per_side=16,
        formats=[CHUNKED],
        defects={name: [defect] for name, defect in CONTENT_DEFECTS.items()},
    )
    files = sorted((suite.hydro_base / "SB35_8").rglob("*.hdf5"))
    damage_chunk(files[len(files) // 2], "PartType0/Coordinates")
    return suite


def damage_chunk(path: Path, dataset: str) -> None:
    """Overwrite the middle of the first compressed chunk of a dataset; the file's structure stays as it is."""
    with h5py.File(path, "r") as file:
        chunk = file[dataset].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"\xff" * 64)


@pytest.fixture(scope="module")
def blocked(spoilt: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BlockPlan, Path]]:
    """Return the plan and the root of a job of two ranks on the spoilt suite."""
    root = tmp_path_factory.mktemp("blocked")
    plan = plan_of(config_of(spoilt, root))
    output(run_job(written(plan, root / "work"), 2))
    yield plan, root


def test_the_sound_simulation_of_a_bad_block_is_made(blocked: tuple[BlockPlan, Path]) -> None:
    """A block of one sound and eight bad simulations ends well: the sound one has samples, the others none."""
    plan, root = blocked
    assert len(plan.simulations) == 9
    results = results_in(root / "work", plan)
    assert {name for name, result in results.items() if result.samples} == {"SB35_0"}
    assert not results["SB35_0"].findings
    assert {Path(path).parts[1] for path in digests(root)} == {"sim_0"}
    assert not temporaries(root)


@pytest.mark.parametrize("name", [*CONTENT_DEFECTS, "SB35_8"])
def test_bad_content_is_found_as_validation_finds_it(
    spoilt: MockSuite, blocked: tuple[BlockPlan, Path], name: str
) -> None:
    """What ranks find while reading their parts is what validation, which reads everything by itself, finds."""
    plan, root = blocked
    assert plan.config.parameter_file is not None
    (work,) = plan_workload(plan.config, Manifest(DatasetLayout(root / "elsewhere", "SB35")), [name]).simulations
    table = read_parameter_table(plan.config.parameter_file)
    expected = check_content(inspect_simulation(work.files, plan.config, table), plan.config)
    found = results_in(root / "work", plan)[name].findings
    assert expected
    assert {finding.code for finding in found} == {finding.code for finding in expected}
    assert {finding.message for finding in found} == {finding.message for finding in expected}


def test_input_that_changes_under_way_blocks_its_simulation(suite: MockSuite, tmp_path: Path) -> None:
    """Files that vanish or break between planning and projection block their simulation, and no other."""
    root = suite.dmo_base.parent
    for base in ("DMO", "Hydro", "FOF"):
        shutil.copytree(root / base, tmp_path / base)
    moved = replace(suite, dmo_base=tmp_path / "DMO", hydro_base=tmp_path / "Hydro", catalogue_base=tmp_path / "FOF")
    plan = plan_of(config_of(moved, tmp_path / "out"))
    shutil.rmtree(tmp_path / "DMO" / "SB35_0")
    for path in (tmp_path / "Hydro" / "SB35_2").rglob("*.hdf5"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output(run_job(written(plan, tmp_path / "work"), 2))
    results = results_in(tmp_path / "work", plan)
    assert results["SB35_1"].samples
    for name, place in (("SB35_0", "DMO"), ("SB35_2", "Hydro")):
        assert not results[name].samples
        assert any(str(tmp_path / place / name) in finding.message for finding in results[name].findings)


# Disturbances


def test_a_job_of_another_size_is_refused(suite: MockSuite, tmp_path: Path) -> None:
    """A job that is not as large as the launcher was asked for says so once, and makes nothing."""
    plan = written(plan_of(config_of(suite, tmp_path)), tmp_path / "work")
    program = [sys.executable, "-m", "mpi4py", "-m", "tasks.projection_job", str(plan), "--ranks", "3"]
    wrong = subprocess.run(
        [str(MPIEXEC), "-n", "2", *program], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert message_of(wrong, "job of 3 ranks", "one of 2").count("Starting") == 1
    assert not digests(tmp_path)


def test_an_unusable_backend_is_said_and_nobody_waits(suite: MockSuite, tmp_path: Path) -> None:
    """If the first rank cannot use the backend, all ranks end with its message."""
    (tmp_path / "MAS_library.py").write_text("raise ImportError('broken')\n")
    config = config_of(suite, tmp_path).model_copy(update={"backend": Backend.PYLIANS})
    plan = written(plan_of(config), tmp_path / "work")
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + SCRIPT
    source += (
        "from bind_core.errors import ProjectionError\n"
        "try:\n    run()\nexcept ProjectionError as error:\n"
        "    everyone = comm.gather(str(error))\n    if comm.rank == 0:\n"
        "        import json\n        print(json.dumps(everyone), flush=True)\n"
    )
    messages = last_line(run_mpi(source, 3, plan))
    assert len(messages) == 3
    assert all("make pylians" in message for message in messages)


def test_a_folder_that_cannot_be_written_fails_its_simulation_only(suite: MockSuite, tmp_path: Path) -> None:
    """Where one simulation's samples cannot be written, the job says so and fails, and the others are made."""
    plan = plan_of(config_of(suite, tmp_path))
    folder = DatasetLayout(tmp_path, "SB35").simulation_folder(plan.simulations[1].split, "SB35_1")
    folder.parent.mkdir()
    folder.write_text("in the way")
    message_of(run_job(written(plan, tmp_path / "work"), 2), str(folder), "SB35_1")
    assert set(results_in(tmp_path / "work", plan)) == {"SB35_0", "SB35_2"}
    assert not temporaries(tmp_path)


def test_a_result_that_cannot_be_written_ends_all_ranks(suite: MockSuite, tmp_path: Path) -> None:
    """A result is written by one rank: if it cannot be, the others do not wait for it."""
    plan = plan_of(config_of(suite, tmp_path))
    path = written(plan, tmp_path / "work")
    result_file(tmp_path / "work", "SB35_1").mkdir()
    failed = run_job(path, 3)
    assert failed.returncode != 0
    assert "SB35_1.result.json" in failed.stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_loses_nothing(suite: MockSuite, undisturbed_long: Path, tmp_path: Path, victim: int) -> None:
    """If a rank is killed while projecting, the job fails, no sample is half written, and a repeat gives the same."""
    root = tmp_path / "out"
    path = written(plan_of(config_of(suite, root, LONG)), root / "work")
    program = [sys.executable, "-m", "mpi4py", "-m", "tasks.projection_job", str(path), "--ranks", "2"]
    job = subprocess.Popen(
        [str(MPIEXEC), "-n", "2", *program],
        env=environment(),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(root.rglob("*.npz")), "the first sample")
    os.kill(sorted(ranks_of(str(path)))[victim], signal.SIGKILL)
    assert job.wait(timeout=60) != 0
    wait_for(lambda: not processes(str(path)), "the end of all ranks")
    complete = digests(undisturbed_long)
    assert digests(root).items() <= complete.items()
    assert len(digests(root)) < len(complete)
    output(run_job(path, 2))
    assert digests(root) == complete
    assert not temporaries(root)


def test_what_killed_jobs_left_half_written_is_removed(suite: MockSuite, tmp_path: Path) -> None:
    """Temporary files of a job that was killed are gone after the next one, and other files are left alone."""
    plan = plan_of(config_of(suite, tmp_path, 1))
    output(run_job(written(plan, tmp_path / "work"), 1))
    sample = next(tmp_path.rglob("*.npz"))
    leftover = sample.with_name(f".{sample.name}.0123456789abcdef.bind-tmp")
    leftover.write_bytes(b"half")
    note = sample.with_name("note.txt")
    note.write_text("mine")
    before = digests(tmp_path)
    output(run_job(tmp_path / "work" / "plan.json", 2))
    assert not leftover.exists()
    assert note.exists()
    assert digests(tmp_path) == before


def test_a_simulation_without_stars_is_made_on_idle_ranks(tmp_path: Path) -> None:
    """A simulation without stars is made on more ranks than files, some of which have nothing to read."""
    suite = write_mock_suite(
        tmp_path / "suite", simulations=1, particles_per_side=16, defects={"SB35_0": [Defect.NO_STARS]}
    )
    plan = plan_of(config_of(suite, tmp_path / "out", 1))
    output(run_job(written(plan, tmp_path / "work"), 4))
    samples = [read_sample(path) for path in (tmp_path / "out").rglob("*.npz")]
    assert samples
    assert all(np.all(sample.target[2] == 0) and np.all(sample.target[1].sum() > 0) for sample in samples)
