"""The manifest at the size of a whole suite: 1,024 simulations with 500 samples each, committed block by block.

Run as ``python -m bench.manifest_scale --json FILE``. The suite has catalogues and empty snapshots, the samples' files
are sparse, and everything else is made by the same code as in a run: plan, rows, checks, commits. The commands are
measured as processes, from start to end, the fastest of three.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import h5py
import numpy as np
import polars as pl
from deltalake import write_deltalake

from bench.program import DATA
from bind_core.config import DatasetConfig
from bind_core.plan import SimulationPlan, Target
from bind_core.splits import split_of
from bind_core.suite import Role
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.provenance import with_snapshot_digests
from storage.recording import SimulationOutcome, commit_outcomes, new_run_id
from storage.results import SampleRecord
from storage.workload import SimulationWork, plan_workload

SIMULATIONS = 1024
HALOS = 50
"""Of each simulation; with ten orientations each, 500 samples."""
REPEATS = 3
COMPARED_COMMITS = 10
"""Commits that are compared, at the beginning, at the end, and to a larger table."""
COMPACTION_CYCLE = 32
"""Commits over which the cost of merging files is spread."""
FLAT = 1.5
"""Ratio of two commits' times below which they count as equal: the number of small files goes up and down."""
ENLARGED_BY = 3
"""How many times as large as the data set the table is that further commits go to."""

_SET = "SB35"
_FURTHER = 100_000
"""Number of the first simulation that is committed to the larger table."""
_BYTES_OF_A_SAMPLE = 200_000
_LEAST_MASS = 1e13
_GROUPED = (
    "SELECT split, stratum, count(*) AS samples, avg(halo_mass) AS mean_mass FROM samples GROUP BY ALL ORDER BY ALL"
)
_ONE_SAMPLE = "SELECT * FROM samples WHERE sample_id = 'SB35_7_halo_0_rot_0'"


def write_suite(folder: Path, simulations: int, halos: int) -> DatasetConfig:
    """Write the catalogues, empty snapshots and parameter table of a suite; return the configuration of a data set."""
    rng = np.random.default_rng(1993)
    bases = {name: folder / name for name in ("dmo_base", "hydro_base", "catalogue_base")}
    rows = ["#Name Omega0 sigma8 seed"]
    for number in range(simulations):
        name = f"{_SET}_{number}"
        for base in bases.values():
            (base / name).mkdir(parents=True)
        (bases["dmo_base"] / name / "snapshot_090.hdf5").touch()
        (bases["hydro_base"] / name / "snapshot_090.hdf5").touch()
        masses = np.sort(_LEAST_MASS * (1.001 + np.minimum(rng.pareto(1.2, halos), 50)))[::-1]
        with h5py.File(bases["catalogue_base"] / name / "groups_090.hdf5", "w") as file:
            header = file.create_group("Header").attrs
            header["Ngroups_ThisFile"] = header["Ngroups_Total"] = np.uint64(halos)
            header["NumFiles"], header["BoxSize"], header["Redshift"] = np.int32(1), 50_000.0, 0.0
            group = file.create_group("Group")
            group.create_dataset("GroupPos", data=rng.uniform(0, 50_000, (halos, 3)).astype(np.float32))
            group.create_dataset("Group_M_Crit200", data=(masses / 1e10).astype(np.float32))
            group.create_dataset("Group_R_Crit200", data=(163 * np.cbrt(masses / 1e12)).astype(np.float32))
        rows.append(f"{name} {rng.uniform(0.1, 0.5):.6f} {rng.uniform(0.6, 1.0):.6f} {number}")
    table = folder / f"CosmoAstroSeed_IllustrisTNG_L50n512_{_SET}.txt"
    table.write_text("\n".join(rows) + "\n")
    return DatasetConfig(**bases, parameter_file=table, output_root=folder / "dataset", set_name=_SET)


def made_up(work: SimulationWork, config: DatasetConfig, layout: DatasetLayout) -> SimulationOutcome:
    """Return the outcome of a simulation as if it had been projected, with sparse files for its samples."""
    split = split_of(work.files.name, work.files.number, config)
    layout.simulation_folder(split, work.files.name).mkdir(parents=True, exist_ok=True)
    records = []
    for target in work.to_make:
        path = layout.sample_path(split, target.simulation, target.halo, target.rotation)
        digest = hashlib.sha256(target.sample_id.encode()).hexdigest()
        size = _BYTES_OF_A_SAMPLE + int(digest[:3], 16)
        with path.open("wb") as file:
            file.truncate(size)
        masses = _masses(target, config, int(digest[:8], 16) / 2**32)
        records.append(SampleRecord(target.sample_id, layout.relative(path), size, digest, masses))
    plan = SimulationPlan(work.files.name, split, (0.3, 0.8), work.to_make)
    snapshots = [file.path for file in work.inputs if file.role in (Role.DMO, Role.HYDRO)]
    read = {path: hashlib.sha256(path.encode()).hexdigest() for path in snapshots}
    return SimulationOutcome(work, (), with_snapshot_digests(work.inputs, read), plan, tuple(records))


def commit_all(config: DatasetConfig) -> list[float]:
    """Commit a whole suite block by block; return the seconds of each commit."""
    layout = DatasetLayout(config.output_root, config.set_name)
    manifest = open_dataset(layout, config)
    run_id = new_run_id()
    blocks = plan_workload(config, manifest).blocks(config.simulations_per_block)
    seconds = []
    for number, block in enumerate(blocks, start=1):
        outcomes = [made_up(work, config, layout) for work in block]
        seconds.append(_seconds(lambda outcomes=outcomes: commit_outcomes(manifest, config, outcomes, run_id)))
        if number % 64 == 0:
            print(f"  {number} of {len(blocks)} blocks committed", flush=True)
    return seconds


def commit_to_larger(config: DatasetConfig, folder: Path) -> list[float]:
    """Commit blocks to a copy of the manifest with several times as many rows; return the seconds of each."""
    layout = DatasetLayout(folder, config.set_name)
    shutil.copytree(config.output_root / "manifest", folder / "manifest")
    rows = Manifest(layout).samples()
    for copy in range(1, ENLARGED_BY):
        renamed = rows.with_columns(
            pl.col("sample_id", "simulation").str.replace(f"{_SET}_", f"{_SET}_{copy}x"),
            pl.col("path").str.replace("sim_", f"sim_{copy}x"),
        )
        for part in renamed.iter_slices(2**17):
            write_deltalake(layout.samples_table, part.to_arrow(compat_level=pl.CompatLevel.oldest()), mode="append")
    further = config.model_copy(update={"output_root": folder})
    manifest = open_dataset(layout, further)
    works = plan_workload(config, manifest).simulations[: COMPARED_COMMITS * config.simulations_per_block]
    seconds = []
    for start in range(0, len(works), config.simulations_per_block):
        block = works[start : start + config.simulations_per_block]
        outcomes = [made_up(_renamed(work), further, layout) for work in block]
        seconds.append(_seconds(lambda outcomes=outcomes: commit_outcomes(manifest, further, outcomes, new_run_id())))
    return seconds


def measure(simulations: int, halos: int) -> dict[str, Any]:
    """Make the data set, commit by commit, and ask it."""
    folder = DATA / "manifest_scale"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = write_suite(folder, simulations, halos)
    seconds = commit_all(config)
    first, last = seconds[1 : 1 + COMPARED_COMMITS], seconds[-COMPARED_COMMITS:]  # the first one makes the tables
    larger = commit_to_larger(config, folder / "larger")
    root = str(config.output_root)
    results = {
        "samples": Manifest(DatasetLayout(config.output_root, config.set_name)).samples().height,
        "rows": [
            _row("status", 5, _command("status", "--dataset", root)),
            _row("query, grouped", 1, _command("query", _GROUPED, "--dataset", root)),
            _row("query, one sample", 1, _command("query", _ONE_SAMPLE, "--dataset", root)),
            _row("audit --depth known", 20, _command("audit", "--depth", "known", "--dataset", root)),
            _row("generate --dry-run", 10, _command("generate", "--dry-run", "--dataset", root)),
        ],
        "commits": {
            f"first {COMPARED_COMMITS}, s": median(first),
            f"last {COMPARED_COMMITS}, s": median(last),
            f"to a table {ENLARGED_BY} times as large, s": median(larger),
            f"first {COMPACTION_CYCLE}, merging files included, mean s": fmean(seconds[:COMPACTION_CYCLE]),
            f"last {COMPACTION_CYCLE}, merging files included, mean s": fmean(seconds[-COMPACTION_CYCLE:]),
            "slowest, s": max(seconds),
        },
        "growth": {
            "last / first": median(last) / median(first),
            "to the larger table / last": median(larger) / median(last),
        },
        "seconds of each commit": seconds,
    }
    shutil.rmtree(folder)
    return results


def table(results: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = [f"manifest of {results['samples']:,} samples"]
    for row in results["rows"]:
        verdict = "reached" if row["seconds"] <= row["goal"] else "missed"
        lines.append(f"    {row['what']:<24} {row['seconds']:6.2f} s   goal <= {row['goal']} s: {verdict}")
    lines.append("commits of 2,000 samples")
    lines += [f"    {name:<46} {value:6.3f}" for name, value in results["commits"].items()]
    for name, ratio in results["growth"].items():
        lines.append(f"    {name:<46} {ratio:6.2f}   goal <= {FLAT}: {'reached' if ratio <= FLAT else 'missed'}")
    return "\n".join(lines)


def _masses(target: Target, config: DatasetConfig, share: float) -> dict[str, float]:
    """Return made-up masses of a sample's maps that could be true."""
    condition = target.halo_mass * (1.1 + share)
    masses = {
        "mass_condition": condition,
        "mass_target_dark_matter": 0.84 * condition,
        "mass_target_gas": (0.12 + 0.02 * share) * condition,
        "mass_target_stars": 0.02 * condition,
    }
    wider = {f"mass_large_scale_{i}": condition * size**2 / 10 for i, size in enumerate(config.context_sizes)}
    return masses | wider


def _renamed(work: SimulationWork) -> SimulationWork:
    """Return the work of a simulation of another name, all of whose samples are to be made."""
    predicted = replace(work.predicted, simulation=f"{_SET}_{_FURTHER + (work.files.number or 0)}")
    return replace(
        work,
        files=replace(work.files, name=predicted.simulation),
        predicted=predicted,
        missing=frozenset(predicted.keys),
        to_make=predicted.targets(),
    )


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _command(*arguments: str) -> float:
    """Return the seconds of a command from start to end, the fastest of some."""
    program = [str(Path(sys.executable).with_name("bind-data")), *arguments]
    return min(_seconds(lambda: _run(program)) for _ in range(REPEATS))


def _run(program: Sequence[str]) -> None:
    ended = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"}, check=False)
    if "Traceback" in ended.stderr or ended.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(program)} failed: {ended.stderr[-2000:]}")


def _row(what: str, goal: float, seconds: float) -> dict[str, Any]:
    return {"what": what, "goal": goal, "seconds": seconds}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Benchmark the manifest at the size of a suite.")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, help=f"simulations [{SIMULATIONS}]")
    parser.add_argument("--halos", type=int, default=HALOS, help=f"haloes of each simulation [{HALOS}]")
    parser.add_argument("--json", type=Path, default=DATA / "manifest_scale.json", help="where the figures go")
    options = parser.parse_args()
    results = measure(options.simulations, options.halos)
    print(table(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
