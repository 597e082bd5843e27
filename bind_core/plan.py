"""Predicted samples: which haloes of a simulation, in which orientations, a configuration asks for."""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig, Stratum
from bind_core.errors import ConfigurationError
from bind_core.halos import Halo, HaloCatalogue, halos_in
from bind_core.records import record_from_json
from bind_core.rotations import rotation_matrix, seed_entropy
from bind_core.splits import Split
from bind_core.suite import simulation_number


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
    replaced: frozenset[str] = frozenset()
    """Ids of samples that exist and whose rows this attempt replaces or, where they are no targets, removes."""


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
            "simulations": [
                asdict(simulation) | {"replaced": sorted(simulation.replaced)} for simulation in self.simulations
            ],
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: bytes | str, source: Path | str = "The text") -> Self:
        """Rebuild a plan from what `to_json` returned.

        Raises
        ------
        RecordError
            If the text is something else; the message names the source.
        """
        return record_from_json(cls, text, source)


@dataclass(frozen=True)
class PredictedSamples:
    """Every sample that a configuration asks for of one simulation, without a `Target` for each of them yet."""

    simulation: str
    number: int | None
    """The number in the simulation's name."""
    config: DatasetConfig
    halos: tuple[tuple[Stratum, Halo], ...] = ()
    """By stratum, in catalogue order."""

    def __len__(self) -> int:
        return sum(stratum.rotations for stratum, _ in self.halos)

    @property
    def n_halos(self) -> int:
        """Number of haloes that have samples."""
        return len(self.halos)

    @property
    def keys(self) -> Iterator[tuple[int, int]]:
        """Halo and rotation of each sample: by stratum, halo and rotation."""
        return ((halo.index, rotation) for stratum, halo in self.halos for rotation in range(stratum.rotations))

    def targets(self, wanted: Container[tuple[int, int]] | None = None) -> tuple[Target, ...]:
        """Return the samples, in the order of `keys`.

        Parameters
        ----------
        wanted : container of (int, int), optional
            Halo and rotation of those to return; all by default.
        """
        config = self.config
        return tuple(
            Target(
                simulation=self.simulation,
                halo=halo.index,
                rotation=rotation,
                stratum=stratum.name,
                entropy=seed_entropy(
                    config.rotations,
                    config.root_seed,
                    self.simulation,
                    self.number,
                    halo.index,
                    halo.ordinal,
                    rotation,
                ),
                halo_mass=halo.mass,
                halo_center=halo.center,
            )
            for stratum, halo in self.halos
            for rotation in range(stratum.rotations)
            if wanted is None or (halo.index, rotation) in wanted
        )


def predicted_samples(
    simulation: str, number: int | None, catalogue: HaloCatalogue, config: DatasetConfig
) -> PredictedSamples:
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
    PredictedSamples
        Empty where no halo is massive enough.
    """
    halos = tuple((stratum, halo) for stratum in config.strata for halo in halos_in(catalogue, stratum))
    return PredictedSamples(simulation, number, config, halos)


@dataclass(frozen=True)
class Share:
    """One of several equal parts of a suite, each worked on by a process of its own."""

    number: int
    """From 0."""
    of: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read a share from ``I/N``, e.g. ``3/16``.

        Raises
        ------
        ConfigurationError
            If it is none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigurationError(f"The share {text!r} is none: expected I/N with 0 <= I < N, e.g. 0/16 to 15/16.")
        return cls(int(match[1]), int(match[2]))

    def of_simulations(self, names: Iterable[str], config: DatasetConfig) -> list[str]:
        """Return those of some simulations that belong to this share.

        Each simulation is in exactly one share, whatever else exists: numbered ones by turns, others by a hash of
        their name.
        """
        return [name for name in names if _turn(name, config) % self.of == self.number]


def _turn(name: str, config: DatasetConfig) -> int:
    number = simulation_number(name, config.set_name)
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) if number is None else number


def in_blocks(names: Sequence[str], simulations_per_block: int) -> list[tuple[str, ...]]:
    """Divide simulations into blocks: the unit of an MPI job, of a retry and of a commit."""
    return [
        tuple(names[start : start + simulations_per_block]) for start in range(0, len(names), simulations_per_block)
    ]
