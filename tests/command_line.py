"""What the tests of the command line share: data sets, and ways to call `bind-data`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from block_runs import make
from click.testing import Result
from typer.testing import CliRunner

from bind_core.config import DatasetConfig
from flows.cli import app
from storage.mock_suite import MockSuite, write_mock_suite

VARIABLES = ("BIND_NBODY_BASE", "BIND_HYDRO_BASE", "BIND_FOF_NBODY_BASE", "BIND_PARAM_FILE", "BIND_DATASET")
"""Variables of the environment that the commands read."""
PROGRAM = Path(sys.executable).with_name("bind-data")
"""The command as it is installed."""


@dataclass(frozen=True)
class MadeDataset:
    suite: MockSuite
    config: DatasetConfig

    @property
    def root(self) -> str:
        return str(self.config.output_root)


def made(root: Path, **options: Any) -> MadeDataset:
    suite = write_mock_suite(root / "suite", particles_per_side=8, halos_per_simulation=1, **options)
    config = DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        output_root=root / "dataset",
        resolution=16,
        strata=({"rotations": 2},),
    )
    make(config)
    return MadeDataset(suite, config)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fine(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def refused(*arguments: str | Path, status: int = 1) -> str:
    """Return what is said on standard error by a command that must fail in an orderly way."""
    result = call(*arguments)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.strip()
    return result.stderr


def bases(suite: MockSuite) -> list[str]:
    flags = {"--dmo-base": suite.dmo_base, "--hydro-base": suite.hydro_base, "--catalogue-base": suite.catalogue_base}
    return [text for flag, path in flags.items() for text in (flag, str(path))]


def on_disk(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
