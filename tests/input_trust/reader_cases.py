"""Reads one mutated input after the other, in a process of its own, and says what came of each.

    python reader_cases.py SEEDS READER SEED FIRST COUNT

Every case is written to standard output twice, as a line of JSON: before and after it is read. So if this process dies
of one, it is the last that was begun.
"""

import faulthandler
import json
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attempts import attempt, require
from dataset_cases import DATASET_READERS
from mutations import Random, chosen, mutated_bytes, mutated_hdf5
from text_mutations import HOSTILE_WORDS, mutated_json, mutated_npz, mutated_text

from bind_core.config import BlackHolePolicy, DatasetConfig, StarPolicy
from bind_core.dataset import FileReader, SampleDataset
from bind_core.halos import halos_in, read_catalogue, read_catalogue_header
from bind_core.parameters import ParameterTable, read_parameter_table
from bind_core.particles import component_source, read_slices
from bind_core.plan import BlockPlan
from bind_core.snapshot import Component, read_header
from bind_core.suite import find_simulation
from bind_core.validation import validate_simulation
from storage.conditions import read_condition, read_condition_set
from storage.layout import DatasetLayout
from storage.results import SimulationResult
from storage.samples import encode_sample, read_sample
from storage.shards import read_identity
from storage.statistics import read_statistics
from storage.tags import read_tags

CPU_SECONDS_PER_CASE = 30
SECONDS_PER_CASE = 300
"""Where it waits for something instead; a busy machine may take its time."""
MEMORY_PER_CASE = 2 << 30
"""Address space beyond what the process has when it begins."""


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copy(source, folder / source.name))


def _config(seeds: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig.from_yaml(seeds / "dataset.yaml", settings)


def read_snapshot_particles(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read the header and the particles of all components."""
    files = sorted((seeds / "snapshots").iterdir())
    path = _copy(chosen(random, files), folder)
    mutated_hdf5(path, random, chosen(random, files))
    policies = {"stars": chosen(random, list(StarPolicy)), "black_holes": chosen(random, list(BlackHolePolicy))}
    config = _config(seeds, **policies)
    return attempt(path, lambda: _read_particles(path, config))


def _read_particles(path: Path, config: DatasetConfig) -> None:
    header = read_header(path)
    require(np.isfinite([header.box_size, header.redshift, header.omega0, header.hubble]).all(), "header")
    require(bool(np.isfinite(header.mass_table).all()), "mass table")
    for component in Component:
        source = component_source(component, [path], config)
        read = 0
        for part in read_slices(source, source.pieces):
            positions = part.positions
            require(bool(((positions >= 0) & (positions < np.float32(source.box_size))).all()), "positions")
            require(part.masses is None or len(part.masses) == len(positions), "masses")
            read += part.tally.particles
        require(read == source.count, "count")


def read_halos(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read a catalogue."""
    files = sorted((seeds / "catalogues").iterdir())
    path = _copy(chosen(random, files), folder)
    mutated_hdf5(path, random, chosen(random, files))

    def read() -> None:
        read_catalogue_header(path)
        catalogue = read_catalogue([path])
        require(len(catalogue.masses) == len(catalogue.centers) == len(catalogue.radii), "lengths")
        halos_in(catalogue, _config(seeds).strata[0])

    return attempt(path, read)


def inspect_a_simulation(seeds: Path, folder: Path, random: Random) -> str | None:
    """Find and validate a simulation, one of whose files is spoilt: findings come back, and no error at all."""
    shutil.copytree(seeds / "suite", folder / "suite", symlinks=True)
    files = sorted((folder / "suite").rglob("*.hdf5"))
    path = chosen(random, files)
    mutated_hdf5(path, random, chosen(random, sorted((seeds / "suite").rglob("*.hdf5"))))
    bases = {
        f"{name}_base": folder / "suite" / base
        for name, base in (("dmo", "DMO"), ("hydro", "Hydro"), ("catalogue", "FOF"))
    }
    config = _config(seeds, **bases)
    table = read_parameter_table(next((seeds / "suite").glob("*.txt")))
    inspection = validate_simulation(find_simulation("SB35_0", config), config, table)
    for finding in inspection.findings:
        require(bool(str(finding)) and bool(finding.as_dict()), "finding")
    return str(inspection.findings[0]) if inspection.findings else None


def read_parameters(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read a parameter table."""
    source = next((seeds / "suite").glob("*.txt"))
    path = folder / source.name
    path.write_bytes(mutated_text(source.read_text(), random, HOSTILE_WORDS))

    def read() -> None:
        table: ParameterTable = read_parameter_table(path)
        for row in table.rows.values():
            require(row.shape == (len(table.names),) and bool(np.isfinite(row).all()), "row")

    return attempt(path, read)


def read_configuration(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read a configuration, which then prints back as it was read."""
    path = folder / "dataset.yaml"
    source = chosen(random, ("dataset.yaml", "channels.yaml"))
    path.write_bytes(mutated_text((seeds / source).read_text(), random, HOSTILE_WORDS))

    def read() -> None:
        config = DatasetConfig.from_yaml(path)
        path.write_text(config.to_yaml(), encoding="utf-8")
        require(DatasetConfig.from_yaml(path) == config, "round trip")
        find_simulation(f"{config.set_name}_0", config)
        for transform in config.channel_transforms.values():
            require(bool(str(transform)) and bool(np.isfinite(transform.apply([0.0, 1e12])).all()), "transform")

    return attempt(path, read)


def read_a_sample(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read a sample, as the data set's own reader and as a training run do."""
    path = folder / "sample.npz"
    path.write_bytes(mutated_npz((seeds / "sample.npz").read_bytes(), random))
    refused = attempt(path, lambda: require(bool(encode_sample(read_sample(path))), "sample"))

    def train() -> None:
        rows = FileReader(seeds).rows
        reader = FileReader(folder, rows.with_columns(path=rows["path"].str.replace(".*", "sample.npz")))
        for array in SampleDataset(reader)[0].values():
            require(not array.dtype.hasobject, "object")

    return attempt(path, train) or refused


def read_rows(seeds: Path, folder: Path, random: Random) -> str | None:
    """Open the rows that a training run reads."""
    path = folder / "samples.parquet"
    path.write_bytes(mutated_bytes((seeds / path.name).read_bytes(), random))

    def read() -> None:
        FileReader(folder)

    def choose() -> None:
        _copy(seeds / "sample.npz", folder)
        SampleDataset(FileReader(folder), split="train", where="halo_mass > 0")[0]

    condition = ""  # what the message is about where the rows lack a column
    return attempt(folder, read) or attempt(condition, choose)


def read_normalization(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read normalization statistics, one of whose files is spoilt."""
    files = [_copy(file, folder) for file in sorted((seeds / "statistics").glob("*.npz"))]
    path = chosen(random, files)
    path.write_bytes(mutated_npz(path.read_bytes(), random))

    def read() -> None:
        for row in read_statistics(folder).as_rows():
            require(bool(np.isfinite([row["mean"], row["std"]]).all()) and float(row["std"]) > 0, "scores")

    return attempt(folder, read)


def read_the_tags(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read the tags of a data set."""
    path = folder / "manifest" / "tags" / "first.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(mutated_json((seeds / "first.json").read_text(), random))

    def read() -> None:
        for tag in read_tags(DatasetLayout(folder, "SB35")):
            require(json.loads(json.dumps(tag.as_dict()))["version"] == int(tag.version), "version")
            require(tag.committed_at.tzinfo is not None and tag.tagged_at.tzinfo is not None, "time zones")
            require(all(isinstance(text, str) for text in (tag.name, tag.note, tag.user, tag.host)), "text")

    return attempt(path, read)


def read_conditions(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read the conditions of a simulation, with either of their files spoilt."""
    index, maps = (_copy(seeds / "conditions" / name, folder) for name in ("conditions.json", "halo_0.npz"))
    path = chosen(random, (index, maps))
    spoil = mutated_json(path.read_text(), random) if path == index else mutated_npz(path.read_bytes(), random)
    path.write_bytes(spoil)

    def read() -> None:
        found = read_condition_set(folder)
        require(isinstance(found.simulation, str) and np.isfinite(float(found.box_size)), "set")
        require(all(isinstance(halo, int) for halo in found.halos), "halos")
        _, grid = read_condition(folder, 0)
        require(grid.rotation.shape == (3, 3) and grid.center.shape == (3,), "grid")

    return attempt(folder, read)


def read_a_pack(seeds: Path, folder: Path, random: Random) -> str | None:
    """Read what a pack says that it holds."""
    path = folder / "pack.json"
    path.write_bytes(mutated_json((seeds / "pack.json").read_text(), random))

    def read() -> None:
        identity = read_identity(folder)
        require(isinstance(identity.version, int) and isinstance(identity.where, str), "identity")

    return attempt(folder, read)


def read_a_plan(seeds: Path, _folder: Path, random: Random) -> str | None:
    """Read the plan of a block, and what its job made of it."""
    text = mutated_json((seeds / "plan.json").read_text(), random).decode("utf-8", "replace")
    result = mutated_json((seeds / "result.json").read_text(), random).decode("utf-8", "replace")

    def read() -> None:
        require(bool(BlockPlan.from_json(text, "plan.json").to_json()), "plan")

    def read_result() -> None:
        require(bool(SimulationResult.from_json(result, "result.json").to_json()), "result")

    return attempt("plan.json", read) or attempt("result.json", read_result)


READERS: dict[str, Callable[[Path, Path, Random], str | None]] = {
    "snapshot": read_snapshot_particles,
    "catalogue": read_halos,
    "simulation": inspect_a_simulation,
    "parameters": read_parameters,
    "configuration": read_configuration,
    "sample": read_a_sample,
    "rows": read_rows,
    "statistics": read_normalization,
    "tags": read_the_tags,
    "conditions": read_conditions,
    "pack": read_a_pack,
    "plan": read_a_plan,
    **DATASET_READERS,
}


def main() -> None:
    """Read the cases that were asked for."""
    seeds, reader = Path(sys.argv[1]), sys.argv[2]
    seed, first, count = map(int, sys.argv[3:])
    faulthandler.enable()
    pages = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))
    resource.setrlimit(resource.RLIMIT_AS, (pages * 1024 + MEMORY_PER_CASE,) * 2)
    for limit in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(limit, signal.SIG_DFL)
    for case in range(first, first + count):
        print(json.dumps({"case": case}), flush=True)
        with tempfile.TemporaryDirectory(prefix="case-") as name:
            signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_PER_CASE)
            random = np.random.default_rng([seed, case])
            try:
                said = READERS[reader](seeds, Path(name), random)
                outcome = {"case": case, "outcome": "refused" if said else "read"}
            except BaseException:
                outcome = {"case": case, "outcome": "wrong", "why": traceback.format_exc()}
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
