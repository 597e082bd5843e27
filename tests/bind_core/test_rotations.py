"""Orientations: proper, uniform, reproducible, and each sample's own."""

import healpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.transform import Rotation

from bind_core.config import RotationPolicy
from bind_core.errors import ConfigurationError
from bind_core.rotations import matrix_quaternion, quaternion_matrix, rotation_matrix, seed_entropy

HAAR, EULER = RotationPolicy.HAAR, RotationPolicy.EULER
DRAWS = 10_000


def entropy(policy, number, halo, rotation, seed=1993):
    return seed_entropy(policy, seed, f"SB35_{number}", number, halo, halo, rotation)


def rotations(policy):
    """Return many rotations, each from a seed of its own."""
    if policy is EULER:
        return np.array([rotation_matrix(EULER, (seed,)) for seed in range(DRAWS)])
    return np.array([rotation_matrix(HAAR, entropy(HAAR, n // 100, n % 100 // 10, n % 10)) for n in range(DRAWS)])


@pytest.fixture(scope="module")
def haar():
    return rotations(HAAR)


def uniformity(directions):
    """Return the p-value of a chi-square test of directions in 48 equal-area pixels."""
    pixels = healpy.vec2pix(2, *directions.T)
    return stats.chisquare(np.bincount(pixels, minlength=48)).pvalue


@pytest.mark.parametrize("policy", [HAAR, EULER])
@given(number=st.integers(0, 1023), halo=st.integers(0, 100), rotation=st.integers(0, 20))
def test_rotations_are_proper(policy, number, halo, rotation):
    """Every rotation is orthonormal with determinant +1, so it neither stretches nor mirrors."""
    matrix = rotation_matrix(policy, entropy(policy, number, halo, rotation))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(matrix) == pytest.approx(1.0)


@pytest.mark.parametrize("axis", range(3))
def test_haar_directions_are_uniform_on_the_sphere(haar, axis):
    """10,000 lines of sight, like the two axes of the image, fill 48 equal areas of the sphere evenly."""
    assert uniformity(haar[:, axis]) > 0.01
    moments = np.abs(np.mean(haar[:, axis], axis=0)) * np.sqrt(3 * DRAWS)
    assert np.all(moments < 3.5)


def test_haar_rotation_angles_follow_the_haar_measure(haar):
    """The angle of rotation has the density (1 - cos a) / pi of the Haar measure, so the roll is uniform as well."""
    angles = np.arccos(np.clip((np.trace(haar, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 0.01


def test_euler_lines_of_sight_are_not_uniform():
    """Three uniform Euler angles fail the same test: their lines of sight crowd at the poles of one axis."""
    lines = rotations(EULER)[:, 2]
    assert uniformity(lines) < 1e-6
    crowding = [np.mean(np.abs(lines[:, axis]) > 0.9) / 0.1 for axis in range(3)]
    assert max(crowding) > 1.8


@given(seed=st.integers(0, 2**32 - 1))
def test_euler_is_the_older_generators_rotation(seed):
    """The euler policy is scipy's rotation by three angles of the legacy generator, about fixed axes."""
    angles = np.random.RandomState(seed).uniform(0, 2 * np.pi, 3)
    np.testing.assert_allclose(
        rotation_matrix(EULER, (seed,)), Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-14
    )


def test_euler_seed_is_the_older_generators():
    """The euler seed counts haloes within the stratum, as the older generator did, not catalogue rows."""
    assert seed_entropy(EULER, 1, "SB35_7", 7, 44, 3, 2) == (7302,)


def test_euler_needs_numbered_simulations():
    """A name without a number has no euler seed, and the error says what to use instead."""
    with pytest.raises(ConfigurationError, match=r"1P_p1_n2.*haar"):
        seed_entropy(EULER, 1, "1P_p1_n2", None, 0, 0, 0)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_quaternion_round_trip(parts):
    """A rotation survives the way through its quaternion, half turns and near-identities included."""
    matrix = quaternion_matrix(np.array(parts) / np.linalg.norm(parts))
    quaternion = matrix_quaternion(matrix)
    assert np.linalg.norm(quaternion) == pytest.approx(1.0)
    assert quaternion[0] >= 0
    np.testing.assert_allclose(quaternion_matrix(quaternion), matrix, atol=1e-12)
    np.testing.assert_allclose(Rotation.from_quat(np.roll(quaternion, -1)).as_matrix(), matrix, atol=1e-12)


def test_seeds_of_a_whole_suite_are_distinct():
    """1,024 simulations with 60 haloes and 10 rotations have as many seeds; the older formula shares most of its."""
    names = [(n, h, r) for n in range(1024) for h in range(60) for r in range(10)]
    assert len({entropy(HAAR, *name) for name in names}) == len(names)
    assert len({entropy(EULER, *name) for name in names}) < len(names) / 5


def test_same_sample_has_the_same_rotation_in_any_order():
    """A rotation depends on its seed alone: not on order, on other draws, or on numpy's global state."""
    names = [(n, h, r) for n in range(3) for h in range(3) for r in range(3)]
    forwards = {name: rotation_matrix(HAAR, entropy(HAAR, *name)) for name in names}
    np.random.seed(7)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for name in reversed(names):
        np.testing.assert_array_equal(rotation_matrix(HAAR, entropy(HAAR, *name)), forwards[name])
        rotation_matrix(EULER, (3,))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_root_seed_and_name_change_the_rotation():
    """Another root seed, and another simulation with the same number, have other orientations."""
    base = rotation_matrix(HAAR, entropy(HAAR, 0, 0, 0))
    assert not np.allclose(base, rotation_matrix(HAAR, entropy(HAAR, 0, 0, 0, seed=1994)))
    assert not np.allclose(base, rotation_matrix(HAAR, seed_entropy(HAAR, 1993, "CV_0", 0, 0, 0, 0)))
