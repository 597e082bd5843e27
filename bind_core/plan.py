"""Predicted samples: which haloes of a simulation, in which orientations, a configuration asks for."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.halos import HaloCatalogue, halos_in
from bind_core.rotations import rotation_matrix, seed_entropy
from bind_core.splits import Split


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


@dataclass(frozen=True)
class SimulationPlan:
    """The samples to make of one simulation."""

    simulation: str
    split: Split
    parameters: tuple[float, ...]
    """The simulation's parameters, in the table's order."""
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class BlockPlan:
    """What one MPI job is to do; travels to it as JSON."""

    config: DatasetConfig
    run_id: str
    block: int
    """Number of the block in the run, from 0."""
    simulations: tuple[SimulationPlan, ...]

    def to_json(self) -> str:
        """Return the plan as JSON that `from_json` reads back to an equal one."""
        values = {
            "config": self.config.model_dump(mode="json"),
            "run_id": self.run_id,
            "block": self.block,
            "simulations": [asdict(simulation) for simulation in self.simulations],
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild a plan from what `to_json` returned."""
        values = json.loads(text)
        return cls(
            config=DatasetConfig(**values["config"]),
            run_id=values["run_id"],
            block=values["block"],
            simulations=tuple(_simulation_plan(simulation) for simulation in values["simulations"]),
        )


def _simulation_plan(values: dict[str, Any]) -> SimulationPlan:
    return SimulationPlan(
        simulation=values["simulation"],
        split=Split(values["split"]),
        parameters=tuple(values["parameters"]),
        targets=tuple(
            Target(**{**target, "entropy": tuple(target["entropy"]), "halo_center": tuple(target["halo_center"])})
            for target in values["targets"]
        ),
    )


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
