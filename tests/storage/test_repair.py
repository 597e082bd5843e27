"""What a repair puts in order by itself, without making anything."""

from datetime import UTC, datetime

import polars as pl
import pytest

from storage.audit import audit
from storage.audit_depth import Depth
from storage.files import sha256_of
from storage.repair import plan_repair, tidy
from storage.tables import overwrite_rows


def test_half_written_samples_go_where_nothing_is_to_be_made_any_more(dataset) -> None:
    """What a killed run has left in the folder of a simulation that is complete, or has no work now, is removed."""
    dataset.commit("SB35_0")
    layout, manifest = dataset.layout, dataset.open()
    left = []
    for simulation, split in (("SB35_0", "train"), ("SB35_1", "test")):
        path = layout.sample_path(split, simulation, 5, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        left.append(path.with_name(f".{path.name}.{'0' * 16}.bind-tmp"))
        left[-1].write_bytes(b"half a sample")
    tidy(layout, manifest, plan_repair(layout, manifest, []), "repair")
    assert [path for path in left if path.exists()] == []
    assert all((dataset.root / path).is_file() for path in manifest.samples()["path"])


@pytest.mark.parametrize("changed", [False, True])
def test_a_misplaced_file_is_moved_back_or_removed(dataset, changed: bool) -> None:
    """A sample's file that lies elsewhere gets its place back; one that is of other content is of no use, and goes."""
    dataset.commit("SB35_0")
    layout, manifest = dataset.layout, dataset.open()
    name, place, digest = manifest.samples().select("sample_id", "path", "sha256").row(0)
    elsewhere = dataset.root / "train" / "elsewhere" / (dataset.root / place).name
    elsewhere.parent.mkdir()
    (dataset.root / place).rename(elsewhere)
    if changed:
        elsewhere.write_bytes(elsewhere.read_bytes()[:-1] + b"x")
    found = audit(layout, Depth.KNOWN, audited_at=datetime.now(UTC), threads=1).findings
    plan = plan_repair(layout, manifest, found)
    tidy(layout, manifest, plan, "repair")
    assert not elsewhere.exists()
    assert (dataset.root / place).exists() != changed
    assert name in plan.remake or not changed
    assert changed or sha256_of(dataset.root / place) == digest


@pytest.mark.parametrize("own_first", [False, True])
def test_of_two_rows_that_of_a_misplaced_file_stays(dataset, own_first: bool) -> None:
    """A sample with two rows whose file lies elsewhere keeps the row that the file is of."""
    dataset.commit("SB35_0")
    layout, manifest = dataset.layout, dataset.open()
    row = manifest.samples().head(1)
    place, other = row["path"][0], row.with_columns(sha256=pl.lit("f" * 64))
    rows = (row, other) if own_first else (other, row)
    overwrite_rows(layout.samples_table, pl.concat(rows), ["SB35_0"], {}, manifest.version)
    elsewhere = dataset.root / "train" / "elsewhere" / (dataset.root / place).name
    elsewhere.parent.mkdir()
    (dataset.root / place).rename(elsewhere)
    found = audit(layout, Depth.KNOWN, audited_at=datetime.now(UTC), threads=1).findings
    tidy(layout, manifest, plan_repair(layout, manifest, found), "repair")
    assert manifest.samples().select("path", "sha256").rows() == [(place, sha256_of(dataset.root / place))]
