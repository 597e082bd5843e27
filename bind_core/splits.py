"""Which simulations are for training and which for testing."""

import hashlib
import random
from enum import StrEnum

from bind_core.config import DatasetConfig, SplitPolicy
from bind_core.errors import ConfigurationError


class Split(StrEnum):
    """The two halves of a data set."""

    TRAIN = "train"
    """Samples that a model learns from."""
    TEST = "test"
    """Samples that a model never sees."""


def split_of(simulation: str, simulation_number: int | None, config: DatasetConfig) -> Split:
    """Return the split that a simulation, with all its samples, belongs to.

    Parameters
    ----------
    simulation : str
        Name of the simulation, e.g. ``SB35_0``.
    simulation_number : int or None
        The number in that name; used by ``split: shuffle`` only.
    config : DatasetConfig
        Gives the policy, the test fraction and the seed.

    Raises
    ------
    ConfigurationError
        If ``split: shuffle`` is asked for a simulation that is not one of ``total_simulations`` numbered ones.
    """
    if config.split is SplitPolicy.HASH:
        is_test = hashed_fraction(simulation, config.root_seed) < config.test_fraction
    else:
        total = config.total_simulations or 0
        if simulation_number is None or not 0 <= simulation_number < total:
            raise ConfigurationError(
                f"split: shuffle divides simulations number 0 to {total - 1}, but this one is called {simulation}. "
                "Raise total_simulations only if the older data set was made with that number; otherwise use "
                "split: hash."
            )
        is_test = simulation_number in shuffled_test_numbers(total, config.test_fraction, config.root_seed)
    return Split.TEST if is_test else Split.TRAIN


def hashed_fraction(simulation: str, key: int) -> float:
    """Return a number in [0, 1) that depends on the key and the simulation's name alone.

    It is the first 64 bits of a keyed BLAKE2b hash, so that any set of names is spread uniformly.
    """
    digest = hashlib.blake2b(simulation.encode(), key=key.to_bytes(8, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def shuffled_test_numbers(total_simulations: int, test_fraction: float, seed: int) -> frozenset[int]:
    """Return the simulation numbers that the older generator tested on.

    It shuffled ``range(total_simulations)`` with Python's own generator and took the first
    ``int(test_fraction * total_simulations)``.
    """
    numbers = list(range(total_simulations))
    random.Random(seed).shuffle(numbers)  # noqa: S311
    return frozenset(numbers[: int(test_fraction * total_simulations)])
