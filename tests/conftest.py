"""What the tests of several folders share: the real simulations, and a small mock suite."""

import no_terminal_size  # noqa: F401

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_arena import arena, small_disk, undisturbed  # noqa: F401  (fixtures)
from platform_fixtures import first_run, platform  # noqa: F401  (fixtures)
from soak_runs import totals
from xdist.scheduler import LoadScopeScheduling

from bind_core.config import DatasetConfig
from storage.mock_suite import CatalogueLayout, Compression, MockFormat, MockSuite, SnapshotLayout, write_mock_suite

CHUNKED = MockFormat(
    dmo_layout=SnapshotLayout.CHUNKED_OLD,
    hydro_layout=SnapshotLayout.CHUNKED_NEW,
    catalogue_layout=CatalogueLayout.CHUNKED_NEW,
    hydro_compression=Compression.GZIP,
)


_MADE_ONCE = {"slurm/": "slurm", "platform/test_platform.py": "platform", "browser/test_prefect_ui.py": "platform"}
"""Tests that share what takes long to make, so that one process runs them all."""


class _Together(LoadScopeScheduling):
    """Gives the tests of a file, and of files that share something, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return next((group for start, group in _MADE_ONCE.items() if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Together:
    """Say how the tests are shared out where several processes run them."""
    return _Together(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which seeds the soak went through, and what was killed."""
    passed = terminalreporter.stats.get("passed", [])
    stories = [story for report in passed for name, story in report.user_properties if name == "soak"]
    if stories:
        terminalreporter.section("soak")
        terminalreporter.write_line("\n".join([*stories, totals(stories)]))


@pytest.fixture(scope="session")
def camels_mini() -> Path:
    path = Path(__file__).parents[2] / "shared" / "camels_mini"
    if not path.is_dir():
        pytest.skip("no simulations in ../shared/camels_mini")
    return path


@pytest.fixture
def mock_suite(tmp_path: Path) -> Callable[..., MockSuite]:
    """Return a function that writes a suite of one small simulation, or as asked."""

    def write(root: Path | None = None, **options: Any) -> MockSuite:
        defaults = {"simulations": 1, "particles_per_side": 16, "formats": [CHUNKED]}
        return write_mock_suite(root or tmp_path / "suite", **(defaults | options))

    return write


@pytest.fixture(scope="session")
def sound_suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return two sound simulations, written once; tests must not change them."""
    root = tmp_path_factory.mktemp("sound")
    return write_mock_suite(root, simulations=2, particles_per_side=16, formats=[CHUNKED])


@pytest.fixture
def config_of() -> Callable[..., DatasetConfig]:
    """Return a function that gives the configuration of a suite."""

    def config(suite: MockSuite, **settings: Any) -> DatasetConfig:
        return DatasetConfig.from_values(
            {
                "dmo_base": suite.dmo_base,
                "hydro_base": suite.hydro_base,
                "catalogue_base": suite.catalogue_base,
                "parameter_file": suite.parameter_file,
                "output_root": suite.dmo_base.parent / "out",
                **settings,
            }
        )

    return config
