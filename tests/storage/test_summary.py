"""Where the simulations of a run stand, and how that is printed."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from block_runs import make, manifest_of, project, record, workload_of
from rich.console import Console

from bind_core.config import DatasetConfig
from bind_core.findings import Finding, FindingCode, Severity
from storage.columns import SimulationStatus
from storage.file_listing import UnmatchedFiles
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.summary import RunSummary, SimulationSummary, summarise
from storage.summary_table import print_status, print_summary

pytestmark = pytest.mark.mpi


@pytest.fixture
def suite(tmp_path: Path) -> MockSuite:
    return write_mock_suite(
        tmp_path / "suite",
        simulations=4,
        particles_per_side=8,
        halos_per_simulation=1,
        defects={"SB35_1": [Defect.EMPTY_CATALOGUE], "SB35_2": [Defect.MISSING_DMO_SNAPSHOT]},
    )


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    return config_of(suite, output_root=tmp_path / "dataset", resolution=16, strata=[{"rotations": 2}])


def summary_of(config: DatasetConfig) -> RunSummary:
    return summarise(manifest_of(config), workload_of(config), "run", {})


def states(summary: RunSummary) -> dict[str, SimulationStatus]:
    return {simulation.simulation: simulation.status for simulation in summary.simulations}


def printed(summary: RunSummary) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_summary(summary, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def simulation(name: str, status: SimulationStatus, findings: int = 0, **values: object) -> SimulationSummary:
    severity = values.pop("severity", Severity.ERROR)
    found = tuple(
        Finding(FindingCode.UNREADABLE, name, f"/{name}/file_{i}[red]", "a", "b", "Mend it.", severity)  # type: ignore[arg-type]
        for i in range(findings)
    )
    defaults: dict = {
        "split": "train",
        "planned": 1,
        "committed": 0,
        "missing": 0,
        "stale": 0,
        "made": 0,
        "message": "",
    }
    return SimulationSummary(simulation=name, status=status, findings=found, **(defaults | values))  # type: ignore[arg-type]


def test_every_simulation_is_named_with_where_it_stands(config: DatasetConfig) -> None:
    """Before a run all are planned; after it each has the status, counts and findings of its newest attempt."""
    assert set(states(summary_of(config)).values()) == {SimulationStatus.PLANNED}
    make(config, ["SB35_0", "SB35_1", "SB35_2"])
    summary = summary_of(config)
    assert states(summary) == {
        "SB35_0": SimulationStatus.COMPLETE,
        "SB35_1": SimulationStatus.NO_WORK,
        "SB35_2": SimulationStatus.BLOCKED,
        "SB35_3": SimulationStatus.PLANNED,
    }
    assert [(s.planned, s.committed) for s in summary.simulations] == [(2, 2), (0, 0), (2, 0), (2, 0)]
    assert not summary.ok
    assert [s.simulation for s in summary.unsettled] == ["SB35_2", "SB35_3"]
    assert summary.simulations[2].findings[0].code is FindingCode.MISSING_FILES


def test_an_extension_makes_complete_simulations_partial_again(config: DatasetConfig) -> None:
    """More rotations asked for turn complete into partial until they are made."""
    make(config, ["SB35_0"])
    more = DatasetConfig.from_values(config.model_dump() | {"strata": [{"rotations": 3}]})
    (first, *_) = summary_of(more).simulations
    assert (first.status, first.planned, first.committed) == (SimulationStatus.PARTIAL, 3, 2)


def test_a_catalogue_that_is_lost_makes_its_simulation_stale(config: DatasetConfig, suite: MockSuite) -> None:
    """A made simulation whose catalogue is gone is stale, says which folder, and its samples still count."""
    make(config, ["SB35_0"])
    shutil.rmtree(suite.catalogue_base / "SB35_0")
    (first, *_) = summary_of(config).simulations
    assert (first.status, first.planned, first.committed) == (SimulationStatus.STALE, 2, 2)
    assert str(suite.catalogue_base / "SB35_0") in first.message


def test_only_a_good_end_is_ok(config: DatasetConfig) -> None:
    """A summary is ok if all of its simulations are complete or have no work, and with no other status."""
    for status in SimulationStatus:
        good = status in {SimulationStatus.COMPLETE, SimulationStatus.NO_WORK}
        complete = simulation("SB35_0", SimulationStatus.COMPLETE)
        assert RunSummary("run", "root", (complete, simulation("SB35_1", status))).ok is good


def test_partial_and_failed_are_told_with_their_reason(config: DatasetConfig) -> None:
    """A file lost before packaging shows as partial, with the file in what is printed."""
    block = project(config, ["SB35_0"])
    victim = block.paths(config)[0]
    victim.unlink()
    record(config, block)
    summary = summary_of(config)
    assert states(summary)["SB35_0"] is SimulationStatus.PARTIAL
    assert str(victim) in printed(summary)


def test_findings_are_printed_as_they_are() -> None:
    """Each finding of an unsettled simulation is printed on one line, brackets in paths included."""
    text = printed(RunSummary("run", "root", (simulation("SB35_0", SimulationStatus.BLOCKED, findings=2),)))
    lines = [line for line in text.splitlines() if line.startswith("SB35_0: unreadable")]
    assert len(lines) == 2
    assert "/SB35_0/file_1[red]" in lines[1]
    assert "Mend it." in lines[1]
    assert text.strip().splitlines()[-1].startswith("No sample was made; 0 of 1 planned samples")


def test_warnings_of_good_simulations_are_printed() -> None:
    """A complete simulation with a warning says so."""
    one = simulation("SB35_0", SimulationStatus.COMPLETE, findings=1, severity=Severity.WARNING)
    assert "warning: SB35_0: unreadable" in printed(RunSummary("run", "root", (one,)))


@pytest.mark.parametrize("severity", Severity)
def test_hundreds_of_bad_simulations_do_not_flood_the_terminal(severity: Severity) -> None:
    """A thousand simulations with three findings each print about a hundred lines, and where the rest is."""
    status = SimulationStatus.BLOCKED if severity is Severity.ERROR else SimulationStatus.FAILED
    bad = tuple(simulation(f"SB35_{i}", status, findings=3, severity=severity) for i in range(1000))
    text = printed(RunSummary("run", "root", bad, skipped=tuple(f"SB35_{i}" for i in range(1000, 2000))))
    assert len(text.splitlines()) < 120
    assert len(text) < 20_000
    assert "and 940 more" in text
    assert "and 2,960 more" in text
    assert "bind-data status --json" in text
    assert "1000 blocked" in text or "1000 failed" in text


def test_the_status_of_a_whole_suite_is_short() -> None:
    """Of a thousand simulations, those that need attention or have files astray are listed, and the sums are of all."""
    good = [simulation(f"SB35_{i}", SimulationStatus.COMPLETE, planned=500, committed=500) for i in range(1022)]
    partial = simulation("SB35_1022", SimulationStatus.PARTIAL, planned=500, committed=400, missing=100)
    astray = simulation("SB35_1023", SimulationStatus.COMPLETE, planned=500, committed=500)
    files = UnmatchedFiles({"": ("train/x",), "SB35_1023": ("train/sim_1023/y",)}, {}, {"run": 3})
    console = Console(file=io.StringIO(), width=80)
    print_status(RunSummary("", "root", (*good, partial, astray), files=files), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    listed = [line.split()[0] for line in lines if line.strip().startswith("SB35_")]
    assert listed == ["SB35_1022", "SB35_1023"]
    (total,) = [line.split() for line in lines if line.strip().startswith("all 1,024")]
    assert total[2:] == ["512,000", "511,900", "100", "0", "2", "0", "0"]
    assert any("Run run has committed 3 rows" in line for line in lines)
    assert lines[-1].startswith("511,900 of 512,000 planned samples exist in root (1024 simulations: 1023 complete")


def test_few_simulations_print_every_finding() -> None:
    """What fits is printed in full, with no hint at more."""
    text = printed(
        RunSummary("run", "root", tuple(simulation(f"SB35_{i}", SimulationStatus.BLOCKED, 2) for i in range(15)))
    )
    assert sum(": unreadable: " in line for line in text.splitlines()) == 30
    assert " more" not in text
