"""What the tests of several folders share: the real simulations, and a small mock suite."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from platform_fixtures import first_run, platform  # noqa: F401  (fixtures)

from bind_core.config import DatasetConfig
from storage.mock_suite import CatalogueLayout, Compression, MockFormat, MockSuite, SnapshotLayout, write_mock_suite

CHUNKED = MockFormat(
    dmo_layout=SnapshotLayout.CHUNKED_OLD,
    hydro_layout=SnapshotLayout.CHUNKED_NEW,
    catalogue_layout=CatalogueLayout.CHUNKED_NEW,
    hydro_compression=Compression.GZIP,
)


for _size in ("COLUMNS", "LINES"):  # with both, consoles keep the size that they have when they are made
    os.environ.pop(_size, None)

_MADE_ONCE = {"platform", "cluster"}
"""Fixtures that take long to make, so that all tests that need one run in the same process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, where several processes share the tests out."""
    for item in items:
        shared = _MADE_ONCE & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group(min(shared) if shared else item.path.as_posix()))


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
