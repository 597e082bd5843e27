"""A small sound data set, its pack, and what runs on it leave each other, to be spoilt."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from block_runs import make, manifest_of, project
from deltalake import DeltaTable

from bind_core.config import DatasetConfig, Stratum
from bind_core.suite import Role
from storage.digest_memory import SnapshotDigests
from storage.import_check import MapComparison, Verdict
from storage.import_report import Refusal, SimulationRecord
from storage.layout import DatasetLayout
from storage.provenance import InputFile, from_json
from storage.replacement import NewFile, OldFile, Replacement, staged_path
from storage.shards import pack
from storage.versions import resolve_version
from tasks.progress import Progress
from tasks.submitted_jobs import SubmittedJob, SubmittedJobs


def write_sound_dataset(folder: Path, config: DatasetConfig) -> None:
    """Write what `dataset_cases` takes its inputs from, beside the suite of a configuration."""
    config = config.model_copy(update={"output_root": folder / "dataset"})
    layout = DatasetLayout(config.output_root, config.set_name)
    for rotations in (1, 2, 3):
        make(config.model_copy(update={"strata": (Stratum(rotations=rotations),)}), run_id="run")
        if rotations == 2:  # a checkpoint, and a commit after it
            for table in (layout.samples_table, layout.simulations_table):
                DeltaTable(table).create_checkpoint()
    pack(layout, resolve_version(layout), folder / "packed")
    _write_journal(folder, layout, config)
    _write_results(folder, config)
    _write_memories(folder, config)


def _write_journal(folder: Path, layout: DatasetLayout, config: DatasetConfig) -> None:
    """Write that of a run that has committed all samples, as the manifest says."""
    rows = manifest_of(config).samples().select("sample_id", "path").rows()
    new = [NewFile(name, layout.relative(staged_path(layout, "run", layout.root / path)), path) for name, path in rows]
    old = [OldFile(name, path, "0" * 64) for name, path in rows]
    gone = OldFile("SB35_0_halo_9_rot_9", "train/sim_0/sim_0_halo_9_rot_9.npz", "0" * 64)
    (folder / "journal.json").write_text(Replacement("run", tuple(new), (*old, gone)).to_json())


def _write_results(folder: Path, config: DatasetConfig) -> None:
    """Write a block's plan, its samples, its result and its progress, of which nothing is committed."""
    block = project(config.model_copy(update={"output_root": folder / "uncommitted"}))
    assert block.plan is not None
    (folder / "block.json").write_text(block.plan.to_json())
    (folder / "SB35_0.result.json").write_text(block.results["SB35_0"].to_json())
    progress = [Progress("SB35_0", "gas", done, 8) for done in range(8)]
    (folder / "progress.jsonl").write_text("".join(f"{json.dumps(asdict(each))}\n" for each in progress))


def _write_memories(folder: Path, config: DatasetConfig) -> None:
    layout = DatasetLayout(folder / "remembering", config.set_name)
    SubmittedJobs(layout).note(
        SubmittedJob("bind-0123456789abcdef", ".work/run/block_00000", "42"), {"SB35_0": "0" * 64}
    )
    (layout.work_folder / "jobs" / "SB35_0.json").rename(folder / "job.json")
    inputs = from_json(manifest_of(config).latest_simulations()["inputs"][0])
    snapshot: InputFile = next(file for file in inputs if file.role == Role.DMO.value)
    snapshot = replace(snapshot, mtime="2026-11-01T00:00:00+00:00")  # those of a file just written are not kept
    (folder / "snapshot.json").write_text(json.dumps(asdict(snapshot)))
    SnapshotDigests(layout, config).of(snapshot)
    (layout.work_folder / "snapshot_digests.json").rename(folder / "digests.json")
    compared = MapComparison("SB35_0_halo_0_rot_0", "gas", Verdict.MATCHES, 1e-5, 0.0, 0.1, 0.1, 0.99)
    record = SimulationRecord("SB35_0", "train", 2, 1, [Refusal("a.npz", "no zip")], [], [compared])
    record.write(layout)
    next(layout.import_folder.rglob("SB35_0.json")).rename(folder / "record.json")
