"""The tutorial: from a mock suite to a painted box."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from batch_runs import environment
from PIL import Image

from bind_core.windows import Windows
from storage.conditions import read_condition, read_condition_set

TUTORIAL = Path(__file__).parents[1] / "examples" / "paint_a_box.py"
PIXELS = 128
"""Of the painted box, in the reduced form."""


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of the tutorial in its reduced form, and what it said."""
    folder = tmp_path_factory.mktemp("tutorial")
    done = subprocess.run(
        [sys.executable, TUTORIAL, folder, "--quick"],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.mpi
def test_the_network_learns_more_than_the_mean(painted: tuple[Path, str]) -> None:
    """On simulations that it was not trained on, it errs less than the mean map of the train split."""
    (found,) = re.findall(r"test error: network ([\d.]+), mean map of the train split ([\d.]+)", painted[1])
    network, trivial = map(float, found)
    assert network < 0.8 * trivial


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["loss.png", "sample.png", "painted_box.png"])
def test_pictures_are_there(painted: tuple[Path, str], name: str) -> None:
    """Each picture is one of many colours, and is named in what the tutorial says."""
    with Image.open(painted[0] / name) as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 50
    assert name in painted[1]


@pytest.mark.mpi
def test_the_box_is_painted_where_haloes_are(painted: tuple[Path, str]) -> None:
    """Windows around all haloes of a simulation of another set are painted, and nothing else is."""
    folder = painted[0]
    conditions = read_condition_set(folder / "conditions.zarr")
    assert (conditions.simulation, conditions.box_size) == ("BOX_0", 50)
    with np.load(folder / "painted_box.npz") as box:
        density = box["surface_density"]
        assert box["channels"].tolist() == ["dark matter", "gas", "stars"]
    assert density.shape == (3, PIXELS, PIXELS)
    expected = np.zeros((PIXELS, PIXELS), dtype=bool)
    for halo in conditions.halos:
        _, grid = read_condition(folder / "conditions.zarr", halo)
        nodes = np.floor(grid.node_positions()[..., :2] * PIXELS / 50).astype(int)
        for offset in np.ndindex(2, 2):
            expected[tuple(np.moveaxis((nodes + offset) % PIXELS, -1, 0))] = True
    assert 0.05 < expected.mean() < 0.6
    assert np.array_equal(np.isfinite(density[1]), expected)
    assert np.nanmin(density) >= 0
    assert np.nanmax(density[0]) > 10 * np.nanmedian(density[0])
    settings = json.loads((folder / "conditions.zarr" / "zarr.json").read_text())["attributes"]
    assert settings["window_sizes"] == list(Windows(resolution=16).sizes)
