"""The batch program on real simulations, plainly and on several ranks and nodes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batch_runs import digests, is_whole, output, run, run_mpi, sample_rows, simulation_rows

from bind_core.config import DatasetConfig, Stratum
from bind_core.halos import read_catalogue
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.suite import find_simulation
from storage.blocks import plan_block, screen_block
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.workload import plan_workload

pytestmark = [pytest.mark.camels_mini, pytest.mark.mpi]

SAMPLES = {"SB35_0": 400, "SB35_2": 410, "SB35_4": 440}
CONTRACT = {
    "condition": ((128, 128), np.float32),
    "target": ((3, 128, 128), np.float32),
    "large_scale": ((3, 128, 128), np.float32),
    "params": ((15,), np.float64),
    "halo_mass": ((), np.float64),
    "halo_center": ((3,), np.float64),
    "rotation": ((3, 3), np.float64),
}
NODES = """
import sys
from pathlib import Path
from mpi4py import MPI
from bind_core.plan import BlockPlan
from tasks.projection_job import project_block
plan = BlockPlan.from_json(Path(sys.argv[1]).read_text())
project_block(MPI.COMM_WORLD, plan, lambda progress: None, ranks_per_node=2)
"""


def bases_of(camels_mini: Path) -> list[object]:
    return [
        *("--nbody_base", camels_mini / "DMO"),
        *("--hydro_base", camels_mini / "Hydro"),
        *("--fof_nbody_base", camels_mini / "FOF"),
    ]


def config_of(camels_mini: Path, root: Path, rotations: int) -> DatasetConfig:
    return DatasetConfig(
        dmo_base=camels_mini / "DMO",
        hydro_base=camels_mini / "Hydro",
        catalogue_base=camels_mini / "FOF",
        output_root=root,
        strata=(Stratum(rotations=rotations),),
    )


@pytest.fixture(scope="module")
def plain(camels_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set that one process makes with the defaults: ten rotations of every halo."""
    root = tmp_path_factory.mktemp("plain")
    said = output(run(*bases_of(camels_mini), "--num_rotations", 10, "--output_base_root", root))
    assert "Made 1,250 samples; 1,250 of 1,250 planned samples exist" in said
    return root


def first_two_rotations(root: Path) -> dict[str, str]:
    return {path: digest for path, digest in digests(root).items() if path.endswith(("_rot_0.npz", "_rot_1.npz"))}


def test_all_samples_are_made_and_lie_where_they_should(camels_mini: Path, plain: Path) -> None:
    """Every halo above the threshold has ten samples, in its simulation's folder of its split, and nothing else is."""
    assert is_whole(plain)
    rows = sample_rows(plain)
    assert Counter(rows["simulation"].to_list()) == SAMPLES
    config = config_of(camels_mini, plain, 10)
    expected = set()
    for name in SAMPLES:
        catalogue = read_catalogue(find_simulation(name, config).catalogue.files)
        (split,) = set(rows.filter(rows["simulation"] == name)["split"])
        folder = f"sim_{name.removeprefix('SB35_')}"
        expected |= {
            f"{split}/{folder}/{folder}_halo_{halo}_rot_{rotation}.npz"
            for halo in np.flatnonzero(catalogue.masses > 1e13)
            for rotation in range(10)
        }
    assert set(digests(plain)) == expected
    found = {str(path.relative_to(plain)) for split in ("train", "test") for path in (plain / split).rglob("*.*")}
    assert found == expected


def test_samples_keep_to_the_contract(camels_mini: Path, plain: Path) -> None:
    """Any reader of .npz finds the seven keys with their shapes and types, plausible maps, and the true parameters."""
    rows = sample_rows(plain)
    table = read_parameter_table(find_parameter_file(config_of(camels_mini, plain, 10)))
    for row in rows[::25].iter_rows(named=True):
        with np.load(plain / row["path"], allow_pickle=False) as file:
            sample = {key: file[key] for key in file.files}
        assert {key: (value.shape, value.dtype.type) for key, value in sample.items()} == CONTRACT
        maps = [sample["condition"], *sample["target"][:2], *sample["large_scale"]]
        assert all(np.all(np.isfinite(pixels)) and pixels.min() >= 0 and pixels.max() > 0 for pixels in maps)
        assert np.all(sample["target"][2] >= 0)
        assert sample["halo_mass"] == row["halo_mass"] > 1e13
        np.testing.assert_allclose(sample["rotation"] @ sample["rotation"].T, np.eye(3), atol=1e-12)
        np.testing.assert_array_equal(sample["params"], table.row(row["simulation"]))
        assert sample["condition"].sum(dtype=float) == pytest.approx(row["condition_mass"], rel=1e-5)


def test_two_ranks_make_the_same_data_set(camels_mini: Path, plain: Path, tmp_path: Path) -> None:
    """Under mpiexec with two ranks, all 1,250 files and the manifest are those of one process."""
    arguments = [*bases_of(camels_mini), "--num_rotations", 10, "--output_base_root", tmp_path]
    output(run(*arguments, ranks=2))
    assert digests(tmp_path) == digests(plain)
    assert sample_rows(tmp_path).equals(sample_rows(plain))
    assert simulation_rows(tmp_path).equals(simulation_rows(plain))


@pytest.mark.parametrize("ranks", [1, 3])
def test_fewer_rotations_are_some_of_the_same_samples(
    camels_mini: Path, plain: Path, tmp_path: Path, ranks: int
) -> None:
    """On one and on three ranks, the samples of two rotations are the first two of ten, byte for byte."""
    output(run(*bases_of(camels_mini), "--num_rotations", 2, "--output_base_root", tmp_path, ranks=ranks))
    assert digests(tmp_path) == first_two_rotations(plain)
    both = sample_rows(plain).filter(sample_rows(plain)["rotation"] < 2)
    assert sample_rows(tmp_path).equals(both)


def test_two_nodes_make_the_same_samples(camels_mini: Path, plain: Path, tmp_path: Path) -> None:
    """Four ranks that take themselves for two nodes write the same bytes."""
    config = config_of(camels_mini, tmp_path / "out", 2)
    work = plan_workload(config, Manifest(DatasetLayout(config.output_root, config.set_name))).outstanding
    table = read_parameter_table(find_parameter_file(config))
    plan = plan_block(screen_block(work, config, table), config, "run", 0)
    assert plan is not None
    path = tmp_path / "plan.json"
    path.write_text(replace(plan, run_id="another").to_json())
    output(run_mpi(NODES, 4, path))
    assert digests(tmp_path / "out") == first_two_rotations(plain)
