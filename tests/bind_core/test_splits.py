"""Train and test: stable under growth, of the right size, and as the older generator divided."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.splits import Split, hashed_fraction, split_of

SUITE = [f"SB35_{number}" for number in range(1024)]


def config(**settings):
    paths = dict.fromkeys(("dmo_base", "hydro_base", "catalogue_base", "output_root"), Path("x"))
    return DatasetConfig.from_values(paths | settings)


def on_trial(names, **settings):
    chosen = config(**settings)
    return {name for name in names if split_of(name, int(name.split("_")[1]), chosen) is Split.TEST}


def test_adding_simulations_moves_none():
    """The split of the first simulations is the same in a suite ten times as large."""
    grown = [f"SB35_{number}" for number in range(10_240)]
    assert on_trial(grown) & set(SUITE) == on_trial(SUITE)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_the_test_set_has_about_the_fraction_asked_for(fraction):
    """Of 1,024 simulations the test set is the fraction asked for, within four standard deviations."""
    spread = (fraction * (1 - fraction) * len(SUITE)) ** 0.5
    assert abs(len(on_trial(SUITE, test_fraction=fraction)) - fraction * len(SUITE)) < 4 * spread


def test_a_larger_fraction_only_adds_tests():
    """Raising the fraction keeps every test simulation in the test set."""
    assert on_trial(SUITE, test_fraction=0.1) < on_trial(SUITE, test_fraction=0.2)


def test_extreme_fractions():
    """A fraction of 0 tests on nothing and a fraction of 1 on everything."""
    assert on_trial(SUITE, test_fraction=0) == set()
    assert on_trial(SUITE, test_fraction=1) == set(SUITE)


def test_the_split_depends_on_the_seed():
    """Another root seed gives another split."""
    assert on_trial(SUITE) != on_trial(SUITE, root_seed=1994)


@given(name=st.text(), key=st.integers(0, 2**63 - 1))
def test_hashed_fraction_is_in_range_and_repeatable(name, key):
    """Any name and key give the same number in [0, 1) every time."""
    assert 0 <= hashed_fraction(name, key) < 1
    assert hashed_fraction(name, key) == hashed_fraction(name, key)


@pytest.mark.parametrize("total", [10, 1000, 1024])
def test_shuffle_is_the_older_generators_rule(total):
    """The shuffle policy tests on the first tenth of Python's shuffle of all numbers with seed 1993."""
    numbers = list(range(total))
    random.Random(1993).shuffle(numbers)  # noqa: S311
    expected = {f"SB35_{number}" for number in numbers[: int(0.1 * total)]}
    assert on_trial(SUITE[:total], split="shuffle", total_simulations=total) == expected


@pytest.mark.parametrize(("name", "number"), [("SB35_10", 10), ("1P_p1_n2", None)])
def test_shuffle_refuses_simulations_outside_its_range(name, number):
    """A simulation that the older run did not have cannot be placed, and is not guessed."""
    with pytest.raises(ConfigurationError, match=name):
        split_of(name, number, config(split="shuffle", total_simulations=10))
