"""The audit of what is in the samples: each kind of damage is named, on copies of a sound data set."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from damaged_datasets import AuditedDataset, mock_dataset

from bind_core.findings import Severity
from bind_core.windows import Windows, block_mean, central_crop
from storage.audit_depth import Depth
from storage.audit_result import AuditCode
from storage.content_checks import HISTOGRAM_STEP, fingerprint, shared_pixels
from storage.population_checks import DUPLICATE_CORRELATION, near_pairs, robust_scores

pytestmark = pytest.mark.mpi

FIRST, SECOND, OTHER = "SB35_0_halo_0_rot_0", "SB35_0_halo_0_rot_1", "SB35_1_halo_0_rot_0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> AuditedDataset:
    """Return a sound data set; tests must not change it."""
    return mock_dataset(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def dataset(sound: AuditedDataset, tmp_path: Path) -> AuditedDataset:
    """Return a copy that a test may damage."""
    return sound.copied_to(tmp_path / "copy")


def changed(values: Any, index: Any, to: float) -> Any:
    values = np.array(values)
    values[index] = to
    return values


def test_a_flipped_bit_is_found_by_the_digest(dataset: AuditedDataset) -> None:
    """One bit in the middle of a file is invisible at depth known, and named when the file is read."""
    path = dataset.file(FIRST)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert dataset.found(Depth.KNOWN) == {}
    found = dataset.found()
    assert found["wrong_digest"] == {FIRST}
    assert set(found) <= {"wrong_digest", "unreadable_file"}


def test_two_swapped_files_are_named_with_whose_they_are(dataset: AuditedDataset) -> None:
    """Where two samples' files were exchanged, each finding says whose file it is, and no other check adds noise."""
    one, other, aside = dataset.file(FIRST), dataset.file(OTHER), dataset.folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    findings = {f.subject: f.found for f in dataset.audit().findings if f.code is AuditCode.WRONG_DIGEST}
    assert findings == {FIRST: f"the file of {OTHER}", OTHER: f"the file of {FIRST}"}
    assert set(dataset.found()) <= {"wrong_digest", "wrong_size"}


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        (lambda a: {"target": changed(a["target"], (2, 3, 4), np.nan)}, "not_finite"),
        (lambda a: {"large_scale": changed(a["large_scale"], (0, 0, 0), np.inf)}, "not_finite"),
        (lambda a: {"params": changed(a["params"], 0, np.nan)}, "not_finite"),
        (lambda a: {"condition": changed(a["condition"], (0, 0), -1.0)}, "negative_mass"),
        (lambda a: {"rotation": None}, "broken_contract"),
        (lambda a: {"condition": a["condition"].astype(np.float64)}, "broken_contract"),
        (lambda a: {"condition": a["condition"][:8, :8]}, "broken_contract"),
        (lambda a: {"large_scale": a["large_scale"][:2]}, "broken_contract"),
        (lambda a: {"halo_center": a["halo_center"][:2]}, "broken_contract"),
        (lambda a: {"rotation": a["rotation"][[1, 2, 0]]}, "row_disagrees"),
        (lambda a: {"halo_mass": a["halo_mass"] * 1.1}, "row_disagrees"),
        (lambda a: {"halo_center": a["halo_center"] + 1}, "row_disagrees"),
        (lambda a: {"params": a["params"] * 1.001}, "row_disagrees"),
        (lambda a: {"target": a["target"] * np.float32(1.01)}, "wrong_mass"),
    ],
)
def test_arrays_that_are_not_as_they_should_be_are_named(dataset: AuditedDataset, arrays: Any, code: str) -> None:
    """Damage within a file whose recorded digest is right is named for what it is, and as an error only that."""
    dataset.write(FIRST, **arrays(dataset.arrays(FIRST)))
    result = dataset.audit()
    assert {(f.code.value, f.subject) for f in result.findings if f.severity is Severity.ERROR} == {(code, FIRST)}
    assert FIRST in result.samples["sample_id"]


@pytest.mark.parametrize("channel", range(3))
def test_a_constant_map_is_named(dataset: AuditedDataset, channel: int) -> None:
    """A map with the same value everywhere is an error, though digest and masses are those on record."""
    target = changed(dataset.arrays(FIRST)["target"], channel, 1e9)
    dataset.write(FIRST, masses=True, target=target)
    result = dataset.audit()
    assert {(f.code, f.subject) for f in result.findings if f.severity is Severity.ERROR} == {
        (AuditCode.CONSTANT_MAP, FIRST)
    }


def test_a_simulation_without_stars_is_no_constant_map(dataset: AuditedDataset) -> None:
    """A stellar map without any star is legitimate."""
    dataset.write(FIRST, masses=True, target=changed(dataset.arrays(FIRST)["target"], 2, 0))
    assert dataset.found() == {}


@pytest.mark.parametrize("index", range(3))
def test_a_shifted_window_disagrees_with_the_others(dataset: AuditedDataset, index: int) -> None:
    """A context map that is off by one pixel holds the same mass, and not what the other windows show."""
    context = dataset.arrays(FIRST)["large_scale"].copy()
    context[index] = np.roll(context[index], 1, axis=0)
    dataset.write(FIRST, masses=True, large_scale=context)
    assert dataset.found() == {"windows_disagree": {FIRST}}


def test_a_wrong_mass_on_record_is_named(dataset: AuditedDataset) -> None:
    """A recorded mass that is not the map's is found when the map is read, and only then."""
    mass = dataset.row(FIRST)["mass_target_gas"]
    dataset.update_rows(f"sample_id = '{FIRST}'", mass_target_gas=mass * (1 + 1e-4))
    assert dataset.found(Depth.KNOWN) == {}
    assert dataset.found() == {"wrong_mass": {FIRST}}


def test_a_halo_that_is_not_in_the_centre_is_a_warning(dataset: AuditedDataset) -> None:
    """Maps that were moved away from the halo are dark where it should be."""
    arrays = dataset.arrays(FIRST)
    dataset.write(FIRST, masses=True, condition=np.roll(arrays["condition"], 6, axis=(0, 1)))
    result = dataset.audit()
    (finding,) = [f for f in result.findings if f.code is AuditCode.OFF_CENTRE]
    assert (finding.subject, finding.severity) == (FIRST, Severity.WARNING)
    measured = dict(result.measures.select("sample_id", "central_contrast").rows())
    assert measured[FIRST] < 1 < np.median(list(measured.values()))


def test_an_implausible_share_of_gas_is_a_warning(dataset: AuditedDataset) -> None:
    """A sample whose gas and dark matter were exchanged has more gas than the universe offers."""
    dataset.write(FIRST, masses=True, target=dataset.arrays(FIRST)["target"][[1, 0, 2]])
    result = dataset.audit()
    codes = {(f.code, f.severity) for f in result.findings if f.subject == FIRST}
    assert (AuditCode.IMPLAUSIBLE_FRACTION, Severity.WARNING) in codes
    assert result.ok
    assert result.measures.sort("suspicion")["sample_id"][-1] == FIRST


def test_an_outlier_is_a_warning_and_the_most_suspicious(dataset: AuditedDataset) -> None:
    """A sample with a thousand times the mass of its like, consistent in itself, stands out."""
    arrays = dataset.arrays(FIRST)
    heavy = {name: arrays[name] * np.float32(1000) for name in ("condition", "target", "large_scale")}
    dataset.write(FIRST, masses=True, **heavy)
    result = dataset.audit()
    assert {(f.code, f.subject) for f in result.findings} == {(AuditCode.OUTLIER, FIRST)}
    assert result.measures.sort("suspicion")["sample_id"][-1] == FIRST


def test_a_near_duplicate_is_a_warning(dataset: AuditedDataset) -> None:
    """A sample with the maps of another halo, but its own orientation and numbers, shows the same picture."""
    maps = {name: dataset.arrays(FIRST)[name] for name in ("condition", "target", "large_scale")}
    dataset.write(OTHER, masses=True, **maps)
    found = dataset.found()
    assert found.pop("near_duplicate") == {FIRST}
    assert set(found) <= {"outlier", "implausible_mass", "implausible_fraction"}


def test_without_the_table_parameters_are_held_against_the_simulation(dataset: AuditedDataset) -> None:
    """Where the parameter table is away, a sample with other parameters than the rest of its simulation is named."""
    for path in (dataset.folder / "suite").rglob("CosmoAstroSeed*"):
        path.unlink()
    dataset.write(FIRST, params=dataset.arrays(FIRST)["params"] * 1.001)
    result = dataset.audit()
    assert {(f.code, f.subject) for f in result.findings} == {(AuditCode.ROW_DISAGREES, FIRST)}
    assert result.parameters.height == 4


def test_a_file_that_cannot_be_read_does_not_end_the_audit(dataset: AuditedDataset, tmp_path: Path) -> None:
    """A folder in a file's place, a link out of the data set, and damage in another file are each named."""
    folder, linked, emptied = dataset.file(FIRST), dataset.file(SECOND), dataset.file(OTHER)
    folder.unlink()
    folder.mkdir()
    shutil.move(linked, tmp_path / "elsewhere.npz")
    linked.symlink_to(tmp_path / "elsewhere.npz")
    os.truncate(emptied, 0)
    found = dataset.found()
    assert found["missing_file"] == {FIRST}
    assert found["unreadable_file"] == {FIRST, SECOND, OTHER}
    assert found["wrong_size"] == {OTHER}


def test_measures_and_histograms_hold_every_sample(sound: AuditedDataset) -> None:
    """Measures have a row per sample in the rows' order, and histograms count every pixel of every map once."""
    result = sound.audit()
    assert result.measures["sample_id"].to_list() == result.samples["sample_id"].to_list()
    assert np.isfinite(result.measures.select(pl.selectors.numeric()).to_numpy()).all()
    pixels = result.channels.group_by("split", "channel").agg(pl.col("pixels").sum())
    of_split = dict(result.samples.group_by("split").len().rows())
    assert pixels.height == 2 * 7
    assert {(split, count) for split, _, count in pixels.rows()} == {
        (split, 16 * 16 * samples) for split, samples in of_split.items()
    }
    widths = (result.channels["upper"] - result.channels["lower"]).to_numpy()
    np.testing.assert_allclose(widths, HISTOGRAM_STEP)


def test_the_number_of_threads_does_not_matter(sound: AuditedDataset) -> None:
    """One and several threads measure the same."""
    one, several = (sound.audit(threads=number) for number in (1, 4))
    assert one.measures.equals(several.measures)
    assert one.channels.equals(several.channels)


@pytest.mark.parametrize(("npix", "factors"), [(16, (2, 4, 8)), (12, (2, 3, 6)), (10, (3, 5)), (8, (2, 7))])
def test_windows_of_one_field_share_their_pixels(npix: int, factors: tuple[int, ...]) -> None:
    """Windows cut out of the same native nodes agree where they overlap, for every pair whose blocks fit together."""
    windows = Windows(native_size=1.0, context_sizes=tuple(float(f) for f in factors), resolution=npix)
    widest = max(factors)
    native = np.random.default_rng(1).lognormal(size=(widest * npix, widest * npix))
    every = (1, *windows.factors)
    maps = {f: block_mean(central_crop(native, f * npix), f).astype(np.float32) for f in every}
    compared = 0
    for outer in every[1:]:
        for inner in (f for f in every if f < outer):
            narrow, wide = shared_pixels(maps[inner], maps[outer], inner, outer)
            np.testing.assert_allclose(narrow, wide, rtol=1e-6)
            compared += narrow.size
    assert compared >= (npix // factors[0] - 1) ** 2


def test_equal_pictures_are_found_among_many() -> None:
    """Of 20,000 pictures, those that are another one plus a little noise are found, and no others."""
    rng = np.random.default_rng(2)
    fields = rng.lognormal(size=(20_000, 16, 16))
    fields[123], fields[19_000], fields[777] = fields[9], fields[9], fields[15_000] * (1 + 1e-4)
    pictures = np.stack([fingerprint(field) for field in fields]).astype(np.float16)
    assert {tuple(pair) for pair in near_pairs(pictures)} == {(9, 123), (9, 19_000), (123, 19_000), (777, 15_000)}


def test_pictures_that_are_only_alike_are_not_the_same() -> None:
    """Pictures that share a bright middle and differ around it are not taken for duplicates."""
    rng = np.random.default_rng(3)
    middle = 100 / (1 + np.hypot(*np.mgrid[-8:8, -8:8])) ** 2
    pictures = np.stack([fingerprint(middle * rng.lognormal(sigma=0.3, size=(16, 16))) for _ in range(500)])
    closest = np.sort((pictures @ pictures.T)[~np.eye(500, dtype=bool)])[-1]
    assert 0.9 < closest < DUPLICATE_CORRELATION
    assert not len(near_pairs(pictures))


def test_scores_follow_the_halo_mass() -> None:
    """Masses that grow with the halo's mass have small scores everywhere; one that does not has a large one."""
    rng = np.random.default_rng(4)
    halo_masses = 10 ** rng.uniform(13, 15, 2000)
    log_masses = np.log10(halo_masses) + 0.1 * rng.normal(size=2000)
    log_masses[100] += 2
    scores = robust_scores(halo_masses, log_masses)
    assert scores[100] == pytest.approx(20, abs=4)
    rest = np.delete(scores, 100)
    assert np.abs(rest).max() < 7
    assert np.std(rest) == pytest.approx(1, abs=0.15)


def test_maps_without_mass_and_few_samples_have_no_score() -> None:
    """Samples without stars are left out, and where there are too few to tell, nothing is scored."""
    masses = np.full(100, 2e13)
    some = np.where(np.arange(100) < 60, 0.0, 11.0)
    assert (robust_scores(masses, some) == 0).all()
    assert (robust_scores(masses[:29], np.linspace(1, 30, 29)) == 0).all()
