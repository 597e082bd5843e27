"""Packing as a flow, on an embedded server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from block_runs import layout_of, make
from prefect.testing.utilities import prefect_test_harness

from bind_core.config import DatasetConfig
from flows.pack import pack_dataset
from storage.manifest import ManifestError
from storage.mock_suite import write_mock_suite
from storage.shards import ARRAYS, PackError, verify_pack

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_the_flow_packs_what_was_made(tmp_path: Path, config_of: Callable[..., DatasetConfig]) -> None:
    """The pack holds the samples of the version asked for; what cannot be packed fails with what says so."""
    suite = write_mock_suite(tmp_path / "suite", simulations=2, particles_per_side=8, halos_per_simulation=1)
    config = config_of(suite, output_root=tmp_path / "dataset", resolution=16, strata=[{"rotations": 2}])
    with pytest.raises(ManifestError, match="no data set"):
        pack_dataset(config.output_root)
    make(config, ["SB35_0"])
    make(config, ["SB35_1"], "second")
    made = pack_dataset(config.output_root, version=1, where="rotation = 0")
    rows = pl.read_parquet(made.folder / "samples.parquet")
    assert rows["sample_id"].to_list() == ["SB35_0_halo_0_rot_0", "SB35_1_halo_0_rot_0"]
    target = zarr.open_group(made.folder / ARRAYS, mode="r")["target"]
    with np.load(config.output_root / rows["path"][1]) as sample:
        assert np.array_equal(target[1], sample["target"])
    assert verify_pack(layout_of(config), made.folder) == []
    with pytest.raises(PackError, match="no sample where halo = 7"):
        pack_dataset(config.output_root, where="halo = 7")
