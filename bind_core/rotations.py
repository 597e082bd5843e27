"""Random orientations: which seed a sample has, and which rotation follows from it."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from bind_core.config import RotationPolicy
from bind_core.errors import ConfigurationError

Rotation = NDArray[np.float64]
"""A (3, 3) matrix R that takes box coordinates into the projected frame: x' = R (x - centre)."""


def seed_entropy(
    policy: RotationPolicy,
    root_seed: int,
    simulation: str,
    simulation_number: int | None,
    halo: int,
    ordinal: int,
    rotation: int,
) -> tuple[int, ...]:
    """Return the numbers that a sample's randomness is drawn from.

    Parameters
    ----------
    policy : RotationPolicy
        ``haar`` gives (root seed, digest of the simulation's name, halo, rotation), unique to the sample.
        ``euler`` gives the older generator's single seed, ``1000 simulation + 100 halo + rotation``,
        which is not unique.
    root_seed : int
        Seed of the data set; not used by ``euler``.
    simulation : str
        Name of the simulation, e.g. ``SB35_0``.
    simulation_number : int or None
        The number in that name, used by ``euler`` only.
    halo : int
        Index of the halo in its catalogue.
    ordinal : int
        Position of the halo among those of its stratum, which is what the older generator counted.
    rotation : int
        Number of the rotation.

    Returns
    -------
    tuple of int
        Non-negative integers for `numpy.random.SeedSequence` (``haar``) or one legacy seed (``euler``).

    Raises
    ------
    ConfigurationError
        If ``euler`` is asked for a simulation whose name ends in no number.
    """
    if policy is RotationPolicy.EULER:
        if simulation_number is None:
            raise ConfigurationError(
                f"rotations: euler needs numbered simulations such as SB35_17, but this one is called {simulation}. "
                "Use rotations: haar."
            )
        return (1000 * simulation_number + 100 * ordinal + rotation,)
    name_digest = int.from_bytes(hashlib.sha256(simulation.encode()).digest()[:16], "big")
    return (root_seed, name_digest, halo, rotation)


def rotation_matrix(policy: RotationPolicy, entropy: tuple[int, ...]) -> Rotation:
    """Return the rotation that belongs to a seed.

    Parameters
    ----------
    policy : RotationPolicy
        Which distribution to draw from.
    entropy : tuple of int
        What `seed_entropy` returned for the same policy.

    Returns
    -------
    (3, 3) float64 array
        Rotation from the box frame to the projected frame, determinant +1.
    """
    if policy is RotationPolicy.EULER:
        # The legacy generator is what the older data sets were drawn with.
        angles = np.random.RandomState(entropy[0]).uniform(0.0, 2.0 * np.pi, 3)
        return euler_matrix(angles)
    normal = np.random.default_rng(np.random.SeedSequence(entropy)).standard_normal(4)
    return quaternion_matrix(normal / np.linalg.norm(normal))


def quaternion_matrix(quaternion: NDArray[np.float64]) -> Rotation:
    """Return the rotation of a unit quaternion (w, x, y, z).

    A quaternion uniform on the 3-sphere gives a rotation uniform on SO(3) (Haar measure): Shoemake, "Uniform
    random rotations", in Graphics Gems III (1992).
    """
    w, x, y, z = (float(value) for value in quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_quaternion(rotation: Rotation) -> NDArray[np.float64]:
    """Return the unit quaternion (w, x, y, z), w >= 0, of a rotation matrix.

    The largest component is computed from the diagonal and the others from it, which keeps the precision for
    every rotation (Shepperd, J. Guidance and Control 1, 223, 1978).
    """
    r = np.asarray(rotation, dtype=np.float64)
    trace = float(np.trace(r))
    squares = np.array([trace, r[0, 0], r[1, 1], r[2, 2]])
    largest = int(np.argmax(squares))
    # Row k holds 4 q_k q, so the row of the largest component is divided by the smallest rounding error.
    products = np.array(
        [
            [1 + trace, r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], 1 + 2 * r[0, 0] - trace, r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 1 + 2 * r[1, 1] - trace, r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 + 2 * r[2, 2] - trace],
        ]
    )
    row = products[largest]
    quaternion = row / np.linalg.norm(row)
    return -quaternion if quaternion[0] < 0 else quaternion


def euler_matrix(angles: NDArray[np.float64]) -> Rotation:
    """Return Rz(c) Ry(b) Rx(a) for angles (a, b, c): rotations about the fixed x, y and z axes in that order."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
