"""Which simulations have come, or have been completed or mended, since they were last tried."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from storage.columns import SimulationStatus
from storage.manifest import Manifest
from storage.provenance import PARAMETERS, Inputs, from_json
from storage.workload import SimulationWork, Workload


class Arrival(StrEnum):
    """What a simulation is to a run that looks for new ones."""

    NEW = "new"
    """No attempt at it is on record."""
    CHANGED = "completed or mended"
    """Its input files are not those of the last attempt."""
    UNFINISHED = "unfinished"
    """The last attempt did not make all of it, for a reason that was not in its input, which is as it was."""
    STILL_BLOCKED = "still blocked"
    """Its input was refused, and is as it was."""
    STALE = "stale"
    """Its samples would come out differently today, and it was not asked for to make them anew."""
    SETTLED = "settled"
    """Nothing is to be done."""


@dataclass(frozen=True)
class ArrivedSimulation:
    """A simulation, and what it is to a run that looks for new ones."""

    work: SimulationWork
    arrival: Arrival

    @property
    def name(self) -> str:
        """Name of the simulation."""
        return self.work.files.name

    def as_row(self) -> dict[str, Any]:
        """Return it as plain values, for tables."""
        return {
            "simulation": self.name,
            "why": self.arrival.value,
            "samples to make": len(self.work.to_make),
            "input files": len(self.work.inputs),
        }


def arrivals(workload: Workload, manifest: Manifest) -> tuple[ArrivedSimulation, ...]:
    """Say of every simulation of a workload whether it is new, by what the manifest has on its last attempt.

    Parameters
    ----------
    workload : Workload
        What a run would do now.
    manifest : Manifest
        The record.
    """
    latest = {row["simulation"]: row for row in manifest.latest_simulations().iter_rows(named=True)}
    return tuple(ArrivedSimulation(work, _arrival(work, latest.get(work.files.name))) for work in workload.simulations)


def _arrival(work: SimulationWork, row: dict[str, Any] | None) -> Arrival:
    if not work.outstanding:
        return Arrival.STALE if work.stale else Arrival.SETTLED
    if row is None:
        return Arrival.NEW
    if _seen(work.inputs) != _seen(from_json(row["inputs"])):
        return Arrival.CHANGED
    return Arrival.STILL_BLOCKED if row["status"] == SimulationStatus.BLOCKED.value else Arrival.UNFINISHED


def _seen(inputs: Inputs) -> list[tuple[str, int, str, str]]:
    """Return what tells inputs apart without reading a snapshot."""
    return sorted(
        (file.role, file.bytes or 0, file.mtime or "", file.digest or "" if file.role == PARAMETERS else "")
        for file in inputs
    )


def names(arrived: Iterable[ArrivedSimulation], *kinds: Arrival) -> list[str]:
    """Return the names of the simulations of some kinds."""
    return [simulation.name for simulation in arrived if simulation.arrival in kinds]
