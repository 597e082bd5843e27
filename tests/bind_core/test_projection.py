from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bind_core.errors import ProjectionError
from bind_core.mesh import ParticleMesh
from bind_core.projection import Backend, largest_deviation, project_all, project_native
from bind_core.windows import Windows, block_mean, central_crop

BOX = 50.0
WINDOWS = Windows()
PIXEL = WINDOWS.pixel_size
N = WINDOWS.resolution
IDENTITY = np.eye(3)
#: About the line of sight, by 90 degrees: x' -> y', y' -> -x'.
QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
#: Accuracy that every backend is held to.
TOLERANCE = 1e-4
MASS_TOLERANCE = 1e-6

BACKENDS = [Backend.FUSED, Backend.REFERENCE, pytest.param(Backend.PYLIANS, marks=pytest.mark.pylians)]


@pytest.fixture(autouse=True)
def _pylians_if_asked_for(request):
    if request.node.get_closest_marker("pylians"):
        pytest.importorskip("MAS_library", reason="Pylians is not installed: run `make pylians`")


def rotation_from(seed):
    return Rotation.random(rng=np.random.default_rng(seed)).as_matrix()


def mesh_of(positions, masses=1.0, box_size=BOX, cells=None):
    return ParticleMesh.build(np.mod(np.atleast_2d(positions), box_size), masses, box_size, cells)


def random_mesh(n, seed=0, box_size=BOX, weighted=False, cells=None, clustered=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    positions = rng.random((n, 3)) * box_size
    if clustered:
        hosts = rng.random((20, 3)) * box_size
        radii = 3.0 * rng.random((n, 1)) ** 3
        positions = hosts[rng.integers(20, size=n)] + radii * rng.normal(size=(n, 3))
    masses = rng.lognormal(20.0, 1.0, n).astype(np.float32) if weighted else 6.5e9
    return mesh_of(positions.astype(dtype), masses, box_size, cells)


def assert_same_maps(maps, expected):
    assert largest_deviation(maps, expected) <= TOLERANCE
    np.testing.assert_allclose(maps.sum(axis=(-2, -1)), expected.sum(axis=(-2, -1)), rtol=MASS_TOLERANCE, atol=0)


# ------------------------------------------------------------------------------------- one particle


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", [(25.0, 25.0, 25.0), (0.0, 0.0, 0.0), (50.0, 0.0, 49.5), (12.5, 40.0, 3.125)])
def test_a_particle_at_the_halo_fills_the_middle_pixel_of_each_map(backend, center):
    """A particle at the halo lands on node n/2 alone, in each scale, wherever in the box the halo is."""
    maps = project_all(mesh_of(center, 3.0), center, rotation_from(1), WINDOWS, backend)
    for pixels, factor in zip(maps, (1, *WINDOWS.factors), strict=True):
        # rotated about itself, it stays on the node only to rounding
        assert pixels[N // 2, N // 2] == pytest.approx(3.0 / factor**2, rel=1e-6)
        assert pixels.sum() == pytest.approx(3.0 / factor**2, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_particle_between_nodes_is_shared_by_distance(backend):
    """A particle a quarter pixel along x' and a half along y' is shared 3:1 and 1:1 with the next nodes."""
    position = np.array([25 + 0.25 * PIXEL, 25 + 0.5 * PIXEL, 25.0])
    pixels = project_native(mesh_of(position), [25.0] * 3, IDENTITY, WINDOWS, backend)
    np.testing.assert_allclose(
        pixels[N // 2 : N // 2 + 2, N // 2 : N // 2 + 2], [[0.375, 0.375], [0.125, 0.125]], rtol=1e-3
    )
    assert pixels.sum() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_of_the_map_are_those_of_the_projected_frame(backend):
    """Axis 0 of a map runs along x', axis 1 along y', and a rotation takes the box frame to that frame."""
    particle = mesh_of([25 + 3 * PIXEL, 25 + 5 * PIXEL, 25 + 7 * PIXEL])
    middle = np.array([N // 2, N // 2])

    def peak(rotation):
        pixels = project_native(particle, [25.0] * 3, np.array(rotation, dtype=float), WINDOWS, backend)
        return tuple(int(k) for k in np.unravel_index(pixels.argmax(), pixels.shape) - middle)

    assert peak(IDENTITY) == (3, 5)
    assert peak(QUARTER_TURN) == (-5, 3)
    assert peak([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) == (7, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_window_is_open_at_its_lower_edge(backend):
    """A particle just outside the lower edge still gives its share to row 0, and no other."""
    position = np.array([25 - 3.125 - 0.25 * PIXEL, 25.0, 25.0])
    pixels = project_native(mesh_of(position), [25.0] * 3, IDENTITY, WINDOWS, backend)
    assert pixels[0, N // 2] == pytest.approx(0.75, rel=1e-3)
    assert pixels.sum() == pytest.approx(0.75, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_window_is_open_at_its_upper_edge(backend):
    """A particle beyond the last node gives that node its share and does not wrap around to row 0."""
    position = np.array([25 + 3.125 - 0.25 * PIXEL, 25.0, 25.0])
    pixels = project_native(mesh_of(position), [25.0] * 3, IDENTITY, WINDOWS, backend)
    assert pixels[N - 1, N // 2] == pytest.approx(0.25, rel=1e-3)
    assert pixels.sum() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("z", "counted"), [(-5.0, True), (5.0, False), (4.99, True), (-5.01, False)])
def test_the_depth_is_closed_in_front_and_open_behind(backend, z, counted):
    """A particle exactly at z' = -depth/2 is projected, one exactly at +depth/2 is not."""
    windows = replace(WINDOWS, depth=10.0)
    maps = project_all(mesh_of([20.0, 20.0, 20.0 + z]), [20.0] * 3, IDENTITY, windows, backend)
    assert (maps[:, N // 2, N // 2] > 0).tolist() == [counted] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_periodic_image_inside_the_window_counts(backend):
    """Seen along a box diagonal, a particle half a box away appears as often as copies fit the window."""
    # The images lie at (25, 25, 25) + 50 k. Turned by 45 degrees about z, those at (+-25, +-25) land on the
    # axes, 35.4 away: outside of a 50 window, inside of an 75 one.
    windows = Windows(context_sizes=(50.0, 75.0))
    turn = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    maps = project_all(mesh_of([25.0, 25.0, 10.0]), [0.0, 0.0, 10.0], turn, windows, backend)
    totals = maps.sum(axis=(1, 2)) * np.array([1, 64, 144])
    np.testing.assert_allclose(totals, [0, 0, 4], rtol=1e-6)


# ------------------------------------------------------------------------------ uniform and invariant


@pytest.mark.parametrize("backend", [Backend.FUSED, Backend.REFERENCE])
@pytest.mark.parametrize("seed", range(4))
def test_no_corner_is_empty_at_any_rotation(backend, seed):
    """Of a uniform lattice, the emptiest of 32 x 32 coarse pixels of the 50 Mpc/h map is >= 0.98 of the mean."""
    side = 96
    lattice = (np.indices((side,) * 3).reshape(3, -1).T + 0.5) * (BOX / side)
    center = np.random.default_rng(seed).random(3) * BOX
    widest = project_all(mesh_of(lattice), center, rotation_from(seed), WINDOWS, backend)[-1]
    coarse = block_mean(widest, N // 32)
    # A generic rotation sees the lattice as a smooth field: no coarse pixel is at the mercy of a few particles
    assert coarse.min() >= 0.98 * coarse.mean()
    assert widest.sum() * 64 == pytest.approx(side**3, rel=2e-3)


def test_an_unrotated_box_sized_window_holds_every_particle_once():
    """Without rotation a window as large as the box holds all of its mass, up to the open edge's shares."""
    lattice = (np.indices((40,) * 3).reshape(3, -1).T + 0.5) * (BOX / 40)
    maps = project_all(mesh_of(lattice), [25.0, 25.0, 25.0], IDENTITY, WINDOWS)
    assert maps[-1].sum() * 64 == pytest.approx(40**3, rel=1e-12)


@pytest.mark.parametrize("backend", [Backend.FUSED, Backend.REFERENCE])
@given(period=st.tuples(*[st.integers(-3, 3)] * 3), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_maps_do_not_change_when_the_halo_moves_by_box_periods(backend, period, seed):
    """Giving the halo's position in another period changes no map."""
    mesh = random_mesh(500, seed)
    center = np.array([0.125, 49.75, 25.0])
    rotation = rotation_from(seed)
    maps = project_all(mesh, center, rotation, WINDOWS, backend)
    moved = project_all(mesh, center + BOX * np.array(period), rotation, WINDOWS, backend)
    np.testing.assert_array_equal(maps, moved)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_maps_do_not_change_when_everything_moves(seed):
    """Moving halo and particles together, across the box's edges, changes maps only by rounding."""
    rng = np.random.default_rng(seed)
    # in steps of 1/64 Mpc/h all sums are exact in single precision
    positions = rng.integers(0, 64 * BOX, (400, 3)) / 64
    center = rng.integers(0, 64 * BOX, 3) / 64
    move = rng.integers(0, 64 * BOX, 3) / 64
    rotation = rotation_from(seed)
    maps = project_all(mesh_of(positions), center, rotation, WINDOWS)
    moved = project_all(mesh_of(positions + move), np.mod(center + move, BOX), rotation, WINDOWS)
    np.testing.assert_allclose(moved, maps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", [Backend.FUSED, Backend.REFERENCE])
def test_a_quarter_turn_about_the_line_of_sight_turns_the_map(backend):
    """Rotating by 90 degrees about z' equals np.rot90 of the map, about node n/2."""
    mesh = random_mesh(20_000)
    rotation = rotation_from(5)
    pixels = project_native(mesh, [10.0, 20.0, 30.0], rotation, WINDOWS, backend)
    turned = project_native(mesh, [10.0, 20.0, 30.0], QUARTER_TURN @ rotation, WINDOWS, backend)
    # Node 0 has no opposite among the nodes, and CIC shares with the upper node whichever way the map is
    # turned: the symmetric part of the grid, 1 to n - 1, turns into itself.
    np.testing.assert_allclose(turned[1:, 1:], np.rot90(pixels[1:, 1:]), rtol=0, atol=1e-6 * 6.5e9)


@pytest.mark.parametrize("backend", [Backend.FUSED, Backend.REFERENCE])
def test_turning_around_a_single_particle_does_not_move_it(backend):
    """Projection is invariant under rotations around a single particle."""
    mesh = mesh_of([30.0, 30.0, 30.0])
    for seed in range(5):
        pixels = project_native(mesh, [30.0, 30.0, 30.0], rotation_from(seed), WINDOWS, backend)
        assert pixels[N // 2, N // 2] == pytest.approx(1.0, rel=1e-12)


# ------------------------------------------------------------------------------- scales among themselves


@pytest.mark.parametrize("backend", BACKENDS)
def test_narrower_windows_hold_no_more_mass(backend):
    """Mass in a window is at most the mass in any wider one."""
    maps = project_all(random_mesh(3000, 3, weighted=True), [1.0, 2.0, 3.0], rotation_from(3), WINDOWS, backend)
    totals = maps.sum(axis=(1, 2)) * np.square([1, *WINDOWS.factors])
    assert (np.diff(totals) >= 0).all()


@pytest.mark.parametrize("backend", [Backend.FUSED, Backend.REFERENCE])
def test_all_maps_are_cut_from_one_native_grid(backend):
    """The native map is the crop, each context map the block means, of one native grid of the widest window."""
    mesh = random_mesh(20_000, 4, clustered=True)
    center, rotation = [49.0, 1.0, 20.0], rotation_from(4)
    one_grid = Windows(native_size=25.0, context_sizes=(), resolution=4 * N)
    native_grid = project_native(mesh, center, rotation, one_grid, backend)
    maps = project_all(mesh, center, rotation, Windows(context_sizes=(12.5, 25.0)), backend)
    expected = [
        central_crop(native_grid, N),
        block_mean(central_crop(native_grid, 2 * N), 2),
        block_mean(native_grid, 4),
    ]
    np.testing.assert_allclose(maps, expected, rtol=1e-9, atol=1e-9 * 6.5e9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_native_window_does_not_depend_on_the_context(backend):
    """Projecting the native window alone gives the first map of the whole stack."""
    mesh = random_mesh(5000, 6, clustered=True)
    alone = project_native(mesh, [5.0, 5.0, 5.0], rotation_from(6), WINDOWS, backend)
    stack = project_all(mesh, [5.0, 5.0, 5.0], rotation_from(6), WINDOWS, backend)
    assert_same_maps(alone[None], stack[:1])


# --------------------------------------------------------------------------------- backends among themselves

CASES = {
    "default": {},
    "weighted": {"weighted": True},
    "clustered": {"clustered": True, "weighted": True},
    "float32 input": {"dtype": np.float32},
    "one cell": {"cells": 1},
    "wide cells": {"cells": 3, "weighted": True},
    "fine cells": {"cells": 60},
    "box of 25": {"box_size": 25.0, "weighted": True},
    "box of 7": {"box_size": 7.0, "n": 30},
    "box of 100": {"box_size": 100.0, "n": 40_000},
    "box of 205": {"box_size": 205.0, "n": 100_000, "weighted": True},
}
WINDOW_CASES = {
    "default": WINDOWS,
    "native only": Windows(context_sizes=()),
    "one context": Windows(context_sizes=(25.0,)),
    "coprime contexts": Windows(context_sizes=(12.5, 18.75)),
    "even contexts": Windows(context_sizes=(25.0, 37.5), resolution=100),
    "shallow": Windows(depth=5.0, resolution=64),
    "deep": Windows(context_sizes=(12.5,), depth=80.0),
    "coarse": Windows(resolution=2),
    "fine": Windows(context_sizes=(12.5, 25.0), resolution=256),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", [Backend.FUSED, BACKENDS[2]])
def test_backends_agree_on_any_particles(case, backend):
    """Every backend gives the maps of the reference, for any box, mesh, masses and halo."""
    setting = {"n": 10_000, **CASES[case]}
    mesh = random_mesh(**setting, seed=11)
    for seed, center in enumerate([(0.0, 0.0, 0.0), (mesh.box_size, 0.3, 3.0), (3.1, 6.2, 5.5)]):
        rotation = rotation_from(seed)
        maps = project_all(mesh, center, rotation, WINDOWS, backend)
        assert_same_maps(maps, project_all(mesh, center, rotation, WINDOWS, Backend.REFERENCE))


@pytest.mark.parametrize("case", WINDOW_CASES)
@pytest.mark.parametrize("backend", [Backend.FUSED, BACKENDS[2]])
def test_backends_agree_on_any_windows(case, backend):
    """Every backend gives the maps of the reference, for any stack of windows."""
    windows = WINDOW_CASES[case]
    mesh = random_mesh(10_000, seed=12, weighted=True, clustered=True)
    for rotation in (IDENTITY, rotation_from(12)):
        maps = project_all(mesh, [49.9, 25.0, 0.1], rotation, windows, backend)
        assert maps.shape == (1 + len(windows.factors), windows.resolution, windows.resolution)
        assert_same_maps(maps, project_all(mesh, [49.9, 25.0, 0.1], rotation, windows, Backend.REFERENCE))


@pytest.mark.parametrize("clustered", [False, True], ids=["uniform", "clustered"])
def test_single_precision_is_used_only_where_it_is_harmless(clustered):
    """Dense input, which the fused backend rotates in single precision, keeps far within the tolerance."""
    mesh = random_mesh(2_000_000, 21, clustered=clustered)
    for seed, center in enumerate([mesh.positions[1_000_000], (0.0, 0.0, 0.0)]):
        maps = project_all(mesh, center, rotation_from(seed), WINDOWS)
        expected = project_all(mesh, center, rotation_from(seed), WINDOWS, Backend.REFERENCE)
        assert largest_deviation(maps, expected) <= TOLERANCE / 10
        assert maps.min() >= 0
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected.sum(axis=(1, 2)), rtol=MASS_TOLERANCE / 10)


def test_a_void_amid_dense_input_falls_back_to_double_precision():
    """Where the windows hold a few of very many particles, their maps are right to rounding all the same."""
    rng = np.random.default_rng(22)
    far_away = np.array([45.0, 45.0, 5.0]) + 0.1 * rng.random((400_000, 3))
    few = np.array([13.0, 13.0, 13.0]) + 24.0 * rng.random((60, 3))
    mesh = mesh_of(np.concatenate([far_away, few]))
    windows = replace(WINDOWS, context_sizes=(12.5, 25.0), resolution=32)
    center = [25.0, 25.0, 25.0]
    maps = project_all(mesh, center, IDENTITY, windows)
    expected = project_all(mesh, center, IDENTITY, windows, Backend.REFERENCE)
    assert 50 < expected[-1].sum() * 16 < 60.001
    np.testing.assert_allclose(maps, expected, rtol=1e-9, atol=1e-10)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 30),
    cells=st.integers(1, 40),
    box_size=st.sampled_from([10.0, 33.3, 50.0, 120.0]),
    axis_aligned=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_sparse_maps_agree_to_rounding(seed, n, cells, box_size, axis_aligned):
    """A handful of particles, the emptiest map that can be, gives the reference's maps to rounding."""
    rng = np.random.default_rng(seed)
    rotation = Rotation.create_group("O")[seed % 24].as_matrix() if axis_aligned else rotation_from(seed)
    # On whole cells, nodes and depth limits as often as not
    positions = rng.random((n, 3)) * box_size
    positions[: n // 2] = np.round(positions[: n // 2] * 8 / 6.25) * 6.25 / 8
    mesh = mesh_of(positions, rng.random(n) + 0.5, box_size, cells)
    center = np.round(rng.random(3) * 16) * box_size / 16
    windows = Windows(context_sizes=(12.5, 25.0), resolution=16, depth=12.5)
    maps = project_all(mesh, center, rotation, windows)
    expected = project_all(mesh, center, rotation, windows, Backend.REFERENCE)
    np.testing.assert_allclose(maps, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masses", [3.0, np.empty(0, dtype=np.float32)], ids=["one mass", "masses"])
def test_no_particles_give_empty_maps(backend, masses):
    """A species without particles, as where no stars formed, gives maps of zeros."""
    maps = project_all(mesh_of(np.empty((0, 3)), masses), [1.0, 2.0, 3.0], rotation_from(0), WINDOWS, backend)
    assert maps.shape == (4, N, N)
    assert not maps.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_particles_in_one_pixel_lose_no_mass(backend):
    """Equal masses heaped into one pixel add up without the losses of single-precision sums."""
    heap = np.random.default_rng(0).normal(25.0, 1e-3, (100_000, 3))
    maps = project_all(mesh_of(heap, 6.5e9), [25.0] * 3, rotation_from(0), WINDOWS, backend)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)) * np.square([1, *WINDOWS.factors]), 6.5e14, rtol=MASS_TOLERANCE)


def test_the_same_input_gives_the_same_bytes():
    """Projection is a function of its input: a second call returns the same bytes, in float64."""
    mesh = random_mesh(30_000, 8, weighted=True)
    maps = [project_all(mesh, [7.0, 8.0, 9.0], rotation_from(8), WINDOWS) for _ in range(2)]
    assert maps[0].tobytes() == maps[1].tobytes()
    assert maps[0].dtype == np.float64


@pytest.mark.parametrize("cells", [1, 5, 24, 61])
def test_the_mesh_does_not_show_in_the_maps(cells):
    """The number of cells changes maps by rounding at most."""
    maps = project_all(random_mesh(4000, 9, cells=cells), [3.0, 4.0, 5.0], rotation_from(9), WINDOWS)
    expected = project_all(random_mesh(4000, 9), [3.0, 4.0, 5.0], rotation_from(9), WINDOWS)
    np.testing.assert_allclose(maps, expected, rtol=1e-9, atol=1e-9 * 6.5e9)


# ------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("center", "rotation", "message"),
    [
        ([1.0, 2.0], IDENTITY, "center must be three finite coordinates"),
        ([1.0, 2.0, np.nan], IDENTITY, "center must be three finite coordinates"),
        ([1.0, 2.0, 3.0], np.eye(2), "orthonormal 3 x 3 matrix"),
        ([1.0, 2.0, 3.0], 2 * IDENTITY, "orthonormal 3 x 3 matrix"),
        ([1.0, 2.0, 3.0], np.full((3, 3), np.nan), "orthonormal 3 x 3 matrix"),
    ],
)
def test_unusable_targets_are_refused(center, rotation, message):
    """A centre or a rotation that is none raises a ValueError that shows it."""
    with pytest.raises(ValueError, match=message):
        project_all(mesh_of([1.0, 2.0, 3.0]), center, rotation, WINDOWS)


def test_an_unknown_backend_is_refused():
    """A backend's name that does not exist raises a ValueError with the name."""
    with pytest.raises(ValueError, match="'cuda' is not a valid Backend"):
        project_all(mesh_of([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], IDENTITY, WINDOWS, "cuda")


def test_pylians_missing_is_explained(monkeypatch):
    """Without Pylians, choosing its backend says how to install it and what else to choose."""
    monkeypatch.setitem(__import__("sys").modules, "MAS_library", None)
    with pytest.raises(ProjectionError, match="make pylians"):
        project_native(mesh_of([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], IDENTITY, WINDOWS, Backend.PYLIANS)


def test_a_pylians_that_returns_nothing_is_noticed(monkeypatch):
    """A call of Pylians that leaves the grid empty, as it does for input it dislikes, raises an error."""
    library = type("Library", (), {"MA": staticmethod(lambda *_args, **_options: None)})
    monkeypatch.setitem(__import__("sys").modules, "MAS_library", library)
    with pytest.raises(ProjectionError, match=r"Pylians put 0\.0 of the mass 1.0 onto the grid"):
        project_native(mesh_of([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], IDENTITY, WINDOWS, Backend.PYLIANS)
