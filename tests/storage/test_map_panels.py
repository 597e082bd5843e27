"""What the colours of maps stand for."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import AsinhNorm, LogNorm, Normalize

from bind_core.fields import ExtraField
from bind_core.sample import Sample
from bind_core.windows import Windows
from storage.map_panels import MapPanel, bar_ticks, colour_scales, map_panels

WINDOWS = Windows(resolution=16)


def panel_of(sample: Sample, values: np.ndarray, transform: str) -> MapPanel:
    """Return the panel of a further channel with these values."""
    target = np.concatenate([sample.target, values[np.newaxis].astype(np.float32)])
    names = (*sample.target_channels, "context")
    field = ExtraField(name="context", particle_type="gas", unit="K", transform={"kind": transform, "scale": 5.0})
    changed = dataclasses.replace(sample, target=target, target_channels=names)
    (panel,) = [panel for panel in map_panels(changed, WINDOWS, [field]) if panel.unit == "K"]
    return panel


def test_a_channel_is_named_and_measured_in_its_unit(make_sample) -> None:
    """A further channel stands after the three of every sample, with its name, its unit and a scale of its own."""
    sample = make_sample()
    panel = panel_of(sample, sample.condition, "log")
    assert panel.name == "Target: context"
    assert panel.scale not in {other.scale for other in map_panels(sample, WINDOWS)}


@pytest.mark.parametrize(
    ("sign", "transform", "kind", "ends"),
    [
        (1, "log", LogNorm, (3.0, 100.0)),
        (1, "asinh", LogNorm, (3.0, 100.0)),
        (1, "linear", Normalize, (0.0, 100.0)),
        (-1, "asinh", AsinhNorm, (-100.0, 100.0)),
        (-1, "log", AsinhNorm, (-100.0, 100.0)),
    ],
)
def test_colours_follow_sign_and_transform(
    make_sample, sign: int, transform: str, kind: type[Normalize], ends: tuple[float, float]
) -> None:
    """Values of both signs have a scale symmetric about 0, and positive ones the scale of their transform."""
    values = np.linspace(1, 100, 256).reshape(16, 16)
    values[:8] *= sign
    panel = panel_of(make_sample(), values, transform)
    scale = colour_scales([[panel]])[panel.scale]
    assert type(scale) is kind
    assert (scale.vmin, scale.vmax) == pytest.approx(ends, rel=0.1)


def test_emptiness_is_black_on_every_scale(make_sample) -> None:
    """A pixel of zero is black, whether the scale has one sign or both."""
    for values in (np.eye(16), np.eye(16) - 2 * np.eye(16)[::-1]):
        panel = panel_of(make_sample(), values, "log")
        scale = colour_scales([[panel]])[panel.scale]
        assert scale is not None
        assert max(panel.colours(scale)(scale(panel.shown(scale)))[0, 5, :3]) < 0.03


def test_what_is_not_finite_sets_no_scale(make_sample) -> None:
    """NaN and infinity leave the scale to the other pixels; a map of zeros has none."""
    sample = make_sample()
    spoilt = sample.condition.copy()
    spoilt[0, :2] = np.nan, np.inf
    panel = panel_of(sample, spoilt, "log")
    scale = colour_scales([[panel]])[panel.scale]
    assert scale is not None and scale.vmax == np.delete(sample.condition.ravel(), [0, 1]).max()
    empty = panel_of(sample, np.zeros((16, 16)), "log")
    assert colour_scales([[empty]])[empty.scale] is None


@pytest.mark.parametrize("decades", [1.0, 1.4, 3.0, 4.5])
@pytest.mark.parametrize("highest", [1.0, 3.7e12, 9.99e-5])
def test_a_colour_bar_has_ticks_away_from_its_ends(decades: float, highest: float) -> None:
    """Any scale has two to five ticks, none where its label would touch that of a bar beside it."""
    signed = AsinhNorm(highest / 10, -highest, highest)
    for norm in (LogNorm(highest / 10**decades, highest), Normalize(0, highest), signed):
        places = [float(norm(value)) for value in bar_ticks(norm)]
        assert 2 <= len(places) <= 5
        assert places == sorted(places)
        assert 0.05 < places[0] < places[-1] < 0.95
