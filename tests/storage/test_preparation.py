"""What a run does to the root of a data set before it begins."""

from pathlib import Path

import pytest

from storage.files import atomic_write, is_temporary
from storage.layout import DatasetLayout
from storage.preparation import prepare_root


@pytest.mark.parametrize(
    "folder", [".", "data", "audit", ".work", "manifest/tags", ".work/20260101T000000Z-abcdef/block_0001/logs"]
)
def test_what_killed_runs_left_half_written_is_removed(tmp_path: Path, folder: str) -> None:
    """Wherever a process was killed while it wrote, the next run removes its temporary file, and nothing else."""
    layout = DatasetLayout(tmp_path, "SB35")
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.json").write_text("{}")
    leftover = place / ".plan.json.0123456789abcdef.bind-tmp"
    leftover.write_bytes(b"half")
    assert is_temporary(leftover)

    def prepared_meanwhile(stream: object) -> None:
        prepare_root(layout)

    atomic_write(place / "being_written", prepared_meanwhile)
    assert not leftover.exists()
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["being_written", "plan.json"]
