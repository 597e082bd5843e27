"""A simulation that does not fit into the memory of its node is refused with numbers, and the others are made."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from batch_runs import MPIEXEC, REPOSITORY, TIMEOUT, bases, command, environment, message_of, run, run_job, statuses
from block_runs import manifest_of, workload_of

from bench.memory import one_core, run_measured
from bind_core.config import DatasetConfig, LauncherName, Stratum
from bind_core.memory_need import MAPS_MEMORY, PROCESS_MEMORY, RANK_MEMORY, MemoryNeed, memory_need, shown_bytes
from bind_core.parameters import read_parameter_table
from bind_core.snapshot import read_header
from bind_core.suite import find_simulation
from storage.blocks import plan_block, screen_block
from storage.mock_suite import MockFormat, MockSuite, write_mock_suite
from storage.results import SimulationResult
from storage.room import LEAST_COMPRESSED
from tasks.block_files import result_file
from tasks.node_memory import InsufficientMemoryError, Limit, NodeMemory, memory_bytes, node_memory
from tasks.preflight import estimates

MANY = 60_000_000
"""Particles whose positions, of which none is written, a file may have holes for: it takes no room on disk."""
GIB, MIB = 1 << 30, 1 << 20


def claim(path: Path, count: int) -> None:
    """Let a snapshot hold many dark-matter particles, whose positions are a hole in the file."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "r+") as file:
        del file["PartType1/Coordinates"]
        file.create_dataset("PartType1/Coordinates", (count, 3), np.float32, dcpl=properties)
        header = file["Header"].attrs
        for name in ("NumPart_ThisFile", "NumPart_Total"):
            counts = np.asarray(header[name]).astype(np.uint64)
            counts[1] = count
            header[name] = counts
        header.pop("NumPart_Total_HighWord", None)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return two simulations, of which the first claims 60 million particles; tests must not change them."""
    options = {"simulations": 2, "particles_per_side": 8, "halos_per_simulation": 1}
    made = write_mock_suite(tmp_path_factory.mktemp("suite"), formats=[MockFormat()], **options)
    claim(next((made.dmo_base / "SB35_0").rglob("*.hdf5")), MANY)
    return made


def config_of(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    return DatasetConfig.from_values(
        {
            "dmo_base": suite.dmo_base,
            "hydro_base": suite.hydro_base,
            "catalogue_base": suite.catalogue_base,
            "parameter_file": suite.parameter_file,
            "output_root": root,
            "resolution": 32,
            "strata": (Stratum(rotations=2),),
            **settings,
        }
    )


def asked(suite: MockSuite, root: Path) -> list[object]:
    return [*bases(suite), "--resolution", 32, "--num_rotations", 2, "--output_base_root", root]


def test_a_simulation_that_does_not_fit_is_refused_and_the_others_are_made(suite: MockSuite, tmp_path: Path) -> None:
    """In a SLURM job of 1 GiB, 60 million particles are not read; it is said what they take and what is there."""
    done = run(*asked(suite, tmp_path), SLURM_MEM_PER_NODE=1024)
    said = message_of(done).replace("\n", " ")
    assert "Memory may not suffice: SB35_0, the largest, takes about 1." in said
    assert statuses(tmp_path) == {"SB35_0": "failed", "SB35_1": "complete"}
    message = manifest_of(config_of(suite, tmp_path)).latest_simulations()["message"][0]
    assert message.startswith("Making the samples of SB35_0 takes at least 1.3")
    assert "GiB for 60,000,000 particles of dmo" in message
    assert "1.00 GiB are there (SLURM_MEM_PER_NODE=1024, in MiB)" in message
    assert "Give the job a node" in message


@pytest.mark.mpi
def test_a_job_that_refuses_a_simulation_ends_well_and_is_not_repeated(
    suite: MockSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job of a block leaves a result that says so, within seconds, and status 0, which no launcher repeats."""
    config = config_of(suite, tmp_path)
    table = read_parameter_table(suite.parameter_file)
    plan = plan_block(screen_block(workload_of(config).outstanding, config, table), config, "run", 0)
    assert plan is not None
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")
    done = run_job(file, 2)
    assert done.returncode == 0, done.stderr
    assert "ERROR rank 0, SB35_0: Making the samples of SB35_0 takes at least 1.3" in done.stderr
    results = [SimulationResult.from_json(result_file(tmp_path, f"SB35_{n}").read_bytes()) for n in range(2)]
    assert results[0].lasting
    assert results[0].error.startswith("Making the samples of SB35_0")
    assert not results[1].error
    assert len(results[1].samples) == 2


@pytest.fixture
def group() -> Iterator[Path]:
    """Return a control group of memory of our own, with a limit of 1 GiB."""
    for hierarchy, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        place = hierarchy / f"bind-data-test-{os.getpid()}"
        try:
            place.mkdir()
        except OSError:
            continue
        try:
            (place / limit).write_text(str(GIB))
        except OSError:
            place.rmdir()
            continue
        yield place
        deadline = time.monotonic() + TIMEOUT
        while (place / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.1)
        place.rmdir()
        return
    pytest.skip("this machine does not let us make a control group of memory")


def refusal_of_the_first(suite: MockSuite, root: Path, *line: str) -> str:
    """Return why the first simulation was refused in a run that made the second one."""
    done = subprocess.run(
        line,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert statuses(root) == {"SB35_0": "failed", "SB35_1": "complete"}
    return str(manifest_of(config_of(suite, root)).latest_simulations()["message"][0])


def test_the_limit_of_a_real_control_group_counts(suite: MockSuite, tmp_path: Path, group: Path) -> None:
    """In a control group of 1 GiB, the message names its file, its limit, and what of it is in use."""
    shell = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    message = refusal_of_the_first(suite, tmp_path, *shell, *command(*asked(suite, tmp_path)))
    assert f"are there ({group}/memory." in message
    assert "1,073,741,824 bytes, of which" in message


@pytest.mark.mpi
def test_a_small_file_system_of_shared_memory_is_no_crash(suite: MockSuite, tmp_path: Path) -> None:
    """Ranks that would share 687 MiB in a /dev/shm of 64 MiB, which would end in a SIGBUS, are told, and go on."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can have a /dev/shm of its own")
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a /dev/shm of our own")
    shell = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    message = refusal_of_the_first(suite, tmp_path, *shell, *command(*asked(suite, tmp_path), ranks=2))
    assert message.startswith("The ranks that make SB35_0 share 686.7")
    assert "MiB are free in /dev/shm" in message


def test_a_job_that_asks_for_too_little_is_not_submitted(suite: MockSuite, tmp_path: Path) -> None:
    """Where slurm_job.memory is less than the particles take, a simulation is left out of its block, with a reason."""
    table = read_parameter_table(suite.parameter_file)
    slurm = {"launcher": LauncherName.SBATCH, "slurm_job": {"memory": "1G"}}
    config = config_of(suite, tmp_path, **slurm)
    screened = screen_block(workload_of(config).outstanding, config, table)
    assert "takes at least 1.3" in screened[0].problem
    assert "but slurm_job.memory is 1G. No job was submitted for it. Ask for 1." in screened[0].problem
    plan = plan_block(screened, config, "run", 0)
    assert plan is not None
    assert [simulation.simulation for simulation in plan.simulations] == ["SB35_1"]
    enough = config_of(suite, tmp_path, **slurm | {"slurm_job": {"memory": "2048"}})
    assert not any(each.problem for each in screen_block(workload_of(enough).outstanding, enough, table))


def test_a_dry_run_says_what_a_run_would_take(suite: MockSuite, tmp_path: Path) -> None:
    """Bytes on disk and the memory of a node are told, of the largest simulation, before anything is asked for."""
    config = config_of(suite, tmp_path, ranks=16)
    disk, memory = estimates(config, manifest_of(config), workload_of(config))
    assert disk.startswith("Disk: ")
    assert "for 4 samples" in disk
    assert memory.startswith("Memory of a node: SB35_0, the largest, takes about 3.")
    assert "2.25 GiB for processes" in memory
    done = run(*asked(suite, tmp_path / "out"), "--dry_run")
    assert done.returncode == 0
    assert "Memory of a node: SB35_0, the largest, takes about 1." in done.stdout.replace("\n", " ")


@pytest.fixture
def system(tmp_path: Path) -> Callable[..., NodeMemory]:
    """Return a function that asks for the memory of a node with given files in /proc and /sys/fs/cgroup."""

    def ask(files: dict[str, str], **variables: str) -> NodeMemory:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return node_memory(tmp_path / "proc", tmp_path / "cgroup", tmp_path, variables)

    return ask


def test_the_least_of_all_limits_counts(system: Callable[..., NodeMemory]) -> None:
    """MemAvailable, a control group of either version anywhere above the process, and SLURM each can be the least."""
    available = {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 4194304 kB\n", "proc/self/cgroup": "0::/a/b/c\n"}
    free = system(available).free
    assert free.bytes == 4 * GIB
    assert "MemAvailable" in free.source
    above = {
        "cgroup/a/memory.max": f"{3 * GIB}\n",
        "cgroup/a/memory.current": f"{GIB}\n",
        "cgroup/a/b/memory.max": "max",
    }
    free = system(above).free
    assert free.bytes == 2 * GIB
    assert "cgroup/a/memory.max" in free.source
    system({"cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\nshmem {GIB}\n"})
    assert system({}).free.bytes == 2 * GIB + 3 * GIB // 4  # pages of files can be given up
    first = {
        "proc/self/cgroup": "4:cpu,memory:/job\n0::/a/b/c\n",
        "cgroup/memory/job/memory.limit_in_bytes": f"{GIB}",
        "cgroup/memory/job/memory.usage_in_bytes": f"{GIB // 4}",
    }
    assert system(first).free.bytes == 3 * GIB // 4
    assert system({}, SLURM_MEM_PER_NODE="512").free.bytes == 512 * MIB
    assert system({}, SLURM_MEM_PER_CPU="100", SLURM_CPUS_ON_NODE="4").free == Limit(
        400 * MIB, "SLURM_MEM_PER_CPU=100, in MiB, on SLURM_CPUS_ON_NODE=4 cores"
    )


def test_a_system_that_does_not_tell_has_the_memory_of_the_machine(tmp_path: Path) -> None:
    """Without /proc, control groups and SLURM, only the machine itself is a limit."""
    nowhere = tmp_path / "nowhere"
    memory = node_memory(nowhere, nowhere, nowhere, {})
    assert memory.free.bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.shared is None
    assert memory_bytes(nowhere, nowhere, {}) == memory.free.bytes


def test_what_is_just_enough_is_enough() -> None:
    """A node with what the arrays take is not refused: what else is needed is not certain."""
    need = MemoryNeed("SB35_0", "gas", 10, particle_bytes=70, map_bytes=30, shared_bytes=60, process_bytes=1000)
    NodeMemory(Limit(100, "here"), Limit(60, "/dev/shm")).require(need)  # noqa: S108
    NodeMemory(Limit(100, "here"), None).require(need)
    with pytest.raises(InsufficientMemoryError, match=r"at least 100 bytes .* 99 bytes are there \(here\)"):
        NodeMemory(Limit(99, "here"), None).require(need)
    with pytest.raises(InsufficientMemoryError, match=r"share 60 bytes of memory .* 59 bytes are free in there"):
        NodeMemory(Limit(100, "here"), Limit(59, "there")).require(need)


def test_the_page_has_the_numbers_of_the_program() -> None:
    """The formula for people in docs/cluster.md is the one that the program computes."""
    page = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    found = re.search(r"(0\.\d+) \+ (0\.\d+) · n \+ (0\.\d+) · \(r - 1\) \+ min\((\d), S · m / 1024\)", page)
    assert found is not None
    process, per_million, rank, maps = (float(number) for number in found.groups())
    assert (round(process * GIB), round(rank * GIB), maps * GIB) == (PROCESS_MEMORY, RANK_MEMORY, MAPS_MEMORY)
    assert per_million * GIB == pytest.approx(1e6 * 2 * (3 + 1) * 4, rel=0.02)
    (certain,) = re.findall(r"taken for certain before a run \| (.*) \|", page)
    parts = [part for _, part in LEAST_COMPRESSED]
    assert [float(number) for number in certain.split(" | ")] == [parts[2], parts[1], *[parts[0]] * 3]


@pytest.mark.mpi
@pytest.mark.parametrize(("side", "ranks"), [(64, 1), (128, 2)])
def test_the_estimate_is_what_a_run_takes(tmp_path: Path, side: int, ranks: int) -> None:
    """The largest sum over all ranks, with what they share counted once, is within a factor of 1.6 of the estimate."""
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=side, halos_per_simulation=4)
    program = command(*bases(suite), "--output_base_root", tmp_path / "out", "--num_rotations", 10)
    launched = [str(MPIEXEC), "-n", str(ranks), *program] if ranks > 1 else program
    cores = sorted(os.sched_getaffinity(0))
    measured = run_measured(launched, one_core(environment()), cores, memory=True).peak_bytes
    config = config_of(suite, tmp_path / "out", resolution=128)
    files = find_simulation("SB35_0", config)
    headers = {inputs.role: read_header(inputs.files[0]) for inputs in (files.dmo, files.hydro)}
    need = memory_need("SB35_0", config, headers, samples=40, ranks=ranks)
    assert need.certain < measured, shown_bytes(measured)
    assert measured / 1.6 < need.expected < measured * 1.6, shown_bytes(measured)
