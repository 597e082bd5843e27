"""The command that mends a data set."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.options import DatasetOption, JsonOption, recorded
from flows.terminal import console, counted, errors_explained, prefect_server, print_json
from storage.audit_depth import Depth

if TYPE_CHECKING:
    from storage.audit_result import AuditFinding, AuditResult
    from storage.layout import DatasetLayout
    from storage.repair import RepairPlan

commands = typer.Typer()


@commands.command()
def repair(
    dataset: DatasetOption = Path(),
    depth: Annotated[Depth, typer.Option(help="How far to look for what is broken.")] = Depth.VERIFIED,
    refresh: Annotated[bool, typer.Option(help="Make stale samples anew as well.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read samples.")] = 2,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the flow's log beside the bar.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Mend what an audit finds: remove orphans and doubled rows, make broken and lost samples anew, and audit again.

    What cannot be mended is said at the end, with exit status 1.
    """
    with errors_explained():
        from storage.audit_table import print_audit
        from storage.lease import writing
        from storage.manifest import layout_at, open_dataset
        from storage.preparation import prepare_root
        from storage.recording import new_run_id
        from storage.repair import plan_repair, tidy
        from storage.summary_table import print_summary

        config = recorded(dataset)
        layout = layout_at(dataset)
        run_id = new_run_id()
        with ExitStack() as stack:
            lease = None
            if not dry_run:
                prepare_root(layout)
                # While another run writes, its samples that have no rows yet would look like orphans.
                lease = stack.enter_context(writing(layout, "bind-data repair", run_id, tell=_tell))
            manifest = open_dataset(layout, config, lease)
            result = _audited(layout, depth, threads)
            plan = plan_repair(layout, manifest, _concerned(result.findings, refresh))
            if not as_json:
                print_audit(result, console)
                _print_plan(plan)
            if not dry_run:
                tidy(layout, manifest, plan, run_id)
        mended = True
        if not dry_run and not plan.empty:
            if plan.simulations:
                with prefect_server(verbose):
                    from flows.generate import run_summary

                    summary = run_summary(config, list(plan.simulations), refresh, list(plan.remake))
                mended = summary.ok
                if not mended and not as_json:
                    print_summary(summary, console)
            result = _audited(layout, depth, threads)
            if not as_json:
                console.print("Audited again:")
                print_audit(result, console)
    if as_json:
        print_json(result.as_dict() | {"repair": _as_dict(plan)})
    sys.exit(0 if result.ok and mended else 1)


def _tell(message: str) -> None:
    console.print(message, markup=False)


def _audited(layout: "DatasetLayout", depth: Depth, threads: int) -> "AuditResult":
    from storage.audit import audit

    return audit(layout, depth, audited_at=datetime.now(UTC), threads=threads, most_findings=sys.maxsize)


def _concerned(findings: Sequence["AuditFinding"], refresh: bool) -> list["AuditFinding"]:
    from storage.audit_result import AuditCode

    return [finding for finding in findings if refresh or finding.code is not AuditCode.STALE]


def _print_plan(plan: "RepairPlan") -> None:
    if plan.empty:
        console.print("There is nothing that a repair would mend.")
    if plan.unfinished:
        console.print(f"{counted(len(plan.unfinished), 'file')} of an interrupted run put into place.")
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
        "unfinished": list(plan.unfinished),
        "moves": [list(move) for move in plan.moves],
        "orphans": list(plan.orphans),
        "remake": list(plan.remake),
        "simulations": list(plan.simulations),
        "left": [finding.as_dict() for finding in plan.left],
    }
