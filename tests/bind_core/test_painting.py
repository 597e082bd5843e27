"""Patches put back where they were cut out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bind_core.backends import Backend
from bind_core.maps import target_map
from bind_core.mesh import ParticleMesh
from bind_core.painting import PatchGrid, paste
from bind_core.rotations import quaternion_matrix
from bind_core.windows import Windows

WINDOWS = Windows(native_size=6.25, context_sizes=(), depth=50.0, resolution=32)
BOX = 50.0


def patch_of(position: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Project one particle of mass 1."""
    mesh = ParticleMesh.build(position[np.newaxis].astype(np.float32), 1.0, grid.box_size)
    return target_map(mesh, grid.center, grid.rotation, WINDOWS, Backend.REFERENCE)


def rotation_of(numbers: tuple[float, ...]) -> np.ndarray:
    quaternion = np.array(numbers) + np.array([2.0, 0, 0, 0])
    return quaternion_matrix(quaternion / np.linalg.norm(quaternion))


inside = st.tuples(*[st.floats(0, 49.999)] * 3)
small = st.tuples(*[st.floats(-2.5, 2.5)] * 3)
turns = st.tuples(*[st.floats(-1, 1)] * 4)


@settings(deadline=None)
@given(inside, small, turns)
def test_a_position_is_found_on_the_pixel_that_shows_it(
    center: tuple[float, ...], offset: tuple[float, ...], turn: tuple[float, ...]
) -> None:
    """For any halo and orientation, the centroid of a particle's map is where the grid says, across the box's faces."""
    rotation = rotation_of(turn)
    grid = PatchGrid.of(np.array(center), rotation, BOX, WINDOWS)
    position = np.mod(grid.center + np.array(offset) @ rotation, BOX).astype(np.float32)
    patch = patch_of(position, grid)
    nodes = np.arange(WINDOWS.resolution)
    centroid = (patch.sum(axis=1) @ nodes, patch.sum(axis=0) @ nodes) / patch.sum()
    x, y, z = grid.pixels_of(position[np.newaxis])[0]
    assert centroid == pytest.approx((x, y), abs=1e-3)
    assert z == pytest.approx(offset[2], abs=1e-4)


@settings(deadline=None)
@given(inside, turns)
def test_nodes_are_where_their_pixels_are(center: tuple[float, ...], turn: tuple[float, ...]) -> None:
    """The position of every node lies on its own pixel, in the plane of the halo."""
    grid = PatchGrid.of(np.array(center), rotation_of(turn), BOX, WINDOWS)
    nodes = grid.node_positions()
    assert nodes.min() >= 0
    assert nodes.max() <= BOX
    found = grid.pixels_of(nodes.reshape(-1, 3)).reshape(nodes.shape)
    i, j = np.meshgrid(*[np.arange(WINDOWS.resolution)] * 2, indexing="ij")
    np.testing.assert_allclose(found[..., 0], i, atol=1e-9)
    np.testing.assert_allclose(found[..., 1], j, atol=1e-9)
    np.testing.assert_allclose(found[..., 2], 0, atol=1e-9)


@settings(deadline=None)
@given(inside, st.sampled_from([64, 100, 256]))
def test_pasting_keeps_mass_and_place(center: tuple[float, ...], n: int) -> None:
    """All mass of a patch arrives, at the halo's place, also across the box's faces."""
    grid = PatchGrid.of(np.array(center), np.eye(3), BOX, WINDOWS)
    patch = patch_of(grid.center, grid)
    canvas = np.zeros((n, n))
    paste(canvas, patch, grid)
    assert canvas.sum() == pytest.approx(patch.sum())
    for axis in (0, 1):
        angle = 2 * np.pi * np.arange(n) / n
        mean = np.angle(canvas.sum(axis=1 - axis) @ np.exp(1j * angle)) / (2 * np.pi) * BOX
        off = (mean - center[axis] + BOX / 2) % BOX - BOX / 2
        assert abs(off) < 0.01 * BOX / n + 1e-3


def test_patches_that_do_not_fit_are_refused() -> None:
    """A patch of another size, a canvas that is no square, and one that was seen from the side are errors."""
    grid = PatchGrid.of(np.zeros(3), np.eye(3), BOX, WINDOWS)
    with pytest.raises(ValueError, match="shape"):
        paste(np.zeros((8, 8)), np.zeros((4, 4)), grid)
    with pytest.raises(ValueError, match="square"):
        paste(np.zeros((8, 9)), np.zeros((32, 32)), grid)
    sideways = PatchGrid.of(np.zeros(3), np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), BOX, WINDOWS)
    with pytest.raises(ValueError, match="z axis"):
        paste(np.zeros((8, 8)), np.zeros((32, 32)), sideways)
