"""What remains to be done: predicted samples minus committed ones, in blocks of simulations."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.errors import CatalogueError, ConfigurationError
from bind_core.halos import read_catalogue
from bind_core.plan import Target, in_blocks, predicted_targets
from bind_core.suite import SimulationFiles, discover_simulations, find_simulation, natural_order
from storage.manifest import Manifest
from storage.preparation import is_folder
from storage.schemas import SimulationStatus


class Reason(StrEnum):
    """Why a simulation is, or is not, part of the next run."""

    SAMPLES_MISSING = "samples missing"
    """Predicted samples are not committed."""
    ABSENT = "does not exist"
    """The simulation has no folder under any base path."""
    CATALOGUE_UNREADABLE = "catalogue missing or unreadable"
    """Which samples there should be is not known; validation will say why."""
    NOT_RECORDED = "outcome not recorded"
    """Nothing is to be made, but the manifest does not say so yet."""
    NOTHING_TO_DO = "nothing to do"
    """Every predicted sample is committed, or it is recorded that there are none."""


@dataclass(frozen=True)
class SimulationWork:
    """What a run would do for one simulation."""

    files: SimulationFiles
    predicted: tuple[Target, ...]
    missing: tuple[Target, ...]
    """Those of the predicted samples that are not committed."""
    reason: Reason

    @property
    def outstanding(self) -> bool:
        """Whether the simulation is part of the next run."""
        return self.reason is not Reason.NOTHING_TO_DO


@dataclass(frozen=True)
class Workload:
    """What a run would do."""

    simulations: tuple[SimulationWork, ...]
    """All simulations asked for, in natural order."""

    @property
    def outstanding(self) -> tuple[SimulationWork, ...]:
        """Those with anything to do."""
        return tuple(work for work in self.simulations if work.outstanding)

    @property
    def samples(self) -> int:
        """Samples to be made, as far as catalogues can be read."""
        return sum(len(work.missing) for work in self.outstanding)

    def blocks(self, simulations_per_block: int) -> list[tuple[SimulationWork, ...]]:
        """Return the outstanding simulations in blocks."""
        by_name = {work.files.name: work for work in self.outstanding}
        return [tuple(by_name[name] for name in block) for block in in_blocks(list(by_name), simulations_per_block)]


def has_any_file(files: SimulationFiles) -> bool:
    """Return whether a simulation exists at all: whether any of its three folders is there."""
    return any(is_folder(inputs.folder) for inputs in files.roles())


def plan_workload(config: DatasetConfig, manifest: Manifest, simulations: Sequence[str] | None = None) -> Workload:
    """Compare what a configuration asks for with what the manifest has.

    This reads the catalogues and the manifest, and no snapshot.

    Parameters
    ----------
    config : DatasetConfig
        Gives the suite and the strata.
    manifest : Manifest
        The record.
    simulations : sequence of str, optional
        Names to consider; by default all that have a folder.

    Raises
    ------
    ConfigurationError
        If a base folder cannot be listed, a name does not belong to the set, or no name is given and there is no
        simulation.
    """
    existing = discover_simulations(config)
    if simulations is None and not existing:
        bases = ", ".join(str(base) for base in (config.dmo_base, config.hydro_base, config.catalogue_base))
        raise ConfigurationError(
            f"There is no simulation of set {config.set_name} in {bases}: expected folders {config.set_name}_0, "
            f"{config.set_name}_1, … Correct the base folders or the set."
        )
    return compare(config, manifest, existing if simulations is None else simulations)


def compare(config: DatasetConfig, manifest: Manifest, simulations: Sequence[str]) -> Workload:
    """Compare what a configuration asks for of some simulations with what the manifest has.

    Unlike `plan_workload`, it takes input that is out of reach for input whose catalogues cannot be read.
    """
    names = sorted(set(simulations), key=natural_order)
    committed = manifest.committed_ids()
    recorded = recorded_statuses(manifest)
    return Workload(tuple(_work(find_simulation(name, config), config, committed, recorded) for name in names))


def recorded_statuses(manifest: Manifest) -> dict[str, SimulationStatus]:
    """Return the newest recorded status of each simulation."""
    latest: pl.DataFrame = manifest.latest_simulations()
    return {
        name: SimulationStatus(status)
        for name, status in zip(latest["simulation"].to_list(), latest["status"].to_list(), strict=True)
    }


def _work(
    files: SimulationFiles, config: DatasetConfig, committed: set[str], recorded: dict[str, SimulationStatus]
) -> SimulationWork:
    try:
        catalogue = read_catalogue(files.catalogue.files)
    except CatalogueError:
        reason = Reason.CATALOGUE_UNREADABLE if has_any_file(files) else Reason.ABSENT
        return SimulationWork(files, (), (), reason)
    predicted = tuple(predicted_targets(files.name, files.number, catalogue, config))
    missing = tuple(target for target in predicted if target.sample_id not in committed)
    settled = SimulationStatus.COMPLETE if predicted else SimulationStatus.NO_WORK
    if missing:
        reason = Reason.SAMPLES_MISSING
    elif recorded.get(files.name) is not settled:
        reason = Reason.NOT_RECORDED
    else:
        reason = Reason.NOTHING_TO_DO
    return SimulationWork(files, predicted, missing, reason)
