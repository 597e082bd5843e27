"""The command `conditions`: what a trained model gets to paint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import MadeDataset, fine, refused

from bind_core.halos import halos_in, read_catalogue
from bind_core.inference import halo_conditions, read_particles
from bind_core.snapshot import Component
from bind_core.suite import find_simulation
from storage.conditions import ConditionError, read_condition, read_condition_set
from storage.mock_suite import write_mock_suite

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]


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


def test_a_dark_matter_only_box_of_any_size_will_do(sound: MadeDataset, elsewhere: Path) -> None:
    """Windows keep their size in Mpc/h in a larger box without a hydrodynamic run, whose parameters nobody knows."""
    suite = write_mock_suite(elsewhere / "box", simulations=1, particles_per_side=8, box_size=100.0, set_name="BOX")
    shutil.rmtree(suite.hydro_base)
    bases = ("--dmo-base", suite.dmo_base, "--catalogue-base", suite.catalogue_base)
    own = ("-d", sound.root, "--set", "BOX", "--option", "parameter_file=null")
    suite.parameter_file.unlink()
    fine("conditions", "BOX_0", *own, *bases, "--output", "conditions")
    found = read_condition_set(elsewhere / "conditions")
    assert found.box_size == 100
    assert found.parameters is None
    arrays, grid = read_condition(elsewhere / "conditions", found.halos[0])
    assert (grid.box_size, grid.pixel_size * grid.npix) == (100, 6.25)
    assert arrays["large_scale"][2].mean() < arrays["condition"].mean()


def test_what_is_missing_is_said(sound: MadeDataset, elsewhere: Path) -> None:
    """Without a simulation, or a finished folder, a message says what was expected."""
    assert "there is no dmo in" in refused("conditions", "SB35_99", "-d", sound.root, "--output", "conditions")
    assert not (elsewhere / "conditions").exists()
    with pytest.raises(ConditionError, match="bind-data conditions"):
        read_condition_set(elsewhere)
    with pytest.raises(ConditionError, match="halo_3"):
        read_condition(elsewhere, 3)
