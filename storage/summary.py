"""What a run left behind, in words and as a table."""

import json
from dataclasses import dataclass
from typing import Any

from bind_core.findings import Finding
from storage.manifest import Manifest
from storage.schemas import SimulationStatus
from storage.workload import Reason, Workload

SETTLED = frozenset({SimulationStatus.COMPLETE, SimulationStatus.NO_WORK})
"""Statuses of simulations that need nothing more."""


@dataclass(frozen=True)
class SimulationSummary:
    """Where one simulation stands."""

    simulation: str
    status: SimulationStatus
    split: str
    """Empty where no attempt has been recorded."""
    planned: int
    """Samples that the configuration asks for; where the catalogue cannot be read, those that exist."""
    committed: int
    """Those of them that exist; where the catalogue cannot be read, all that the last attempt knew of."""
    missing: int
    """Planned samples that do not exist."""
    stale: int
    """Samples that would come out differently today."""
    made: int
    """Those that this run made."""
    findings: tuple[Finding, ...]
    message: str

    def as_row(self) -> dict[str, Any]:
        """Return the summary as plain values, for tables and JSON."""
        return {
            "simulation": self.simulation,
            "status": self.status.value,
            "split": self.split,
            "planned": self.planned,
            "committed": self.committed,
            "missing": self.missing,
            "stale": self.stale,
            "made": self.made,
            "message": self.message,
        }


@dataclass(frozen=True)
class RunSummary:
    """Where every simulation that a run was asked for stands."""

    run_id: str
    root: str
    simulations: tuple[SimulationSummary, ...]
    skipped: tuple[str, ...] = ()
    """Simulations asked for that do not exist and may be skipped."""

    @property
    def ok(self) -> bool:
        """Whether every simulation asked for is complete or has no work."""
        return all(simulation.status in SETTLED for simulation in self.simulations)

    @property
    def made(self) -> int:
        """Samples that the run made."""
        return sum(simulation.made for simulation in self.simulations)

    @property
    def unsettled(self) -> tuple[SimulationSummary, ...]:
        """Simulations that need attention."""
        return tuple(simulation for simulation in self.simulations if simulation.status not in SETTLED)

    @property
    def headline(self) -> str:
        """One sentence."""
        committed = sum(simulation.committed for simulation in self.simulations)
        counts: dict[str, int] = {}
        for simulation in self.simulations:
            counts[simulation.status.value] = counts.get(simulation.status.value, 0) + 1
        statuses = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(counts.items()))
        what = f"made {self.made:,} samples" if self.made else "nothing was to be made"
        if not self.made and not self.ok:
            what = "no sample was made"
        return (
            f"{what}; {committed:,} of {sum(simulation.planned for simulation in self.simulations):,} planned samples "
            f"exist in {self.root} ({len(self.simulations)} simulations: {statuses})"
        )


def summarise(
    manifest: Manifest, workload: Workload, run_id: str, made: dict[str, int], skipped: tuple[str, ...] = ()
) -> RunSummary:
    """Describe where the simulations of a workload stand, by what the manifest says now.

    Parameters
    ----------
    manifest : Manifest
        The record.
    workload : Workload
        Planned after the run, so that it tells what is still missing.
    run_id : str
        The run.
    made : dict
        Samples made by this run, by simulation.
    skipped : tuple of str
        Simulations asked for that do not exist and may be skipped.
    """
    recorded = {row["simulation"]: row for row in manifest.latest_simulations().iter_rows(named=True)}
    summaries = []
    for work in workload.simulations:
        row = recorded.get(work.files.name)
        status = SimulationStatus.PLANNED if row is None else SimulationStatus(row["status"])
        message = "" if row is None else row["message"]
        exist = len(work.predicted) - len(work.missing)
        if row is not None and work.reason in (Reason.ABSENT, Reason.CATALOGUE_UNREADABLE):
            exist = row["n_committed"]
            if status in SETTLED:
                status = SimulationStatus.STALE
                message = (
                    f"Its catalogue was read before, and is now missing or unreadable: {work.files.catalogue.folder}"
                )
        elif work.stale and status in (*SETTLED, SimulationStatus.PARTIAL):
            status = SimulationStatus.STALE
            message = f"{work.explanation}. Make them anew with --refresh."
        elif status in SETTLED and work.outstanding and work.reason is not Reason.TOUCHED:
            status = SimulationStatus.PARTIAL if len(work.predicted) > len(work.missing) else SimulationStatus.PLANNED
        summaries.append(
            SimulationSummary(
                simulation=work.files.name,
                status=status,
                split="" if row is None else row["split"],
                planned=max(len(work.predicted), exist),
                committed=exist,
                missing=len(work.missing),
                stale=work.n_stale,
                made=made.get(work.files.name, 0),
                findings=tuple(
                    Finding.from_dict(finding) for finding in ([] if row is None else json.loads(row["findings"]))
                ),
                message=message,
            )
        )
    return RunSummary(run_id, str(manifest.layout.root), tuple(summaries), skipped)
