"""Audit of a data set against its plan: what is missing, what is stale, and how far each simulation is."""

from collections.abc import Iterable

import polars as pl

from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import OFFENDER_SCHEMA, SIMULATION_QUERY, Checklist, Offenders
from storage.evidence import Evidence, SuiteRecord
from storage.manifest import Manifest
from storage.staleness import Cause
from storage.workload import Workload, compare

_EARLIER_VERSION = "files and suite belong to the latest version, and an earlier one is audited"
_STATES = {"simulation": pl.String, "planned": pl.Int64, "missing": pl.Int64, "stale": pl.Int64}


def check_plan(evidence: Evidence, checklist: Checklist) -> Workload | None:
    """Hold the rows against what the configuration asks for of the suite as it is now.

    Returns
    -------
    Workload or None
        What a run would do; None where the suite is out of reach, or an earlier version is audited.
    """
    complete, current = "every planned sample exists", "samples are as they would be made today"
    if evidence.suite is None or not evidence.is_latest:
        why = evidence.no_suite or _EARLIER_VERSION
        checklist.skip(complete, why)
        checklist.skip(current, why)
        return None
    workload = _workload(evidence, evidence.suite)
    unreadable = len(evidence.suite.unreadable)
    planned = sum(len(work.predicted) for work in workload.simulations)
    checklist.record(
        complete,
        f"{planned:,} planned samples of {len(workload.simulations):,} simulations"
        + (f"; the catalogues of {unreadable:,} simulations cannot be read" if unreadable else ""),
        Offenders(
            AuditCode.MISSING_SAMPLE,
            Severity.WARNING,
            _per_simulation(
                (work.files.name, f"{len(work.predicted):,} samples", f"{len(work.missing):,} of them missing")
                for work in workload.simulations
                if work.missing
            ),
            "`bind-data generate` makes them; `bind-data plan --missing` lists them.",
            SIMULATION_QUERY,
        ),
    )
    checklist.record(
        current,
        f"inputs, settings and code of {len(workload.simulations):,} simulations",
        Offenders(
            AuditCode.STALE,
            Severity.WARNING,
            _per_simulation(
                (work.files.name, "samples as they would be made today", work.explanation)
                for work in workload.simulations
                if work.stale
            ),
            "`bind-data generate --refresh` makes them anew, as a new version.",
            SIMULATION_QUERY,
        ),
    )
    return workload


def _workload(evidence: Evidence, suite: SuiteRecord) -> Workload:
    """Return what a run would do, also for simulations that have samples and no folder any more."""
    gone = [name for name in evidence.known_simulations if name not in suite.works]
    works = dict(suite.works)
    if gone:
        compared = compare(evidence.config, Manifest(evidence.layout), gone)
        works |= {work.files.name: work for work in compared.simulations}
    return Workload(tuple(works[name] for name in evidence.known_simulations))


def _per_simulation(rows: Iterable[tuple[str, str, str]]) -> pl.DataFrame:
    texts = [(name, name, expected, found) for name, expected, found in rows]
    return pl.DataFrame(texts, schema=OFFENDER_SCHEMA, orient="row")


def stale_inputs(workload: Workload | None) -> frozenset[str]:
    """Return the simulations whose samples were made from other inputs than those of now."""
    works = () if workload is None else workload.simulations
    return frozenset(work.files.name for work in works if any(Cause.INPUT in group.causes for group in work.stale))


def simulation_states(evidence: Evidence, workload: Workload | None, offences: pl.DataFrame) -> pl.DataFrame:
    """Return how far each simulation is, and how many of its samples are broken.

    Parameters
    ----------
    evidence : Evidence
        Rows and attempts.
    workload : Workload or None
        The plan.
    offences : DataFrame
        Every finding, as `storage.checklist.Checklist.offences`.

    Returns
    -------
    DataFrame
        As `storage.audit_result.AuditResult.simulations`.
    """
    plans = []
    for work in () if workload is None else workload.simulations:
        known = work.files.name not in (evidence.suite.unreadable if evidence.suite else {})
        planned, missing = (len(work.predicted), len(work.missing)) if known else (None, None)
        plans.append((work.files.name, planned, missing, work.n_stale))
    rows = evidence.samples.group_by("simulation").agg(
        pl.col("split").first().alias("split_of_rows"), pl.col("sample_id").n_unique().cast(pl.Int64).alias("committed")
    )
    errors = offences.filter(pl.col("severity") == Severity.ERROR.value).select(sample_id="subject").unique()
    broken = (
        evidence.samples.select("sample_id", "simulation")
        .unique()
        .join(errors, on="sample_id", how="semi")
        .group_by("simulation")
        .agg(pl.len().cast(pl.Int64).alias("broken"))
    )
    states = pl.DataFrame({"simulation": evidence.simulations}, schema={"simulation": pl.String})
    for part in (
        evidence.attempts.select("simulation", "split", "status", "message"),
        pl.DataFrame(plans, schema=_STATES, orient="row"),
        rows,
        broken,
    ):
        states = states.join(part, on="simulation", how="left", maintain_order="left")
    return states.select(
        "simulation",
        pl.coalesce("split_of_rows", "split", pl.lit("")).alias("split"),
        pl.col("status").fill_null(""),
        "planned",
        pl.col("committed").fill_null(0),
        "missing",
        pl.col("stale", "broken").fill_null(0),
        pl.col("message").fill_null(""),
    )
