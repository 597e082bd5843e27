"""The two readers for training, on what a data set and its pack hold."""

import dataclasses
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bind_core.dataset import Augmentation, DatasetError, FileReader, Normalized, SampleDataset, ShardReader
from bind_core.normalization import NormalizationMismatchError, normalize
from storage.card import write_card
from storage.card_facts import Publication
from storage.samples import read_sample
from storage.shards import ARRAYS, pack
from storage.statistics import compute_statistics
from storage.versions import resolve_version


@pytest.fixture
def readers(dataset):
    """Return the readers of a data set of 12 samples: its files, and its shards."""
    dataset.commit("SB35_0", halos=2, rotations=3)
    dataset.commit("SB35_1", halos=2, rotations=3, split="test")
    made = pack(dataset.layout, resolve_version(dataset.layout))
    return FileReader(dataset.root, dataset.open().samples()), ShardReader(made.folder)


def test_both_readers_give_the_same_arrays(dataset, readers) -> None:
    """Sample by sample and in batches, files and shards give what the file holds, to the bit."""
    files, shards = map(SampleDataset, readers)
    assert files.rows.equals(shards.rows)
    batch = shards.__getitems__([7, 0, 7])
    for number, path in enumerate(files.rows["path"]):
        expected = read_sample(dataset.root / path).arrays()
        for found in (files[number], shards[number], *batch[: number == 7], *batch[1 : 1 + (number == 0)]):
            assert found.keys() == expected.keys()
            for key, array in expected.items():
                assert found[key].dtype == array.dtype
                assert np.array_equal(found[key], array)


def test_splits_and_conditions_choose(readers) -> None:
    """A data set has the samples of its split that fulfil the condition, in the manifest's order."""
    for reader in readers:
        test = SampleDataset(reader, split="test", where="halo = 1 AND rotation > 0")
        assert test.rows["sample_id"].to_list() == ["SB35_1_halo_1_rot_1", "SB35_1_halo_1_rot_2"]
        assert len(test) == 2
        assert test[1]["rotation"].shape == (3, 3)


def test_normalized_samples_are_what_a_model_sees(dataset, readers) -> None:
    """Normalized by the data set's statistics, maps are those of `normalize`; statistics of others are refused."""
    stats = compute_statistics(dataset.layout)
    for reader in readers:
        seen = SampleDataset(reader, split="train").normalized(stats)
        expected = normalize(read_sample(dataset.root / seen.rows["path"][3]), stats, dataset.config.digest)
        assert np.array_equal(seen[3]["target"], expected.target)
        assert np.array_equal(seen[3]["condition"], expected.condition)
        assert np.array_equal(seen[3]["large_scale"], expected.large_scale)


def test_statistics_of_another_data_set_are_refused_with_both(dataset, readers) -> None:
    """The refusal names digest, set and manifest version of the statistics and of the samples; force overrides it."""
    files, shards = readers
    stats = dataclasses.replace(
        compute_statistics(dataset.layout), config_digest="f" * 64, set_name="CV", manifest_version=77
    )
    of_statistics = f"configuration {'f' * 12}…, set CV, manifest version 77"
    digest = f"configuration {dataset.config.digest[:12]}…, set SB35"
    for reader, version in (
        (files, "(unknown)"),
        (FileReader(dataset.root, files.rows, manifest_version=1), "1"),
        (shards, "1"),
    ):
        samples = SampleDataset(reader)
        with pytest.raises(NormalizationMismatchError) as caught:
            samples.normalized(stats)
        assert of_statistics in str(caught.value)
        assert f"the maps at hand are of {digest}, manifest version {version}." in str(caught.value)
        assert samples.normalized(stats, force=True)[0]["target"].shape == (3, 16, 16)
    with pytest.raises(NormalizationMismatchError, match=r"set \(unknown\)"):
        Normalized(stats, dataset.config.digest)


def test_statistics_of_another_version_are_refused(dataset, readers, tmp_path) -> None:
    """Packs and cards know their version: statistics of an earlier or later one are refused, and their own are not."""
    _, shards = readers
    now = datetime.now(UTC)
    write_card(dataset.layout, resolve_version(dataset.layout), Publication(), now, tmp_path)
    card = FileReader(tmp_path)
    stats = compute_statistics(dataset.layout)
    for reader in (shards, card):
        assert SampleDataset(reader).normalized(stats)
        for other in (stats.manifest_version - 1, stats.manifest_version + 1):
            with pytest.raises(NormalizationMismatchError, match=f"version {other} .*version {stats.manifest_version}"):
                SampleDataset(reader).normalized(dataclasses.replace(stats, manifest_version=other))


def first_and_draws(samples: SampleDataset) -> tuple[bytes, bytes]:
    draws = b"".join(samples[0]["condition"].tobytes() for _ in range(8))
    return samples.reader.read([0])[0]["condition"].tobytes(), draws


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_and_draw_differently(readers, method: str) -> None:
    """In workers, forked after the parent has read or spawned, samples are the same and random changes are not."""
    for reader in readers:
        samples = SampleDataset(reader, augmentation=Augmentation())
        here, _ = first_and_draws(samples)
        context = multiprocessing.get_context(method)
        found = []
        for _ in range(2):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                found.append(pool.submit(first_and_draws, samples).result(timeout=120))
        assert {first for first, _ in found} == {here}
        assert found[0][1] != found[1][1]


def test_a_data_set_can_be_pickled(readers) -> None:
    """What is open is not part of it."""
    samples = SampleDataset(readers[1])
    assert samples[0]["params"].shape == (5,)
    again = pickle.loads(pickle.dumps(samples))  # noqa: S301
    assert np.array_equal(again[0]["params"], samples[0]["params"])


def test_a_damaged_pack_is_an_error(readers) -> None:
    """A flipped bit in a shard is found when its sample is read, and a folder without arrays when it is opened."""
    shards = readers[1]
    victim = next(Path(shards.folder / ARRAYS / "condition").rglob("c/*/*/*"))
    content = bytearray(victim.read_bytes())
    content[200] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DatasetError, match="--verify"):
        [SampleDataset(shards)[number] for number in range(12)]
    with pytest.raises(DatasetError, match="bind-data pack"):
        ShardReader(shards.folder / ARRAYS)
