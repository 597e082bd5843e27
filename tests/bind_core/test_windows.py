import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bind_core.windows import Windows, block_mean, block_sum, central_crop


def test_default_windows_are_those_of_the_sample_contract():
    """The defaults are 128 pixels over 6.25 Mpc/h, and context windows 2, 4 and 8 times as wide."""
    windows = Windows()
    assert windows.pixel_size == 6.25 / 128
    assert windows.factors == (2, 4, 8)
    assert windows.sizes == (6.25, 12.5, 25.0, 50.0)


def test_sizes_need_not_be_exact_in_binary():
    """Sizes whose ratio is whole only up to rounding are accepted."""
    assert Windows(native_size=0.1, context_sizes=(0.3, 0.7)).factors == (3, 7)


def test_a_list_of_context_sizes_is_stored_as_a_tuple():
    """Context sizes may come as a list, as from YAML, and the windows stay hashable."""
    assert hash(Windows(context_sizes=[12.5])) == hash(Windows(context_sizes=(12.5,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"native_size": 0.0}, "native_size must be a positive length"),
        ({"native_size": float("nan")}, "native_size must be a positive length"),
        ({"depth": -1.0}, "depth must be a positive length"),
        ({"context_sizes": (12.5, float("inf"))}, r"context_sizes\[1\] must be a positive length"),
        ({"context_sizes": (10.0,)}, "whole multiple.*found 10.0 Mpc/h, which is 1.6 times"),
        ({"context_sizes": (6.25,)}, "whole multiple, at least 2"),
        ({"context_sizes": (25.0, 12.5)}, "must ascend"),
        ({"context_sizes": (12.5, 12.5)}, "must ascend"),
        ({"resolution": 127}, "positive even number of pixels"),
        ({"resolution": 0}, "positive even number of pixels"),
    ],
)
def test_impossible_windows_are_refused_with_the_reason(settings, message):
    """Windows that no map can represent raise a ValueError that names the setting and its value."""
    with pytest.raises(ValueError, match=message):
        Windows(**settings)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_block_means_keep_the_mean(factor, blocks, seed):
    """Averaging over blocks leaves the mean of a map as it is."""
    pixels = np.random.default_rng(seed).random((factor * blocks, factor * blocks))
    assert block_mean(pixels, factor).mean() == pytest.approx(pixels.mean())


def test_block_mean_of_a_known_map():
    """Each pixel of the result is the mean of its own block."""
    pixels = np.arange(16.0).reshape(4, 4)
    assert block_mean(pixels, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert block_sum(pixels, 2).tolist() == [[10.0, 18.0], [42.0, 50.0]]


def test_central_crop_keeps_the_middle_node_in_the_middle():
    """Node n/2 of a map is node size/2 of its crop."""
    pixels = np.zeros((12, 12))
    pixels[6, 6] = 1.0
    assert central_crop(pixels, 4)[2, 2] == 1.0


def test_maps_that_do_not_divide_are_refused():
    """Blocks and crops that do not fit raise a ValueError with both sizes."""
    with pytest.raises(ValueError, match="4 x 4 pixels does not divide into blocks of 3 x 3"):
        block_mean(np.zeros((4, 4)), 3)
    with pytest.raises(ValueError, match="cannot crop"):
        central_crop(np.zeros((4, 4)), 3)
