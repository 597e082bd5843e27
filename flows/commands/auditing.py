"""The command that checks a data set."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bind_core.errors import ConfigurationError
from flows.options import AtOption, DatasetOption, JsonOption, VersionOption, version_asked
from flows.terminal import console, error_console, errors_explained, print_json, writing
from storage.audit_depth import Depth

commands = typer.Typer()


@commands.command()
def audit(
    dataset: DatasetOption = Path(),
    depth: Annotated[
        Depth,
        typer.Option(
            help="`known` looks at the manifest and at the files' names and sizes; `verified` reads every sample."
        ),
    ] = Depth.KNOWN,
    version: VersionOption = None,
    at: AtOption = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML file for the report; by default the data set's audit/report.html.")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read samples.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Check whether a data set is sound, and write a report; exit status 1 if it is not. Nothing is mended."""
    with errors_explained():
        if no_report and report is not None:
            raise ConfigurationError("--report and --no-report exclude each other.")
        from storage.audit import audit as audited
        from storage.audit_table import print_audit
        from storage.manifest import layout_at

        layout = layout_at(dataset)
        meant = version_asked(layout, version, at)
        with _progress() as advance:
            result = audited(
                layout, depth, audited_at=datetime.now(UTC), version=meant, threads=threads, progress=advance
            )
        path = None if no_report else report or layout.audit_report_file
        if path is not None:
            from storage.report import write_report

            with writing(path):
                write_report(result, layout, path)
    if as_json:
        print_json(result.as_dict() | {"report": None if path is None else str(path)})
    else:
        print_audit(result, console)
        if path is not None:
            console.print(f"\nReport: {escape(str(path))}")
    sys.exit(0 if result.ok else 1)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how many samples have been read, on a terminal."""
    columns = (TextColumn("samples read"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console, transient=True, disable=not error_console.is_terminal) as bar:
        task = bar.add_task("samples", total=None, visible=False)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield advance
