"""The command `conditions`: what a trained model gets to paint."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from command_line import PROGRAM, MadeDataset, fine, on_disk, refused

from bind_core.content import CRITICAL_DENSITY
from bind_core.halos import halos_in, read_catalogue
from bind_core.inference import halo_conditions, read_particles
from bind_core.snapshot import Component, read_header
from bind_core.suite import find_simulation
from storage.conditions import ConditionError, read_condition, read_condition_set
from storage.mock_suite import write_mock_suite

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]

FORMATS = [(), ("--zarr",)]


def test_conditions_are_what_the_training_path_makes(sound: MadeDataset, elsewhere: Path) -> None:
    """One file for each halo of the strata, equal to the bit to the functions that the training set is made with."""
    answer = json.loads(fine("conditions", "SB35_0", "-d", sound.root, "--output", "conditions", "--json"))
    files = find_simulation("SB35_0", sound.config)
    halos = halos_in(read_catalogue(files.catalogue.files), sound.config.strata[0])
    assert answer["halos"] == [halo.index for halo in halos]
    dark_matter = read_particles(Component.DMO, files.dmo.files, sound.config)
    for expected in halo_conditions(dark_matter, halos, sound.config.windows):
        arrays, grid = read_condition(elsewhere / "conditions", expected.halo.index)
        assert np.array_equal(arrays["condition"], expected.condition)
        assert np.array_equal(arrays["large_scale"], expected.large_scale)
        assert np.array_equal(arrays["rotation"], np.eye(3))
        assert grid.pixels_of(np.array([expected.halo.center]))[0] == pytest.approx([8, 8, 0])
    with np.load(next(Path(sound.root).rglob("sim_0_*.npz"))) as sample:
        assert np.array_equal(arrays["params"], sample["params"])
    assert read_condition_set(elsewhere / "conditions").config_digest == sound.config.digest


@pytest.mark.parametrize("box_size", [25.0, 100.0])
@pytest.mark.parametrize("form", FORMATS)
def test_a_dark_matter_only_box_of_any_size_will_do(
    sound: MadeDataset, elsewhere: Path, box_size: float, form: tuple[str, ...]
) -> None:
    """Windows keep their size in Mpc/h in any box without a hydrodynamic run, whose parameters nobody knows."""
    suite = write_mock_suite(
        elsewhere / "box",
        simulations=1,
        particles_per_side=8,
        box_size=box_size,
        set_name="BOX",
        halos_per_simulation=1,
    )
    shutil.rmtree(suite.hydro_base)
    bases = ("--dmo-base", suite.dmo_base, "--catalogue-base", suite.catalogue_base)
    own = ("-d", sound.root, "--set", "BOX", "--option", "parameter_file=null")
    suite.parameter_file.unlink()
    fine("conditions", "BOX_0", *own, *bases, "--output", "conditions", *form)
    found = read_condition_set(elsewhere / "conditions")
    assert found.box_size == box_size
    assert found.parameters is None
    arrays, grid = read_condition(elsewhere / "conditions", found.halos[0])
    assert (grid.box_size, grid.pixel_size * grid.npix, grid.depth) == (box_size, 6.25, 50)
    assert "params" not in arrays
    header = read_header(next(suite.dmo_base.rglob("*.hdf5")))
    density = header.omega0 * CRITICAL_DENSITY
    in_widest = arrays["large_scale"][2].sum(dtype=float) * 8**2
    # A window of 50 Mpc/h, 50 deep, holds a box of half its size eight times, and an eighth of one of twice its size.
    if box_size == 25:
        assert in_widest == pytest.approx(density * 50**3, rel=0.02)
    else:
        assert arrays["condition"].sum(dtype=float) < in_widest < density * box_size**3 / 2


def test_both_formats_hold_the_same(sound: MadeDataset, elsewhere: Path) -> None:
    """What is read from a group is what is read from files; any Zarr library finds units and the pixel grid in it."""
    command = ("conditions", "SB35_0", "-d", sound.root, "--output")
    fine(*command, "files")
    for _ in range(2):  # the second takes the place of the first
        fine(*command, "group", "--zarr")
    assert {path.name for path in elsewhere.iterdir()} == {"files", "group"}
    found = read_condition_set(elsewhere / "group")
    assert found == read_condition_set(elsewhere / "files")
    group = zarr.open_group(elsewhere / "group", mode="r")
    assert np.array_equal(group["halo"], found.halos)
    for number, halo in enumerate(found.halos):
        ours, grid = read_condition(elsewhere / "group", halo)
        theirs, same_grid = read_condition(elsewhere / "files", halo)
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype
            assert np.array_equal(ours[name], array)
            assert name not in group or np.array_equal(group[name][number], array)
        assert (grid.npix, grid.pixel_size, grid.depth) == (same_grid.npix, same_grid.pixel_size, same_grid.depth)
    attributes = dict(group.attrs)
    assert attributes["pixel_size"] * 16 == attributes["window_sizes"][0] == 6.25
    assert (attributes["box_size"], attributes["depth"], attributes["simulation"]) == (50, 50, "SB35_0")
    assert group["condition"].attrs["unit"] == "Msun/h per native pixel"


def test_a_killed_run_leaves_no_group(sound: MadeDataset, elsewhere: Path) -> None:
    """Killed among the haloes, nothing has the group's name, or what was there before; the next run makes it whole."""
    line = [PROGRAM, "conditions", "SB35_0", "-d", sound.root, "--zarr", "--output", "group"]
    lower = ("--option", "strata=[{min_mass: 1.0e12}]")  # of several haloes
    killing = os.environ | {"BIND_DATA_FAULT": "within-conditions:sigkill:2"}

    def killed() -> None:
        done = subprocess.run([*line, *lower], env=killing, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr

    killed()
    assert not (elsewhere / "group").exists()
    with pytest.raises(ConditionError):
        read_condition_set(elsewhere / "group")
    fine(*line[1:])
    before = on_disk(elsewhere / "group")
    killed()
    assert on_disk(elsewhere / "group") == before
    fine(*line[1:], *lower)
    assert {path.name for path in elsewhere.iterdir()} == {"group"}
    assert len(read_condition_set(elsewhere / "group").halos) > 1


def test_what_is_something_else_stays(sound: MadeDataset, elsewhere: Path) -> None:
    """A folder with other content is not written into, or replaced."""
    command = ("conditions", "SB35_0", "-d", sound.root, "--output")
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "notes.txt").write_text("precious")
    zarr.open_group(elsewhere / "other", mode="w", attributes={"mine": True})
    for folder, form in (("mine", ("--zarr",)), ("other", ("--zarr",)), ("other", ())):
        before = on_disk(elsewhere)
        assert "left as it is" in refused(*command, folder, *form)
        assert on_disk(elsewhere) == before


@pytest.mark.parametrize("victim", ["condition/c/0/0/0", "halo_center/c/0/0", "rotation/zarr.json"])
def test_a_damaged_group_is_an_error(sound: MadeDataset, elsewhere: Path, victim: str) -> None:
    """A flipped bit, or an array's description cut short, is found when the halo is read."""
    fine("conditions", "SB35_0", "-d", sound.root, "--output", "group", "--zarr")
    halo = read_condition_set(elsewhere / "group").halos[0]
    path = elsewhere / "group" / victim
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content if victim.endswith("0") else content[:50])
    with pytest.raises(ConditionError, match="bind-data conditions"):
        read_condition(elsewhere / "group", halo)
    with pytest.raises(ConditionError, match="others"):
        read_condition(elsewhere / "group", halo + 100_000)


def test_what_is_missing_is_said(sound: MadeDataset, elsewhere: Path) -> None:
    """Without a simulation, or a finished folder, a message says what was expected."""
    assert "there is no dmo in" in refused("conditions", "SB35_99", "-d", sound.root, "--output", "conditions")
    assert not (elsewhere / "conditions").exists()
    with pytest.raises(ConditionError, match="bind-data conditions"):
        read_condition_set(elsewhere)
    with pytest.raises(ConditionError, match="halo_3"):
        read_condition(elsewhere, 3)
