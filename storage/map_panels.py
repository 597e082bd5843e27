"""The maps of a sample as they are shown: what each is called, its unit, its colours, and what these stand for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import AsinhNorm, Colormap, LinearSegmentedColormap, LogNorm, Normalize
from numpy.typing import NDArray

from bind_core.errors import BindDataError
from bind_core.fields import ExtraField
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.transforms import ChannelTransform, TransformKind
from bind_core.windows import Windows

MASS_UNIT = "Msun/h per native pixel"

# All of them are black where there is nothing, so that emptiness looks the same in every map.
_DARK_MATTER = colormaps["magma"]
_GAS = LinearSegmentedColormap.from_list("gas", ["#000004", "#0b2447", "#125c83", "#2ba8a4", "#a5e3b4", "#fbffe8"])
_STARS = colormaps["bone"]
_FIELD = LinearSegmentedColormap.from_list("field", ["#000004", "#143a24", "#2f7a3a", "#8fbf4a", "#dfe58a", "#fffde8"])
_SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#b7e3ff", "#3f8fd6", "#123a6b", "#000004", "#6b1f1a", "#dd6a3c", "#ffdca8"]
)

_DYNAMIC_RANGE = 10.0**4.5
"""Largest ratio of the two ends of a colour scale; CIC leaves traces of mass far below anything of interest."""
_SMALLEST_RANGE = 10.0
_DIMMEST_PERCENTILE = 2.0
_TICK_MARGIN = 0.06
"""Share of a colour bar, at either end, without ticks, whose labels would touch those of the next bar."""
_FEWEST_TICKS, _MOST_TICKS = 2, 5
_TICK_SHARE = 0.8
"""Largest share of the range to either side of 0 at which a tick stands."""


class ContactSheetError(BindDataError):
    """Samples that no contact sheet can be drawn of."""


@dataclass(frozen=True)
class MapPanel:
    """One map of a sample with the window it shows."""

    name: str
    pixels: NDArray[np.float32]
    size: float
    """Side of the window, Mpc/h."""
    palette: Colormap
    """For a scale of one sign; `colours` gives the one to draw with."""
    scale: str
    """Panels of the same scale share their colours' range."""
    inner: tuple[float, ...] = ()
    """Sides of the narrower windows, Mpc/h, to be outlined."""
    unit: str = MASS_UNIT
    """Of the pixels, in words; empty where nobody has said it."""
    transform: ChannelTransform | None = None
    """What a model sees a further field through, which decides how its colours are spaced; None for masses."""

    @property
    def emptiness(self) -> str:
        """What to say of a map of zeros."""
        return "no mass" if self.transform is None else "zero everywhere"

    def colours(self, norm: Normalize) -> Colormap:
        """Return the colours of a scale, which has some for either sign where there are both."""
        return _SIGNED if isinstance(norm, AsinhNorm) else self.palette

    def shown(self, norm: Normalize) -> NDArray[np.float32]:
        """Return the pixels within a scale: what is below it gets the darkest colour instead of a hole."""
        return np.clip(self.pixels, norm.vmin, norm.vmax)


def map_panels(sample: Sample, windows: Windows, fields: Sequence[ExtraField] = ()) -> list[MapPanel]:
    """Return all maps of a sample: the condition, all channels of the target, the context.

    Parameters
    ----------
    sample : Sample
        The maps.
    windows : Windows
        The geometry that they were made with.
    fields : sequence of ExtraField
        What is known of the channels beyond the three of every sample; those that are not among them have no unit.

    Raises
    ------
    ContactSheetError
        If the maps do not have the windows' number and resolution.
    """
    npix, n_context = windows.resolution, len(windows.context_sizes)
    expected = {
        "condition": (npix, npix),
        "target": (len(sample.target_channels), npix, npix),
        "large_scale": (n_context, npix, npix),
    }
    for key, shape in expected.items():
        found = np.shape(getattr(sample, key))
        if found != shape:
            raise ContactSheetError(
                f"Cannot draw a sample whose {key} has shape {found}: its windows say {shape}. Use the windows of the "
                "configuration that it was made with."
            )
    native, further = windows.native_size, len(TARGET_CHANNELS)
    dark_matter, gas, stars = sample.target[:further]
    panels = [
        MapPanel("Condition: N-body dark matter", sample.condition, native, _DARK_MATTER, "native dark matter"),
        MapPanel("Target: dark matter", dark_matter, native, _DARK_MATTER, "native dark matter"),
        MapPanel("Target: gas", gas, native, _GAS, "gas"),
        MapPanel("Target: stars", stars, native, _STARS, "stars"),
    ]
    known = {field.name: field for field in fields}
    for name, pixels in zip(sample.target_channels[further:], sample.target[further:], strict=True):
        words, field = name.replace("_", " "), known.get(name)
        unit, transform = (field.unit, field.transform) if field else ("", ChannelTransform())
        scale = f"target: {words}"
        panels.append(MapPanel(f"Target: {words}", pixels, native, _FIELD, scale, unit=unit, transform=transform))
    for index, (size, pixels) in enumerate(zip(windows.context_sizes, sample.large_scale, strict=True)):
        inner = (native, *windows.context_sizes[:index])
        panels.append(MapPanel("Context: N-body dark matter", pixels, size, _DARK_MATTER, "context", inner))
    return panels


def colour_scales(rows: Iterable[Sequence[MapPanel]]) -> dict[str, Normalize | None]:
    """Return the colour scale of every group of panels.

    They are logarithmic, but for further fields of both signs, which are spaced by the inverse hyperbolic sine, and
    for those with a linear transform.

    Parameters
    ----------
    rows : iterable of sequences of MapPanel
        The panels of each sample.

    Returns
    -------
    dict of str to Normalize or None
        By `MapPanel.scale`; None where there is nothing to show.
    """
    groups: dict[str, list[MapPanel]] = {}
    for panels in rows:
        for panel in panels:
            groups.setdefault(panel.scale, []).append(panel)
    return {scale: _norm(panels) for scale, panels in groups.items()}


def bar_ticks(norm: Normalize) -> dict[float, str]:
    """Return the values to mark on a colour bar, with their labels, which keep clear of the next bar's."""
    lowest, highest = float(norm.vmin or 0), float(norm.vmax or 0)
    if isinstance(norm, LogNorm):
        powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
        decades = [10.0**power for power in powers]
        inside = _inside(decades, norm)
        if len(inside) < _FEWEST_TICKS:
            inside = _inside([step * decade for decade in decades for step in (1, 2, 5)], norm)
        return {value: _power_of_ten(value) for value in inside[:: math.ceil(len(inside) / _MOST_TICKS)]}
    mark = round_length(_TICK_SHARE * highest)
    return {value: f"{value:g}" for value in ((-mark, 0.0, mark) if lowest < 0 else (mark / 2, mark))}


def round_length(longest: float) -> float:
    """Return the largest of …, 0.5, 1, 2, 5, 10, … that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return power * max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-12))


def _inside(values: list[float], norm: Normalize) -> list[float]:
    return [value for value in values if _TICK_MARGIN <= float(norm(value)) <= 1 - _TICK_MARGIN]


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    factor = "" if mantissa == "1" else rf"{mantissa}\!\times\!"
    return rf"${factor}10^{{{int(exponent)}}}$"


def _norm(panels: Sequence[MapPanel]) -> Normalize | None:
    values = np.concatenate([panel.pixels[np.isfinite(panel.pixels) & (panel.pixels != 0)] for panel in panels])
    transform = panels[0].transform
    positive = values[values > 0]
    if transform is not None and positive.size < values.size:
        limit = float(np.abs(values).max())
        return AsinhNorm(transform.scale if transform.kind is TransformKind.ASINH else limit, -limit, limit)
    if positive.size == 0:
        return None
    brightest = float(positive.max())
    if transform is not None and transform.kind is TransformKind.LINEAR:
        return Normalize(0, brightest)
    dimmest = float(np.percentile(positive, _DIMMEST_PERCENTILE))
    return LogNorm(min(max(dimmest, brightest / _DYNAMIC_RANGE), brightest / _SMALLEST_RANGE), brightest)
