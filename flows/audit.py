"""The audit of a data set, as a flow."""

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.annotations import quote

from bind_core.errors import BindDataError
from flows.artifacts import leave_table
from flows.outcomes import failed
from flows.parameter_help import with_parameter_help
from storage.audit_depth import Depth
from storage.audit_result import AuditResult
from storage.audit_table import findings_by_kind
from storage.manifest import layout_at
from storage.markdown import shown_code, shown_text
from storage.versions import resolve_version, time_meant
from tasks.auditing import audit_dataset_at, write_audit_report

_MOST_SHOWN = 20
"""Findings of a kind that the verdict's artifact spells out; the report has more."""


class UnsoundDatasetError(BindDataError):
    """A data set in which an audit has found errors."""

    def __init__(self, result: AuditResult) -> None:
        super().__init__(result.verdict)
        self.result = result


@flow(name="audit-dataset", flow_run_name="audit {dataset}, {depth}")
@with_parameter_help
def audit_dataset(
    dataset: Path,
    depth: Depth = Depth.KNOWN,
    version: str | None = None,
    at: str | None = None,
    report: Path | None = None,
    threads: int = 2,
) -> AuditResult | State[AuditResult]:
    """Check whether a data set is sound; nothing in it is changed.

    Parameters
    ----------
    dataset : Path
        Root of the data set.
    depth : Depth
        ``known`` looks at the manifest and at the files' names and sizes; ``verified`` reads every sample as well.
    version : str, optional
        Number or tag of the version; the latest by default.
    at : str, optional
        The version as of a time, in ISO 8601.
    report : Path, optional
        HTML file for the report; by default ``audit/report.html`` in the data set.
    threads : int
        Threads that read samples.

    Returns
    -------
    AuditResult
        If there is no error.

    Raises
    ------
    UnsoundDatasetError
        If there is.
    BindDataError
        If there is no data set, or no such version.
    """
    try:
        layout = layout_at(dataset)
        asked = None
        if version is not None or at is not None:
            asked = resolve_version(layout, version, None if at is None else time_meant(at))
        result = audit_dataset_at(layout, depth, asked, datetime.now(UTC), threads)
        unsearched = cast(AuditResult, quote(result))  # its tables are large, and hold no futures to be looked for
        path = write_audit_report(unsearched, layout, report or layout.audit_report_file)
    except BindDataError as error:
        return failed(error)
    _publish(result, path)
    if not result.ok:
        unsound = UnsoundDatasetError(result)
        return failed(unsound, result.verdict)
    get_run_logger().info(result.verdict)
    return Completed(message=result.verdict, data=result)


def _publish(result: AuditResult, report: Path) -> None:
    """Leave the checks as a table, the verdict with the findings as text, and a link to the report."""
    leave_table(
        [
            {
                "check": check.name,
                "outcome": check.outcome.value,
                "findings": check.findings,
                "detail": check.detail,
            }
            for check in result.checks
        ],
        key="audit-checks",
        description=result.verdict,
    )
    create_markdown_artifact(_explanation(result, report), key="audit-verdict", description=result.verdict)
    create_link_artifact(
        report.absolute().as_uri(),
        link_text="Report of the audit",
        key="audit-report",
        description=f"{report.absolute()}: to be opened where the data set can be reached",
    )


def _explanation(result: AuditResult, report: Path) -> str:
    lines = ["## " + result.verdict, "", f"Version {result.version}. The report is in {shown_code(report.absolute())}."]
    for kind in findings_by_kind(result):
        lines += ["", f"### {kind.severity.value}: {kind.code.value.replace('_', ' ')}: {kind.count:,}", ""]
        lines += [kind.code.meaning, ""]
        lines += [f"- {shown_text(finding.message)}" for finding in kind.findings[:_MOST_SHOWN]]
        if kind.count > _MOST_SHOWN:
            lines.append(f"- … and {kind.count - _MOST_SHOWN:,} more")
        if kind.findings[0].query:
            lines += ["", "```sql", kind.findings[0].query, "```"]
    return "\n".join(lines)
