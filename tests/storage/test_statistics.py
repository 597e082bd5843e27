import dataclasses

import numpy as np
import pytest

from bind_core.errors import BindDataError
from storage.archives import decode_arrays, encode_arrays
from storage.recorded import RecordedSampleError
from storage.samples import read_sample
from storage.statistics import (
    STATISTICS_FILES,
    StatisticsError,
    compute_statistics,
    read_statistics,
    write_statistics,
)


def test_statistics_are_those_of_all_training_pixels(dataset) -> None:
    """Mean and deviation of each map equal numpy's over the pixels of all training samples at once."""
    dataset.commit("SB35_0", "SB35_1", "SB35_2")
    dataset.commit("SB35_3", split="test")
    stats = compute_statistics(dataset.layout)
    samples = [read_sample(path) for path in sorted((dataset.root / "train").rglob("*.npz"))]
    assert stats.n_samples == len(samples) == 6
    expected = {
        stats.condition: [sample.condition for sample in samples],
        stats.dark_matter: [sample.target[0] for sample in samples],
        stats.gas: [sample.target[1] for sample in samples],
        stats.stars: [sample.target[2] for sample in samples],
        stats.large_scale[0]: [sample.large_scale[0] for sample in samples],
        stats.large_scale[2]: [sample.large_scale[2] for sample in samples],
    }
    for score, maps in expected.items():
        logs = np.log10(np.stack(maps).astype(np.float64) + 1)
        assert score.mean == pytest.approx(logs.mean(), rel=1e-12)
        assert score.std == pytest.approx(logs.std(), rel=1e-12)
    assert stats.config_digest == dataset.config.digest
    assert stats.manifest_version == 1


def test_the_test_split_changes_nothing(dataset) -> None:
    """Adding test simulations leaves the statistics as they were, except for the version."""
    dataset.commit("SB35_0")
    before = compute_statistics(dataset.layout)
    dataset.commit("SB35_1", split="test")
    assert dataclasses.replace(compute_statistics(dataset.layout), manifest_version=0) == before


def test_order_of_commits_and_threads_do_not_show(dataset_at) -> None:
    """Two data sets filled in opposite order, read by 1 and 4 threads, have the same statistics to the bit."""
    names = [f"SB35_{i}" for i in range(5)]
    results = []
    for folder, order, threads in (("a", names, 1), ("b", names[::-1], 4)):
        dataset = dataset_at(folder)
        for name in order:
            dataset.commit(name)
        results.append(compute_statistics(dataset.layout, threads=threads))
    assert results[0] == dataclasses.replace(results[1], config_digest=results[0].config_digest)


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
    assert (stats.stars.mean, stats.stars.std) == (0.0, 1.0)


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
    for name, prefix, score in (
        ("dark_matter", "dm", stats.dark_matter),
        ("gas", "gas", stats.gas),
        ("stellar", "star", stats.stars),
    ):
        with np.load(folder / f"{name}_normalization_stats.npz", allow_pickle=False) as found:
            assert float(found[f"{prefix}_mag_mean"]) == score.mean
            assert float(found[f"{prefix}_mag_std"]) == score.std
            assert float(found["input_mag_mean"]) == stats.condition.mean
            assert found["large_scale_mag_std"].tolist() == [each.std for each in stats.large_scale]
            assert int(found["manifest_version"]) == 0
            assert str(found["config_digest"]) == dataset.config.digest
            assert int(found["n_samples"]) == 2


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


@pytest.mark.parametrize("name", [file for file, _ in STATISTICS_FILES.values()])
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
