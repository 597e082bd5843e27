"""Normalization statistics: what they cost beside reading what they are of, in processor time.

Run as ``python -m bench.normalization --json FILE``. The data set is made as that of the readers' benchmark.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from bench.program import DATA, Case
from bench.readers import make_dataset
from bind_core.transforms import ChannelTransforms
from storage.manifest import Manifest, layout_at
from storage.recorded import RecordedSample, map_recorded
from storage.statistics import compute_statistics, tally_sample

SAMPLES = 1_000
SIDE = 256
"""Particles per side of the simulation whose samples are varied."""
THREADS = 2

_ALONE = 100
"""Samples whose arithmetic is measured by itself."""


def measure(samples: int = SAMPLES, side: int = SIDE, threads: int = THREADS, *, keep: bool = False) -> dict[str, Any]:
    """Read a data set's samples, and compute their statistics, from files that are in memory.

    Processor time of all threads is measured, which does not depend on what else runs.

    Parameters
    ----------
    samples : int
        Samples of the data set, at least.
    side : int
        Particles per side of the simulation that they are made from.
    threads : int
        Threads that read and compute.
    keep : bool
        Whether the data set stays for the next time.
    """
    root = DATA / f"normalization_{samples}_{side}"
    make_dataset(root, samples, Case(side))
    layout = layout_at(root)
    rows = Manifest(layout).samples()

    def pass_over(work: Callable[[RecordedSample], object], of: pl.DataFrame = rows) -> float:
        started = time.process_time()
        for _ in map_recorded(layout, of, work, threads):
            pass
        return time.process_time() - started

    def statistics(*quantiles: str) -> float:
        started = time.process_time()
        compute_statistics(layout, threads=threads, quantiles=quantiles)
        return time.process_time() - started

    pass_over(lambda recorded: None)  # from here on, the files are in memory
    seconds = {
        "read and hashed": pass_over(lambda recorded: None),
        "read, hashed and unpacked": pass_over(lambda recorded: recorded.sample),
        "statistics": statistics(),
        "statistics, with quantiles of stars": statistics("stars"),
    }
    decoded = list(map_recorded(layout, rows.head(_ALONE), lambda recorded: recorded.sample, threads))
    transforms = ChannelTransforms().by_channel()
    started = time.process_time()
    for sample in decoded:
        tally_sample(sample, transforms)
    arithmetic = (time.process_time() - started) / len(decoded)
    if not keep:
        shutil.rmtree(root)
    return {
        "samples": rows.height,
        "threads": threads,
        "seconds": seconds,
        "arithmetic per sample, s": arithmetic,
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as text, as ratios to reading alone."""
    samples, reading = results["samples"], results["seconds"]["read, hashed and unpacked"]
    lines = [
        f"normalization of {samples:,} samples by {results['threads']} threads, processor time: ratio to reading "
        "(ms each)"
    ]
    for name, seconds in results["seconds"].items():
        lines.append(f"    {name:<38}{seconds / reading:>8.2f}  ({seconds / samples * 1e3:.2f})")
    alone = results["arithmetic per sample, s"]
    lines.append(f"    the arithmetic alone: {alone * 1e3:.2f} ms each")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Benchmark the normalization statistics.")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples of the data set [{SAMPLES}]")
    parser.add_argument("--particles", type=int, default=SIDE, help=f"particles per side of their origin [{SIDE}]")
    parser.add_argument("--keep", action="store_true", help="keep the data set for the next time")
    parser.add_argument("--json", type=Path, default=DATA / "normalization.json", help="where the figures go")
    options = parser.parse_args()
    results = measure(options.samples, options.particles, keep=options.keep)
    print(table(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
