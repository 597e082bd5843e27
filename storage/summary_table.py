"""How the summary of a run, and the status of a data set, look on a terminal."""

import shlex

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bind_core.findings import Severity
from storage.columns import SimulationStatus
from storage.file_listing import UnmatchedFiles
from storage.summary import SETTLED, RunSummary, SimulationSummary

_STYLES = {
    SimulationStatus.COMPLETE: "green",
    SimulationStatus.NO_WORK: "cyan",
    SimulationStatus.BLOCKED: "red",
    SimulationStatus.FAILED: "red",
    SimulationStatus.PARTIAL: "yellow",
    SimulationStatus.PLANNED: "yellow",
    SimulationStatus.STALE: "yellow",
}
_MOST_ROWS = 60
_MOST_MESSAGES = 40
"""Errors that are printed, and warnings; a suite with another unit has thousands."""

_MOST_FILES = 5
"""Files that are named."""
_WIDE = 90
"""Characters from which there is room for all columns."""


def print_summary(summary: RunSummary, console: Console) -> None:
    """Print a table of the simulations, then why each of those that need attention does."""
    where_all_is = f"bind-data status --json --dataset {shlex.quote(summary.root)}"
    shown = summary.simulations if len(summary.simulations) <= _MOST_ROWS else summary.unsettled[:_MOST_ROWS]
    if shown:
        table = Table()
        for heading in ("simulation", "status", "split"):
            table.add_column(heading)
        for heading in ("planned", "exist", "made now"):
            table.add_column(heading, justify="right")
        for simulation in shown:
            style = _STYLES[simulation.status]
            table.add_row(
                simulation.simulation,
                f"[{style}]{simulation.status.value.replace('_', ' ')}[/{style}]",
                simulation.split,
                f"{simulation.planned:,}",
                f"{simulation.committed:,}",
                f"{simulation.made:,}",
            )
        console.print(table)
        unlisted = len(summary.simulations if shown is summary.simulations else summary.unsettled) - len(shown)
        if unlisted:
            _say(console, f"… and {unlisted:,} more that need attention: {where_all_is}", "yellow")
    _say_all(console, [error for simulation in summary.unsettled for error in _errors(simulation)], "red", where_all_is)
    warnings = [warning for simulation in summary.simulations for warning in _warnings(simulation)]
    _say_all(console, warnings, "yellow", where_all_is)
    if summary.skipped:
        named, more = summary.skipped[:_MOST_ROWS], len(summary.skipped) - _MOST_ROWS
        others = f" and {more:,} more" if more > 0 else ""
        _say(console, f"Skipped {len(summary.skipped):,} simulations that do not exist: {', '.join(named)}{others}")
    headline = summary.headline[0].upper() + summary.headline[1:] + "."
    _say(console, headline)


def print_status(summary: RunSummary, console: Console) -> None:
    """Print where every simulation stands, the sums, why those that need attention do, and which files are astray."""
    where_all_is = f"bind-data status --json --dataset {shlex.quote(summary.root)}"
    files = summary.files
    shown: list[SimulationSummary] = list(summary.simulations)
    if len(shown) > _MOST_ROWS:
        ailing = {} if files is None else {**files.lost, **(files.orphaned or {})}
        shown = [one for one in shown if one.status not in SETTLED or one.simulation in ailing]
    wide = console.width >= _WIDE
    table = Table(box=SIMPLE_HEAD, padding=(0, 1 if wide else 0), pad_edge=False, show_footer=True)
    totals = summary.totals
    everything = f"all {len(summary.simulations):,}"
    table.add_column("simulation", everything, overflow="fold")
    table.add_column("status", no_wrap=True)
    if wide:
        table.add_column("split")
    for name, total in totals.items():
        table.add_column(name, _number(total), justify="right", no_wrap=True)
    n_findings = sum(len(one.findings) for one in summary.simulations)
    table.add_column("findings", _number(n_findings), justify="right", no_wrap=True)
    for one in shown[:_MOST_ROWS]:
        of_files = (_of(files.orphaned, one), _of(files.lost, one)) if files is not None else (None, None)
        numbers = (one.planned, one.committed, one.missing, one.stale, *of_files, len(one.findings))
        colours = ("", "", "yellow", "yellow", "yellow", "red", "")
        style = _STYLES[one.status]
        status = f"[{style}]{one.status.value.replace('_', ' ')}[/{style}]"
        table.add_row(escape(one.simulation), status, *([one.split] if wide else []), *map(_number, numbers, colours))
    console.print(table)
    if len(shown) > _MOST_ROWS:
        _say(console, f"… and {len(shown) - _MOST_ROWS:,} more that need attention: {where_all_is}", "yellow")
    unsettled = summary.unsettled
    _say_all(console, [error for one in unsettled for error in _errors(one)], "red", where_all_is)
    warnings = [warning for one in summary.simulations for warning in _warnings(one)]
    _say_all(console, warnings, "yellow", where_all_is)
    if files is not None:
        _say_files(console, files, where_all_is)
    astray = [f"{total:,} {name}" for name in ("lost", "orphaned") if (total := totals[name])]
    _say(console, f"{summary.standing}{'; files: ' if astray else ''}{', '.join(astray)}.")


def _say_files(console: Console, files: UnmatchedFiles, where_all_is: str) -> None:
    dataset = where_all_is.partition(" --json ")[2]
    for run, count in files.waiting.items():
        _say(
            console,
            f"Run {run} has committed {count:,} rows whose files are not in their places: it was killed, or is at "
            f"work. The next run puts them there; `bind-data repair {dataset}` does so at once.",
            "red",
        )
    remedy = f"`bind-data repair {dataset}` makes them again"
    remedy += "." if files.orphaned is not None else " as far as the latest version has them too."
    for what, paths_of, colour, advice in (
        ("Lost, with a row and no file", files.lost, "red", remedy),
        (
            "Orphaned, without a row",
            files.orphaned or {},
            "yellow",
            "A run that is at work, or was killed, leaves such files, and the next one makes use of them or replaces "
            f"them. `bind-data audit {dataset}` says what they are, `bind-data repair` removes what is of no use.",
        ),
    ):
        paths = [path for of_one in paths_of.values() for path in of_one]
        if paths:
            more = f" and {len(paths) - _MOST_FILES:,} more ({where_all_is})" if len(paths) > _MOST_FILES else ""
            _say(console, f"{what}: {', '.join(paths[:_MOST_FILES])}{more}. {advice}", colour)


def _of(files: dict[str, tuple[str, ...]] | None, simulation: SimulationSummary) -> int | None:
    return None if files is None else len(files.get(simulation.simulation, ()))


def _number(number: int | None, colour: str = "") -> str:
    """Return a number as text; a zero does not stand out, and what is not known is a dash."""
    if number is None:
        return "-"
    if not number:
        return "[dim]0[/dim]"
    return f"[{colour}]{number:,}[/{colour}]" if colour else f"{number:,}"


def _errors(simulation: SimulationSummary) -> list[str]:
    errors = [finding.message for finding in simulation.findings if finding.severity is Severity.ERROR]
    return errors or ([f"{simulation.simulation}: {simulation.message}"] if simulation.message else [])


def _warnings(simulation: SimulationSummary) -> list[str]:
    return [f"warning: {finding.message}" for finding in simulation.findings if finding.severity is Severity.WARNING]


def _say_all(console: Console, messages: list[str], colour: str, where_all_is: str) -> None:
    for message in messages[:_MOST_MESSAGES]:
        _say(console, message, colour)
    if len(messages) > _MOST_MESSAGES:
        _say(console, f"… and {len(messages) - _MOST_MESSAGES:,} more: {where_all_is}", colour)


def _say(console: Console, message: str, colour: str = "") -> None:
    text = f"[{colour}]{escape(message)}[/{colour}]" if colour else escape(message)
    console.print(text, soft_wrap=True, highlight=False)
