"""The batch program for real: its own processes, real files, `mpiexec`, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_runs import (
    MPIEXEC,
    PROGRAM,
    SMALL,
    TIMEOUT,
    assert_same,
    bases,
    digests,
    environment,
    file_times,
    is_whole,
    message_of,
    output,
    run,
    sample_rows,
    statuses,
)

import process_simulations
from storage.mock_suite import Defect, MockSuite, write_mock_suite

Program = Callable[..., tuple[int, str, str]]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Three sound simulations, each in another layout; tests must not change them."""
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a function that runs the program in this process, and returns its status, output and error output."""
    for variable in ("BIND_NBODY_BASE", "BIND_HYDRO_BASE", "BIND_FOF_NBODY_BASE", "BIND_PARAM_FILE", "BIND_DATASET"):
        monkeypatch.delenv(variable, raising=False)

    def run_here(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = process_simulations.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run_here


@pytest.fixture
def refusal(program: Program) -> Refusal:
    """Return a function that runs the program, which it must refuse, and returns its one message."""

    def refuse(*arguments: object) -> str:
        status, said, errors = program(*arguments)
        assert status == 1, said
        assert errors.count("Error: ") == 1, errors
        return errors

    return refuse


@pytest.fixture
def success(program: Program) -> Callable[..., str]:
    """Return a function that runs the program, which must succeed, and returns what it said."""

    def succeed(*arguments: object) -> str:
        status, said, errors = program(*arguments)
        assert status == 0, said + errors
        return said

    return succeed


# Commands


def test_the_documented_command_works_from_anywhere(suite: MockSuite, tmp_path: Path) -> None:
    """With the folders in the environment, the documented command makes a range, from any current folder."""
    asked = ["--total_sims", "3", "--start_sim", "0", "--end_sim", "3"]
    folders = {
        "BIND_NBODY_BASE": str(suite.dmo_base),
        "BIND_HYDRO_BASE": str(suite.hydro_base),
        "BIND_FOF_NBODY_BASE": str(suite.catalogue_base),
    }
    said = output(run(*SMALL, *asked, "--output_base_root", "OUT", cwd=tmp_path, **folders))
    assert "3 complete" in said
    massive = sum(halo.m200c > 1e13 for halos in suite.halos.values() for halo in halos)
    assert len(digests(tmp_path / "OUT")) == 2 * massive > 0
    assert is_whole(tmp_path / "OUT")


@pytest.mark.mpi
def test_the_documented_command_works_under_mpirun(suite: MockSuite, tmp_path: Path) -> None:
    """With the folders as flags and under mpirun, it makes the same files and the same manifest as without."""
    mpirun = [str(MPIEXEC.with_name("mpirun")), "-n", "3", sys.executable, str(PROGRAM)]
    asked = [*SMALL, "--total_sims", "3", *bases(suite), "--output_base_root"]
    finished = subprocess.run(
        [*mpirun, *asked, str(tmp_path / "mpi")],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert "Made 36 samples" in output(finished)
    output(run(*asked, tmp_path / "plain"))
    assert_same(tmp_path / "mpi", tmp_path / "plain")


def test_flags_replace_the_file_and_the_file_replaces_the_environment(suite: MockSuite, tmp_path: Path) -> None:
    """A value is taken from a flag, else from --config, else from the environment."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"dmo_base: {suite.dmo_base}\nhydro_base: {suite.hydro_base}\nparameter_file: {suite.parameter_file}\n"
        f"output_root: {tmp_path / 'of_file'}\nresolution: 64\nstrata: [{{rotations: 5}}]\n"
    )
    elsewhere = dict.fromkeys(["BIND_NBODY_BASE", "BIND_PARAM_FILE", "BIND_DATASET"], "/nowhere")
    finished = run(
        *("--config", file, "--resolution", "32", "--num_rotations", "1", "--total_sims", "1"),
        **elsewhere,
        BIND_FOF_NBODY_BASE=suite.catalogue_base,
    )
    assert "Made 6 samples" in output(finished)
    text = (tmp_path / "of_file" / "dataset.yaml").read_text()
    assert "resolution: 32" in text
    assert f"dmo_base: {suite.dmo_base}" in text


def test_an_empty_variable_names_no_folder(suite: MockSuite, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that nothing names are listed with the flag and the variable for each; an empty variable is none."""
    monkeypatch.setenv("BIND_FOF_NBODY_BASE", "")
    said = refusal("--nbody_base", suite.dmo_base, "--output_base_root", "OUT")
    for text in ("--fof_nbody_base", "BIND_FOF_NBODY_BASE", "--hydro_base", "BIND_HYDRO_BASE"):
        assert text in said
    assert "--nbody_base," not in said


def test_the_recorded_configuration_holds_in_any_folder(suite: MockSuite, tmp_path: Path) -> None:
    """Folders given relative to the current one are recorded as absolute."""
    root = suite.dmo_base.parent
    places = ["--nbody_base", "DMO", "--hydro_base", "./Hydro", "--fof_nbody_base", "FOF"]
    out = os.path.relpath(tmp_path, root)
    output(run(*places, *SMALL, "--total_sims", "1", "--output_base_root", out, cwd=root))
    recorded_folders = (tmp_path / "dataset.yaml").read_text()
    assert f"dmo_base: {suite.dmo_base}\n" in recorded_folders
    assert f"hydro_base: {suite.hydro_base}\n" in recorded_folders


@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_dry_run_writes_nothing(suite: MockSuite, tmp_path: Path, ranks: int) -> None:
    """--dry_run names every simulation with its samples, and says that one that does not exist would fail the run."""
    root = tmp_path / "out"
    asked = [*bases(suite), *SMALL, "--total_sims", "4", "--dry_run", "--output_base_root"]
    finished = run(*asked, root, ranks=ranks)
    assert finished.returncode == 1
    said = finished.stdout
    assert said.count("SB35_0: samples missing; 12 samples planned, 12 to be made") == 1
    assert "SB35_3: does not exist" in said
    assert "36 samples to be made of 4 simulations in 1 blocks." in said
    assert "The run would fail, for want of SB35_3 (does not exist)." in said
    assert "would fail" not in output(run(*asked, root, "--skip_missing", ranks=ranks))
    assert not root.exists()


@pytest.mark.mpi
def test_one_rank_speaks_for_all(tmp_path: Path) -> None:
    """Under mpirun, help and errors are printed once."""
    assert output(run("--help", ranks=2)).count("usage:") == 1
    wrong = run("--resolution", "many", ranks=2)
    assert wrong.returncode != 0
    assert wrong.stderr.count("invalid int value") == 1
    said = message_of(run("--output_base_root", tmp_path, ranks=2), "BIND_HYDRO_BASE")
    assert said.count("ConfigurationError") == 1


def test_no_prefect_is_imported(suite: MockSuite, tmp_path: Path) -> None:
    """A whole run imports neither Prefect nor the flows."""
    arguments = [*bases(suite), *SMALL, "--total_sims", "1", "--output_base_root", str(tmp_path)]
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
        timeout=TIMEOUT,
    )
    assert output(finished).endswith("[]\n")


# Which simulations


def test_missing_simulations_are_reported_and_fail_the_run(
    suite: MockSuite, tmp_path: Path, program: Program, success: Callable[..., str]
) -> None:
    """A simulation of the range that does not exist fails the run, unless it may be skipped; the others are made."""
    asked = [*bases(suite), *SMALL, "--start_sim", "1", "--end_sim", "5", "--output_base_root", tmp_path]
    status, said, _ = program(*asked)
    assert status == 1
    for text in ("SB35_3: absent", "SB35_4: absent", "--skip_missing"):
        assert text in said
    assert statuses(tmp_path) == {f"SB35_{i}": "complete" if i < 3 else "blocked" for i in (1, 2, 3, 4)}
    assert "Skipped 2 simulations that do not exist: SB35_3, SB35_4" in success(*asked, "--skip_missing")
    assert is_whole(tmp_path)


def test_a_range_without_any_simulation_is_an_error(suite: MockSuite, tmp_path: Path, refusal: Refusal) -> None:
    """Where nothing exists of what was asked for, neither --skip_missing nor the lack of a range makes it a success."""
    asked = [*bases(suite), *SMALL, "--output_base_root", tmp_path / "out"]
    assert "SB35_7 to SB35_8" in refusal(*asked, "--start_sim", 7, "--end_sim", 9, "--skip_missing")
    assert "no simulation of set CV" in refusal(*asked, "--set", "CV")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", ["--start_sim 2 --end_sim 2", "--total_sims 2 --end_sim 3", "--start_sim 1"])
def test_ranges_that_are_none_are_refused(suite: MockSuite, tmp_path: Path, refusal: Refusal, asked: str) -> None:
    """Empty, open and overlong ranges are errors that name the flags."""
    said = refusal(*bases(suite), *asked.split(), "--output_base_root", tmp_path)
    assert "--start_sim" in said
    assert "--end_sim" in said


def test_extending_makes_only_what_is_missing(suite: MockSuite, tmp_path: Path, success: Callable[..., str]) -> None:
    """More simulations, more rotations and a lower threshold add samples and touch none that exist."""
    asked = [*bases(suite), "--resolution", "32", "--output_base_root", tmp_path]
    made = []
    for more in (
        "--num_rotations 1 --total_sims 1",
        "--num_rotations 1",
        "--num_rotations 2",
        "--num_rotations 2 --mass_threshold 3e12",
    ):
        before = file_times(tmp_path)
        success(*asked, *more.split())
        after = file_times(tmp_path)
        assert {path: after.get(path) for path in before} == before
        made.append(len(after) - len(before))
    light = sum(3e12 < halo.m200c <= 1e13 for halos in suite.halos.values() for halo in halos)
    assert light > 0
    assert made == [6, 12, 18, 2 * light]
    assert is_whole(tmp_path)


def test_a_second_run_does_nothing_and_says_so(suite: MockSuite, tmp_path: Path, success: Callable[..., str]) -> None:
    """The same command again changes nothing below the root, and says that nothing was to be made."""
    asked = [*bases(suite), *SMALL, "--output_base_root", tmp_path]
    success(*asked)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "Nothing was to be made; 36 of 36 planned samples exist" in success(*asked)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# What cannot be done


def test_settings_that_would_change_samples_are_refused(
    suite: MockSuite, tmp_path: Path, refusal: Refusal, success: Callable[..., str]
) -> None:
    """Another seed, resolution, backend or share of tests than the data set's is refused, and nothing is touched."""
    asked = [*bases(suite), *SMALL, "--total_sims", "1", "--output_base_root", tmp_path]
    success(*asked)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for flag, value, setting in (
        ("--seed", 7, "root_seed"),
        ("--resolution", 64, "resolution"),
        ("--backend", "reference", "backend"),
        ("--test_frac", 0.5, "test_fraction"),
        ("--snapnum", 33, "snapshot_number"),
    ):
        assert f"{setting}: the data set has" in refusal(*asked, flag, value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--nbody_base", "{tmp}/nowhere", "--total_sims", 1], ["dmo_base", "/nowhere"]),
        (["--fof_nbody_base", "{tmp}/file"], ["catalogue_base", "/file"]),
        (["--config", "{tmp}/none.yaml"], ["none.yaml"]),
        (["--config", "{tmp}"], ["Is a directory"]),
        (["--config", "{tmp}/broken.yaml"], ["broken.yaml", "YAML"]),
        (["--config", "{tmp}/file"], ["strata", "--num_rotations"]),
        (["--param_file", "{tmp}/table.txt"], ["table.txt"]),
        (["--output_base_root", "{tmp}/file/out"], ["output_root", "/file/out"]),
        (["--resolution", 33], ["33"]),
        (["--num_rotations", 0], ["rotations", "0"]),
        (["--mass_threshold", "nan"], ["min_mass", "nan"]),
        (["--test_frac", 1.5], ["test_fraction", "1.5"]),
        (["--set", "a/b"], ["set_name", "a/b"]),
    ],
)
def test_what_is_wrong_is_named(
    suite: MockSuite, tmp_path: Path, refusal: Refusal, flags: list[object], expected: list[str]
) -> None:
    """Wrong folders, files and values end a run at once, with one message that names them."""
    (tmp_path / "file").write_text("strata: {rotations: 3}")
    (tmp_path / "broken.yaml").write_text("resolution: [")
    given = [str(flag).replace("{tmp}", str(tmp_path)) for flag in flags]
    said = refusal(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out", *given)
    for text in expected:
        assert text in said
    assert not digests(tmp_path)


def test_a_suite_without_parameter_table_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    """Without a parameter table nothing is made, and the message says where it was looked for and how to name one."""
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=16)
    suite.parameter_file.unlink()
    said = refusal(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out")
    assert "CosmoAstroSeed" in said
    assert "--param_file" in said
    assert not digests(tmp_path)


@pytest.mark.mpi
def test_an_output_that_cannot_be_written_fails_its_simulation_only(
    suite: MockSuite, tmp_path: Path, success: Callable[..., str]
) -> None:
    """Where one simulation's folder cannot be written, the other simulations of its block are made and recorded."""
    in_the_way = tmp_path / "train" / "sim_1"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")
    asked = [*bases(suite), *SMALL, "--output_base_root", tmp_path]
    message_of(run(*asked, ranks=2), str(in_the_way), "SB35_1")
    assert statuses(tmp_path) == {"SB35_0": "complete", "SB35_1": "failed", "SB35_2": "complete"}
    assert is_whole(tmp_path)
    in_the_way.unlink()
    assert "Made 12 samples" in success(*asked)


def test_ranks_that_find_themselves_alone_are_refused(
    suite: MockSuite, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the mpirun of another MPI, which starts processes that know nothing of each other, none of them runs."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    said = refusal(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out")
    assert "4 ranks" in said
    assert "one of 1" in said
    assert not (tmp_path / "out").exists()


# Bad input


@pytest.mark.mpi
def test_bad_simulations_are_blocked_and_the_others_made(tmp_path: Path) -> None:
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
    sound = {"SB35_0", "SB35_4", "SB35_10"}
    suite = write_mock_suite(
        tmp_path / "suite",
        simulations=11,
        particles_per_side=16,
        defects={name: [defect] for name, defect in defects.items()},
    )
    root = tmp_path / "out"
    said = message_of(run(*bases(suite), *SMALL, "--output_base_root", root, ranks=2))
    blocked = defects.keys() - {"SB35_9"}
    expected = dict.fromkeys(sound, "complete") | dict.fromkeys(blocked, "blocked") | {"SB35_9": "no_work"}
    assert statuses(root) == expected
    for name in blocked:
        assert f"{name}: " in said
    assert "3 complete" in said
    assert is_whole(root)
    assert set(sample_rows(root)["simulation"]) == sound
    assert digests(root).keys() == set(sample_rows(root)["path"])


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("module", ["mpi4py/MPI.py", "rich/console.py"])
def test_a_rank_that_cannot_be_loaded_ends_the_job(suite: MockSuite, tmp_path: Path, rank: int, module: str) -> None:
    """One rank that is interrupted, or finds a library broken, before it has begun does not keep the others waiting."""
    library = tmp_path / module
    library.parent.mkdir()
    (library.parent / "__init__.py").touch()
    library.write_text("import sys\nraise KeyboardInterrupt\n")
    only = tmp_path / "sitecustomize.py"
    only.write_text(f"import os, sys\nif os.environ.get('PMI_RANK') != '{rank}': sys.path.remove({str(tmp_path)!r})\n")
    ended = run(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out", ranks=2, PYTHONPATH=tmp_path)
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.stderr
