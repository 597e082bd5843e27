"""How a run's summary looks on a terminal."""

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bind_core.findings import Severity
from storage.schemas import SimulationStatus
from storage.summary import RunSummary, SimulationSummary

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
