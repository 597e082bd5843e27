"""One small sound input of every kind, to be spoilt."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from sound_dataset import write_sound_dataset

from bind_core.config import DatasetConfig
from bind_core.halos import Halo
from bind_core.inference import HaloCondition
from bind_core.plan import BlockPlan, SimulationPlan, Target
from bind_core.sample import Sample
from bind_core.splits import Split
from storage.archives import encode_arrays
from storage.conditions import write_conditions
from storage.layout import DatasetLayout
from storage.mock_suite import CatalogueLayout, Compression, MockFormat, SnapshotLayout, write_mock_suite
from storage.results import SampleRecord, SimulationResult
from storage.samples import write_sample
from storage.shards import IDENTITY_FILE, PackFormat, PackIdentity
from storage.tags import new_tag, write_tag


def write_sound_inputs(folder: Path) -> None:
    """Write what `reader_cases` takes its inputs from."""
    _write_simulations(folder)
    config = DatasetConfig(
        dmo_base=folder / "suite" / "DMO",
        hydro_base=folder / "suite" / "Hydro",
        catalogue_base=folder / "suite" / "FOF",
        output_root=folder,
        resolution=16,
    )
    (folder / "dataset.yaml").write_text(config.to_yaml())
    (folder / "channels.yaml").write_text(_with_channels(config).to_yaml())
    rng = np.random.default_rng(1)
    maps = rng.exponential(1e10, (7, 16, 16)).astype(np.float32)
    turn = np.eye(3)[[1, 2, 0]]
    sample = Sample(maps[0], maps[1:4], maps[4:], rng.random(2), 2e13, rng.uniform(0, 50, 3), turn)
    file = write_sample(folder / "sample.npz", sample)
    row = {"path": "sample.npz", "split": "train", "config_digest": config.digest, "halo_mass": 2e13}
    pl.DataFrame([row]).write_parquet(folder / "samples.parquet")
    _write_statistics(folder / "statistics", config.digest)
    layout = DatasetLayout(folder, "SB35")
    described = {"version": 3, "simulations_version": 3, "committed_at": datetime(2026, 11, 1, 12, tzinfo=UTC)}
    tag = new_tag("first", "a note", **described, samples=40, config_digests=(config.digest,))
    write_tag(layout, tag)
    (folder / "manifest" / "tags" / "first.json").rename(folder / "first.json")
    halo = Halo(0, 0, (1.0, 2.0, 3.0), 2e13, 0.5)
    (folder / "conditions").mkdir()
    write_conditions(
        folder / "conditions", "SB35_0", [HaloCondition(maps[0], maps[4:], halo, turn)], 50.0, config, (0.3, 0.8)
    )
    identity = PackIdentity("SB35", 3, config.digest, "", PackFormat.ZARR, 40, "0" * 64)
    (folder / IDENTITY_FILE).write_text(json.dumps(asdict(identity)))
    target = Target("SB35_0", 0, 1, "(1e+13, inf]", (1993, 7, 0, 1), 2e13, (1.0, 2.0, 3.0))
    plan = BlockPlan(config, "run", 0, (SimulationPlan("SB35_0", Split.TRAIN, (0.3, 0.8), (target,)),))
    (folder / "plan.json").write_text(plan.to_json())
    record = SampleRecord(target.sample_id, "sample.npz", file.bytes, file.sha256, sample.map_masses(config.windows))
    (folder / "result.json").write_text(SimulationResult("SB35_0", (record,), seconds={"read": 1.0}).to_json())
    write_sound_dataset(folder, config)


def _with_channels(config: DatasetConfig) -> DatasetConfig:
    """Return a configuration with further channels and transforms of every kind."""
    metals = {"name": "oxygen", "particle_type": "gas", "field": "GFM_Metals", "component": 4, "statistic": "mean"}
    count = {"name": "count", "particle_type": "stars", "weight": "", "transform": {"kind": "linear", "scale": 10.0}}
    transforms = {"gas": {"kind": "asinh", "scale": 1e8}, "stars": {"kind": "log", "scale": 1e6}}
    return DatasetConfig.from_values(
        config.model_dump(mode="json") | {"extra_fields": [metals, count], "transforms": transforms}
    )


def _write_statistics(folder: Path, config_digest: str) -> None:
    """Write the three files with the keys of all their readers."""
    folder.mkdir()
    for file, prefix in (("dark_matter", "dm"), ("gas", "gas"), ("stellar", "star")):
        arrays = {
            **{f"{name}_mag_mean": np.float64(9.0) for name in (prefix, "input")},
            **{f"{name}_mag_std": np.float64(1.5) for name in (prefix, "input")},
            "large_scale_mag_mean": np.full(3, 9.0),
            "large_scale_mag_std": np.full(3, 1.5),
            "manifest_version": np.int64(3),
            "config_digest": np.str_(config_digest),
            "n_samples": np.int64(40),
        }
        (folder / f"{file}_normalization_stats.npz").write_bytes(encode_arrays(arrays))


def _write_simulations(folder: Path) -> None:
    chunked = MockFormat(
        dmo_layout=SnapshotLayout.CHUNKED_OLD,
        catalogue_layout=CatalogueLayout.CHUNKED_NEW,
        dmo_compression=Compression.BLOSC,
        hydro_compression=Compression.GZIP,
        mass_style="dataset",
        chunks=2,
    )
    options = {"simulations": 1, "particles_per_side": 8, "halos_per_simulation": 2, "wind": True, "black_holes": True}
    write_mock_suite(folder / "suite", formats=[chunked], **options)
    write_mock_suite(folder / "plain", formats=[MockFormat(cosmology_group="Parameters", count_bits=64)], **options)
    for kind, bases in (("snapshots", ("DMO", "Hydro")), ("catalogues", ("FOF",))):
        (folder / kind).mkdir()
        for suite in ("suite", "plain"):
            for base in bases:
                for path in sorted((folder / suite / base).rglob("*.hdf5")):
                    name = f"{suite}_{base}_{path.name}"
                    (folder / kind / name).write_bytes(path.read_bytes())
                    with (
                        h5py.File(path, "r") as old,
                        h5py.File(folder / kind / f"latest_{name}", "w", libver="latest") as new,
                    ):
                        for member in old:
                            old.copy(member, new)
