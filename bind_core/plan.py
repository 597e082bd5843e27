"""Predicted samples: which haloes of a simulation, in which orientations, a configuration asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.halos import HaloCatalogue, halos_in
from bind_core.rotations import rotation_matrix, seed_entropy


def sample_id(simulation: str, halo: int, rotation: int) -> str:
    """Return the identity of a sample, e.g. ``SB35_0_halo_3_rot_1``."""
    return f"{simulation}_halo_{halo}_rot_{rotation}"


@dataclass(frozen=True)
class Target:
    """A sample that is to be made."""

    simulation: str
    halo: int
    """Index in the catalogue."""
    rotation: int
    """Number of the orientation, from 0."""
    stratum: str
    entropy: tuple[int, ...]
    """What its orientation is drawn from."""
    halo_mass: float
    """M200c in Msun/h."""
    halo_center: tuple[float, float, float]
    """Mpc/h, box frame."""

    @property
    def sample_id(self) -> str:
        """The identity of the sample."""
        return sample_id(self.simulation, self.halo, self.rotation)

    def rotation_matrix(self, config: DatasetConfig) -> NDArray[np.float64]:
        """Return the (3, 3) rotation from the box frame to the projected frame."""
        return rotation_matrix(config.rotations, self.entropy)


def predicted_targets(
    simulation: str, number: int | None, catalogue: HaloCatalogue, config: DatasetConfig
) -> list[Target]:
    """Return every sample that a configuration asks for of one simulation.

    Parameters
    ----------
    simulation : str
        Its name.
    number : int or None
        The number in the name.
    catalogue : HaloCatalogue
        Its haloes.
    config : DatasetConfig
        Gives the strata, the seed and the rotation policy.

    Returns
    -------
    list of Target
        By stratum, halo and rotation; empty where no halo is massive enough.
    """
    return [
        Target(
            simulation=simulation,
            halo=halo.index,
            rotation=rotation,
            stratum=stratum.name,
            entropy=seed_entropy(
                config.rotations, config.root_seed, simulation, number, halo.index, halo.ordinal, rotation
            ),
            halo_mass=halo.mass,
            halo_center=halo.center,
        )
        for stratum in config.strata
        for halo in halos_in(catalogue, stratum)
        for rotation in range(stratum.rotations)
    ]


def in_blocks(names: Sequence[str], simulations_per_block: int) -> list[tuple[str, ...]]:
    """Divide simulations into blocks: the unit of an MPI job, of a retry and of a commit."""
    return [
        tuple(names[start : start + simulations_per_block]) for start in range(0, len(names), simulations_per_block)
    ]
