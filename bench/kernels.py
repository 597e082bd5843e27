"""Throughput of the projection kernels, on one thread, in ratios that were taken in one run.

Measured on uniform and on clustered (mock) particles, for the same haloes and rotations:

- the N-body window (all scales) and the target column of the fused backend,
- Pylians' CIC alone, on ready-made projected positions in cell order, onto the widest window's native grid,
- the same CIC by numpy's bincount,
- streaming the positions from memory once: the floor under everything that reads them.

Every figure is the fastest of several repeats; repeats of all candidates alternate, so that a busy machine slows
them alike. Run as ``python -m bench.kernels --particles 256 --json FILE``.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

from bind_core.mesh import ParticleMesh
from bind_core.mock import MockCosmology, MockUniverse
from bind_core.projection import project_all, project_native
from bind_core.windows import Windows

BOX_SIZE = 50.0  # Mpc/h
SEED = 1993


def uniform_positions(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return side**3 random positions in the box, float32, Mpc/h."""
    return rng.random((side**3, 3), dtype=np.float32) * np.float32(BOX_SIZE)


def clustered_positions(side: int) -> np.ndarray:
    """Return the side**3 positions of a mock universe's dark matter, float32, Mpc/h."""
    universe = MockUniverse(MockCosmology(), box_size=BOX_SIZE, particles_per_side=side, seed=SEED)
    positions = np.empty((side**3, 3), dtype=np.float32)
    filled = 0
    for block in universe.dark_matter_only():
        positions[filled : filled + len(block.positions)] = block.positions
        filled += len(block.positions)
    return positions


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation, uniform on SO(3)."""
    rotation, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.diag(triangle))
    return rotation * np.linalg.det(rotation)


@numba.njit(cache=True, fastmath=True)
def read_once(values: np.ndarray) -> np.float32:
    """Touch every value of an array once: the time that memory takes to deliver it."""
    total = np.float32(0.0)
    for i in range(values.size):
        total += values[i]
    return total


def projected_positions(mesh: ParticleMesh, center: np.ndarray, rotation: np.ndarray, windows: Windows) -> np.ndarray:
    """Return one image of every particle, projected and folded into the widest window: what CIC alone needs.

    The order is that of the mesh. Which image is of no matter to the time that CIC takes.
    """
    size = windows.sizes[-1]
    projected = np.empty((len(mesh), 2), dtype=np.float32)
    for start in range(0, len(mesh), 1 << 20):
        part = slice(start, start + (1 << 20))
        projected[part] = np.mod((mesh.positions[part] - center) @ rotation[:2].T + size / 2, size)
    projected[projected >= np.float32(size)] = 0
    return projected


def bincount_cic(projected: np.ndarray, nodes: int, size: float) -> np.ndarray:
    """Assign positions to a periodic grid by cloud in cell with numpy alone."""
    u = projected * np.float32(nodes / size)
    lower = u.astype(np.int32)
    fraction = u - lower
    upper = (lower + 1) % nodes
    grid = np.zeros(nodes * nodes)
    for i, wi in ((lower[:, 0], 1 - fraction[:, 0]), (upper[:, 0], fraction[:, 0])):
        for j, wj in ((lower[:, 1], 1 - fraction[:, 1]), (upper[:, 1], fraction[:, 1])):
            grid += np.bincount(i * nodes + j, wi * wj, minlength=grid.size)
    return grid


def fastest(candidates: dict[str, Callable[[], Any]], repeats: int, once: tuple[str, ...]) -> dict[str, float]:
    """Return the shortest time of each candidate, seconds; those named in `once` are slow and run once."""
    times = dict.fromkeys(candidates, np.inf)
    for repeat in range(repeats):
        for name, run in candidates.items():
            if repeat and name in once:
                continue
            start = time.perf_counter()
            run()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def measure(side: int = 256, repeats: int = 5, targets: int = 3) -> dict[str, Any]:
    """Measure everything.

    Parameters
    ----------
    side : int
        Cube root of the number of particles.
    repeats : int
        Repeats of each measurement, of which the fastest counts.
    targets : int
        Haloes and rotations, over which times are averaged.

    Returns
    -------
    dict
        For each input: rates in 1e6 particles of the box per second, and the ratios that the engine is held to.
    """
    try:
        from MAS_library import MA
    except ImportError:
        MA = None
    windows = Windows()
    nodes = windows.resolution * windows.factors[-1]
    results: dict[str, Any] = {"particles": side**3, "repeats": repeats, "targets": targets, "inputs": {}}
    inputs = {
        "uniform": lambda: uniform_positions(side, np.random.default_rng(SEED)),
        "clustered": lambda: clustered_positions(side),
    }
    for name, make_positions in inputs.items():
        start = time.perf_counter()
        mesh = ParticleMesh.build(make_positions(), 1e9, BOX_SIZE)
        seconds_to_make = time.perf_counter() - start
        rng = np.random.default_rng(SEED)
        totals: dict[str, float] = {}
        for _ in range(targets):
            center, rotation = rng.random(3) * BOX_SIZE, random_rotation(rng)
            projected = projected_positions(mesh, center, rotation, windows)
            candidates: dict[str, Callable[[], Any]] = {
                "window": partial(project_all, mesh, center, rotation, windows),
                "column": partial(project_native, mesh, center, rotation, windows),
                "stream": partial(read_once, mesh.positions.reshape(-1)),
                "numpy": partial(bincount_cic, projected, nodes, windows.sizes[-1]),
            }
            if MA is not None:
                field = np.zeros((nodes, nodes), dtype=np.float32)
                candidates["pylians"] = partial(
                    MA,
                    projected,
                    field,
                    np.float32(windows.sizes[-1]),
                    MAS="CIC",
                    verbose=False,
                    renormalize_2D=False,
                )
            for candidate in ("window", "column", "stream"):
                candidates[candidate]()
            for candidate, seconds in fastest(candidates, repeats, once=("numpy",)).items():
                totals[candidate] = totals.get(candidate, 0.0) + seconds / targets
        rates = {candidate: side**3 / seconds / 1e6 for candidate, seconds in totals.items()}
        ratios = {
            "window / numpy": rates["window"] / rates["numpy"],
            "stream / window": rates["stream"] / rates["window"],
            "column / window": rates["column"] / rates["window"],
        }
        if "pylians" in rates:
            ratios["window / pylians"] = rates["window"] / rates["pylians"]
        results["inputs"][name] = {
            "cells_per_side": mesh.cells_per_side,
            "seconds_to_make_and_sort": seconds_to_make,
            "million_particles_per_second": rates,
            "ratios": ratios,
        }
    return results


#: What the engine is held to: ratio -> (limit, whether larger is better).
GOALS = {"window / pylians": (3.0, True), "stream / window": (10.0, False), "column / window": (10.0, True)}


def table(results: dict[str, Any]) -> str:
    """Return the results as a plain-text table."""
    lines = [f"{results['particles']:,} particles, one thread, fastest of {results['repeats']} repeats"]
    for name, result in results["inputs"].items():
        lines.append(f"\n{name} ({result['cells_per_side']} cells per side)")
        for candidate, rate in sorted(result["million_particles_per_second"].items(), key=lambda item: item[1]):
            lines.append(f"  {candidate:<18}{rate:>10.1f} million particles / s")
        for ratio, value in result["ratios"].items():
            goal = ""
            if ratio in GOALS:
                limit, larger = GOALS[ratio]
                reached = value >= limit if larger else value <= limit
                goal = f"   goal {'>=' if larger else '<='} {limit:g}: {'reached' if reached else 'missed'}"
            lines.append(f"  {ratio:<18}{value:>10.2f}{goal}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=256, help="cube root of their number (256)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats, the fastest of which counts (5)")
    parser.add_argument("--targets", type=int, default=3, help="haloes and rotations to average over (3)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = measure(arguments.particles, arguments.repeats, arguments.targets)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
