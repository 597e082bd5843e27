"""The command `bind-data`: what it prints where, and with which exit status."""

import json
import os
import re
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from command_line import PROGRAM, VARIABLES, MadeDataset, bases, call, fine, on_disk, refused
from typer.main import get_command

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from flows.cli import app
from storage.mock_suite import Defect, write_mock_suite
from storage.summary import RunSummary
from tasks.launchers import without_mpi_variables

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
AHEAD = {"deploy", "serve"}
"""Commands about a data set that may not exist yet, which is nobody's current folder."""
LOOKING = [
    name
    for name, command in COMMANDS.items()
    if name not in AHEAD and any("--dataset" in option.opts for option in command.params)
]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_explains_every_option(command: str) -> None:
    """The help of a command has a sentence about it, and one for each option and argument, none cut by markup."""
    text = fine(command, "--help")
    (description,) = re.findall(r"Usage: .*\n\s*\n (\S.*)\n", text)
    assert len(description.split()) >= 5
    rows = re.findall(r"^│[\s*]+(.*\S)\s*│$", text, re.MULTILINE)
    explanations = [re.split(r"\s{2,}", row)[-1] for row in rows if row.startswith("--")]
    assert len(explanations) >= 1
    for explanation in explanations:
        assert re.match(r"(NAME=VALUE )?[A-Za-z]\w+ \w+", explanation), explanation
    assert "CosmoAstroSeed_.txt" not in text
    assert "default .png" not in text


def test_the_program_lists_its_commands_and_where_to_start() -> None:
    """`bind-data --help` names every command, the environment's variables, and what to try first."""
    text = fine("--help")
    assert all(re.search(rf"│ {command} +[A-Z]", text) for command in COMMANDS)
    assert all(variable in text for variable in VARIABLES)
    assert "bind-data demo" in text


@pytest.mark.parametrize("command", LOOKING)
def test_commands_on_a_data_set_say_how_to_name_it(command: str) -> None:
    """Every command that looks at a data set says that $BIND_DATASET and this folder stand in for --dataset."""
    text = fine(command, "--help")
    assert "--dataset" in text
    assert "BIND_DATASET" in text
    assert "here" in text


# mock, config


def test_mock_writes_a_suite_and_the_next_command(elsewhere: Path) -> None:
    """`mock` makes the simulations asked for; the command that it prints plans exactly those."""
    text = fine("mock", "a suite", "--sims", "2", "--particles", "8", "--halos", "1")
    assert sorted(path.name for path in (elsewhere / "a suite" / "DMO").iterdir()) == ["SB35_0", "SB35_1"]
    program, *arguments = shlex.split(text.strip().splitlines()[-1])
    assert program == "bind-data"
    plan = json.loads(fine(*arguments, "--dry-run", "--json"))
    assert [entry["simulation"] for entry in plan] == ["SB35_0", "SB35_1"]


def test_mock_as_json_names_the_paths() -> None:
    """With --json, the only output is a JSON object with the suite's folders and simulations."""
    suite = json.loads(fine("mock", "suite", "--sims", "1", "--particles", "8", "--json"))
    assert suite["simulations"] == ["SB35_0"]
    assert all(Path(suite[base]).exists() for base in ("dmo_base", "hydro_base", "catalogue_base", "parameter_file"))


def test_mock_lists_its_defects_and_writes_each_as_named() -> None:
    """`--defect list` prints names that `--defect` takes, and validation then finds the defect."""
    names = fine("mock", "suite", "--defect", "list").split()
    assert names == list(Defect)
    fine("mock", "suite", "--sims", "1", "--particles", "8", "--defect", "SB35_0=missing-catalogue")
    suite = Path("suite")
    arguments = ("--dmo-base", suite / "DMO", "--hydro-base", suite / "Hydro", "--catalogue-base", suite / "FOF")
    result = call("validate", *arguments)
    assert result.exit_code == 1
    assert "SB35_0: blocked" in result.stdout
    assert "missing files" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--defect", "SB35_0=no-such"), "missing-catalogue"),
        (("--defect", "SB35_0"), "SIMULATION=DEFECT"),
        (("--defect", "SB35_7=mispaired"), "SB35_7"),
        (("--set", "../SB35"), "--set ../SB35"),
        (("--set", ""), "--set"),
    ],
)
def test_mock_refuses_what_it_cannot_write(elsewhere: Path, arguments: tuple[str, ...], said: str) -> None:
    """An unknown defect, one of a simulation that is not written, or a set that is no name: one message, no file."""
    assert said in refused("mock", "suite", "--sims", "1", "--particles", "8", *arguments)
    assert on_disk(elsewhere.parent) == {}


def test_config_prints_every_setting_and_checks_a_file(sound: MadeDataset) -> None:
    """The built-in configuration names every setting, and a data set's own file is printed back complete."""
    assert set(yaml.safe_load(fine("config"))) | {"dmo_base"} >= set(DatasetConfig.model_fields) - {"parameter_file"}
    own = yaml.safe_load(fine("config", sound.config.output_root / "dataset.yaml"))
    assert own == sound.config.model_dump(mode="json")


def test_config_names_all_that_is_wrong_in_a_file(elsewhere: Path) -> None:
    """A configuration that cannot be used is refused with every problem, a missing or broken one with its path."""
    bad = elsewhere / "bad.yaml"
    bad.write_text("resolution: many\nno_such_setting: 1\n")
    text = refused("config", bad)
    assert all(name in text for name in ("resolution", "no_such_setting", "dmo_base", "bad.yaml"))
    assert "nowhere.yaml" in refused("config", "nowhere.yaml")
    bad.write_text("a: [1")
    assert "not valid YAML" in refused("config", bad)


# validate


def test_validate_tells_sound_from_bad(sound: MadeDataset, ailing: MadeDataset) -> None:
    """Sound input is ok with status 0; bad input is blocked with its findings and status 1; nothing is written."""
    before = on_disk(ailing.config.output_root.parent)
    assert fine("validate", "-d", sound.root).split() == ["SB35_0:", "ok", "SB35_1:", "ok"]
    result = call("validate", *bases(ailing.suite))
    assert result.exit_code == 1
    assert "SB35_0: ok" in result.stdout
    assert "SB35_1: missing files" in result.stdout
    assert on_disk(ailing.config.output_root.parent) == before


def test_validate_as_json_has_every_finding(ailing: MadeDataset) -> None:
    """With --json, standard output is one list with a verdict and the findings of each simulation."""
    result = call("validate", *bases(ailing.suite), "--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)
    assert (first["simulation"], first["blocked"], first["findings"]) == ("SB35_0", False, [])
    assert (second["simulation"], second["blocked"]) == ("SB35_1", True)
    assert second["findings"][0]["code"] == "missing_files"


def test_validate_looks_at_the_simulations_asked_for(ailing: MadeDataset) -> None:
    """Only what --simulation names is read; one that does not exist is blocked as absent."""
    assert fine("validate", *bases(ailing.suite), "-s", "SB35_0").split() == ["SB35_0:", "ok"]
    result = call("validate", *bases(ailing.suite), "-s", "SB35_77")
    assert result.exit_code == 1
    assert "absent" in result.stdout
    assert "CV_0" in refused("validate", *bases(ailing.suite), "-s", "CV_0")


def test_validate_takes_an_empty_suite_for_no_success(sound: MadeDataset) -> None:
    """Where the set has no simulation, status 1 and a message say so."""
    assert "CV" in refused("validate", *bases(sound.suite), "--set", "CV", "--param-file", sound.suite.parameter_file)


# generate --dry-run and settings


def test_a_dry_run_says_what_is_missing_and_does_nothing(sound: MadeDataset) -> None:
    """`generate --dry-run` lists the samples of an extension as JSON or table, and writes nothing."""
    before = on_disk(sound.config.output_root)
    arguments = ("generate", "-d", sound.root, "--rotations", "3", "--dry-run")
    plan = json.loads(fine(*arguments, "--json"))
    assert [(entry["planned"], len(entry["missing"])) for entry in plan] == [(3, 1), (3, 1)]
    assert plan[0]["missing"] == ["SB35_0_halo_0_rot_2"]
    text = fine(*arguments)
    assert "2 samples to be made in 1 block. Nothing was done." in text
    done = fine("generate", "-d", sound.root, "--dry-run")
    assert "0 samples to be made in 0 blocks" in done
    assert on_disk(sound.config.output_root) == before


def test_a_dry_run_fails_where_the_run_would(sound: MadeDataset) -> None:
    """A plan with a simulation that does not exist says so and exits with 1, as a table and as JSON."""
    asked = ("generate", "-d", sound.root, "--simulation", "SB35_0", "--simulation", "SB35_7", "--dry-run")
    table, rows = call(*asked), call(*asked, "--json")
    assert table.exit_code == rows.exit_code == 1
    assert "The run would fail, for want of SB35_7 (does not exist)." in table.stdout
    assert [entry["reason"] for entry in json.loads(rows.stdout)] == ["nothing to do", "does not exist"]


def test_rotations_keep_the_strata(elsewhere: Path, sound: MadeDataset) -> None:
    """--rotations changes the number in every stratum of the configuration and no mass range."""
    values = sound.config.model_dump(mode="json") | {
        "output_root": str(elsewhere / "out"),
        "strata": [{"min_mass": 1e13}, {"min_mass": 1e12, "max_mass": 1e13}],
    }
    file = elsewhere / "own.yaml"
    file.write_text(yaml.safe_dump(values))
    one = json.loads(fine("generate", "-c", file, "--rotations", "1", "--dry-run", "--json"))
    three = json.loads(fine("generate", "-c", file, "--rotations", "3", "--dry-run", "--json"))
    assert one[0]["planned"] > 1
    assert [entry["planned"] for entry in three] == [3 * entry["planned"] for entry in one]


def test_folders_come_from_the_environment_too(sound: MadeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the three variables set, no flag is needed; a flag wins over them, and so does a --config file."""
    for variable, base in zip(VARIABLES, ("dmo_base", "hydro_base", "catalogue_base"), strict=False):
        monkeypatch.setenv(variable, str(getattr(sound.suite, base)))
    assert len(json.loads(fine("generate", "--dry-run", "--json"))) == 2
    assert "nowhere" in refused("generate", "--dry-run", "--hydro-base", "nowhere")
    monkeypatch.setenv("BIND_HYDRO_BASE", "nowhere")
    assert "nowhere" in refused("generate", "--dry-run")
    file = sound.config.output_root / "dataset.yaml"
    assert len(json.loads(fine("generate", "-c", file, "--dry-run", "--json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ("--dmo-base", "BIND_NBODY_BASE", "--hydro-base", "--catalogue-base", "--config")),
        (("-c", "nowhere.yaml"), ("nowhere.yaml",)),
        (("-o", "no_such=1"), ("no_such", "known settings", "resolution")),
        (("-o", "resolution"), ("--option resolution", "NAME=VALUE")),
        (("-o", "resolution=[1"), ("--option resolution", "not valid YAML")),
        (("-o", "resolution=17"), ("resolution", "even")),
        (("-o", "stars=some"), ("stars", "no_wind")),
        (("--rotations", "0"), ("rotations", "1")),
        (("--ranks", "0"), ("ranks", "1")),
        (("-s", "CV_0"), ("CV_0", "SB35_0")),
        (("--set", "CV"), ("CV",)),
    ],
)
def test_settings_that_cannot_be_used_are_explained(
    sound: MadeDataset, elsewhere: Path, arguments: tuple[str, ...], said: tuple[str, ...]
) -> None:
    """Each wrong or missing setting is one message that names it and what is expected; nothing is written."""
    given = bases(sound.suite) if arguments and arguments[0] != "-c" else []
    text = refused("generate", *given, *arguments, "--dry-run")
    assert all(word in text for word in said), text
    assert on_disk(elsewhere) == {}


def test_another_configuration_than_the_data_sets_is_refused(sound: MadeDataset) -> None:
    """Asked to extend a data set with another resolution, the command names the setting and both values."""
    text = refused("generate", "-d", sound.root, "-o", "resolution=32", "--dry-run")
    assert "resolution: the data set has 16, this run has 32" in text


def test_snapshot_numbers_with_a_leading_zero_are_decimal(sound: MadeDataset) -> None:
    """--option snapshot_number=033 is snapshot 33 and no octal number."""
    text = refused("generate", "-d", sound.root, "-o", "snapshot_number=033", "--dry-run")
    assert "this run has 33" in text


# generate, with and without a server


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "resolution=32"), "the data set has 16, this run has 32"),
        (("--hydro-base", "nowhere"), "hydro_base"),
        (("-s", "CV_0"), "CV_0"),
    ],
)
def test_what_cannot_be_run_is_refused_without_a_server(
    sound: MadeDataset, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """Another configuration, a missing folder or a wrong name is said at once, before Prefect is even prepared."""
    monkeypatch.setattr(
        "flows.commands.making.prefect_server", lambda verbose: pytest.fail("a server would have been started")
    )
    assert said in refused("generate", "-d", sound.root, *arguments)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigurationError("no parameter table [here]"), 1, "no parameter table [here]"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "/data/x: Permission denied"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_a_flow_that_cannot_start_or_is_interrupted_says_so(
    sound: MadeDataset, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    """What the flow raises becomes one message on standard error and an exit status, without traceback."""

    def run_summary(*_: object) -> None:
        raise error

    monkeypatch.setattr("flows.commands.making.prefect_server", lambda verbose: nullcontext())
    monkeypatch.setattr("flows.generate.run_summary", run_summary)
    assert said in refused("generate", "-d", sound.root, status=status)


def test_the_flow_is_given_absolute_paths(sound: MadeDataset, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of flags, variables and the data set mean the same to whoever reads the configuration later."""
    given: list[DatasetConfig] = []

    def run_summary(config: DatasetConfig, *_: object) -> RunSummary:
        given.append(config)
        return RunSummary("run", str(config.output_root), ())

    monkeypatch.setattr("flows.commands.making.prefect_server", lambda verbose: nullcontext())
    monkeypatch.setattr("flows.generate.run_summary", run_summary)
    (elsewhere / "suite").symlink_to(sound.suite.dmo_base.parent)
    monkeypatch.setenv("BIND_NBODY_BASE", "suite/DMO")
    fine("generate", "--hydro-base", "suite/Hydro", "--catalogue-base", "./suite/FOF", "-d", "out")
    (config,) = given
    assert config.dmo_base == elsewhere / "suite" / "DMO"
    assert config.hydro_base == elsewhere / "suite" / "Hydro"
    assert config.catalogue_base == elsewhere / "suite" / "FOF"
    assert config.output_root == elsewhere / "out"


def program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in without_mpi_variables(os.environ).items() if name not in VARIABLES}
    # A home of its own, so that the runs of this machine's user are not shown to the tests, and the other way round.
    environment |= {"PREFECT_HOME": str(cwd / "prefect"), "COLUMNS": "200"}
    command = [str(PROGRAM), *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.prefect
def test_generate_for_real(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given relative paths, `generate` makes a data set that any folder can ask for, all but the bad simulation.

    The bad one's findings are printed, with status 1. A second run, of the sound ones, finds nothing to do: status 0.
    """
    suite = write_mock_suite(
        elsewhere / "suite",
        simulations=3,
        particles_per_side=8,
        halos_per_simulation=1,
        defects={"SB35_1": [Defect.NAN_POSITIONS]},
    )
    relative = ["--dmo-base", "suite/DMO", "--hydro-base", "suite/Hydro", "--catalogue-base", "suite/FOF"]
    settings = ["-d", "dataset", "--rotations", "2", "--ranks", "1", "-o", "resolution=16"]
    first = program("generate", *relative, *settings, cwd=elsewhere)
    assert first.returncode == 1, first.stderr
    assert "SB35_1: non finite positions" in first.stdout
    assert "Made 4 samples" in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    root = elsewhere / "dataset"
    recorded = yaml.safe_load((root / "dataset.yaml").read_text())
    assert recorded["dmo_base"] == str(suite.dmo_base)
    assert all(Path(recorded[name]).is_absolute() for name in ("hydro_base", "catalogue_base", "output_root"))
    assert (root / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir("/")
    answer = json.loads(call("status", "-d", root, "--json").stdout)
    statuses = {row["simulation"]: row["status"] for row in answer["simulations"]}
    assert statuses == {"SB35_0": "complete", "SB35_1": "blocked", "SB35_2": "complete"}

    before = on_disk(root)
    second = program("generate", "-d", root, "-s", "SB35_0", "-s", "SB35_2", "--json", cwd=elsewhere)
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert answer["ok"] is True
    assert [(row["simulation"], row["made"]) for row in answer["simulations"]] == [("SB35_0", 0), ("SB35_2", 0)]
    assert on_disk(root) == before
