"""What the README shows works, and what it names exists."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from block_runs import layout_of, make, manifest_of
from typer.main import get_command

from bind_core.config import DatasetConfig
from flows.cli import app
from process_simulations import argument_parser
from storage.mock_suite import write_mock_suite
from storage.samples import read_sample

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def flags_of(command: object) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}  # type: ignore[attr-defined]


@pytest.mark.mpi
def test_the_python_example_runs(tmp_path: Path, config_of: Callable[..., DatasetConfig]) -> None:
    """The README's Python, run beside a small data set, gives the conditions of every massive halo."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=8, halos_per_simulation=2)
    config = config_of(suite, output_root=tmp_path / "OUT", resolution=16, strata=[{"rotations": 1}])
    make(config)
    collected = example.replace("    ...", "    print(conditions.condition.shape, conditions.large_scale.shape)")
    done = subprocess.run(
        [sys.executable, "-c", collected], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(16, 16) (3, 16, 16)"] * 2


@pytest.mark.mpi
def test_samples_have_the_arrays_that_the_table_names(tmp_path: Path, config_of: Callable[..., DatasetConfig]) -> None:
    """The table of keys, shapes and types is that of a file, with P for the parameters."""
    rows = re.findall(r"^\| `(\w+)` \| \((.*?)\) \| (\w+) \|", README, re.MULTILINE)
    assert len(rows) == 7
    suite = write_mock_suite(tmp_path / "suite", simulations=1, particles_per_side=8, halos_per_simulation=1)
    config = config_of(suite, strata=[{"rotations": 1}])
    make(config)
    path = layout_of(config).absolute(manifest_of(config).samples()["path"][0])
    n_parameters = str(len(read_sample(path).params))
    with np.load(path) as arrays:
        assert set(arrays) == {name for name, _, _ in rows}
        for name, shape, dtype in rows:
            expected = tuple(int(side) for side in shape.replace("P", n_parameters).split(",") if side.strip())
            assert (arrays[name].shape, str(arrays[name].dtype)) == (expected, dtype), name


def test_commands_and_their_options_exist() -> None:
    """Every `bind-data` command that the README names exists with the options shown, and it names all there are."""
    named = re.findall(r"bind-data ([a-z]+)([^`\n]*)", README)
    assert {command for command, _ in named} == set(COMMANDS)
    for command, rest in named:
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in flags_of(COMMANDS[command]), f"{command} {flag}"
    everywhere = set().union(*(flags_of(command) for command in COMMANDS.values()))
    assert {"--json", "--dataset"} <= everywhere


def test_flags_of_the_batch_program_exist() -> None:
    """Every flag with underscores in the README is one of `process_simulations.py`."""
    known = {flag for action in argument_parser()._actions for flag in action.option_strings}
    named = set(re.findall(r"--[a-z]+(?:_[a-z]+)+", README))
    assert named
    assert named <= known


def test_variables_are_those_of_the_commands() -> None:
    """The variables in the README are those that the options read, each with the flag beside it."""
    rows = re.findall(r"^\| `(BIND_\w+)` \| `(--[\w-]+)` \| `(--\w+)` \|", README, re.MULTILINE)
    assert len(rows) == 5
    variables = {
        parameter.envvar: set(parameter.opts)
        for parameter in COMMANDS["generate"].params
        if getattr(parameter, "envvar", None)
    }
    assert set(variables) == {variable for variable, _, _ in rows}
    helps = {flag: str(action.help) for action in argument_parser()._actions for flag in action.option_strings}
    for variable, flag, batch_flag in rows:
        assert flag in variables[variable]
        assert variable in helps[batch_flag]


def test_make_targets_exist() -> None:
    """Every `make` target that the README names is in the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "bench"} <= named <= targets


def test_links_and_files_exist() -> None:
    """Links lead to files of the repository, and programs that are called by name are there."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    programs = set(re.findall(r"python (\S+\.py)", README)) | {"constraints.txt", "LICENSE"}
    missing = [name for name in (*links, *programs) if not (ROOT / name).exists()]
    assert missing == []


def test_modules_named_exist() -> None:
    """The four floors that the README names are packages of the repository."""
    (floors,) = re.findall(r"`(flows → .*?)`", README)
    assert all((ROOT / floor / "__init__.py").exists() for floor in floors.split(" → "))
