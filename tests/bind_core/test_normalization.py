import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bind_core.errors import NormalizationMismatchError
from bind_core.normalization import (
    Moments,
    NormalizationStats,
    ZScore,
    denormalize_target,
    inverse_log_transform,
    log_transform,
    normalize,
    normalize_input,
)
from bind_core.sample import Sample

DIGEST = "d" * 64
STATS = NormalizationStats(
    condition=ZScore(9.0, 2.0),
    large_scale=(ZScore(9.5, 1.0), ZScore(10.0, 0.5)),
    dark_matter=ZScore(8.0, 4.0),
    gas=ZScore(7.0, 3.0),
    stars=ZScore(0.5, 2.0),
    manifest_version=3,
    config_digest=DIGEST,
    n_samples=1200,
)

MASSES = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements=st.floats(0, 2.0**60, width=32))


def sample_of(masses: float) -> Sample:
    return Sample(
        condition=np.full((4, 4), masses, np.float32),
        target=np.full((3, 4, 4), masses, np.float32),
        large_scale=np.full((2, 4, 4), masses, np.float32),
        params=np.ones(2),
        halo_mass=1e13,
        halo_center=np.zeros(3),
        rotation=np.eye(3),
    )


def test_the_transform_of_known_masses() -> None:
    """No mass becomes 0, 9 becomes 1, and 1e12 becomes 12 to nine digits."""
    np.testing.assert_allclose(log_transform(np.array([0, 9, 1e12])), [0, 1, 12], rtol=1e-9)


@given(MASSES)
def test_the_inverse_undoes_the_transform(masses: np.ndarray) -> None:
    """Any mass comes back from its logarithm to twelve digits."""
    np.testing.assert_allclose(inverse_log_transform(log_transform(masses)), masses, rtol=1e-12, atol=1e-12)


def test_moments_of_known_numbers() -> None:
    """2, 4, 4, 4, 5, 5, 7, 9 have mean 5 and standard deviation 2."""
    moments = Moments.of([2, 4, 4, 4, 5, 5, 7, 9])
    assert (moments.count, moments.mean, moments.std) == (8, 5.0, 2.0)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3)),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_moments_do_not_depend_on_the_division(numbers: np.ndarray, cuts: list[int]) -> None:
    """Cut anywhere into any number of parts, empty ones included, the merged moments are those of the whole."""
    merged = Moments()
    for part in np.split(numbers, sorted(cuts)):
        merged = merged.add(part)
    whole = Moments.of(numbers)
    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-10)
    assert merged.squares == pytest.approx(whole.squares, rel=1e-12, abs=1e-7)


@given(st.lists(hnp.arrays(np.float64, 5, elements=st.floats(-1e3, 1e3)), min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(parts: list[np.ndarray]) -> None:
    """Any order of merging three parts gives the same moments to rounding."""
    a, b, c = map(Moments.of, parts)
    for one, other in ((a.merge(b).merge(c), a.merge(b.merge(c))), (a.merge(b), b.merge(a))):
        assert one.count == other.count
        assert one.mean == pytest.approx(other.mean, rel=1e-12, abs=1e-10)
        assert one.squares == pytest.approx(other.squares, rel=1e-12, abs=1e-7)


def test_a_small_spread_about_a_large_mean_is_kept() -> None:
    """Spread 1 about mean 1e9, where sums of squares lose every digit, survives a merge of 1,000 parts."""
    numbers = 1e9 + np.tile([-1.0, 1.0], 50_000)
    merged = Moments()
    for part in np.split(numbers, 1000):
        merged = merged.add(part)
    assert merged.std == pytest.approx(1.0, rel=1e-9)


def test_float32_maps_are_summed_in_double_precision() -> None:
    """The mean of ten million equal float32 numbers is that number."""
    assert Moments.of(np.full(10_000_000, 0.1, np.float32)).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_equal_numbers_become_zero() -> None:
    """Star maps without any star have no spread, and become 0 instead of undefined."""
    score = ZScore.of(Moments.of(np.zeros(10)))
    np.testing.assert_array_equal(score.apply(np.zeros(3)), 0)
    np.testing.assert_array_equal(score.invert(np.zeros(3)), 0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_an_impossible_z_score_is_refused(mean: float, std: float) -> None:
    """Scales that are not positive and finite are refused when they are made, not when they divide."""
    with pytest.raises(ValueError, match="standard deviation > 0"):
        ZScore(mean, std)


def test_every_map_is_normalized_with_its_own_statistics() -> None:
    """Mass 1e9 - 1, of logarithm 9, becomes (9 - mean) / std of each map."""
    seen = normalize(sample_of(1e9 - 1), STATS, DIGEST)
    assert {map_.dtype for map_ in (seen.condition, seen.target, seen.large_scale)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(seen.condition, np.full((4, 4), 0.0), atol=1e-7)
    np.testing.assert_allclose(seen.large_scale[:, 0, 0], [-0.5, -2.0], rtol=1e-6)
    np.testing.assert_allclose(seen.target[:, 0, 0], [0.25, 2 / 3, 4.25], rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_training_and_inference_see_the_same_bits(seed: int) -> None:
    """The maps that inference normalizes by themselves equal those of a training sample to the bit."""
    rng = np.random.default_rng(seed)
    sample = dataclasses.replace(
        sample_of(0),
        condition=rng.exponential(1e10, (4, 4)).astype(np.float32),
        large_scale=rng.exponential(1e10, (2, 4, 4)).astype(np.float32),
    )
    training = normalize(sample, STATS, DIGEST)
    condition, large_scale = normalize_input(sample.condition, sample.large_scale, STATS, DIGEST)
    assert condition.tobytes() == training.condition.tobytes()
    assert large_scale.tobytes() == training.large_scale.tobytes()


@given(hnp.arrays(np.float32, (3, 2, 2), elements=st.floats(0, 2.0**50, width=32)))
def test_targets_come_back(target: np.ndarray) -> None:
    """Denormalizing a normalized target gives its masses back, to the precision of float32 logarithms."""
    sample = dataclasses.replace(sample_of(0), target=target)
    found = denormalize_target(normalize(sample, STATS, DIGEST).target, STATS, DIGEST)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, target, rtol=1e-4, atol=1e-4)


def test_batches_of_targets_are_denormalized_like_single_ones() -> None:
    """Leading batch axes change nothing."""
    batch = np.random.default_rng(0).normal(size=(5, 2, 3, 4, 4))
    found = denormalize_target(batch, STATS, DIGEST)
    for index in np.ndindex(5, 2):
        np.testing.assert_array_equal(found[index], denormalize_target(batch[index], STATS, DIGEST))


def test_no_mass_is_negative() -> None:
    """A model that falls short of the value for an empty pixel yields 0, not a negative mass."""
    assert denormalize_target(np.full((3, 1, 1), -50.0), STATS, DIGEST).max() == 0.0


@pytest.mark.parametrize(
    "apply",
    [
        lambda digest, force: normalize(sample_of(1), STATS, digest, force=force),
        lambda digest, force: normalize_input(np.ones((4, 4)), np.ones((2, 4, 4)), STATS, digest, force=force),
        lambda digest, force: denormalize_target(np.ones((3, 4, 4)), STATS, digest, force=force),
    ],
)
def test_statistics_of_another_data_set_are_refused_unless_forced(apply) -> None:
    """Each way of applying them compares the configuration's digest, and only force overrides it."""
    with pytest.raises(NormalizationMismatchError, match="configuration dddd"):
        apply("e" * 64, False)
    apply("e" * 64, True)
    apply(DIGEST, False)


def test_another_number_of_context_maps_is_refused() -> None:
    """Statistics of two context maps are not applied to three, forced or not."""
    for force in (False, True):
        with pytest.raises(NormalizationMismatchError, match=r"3 context maps.*of 2"):
            normalize_input(np.ones((4, 4)), np.ones((3, 4, 4)), STATS, DIGEST, force=force)
