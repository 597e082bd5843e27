"""Cases of what lies in a data set or beside it: tables, packs, and what runs leave each other."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import polars as pl
from attempts import attempt, require
from mutations import Random, chosen, mutated_bytes
from rich.console import Console
from text_mutations import mutated_json

from bind_core.config import DatasetConfig
from bind_core.dataset import SampleDataset, ShardReader
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.plan import BlockPlan
from storage.blocks import block_outcomes, screen_block
from storage.compaction import keep_compact, remove_leftovers
from storage.digest_memory import SnapshotDigests
from storage.files import sha256_of
from storage.import_report import SimulationRecord
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.provenance import InputFile
from storage.recording import commit_outcomes
from storage.shards import CHECKSUMS_FILE, verify_pack
from storage.tables import BEFORE_THE_FIRST, append_rows, open_table, overwrite_rows
from storage.versions import resolve_version
from storage.workload import plan_workload
from tasks.block_files import progress_in, result_file, results_in
from tasks.progress import RunProgress
from tasks.submitted_jobs import SubmittedJobs

_CHECKSUM = 4


def _dataset(seeds: Path, folder: Path, name: str = "dataset") -> DatasetLayout:
    """Copy a data set, with a folder beside it that nothing may touch."""
    shutil.copytree(seeds / name, folder / "dataset")
    (folder / "outside").mkdir()
    (folder / "outside" / "kept.npz").write_bytes(b"kept")
    return DatasetLayout(folder / "dataset", "SB35")


def _config(seeds: Path, layout: DatasetLayout) -> DatasetConfig:
    return DatasetConfig.from_yaml(seeds / "dataset" / "dataset.yaml", {"output_root": layout.root})


def _require_untouched(folder: Path) -> None:
    found = [path.relative_to(folder / "outside").as_posix() for path in (folder / "outside").rglob("*")]
    require(found == ["kept.npz"], f"what lies outside is now {found}")
    require((folder / "outside" / "kept.npz").read_bytes() == b"kept", "a file outside has another content")


def _hostile_paths(folder: Path) -> tuple[str, ...]:
    kept = folder / "outside" / "kept.npz"
    return (str(kept), f"file://{kept}", "../outside/kept.npz", "../../outside/kept.npz", "dataset.yaml", "..", "")


def _with_paths(values: Any, random: Random, folder: Path) -> Any:
    """Return JSON with some of its texts that are paths led elsewhere."""
    if isinstance(values, dict):
        return {
            key: chosen(random, _hostile_paths(folder))
            if key in _PATHS and random.random() < 0.4
            else _with_paths(value, random, folder)
            for key, value in values.items()
        }
    return [_with_paths(value, random, folder) for value in values] if isinstance(values, list) else values


_PATHS = {"path", "staged", "written_to", "folder", "sha256", "run_id", "number", "name", "simulation"}


def _spoilt_json(text: str, random: Random, folder: Path) -> bytes:
    if random.random() < 0.4:
        return json.dumps(_with_paths(json.loads(text), random, folder)).encode()
    return mutated_json(text, random)


def _spoilt_lines(text: str, random: Random, folder: Path) -> bytes:
    """Spoil one of some lines, each of which is JSON."""
    lines = text.splitlines()
    at = int(random.integers(len(lines)))
    spoilt = [line.encode() for line in lines]
    spoilt[at] = _spoilt_json(lines[at], random, folder)
    return b"\n".join(spoilt)


def _spoilt_parquet(content: bytes, random: Random) -> bytes:
    """Spoil the bytes of a Parquet file, or write another table."""
    if random.random() < 0.5:
        return mutated_bytes(content, random)
    rows = pl.read_parquet(BytesIO(content))
    column = chosen(random, rows.columns)
    others: tuple[Callable[[], pl.DataFrame], ...] = (
        lambda: rows.drop(column),
        lambda: rows.rename({column: "unknown"}),
        lambda: rows.with_columns(pl.lit(None).alias(column)),
        lambda: rows.with_columns(pl.lit("../../x", pl.String).alias(column)),
        lambda: rows.with_columns(pl.lit(-1, pl.Int64).alias(column)),
        lambda: rows.with_columns(pl.lit(float("nan")).alias(column)),
        lambda: rows.with_columns(pl.lit("[" * 20_000).alias(column)),
        lambda: pl.concat([rows, rows]),
        lambda: rows.clear(),
        lambda: rows.select(column),
    )
    spoilt = BytesIO()
    chosen(random, others)().write_parquet(spoilt)
    return spoilt.getvalue()


def read_the_tables(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read a data set of which one file of a table is spoilt, plan with it, and add to it."""
    layout = _dataset(seeds, folder)
    path = chosen(random, sorted(file for file in (layout.root / "manifest").rglob("*") if file.is_file()))
    table = path.parent if path.parent.name != "_delta_log" else path.parent.parent
    added = pl.read_parquet(next(iter(sorted(table.glob("*.parquet")))))
    if random.random() < 0.05:
        path.unlink()
    elif path.suffix == ".parquet":
        path.write_bytes(_spoilt_parquet(path.read_bytes(), random))
    else:
        path.write_bytes(_spoilt_lines(path.read_text(), random, folder))
    manifest = Manifest(layout)
    config = _config(seeds, layout)
    asked: tuple[Callable[[], Any], ...] = (
        manifest.samples,
        manifest.latest_simulations,
        manifest.samples_made_alike,
        lambda: manifest.run_of_samples(["SB35_0_halo_0_rot_0"]),
        lambda: manifest.samples(0),
        lambda: resolve_version(layout),
        lambda: manifest.versions[-1].committed_at.isoformat() if manifest.versions else None,
        lambda: len(plan_workload(config, manifest, None).outstanding),
        lambda: append_rows(table, added, {"action": "generate"}),
        lambda: overwrite_rows(table, added, ["SB35_0"], {"action": "refresh"}, _version_of(table)),
        lambda: keep_compact(table, {}, datetime.now(UTC)),
    )
    refused = [said for ask in asked if (said := attempt(layout.root, ask))]
    remove_leftovers(table, datetime.now(UTC) + timedelta(days=2))
    _require_untouched(folder)
    return refused[0] if refused else None


def _version_of(table: Path) -> int:
    opened = open_table(table)
    return BEFORE_THE_FIRST if opened is None else opened.version()


def _sealed(content: bytes, random: Random) -> bytes:
    """Spoil what a checksum stands behind, and let the checksum agree."""
    spoilt = mutated_bytes(content[:-_CHECKSUM], random)
    return spoilt + google_crc32c.value(spoilt).to_bytes(_CHECKSUM, "little")


def _spoilt_shard(content: bytes, random: Random, per_shard: int) -> bytes:
    """Spoil a shard's bytes, its index or one of its chunks."""
    kind = random.random()
    index = 16 * per_shard + _CHECKSUM
    if kind < 0.3:
        return mutated_bytes(content, random)
    if kind < 0.6:
        return content[:-index] + _sealed(content[-index:], random)
    places = np.frombuffer(content[-index:-_CHECKSUM], "<u8").reshape(-1, 2)
    offset, size = places[int(random.integers(2))].tolist()
    chunk = bytearray(_sealed(content[offset : offset + size], random))
    return content[:offset] + bytes(chunk[:size]) + content[offset + size :]


def read_shards(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read samples of a pack, and hold it against its checksums."""
    pack = folder / "pack"
    shutil.copytree(seeds / "packed", pack)
    path = chosen(random, sorted(file for file in pack.rglob("*") if file.is_file()))
    before = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(_spoilt_json(path.read_text(), random, folder))
    elif path.suffix == ".parquet":
        path.write_bytes(_spoilt_parquet(path.read_bytes(), random))
    else:
        path.write_bytes(_spoilt_shard(path.read_bytes(), random, 128))

    def read() -> None:
        samples = SampleDataset(ShardReader(pack), where="halo_mass > 0")
        for index in (0, len(samples) - 1):
            for array in samples[index].values():
                require(not array.dtype.hasobject and array.nbytes < 1 << 20, "array")

    def verify() -> None:
        problems = verify_pack(DatasetLayout(seeds / "dataset", "SB35"), pack)
        changed = path.read_bytes() != before and path.name != CHECKSUMS_FILE
        require(bool(problems) or not changed, f"{path.name} is another, and nothing is wrong with it")

    condition = ""  # what the message is about where the rows lack a column, or there are none
    return attempt(condition if path.suffix == ".parquet" else pack, read) or attempt(pack, verify)


def read_jobs(seeds: Path, folder: Path, random: Random) -> str | None:
    """Find the jobs of an earlier run that are making what is asked for."""
    layout = DatasetLayout(folder, "SB35")
    path = folder / ".work" / "jobs" / "SB35_0.json"
    path.parent.mkdir(parents=True)
    sound = (seeds / "job.json").read_text()
    path.write_bytes(_spoilt_json(sound, random, folder))
    found = SubmittedJobs(layout).making({"SB35_0": json.loads(sound)["digest"]})
    for job in found:
        require(job.number == "" or job.number.isdecimal(), f"the number {job.number!r}")
        require(job.name.startswith("bind-") and job.name.isprintable(), f"the name {job.name!r}")
        require(layout.absolute(job.folder).is_relative_to(folder / ".work"), f"the folder {job.folder!r}")
    return None if found else "passed over"


def read_a_journal(seeds: Path, folder: Path, random: Random) -> str | None:
    """Finish what a killed run has committed."""
    layout = _dataset(seeds, folder)
    path = layout.staging_folder / "run" / "0123456789abcdef.json"
    path.parent.mkdir(parents=True)
    journal = json.loads((seeds / "journal.json").read_text())
    for new in journal["new"]:
        staged = layout.root / new["staged"]
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(b"anew")
    path.write_bytes(_spoilt_json(json.dumps(journal), random, folder))
    before = {file: sha256_of(file) for file in layout.root.rglob("*") if _is_no_sample(file)}
    manifest = Manifest(layout)
    refused = attempt(path, lambda: require(manifest.unfinished() is not None, "found")) or attempt(
        path, lambda: require(manifest.finish_interrupted() is not None, "finished")
    )
    after = {file: sha256_of(file) for file in before if file.is_file()}
    require(after == before, "something else than a sample was replaced or removed")
    _require_untouched(folder)
    return refused


def _is_no_sample(path: Path) -> bool:
    return path.is_file() and path.suffix != ".npz" and ".staged" not in path.parts and ".work" not in path.parts


def read_results(seeds: Path, folder: Path, random: Random) -> str | None:
    """Take what the ranks of a block have left, and record it: only whole samples of the plan get rows."""
    layout = _dataset(seeds, folder, "uncommitted")
    config = _config(seeds, layout)
    block = BlockPlan.from_json((seeds / "block.json").read_bytes(), "block.json")
    path = result_file(folder, "SB35_0")
    path.write_bytes(_spoilt_json((seeds / path.name).read_text(), random, folder))
    (folder / "progress.jsonl").write_bytes(_spoilt_lines((seeds / "progress.jsonl").read_text(), random, folder))
    progress = RunProgress(8, Console(file=(folder / "console").open("w")))
    for report in progress_in(folder, 0)[0]:
        progress.report(report)

    def record() -> None:
        manifest = open_dataset(layout, config)
        screened = screen_block(
            plan_workload(config, manifest, None).outstanding,
            config,
            read_parameter_table(find_parameter_file(config)),
        )
        commit_outcomes(manifest, config, block_outcomes(layout, screened, block, results_in(folder, block)), "run")
        planned = {target.sample_id for target in block.simulations[0].targets}
        for name, place, digest, size in manifest.samples().select("sample_id", "path", "sha256", "bytes").rows():
            require(name in planned and place.endswith(f"{name.removeprefix('SB35_')}.npz"), f"the sample {name}")
            require(sha256_of(layout.absolute(place)) == digest, f"the digest of {name}")
            require(layout.absolute(place).stat().st_size == size, f"the size of {name}")

    refused = attempt("", record)
    _require_untouched(folder)
    return refused


def read_what_is_remembered(seeds: Path, folder: Path, random: Random) -> str | None:
    """Take digests and comparisons that earlier commands have kept; what is none is forgotten."""
    layout = DatasetLayout(folder, "SB35")
    names = {"digests.json": folder / ".work" / "snapshot_digests.json", "record.json": _record_of(folder)}
    for name, path in names.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(_spoilt_json((seeds / name).read_text(), random, folder))
    snapshot = InputFile(**json.loads((seeds / "snapshot.json").read_text()))
    digest = SnapshotDigests(layout, _config(seeds, layout)).of(snapshot)
    require(digest is None or isinstance(digest, str), f"the digest {digest!r}")
    record = SimulationRecord.read(layout, "SB35_0")
    require(all(isinstance(name, str) for name in record.compared()), "comparisons")
    record.write(layout)
    return None if record.comparisons else "forgotten"


def _record_of(folder: Path) -> Path:
    return folder / "import" / "simulations" / "SB35_0.json"


DATASET_READERS: dict[str, Callable[[Path, Path, Random], str | None]] = {
    "tables": read_the_tables,
    "shards": read_shards,
    "jobs": read_jobs,
    "journal": read_a_journal,
    "results": read_results,
    "remembered": read_what_is_remembered,
}
