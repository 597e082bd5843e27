from pathlib import Path

import pytest
from command_line import VARIABLES, MadeDataset, made

from storage.mock_suite import Defect


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> MadeDataset:
    """Return a data set in which all is well; tests must not change it."""
    return made(tmp_path_factory.mktemp("sound"), simulations=2)


@pytest.fixture(scope="session")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> MadeDataset:
    """Return a data set with one simulation made and one blocked; tests must not change it."""
    return made(tmp_path_factory.mktemp("ailing"), simulations=2, defects={"SB35_1": [Defect.MISSING_HYDRO_SNAPSHOT]})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with no folder given by the environment."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
