"""The plots of the report: what they show, and that they take their colours from the page."""

import re
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from storage.report_plots import (
    MOST_POINTS,
    channel_plots,
    coverage_strips,
    mass_function_plot,
    orientation_plot,
)

NOTHING = pl.DataFrame()


def haloes(*masses: float, split: str = "train") -> pl.DataFrame:
    """Return rows of one sample per halo."""
    return pl.DataFrame(
        {"simulation": "SB35_0", "halo": range(len(masses)), "halo_mass": masses, "split": split},
        schema_overrides={"halo_mass": pl.Float64},
    )


def orientations(quaternions: np.ndarray) -> pl.DataFrame:
    """Return rows of samples with these orientations."""
    return pl.DataFrame(
        {f"quaternion_{part}": quaternions[:, index] for index, part in enumerate("wxyz")}
    ).with_columns(split=pl.lit("train"))


def uniform(number: int) -> np.ndarray:
    """Return uniform unit quaternions, (number, 4)."""
    normal = np.random.default_rng(0).normal(size=(number, 4))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def texts(svg: str) -> str:
    """Return all text of a plot."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_the_mass_function_counts_haloes_not_samples() -> None:
    """Ten orientations of a halo are one halo with samples, and the catalogues' haloes are counted beside it."""
    samples = pl.concat([haloes(2e13, 5e13).with_columns(rotation=pl.lit(number)) for number in range(10)])
    svg = mass_function_plot(samples, haloes(1e13, 2e13, 5e13))
    assert svg is not None
    assert "catalogues: 3" in texts(svg)
    assert "with samples, train: 2" in texts(svg)
    assert "share taken" in texts(svg)


def test_without_catalogues_only_the_samples_are_drawn() -> None:
    """Where the catalogues are out of reach there is neither their histogram nor a share of it."""
    svg = mass_function_plot(haloes(2e13, split="test"), NOTHING)
    assert svg is not None
    assert "with samples, test: 1" in texts(svg)
    assert "catalogues" not in texts(svg)
    assert "share taken" not in texts(svg)


@pytest.mark.parametrize("masses", [(), (0.0, -1.0), (float("nan"), float("inf"))])
def test_no_usable_mass_is_no_plot(masses: tuple[float, ...]) -> None:
    """Masses that have no logarithm are left out, and where none is left there is nothing to draw."""
    assert mass_function_plot(haloes(*masses), NOTHING) is None


def test_few_orientations_are_points_and_many_a_density() -> None:
    """Each of a few orientations is drawn; half a million are one small picture, not half a million marks."""
    few = orientation_plot(orientations(uniform(20)))
    many = orientation_plot(orientations(uniform(20 * MOST_POINTS)))
    assert few is not None and many is not None
    assert few.count("<use ") >= 20
    assert "standard deviations from uniform" in texts(many)
    assert len(many) < 200_000


def test_no_orientation_is_no_plot() -> None:
    """Without samples there is no sphere to draw."""
    assert orientation_plot(NOTHING) is None


def test_each_channel_has_a_plot_of_its_own() -> None:
    """Channels keep their order, and one without any pixel in test is drawn all the same."""
    bins = {"lower": [0.0, 1.0], "upper": [1.0, 2.0]}
    channels = pl.concat(
        pl.DataFrame({"split": split, "channel": channel, "pixels": pixels} | bins)
        for channel, split, pixels in [
            ("gas", "train", [4, 6]),
            ("gas", "test", [0, 0]),
            ("condition", "train", [1, 0]),
            ("condition", "test", [5, 5]),
        ]
    )
    plots = channel_plots(channels)
    assert [plot.channel for plot in plots] == ["gas", "condition"]
    assert "var(--train)" in plots[0].svg and "var(--test)" not in plots[0].svg
    assert "var(--test)" in plots[1].svg
    assert channel_plots(NOTHING) == []


def test_a_strip_names_test_simulations_beyond_the_train_ones() -> None:
    """Two of three test simulations lie outside the range of train, and each has a tick of its own."""
    parameters = pl.DataFrame(
        {
            "simulation": [f"SB35_{number}" for number in range(6)],
            "split": ["train"] * 3 + ["test"] * 3,
            "Omega0": [0.2, 0.3, 0.4, 0.1, 0.3, 0.5],
            "constant": [0.7] * 6,
        }
    )
    (strip,) = coverage_strips(parameters)
    assert (strip.parameter, strip.outside, strip.lower, strip.upper) == ("Omega0", 2, "0.1", "0.5")
    assert [float(x) for x in re.findall(r"M([\d.]+) ", strip.test)] == [0, strip.WIDTH / 2, strip.WIDTH]
    assert not strip.logarithmic


def test_a_wide_parameter_is_shown_logarithmically() -> None:
    """The middle of a range of factors is its geometric mean."""
    parameters = pl.DataFrame(
        {"simulation": ["a", "b", "c"], "split": ["train", "train", "test"], "A": [0.1, 10.0, 1.0]}
    )
    (strip,) = coverage_strips(parameters)
    assert strip.logarithmic
    assert strip.test.startswith(f"M{strip.WIDTH / 2:g} ")


def test_strips_do_without_train_without_test_and_without_numbers() -> None:
    """One split alone, and values that are no numbers, are no error."""
    parameters = pl.DataFrame({"simulation": ["a", "b"], "split": ["test", "test"], "A": [1.0, 2.0], "B": [None, 1.0]})
    (strip,) = coverage_strips(parameters)
    assert (strip.parameter, strip.train, strip.outside) == ("A", "", 0)
    assert coverage_strips(NOTHING) == []


def test_plots_take_their_colours_and_fonts_from_the_page() -> None:
    """An SVG holds the page's variables, text as text, and no address; and it is well-formed."""
    for svg in (mass_function_plot(haloes(2e13), haloes(2e13)), orientation_plot(orientations(uniform(5)))):
        assert svg is not None
        assert "var(--train)" in svg and "var(--faint)" in svg
        assert "#0" not in re.sub(r'(href="#|url\(#)\w+', "", svg)
        assert "http" not in svg
        assert "<text" in svg
        ElementTree.fromstring(svg.replace("xlink:href", "href"))  # noqa: S314  (our own)  # noqa: S314  (made by this test)


def test_a_plot_is_the_same_for_the_same_data() -> None:
    """Two reports of the same audit do not differ."""
    assert mass_function_plot(haloes(2e13), NOTHING) == mass_function_plot(haloes(2e13), NOTHING)
