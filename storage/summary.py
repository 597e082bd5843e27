"""What a run left behind, in words and as a table."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import polars as pl

from bind_core.findings import Finding
from bind_core.suite import natural_order
from storage.columns import SAMPLES, SimulationStatus
from storage.file_listing import UnmatchedFiles
from storage.manifest import Manifest
from storage.tables import read_rows
from storage.versions import DatasetVersion
from storage.workload import Reason, Workload

SETTLED = frozenset({SimulationStatus.COMPLETE, SimulationStatus.NO_WORK})
"""Statuses of simulations that need nothing more."""

_NOTES = (Reason.TOUCHED, Reason.REFRESH_NOT_NOTED)
"""What a run only notes."""


@dataclass(frozen=True)
class SimulationSummary:
    """Where one simulation stands."""

    simulation: str
    status: SimulationStatus
    split: str
    """Empty where no attempt has been recorded."""
    planned: int | None
    """Samples that the configuration asks for; where the catalogue cannot be read, those that exist. None where it is
    not on record how many an earlier version was to have."""
    committed: int
    """Those of them that exist; where the catalogue cannot be read, all that the last attempt knew of."""
    missing: int | None
    """Planned samples that do not exist."""
    stale: int | None
    """Samples that would come out differently today; None for an earlier version."""
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
    files: UnmatchedFiles | None = None
    """None where files were not looked for."""

    @property
    def ok(self) -> bool:
        """Whether every simulation asked for is complete or has no work, and no file is lost or out of place."""
        settled = all(simulation.status in SETTLED for simulation in self.simulations)
        return settled and (self.files is None or self.files.sound)

    @property
    def made(self) -> int:
        """Samples that the run made."""
        return sum(simulation.made for simulation in self.simulations)

    @property
    def unsettled(self) -> tuple[SimulationSummary, ...]:
        """Simulations that need attention."""
        return tuple(simulation for simulation in self.simulations if simulation.status not in SETTLED)

    @property
    def statuses(self) -> dict[str, int]:
        """Number of simulations by status, in words."""
        counts = Counter(simulation.status for simulation in self.simulations)
        return {status.value.replace("_", " "): counts[status] for status in SimulationStatus if counts[status]}

    @property
    def totals(self) -> dict[str, int | None]:
        """Sums over all simulations: ``planned``, ``committed``, ``missing``, ``stale``, ``orphaned``, ``lost``.

        None where it is not known of every simulation, or was not looked for.
        """
        sums: dict[str, int | None] = {}
        for name in ("planned", "committed", "missing", "stale"):
            values = [getattr(simulation, name) for simulation in self.simulations]
            sums[name] = None if None in values else sum(values)
        for name in ("orphaned", "lost"):
            files: dict[str, tuple[str, ...]] | None = getattr(self.files, name, None)
            sums[name] = None if files is None else sum(map(len, files.values()))
        return sums

    @property
    def standing(self) -> str:
        """Where the data set stands, without a capital and a full stop."""
        planned, committed = self.totals["planned"], self.totals["committed"]
        what = f"{committed:,} samples" if planned is None else f"{committed:,} of {planned:,} planned samples"
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        simulations = f"{len(self.simulations)} simulation{'' if len(self.simulations) == 1 else 's'}"
        return f"{what} exist in {self.root} ({simulations}: {statuses})"

    @property
    def headline(self) -> str:
        """What the run did, and where the data set stands: one sentence, without a capital and a full stop."""
        what = f"made {self.made:,} samples" if self.made else "nothing was to be made"
        if not self.made and not self.ok:
            what = "no sample was made"
        return f"{what}; {self.standing}"


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
        if row is not None and work.is_hopeless:
            exist = row["n_committed"]
            if status in SETTLED:
                status = SimulationStatus.STALE
                message = (
                    f"Its catalogue was read before, and is now missing or unreadable: {work.files.catalogue.folder}"
                )
        elif work.stale and status in (*SETTLED, SimulationStatus.PARTIAL):
            failed = f"{message} | " if status is SimulationStatus.PARTIAL and message else ""
            status = SimulationStatus.STALE
            message = f"{failed}{work.explanation}. Make them anew with --refresh."
        elif status in SETTLED and work.outstanding and work.reason not in _NOTES:
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
                findings=_findings(row),
                message=message,
            )
        )
    return RunSummary(run_id, str(manifest.layout.root), tuple(summaries), skipped)


def summarise_version(manifest: Manifest, version: DatasetVersion) -> RunSummary:
    """Describe where the simulations stood at a version, by the record alone: the suite's files are those of now.

    Parameters
    ----------
    manifest : Manifest
        The record.
    version : DatasetVersion
        Which version.
    """
    attempts = manifest.simulations(version.simulations_number).unique("simulation", keep="last")
    recorded = {row["simulation"]: row for row in attempts.iter_rows(named=True)}
    samples = read_rows(manifest.layout.samples_table, SAMPLES, version.number, ["simulation", "split"])
    counted = samples.group_by("simulation").agg(pl.col("split").first(), pl.len())
    made = {name: (split, count) for name, split, count in counted.iter_rows()}
    summaries = []
    for name in sorted({*recorded, *made}, key=natural_order):
        row = recorded.get(name)
        split, committed = made.get(name, ("", 0))
        # Samples without an attempt are what a run leaves that is killed between its two commits.
        status = SimulationStatus.PARTIAL if row is None else SimulationStatus(row["status"])
        planned = row["n_committed"] if row is not None and status in SETTLED else None
        summaries.append(
            SimulationSummary(
                simulation=name,
                status=status,
                split=split or (row["split"] if row is not None else ""),
                planned=planned,
                committed=committed,
                missing=None if planned is None else max(0, planned - committed),
                stale=None,
                made=0,
                findings=_findings(row),
                message="no attempt was recorded" if row is None else row["message"],
            )
        )
    return RunSummary("", str(manifest.layout.root), tuple(summaries))


def _findings(row: dict[str, Any] | None) -> tuple[Finding, ...]:
    return () if row is None else tuple(Finding.from_dict(finding) for finding in json.loads(row["findings"]))
