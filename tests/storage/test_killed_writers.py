"""Processes that are killed while they write, by a signal that none can catch: what is left, and who mends it."""

import multiprocessing
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import copytree

import polars as pl
import pytest
from block_runs import layout_of, manifest_of, refresh
from command_line import call, fine
from damaged_datasets import AuditedDataset, mock_dataset

import storage.manifest as manifest_module
from bind_core.config import DatasetConfig
from storage.audit_depth import Depth
from storage.columns import SAMPLES
from storage.compaction import LEFTOVER_AGE, compact, remove_leftovers
from storage.tables import append_rows, read_rows

SPAWN = multiprocessing.get_context("spawn")
"""A forked process would have the locks of this one's threads and not the threads."""
PATIENCE = 120
"""Seconds until a process that says nothing has failed."""
MOMENTS = 6


def started(target: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Start a process; return it with the line on which it says how far it is."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    return process, here


def heard(line: Connection) -> object:
    assert line.poll(PATIENCE)
    return line.recv()


def killed(process: BaseProcess) -> None:
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode is not None


# Compaction


def compaction(table: Path, line: Connection) -> None:
    line.send("ready")
    compact(table, {"run_id": "killed"})
    line.send("done")


@pytest.fixture
def scattered(dataset) -> Path:
    """Return a table in forty files, which take a while to merge."""
    one = dataset.sample_rows("SB35_0", rotations=1)
    table: Path = dataset.layout.samples_table
    for part in range(40):
        names = [f"SB35_{part}_halo_{row}_rot_0" for row in range(1000)]
        digests = [secrets.token_hex(32) for _ in names]
        rows = pl.concat([one] * len(names)).with_columns(
            pl.Series("sample_id", names), pl.Series("sha256", digests), simulation=pl.lit(f"SB35_{part}")
        )
        append_rows(table, rows, {})
    return table


def content(table: Path) -> pl.DataFrame:
    return read_rows(table, SAMPLES).sort("sample_id")


def test_a_compaction_that_is_killed_changes_nothing(scattered: Path, tmp_path: Path) -> None:
    """At whichever moment it is killed, the table holds what it held, and the next compaction goes on."""
    before = content(scattered)
    copytree(scattered, tmp_path / "undisturbed")
    process, line = started(compaction, tmp_path / "undisturbed")
    heard(line)
    start = time.perf_counter()
    heard(line)
    duration = time.perf_counter() - start
    process.join(PATIENCE)
    exits = []
    for moment in range(MOMENTS):
        table = tmp_path / f"killed {moment}"
        copytree(scattered, table)
        process, line = started(compaction, table)
        heard(line)
        time.sleep(duration * moment / MOMENTS)
        killed(process)
        exits.append(process.exitcode)
        assert content(table).equals(before)
        compact(table, {"run_id": "next"})
        assert content(table).equals(before)
        assert compact(table, {"run_id": "once more"}) == 0
        remove_leftovers(table, datetime.now(UTC) + LEFTOVER_AGE + timedelta(hours=1))
        assert content(table).equals(before)
    assert -9 in exits


# A refresh between its commit and the move of its files


def refresh_until_committed(config: DatasetConfig, line: Connection) -> None:
    def stopped(*_: object) -> None:
        line.send("committed")
        time.sleep(PATIENCE)

    manifest_module.finish = stopped
    refresh(config, run_id="killed")


@pytest.fixture
def interrupted(tmp_path: Path) -> AuditedDataset:
    """Return a data set in which the new rows of one simulation are committed, and its old files lie in their places.

    The simulation is made anew with another number of pixels, so that its new files have other sizes.
    """
    dataset = mock_dataset(tmp_path, rotations=2, particles_per_side=8)
    config = dataset.config.model_copy(update={"resolution": 8})
    process, line = started(refresh_until_committed, config)
    heard(line)
    killed(process)
    assert process.exitcode == -9
    assert set(manifest_of(config).samples()["run_id"]) == {"killed"}
    return AuditedDataset(dataset.folder, config)


@pytest.mark.mpi
def test_an_interrupted_refresh_is_named(interrupted: AuditedDataset) -> None:
    """Status says which run has files waiting, and the audit each sample, where its new file waits, and what to do."""
    samples = set(interrupted.rows["sample_id"])
    result = call("status", "-d", interrupted.root)
    assert result.exit_code == 1
    assert f"Run killed has committed {len(samples)} rows whose files are not in their places" in result.stdout
    assert interrupted.found(Depth.KNOWN)["unfinished_commit"] == samples
    finding = next(one for one in interrupted.audit().findings if one.code == "unfinished_commit")
    assert (interrupted.root / finding.found.removeprefix("it waits as ")).is_file()
    assert "bind-data repair" in finding.advice


@pytest.mark.mpi
@pytest.mark.parametrize("mend", ["next run", "repair"])
def test_an_interrupted_refresh_is_finished(interrupted: AuditedDataset, mend: str) -> None:
    """The next run, or a repair, puts the files of the committed rows into place and keeps the old ones."""
    if mend == "repair":
        assert "of an interrupted run put into place" in fine("repair", "-d", interrupted.root)
    else:
        refresh(interrupted.config, run_id="next")
        assert set(interrupted.rows["run_id"]) == {"killed"}
    result = interrupted.audit()
    assert (result.errors, result.warnings) == (0, 0)
    layout = layout_of(interrupted.config)
    old = manifest_of(interrupted.config).samples(0)["sha256"]
    assert all(layout.superseded_file(digest).is_file() for digest in old)
    assert not layout.staging_folder.exists()
    fine("status", "-d", interrupted.root)
