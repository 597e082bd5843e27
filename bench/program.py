"""The whole program, from files to finished samples: against the plain pipeline, over ranks, in memory and in growth.

Run as ``python -m bench.program --json FILE``. Mock simulations are made on first use and kept in ``build/bench``.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.memory import Measured, on_one_core, one_core, run_measured
from bind_core.config import DatasetConfig
from bind_core.halos import halos_in, read_catalogue
from bind_core.plan import predicted_samples
from bind_core.suite import find_simulation
from storage.mock_suite import CatalogueLayout, Compression, MockFormat, MockSuite, SnapshotLayout, write_mock_suite
from tasks.launchers import mpiexec, without_mpi_variables

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "build" / "bench"
HALOS = 10
ROTATIONS = 10
PLAIN_SAMPLES = 2
REPEATS = 3
SIDES = (64, 128, 256, 512)
"""Particles per side for growth and memory."""
GIB = 1 << 30

LAYOUTS = {
    "plain": MockFormat(
        dmo_layout=SnapshotLayout.SINGLE_NEW,
        hydro_layout=SnapshotLayout.CHUNKED_NEW,
        catalogue_layout=CatalogueLayout.SINGLE_NEW,
        chunks=8,
    ),
    "compressed": MockFormat(
        dmo_layout=SnapshotLayout.SINGLE_NEW,
        hydro_layout=SnapshotLayout.CHUNKED_NEW,
        catalogue_layout=CatalogueLayout.SINGLE_NEW,
        dmo_compression=Compression.BLOSC,
        hydro_compression=Compression.GZIP,
        chunks=8,
    ),
}


@dataclass(frozen=True)
class Case:
    """One run of the program."""

    side: int
    """Particles per side, of each species."""
    halos: int = HALOS
    rotations: int = ROTATIONS
    ranks: int = 1
    layout: str = "plain"


def suite_for(case: Case) -> MockSuite:
    """Return a mock suite of one simulation for a case, made if it is not there yet."""
    return write_mock_suite(
        DATA / f"{case.layout}_{case.side}_{case.halos}",
        simulations=1,
        particles_per_side=case.side,
        halos_per_simulation=case.halos,
        formats=[LAYOUTS[case.layout]],
    )


def run_case(case: Case, *, memory: bool = False) -> Measured:
    """Run the batch program on a case, from an empty data set, and measure its time, or its memory too."""
    suite = suite_for(case)
    root = DATA / "dataset"
    shutil.rmtree(root, ignore_errors=True)
    program = [
        *(sys.executable, str(REPOSITORY / "process_simulations.py"), "--num_rotations", str(case.rotations)),
        *("--nbody_base", str(suite.dmo_base), "--hydro_base", str(suite.hydro_base)),
        *("--fof_nbody_base", str(suite.catalogue_base), "--param_file", str(suite.parameter_file)),
        *("--output_base_root", str(root)),
    ]
    launcher = [str(mpiexec()), "-n", str(case.ranks)] if case.ranks > 1 else []
    # Reading ahead is done by a second thread: one rank is held to one core, so that it is compared as such.
    cores = sorted(os.sched_getaffinity(0))
    measured = run_measured(
        [*launcher, *program],
        without_mpi_variables(one_core()),
        cores[:1] if case.ranks == 1 else cores,
        memory=memory,
    )
    made = len(list(root.rglob("*.npz")))
    if made != case.halos * case.rotations:
        raise RuntimeError(f"{case} should make {case.halos * case.rotations} samples, but made {made}")
    shutil.rmtree(root)
    return measured


def plain_pipeline_seconds(case: Case) -> dict[str, float]:
    """Return what the plain pipeline takes for reading, and then for each sample, on one core."""
    from bench.plain_pipeline import make_sample, read_species

    suite = suite_for(case)
    config = DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        output_root=DATA / "plain",
    )
    files = find_simulation(suite.names[0], config)
    catalogue = read_catalogue(files.catalogue.files)
    start = time.perf_counter()
    species = {
        "dmo": read_species(files.dmo.files, 1),
        "dark_matter": read_species(files.hydro.files, 1),
        "gas": read_species(files.hydro.files, 0),
        "stars": read_species(files.hydro.files, 4),
    }
    reading = time.perf_counter() - start
    targets = predicted_samples(files.name, files.number, catalogue, config).targets()
    halos = halos_in(catalogue, config.strata[0])
    box_size = catalogue.headers[0].box_size or 0.0
    config.output_root.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for target in targets[:: len(targets) // PLAIN_SAMPLES][:PLAIN_SAMPLES]:
        center, rotation = np.array(target.halo_center), target.rotation_matrix(config)
        make_sample(species, center, rotation, box_size, config.windows, config.output_root / "sample.npz")
    per_sample = (time.perf_counter() - start) / PLAIN_SAMPLES
    shutil.rmtree(config.output_root)
    return {"reading": reading, "per_sample": per_sample, "halos": float(len(halos))}


def two_against_one(case: Case, repeats: int) -> dict[str, float]:
    """Return the times of a case on one and on two ranks, each the fastest of some, and their ratio."""
    # Alternating: other work on the machine comes and goes.
    pairs = [[run_case(replace(case, ranks=ranks)).seconds for ranks in (1, 2)] for _ in range(repeats)]
    one, two = (min(seconds) for seconds in zip(*pairs, strict=True))
    return {"1 rank, s": one, "2 ranks, s": two, "ratio": one / two}


def measure(sides: tuple[int, ...], side: int) -> dict[str, Any]:
    """Run all cases.

    Parameters
    ----------
    sides : tuple of int
        Particles per side for growth and memory.
    side : int
        Particles per side of the comparison with the plain pipeline.
    """
    run_case(Case(32))  # compiles the kernels into the cache
    results: dict[str, Any] = {}
    base = Case(side)
    with on_one_core():
        plain = plain_pipeline_seconds(base)
    ours = min((run_case(base) for _ in range(REPEATS)), key=lambda run: run.seconds)
    samples = base.halos * base.rotations
    plain_per_sample = plain["per_sample"] + plain["reading"] / samples
    results["against plain pipeline"] = {
        "side": side,
        "plain, s per sample": plain_per_sample,
        "ours, s per sample": ours.seconds / samples,
        "ratio": plain_per_sample / (ours.seconds / samples),
    }
    for layout in LAYOUTS:
        case = Case(side, layout=layout, halos=40)
        results[f"2 ranks against 1, {layout}"] = two_against_one(case, REPEATS)
    # As many samples as of 40 haloes, at the particle number of a production simulation.
    results[f"2 ranks against 1, {sides[-1]}^3"] = two_against_one(Case(sides[-1], rotations=40), 1)
    results["growth and memory"] = [
        {"side": s, "ranks": r, "s": m.seconds, "peak GiB": m.peak_bytes / GIB}
        for s in sides
        for r in (1, 2, 4)
        for m in [run_case(Case(s, ranks=r), memory=True)]
    ]
    results["growth with haloes and rotations"] = [
        {"haloes": h, "rotations": r, "s": run_case(Case(side, halos=h, rotations=r)).seconds}
        for h, r in ((10, 1), (10, 10), (10, 20), (40, 10))
    ]
    return results


def table(results: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = []
    for name, values in results.items():
        lines.append(name)
        for row in values if isinstance(values, list) else [values]:
            lines.append("    " + "   ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Benchmark the whole program.")
    parser.add_argument("--particles", type=int, default=256, help="particles per side against the plain pipeline")
    parser.add_argument("--largest", type=int, default=512, help="particles per side of the largest case")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    sides = tuple(side for side in SIDES if side <= options.largest)
    results = measure(sides, options.particles)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
