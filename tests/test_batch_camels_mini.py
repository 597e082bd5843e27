"""The batch program on real simulations: every sample, on any number of ranks and nodes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from batch_runs import digests, is_whole, output, run, run_mpi, sample_rows, simulation_rows, statuses

from bind_core.config import DatasetConfig
from bind_core.content import CRITICAL_DENSITY
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.snapshot import read_header
from bind_core.suite import find_simulation
from storage.blocks import plan_block, screen_block
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.workload import plan_workload

pytestmark = [pytest.mark.camels_mini, pytest.mark.mpi]

NAMES = ["SB35_0", "SB35_2", "SB35_4"]
HALOS = {"SB35_0": 40, "SB35_2": 41, "SB35_4": 44}
ROTATIONS = 10
DOCUMENTED = {
    "condition": ((128, 128), "float32"),
    "target": ((3, 128, 128), "float32"),
    "large_scale": ((3, 128, 128), "float32"),
    "params": ((15,), "float64"),
    "halo_mass": ((), "float64"),
    "halo_center": ((3,), "float64"),
    "rotation": ((3, 3), "float64"),
}
ON_NODES_OF_TWO = """
import sys
from pathlib import Path
from mpi4py import MPI
from bind_core.plan import BlockPlan
from tasks.projection_job import project_block
plan = BlockPlan.from_json(Path(sys.argv[1]).read_text())
results = project_block(MPI.COMM_WORLD, plan, lambda progress: None, ranks_per_node=2)
if MPI.COMM_WORLD.rank == 0:
    import json
    print(json.dumps({sample.path: sample.sha256 for result in results for sample in result.samples}), flush=True)
"""


def folders(suite: Path) -> dict[str, Path]:
    """Return the environment that names the suite's folders."""
    places = {"BIND_NBODY_BASE": "DMO", "BIND_HYDRO_BASE": "Hydro", "BIND_FOF_NBODY_BASE": "FOF"}
    return {variable: suite / folder for variable, folder in places.items()}


def make(suite: Path, root: Path, rotations: int, ranks: int) -> str:
    """Make a data set of all simulations; return what the program said."""
    asked = ["--resolution", "128", "--num_rotations", rotations, "--output_base_root", root]
    return output(run(*asked, ranks=ranks, **folders(suite)))


@pytest.fixture(scope="module")
def whole(camels_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set of all simulations in ten orientations, made by two ranks."""
    root = tmp_path_factory.mktemp("whole")
    assert "Made 1,250 samples" in make(camels_mini, root, ROTATIONS, ranks=2)
    return root


def fewer(root: Path, rotations: int) -> dict[str, str]:
    """Return the digests of a data set's first orientations."""
    names = tuple(f"_rot_{rotation}.npz" for rotation in range(rotations))
    return {path: digest for path, digest in digests(root).items() if path.endswith(names)}


def test_every_halo_gets_every_orientation(whole: Path) -> None:
    """All 1,250 samples are there, on disk and in the manifest, in the folders that readers walk."""
    assert statuses(whole) == dict.fromkeys(NAMES, "complete")
    rows = sample_rows(whole)
    assert is_whole(whole)
    assert dict(rows.group_by("simulation").len().iter_rows()) == {n: ROTATIONS * HALOS[n] for n in NAMES}
    for row in rows.iter_rows(named=True):
        number = row["simulation"].removeprefix("SB35_")
        name = f"sim_{number}_halo_{row['halo']}_rot_{row['rotation']}.npz"
        assert row["path"] == f"{row['split']}/sim_{number}/{name}"


@pytest.mark.parametrize(("ranks", "rotations"), [(0, 2), (3, 2)])
def test_ranks_make_no_difference(camels_mini: Path, whole: Path, tmp_path: Path, ranks: int, rotations: int) -> None:
    """One process and three ranks make the samples that two ranks make, to the byte, and record the same of them."""
    make(camels_mini, tmp_path, rotations, ranks)
    assert digests(tmp_path) == fewer(whole, rotations)
    expected = sample_rows(whole).filter(sample_rows(whole)["rotation"] < rotations)
    assert sample_rows(tmp_path).equals(expected)
    of_the_number = ["n_planned", "n_committed"]
    assert simulation_rows(tmp_path).drop(of_the_number).equals(simulation_rows(whole).drop(of_the_number))


def test_nodes_make_no_difference(camels_mini: Path, whole: Path, tmp_path: Path) -> None:
    """Two nodes of two ranks, each with particles of its own, make the same samples, and all results arrive."""
    config = configuration(camels_mini, tmp_path)
    table = read_parameter_table(find_parameter_file(config))
    workload = plan_workload(config, Manifest(DatasetLayout(tmp_path, "SB35"), config))
    plan = plan_block(screen_block(workload.outstanding, config, table), config, "run", 0)
    assert plan is not None
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    reported = json.loads(output(run_mpi(ON_NODES_OF_TWO, 4, file)))
    assert reported == digests(tmp_path) == fewer(whole, 1)


def configuration(suite: Path, root: Path) -> DatasetConfig:
    return DatasetConfig.from_values(
        {
            "dmo_base": suite / "DMO",
            "hydro_base": suite / "Hydro",
            "catalogue_base": suite / "FOF",
            "output_root": root,
            "strata": [{"rotations": 1}],
        }
    )


def samples(root: Path, simulation: str) -> Sequence[dict[str, np.ndarray]]:
    """Return the arrays of one orientation of each halo, as any reader gets them."""
    rows = sample_rows(root)
    chosen = rows.filter((rows["simulation"] == simulation) & (rows["rotation"] == 0))
    return [dict(np.load(root / path)) for path in chosen["path"]]


@pytest.mark.parametrize("simulation", NAMES)
def test_samples_keep_the_contract(camels_mini: Path, whole: Path, simulation: str) -> None:
    """Every file has the seven arrays with the documented shapes and types, and the values of its halo."""
    config = configuration(camels_mini, whole)
    parameters = read_parameter_table(find_parameter_file(config)).rows[simulation]
    masses = []
    for arrays in samples(whole, simulation):
        assert {key: (array.shape, array.dtype.name) for key, array in arrays.items()} == DOCUMENTED
        assert np.array_equal(arrays["params"], parameters)
        assert np.allclose(arrays["rotation"] @ arrays["rotation"].T, np.eye(3))
        masses.append(float(arrays["halo_mass"]))
    assert len(masses) == HALOS[simulation]
    assert min(masses) > 1e13


@pytest.mark.parametrize("simulation", NAMES)
def test_masses_are_plausible(camels_mini: Path, whole: Path, simulation: str) -> None:
    """Both runs have the same mass in a window; the wider a window, the more; and the widest has about the box's."""
    config = configuration(camels_mini, whole)
    header = read_header(find_simulation(simulation, config).dmo.files[0])
    box = header.omega0 * CRITICAL_DENSITY * header.box_size**3
    ratios = []
    for arrays in samples(whole, simulation):
        condition, large_scale = arrays["condition"].sum(dtype=float), arrays["large_scale"].sum((1, 2), dtype=float)
        # Pixels of wider maps are means over native pixels, of which they hold 4, 16 and 64.
        within = [float(arrays["halo_mass"]), condition, *(large_scale * [4, 16, 64])]
        assert within == sorted(within)
        assert within[-1] == pytest.approx(box, rel=0.25)
        dark_matter, gas, stars = arrays["target"].sum((1, 2), dtype=float)
        assert 0.1 < (gas + stars) / (dark_matter + gas + stars) < 0.2
        assert (stars > 0) == (simulation == "SB35_0")
        ratios.append((dark_matter + gas + stars) / condition)
    assert np.median(ratios) == pytest.approx(1, abs=0.01)
    assert np.all(np.abs(np.array(ratios) - 1) < 0.06)
