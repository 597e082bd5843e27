"""Commands that check a data set and mend it."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.options import AtOption, DatasetOption, JsonOption, VersionOption, recorded, version_asked
from flows.terminal import console, counted, errors_explained, prepare_prefect, print_json, writing
from storage.audit_result import AuditFinding, AuditResult, Depth

if TYPE_CHECKING:
    from storage.layout import DatasetLayout
    from storage.repair import RepairPlan

commands = typer.Typer()

_SHOWN_OF_A_KIND = 5

ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads that read samples.")]


@commands.command()
def audit(
    dataset: DatasetOption = Path(),
    depth: Annotated[
        Depth, typer.Option(help="`known`: tables, names and sizes. `verified`: every sample is read as well.")
    ] = Depth.KNOWN,
    version: VersionOption = None,
    at: AtOption = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the report goes; by default audit/report.html there.")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Check whether what the manifest says holds, and write a report to open in a browser.

    The exit status is 1 if there is any error.
    """
    with errors_explained():
        from storage.manifest import layout_at
        from storage.report import write_report

        layout = layout_at(dataset)
        result = _audited(layout, depth, threads, version, at)
        page = report or layout.report_file
        if not no_report:
            with writing(page):
                write_report(result, layout, page)
    if as_json:
        print_json(result.as_dict())
    else:
        _print_result(result)
        if not no_report:
            console.print(f"Report: {escape(str(page))}")
    sys.exit(0 if result.ok else 1)


@commands.command()
def repair(
    dataset: DatasetOption = Path(),
    depth: Annotated[Depth, typer.Option(help="How far to look for what is broken.")] = Depth.VERIFIED,
    refresh: Annotated[bool, typer.Option(help="Make stale samples anew as well.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    threads: ThreadsOption = 2,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the flow's log beside the bar.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Mend what an audit finds: remove orphans and doubled rows, make broken and lost samples anew, and audit again.

    What cannot be mended is said at the end, with exit status 1.
    """
    with errors_explained():
        from storage.manifest import layout_at, open_dataset
        from storage.preparation import prepare_root
        from storage.recording import new_run_id
        from storage.repair import plan_repair, tidy

        config = recorded(dataset)
        layout = layout_at(dataset)
        manifest = open_dataset(layout, config)
        if not dry_run:
            prepare_root(layout.root)
            manifest.finish_interrupted()
        result = _audited(layout, depth, threads)
        plan = plan_repair(layout, manifest, _concerned(result.findings, refresh))
        if not as_json:
            _print_result(result)
            _print_plan(plan)
        if not dry_run and not plan.empty:
            tidy(layout, manifest, plan, new_run_id())
            if plan.simulations:
                prepare_prefect(verbose)
                from flows.generate import run_summary

                run_summary(config, list(plan.simulations), refresh, list(plan.remake))
            result = _audited(layout, depth, threads)
            if not as_json:
                console.print("Audited again:")
                _print_result(result)
    if as_json:
        print_json(result.as_dict() | {"repair": _as_dict(plan)})
    sys.exit(0 if result.ok else 1)


def _audited(
    layout: "DatasetLayout", depth: Depth, threads: int, version: str | None = None, at: str | None = None
) -> AuditResult:
    from storage.audit import audit as audited

    asked = version_asked(layout, version, at)
    return audited(layout, depth, audited_at=datetime.now(UTC), version=asked, threads=threads)


def _concerned(findings: Sequence[AuditFinding], refresh: bool) -> list[AuditFinding]:
    from storage.audit_result import AuditCode

    return [finding for finding in findings if refresh or finding.code is not AuditCode.STALE]


def _print_result(result: AuditResult) -> None:
    console.print(f"[{'green' if result.ok else 'red'}]{escape(result.verdict)}[/]")
    for check in result.checks:
        mark = {True: "[green]passed[/]", False: "[red]failed[/]", None: "[yellow]not made[/]"}[check.passed]
        console.print(f"  {mark}  {escape(check.name)}: {escape(check.detail)}")
    for code, count in result.counts.items():
        of_this_kind = [finding for finding in result.findings if finding.code is code]
        console.print(f"{counted(count, 'finding')}: {escape(code.meaning)}")
        for finding in of_this_kind[:_SHOWN_OF_A_KIND]:
            console.print(f"  {finding.severity.value}: {escape(finding.message)}")
            if finding.query:
                console.print(f'    bind-data query "{finding.query}"', markup=False)
        if count > _SHOWN_OF_A_KIND:
            console.print(f"  … and {count - _SHOWN_OF_A_KIND:,} more")


def _print_plan(plan: "RepairPlan") -> None:
    if plan.empty:
        console.print("There is nothing that a repair would mend.")
    if plan.duplicates:
        console.print("Rows that are there twice are removed.")
    for source, target in plan.moves:
        console.print(f"moved back: {source} -> {target}", markup=False)
    for orphan in plan.orphans:
        console.print(f"removed: {orphan}", markup=False)
    if plan.simulations:
        names = ", ".join(plan.simulations)
        console.print(f"{counted(len(plan.remake), 'sample')} made anew, and what is stale or lost, of {names}.")
    for finding in plan.left:
        console.print(f"left as it is: {escape(finding.message)}")


def _as_dict(plan: "RepairPlan") -> dict[str, Any]:
    return {
        "duplicates": plan.duplicates,
        "moves": [list(move) for move in plan.moves],
        "orphans": list(plan.orphans),
        "remake": list(plan.remake),
        "simulations": list(plan.simulations),
        "left": [finding.as_dict() for finding in plan.left],
    }
