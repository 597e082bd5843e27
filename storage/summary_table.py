"""How a run's summary looks on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bind_core.findings import Severity
from storage.schemas import SimulationStatus
from storage.summary import RunSummary

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


def print_summary(summary: RunSummary, console: Console) -> None:
    """Print a table of the simulations, then why each of those that need attention does."""
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
    for simulation in summary.unsettled:
        errors = [finding for finding in simulation.findings if finding.severity is Severity.ERROR]
        for finding in errors:
            console.print(f"[red]{escape(finding.message)}[/red]", soft_wrap=True, highlight=False)
        if not errors and simulation.message:
            console.print(
                f"[red]{simulation.simulation}: {escape(simulation.message)}[/red]", soft_wrap=True, highlight=False
            )
    for simulation in summary.simulations:
        for finding in simulation.findings:
            if finding.severity is Severity.WARNING:
                console.print(f"[yellow]warning: {escape(finding.message)}[/yellow]", soft_wrap=True, highlight=False)
    if summary.skipped:
        console.print(
            f"Skipped {len(summary.skipped)} simulations that do not exist: {', '.join(summary.skipped)}",
            soft_wrap=True,
            highlight=False,
        )
    headline = summary.headline[0].upper() + summary.headline[1:] + "."
    console.print(escape(headline), soft_wrap=True, highlight=False)
