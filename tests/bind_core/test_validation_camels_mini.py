"""Validation of small real simulations, and of wrong pairs made of them."""

import itertools

import numpy as np
import pytest

from bind_core.config import DatasetConfig
from bind_core.content import ContentCheck
from bind_core.findings import FindingCode
from bind_core.pairing import MESH_SIDE, add_to_coarse_mesh, empty_coarse_mesh, mesh_correlation
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.particles import component_source, read_slices
from bind_core.snapshot import Component
from bind_core.suite import discover_simulations, find_simulation
from bind_core.validation import inspect_simulation, validate_simulation

pytestmark = pytest.mark.camels_mini
NAMES = ["SB35_0", "SB35_2", "SB35_4"]
OTHERS = list(itertools.permutations(NAMES, 2))


def config_for(root, base=None):
    return DatasetConfig(
        dmo_base=root / "DMO",
        hydro_base=root / "Hydro",
        catalogue_base=root / "FOF",
        output_root=root / "out",
        parameter_file=None if base is None else base / "CosmoAstroSeed_SB35.txt",
    )


def dark_matter(name, component, config):
    files = find_simulation(name, config)
    source = component_source(component, (files.dmo if component is Component.DMO else files.hydro).files, config)
    return np.concatenate([part.positions for part in read_slices(source, source.pieces)]), source.box_size


def correlation(first, second, box_size):
    meshes = [empty_coarse_mesh(MESH_SIDE) for _ in range(2)]
    for mesh, positions in zip(meshes, (first, second), strict=True):
        add_to_coarse_mesh(mesh, positions, box_size)
    return mesh_correlation(*meshes)


@pytest.mark.parametrize("name", NAMES)
def test_real_simulations_have_no_findings(camels_mini, name):
    """Real simulations in three layouts, two of them without stars, give neither error nor warning."""
    config = config_for(camels_mini)
    table = read_parameter_table(find_parameter_file(config))
    inspection = validate_simulation(find_simulation(name, config), config, table)
    assert inspection.findings == ()
    assert len(inspection.parameters) == 15


def test_all_real_simulations_are_discovered(camels_mini):
    """Discovery lists what is there, though the parameter table has more rows."""
    config = config_for(camels_mini)
    assert discover_simulations(config) == NAMES
    assert len(read_parameter_table(find_parameter_file(config)).rows) > len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_true_pairs_correlate_almost_perfectly(camels_mini, name):
    """The two dark-matter fields of a real pair correlate above 0.99 on the coarse mesh; the refusal starts far below.

    A shift by 1 Mpc/h falls below the threshold.
    """
    config = config_for(camels_mini)
    dmo, box_size = dark_matter(name, Component.DMO, config)
    hydro, _ = dark_matter(name, Component.DARK_MATTER, config)
    assert correlation(dmo, hydro, box_size) > 0.99 > config.pairing_threshold
    shifted = (hydro + np.float32([1.0, 0.0, 0.0])) % np.float32(box_size)
    assert correlation(dmo, shifted, box_size) < config.pairing_threshold


@pytest.mark.parametrize(("dmo", "hydro"), OTHERS)
def test_mispaired_real_simulations_are_refused(camels_mini, tmp_path, dmo, hydro):
    """The DMO run of one simulation with the hydro run of another is found by its phases alone."""
    for base, name in (("DMO", dmo), ("Hydro", hydro), ("FOF", dmo)):
        (tmp_path / base).mkdir()
        (tmp_path / base / "SB35_0").symlink_to(camels_mini / base / name)
    config = config_for(tmp_path, camels_mini)
    table = read_parameter_table(find_parameter_file(config))
    inspection = validate_simulation(find_simulation("SB35_0", config), config, table)
    check = ContentCheck("SB35_0", 50.0)
    for component in (Component.DMO, Component.DARK_MATTER):
        positions, box_size = dark_matter("SB35_0", component, config)
        check.meshes[component] = empty_coarse_mesh(MESH_SIDE)
        add_to_coarse_mesh(check.meshes[component], positions, box_size)
    assert abs(mesh_correlation(*check.meshes.values())) < 0.3
    assert FindingCode.MISPAIRED in {finding.code for finding in inspection.findings}
    assert inspection.blocked


@pytest.mark.parametrize(("dmo", "catalogue"), OTHERS)
def test_catalogue_of_another_real_simulation_is_refused(camels_mini, tmp_path, dmo, catalogue):
    """A catalogue of another run is found by where its haloes lie, on top of its header."""
    for base, name in (("DMO", dmo), ("Hydro", dmo), ("FOF", catalogue)):
        (tmp_path / base).mkdir()
        (tmp_path / base / "SB35_0").symlink_to(camels_mini / base / name)
    config = config_for(tmp_path, camels_mini)
    table = read_parameter_table(find_parameter_file(config))
    findings = validate_simulation(find_simulation("SB35_0", config), config, table).findings
    assert any(finding.code is FindingCode.MISPAIRED and "catalogue" in finding.where for finding in findings)


def test_inspection_of_real_simulations_knows_their_haloes(camels_mini):
    """The haloes above 1e13 Msun/h are as many as documented."""
    config = config_for(camels_mini)
    table = read_parameter_table(find_parameter_file(config))
    massive = {}
    for name in NAMES:
        catalogue = inspect_simulation(find_simulation(name, config), config, table).catalogue
        massive[name] = int(np.count_nonzero(catalogue.masses > 1e13))
    assert massive == {"SB35_0": 40, "SB35_2": 41, "SB35_4": 44}
