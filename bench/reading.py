"""One run of a reader: ``python -m bench.reading READER --root ROOT --read N``; prints what it took as JSON."""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

READERS = ("tree", "manifest", "shards", "tar")
WORKERS = 2
BATCH = 32
SHUFFLE_BUFFER = 1000
_KEY = "__key__"
"""What `webdataset` adds to every sample."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What one run of a reader took."""

    first_batch: float
    """Seconds from a process that has imported torch alone to the first batch."""
    per_second: float
    """Samples per second from then on."""
    samples: int
    digest: str
    """Of all samples, in no order; empty if it was not asked for."""


class TreeDataset:
    """Samples of all files below a folder that are named as samples are."""

    def __init__(self, folder: Path) -> None:
        self.paths = [Path(place, name) for place, _, names in os.walk(folder) for name in names if "halo" in name]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Arrays:
        with np.load(self.paths[index], allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _arrays_of_member(member: dict[str, Any]) -> Arrays:
    return dict(member["npz"])


def batches(reader: str, root: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Yield batches of samples as a training run would get them."""
    # What a reader imports is part of its start.
    if reader == "tar":
        import webdataset

        tars = sorted(map(str, (root / "packs" / "tar").glob("*.tar")))
        stream = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        stream = stream.shuffle(SHUFFLE_BUFFER).decode().map(_arrays_of_member)
        yield from DataLoader(stream, batch_size=BATCH, num_workers=workers)
        return
    samples: Any
    if reader == "tree":
        samples = TreeDataset(root / "train")
    else:
        from bind_core.dataset import FileReader, SampleDataset, ShardReader

        source = FileReader(root) if reader == "manifest" else ShardReader(root / "packs" / "zarr")
        samples = SampleDataset(source, split="train")
    yield from DataLoader(samples, batch_size=BATCH, shuffle=True, num_workers=workers)


def run_here(reader: str, root: Path, workers: int, limit: int, digest: bool) -> Run:
    """Run a reader in this process.

    Parameters
    ----------
    reader : str
        One of `READERS`.
    root : Path
        The data set.
    workers : int
        Processes that read.
    limit : int
        Samples after which it stops.
    digest : bool
        Whether to compute the digest of all samples.
    """
    torch.set_num_threads(1)
    total = number = 0
    start = time.perf_counter()
    first = first_samples = 0.0
    for batch in batches(reader, root, workers):
        size = len(batch["halo_mass"])
        if not number:
            first, first_samples = time.perf_counter() - start, size
        number += size
        if digest:
            arrays = {name: values for name, values in batch.items() if name != _KEY}
            total += sum(_digest({name: values[i].numpy() for name, values in arrays.items()}) for i in range(size))
        if number >= limit:
            break
    seconds = time.perf_counter() - start - first
    return Run(first, (number - first_samples) / seconds, number, f"{total % 2**256:064x}" if digest else "")


def _digest(sample: Arrays) -> int:
    content = hashlib.sha256()
    for name in sorted(sample):
        content.update(f"{name} {sample[name].dtype} {sample[name].shape}".encode())
        content.update(sample[name].tobytes())
    return int(content.hexdigest(), 16)


def main() -> None:
    """Run one reader."""
    parser = argparse.ArgumentParser(description="Run one reader of a training run.")
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--root", type=Path, required=True, help="the data set")
    parser.add_argument("--read", type=int, required=True, help="samples after which it stops")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"processes that read [{WORKERS}]")
    parser.add_argument("--digest", action="store_true", help="add the digest of all samples")
    options = parser.parse_args()
    print(json.dumps(asdict(run_here(options.reader, options.root, options.workers, options.read, options.digest))))


if __name__ == "__main__":
    main()
