"""How far a run is: reports of the MPI program, and the bar that a terminal shows.

Knows no Prefect.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bind_core.config import DatasetConfig
from bind_core.field_reading import passes_of
from bind_core.snapshot import Component

WRITING = "write"
PHASES = (*(component.value for component in Component), WRITING)
"""What is done to each sample of a simulation, in this order, where there are no further fields."""

_LINE_INTERVAL = 5.0


@dataclass(frozen=True)
class Progress:
    """How far the job is with one phase of a simulation."""

    simulation: str
    phase: str
    """One of `PHASES`, or of `phases_of`."""
    done: int
    of: int
    """Samples of the simulation."""


def phases_of(config: DatasetConfig) -> tuple[str, ...]:
    """Return what is done to each sample of a simulation, in this order."""
    return (*(each.value for each in passes_of(config)), WRITING)


ProgressSink = Callable[[Progress], None]


class RunProgress:
    """The progress of a run, counted in samples, on a terminal or as occasional lines.

    Parameters
    ----------
    samples : int
        Samples that the run is to make.
    console : rich.console.Console
        Where to show it. A bar on a terminal; elsewhere a line every few seconds.
    phases : sequence of str
        What is done to each sample.
    """

    def __init__(self, samples: int, console: Console, phases: Sequence[str] = PHASES) -> None:
        self._samples = samples
        self._phases = phases
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("samples"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=samples)
        self._done: dict[tuple[str, str], int] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, progress: Progress) -> None:
        """Take a report of any rank, in any order."""
        key = (progress.simulation, progress.phase)
        self._done[key] = max(progress.done, self._done.get(key, 0))
        self._show(f"{progress.simulation}: {progress.phase.replace('_', ' ')}")

    def finish_simulation(self, simulation: str, samples: int) -> None:
        """Count all phases of a simulation as done."""
        self._done.update({(simulation, phase): samples for phase in self._phases})
        self._show(f"{simulation}: done")

    @property
    def completed(self) -> int:
        """Samples done, each phase counting for its share."""
        return min(self._samples, sum(self._done.values()) // len(self._phases))

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return self.completed / self._samples if self._samples else 1.0

    def _show(self, description: str) -> None:
        self._bar.update(self._task, completed=self.completed, description=description)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_INTERVAL:
            self._last_line = now
            self._console.print(f"{self.completed:,} of {self._samples:,} samples ({description})", highlight=False)
