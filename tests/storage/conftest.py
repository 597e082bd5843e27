import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bind_core.config import DatasetConfig
from bind_core.rotations import matrix_quaternion, quaternion_matrix
from bind_core.sample import Sample
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.samples import write_sample

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def clustered_sample(seed: int = 0, npix: int = 16, stars: bool = True) -> Sample:
    """Return maps that look like a halo: bright in the middle, with empty pixels, stars in the centre only."""
    rng = np.random.default_rng(seed)
    x = np.arange(npix) - npix / 2
    radius = np.hypot(*np.meshgrid(x, x, indexing="ij"))
    halo = 1e12 / (1 + radius) ** 2 * rng.lognormal(size=(npix, npix))
    halo[rng.random((npix, npix)) < 0.2] = 0
    star_map = np.where(radius < 2, 0.01 * halo, 0) * stars
    direction = rng.normal(size=4)
    return Sample(
        condition=halo.astype(np.float32),
        target=np.stack([0.84 * halo, 0.15 * halo, star_map]).astype(np.float32),
        large_scale=np.stack([halo / 2, halo / 4, halo / 8]).astype(np.float32),
        params=rng.uniform(size=5),
        halo_mass=3e13 + seed,
        halo_center=rng.uniform(0, 50, 3),
        rotation=quaternion_matrix(direction / np.linalg.norm(direction)),
    )


def same_arrays(one: Sample, other: Sample) -> bool:
    """Whether two samples agree in every key, dtype, shape and bit."""
    pairs = zip(one.arrays().items(), other.arrays().items(), strict=True)
    return all(a == b and x.dtype == y.dtype and np.array_equal(x, y) for (a, x), (b, y) in pairs)


class ToyDataset:
    """A data set of toy samples that tests commit to, block by block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = DatasetConfig(
            dmo_base=root / "dmo",
            hydro_base=root / "hydro",
            catalogue_base=root / "fof",
            output_root=root,
            resolution=16,
        )
        self.layout = DatasetLayout(root, "SB35")
        self.clock = NOON

    def open(self, **changes: Any) -> Manifest:
        return open_dataset(self.layout, self.config.model_copy(update=changes))

    def sample_rows(
        self,
        simulation: str,
        halos: int = 1,
        rotations: int = 2,
        split: str = "train",
        run_id: str = "run",
        **maps: Any,
    ) -> pl.DataFrame:
        """Write the samples of a simulation and return their rows."""
        rows = []
        for halo in range(halos):
            for rotation in range(rotations):
                seed = int.from_bytes(hashlib.sha256(f"{simulation} {halo} {rotation}".encode()).digest()[:4], "big")
                sample = clustered_sample(seed, **maps)
                file = write_sample(self.layout.sample_path(split, simulation, halo, rotation), sample)
                quaternion = matrix_quaternion(sample.rotation)
                rows.append(
                    {
                        "sample_id": f"{simulation}_halo_{halo}_rot_{rotation}",
                        "simulation": simulation,
                        "halo": halo,
                        "rotation": rotation,
                        **{f"quaternion_{part}": float(q) for part, q in zip("wxyz", quaternion, strict=True)},
                        "seed_entropy": f"1993,{2**128 - 1},{halo},{rotation}",
                        "stratum": "(1e+13, inf]",
                        "halo_mass": sample.halo_mass,
                        **{f"halo_center_{axis}": float(c) for axis, c in zip("xyz", sample.halo_center, strict=True)},
                        "split": split,
                        "path": self.layout.relative(file.path),
                        "bytes": file.bytes,
                        "sha256": file.sha256,
                        **sample.map_masses(self.config.windows),
                        "config_digest": self.config.digest,
                        "inputs_digest": "0" * 64,
                        "code_version": "0.1.0",
                        "output_version": 1,
                        "run_id": run_id,
                        "created_at": self.clock,
                    }
                )
        return pl.DataFrame(rows)

    def simulation_rows(self, *simulations: str, run_id: str = "run", **values: Any) -> pl.DataFrame:
        """Return a row for each simulation, an hour later than the rows before."""
        self.clock += timedelta(hours=1)
        defaults = {
            "status": "complete",
            "split": "train",
            "n_halos": 1,
            "n_planned": 2,
            "n_committed": 2,
            "findings": "",
            "inputs": "[]",
            "message": "",
        }
        common = {"run_id": run_id, "recorded_at": self.clock, "code_version": "0.1.0"}
        digest = {"config_digest": self.config.digest}
        return pl.DataFrame([{"simulation": name} | defaults | common | digest | values for name in simulations])

    def commit(self, *simulations: str, run_id: str = "run", split: str = "train", **maps: Any) -> int:
        """Make and commit two samples of each simulation."""
        samples = pl.concat([self.sample_rows(name, split=split, run_id=run_id, **maps) for name in simulations])
        return self.open().commit(samples, self.simulation_rows(*simulations, run_id=run_id, split=split), run_id)


@pytest.fixture
def dataset(tmp_path: Path) -> ToyDataset:
    return ToyDataset(tmp_path / "data set")


@pytest.fixture
def dataset_at(tmp_path: Path) -> Callable[[str], ToyDataset]:
    return lambda name: ToyDataset(tmp_path / name)


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    return clustered_sample


@pytest.fixture
def same() -> Callable[[Sample, Sample], bool]:
    return same_arrays


@pytest.fixture(scope="session")
def six_samples() -> list[Sample]:
    return [clustered_sample(seed) for seed in range(6)]
