import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bind_core.errors import BindDataError
from bind_core.normalization import ChannelStats, NormalizationStats
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.transforms import ChannelTransform, ChannelTransforms, TransformKind
from storage.archives import decode_arrays, encode_arrays
from storage.manifest import ConfigurationMismatchError, open_dataset, recorded_configuration
from storage.recorded import RecordedSampleError
from storage.samples import read_sample
from storage.statistics import (
    StatisticsError,
    compute_statistics,
    merge_tallies,
    read_statistics,
    statistics_file,
    tally_sample,
    write_statistics,
)


def maps_of(stats: NormalizationStats, samples: list[Sample]) -> list[tuple[ChannelStats, list[np.ndarray]]]:
    """Return the statistics of each map, with that map of all samples."""
    return [
        (stats.condition, [sample.condition for sample in samples]),
        *((own, [sample.large_scale[index] for sample in samples]) for index, own in enumerate(stats.large_scale)),
        *((own, [sample.target[index] for sample in samples]) for index, own in enumerate(stats.target.values())),
    ]


def test_statistics_are_those_of_all_training_pixels(dataset) -> None:
    """Mean and deviation of each map equal numpy's over the pixels of all training samples at once."""
    dataset.commit("SB35_0", "SB35_1", "SB35_2")
    dataset.commit("SB35_3", split="test")
    stats = compute_statistics(dataset.layout)
    samples = [read_sample(path) for path in sorted((dataset.root / "train").rglob("*.npz"))]
    assert stats.n_samples == len(samples) == 6
    for score, maps in maps_of(stats, samples):
        logs = np.log10(np.stack(maps).astype(np.float64) + 1)
        assert score.mean == pytest.approx(logs.mean(), rel=1e-12)
        assert score.std == pytest.approx(logs.std(), rel=1e-12)
        assert str(score.transform) == "log10(x + 1)"
    assert stats.config_digest == dataset.config.digest
    assert stats.manifest_version == 1


def test_the_test_split_changes_nothing(dataset) -> None:
    """Adding test simulations leaves the statistics as they were, except for the version."""
    dataset.commit("SB35_0")
    before = compute_statistics(dataset.layout)
    dataset.commit("SB35_1", split="test")
    assert dataclasses.replace(compute_statistics(dataset.layout), manifest_version=0) == before


def test_order_of_commits_and_threads_do_not_show(dataset_at) -> None:
    """Data sets filled in any order, read by 1, 2 and 4 threads, have the same statistics and tables to the bit."""
    names = [f"SB35_{i}" for i in range(5)]
    results = []
    for folder, order in (("a", names), ("b", names[::-1]), ("c", names[2:] + names[:2])):
        dataset = dataset_at(folder)
        for name in order:
            dataset.commit(name)
        results += [
            compute_statistics(dataset.layout, threads=threads, quantiles=["stars", "large_scale"])
            for threads in (1, 2, 4)
        ]
    assert all(result == results[0] for result in results)


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40)
def test_any_split_of_the_work_gives_the_same(six_samples: list[Sample], random, workers: int, blocks: int) -> None:
    """Whichever workers tally which samples in which order, merged in any order, the totals are the same to the bit."""
    transforms = ChannelTransforms().by_channel()
    tallies = [tally_sample(sample, transforms, ["stars"]) for sample in six_samples]
    expected = merge_tallies(tallies)
    random.shuffle(tallies)
    parts = [tallies[worker::workers] for worker in range(workers)]
    merged = [merge_tallies([merge_tallies(part[:blocks]), *part[blocks:]]) for part in parts if part]
    random.shuffle(merged)
    found = merge_tallies(merged)
    for name, own in expected.items():
        stats = [ChannelStats.of(tally, transforms[name]) for tally in own]
        assert [ChannelStats.of(tally, transforms[name]) for tally in found[name]] == stats


def test_an_earlier_version_has_its_own_statistics(dataset) -> None:
    """The statistics of a version are those of the samples it held, whatever came later."""
    dataset.commit("SB35_0")
    before = compute_statistics(dataset.layout)
    dataset.commit("SB35_1")
    assert compute_statistics(dataset.layout).n_samples == 4
    assert compute_statistics(dataset.layout, version=0) == before


def test_progress_is_reported(dataset) -> None:
    """Every sample is counted, up to all of them."""
    dataset.commit("SB35_0", "SB35_1")
    seen: list[tuple[int, int]] = []
    compute_statistics(dataset.layout, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_empty_train_split_is_refused(dataset) -> None:
    """Without training samples there are no statistics, and the message counts those of the test split."""
    with pytest.raises(StatisticsError, match="no sample in its train split"):
        compute_statistics(dataset.layout)
    dataset.commit("SB35_0", split="test")
    with pytest.raises(StatisticsError, match="2 in its test split"):
        compute_statistics(dataset.layout)


def test_a_file_that_is_not_the_recorded_one_is_refused(dataset) -> None:
    """Statistics are of the recorded samples: a file changed or lost since is named."""
    dataset.commit("SB35_0")
    victim = dataset.layout.sample_path("train", "SB35_0", 0, 1)
    other = dataset.layout.sample_path("train", "SB35_0", 0, 0).read_bytes()
    victim.write_bytes(other)
    with pytest.raises(RecordedSampleError, match="SB35_0_halo_0_rot_1 is not the one that was recorded"):
        compute_statistics(dataset.layout)
    victim.unlink()
    with pytest.raises(RecordedSampleError, match=r"SB35_0_halo_0_rot_1 .* cannot be read: No such file"):
        compute_statistics(dataset.layout)


def test_simulations_without_stars_have_statistics(dataset) -> None:
    """Where no sample holds a star, the stars' scale is 1, so that readers divide by no zero."""
    dataset.commit("SB35_0", stars=False)
    stats = compute_statistics(dataset.layout)
    assert (stats.target["stars"].mean, stats.target["stars"].std) == (0.0, 1.0)


def test_readers_in_use_find_their_keys(dataset) -> None:
    """The three files hold the keys that readers expect, with our additions, and no pickles."""
    dataset.commit("SB35_0")
    stats = compute_statistics(dataset.layout)
    folder = dataset.layout.statistics_folder
    assert [path.name for path in write_statistics(stats, folder)] == [
        "dark_matter_normalization_stats.npz",
        "gas_normalization_stats.npz",
        "stellar_normalization_stats.npz",
    ]
    for name, prefix, channel in (
        ("dark_matter", "dm", "dark_matter"),
        ("gas", "gas", "gas"),
        ("stellar", "star", "stars"),
    ):
        score = stats.target[channel]
        with np.load(folder / f"{name}_normalization_stats.npz", allow_pickle=False) as found:
            assert float(found[f"{prefix}_mag_mean"]) == score.mean
            assert float(found[f"{prefix}_mag_std"]) == score.std
            assert float(found["input_mag_mean"]) == stats.condition.mean
            assert found["large_scale_mag_std"].tolist() == [each.std for each in stats.large_scale]
            assert int(found["manifest_version"]) == 0
            assert str(found["config_digest"]) == dataset.config.digest
            assert int(found["n_samples"]) == 2
            assert str(found["set_name"]) == "SB35"
            assert found["target_channels"].tolist() == ["dark_matter", "gas", "stars"]
            for declared in (prefix, "input", "large_scale"):
                assert (str(found[f"{declared}_mag_transform"]), float(found[f"{declared}_mag_scale"])) == ("log", 1.0)


def test_written_statistics_are_read(dataset) -> None:
    """What was written comes back equal, and writing it again gives the same bytes."""
    dataset.commit("SB35_0")
    stats = compute_statistics(dataset.layout)
    files = write_statistics(stats, dataset.root / "data")
    before = [path.read_bytes() for path in files]
    assert read_statistics(dataset.root / "data") == stats
    write_statistics(stats, dataset.root / "data")
    assert [path.read_bytes() for path in files] == before


def test_files_of_different_runs_are_refused(dataset) -> None:
    """One file of three that comes from another version is found when they are read."""
    dataset.commit("SB35_0")
    folder = dataset.root / "data"
    write_statistics(compute_statistics(dataset.layout), folder)
    old = (folder / "gas_normalization_stats.npz").read_bytes()
    dataset.commit("SB35_1")
    write_statistics(compute_statistics(dataset.layout), folder)
    (folder / "gas_normalization_stats.npz").write_bytes(old)
    with pytest.raises(StatisticsError, match="gas_normalization_stats"):
        read_statistics(folder)


@pytest.mark.parametrize("name", [statistics_file(channel) for channel in TARGET_CHANNELS])
@pytest.mark.parametrize("harm", ["missing", "damaged", "incomplete", "of another shape"])
def test_unusable_files_are_named(dataset, name: str, harm: str) -> None:
    """A file that is missing, cut off, lacks its mean or holds an array for it is an error that names it."""
    dataset.commit("SB35_0")
    folder = dataset.root / "data"
    write_statistics(compute_statistics(dataset.layout), folder)
    path = folder / name
    arrays = decode_arrays(path.read_bytes(), path)
    own = next(key for key in arrays if key.endswith("_mag_mean"))
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:-30])
    elif harm == "incomplete":
        path.write_bytes(encode_arrays({key: array for key, array in arrays.items() if key != own}))
    else:
        path.write_bytes(encode_arrays(arrays | {own: np.zeros(7)}))
    with pytest.raises(BindDataError, match=name):
        read_statistics(folder)


# Transforms

SIGNED = ChannelTransform(kind=TransformKind.ASINH, scale=1e6)


def declare(dataset, transforms: ChannelTransforms) -> None:
    """Edit the transforms in a data set's dataset.yaml."""
    config = recorded_configuration(dataset.root)
    dataset.layout.configuration_file.write_text(config.model_copy(update={"transforms": transforms}).to_yaml())


def test_the_declared_transforms_are_those_of_the_statistics(dataset) -> None:
    """Each channel's statistics are of the transform in dataset.yaml, say so, and apply it wherever they are read."""
    dataset.commit("SB35_0")
    declare(dataset, ChannelTransforms(gas=SIGNED, large_scale=ChannelTransform(scale=10.0)))
    stats = compute_statistics(dataset.layout)
    write_statistics(stats, dataset.root / "data")
    again = read_statistics(dataset.root / "data")
    assert again == stats
    assert [str(own.transform) for own in again.target.values()] == [
        "log10(x + 1)",
        "arcsinh(x / 1000000.0)",
        "log10(x + 1)",
    ]
    samples = [read_sample(path) for path in sorted((dataset.root / "train").rglob("*.npz"))]
    gas = np.arcsinh(np.stack([sample.target[1] for sample in samples]).astype(np.float64) / 1e6)
    wide = np.log10(np.stack([sample.large_scale[2] for sample in samples]).astype(np.float64) / 10 + 1)
    for score, values in ((again.target["gas"], gas), (again.large_scale[2], wide)):
        assert score.mean == pytest.approx(values.mean(), rel=1e-12)
        assert score.std == pytest.approx(values.std(), rel=1e-12)
    seen = again.target["gas"].apply(samples[0].target[1])
    np.testing.assert_allclose(seen, (gas[0] - gas.mean()) / gas.std(), rtol=1e-9, atol=1e-12)


def test_files_without_transforms_are_of_the_logarithm(dataset) -> None:
    """Files of before transforms were declared, with the keys of then, are read as log10(x + 1)."""
    dataset.commit("SB35_0")
    stats = compute_statistics(dataset.layout)
    folder = dataset.root / "data"
    for path in write_statistics(stats, folder):
        arrays = decode_arrays(path.read_bytes(), path)
        old = {
            key: array
            for key, array in arrays.items()
            if re.fullmatch(r".*_(mean|std)|manifest_version|config_digest|n_samples", key)
        }
        assert len(old) == 9
        path.write_bytes(encode_arrays(old))
    assert read_statistics(folder) == dataclasses.replace(stats, set_name="")


@pytest.mark.parametrize(
    ("key", "value"),
    [("gas_mag_transform", "cube"), ("gas_mag_scale", -1.0), ("gas_mag_scale", None), ("target_channels", ["../gas"])],
)
def test_a_transform_that_is_none_is_refused(dataset, key: str, value: object) -> None:
    """A kind that does not exist, a scale that is none or missing, and channels that are no names are errors."""
    dataset.commit("SB35_0")
    folder = dataset.root / "data"
    for path in write_statistics(compute_statistics(dataset.layout), folder):
        arrays = decode_arrays(path.read_bytes(), path)
        if key in arrays:
            changed = {name: array for name, array in arrays.items() if name != key}
            path.write_bytes(encode_arrays(changed if value is None else changed | {key: np.array(value)}))
    with pytest.raises(StatisticsError, match=r"normalization_stats\.npz is no file of normalization statistics"):
        read_statistics(folder)


def test_a_run_with_other_transforms_is_refused(dataset) -> None:
    """A later run that declares other transforms is told both, and where to change them; equal ones go through."""
    dataset.commit("SB35_0")
    other = ChannelTransforms(gas=SIGNED)
    for refresh in (False, True):
        with pytest.raises(ConfigurationMismatchError) as caught:
            open_with(dataset, other, refresh=refresh)
        assert r"gas: the data set has log10(x + 1), this run has arcsinh(x / 1000000.0)" in str(caught.value)
        assert f"{dataset.layout.configuration_file}, under `transforms`" in str(caught.value)
    declare(dataset, other)
    open_with(dataset, other)


def open_with(dataset, transforms: ChannelTransforms, *, refresh: bool = False):
    return open_dataset(dataset.layout, dataset.config.model_copy(update={"transforms": transforms}), refresh=refresh)


def test_transforms_declared_while_a_run_is_at_work_stay(dataset) -> None:
    """A run that commits after dataset.yaml was given other transforms leaves them there."""
    dataset.commit("SB35_0")
    manifest = dataset.open(ranks=7)
    declare(dataset, ChannelTransforms(gas=SIGNED))
    manifest.commit(dataset.sample_rows("SB35_1"), dataset.simulation_rows("SB35_1"), "run")
    recorded = recorded_configuration(dataset.root)
    assert (recorded.ranks, recorded.transforms.gas) == (7, SIGNED)
    assert compute_statistics(dataset.layout).target["gas"].transform == SIGNED


# Further channels and tables


def test_a_further_channel_has_a_file_of_its_own(dataset) -> None:
    """A fourth channel's statistics go into <name>_normalization_stats.npz, with keys of its name, and come back."""
    dataset.commit("SB35_0")
    stats = compute_statistics(dataset.layout)
    more = dataclasses.replace(stats, target={**stats.target, "pressure": ChannelStats(0.1, 0.7, SIGNED)})
    folder = dataset.root / "data"
    files = write_statistics(more, folder)
    assert [path.name for path in files][3:] == ["pressure_normalization_stats.npz"]
    with np.load(files[3], allow_pickle=False) as found:
        assert float(found["pressure_mag_mean"]) == 0.1
        assert str(found["pressure_mag_transform"]) == "asinh"
        assert float(found["input_mag_mean"]) == stats.condition.mean
    assert read_statistics(folder) == more
    files[3].unlink()
    with pytest.raises(StatisticsError, match="pressure_normalization_stats"):
        read_statistics(folder)
    write_statistics(stats, folder)
    assert read_statistics(folder) == stats


def test_the_channels_of_samples_are_tallied_by_name(make_sample) -> None:
    """A sample's further channel has its own transform; one without a transform, or fewer channels, are refused."""
    sample = make_sample()
    more = dataclasses.replace(
        sample,
        target=np.concatenate([sample.target, -sample.target[:1]]),
        target_channels=(*TARGET_CHANNELS, "inflow"),
    )
    transforms = ChannelTransforms().by_channel()
    with pytest.raises(StatisticsError, match=r"inflow.*extra_fields"):
        tally_sample(more, transforms, sample_id="SB35_0_halo_0_rot_0")
    tally = tally_sample(more, transforms | {"inflow": SIGNED})
    expected = np.arcsinh(-sample.target[0].astype(np.float64) / 1e6)
    assert tally["inflow"][0].moments.mean == pytest.approx(expected.mean(), rel=1e-12)
    with pytest.raises(StatisticsError, match=r"other maps than others.*1 of inflow"):
        merge_tallies([tally, tally_sample(sample, transforms)])


def test_tables_of_quantiles_are_plain_arrays(dataset) -> None:
    """A channel asked for has an ascending table of 1,001 values in its file; other channels have none."""
    dataset.commit("SB35_0", "SB35_1")
    stats = compute_statistics(dataset.layout, quantiles=["stars", "large_scale"])
    folder = dataset.root / "data"
    paths = write_statistics(stats, folder)
    assert read_statistics(folder) == stats
    with np.load(paths[2], allow_pickle=False) as found:
        values, scores = found["star_mag_quantiles"], found["star_mag_quantile_scores"]
        assert values.dtype == scores.dtype == np.float64
        assert values.shape == scores.shape == (1001,)
        assert found["large_scale_mag_quantiles"].shape == (3, 1001)
        assert "input_mag_quantiles" not in found
    assert (np.diff(values) >= 0).all()
    maps = np.stack([read_sample(path).target[2] for path in sorted((dataset.root / "train").rglob("*.npz"))])
    logs = np.log10(maps.astype(np.float64) + 1)
    assert values[0] == 0 < logs.max() <= values[-1] <= logs.max() * (1 + 1 / 2048)
    own = read_statistics(folder).by_quantiles(["stars"]).target["stars"]
    np.testing.assert_allclose(own.invert(own.apply(maps)), maps, rtol=1e-9, atol=1e-9)


def test_a_table_of_an_unknown_channel_is_refused(dataset) -> None:
    """A channel that the data set does not have is refused with those that it has, before anything is read."""
    dataset.commit("SB35_0")
    with pytest.raises(StatisticsError, match=r"no channel 'metals'.*condition, large_scale, dark_matter, gas, stars"):
        compute_statistics(dataset.layout, quantiles=["metals"])
