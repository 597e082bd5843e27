"""From what a block produced to rows of the manifest."""

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.findings import Finding, blocks
from bind_core.plan import SimulationPlan, Target
from bind_core.rotations import matrix_quaternion
from bind_core.splits import split_of
from storage.manifest import Manifest, table_rows
from storage.results import SampleRecord
from storage.schemas import SampleRow, SimulationStatus
from storage.workload import Reason, SimulationWork


@dataclass(frozen=True)
class SimulationOutcome:
    """What became of one simulation of a block."""

    work: SimulationWork
    findings: tuple[Finding, ...]
    inputs: str
    """The input files as a JSON list, described before they were read."""
    plan: SimulationPlan | None
    """What was to be projected, if anything."""
    samples: tuple[SampleRecord, ...] = ()
    """Written and verified."""
    error: str = ""
    """Why the attempt ended early, if it did for another reason than its input."""


def code_version() -> str:
    """Return the version of the installed distribution."""
    return version("bind-data")


def commit_outcomes(
    manifest: Manifest, config: DatasetConfig, outcomes: Sequence[SimulationOutcome], run_id: str
) -> dict[str, SimulationStatus]:
    """Record what became of the simulations of a block, in one commit.

    Returns
    -------
    dict
        Status by simulation.

    Raises
    ------
    ManifestError
        If another run has committed some of the samples meanwhile; nothing is written then.
    """
    now = datetime.now(UTC)
    common = {"config_digest": config.digest, "code_version": code_version(), "run_id": run_id}
    samples = [
        _sample_row(target, record, outcome.plan, config) | common | {"created_at": now}
        for outcome in outcomes
        if outcome.plan is not None
        for target, record in _paired(outcome.plan, outcome.samples)
    ]
    before = _committed_counts(manifest)
    rows: list[dict[str, Any]] = []
    statuses = {}
    for outcome in outcomes:
        name = outcome.work.files.name
        committed = before.get(name, 0) + len(outcome.samples)
        statuses[name] = status = _status(outcome, len(outcome.work.predicted) - len(outcome.work.missing))
        rows.append(
            common
            | {
                "simulation": name,
                "recorded_at": now,
                "status": str(status),
                "split": str(split_of(name, outcome.work.files.number, config)),
                "n_halos": _halos(outcome.work),
                "n_planned": len(outcome.work.missing),
                "n_committed": committed,
                "findings": json.dumps([finding.as_dict() for finding in outcome.findings]),
                "inputs": outcome.inputs,
                "message": _message(outcome, status),
            }
        )
    rows_frame = pl.DataFrame(rows, schema_overrides={"n_halos": pl.Int64})
    manifest.commit(pl.DataFrame(samples) if samples else None, rows_frame, run_id)
    return statuses


def _paired(plan: SimulationPlan, samples: Sequence[SampleRecord]) -> list[tuple[Target, SampleRecord]]:
    targets: Mapping[str, Target] = {target.sample_id: target for target in plan.targets}
    return [(targets[sample.sample_id], sample) for sample in samples]


def _sample_row(target: Target, record: SampleRecord, plan: SimulationPlan, config: DatasetConfig) -> dict[str, Any]:
    quaternion = matrix_quaternion(target.rotation_matrix(config))
    return {
        "sample_id": target.sample_id,
        "simulation": target.simulation,
        "halo": target.halo,
        "rotation": target.rotation,
        **{f"quaternion_{part}": float(value) for part, value in zip("wxyz", quaternion, strict=True)},
        "seed_entropy": ",".join(str(number) for number in target.entropy),
        "stratum": target.stratum,
        "halo_mass": target.halo_mass,
        **{f"halo_center_{axis}": value for axis, value in zip("xyz", target.halo_center, strict=True)},
        "split": str(plan.split),
        "path": record.path,
        "bytes": record.bytes,
        "sha256": record.sha256,
        **record.masses,
    }


def _committed_counts(manifest: Manifest) -> dict[str, int]:
    simulations = table_rows(manifest.layout.samples_table, SampleRow).to_table(columns=["simulation"])
    return Counter(simulations["simulation"].to_pylist())


def _halos(work: SimulationWork) -> int | None:
    if work.reason in (Reason.ABSENT, Reason.CATALOGUE_UNREADABLE):
        return None
    return len({target.halo for target in work.predicted})


def _status(outcome: SimulationOutcome, committed_before: int) -> SimulationStatus:
    if blocks(outcome.findings):
        return SimulationStatus.BLOCKED
    committed = committed_before + len(outcome.samples)
    if outcome.error or committed < len(outcome.work.predicted):
        return SimulationStatus.PARTIAL if committed else SimulationStatus.FAILED
    return SimulationStatus.COMPLETE if outcome.work.predicted else SimulationStatus.NO_WORK


def _message(outcome: SimulationOutcome, status: SimulationStatus) -> str:
    if outcome.error:
        return outcome.error
    if status is SimulationStatus.NO_WORK:
        return "The input is valid, and no halo lies in any stratum."
    messages = [finding.message for finding in outcome.findings]
    return " | ".join(messages)


def new_run_id() -> str:
    """Return a name for a run that sorts by time and is unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
