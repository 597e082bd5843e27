"""Normalization statistics as a flow, on an embedded server."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from block_runs import layout_of, make, manifest_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.testing.utilities import prefect_test_harness

from bind_core.config import DatasetConfig
from flows.normalize import normalize_dataset
from storage.manifest import ManifestError
from storage.mock_suite import write_mock_suite
from storage.samples import read_sample
from storage.statistics import StatisticsError, read_statistics

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def config(tmp_path: Path, config_of: Callable[..., DatasetConfig]) -> DatasetConfig:
    suite = write_mock_suite(tmp_path / "suite", simulations=2, particles_per_side=8, halos_per_simulation=1)
    return config_of(suite, output_root=tmp_path / "dataset", resolution=16, strata=[{"rotations": 2}])


def test_the_flow_writes_the_statistics_of_the_samples(config: DatasetConfig) -> None:
    """The three files hold mean and deviation of log10(x + 1) over the train samples, as does the artifact's table."""
    make(config)
    files = normalize_dataset(config.output_root)
    assert {file.parent for file in files} == {config.output_root / "data"}
    stats = read_statistics(config.output_root / "data")
    samples = [read_sample(layout_of(config).absolute(path)) for path in manifest_of(config).samples()["path"]]
    gas = np.log10(np.array([sample.target[1] for sample in samples], dtype=np.float64) + 1)
    assert stats.gas.mean == pytest.approx(gas.mean())
    assert stats.gas.std == pytest.approx(gas.std())
    assert (stats.n_samples, stats.config_digest) == (4, config.digest)

    async def table() -> str:
        async with get_client() as client:
            chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["normalization"]))
            return str((await client.read_artifacts(artifact_filter=chosen))[-1].data)

    means = {row["map"]: row["mean"] for row in json.loads(asyncio.run(table()))}
    assert means["target: gas"] == pytest.approx(stats.gas.mean)


def test_an_earlier_version_of_the_data_set_can_be_asked_for(config: DatasetConfig, tmp_path: Path) -> None:
    """Statistics of a version are of the samples that it had, and are written where asked."""
    make(config, ["SB35_0"])
    make(config, ["SB35_1"], "second")
    normalize_dataset(config.output_root, version=0, output=tmp_path / "stats")
    stats = read_statistics(tmp_path / "stats")
    assert (stats.manifest_version, stats.n_samples) == (0, 2)
    assert not (config.output_root / "data").exists()


def test_the_flow_fails_where_there_is_nothing_to_compute_from(config: DatasetConfig, tmp_path: Path) -> None:
    """Without a data set, or without train samples, the flow raises what says so and writes nothing."""
    with pytest.raises(ManifestError, match="no data set"):
        normalize_dataset(tmp_path)
    make(config.model_copy(update={"test_fraction": 1.0}))
    with pytest.raises(StatisticsError, match="no sample in its train split"):
        normalize_dataset(config.output_root)
    assert not (config.output_root / "data").exists()
