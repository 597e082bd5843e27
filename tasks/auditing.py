"""Tasks: audit a data set, and write the report."""

from datetime import datetime
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from storage.audit import audit
from storage.audit_depth import Depth
from storage.audit_result import AuditResult, Outcome
from storage.layout import DatasetLayout
from storage.report import write_report
from storage.versions import DatasetVersion

_STEPS = 10
"""Times that progress is logged."""


@task(task_run_name="audit, depth {depth}", cache_policy=NO_CACHE)
def audit_dataset_at(
    layout: DatasetLayout, depth: Depth, version: DatasetVersion | None, audited_at: datetime, threads: int
) -> AuditResult:
    """Make every check of a depth; log how each came out."""
    logger = get_run_logger()

    def progress(done: int, total: int) -> None:
        if done * _STEPS // total != (done - 1) * _STEPS // total:
            logger.info("%d of %d samples read", done, total)

    result = audit(layout, depth, audited_at=audited_at, version=version, threads=threads, progress=progress)
    for check in result.checks:
        if check.outcome is Outcome.NOT_MADE:
            logger.info("not checked: %s: %s", check.name, check.detail)
        elif check.outcome is not Outcome.PASSED:
            logger.warning("%s, %d findings: %s", check.outcome, check.findings, check.name)
    return result


@task(task_run_name="write the report", cache_policy=NO_CACHE)
def write_audit_report(result: AuditResult, layout: DatasetLayout, path: Path) -> Path:
    """Write the report as one page of HTML."""
    return write_report(result, layout, path)
