"""The batch program for real: its own processes, real files, `mpiexec`, kills and full disks."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_runs import (
    MPIEXEC,
    PROGRAM,
    bases,
    command,
    digests,
    environment,
    file_times,
    is_whole,
    message_of,
    output,
    processes,
    ranks_of,
    run,
    sample_rows,
    simulation_rows,
    statuses,
    temporaries,
    wait_for,
)

from storage.manifest import ManifestError
from storage.mock_suite import Defect, MockSuite, write_mock_suite

SMALL = ["--resolution", 32, "--num_rotations", 2]
LONG = ["--resolution", 64, "--num_rotations", 60]
BY_ONE = "simulations_per_block: 1\n"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Three sound simulations, each in another layout; tests must not change them."""
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16)


@pytest.fixture(scope="module")
def undisturbed(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of a long run that nothing disturbed."""  # noqa: D401
    root = tmp_path_factory.mktemp("undisturbed")
    output(run(*bases(suite), *LONG, "--output_base_root", root))
    return root


@pytest.fixture
def by_one(tmp_path: Path) -> Path:
    """A configuration with a commit after each simulation."""  # noqa: D401
    file = tmp_path / "by_one.yaml"
    file.write_text(BY_ONE)
    return file


def assert_completes(root: Path, undisturbed: Path, *arguments: object, ranks: int = 0) -> None:
    """Check that a run completes a data set so that it equals one that nothing disturbed."""
    output(run(*arguments, ranks=ranks))
    assert is_whole(root)
    assert digests(root) == digests(undisturbed)
    assert sample_rows(root).equals(sample_rows(undisturbed))


# Commands


def test_the_issue_s_first_command_works_from_anywhere(suite: MockSuite, tmp_path: Path) -> None:
    """With the folders in the environment, the documented command makes a range, from any current folder."""
    finished = run(
        *["--resolution", "32", "--total_sims", "3", "--start_sim", "0", "--end_sim", "3", "--num_rotations", "2"],
        *("--output_base_root", "OUT"),
        cwd=tmp_path,
        BIND_NBODY_BASE=suite.dmo_base,
        BIND_HYDRO_BASE=suite.hydro_base,
        BIND_FOF_NBODY_BASE=suite.catalogue_base,
    )
    assert "3 complete" in output(finished)
    assert is_whole(tmp_path / "OUT")
    assert len(digests(tmp_path / "OUT")) == sum(h.m200c > 1e13 for halos in suite.halos.values() for h in halos) * 2


@pytest.mark.mpi
def test_the_issue_s_second_command_works(suite: MockSuite, tmp_path: Path) -> None:
    """With the folders as flags and under mpirun, it makes the same files and the same manifest as without."""
    mpirun = MPIEXEC.with_name("mpirun")
    line = [mpirun, "-n", 3, sys.executable, PROGRAM, "--resolution", 32, "--total_sims", 3, "--num_rotations", 2]
    subprocess.run(
        [str(word) for word in [*line, *bases(suite), "--output_base_root", tmp_path / "mpi"]],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
    )
    output(run(*bases(suite), *SMALL, "--output_base_root", tmp_path / "plain"))
    assert digests(tmp_path / "mpi") == digests(tmp_path / "plain")
    assert sample_rows(tmp_path / "mpi").equals(sample_rows(tmp_path / "plain"))
    assert simulation_rows(tmp_path / "mpi").equals(simulation_rows(tmp_path / "plain"))


def test_flags_replace_the_file_and_the_file_replaces_the_environment(suite: MockSuite, tmp_path: Path) -> None:
    """A value is taken from a flag, else from --config, else from the environment; an empty variable is none."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"dmo_base: {suite.dmo_base}\nhydro_base: {suite.hydro_base}\nparameter_file: {suite.parameter_file}\n"
        f"output_root: {tmp_path / 'of_file'}\nresolution: 64\nstrata: [{{rotations: 5}}]\n"
    )
    finished = run(
        *("--config", file, "--resolution", 32, "--num_rotations", 1, "--total_sims", 1),
        BIND_NBODY_BASE="/nowhere",
        BIND_PARAM_FILE="/nowhere",
        BIND_DATASET="/nowhere/either",
        BIND_FOF_NBODY_BASE=suite.catalogue_base,
    )
    assert "Made 6 samples" in output(finished)
    text = (tmp_path / "of_file" / "dataset.yaml").read_text()
    assert "resolution: 32" in text
    assert f"dmo_base: {suite.dmo_base}" in text
    message_of(run("--config", file, BIND_FOF_NBODY_BASE=""), "--fof_nbody_base", "BIND_FOF_NBODY_BASE")


def test_the_recorded_configuration_holds_in_any_folder(suite: MockSuite, tmp_path: Path) -> None:
    """Folders given relative to the current one are recorded as absolute: the data set can be asked from anywhere."""
    root = suite.dmo_base.parent
    places = ["--nbody_base", "DMO", "--hydro_base", "./Hydro", "--fof_nbody_base", "FOF"]
    output(run(*places, *SMALL, "--total_sims", 1, "--output_base_root", os.path.relpath(tmp_path, root), cwd=root))
    status = subprocess.run(
        [str(Path(sys.executable).with_name("bind-data")), "status", "--dataset", str(tmp_path), "--json"],
        cwd="/",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert '"simulation": "SB35_2"' in status.stdout, status.stderr
    assert "out of reach" not in status.stderr


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_dry_run_writes_nothing(suite: MockSuite, tmp_path: Path, ranks: int) -> None:
    """--dry_run names every simulation with its samples, those that do not exist too, and leaves no trace."""
    root = tmp_path / "out"
    said = output(run(*bases(suite), *SMALL, "--total_sims", 4, "--dry_run", "--output_base_root", root, ranks=ranks))
    assert "SB35_0: samples missing; 12 samples planned, 12 to be made" in said
    assert "SB35_3: does not exist" in said
    assert "36 samples to be made of 4 simulations in 1 blocks." in said
    assert said.count("SB35_0") == 1
    assert not root.exists()


@pytest.mark.mpi
def test_help_is_printed_once(tmp_path: Path) -> None:
    """Under mpirun, one rank speaks for all, in help as in errors."""
    assert output(run("--help", ranks=2)).count("usage:") == 1
    wrong = run("--resolution", "many", ranks=2)
    assert wrong.returncode != 0
    assert wrong.stderr.count("invalid int value") == 1
    missing = run("--output_base_root", tmp_path, ranks=2)
    assert message_of(missing, "BIND_HYDRO_BASE").count("ConfigurationError") == 1


def test_no_prefect_is_imported(suite: MockSuite, tmp_path: Path) -> None:
    """A whole run imports neither Prefect nor the flows."""
    arguments = [str(word) for word in [*bases(suite), *SMALL, "--total_sims", 1, "--output_base_root", tmp_path]]
    code = (
        "import sys, process_simulations\n"
        f"assert process_simulations.main({arguments!r}) == 0\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in {'prefect', 'flows'}))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROGRAM.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert output(finished).endswith("[]\n")


# Which simulations


def test_missing_simulations_are_reported_and_fail_the_run(suite: MockSuite, tmp_path: Path) -> None:
    """A simulation of the range that does not exist fails the run, and the others are made; unless it may be skipped."""  # noqa: E501
    arguments = [*bases(suite), *SMALL, "--start_sim", 1, "--end_sim", 5, "--output_base_root", tmp_path]
    failed = run(*arguments)
    message_of(failed, "SB35_3: absent", "SB35_4: absent", "--skip_missing")
    assert statuses(tmp_path) == {f"SB35_{i}": "complete" if i < 3 else "blocked" for i in (1, 2, 3, 4)}
    assert "Skipped 2 simulations that do not exist: SB35_3, SB35_4" in output(run(*arguments, "--skip_missing"))
    assert is_whole(tmp_path)


def test_a_range_without_any_simulation_is_an_error(suite: MockSuite, tmp_path: Path) -> None:
    """Where nothing exists of what was asked for, --skip_missing and the lack of a range make no success of it."""
    arguments = [*bases(suite), *SMALL, "--output_base_root", tmp_path / "out"]
    message_of(run(*arguments, "--start_sim", 7, "--end_sim", 9, "--skip_missing"), "SB35_7", "exists")
    message_of(run(*arguments, "--set", "CV"), "no simulation of set CV")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "asked", [["--start_sim", 2, "--end_sim", 2], ["--total_sims", 2, "--end_sim", 3], ["--start_sim", 1]]
)
def test_ranges_that_are_none_are_refused(suite: MockSuite, tmp_path: Path, asked: list[object]) -> None:
    """Empty, open and overlong ranges are errors that name the flags."""
    message_of(run(*bases(suite), *asked, "--output_base_root", tmp_path), "--start_sim", "--end_sim", "--total_sims")


def test_extending_makes_only_what_is_missing(suite: MockSuite, tmp_path: Path) -> None:
    """More simulations, more rotations and a lower threshold add samples and touch none that exist."""
    arguments = [*bases(suite), "--resolution", 32, "--output_base_root", tmp_path]
    made = []
    for more in (
        ["--num_rotations", 1, "--total_sims", 1],
        ["--num_rotations", 1],
        ["--num_rotations", 2],
        ["--num_rotations", 2, "--mass_threshold", 3e12],
    ):
        before = file_times(tmp_path)
        output(run(*arguments, *more))
        after = file_times(tmp_path)
        assert {path: after.get(path) for path in before} == before
        made.append(len(after) - len(before))
    light = sum(3e12 < halo.m200c <= 1e13 for halos in suite.halos.values() for halo in halos)
    assert made == [6, 12, 18, 2 * light]
    assert light > 0
    assert is_whole(tmp_path)


def test_a_second_run_does_nothing_and_says_so(suite: MockSuite, tmp_path: Path) -> None:
    """The same command again changes no byte below the root, and says that nothing was to be made."""
    arguments = [*bases(suite), *SMALL, "--output_base_root", tmp_path]
    output(run(*arguments))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "Nothing was to be made; 36 of 36 planned samples exist" in output(run(*arguments))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# What cannot be done


def test_settings_that_would_change_samples_are_refused(suite: MockSuite, tmp_path: Path) -> None:
    """Another seed, resolution, backend or share of tests than the data set's is refused, and nothing is touched."""
    arguments = [*bases(suite), *SMALL, "--total_sims", 1, "--output_base_root", tmp_path]
    output(run(*arguments))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for changed, setting in (
        (["--seed", 7], "root_seed"),
        (["--resolution", 64], "resolution"),
        (["--backend", "reference", "--test_frac", 0.5], "backend"),
    ):
        message_of(run(*arguments, *changed), "ConfigurationMismatchError", setting)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_wrong_places_get_one_clear_message(suite: MockSuite, tmp_path: Path) -> None:
    """Wrong folders, files and values end a run at once with a message that names them, and without a traceback."""
    out = ["--output_base_root", tmp_path / "out"]
    good = [*bases(suite), *SMALL, *out]
    file = tmp_path / "file"
    file.write_text("strata: {rotations: 3}")
    broken = tmp_path / "broken.yaml"
    broken.write_text("resolution: [")
    for arguments, expected in (
        ([*good, "--nbody_base", tmp_path / "nowhere", "--total_sims", 1], ["dmo_base", "nowhere"]),
        ([*good, "--fof_nbody_base", file], ["catalogue_base", str(file)]),
        ([*good, "--config", tmp_path / "none.yaml"], ["none.yaml"]),
        ([*good, "--config", tmp_path], [str(tmp_path)]),
        ([*good, "--config", broken], ["broken.yaml", "YAML"]),
        ([*good, "--config", file], ["strata", "--num_rotations"]),
        ([*good, "--param_file", tmp_path / "table.txt"], ["table.txt"]),
        ([*good, "--output_base_root", file / "out"], ["output_root", str(file)]),
        ([*good, "--resolution", 33], ["resolution", "33"]),
        ([*good, "--num_rotations", 0], ["rotations", "0"]),
        ([*good, "--mass_threshold", "nan"], ["min_mass", "nan"]),
        ([*good, "--test_frac", 1.5], ["test_fraction", "1.5"]),
    ):
        said = message_of(run(*arguments), *expected)
        assert said.count("Error: ") == 1
    assert not digests(tmp_path)


def test_a_suite_without_parameter_table_is_refused(tmp_path: Path) -> None:
    """Without a parameter table nothing is made, and the message says where it was looked for and how to name one."""
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=16)
    suite.parameter_file.unlink()
    message_of(run(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out"), "CosmoAstroSeed", "--param_file")
    assert not digests(tmp_path)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [0, 2])
def test_an_output_that_fails_in_the_middle_fails_its_simulation_only(
    suite: MockSuite, tmp_path: Path, ranks: int
) -> None:
    """Where one simulation's folder cannot be written, the other simulations of its block are made and recorded."""
    (tmp_path / "train").mkdir(parents=True)
    (tmp_path / "train" / "sim_1").write_text("in the way")
    arguments = [*bases(suite), *SMALL, "--output_base_root", tmp_path]
    message_of(run(*arguments, ranks=ranks), "sim_1", "SB35_1")
    assert statuses(tmp_path) == {"SB35_0": "complete", "SB35_1": "failed", "SB35_2": "complete"}
    assert is_whole(tmp_path)
    (tmp_path / "train" / "sim_1").unlink()
    assert "Made 12 samples" in output(run(*arguments, ranks=ranks))


@pytest.mark.mpi
def test_ranks_that_find_themselves_alone_are_refused(suite: MockSuite, tmp_path: Path) -> None:
    """Under the mpirun of another MPI, which starts lonely processes, none of them runs."""
    arguments = [*bases(suite), *SMALL, "--output_base_root", tmp_path / "out"]
    message_of(run(*arguments, OMPI_COMM_WORLD_SIZE=4), "4 ranks", "one of 1", "launcher")
    assert not (tmp_path / "out").exists()


# Disturbances


@pytest.mark.mpi
@pytest.mark.parametrize("moment", ["start", "first sample", "half way", "first commit", "second commit"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_killed_run_can_be_repeated(
    suite: MockSuite, undisturbed: Path, by_one: Path, tmp_path: Path, moment: str, ranks: int
) -> None:
    """After kill -9 at any moment no sample is half written, and the same command gives what nothing disturbed."""
    root = tmp_path / "out"
    total = len(digests(undisturbed))
    reached = {
        "start": root.exists,
        "first sample": lambda: any(root.rglob("*.npz")),
        "half way": lambda: len(list(root.rglob("*.npz"))) > total // 2,
        "first commit": (root / "manifest" / "samples" / "_delta_log" / f"{0:020}.json").exists,
        "second commit": (root / "manifest" / "samples" / "_delta_log" / f"{1:020}.json").exists,
    }
    arguments = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    process = subprocess.Popen(
        command(*arguments, ranks=ranks),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: reached[moment]() or process.poll() is not None, moment)
        for victim in processes(str(root)):
            kill(victim)
    finally:
        process.kill()
        process.wait(timeout=60)
    wait_for(lambda: not processes(str(root)), "the end of all processes", 30)
    half = digests(root)
    assert half.items() <= digests(undisturbed).items()
    assert_completes(root, undisturbed, *arguments, ranks=ranks)


def kill(process: int) -> None:
    """Kill a process that may have ended meanwhile."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.mpi
@pytest.mark.parametrize("victim", ["first rank", "last rank", "mpiexec", "proxy"])
def test_a_killed_process_ends_the_job(
    suite: MockSuite, undisturbed: Path, by_one: Path, tmp_path: Path, victim: str
) -> None:
    """If one rank or the launcher is killed, all ranks end with a status, and the run can be repeated."""
    root = tmp_path / "out"
    arguments = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    process = subprocess.Popen(
        command(*arguments, ranks=2),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(root.rglob("*.npz")), "the first sample")
    ranks = sorted(ranks_of(str(root)))
    proxy = [pid for pid in processes("hydra_pmi_proxy") if parent_of(pid) == process.pid]
    chosen = {"first rank": ranks[0], "last rank": ranks[-1], "mpiexec": process.pid, "proxy": proxy[0]}[victim]
    os.kill(chosen, signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    wait_for(lambda: not processes(str(root)), "the end of all ranks", 30)
    assert digests(root).items() <= digests(undisturbed).items()
    assert_completes(root, undisturbed, *arguments, ranks=2)


def parent_of(process: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_interrupted_run_says_how_to_go_on(suite: MockSuite, by_one: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a plain run with one line, and what was recorded stays."""
    root = tmp_path / "out"
    arguments = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(root.rglob("*.npz")), "the first sample")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, said + errors
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert not temporaries(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""  # noqa: D401
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_full_disk_does_no_damage(
    suite: MockSuite, undisturbed: Path, by_one: Path, small_disk: Path, ranks: int
) -> None:
    """A full disk gives an error that says so, what was recorded stays whole, and with room the run completes."""
    root = small_disk / "out"
    arguments = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    message_of(run(*arguments, ranks=ranks), "Cannot write", "free")
    assert not temporaries(root)
    assert digests(root).items() <= digests(undisturbed).items()
    recorded = dict(zip(sample_rows(root)["path"], sample_rows(root)["sha256"], strict=True))
    assert recorded.items() <= digests(root).items()
    message_of(run(*arguments, ranks=ranks), "Cannot write", "free")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert_completes(root, undisturbed, *arguments, ranks=ranks)


# Bad input


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [0, 2])
def test_bad_simulations_are_blocked_and_the_others_made(tmp_path: Path, ranks: int) -> None:
    """Every simulation with a defect is blocked with its finding and has no sample; the sound ones are made."""
    defects = {
        "SB35_1": Defect.NAN_POSITIONS,
        "SB35_2": Defect.POSITIONS_OUT_OF_BOX,
        "SB35_3": Defect.NEGATIVE_MASS,
        "SB35_5": Defect.MISPAIRED,
        "SB35_6": Defect.MISSING_HYDRO_SNAPSHOT,
        "SB35_7": Defect.TRUNCATED_FILE,
        "SB35_8": Defect.NO_PARAMETER_ROW,
        "SB35_9": Defect.NO_MASSIVE_HALO,
    }
    suite = write_mock_suite(
        tmp_path / "suite",
        simulations=11,
        particles_per_side=16,
        defects={name: [defect] for name, defect in defects.items()},
    )
    root = tmp_path / "out"
    failed = run(*bases(suite), *SMALL, "--output_base_root", root, ranks=ranks)
    expected = dict.fromkeys(suite.names, "blocked") | dict.fromkeys(["SB35_0", "SB35_4", "SB35_10"], "complete")
    assert statuses(root) == expected | {"SB35_9": "no_work"}
    message_of(failed, "not finite", *(f"{name}: " for name in defects if name != "SB35_9"))
    assert is_whole(root)
    assert set(sample_rows(root)["simulation"]) == {"SB35_0", "SB35_4", "SB35_10"}


def test_two_runs_at_once_make_no_duplicates(suite: MockSuite, tmp_path: Path) -> None:
    """Of two runs on one data set, at least one succeeds, and every sample is recorded once."""
    root = tmp_path / "out"
    arguments = [*bases(suite), *SMALL, "--output_base_root", root]
    both = [
        subprocess.Popen(
            command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert 0 in [process.returncode for process in both], said
    for process, errors in zip(both, said, strict=True):
        assert "Traceback" not in errors
        assert process.returncode == 0 or ManifestError.__name__ in errors
    assert is_whole(root)
    assert sample_rows(root)["sample_id"].is_unique().all()
    output(run(*arguments))
