"""What feeds a training run: samples per second and the time to the first batch, by four readers.

Run as ``python -m bench.readers --json FILE``. A simulation is made by the batch program, and its samples are varied
(turned by quarters, masses scaled), beyond a thousand copied, committed and packed. Every reader then runs in a process
of its own: first cold, when no page of its files lies in memory (names and sizes of files still may), then warm, when
all do. The readers:

- ``tree``: looks through ``train`` for files with ``halo`` in their names, and opens each;
- ``manifest``: the same files by the manifest's rows, `FileReader`;
- ``shards``: Zarr shards, `ShardReader`;
- ``tar``: tar files in sequence through a shuffle buffer, by the library `webdataset`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.cached_pages import cached_share, drop_cached
from bench.program import DATA, REPOSITORY, Case, suite_for
from bench.reading import BATCH, READERS, WORKERS, Run
from bind_core.config import DatasetConfig
from bind_core.dataset import Augmentation
from bind_core.rotations import matrix_quaternion
from bind_core.sample import Sample
from storage.layout import DatasetLayout
from storage.manifest import Manifest, layout_at, open_dataset
from storage.recording import new_run_id
from storage.samples import read_sample, write_sample
from storage.shards import PackFormat, pack
from storage.versions import resolve_version

SAMPLES = 20_000
SIDE = 32
"""Particles per side of the simulation whose samples are varied; of more, files are larger: 350 kB of 256."""
READ = 6_400
"""Samples of one run of a reader: enough for a rate, and few enough that a cold run hardly warms itself."""

_VARIED = 10
"""Simulations whose samples differ; those of further ones are copies, which no reader can know."""
_PACK_THREADS = 2


def make_dataset(root: Path, samples: int, case: Case) -> None:
    """Make a data set with as many samples, and its two packs, unless they are there.

    Parameters
    ----------
    root : Path
        Where.
    samples : int
        How many at least: the samples of the one simulation, times some.
    case : Case
        The simulation.
    """
    packs = {pack_format: root / "packs" / pack_format for pack_format in PackFormat}
    if all(folder.exists() for folder in packs.values()):
        return
    shutil.rmtree(root, ignore_errors=True)
    base = _base_dataset(root.with_name(f"{root.name}_base"), case)
    rows = Manifest(layout_at(base)).samples()
    attempt = Manifest(layout_at(base)).simulations()
    config = DatasetConfig.from_yaml(base / "dataset.yaml").model_copy(update={"output_root": root})
    layout = DatasetLayout(root, config.set_name)
    manifest = open_dataset(layout, config)
    run_id = new_run_id()
    numbers = range(-(-samples // rows.height))
    with ProcessPoolExecutor() as pool:
        written = list(pool.map(partial(_varied, base, layout, config, rows), numbers[:_VARIED]))
        copy = partial(_copied, layout)
        written += pool.map(copy, (written[number % _VARIED] for number in numbers[_VARIED:]), numbers[_VARIED:])
    attempts = [attempt.with_columns(simulation=pl.lit(f"{layout.set_name}_{number}")) for number in numbers]
    own = pl.lit(run_id).alias("run_id")
    manifest.commit(pl.concat(written).with_columns(own), pl.concat(attempts).with_columns(own), run_id)
    manifest.samples().write_parquet(root / "samples.parquet")
    for pack_format, folder in packs.items():
        pack(layout, resolve_version(layout), folder, pack_format=pack_format, threads=_PACK_THREADS)
    shutil.rmtree(base)


def _base_dataset(root: Path, case: Case) -> Path:
    suite = suite_for(case)
    shutil.rmtree(root, ignore_errors=True)
    program = [
        *(sys.executable, str(REPOSITORY / "process_simulations.py"), "--num_rotations", str(case.rotations)),
        *("--nbody_base", str(suite.dmo_base), "--hydro_base", str(suite.hydro_base)),
        *("--fof_nbody_base", str(suite.catalogue_base), "--param_file", str(suite.parameter_file)),
        *("--output_base_root", str(root)),
    ]
    subprocess.run(program, check=True, capture_output=True)
    return root


def _varied(base: Path, layout: DatasetLayout, config: DatasetConfig, rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """Write the samples of one more simulation; return their rows."""
    random = np.random.default_rng([1993, number])
    simulation = f"{layout.set_name}_{number}"
    written = []
    for row in rows.iter_rows(named=True):
        arrays = Augmentation.changed(read_sample(base / row["path"]).arrays(), int(random.integers(4)))
        factor = random.lognormal(0, 0.3)
        arrays |= {name: (factor * arrays[name]).astype(np.float32) for name in ("condition", "target", "large_scale")}
        sample = Sample.from_arrays(arrays)
        path = layout.sample_path("train", simulation, row["halo"], row["rotation"])
        file = write_sample(path, sample)
        quaternion = matrix_quaternion(sample.rotation)
        written.append(
            row
            | sample.map_masses(config.windows)
            | {f"quaternion_{part}": float(value) for part, value in zip("wxyz", quaternion, strict=True)}
            | {"sample_id": f"{simulation}_halo_{row['halo']}_rot_{row['rotation']}", "simulation": simulation}
            | {"split": "train", "path": layout.relative(path), "bytes": file.bytes, "sha256": file.sha256}
        )
    return pl.DataFrame(written, schema=rows.schema)


def _copied(layout: DatasetLayout, rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """Copy the samples of a simulation to those of one more; return their rows."""
    simulation = f"{layout.set_name}_{number}"
    layout.simulation_folder("train", simulation).mkdir(parents=True)
    copies = []
    for row in rows.iter_rows(named=True):
        path = layout.sample_path("train", simulation, row["halo"], row["rotation"])
        shutil.copyfile(layout.absolute(row["path"]), path)
        name = f"{simulation}_halo_{row['halo']}_rot_{row['rotation']}"
        copies.append(row | {"sample_id": name, "simulation": simulation, "path": layout.relative(path)})
    return pl.DataFrame(copies, schema=rows.schema)


def run_apart(reader: str, root: Path, workers: int, limit: int, *, digest: bool = False) -> Run:
    """Run a reader in a process of its own."""
    program = [sys.executable, "-m", "bench.reading", reader, "--root", str(root), "--workers", str(workers)]
    program += ["--read", str(limit), *(["--digest"] if digest else [])]
    ended = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(program)} failed: {ended.stderr[-2000:]}")
    return Run(**json.loads(ended.stdout.splitlines()[-1]))


def files_of(reader: str, root: Path) -> list[Path]:
    """Return the files that a reader reads, and those beside them."""
    folders = {"shards": root / "packs" / PackFormat.ZARR, "tar": root / "packs" / PackFormat.TAR}
    files = [path for path in folders.get(reader, root / "train").rglob("*") if path.is_file()]
    return [*files, root / "samples.parquet"] if reader == "manifest" else files


def measure(samples: int = SAMPLES, limit: int = READ, side: int = SIDE, *, keep: bool = False) -> dict[str, Any]:
    """Run all readers, cold and warm.

    Parameters
    ----------
    samples : int
        Samples of the data set.
    limit : int
        Samples that each run of a reader reads.
    side : int
        Particles per side of the simulation that they are made from.
    keep : bool
        Whether the data set stays for the next time.
    """
    root = DATA / f"readers_{samples}_{side}"
    make_dataset(root, samples, Case(side))
    rows = pl.read_parquet(root / "samples.parquet", columns=["bytes"])
    readers = {}
    for reader in READERS:
        files = files_of(reader, root)
        drop_cached(files)
        left = cached_share(files)
        cold = run_apart(reader, root, WORKERS, limit)
        for path in files:
            path.read_bytes()
        warm = run_apart(reader, root, WORKERS, limit)
        readers[reader] = {
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "cached at the cold start": left,
            "cold, first batch, s": cold.first_batch,
            "cold, samples/s": cold.per_second,
            "warm, first batch, s": warm.first_batch,
            "warm, samples/s": warm.per_second,
        }
    if not keep:
        shutil.rmtree(root)
    return {"samples": rows.height, "mean bytes": rows["bytes"].mean(), "read": limit, "readers": readers}


def table(results: dict[str, Any]) -> str:
    """Return the results as text, as ratios to the reader of the tree."""
    columns = ("cold, first batch, s", "cold, samples/s", "warm, first batch, s", "warm, samples/s")
    lines = [
        f"readers of {results['samples']:,} samples of {results['mean bytes'] / 1e3:.0f} kB: {results['read']:,} of "
        f"them read by {WORKERS} workers in batches of {BATCH}; in brackets, times as good as the tree",
        f"    {'':<10}" + "".join(f"{column:>24}" for column in columns) + f"{'cached at cold start':>24}",
    ]
    tree = results["readers"]["tree"]
    for reader, values in results["readers"].items():
        cells = []
        for column in columns:
            ratio = tree[column] / values[column] if column.endswith("batch, s") else values[column] / tree[column]
            cells.append(f"{values[column]:>14.4g} ({ratio:6.2f})")
        left = f"{values['cached at the cold start']:.2%}"
        lines.append(f"    {reader:<10}" + "".join(f"{cell:>24}" for cell in cells) + f"{left:>24}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Benchmark the readers of a training run.")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples of the data set [{SAMPLES}]")
    parser.add_argument("--read", type=int, default=READ, help=f"samples that a run reads [{READ}]")
    parser.add_argument("--particles", type=int, default=SIDE, help=f"particles per side of their origin [{SIDE}]")
    parser.add_argument("--keep", action="store_true", help="keep the data set for the next time")
    parser.add_argument("--json", type=Path, default=DATA / "readers.json", help="where the figures go")
    options = parser.parse_args()
    results = measure(options.samples, options.read, options.particles, keep=options.keep)
    print(table(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
