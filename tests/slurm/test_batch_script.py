"""scripts/run_data_generation.sh on a real SLURM: as one job, as an array, cancelled and resumed."""

import subprocess
import sys
from pathlib import Path

import pytest
from batch_runs import (
    REPOSITORY,
    digests,
    environment,
    file_times,
    is_whole,
    message_of,
    processes,
    sample_rows,
    statuses,
    temporaries,
)
from block_runs import make
from slurm_cluster import Cluster, wait_until

from bind_core.config import DatasetConfig
from storage.mock_suite import MockSuite

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

SCRIPT = REPOSITORY / "scripts" / "run_data_generation.sh"


def configuration(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    values = {"resolution": 32, "simulations_per_block": 1, "strata": [{"rotations": 2}], **settings}
    bases = {name: getattr(suite, name) for name in ("dmo_base", "hydro_base", "catalogue_base", "parameter_file")}
    return DatasetConfig.from_values({**bases, "output_root": root, **values})


def variables(suite: MockSuite, root: Path) -> dict[str, str]:
    """Return the environment of somebody who submits the script."""
    folders = {
        "BIND_NBODY_BASE": suite.dmo_base,
        "BIND_HYDRO_BASE": suite.hydro_base,
        "BIND_FOF_NBODY_BASE": suite.catalogue_base,
        "BIND_DATASET": root,
    }
    return environment(BIND_PYTHON=sys.executable, **folders)


@pytest.fixture(scope="module")
def undisturbed(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the digests of all samples as one process makes them."""
    config = configuration(suite, tmp_path_factory.mktemp("undisturbed"))
    make(config)
    return digests(config.output_root)


class Submission:
    """The script as it is submitted again and again for one data set."""

    def __init__(self, suite: MockSuite, folder: Path, cluster: Cluster) -> None:
        self.root = folder / "dataset"
        self.folder = folder
        self.cluster = cluster
        self.variables = variables(suite, self.root)

    def submit(self, *flags: str, wait: bool = True, arguments: tuple[str, ...] = ()) -> str:
        """Submit the script, from another folder than the repository; return the job's number."""
        line = ["sbatch", "--parsable", "--mem=1500", *flags, str(SCRIPT), *arguments]
        done = subprocess.run(
            line, env=self.variables, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        number = done.stdout.strip()
        assert number, done.stderr
        if wait:
            wait_until(lambda: not self.cluster.running(number), "the end of the job", 300)
            assert self.cluster.states(number) == {"COMPLETED"}, self.log(number)
        return number

    def log(self, number: str) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"slurm-{number}*.out")))


@pytest.fixture
def submission(suite: MockSuite, tmp_path: Path, cluster: Cluster) -> Submission:
    return Submission(suite, tmp_path, cluster)


SMALL = ("--resolution", "32", "--num_rotations", "2")


def test_one_job_makes_the_data_set_and_the_next_one_nothing(
    submission: Submission, undisturbed: dict[str, str]
) -> None:
    """Two ranks of one job, which share memory, make the same bytes as one process; the same job again makes none."""
    number = submission.submit("--ntasks=2", arguments=SMALL)
    assert is_whole(submission.root), submission.log(number)
    assert digests(submission.root) == undisturbed
    before = file_times(submission.root)
    submission.submit("--ntasks=2", arguments=SMALL)
    assert file_times(submission.root) == before


def test_tasks_of_an_array_make_one_data_set_at_the_same_time(
    submission: Submission, undisturbed: dict[str, str]
) -> None:
    """Every task makes its share, no sample is made or recorded twice, and some tasks can be submitted again."""
    number = submission.submit("--array=0-2", "--ntasks=1", "--mem=800", arguments=SMALL)
    assert digests(submission.root) == undisturbed, submission.log(number)
    assert set(statuses(submission.root).values()) == {"complete"}
    rows = sample_rows(submission.root)
    assert rows.height == rows["sample_id"].n_unique() == len(undisturbed)
    submission.variables["BIND_SHARES"] = "3"
    submission.submit("--array=1", "--ntasks=1", arguments=("--resolution", "32", "--num_rotations", "3"))
    more = sample_rows(submission.root).filter(rotation=2)
    assert set(more["simulation"]) == {"SB35_1"}


def test_a_cancelled_job_is_resumed_by_submitting_it_again(
    submission: Submission, suite: MockSuite, tmp_path: Path
) -> None:
    """After scancel in the middle no rank is left, and the same job again makes the rest, to the same bytes."""
    config = configuration(suite, submission.root, strata=[{"rotations": 30}])
    undisturbed = config.model_copy(update={"output_root": tmp_path / "undisturbed"})
    make(undisturbed)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    submission.variables["BIND_CONFIG"] = str(file)
    number = submission.submit("--ntasks=2", wait=False)
    wait_until(lambda: any(submission.root.rglob("*.npz")), "the first sample")
    submission.cluster.said("scancel", number)
    wait_until(lambda: submission.cluster.states(number) == {"CANCELLED"}, "the end of the job")
    wait_until(lambda: not processes(str(file)), "the end of all ranks")
    assert len(digests(submission.root)) < len(digests(undisturbed.output_root))
    number = submission.submit("--ntasks=2")
    assert is_whole(submission.root), submission.log(number)
    assert digests(submission.root) == digests(undisturbed.output_root)
    assert not temporaries(submission.root)


def test_it_runs_in_an_allocation_too(submission: Submission) -> None:
    """Inside salloc, the script runs in the foreground."""
    line = ["salloc", "--ntasks=2", "--mem=1500", "bash", str(SCRIPT), *SMALL, "--dry_run"]
    done = subprocess.run(
        line, env=submission.variables, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "samples to be made of 4 simulations" in done.stdout
    assert not submission.root.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_JOB_ID": None}, ("runs inside a SLURM job", "sbatch")),
        ({"BIND_HYDRO_BASE": None, "BIND_DATASET": None}, ("not set: BIND_HYDRO_BASE BIND_DATASET.",)),
        ({"BIND_CONFIG": "/nowhere.yaml"}, ("/nowhere.yaml", "cannot be read")),
        ({"BIND_PYTHON": "/usr/bin/env"}, ("/usr/bin/env", "has no bind-data", "BIND_PYTHON")),
        ({"BIND_REPOSITORY": "/usr"}, ("/usr", "process_simulations.py")),
        (
            {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_MAX": "7",
            },
            ("2 tasks, 3 to 7", "BIND_SHARES"),
        ),
        ({"SLURM_ARRAY_TASK_ID": "3", "BIND_SHARES": "3"}, ("Task 3", "0 to 2")),
    ],
)
def test_what_is_missing_is_said_at_once(
    suite: MockSuite, tmp_path: Path, changes: dict[str, str | None], words: tuple[str, ...]
) -> None:
    """A variable, an environment or an array that cannot be right ends the job before anything is started."""
    given = variables(suite, tmp_path / "dataset") | {"SLURM_JOB_ID": "1"}
    chosen = {name: value for name, value in (given | changes).items() if value is not None}
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=chosen, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    message_of(done, *words)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())
