"""Audit of a data set: whether what the manifest says holds, and whether the samples are what they should be."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError, ParameterTableError
from bind_core.parameters import ParameterTable
from storage.audit_depth import Depth
from storage.audit_result import AuditResult
from storage.checklist import MOST_FINDINGS, Checklist
from storage.columns import SAMPLES, SIMULATIONS, TableForm
from storage.content_audit import NOT_READ, audit_contents
from storage.distribution_checks import check_orientations, check_parameters, check_seeds
from storage.evidence import Evidence, SuiteRecord, parameter_frame, read_parameters, read_suite
from storage.file_checks import check_files
from storage.file_listing import list_files
from storage.halo_checks import check_catalogue, check_masses, check_strata
from storage.layout import DatasetLayout
from storage.manifest import Manifest, ManifestError, recorded_configuration
from storage.plan_checks import check_plan, simulation_states, stale_inputs
from storage.record_checks import check_form, check_records
from storage.tables import read_rows
from storage.versions import DatasetVersion, resolve_version
from storage.workload import Comparison, Workload


def audit(
    layout: DatasetLayout,
    depth: Depth = Depth.KNOWN,
    *,
    audited_at: datetime,
    version: DatasetVersion | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    most_findings: int = MOST_FINDINGS,
) -> AuditResult:
    """Check a data set in every respect that a depth includes. Nothing is written or mended.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    depth : Depth
        How far to look.
    audited_at : datetime
        The time to note in the result, UTC.
    version : DatasetVersion, optional
        What to audit; the latest version by default.
    threads : int
        Threads that read samples, at depth ``verified``.
    progress : callable, optional
        Called with the number of samples read and the number of all, at depth ``verified``.
    most_findings : int
        Findings of one code that are spelt out; all of them are counted, and listed in `AuditResult.offences`.

    Returns
    -------
    AuditResult
        Every check with its outcome. What cannot be read is a finding, never an exception.

    Raises
    ------
    ManifestError
        If there is no data set, or its manifest cannot be read at all.
    ConfigurationError
        If its ``dataset.yaml`` cannot be read.
    """
    config = recorded_configuration(layout.root)
    if config is None:
        raise ManifestError(f"There is no data set in {layout.root.absolute()}: it has no dataset.yaml.")
    latest = resolve_version(layout)
    version = latest if version is None else version
    config = config.model_copy(update={"output_root": layout.root})
    samples = _rows(layout, SAMPLES, version.number)
    attempts = _rows(layout, SIMULATIONS, version.simulations_number)
    checklist = Checklist(most_findings)
    common: dict[str, Any] = {
        "root": str(layout.root),
        "set_name": layout.set_name,
        "depth": depth,
        "version": version.number,
        "committed_at": version.committed_at,
        "audited_at": audited_at,
        "config": config,
        "samples": samples,
    }
    if not check_form(samples, attempts, checklist):
        checklist.skip("all other checks", "the tables lack columns that they need")
        nothing = pl.DataFrame()
        return AuditResult(
            **common,
            **checklist.summary,
            simulations=nothing,
            measures=NOT_READ.measures,
            channels=NOT_READ.channels,
            halo_masses=nothing,
            parameters=nothing,
        )
    evidence = _evidence(layout, config, samples, attempts, version, latest)
    workload = _audit_records(evidence, checklist)
    contents = audit_contents(evidence, checklist, threads, progress) if depth is Depth.VERIFIED else NOT_READ
    parameters = _parameters(evidence, contents.parameters)
    check_parameters(parameters, "" if parameters.height else evidence.no_parameters, checklist)
    return AuditResult(
        **common,
        **checklist.summary,
        simulations=simulation_states(evidence, workload, checklist.offences),
        measures=contents.measures,
        channels=contents.channels,
        halo_masses=_halo_masses(evidence.suite, config),
        parameters=parameters,
    )


def _rows(layout: DatasetLayout, form: TableForm, version: int) -> pl.DataFrame:
    path = layout.samples_table if form is SAMPLES else layout.simulations_table
    order = ["simulation", "halo", "rotation"] if form is SAMPLES else ["recorded_at", "run_id", "simulation"]
    rows = read_rows(path, form, version)
    return rows.sort([name for name in order if name in rows.columns])


def _evidence(
    layout: DatasetLayout,
    config: DatasetConfig,
    samples: pl.DataFrame,
    attempts: pl.DataFrame,
    version: DatasetVersion,
    latest: DatasetVersion,
) -> Evidence:
    is_latest = version.number == latest.number
    suite: SuiteRecord | None = None
    parameters: ParameterTable | None = None
    no_suite = no_parameters = ""
    try:
        suite = read_suite(config, samples, Comparison(Manifest(layout), config) if is_latest else None)
    except ConfigurationError as error:
        no_suite = f"the suite is out of reach: {error}"
    try:
        parameters = read_parameters(config)
    except ParameterTableError as error:
        no_parameters = str(error)
    return Evidence(
        layout=layout,
        config=config,
        samples=samples,
        attempts=attempts.unique("simulation", keep="last", maintain_order=True).sort("simulation"),
        is_latest=is_latest,
        latest_paths=samples["path"] if is_latest else _rows(layout, SAMPLES, latest.number)["path"],
        suite=suite,
        no_suite=no_suite,
        parameters=parameters,
        no_parameters=no_parameters,
    )


def _audit_records(evidence: Evidence, checklist: Checklist) -> Workload | None:
    """Make the checks that open no sample; return the plan, where the suite is in reach."""
    check_records(evidence, checklist)
    check_strata(evidence.samples, checklist)
    check_masses(evidence, checklist)
    workload = check_plan(evidence, checklist)
    check_catalogue(evidence, stale_inputs(workload), checklist)
    check_files(evidence, list_files(evidence.layout), checklist)
    check_seeds(evidence, checklist)
    check_orientations(evidence, checklist)
    return workload


def _parameters(evidence: Evidence, in_samples: dict[str, NDArray[np.float64]]) -> pl.DataFrame:
    """Return the parameters of the simulations with samples: of the table, or else of the samples that were read."""
    splits = evidence.samples.select("simulation", "split").drop_nulls().unique("simulation").sort("simulation")
    table = evidence.parameters
    if table is not None:
        return parameter_frame(table.names, table.rows, splits)
    names = [f"p{number}" for number in range(max(map(len, in_samples.values()), default=0))]
    alike = {name: values for name, values in in_samples.items() if len(values) == len(names)}
    return parameter_frame(names, alike, splits) if names else pl.DataFrame()


def _halo_masses(suite: SuiteRecord | None, config: DatasetConfig) -> pl.DataFrame:
    if suite is None:
        return pl.DataFrame()
    lowest = min(stratum.min_mass for stratum in config.strata)
    return suite.halos.filter(pl.col("halo_mass") > lowest).select("simulation", "halo", "halo_mass")
