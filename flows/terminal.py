"""What the command `bind-data` prints where, and how it ends."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bind_core.errors import BindDataError, ConfigurationError

if TYPE_CHECKING:
    import polars as pl

console = Console(highlight=False, soft_wrap=True)
"""Standard output."""
error_console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error."""

_LEAST_ROOM = 24
"""Characters that a cell is given, if it has as many, before a table counts as too narrow to be read."""


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_rows(frame: "pl.DataFrame", on: Console = console) -> None:
    """Print an answer as a table, or row by row where a table would have no room for what is in its cells."""
    rows = [[_cell(value) for value in row] for row in frame.iter_rows()]
    widths = [max(map(len, cells)) for cells in zip(frame.columns, *rows, strict=True)]
    if sum(min(width, _LEAST_ROOM) + 3 for width in widths) < on.width:
        table = Table()
        for column, kind in frame.schema.items():
            # A path that is cut short leads nowhere.
            table.add_column(escape(column), overflow="fold", justify="right" if kind.is_numeric() else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        on.print(table)
        return
    indent = max(map(len, frame.columns))
    for number, row in enumerate(rows, start=1):
        on.print(f"[bold]row {number:,}[/bold]")
        for column, value in zip(frame.columns, row, strict=True):
            on.print(f"  {escape(column.ljust(indent))}  {escape(value)}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, datetime):
        moment = value.replace(microsecond=0)
        return str(moment) if moment.tzinfo is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """Return "1 row", "2 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the path that the user gave where it cannot be written, and not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, where that is a terminal; yields what is called with the done and the total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


class Terminated(KeyboardInterrupt):
    """Raised where a process is asked to end by SIGTERM, as a batch system does."""


class errors_explained:  # noqa: N801
    """Turns an error of ours into its message and exit status 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, BindDataError):
            fail(f"{type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.filename is not None:
            fail(f"{error.filename}: {error.strerror}")
        if isinstance(error, KeyboardInterrupt):
            error_console.print(
                "[red]Interrupted. What was committed stays; run the same command again to go on.[/red]"
            )
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            sys.exit(128 + number)


def fail(message: str) -> NoReturn:
    """Print a message on standard error and end with status 1."""
    error_console.print(f"[red]{escape(message)}[/red]")
    sys.exit(1)


def prepare_prefect(verbose: bool) -> None:
    """Set defaults, before Prefect is imported and reads its settings.

    Parameters
    ----------
    verbose : bool
        Show the flow's log on a terminal, and not the bar and warnings alone.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # A server that outlives the run can tell from its silence that it was killed.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    if not verbose and error_console.is_terminal:
        # The bar has the terminal to itself; warnings and errors still interrupt it.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")


@contextmanager
def prefect_server(verbose: bool) -> Iterator[None]:
    """Run flows with the Prefect server of PREFECT_API_URL or, without it, an embedded one.

    While it lasts, SIGTERM ends the command in the way that Ctrl-C does.

    Parameters
    ----------
    verbose : bool
        As for `prepare_prefect`, which this calls.

    Raises
    ------
    ServerError
        If the server does not answer, or an embedded one does not start.
    """
    prepare_prefect(verbose)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.embedded_server import server_at, start_embedded_server

    given = PREFECT_API_URL.value()
    with terminable():
        url = start_embedded_server() if given is None else server_at(given)
        with temporary_settings({PREFECT_API_URL: url}):
            yield


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM."""

    def end(number: int, frame: object) -> NoReturn:
        raise Terminated

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
