"""What becomes of the work folders of runs."""

from pathlib import Path

import pytest

from storage.layout import DatasetLayout
from tasks.leftover_work import remove_killed_work, work_kept
from tasks.submitted_jobs import SubmittedJob, SubmittedJobs


@pytest.fixture
def layout(tmp_path: Path) -> DatasetLayout:
    return DatasetLayout(tmp_path, "SB35")


def worked(layout: DatasetLayout, run: str, *, killed: bool) -> Path:
    """Leave the work folder of a run with a block in it."""
    folder = layout.work_folder / run
    with work_kept(folder):
        (folder / "block_00000").mkdir()
        (folder / "block_00000" / "SB35_0.result.json").write_text("{}")
        (locks,) = [path for path in folder.iterdir() if path.is_file()]
    assert not locks.exists()
    if killed:  # its lock is let go, and nobody has removed the file
        locks.touch()
    return folder


def test_only_the_work_of_killed_runs_is_removed(layout: DatasetLayout) -> None:
    """What a killed run left goes; the work of a living one, and what a run left of failed blocks, stay."""
    killed, ended = worked(layout, "killed", killed=True), worked(layout, "ended", killed=False)
    living = layout.work_folder / "living"
    with work_kept(living):
        remove_killed_work(layout)
        assert living.exists()
    assert not killed.exists()
    assert (ended / "block_00000" / "SB35_0.result.json").exists()


def test_work_that_a_submitted_job_may_do_is_kept(layout: DatasetLayout) -> None:
    """As long as a job is noted, the folder that it writes to stays; when it is forgotten, the folder goes."""
    folder = worked(layout, "killed", killed=True)
    jobs = SubmittedJobs(layout)
    jobs.note(SubmittedJob("bind-" + "0" * 16, layout.relative(folder / "block_00000"), "12"), {"SB35_0": "digest"})
    remove_killed_work(layout)
    assert folder.exists()
    jobs.forget(["SB35_0"])
    remove_killed_work(layout)
    assert not folder.exists()
