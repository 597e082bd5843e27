"""One platform for all tests that need a server, with a first run that has ended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_platform import FIRST, ServedPlatform, copy_simulations, serving

SMALL = {"resolution": 16, "strata": [{"rotations": 1}], "simulations_per_block": 1, "test_fraction": 0.0}
"""Settings with which a run takes seconds."""


@pytest.fixture(scope="session")
def platform(camels_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """Start a platform on a copy of two simulations."""
    folder = tmp_path_factory.mktemp("platform")
    copy_simulations(camels_mini, folder / "suite", FIRST)
    with serving(folder / "served", folder / "suite") as served:
        yield served


@pytest.fixture(scope="session")
def first_run(platform: ServedPlatform) -> dict[str, Any]:
    """Run the deployment `generate` once, and wait for its end."""
    return platform.finished(platform.start("generate", config=SMALL))
