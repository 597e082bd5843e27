import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bind_core.errors import NormalizationMismatchError
from bind_core.moments import ChannelTally, Moments, ValueCounts
from bind_core.normalization import (
    ChannelStats,
    DatasetIdentity,
    NormalizationStats,
    denormalize_target,
    normalize,
    normalize_input,
)
from bind_core.quantiles import QuantileTable
from bind_core.sample import Sample
from bind_core.transforms import ChannelTransform, TransformKind

DIGEST = "d" * 64
STATS = NormalizationStats(
    condition=ChannelStats(9.0, 2.0),
    large_scale=(ChannelStats(9.5, 1.0), ChannelStats(10.0, 0.5)),
    target={"dark_matter": ChannelStats(8.0, 4.0), "gas": ChannelStats(7.0, 3.0), "stars": ChannelStats(0.5, 2.0)},
    manifest_version=3,
    config_digest=DIGEST,
    n_samples=1200,
    set_name="SB35",
)
VELOCITY = ChannelStats(0.5, 2.0, ChannelTransform(kind=TransformKind.ASINH, scale=100.0))
WITH_VELOCITY = dataclasses.replace(STATS, target={**STATS.target, "velocity": VELOCITY})


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


def sample_with_velocity(velocity: float) -> Sample:
    target = np.concatenate([np.full((3, 4, 4), 1e9, np.float32), np.full((1, 4, 4), velocity, np.float32)])
    return dataclasses.replace(
        sample_of(1e9), target=target, target_channels=("dark_matter", "gas", "stars", "velocity")
    )


# Transforms


@pytest.mark.parametrize(
    ("transform", "values", "expected"),
    [
        (ChannelTransform(), [0, 9, 1e12], [0, 1, 12]),
        (ChannelTransform(scale=1e6), [0, 9e6, 1e18], [0, 1, 12]),
        (ChannelTransform(kind=TransformKind.ASINH, scale=2.0), [0, 2 * np.sinh(1), -2 * np.sinh(3)], [0, 1, -3]),
        (ChannelTransform(kind=TransformKind.LINEAR, scale=4.0), [0, 4, -2], [0, 1, -0.5]),
    ],
)
def test_transforms_of_known_values(transform: ChannelTransform, values: list[float], expected: list[float]) -> None:
    """Each kind gives the values of its formula, and its inverse gives them back."""
    np.testing.assert_allclose(transform.apply(values), expected, rtol=1e-9)
    np.testing.assert_allclose(transform.invert(expected), values, rtol=1e-9)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements=st.floats(0, 2.0**60, width=32)),
    st.sampled_from(TransformKind),
    st.floats(1e-3, 1e6),
)
def test_the_inverse_undoes_the_transform(values: np.ndarray, kind: TransformKind, scale: float) -> None:
    """Any value comes back from its transform to eleven digits, and what was given is left as it was."""
    before = values.copy()
    transform = ChannelTransform(kind=kind, scale=scale)
    np.testing.assert_allclose(transform.invert(transform.apply(values)), values, rtol=1e-11, atol=1e-11 * scale)
    np.testing.assert_array_equal(values, before)


# Moments


def two_pass(numbers: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation, by numpy's two passes in double precision."""
    return float(numbers.mean()), float(numbers.std())


def test_moments_of_known_numbers() -> None:
    """2, 4, 4, 4, 5, 5, 7, 9 have mean 5 and standard deviation 2."""
    moments = Moments.of([2, 4, 4, 4, 5, 5, 7, 9])
    assert (moments.count, moments.mean, moments.std) == (8, 5.0, 2.0)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e3)),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_moments_of_any_division_are_those_of_two_passes(numbers: np.ndarray, cuts: list[int]) -> None:
    """Cut anywhere into any number of parts, empty ones included, merged moments are those of all numbers, to 1e-12."""
    merged = Moments()
    for part in np.split(numbers, sorted(cuts)):
        merged = merged.merge(Moments.of(part))
    mean, std = two_pass(numbers)
    assert merged.count == numbers.size
    assert merged.mean == pytest.approx(mean, rel=1e-12, abs=1e-300)
    assert merged.std == pytest.approx(std, rel=1e-12, abs=1e-12 * np.abs(numbers).max())


@given(
    st.lists(hnp.arrays(np.float64, st.integers(0, 7), elements=st.floats(-1e3, 1e3)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_no_order_and_no_worker_changes_a_bit(parts: list[np.ndarray], random, workers: int) -> None:
    """Merged in any order, by any number of workers whose results are merged in any order, moments are the same."""
    tallies = [ChannelTally.of(part, counted=True) for part in parts if part.size]
    expected = ChannelTally.merged(tallies) if tallies else None
    random.shuffle(tallies)
    shares = [tallies[worker::workers] for worker in range(workers)]
    found = [ChannelTally.merged(share) for share in shares if share]
    random.shuffle(found)
    if expected is None:
        return
    whole = ChannelTally.merged(found)
    assert whole.moments == expected.moments
    assert (whole.moments.mean, whole.moments.std) == (expected.moments.mean, expected.moments.std)
    assert whole.counts is not None
    assert expected.counts is not None
    np.testing.assert_array_equal(whole.counts.bins, expected.counts.bins)
    np.testing.assert_array_equal(whole.counts.counts, expected.counts.counts)


def test_a_small_spread_about_a_large_mean_is_kept() -> None:
    """Spread 1 about mean 1e9, where sums of squares in double precision lose every digit, survives 1,000 parts."""
    numbers = 1e9 + np.tile([-1.0, 1.0], 50_000)
    merged = Moments()
    for part in np.split(numbers, 1000):
        merged = merged.merge(Moments.of(part))
    assert (merged.mean, merged.std) == (1e9, 1.0)


def test_float32_maps_are_summed_in_double_precision() -> None:
    """The mean of ten million equal float32 numbers is that number."""
    assert Moments.of(np.full(10_000_000, 0.1, np.float32)).mean == pytest.approx(float(np.float32(0.1)), rel=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3])
def test_equal_numbers_become_zero(value: float) -> None:
    """Star maps without any star have no spread, and become 0 instead of undefined; so does any constant."""
    stats = ChannelStats.of(ChannelTally.of(np.full(1001, value)), ChannelTransform(kind=TransformKind.LINEAR))
    assert stats.std == 1.0
    np.testing.assert_allclose(stats.apply(np.full(3, value)), 0, atol=1e-14)
    np.testing.assert_allclose(stats.invert(np.zeros(3)), value, rtol=1e-14)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_an_impossible_z_score_is_refused(mean: float, std: float) -> None:
    """Scales that are not positive and finite are refused when they are made, not when they divide."""
    with pytest.raises(ValueError, match="standard deviation > 0"):
        ChannelStats(mean, std)


# Quantiles


def star_logs(seed: int = 0, size: int = 100_000) -> np.ndarray:
    """Return the logarithms of a map of stars: 95 % zeros, the rest between 4 and 12."""
    random = np.random.default_rng(seed)
    return np.where(random.random(size) < 0.95, 0.0, np.clip(random.normal(8, 1.2, size), 4, 12))


def test_quantiles_are_those_of_the_numbers() -> None:
    """Quantiles from counts agree with numpy's to the width of a bin, and both ends enclose all numbers."""
    numbers = np.concatenate([np.random.default_rng(1).normal(-2, 3, 50_001), np.zeros(20_000)])
    levels = np.linspace(0, 1, 101)
    found = ValueCounts.of(numbers).quantiles(levels)
    expected = np.quantile(numbers, levels, method="inverted_cdf")
    np.testing.assert_allclose(found[1:-1], expected[1:-1], rtol=1 / 2048, atol=1e-12)
    assert found[0] <= numbers.min() < numbers.max() <= found[-1]
    assert (found == 0).sum() >= 20


def test_values_become_normal() -> None:
    """Numbers of a lopsided distribution become scores of mean 0 and deviation 1, with the normal's quantiles."""
    numbers = np.random.default_rng(2).exponential(3.0, 200_000)
    scores = QuantileTable.of(ValueCounts.of(numbers)).apply(numbers)
    assert scores.mean() == pytest.approx(0, abs=5e-3)
    assert scores.std() == pytest.approx(1, abs=5e-3)
    np.testing.assert_allclose(np.quantile(scores, [0.0228, 0.1587, 0.8413, 0.9772]), [-2, -1, 1, 2], atol=0.02)


def test_no_stars_are_one_score_and_come_back_as_none() -> None:
    """Zeros become the score in the middle of their share, from which, and from all scores of it, zeros come back."""
    numbers = star_logs()
    table = QuantileTable.of(ValueCounts.of(numbers))
    scores = table.apply(numbers)
    (zero,) = np.unique(scores[numbers == 0])
    assert zero == pytest.approx(-0.0627, abs=0.01)  # the normal's quantile at 0.475
    assert (table.invert(np.array([-5.0, -1.0, zero, np.float32(zero), 1.6])) == 0).all()
    assert table.invert(1.7) > 4
    np.testing.assert_allclose(table.invert(scores), numbers, rtol=1e-12, atol=1e-12)


@given(
    hnp.arrays(np.float64, st.integers(1, 300), elements=st.one_of(st.just(0.0), st.floats(-20, 20))),
    hnp.arrays(np.float64, 20, elements=st.floats(-40, 40)),
)
def test_any_table_can_be_inverted(numbers: np.ndarray, others: np.ndarray) -> None:
    """Whatever the numbers, they come back from their scores, as do numbers beyond the table's ends."""
    numbers, others = np.round(numbers, 6), np.round(others, 6)
    table = QuantileTable.of(ValueCounts.of(numbers))
    span = max(table.values[-1] - table.values[0], 1e-3)
    for values in (numbers, others):
        ordered = np.sort(values)
        scores = table.apply(ordered)
        assert (np.diff(scores) >= 0).all()
        np.testing.assert_allclose(table.invert(scores), ordered, rtol=1e-9, atol=1e-9 * span)


@pytest.mark.parametrize(
    ("values", "scores", "said"),
    [
        ((0.0,), (0.0,), "two or more values"),
        ((0.0, 1.0), (0.0,), "as many scores"),
        ((0.0, np.nan), (0.0, 1.0), "not finite"),
        ((1.0, 0.0), (0.0, 1.0), "ascending"),
        ((0.0, 1.0), (1.0, 1.0), "strictly ascending"),
    ],
)
def test_an_impossible_table_is_refused(values: tuple[float, ...], scores: tuple[float, ...], said: str) -> None:
    """A table that does not ascend, or whose halves do not match, is refused when it is made."""
    with pytest.raises(ValueError, match=said):
        QuantileTable(values, scores)


def test_a_table_is_used_where_it_is_asked_for() -> None:
    """Statistics with a table use the z-score until the table is asked for; one that is not there is refused."""
    tally = ChannelTally.of(star_logs(), counted=True)
    stats = dataclasses.replace(STATS, target={**STATS.target, "stars": ChannelStats.of(tally, ChannelTransform())})
    sample = dataclasses.replace(sample_of(0), target=np.full((3, 4, 4), 1e8, np.float32))
    plain = normalize(sample, stats, DIGEST)
    own = stats.by_quantiles(["stars"])
    spread = normalize(sample, own, DIGEST)
    np.testing.assert_array_equal(plain.target[:2], spread.target[:2])
    expected = stats.target["stars"].quantiles.apply(np.log10(1e8 + 1))  # type: ignore[union-attr]
    np.testing.assert_allclose(spread.target[2], expected, rtol=1e-6)
    np.testing.assert_allclose(denormalize_target(spread.target, own, DIGEST)[2], 1e8, rtol=1e-3)
    again = pickle.loads(pickle.dumps(own))  # noqa: S301
    assert again == own
    np.testing.assert_array_equal(normalize(sample, again, DIGEST).target, spread.target)
    with pytest.raises(NormalizationMismatchError, match=r"no table of quantiles of 'gas'.*--quantiles gas"):
        stats.by_quantiles(["gas"])
    with pytest.raises(NormalizationMismatchError, match=r"no channel 'dust'; expected one of condition, large_scale"):
        stats.by_quantiles(["dust"])


# What a model sees


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


def test_a_further_channel_has_its_own_transform() -> None:
    """A fourth channel that may be negative goes through its own transform, and comes back with its sign."""
    sample = sample_with_velocity(-100 * float(np.sinh(2.5)))
    seen = normalize(sample, WITH_VELOCITY, DIGEST)
    np.testing.assert_allclose(seen.target[3], -1.5, rtol=1e-6)
    np.testing.assert_allclose(denormalize_target(seen.target, WITH_VELOCITY, DIGEST), sample.target, rtol=1e-4)


def test_batches_of_targets_are_denormalized_like_single_ones() -> None:
    """Leading batch axes change nothing."""
    batch = np.random.default_rng(0).normal(size=(5, 2, 3, 4, 4))
    found = denormalize_target(batch, STATS, DIGEST)
    for index in np.ndindex(5, 2):
        np.testing.assert_array_equal(found[index], denormalize_target(batch[index], STATS, DIGEST))


def test_no_mass_is_negative() -> None:
    """A model that falls short of the value for an empty pixel yields 0; a channel with a sign keeps it."""
    found = denormalize_target(np.full((4, 1, 1), -5.0), WITH_VELOCITY, DIGEST)
    assert found[:3].max() == 0.0
    assert found[3].max() < -1e3


# Refusal


APPLICATIONS = [
    lambda identity, force: normalize(sample_of(1), STATS, identity, force=force),
    lambda identity, force: normalize_input(np.ones((4, 4)), np.ones((2, 4, 4)), STATS, identity, force=force),
    lambda identity, force: denormalize_target(np.ones((3, 4, 4)), STATS, identity, force=force),
]


@pytest.mark.parametrize("apply", APPLICATIONS)
def test_statistics_of_another_data_set_are_refused_unless_forced(apply) -> None:
    """Each way of applying them compares the configurations, names both data sets, and only force overrides it."""
    other = DatasetIdentity("e" * 64, "CV", 12)
    with pytest.raises(NormalizationMismatchError) as caught:
        apply(other, False)
    assert f"configuration {'d' * 12}…, set SB35, manifest version 3 (1,200 samples)" in str(caught.value)
    assert f"configuration {'e' * 12}…, set CV, manifest version 12" in str(caught.value)
    with pytest.raises(NormalizationMismatchError, match=r"eeee.*set \(unknown\), manifest version \(unknown\)"):
        apply("e" * 64, False)
    apply(other, True)
    apply(DIGEST, False)


def test_another_number_of_context_maps_is_refused() -> None:
    """Statistics of two context maps are not applied to three, forced or not."""
    for force in (False, True):
        with pytest.raises(NormalizationMismatchError, match=r"3 context maps.*dddd.*of 2 .*set SB35"):
            normalize_input(np.ones((4, 4)), np.ones((3, 4, 4)), STATS, DIGEST, force=force)


def test_other_target_channels_are_refused() -> None:
    """Another number of channels, or another name, is refused with both lists and both data sets, forced or not."""
    renamed = dataclasses.replace(sample_with_velocity(1.0), target_channels=("dark_matter", "gas", "stars", "metals"))
    for force in (False, True):
        with pytest.raises(NormalizationMismatchError, match=r"3 target channels.*stars; .*dddd.*4 \(.*velocity"):
            normalize(sample_with_velocity(1.0), STATS, DIGEST, force=force)
        with pytest.raises(NormalizationMismatchError, match=r"stars, velocity; .*stars, metals"):
            normalize(renamed, WITH_VELOCITY, DIGEST, force=force)
        with pytest.raises(NormalizationMismatchError, match=r"4 target channels .*velocity; .*have 3"):
            denormalize_target(np.ones((3, 4, 4)), WITH_VELOCITY, DIGEST, force=force)
