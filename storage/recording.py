"""From what a block produced to rows of the manifest."""

import json
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.findings import Finding, blocks
from bind_core.plan import SimulationPlan, Target
from bind_core.rotations import matrix_quaternion
from bind_core.sample import IMPORTED_VERSION, OUTPUT_VERSION
from bind_core.splits import split_of
from storage.columns import SAMPLES, SimulationStatus
from storage.manifest import Manifest
from storage.provenance import Inputs, digest_of_inputs, to_json
from storage.results import SampleRecord
from storage.tables import one_of, read_rows
from storage.workload import SimulationWork


@dataclass(frozen=True)
class SimulationOutcome:
    """What became of one simulation of a block."""

    work: SimulationWork
    findings: tuple[Finding, ...]
    inputs: Inputs
    """The inputs, described before they were read, with the digests of what was read."""
    plan: SimulationPlan | None
    """What was to be projected, if anything."""
    samples: tuple[SampleRecord, ...] = ()
    """Written and verified."""
    error: str = ""
    """Why the attempt ended early, if it did for another reason than its input."""

    @property
    def replaced(self) -> frozenset[str]:
        """Ids of the rows that go: of samples made anew, and of those that are not predicted any more.

        The latter stay where the attempt did not end as it should.
        """
        made = {sample.sample_id for sample in self.samples}
        if self.error or blocks(self.findings):
            return self.work.replaced & made
        predicted = {target.sample_id for target in self.work.to_make}
        return self.work.replaced - (predicted - made)


def code_version() -> str:
    """Return the version of the installed distribution."""
    return version("bind-data")


def commit_outcomes(
    manifest: Manifest,
    config: DatasetConfig,
    outcomes: Sequence[SimulationOutcome],
    run_id: str,
    *,
    repair: bool = False,
    imported: bool = False,
) -> dict[str, SimulationStatus]:
    """Record what became of the simulations of a block, in one commit.

    Parameters
    ----------
    manifest : Manifest
        The record.
    config : DatasetConfig
        The configuration of the run.
    outcomes : sequence of SimulationOutcome
        What became of each simulation.
    run_id : str
        The run.
    repair : bool
        Whether the run mends the data set, which the commit then says.
    imported : bool
        Whether another generator made the samples, which their rows and the commit then say.

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
    code, output_version = code_version(), OUTPUT_VERSION
    if imported:
        code, output_version = f"imported by {code}", IMPORTED_VERSION
    common = {"config_digest": config.digest, "code_version": code, "run_id": run_id}
    samples = [
        _sample_row(target, record, outcome.plan, config)
        | common
        | {"inputs_digest": digest_of_inputs(outcome.inputs), "output_version": output_version, "created_at": now}
        for outcome in outcomes
        if outcome.plan is not None
        for target, record in _paired(outcome.plan, outcome.samples)
    ]
    replaced = {name for outcome in outcomes for name in outcome.replaced}
    staying = _counts_without(replaced, manifest, [outcome.work.files.name for outcome in outcomes])
    rows: list[dict[str, Any]] = []
    statuses = {}
    for outcome in outcomes:
        name = outcome.work.files.name
        statuses[name] = status = _status(outcome)
        rows.append(
            common
            | {
                "simulation": name,
                "recorded_at": now,
                "status": str(status),
                "split": str(split_of(name, outcome.work.files.number, config)),
                "n_halos": _halos(outcome.work),
                "n_planned": len(outcome.work.to_make),
                "n_committed": staying.get(name, 0) + len(outcome.samples),
                "findings": json.dumps([finding.as_dict() for finding in outcome.findings]),
                "inputs": to_json(outcome.inputs),
                "message": _message(outcome, status),
            }
        )
    rows_frame = pl.DataFrame(rows, schema_overrides={"n_halos": pl.Int64})
    manifest.commit(
        pl.DataFrame(samples) if samples else None,
        rows_frame,
        run_id,
        replaced=replaced,
        staged={
            sample.sample_id: sample.written_to
            for outcome in outcomes
            for sample in outcome.samples
            if sample.written_to
        },
        action="import" if imported else "repair" if repair else "refresh" if replaced else "generate",
    )
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


def _counts_without(replaced: Collection[str], manifest: Manifest, simulations: Sequence[str]) -> dict[str, int]:
    """Return how many samples of each simulation stay; one that has two rows is one."""
    rows = read_rows(
        manifest.layout.samples_table,
        SAMPLES,
        columns=["simulation", "sample_id"],
        where=one_of("simulation", simulations) & ~one_of("sample_id", replaced),
    )
    return Counter(rows.unique("sample_id")["simulation"])


def _halos(work: SimulationWork) -> int | None:
    if work.is_hopeless:
        return None
    return work.predicted.n_halos


def _status(outcome: SimulationOutcome) -> SimulationStatus:
    if blocks(outcome.findings):
        return SimulationStatus.BLOCKED
    work = outcome.work
    for_the_first_time = sum(sample.sample_id not in work.replaced for sample in outcome.samples)
    committed = len(work.predicted) - len(work.missing) + for_the_first_time
    if outcome.error or committed < len(work.predicted):
        return SimulationStatus.PARTIAL if committed else SimulationStatus.FAILED
    return SimulationStatus.COMPLETE if len(work.predicted) else SimulationStatus.NO_WORK


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
