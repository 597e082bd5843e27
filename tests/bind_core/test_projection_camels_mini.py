from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the Blosc filter
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bind_core.mesh import ParticleMesh
from bind_core.projection import Backend, largest_deviation, project_all, project_native
from bind_core.windows import Windows

CAMELS_MINI = Path(__file__).parents[3] / "shared" / "camels_mini"
SIMULATIONS = ["SB35_0", "SB35_2", "SB35_4"]
SPECIES = {"gas": "PartType0", "dark matter": "PartType1", "stars": "PartType4"}
WINDOWS = Windows()

pytestmark = [
    pytest.mark.camels_mini,
    pytest.mark.skipif(not CAMELS_MINI.is_dir(), reason="no simulations in ../shared/camels_mini"),
]


def read_species(folder, part_type):
    positions, masses = [np.empty((0, 3))], [np.empty(0)]
    box_size = 0.0
    for path in sorted(folder.rglob("snap*.hdf5")):
        with h5py.File(path) as file:
            box_size = file["Header"].attrs["BoxSize"] / 1e3
            if part_type not in file:
                continue
            group = file[part_type]
            positions.append(group["Coordinates"][:] / 1e3)
            table_mass = file["Header"].attrs["MassTable"][int(part_type[-1])]
            masses.append(
                group["Masses"][:] * 1e10
                if "Masses" in group
                else np.full(len(group["Coordinates"]), table_mass * 1e10)
            )
    return ParticleMesh.build(np.concatenate(positions), np.concatenate(masses), box_size)


def awkward_halos(simulation, box_size):
    """Return the positions of the haloes nearest to a face, an edge and a corner of the box, among the massive."""
    (path,) = (CAMELS_MINI / "FOF" / simulation).rglob("*.hdf5")
    with h5py.File(path) as file:
        positions = file["Group/GroupPos"][:].astype(np.float64) / 1e3
        massive = np.argsort(file["Group/Group_M_Crit200"][:])[::-1][:60]
    distances = np.sort(np.minimum(positions, box_size - positions)[massive], axis=1)
    nearest = [np.argmin(np.hypot.reduce(distances[:, :n], axis=1)) for n in (1, 2, 3)]
    return {name: positions[massive[i]] for name, i in zip(("face", "edge", "corner"), nearest, strict=True)} | {
        "most massive": positions[massive[0]]
    }


@pytest.fixture(scope="module", params=SIMULATIONS)
def simulation(request):
    name = request.param
    particles = {"N-body": read_species(CAMELS_MINI / "DMO" / name, "PartType1")}
    particles |= {s: read_species(CAMELS_MINI / "Hydro" / name, p) for s, p in SPECIES.items()}
    return particles, awkward_halos(name, particles["N-body"].box_size)


def rotations():
    return [np.eye(3), *Rotation.random(3, rng=np.random.default_rng(1993)).as_matrix()]


@pytest.mark.parametrize("place", ["face", "edge", "corner", "most massive"])
@pytest.mark.parametrize("backend", [Backend.FUSED, pytest.param(Backend.PYLIANS, marks=pytest.mark.pylians)])
def test_backends_agree_on_real_halos(simulation, place, backend):
    """On real haloes at the box's face, edge and corner, every species' maps are the reference's to 1e-4."""
    if backend is Backend.PYLIANS:
        pytest.importorskip("MAS_library", reason="Pylians is not installed: run `make pylians`")
    particles, halos = simulation
    # Pylians takes seconds per rotation
    for rotation in rotations() if backend is Backend.FUSED else rotations()[:2]:
        for species, mesh in particles.items():
            maps = project_all(mesh, halos[place], rotation, WINDOWS, backend)
            expected = project_all(mesh, halos[place], rotation, WINDOWS, Backend.REFERENCE)
            assert largest_deviation(maps, expected) <= 1e-4, species
            np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected.sum(axis=(1, 2)), rtol=1e-6)


def test_the_halo_is_in_the_middle(simulation):
    """The central pixels of a massive halo's map are its densest: units and frame are right."""
    particles, halos = simulation
    for rotation in rotations():
        pixels = project_native(particles["N-body"], halos["most massive"], rotation, WINDOWS)
        middle = WINDOWS.resolution // 2
        inner = pixels[middle - 16 : middle + 16, middle - 16 : middle + 16]
        assert inner.mean() > 3 * pixels.mean()


def test_the_widest_unrotated_window_holds_the_box(simulation):
    """Without rotation the 50 Mpc/h window of a 50 Mpc/h box holds its mass, up to the open edge's shares."""
    particles, halos = simulation
    for species in ("N-body", "dark matter", "gas"):
        widest = project_all(particles[species], halos["corner"], np.eye(3), WINDOWS)[-1]
        total = widest.sum() * WINDOWS.factors[-1] ** 2
        assert total == pytest.approx(particles[species].total_mass, rel=1e-3)
