"""Normalization statistics as a flow, on an embedded server."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from block_runs import layout_of, make, manifest_of
from command_line import fine
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.testing.utilities import prefect_test_harness

from bind_core.config import DatasetConfig
from bind_core.normalization import denormalize_target, normalize
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
    assert stats.target["gas"].mean == pytest.approx(gas.mean(), rel=1e-12)
    assert stats.target["gas"].std == pytest.approx(gas.std(), rel=1e-12)
    assert (stats.n_samples, stats.config_digest) == (4, config.digest)

    async def table() -> str:
        async with get_client() as client:
            chosen = ArtifactFilter(key=ArtifactFilterKey(any_=["normalization"]))
            return str((await client.read_artifacts(artifact_filter=chosen))[-1].data)

    means = {row["map"]: row["mean"] for row in json.loads(asyncio.run(table()))}
    assert means["target: gas"] == pytest.approx(stats.target["gas"].mean)


def test_flow_command_and_any_threads_give_the_same_files(config: DatasetConfig, tmp_path: Path) -> None:
    """Made in either order, by flow or command, with 1, 2 or 4 threads, the files have the same bytes.

    Among them is a further field with a transform of its own, and a table of quantiles.
    """
    particles = {"name": "gas_particles", "particle_type": "gas", "weight": ""}
    config = DatasetConfig.from_values(
        config.model_dump() | {"extra_fields": [particles | {"transform": {"kind": "asinh", "scale": 10.0}}]}
    )
    found = []
    for folder, order, counts in (("ab", ["SB35_0", "SB35_1"], (1, 4)), ("ba", ["SB35_1", "SB35_0"], (2,))):
        own = config.model_copy(update={"output_root": tmp_path / folder})
        for number, name in enumerate(order):
            make(own, [name], f"run {number}")
        for threads in counts:
            output = tmp_path / f"{folder} {threads}"
            normalize_dataset(own.output_root, output=output, threads=threads, quantiles=("stars",))
            found.append(files_in(output))
        fine("normalize", "-d", own.output_root, "--quantiles", "stars", "--output", tmp_path / "command")
        found.append(files_in(tmp_path / "command"))
    assert len(found[0]) == 4
    assert all(files == found[0] for files in found)
    stats = read_statistics(tmp_path / "command")
    samples = [read_sample(layout_of(own).absolute(path)) for path in manifest_of(own).samples()["path"]]
    values = np.arcsinh(np.array([sample.target[3] for sample in samples], dtype=np.float64) / 10)
    assert values.std() > 0
    assert stats.target["gas_particles"].mean == pytest.approx(values.mean(), rel=1e-12)
    assert stats.target["gas_particles"].std == pytest.approx(values.std(), rel=1e-12)
    seen = normalize(samples[0], stats.by_quantiles(["stars"]), own.digest)
    back = denormalize_target(seen.target, stats.by_quantiles(["stars"]), own.digest)
    np.testing.assert_allclose(back, samples[0].target, rtol=1e-3, atol=1e-3)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
