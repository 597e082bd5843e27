"""How a run's progress is counted and shown."""

import io

import pytest
from rich.console import Console

from tasks import progress as module
from tasks.progress import PHASES, Progress, RunProgress


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sample_is_done_when_all_its_phases_are(console: Console) -> None:
    """Each phase counts for its share of a sample, so that the bar moves steadily."""
    progress = RunProgress(10, console)
    for done, phase in enumerate(PHASES, 1):
        progress.report(Progress("SB35_0", phase, 10, 10))
        assert progress.completed == 10 * done // len(PHASES)
    assert progress.fraction == 1.0


def test_late_and_repeated_reports_do_not_turn_it_back(console: Console) -> None:
    """Ranks report in any order: a smaller number that comes late changes nothing."""
    progress = RunProgress(8, console)
    progress.report(Progress("SB35_0", PHASES[0], 8, 8))
    before = progress.completed
    progress.report(Progress("SB35_0", PHASES[0], 3, 8))
    assert progress.completed == before


def test_a_finished_simulation_counts_in_full(console: Console) -> None:
    """A blocked simulation that reported nothing counts as done, and the whole never exceeds the plan."""
    progress = RunProgress(12, console)
    progress.finish_simulation("SB35_0", 5)
    assert progress.completed == 5
    progress.report(Progress("SB35_1", PHASES[-1], 7, 7))
    progress.finish_simulation("SB35_1", 7)
    progress.finish_simulation("SB35_1", 7)
    assert progress.completed == 12
    progress.report(Progress("SB35_2", PHASES[0], 100, 100))
    assert progress.completed == 12


def test_a_run_without_samples_is_complete(console: Console) -> None:
    """Nothing of nothing is everything."""
    assert RunProgress(0, console).fraction == 1.0


def test_a_log_gets_a_line_now_and_then(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal, a line is printed every few seconds, and not one for each report."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with RunProgress(100, console) as progress:
        for done in range(1, 31):
            progress.report(Progress("SB35_0", "dark_matter", done, 100))
    lines = printed(console).splitlines()
    assert 5 <= len(lines) <= 10
    assert lines[-1].endswith("of 100 samples (SB35_0: dark matter)")


def test_a_terminal_gets_a_bar() -> None:
    """On a terminal a bar is drawn, with the simulation, the samples done and those planned."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with RunProgress(20, console) as progress:
        progress.finish_simulation("SB35_0", 5)
    assert "SB35_0: done" in printed(console)
    assert "5/20" in printed(console)
