"""The plots of an audit's report, as SVG that takes its colours from the page around it.

matplotlib draws them: it is a dependency already, its SVG needs no script, and a plot in the page's own colours follows
the page from light to dark. A library that draws in the browser would add megabytes of JavaScript to every report.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from bind_core.splits import Split

# Colours that stand for the page's variables until the SVG is written; nothing else in a plot has them.
_PLACEHOLDERS = {
    "ink": "#010101",
    "faint": "#020202",
    "rule": "#030303",
    "train": "#040404",
    "test": "#050505",
    "catalogue": "#060606",
}
_INK, _FAINT, _RULE, _TRAIN, _TEST, _CATALOGUE = _PLACEHOLDERS.values()
_SPLIT_COLOURS = {Split.TRAIN.value: _TRAIN, Split.TEST.value: _TEST}

_MORE, _FEWER = (0.90, 0.45, 0.13), (0.20, 0.48, 0.90)
_MOST_DEVIATION = 4.0
"""Standard deviations at which the colour of an orientation's cell is full."""
MOST_POINTS = 1500
"""More orientations than these are shown as densities."""
_SAMPLES_PER_CELL = 25
_MOST_ROWS = 24
_DEX = 0.1
"""Width of a bin of the mass function."""
_LOGARITHMIC_COUNTS, _LEAST = 30, 0.6
"""Haloes in a bin from which their axis is logarithmic, and the lower end of that axis."""

_SMALL, _NORMAL = 9.5, 11
"""Sizes of text, in units that are about a pixel where a plot is shown."""
_RASTER_DPI = 110
_STRIP_WIDTH, _STRIP_HEIGHT, _STRIP_BINS = 240.0, 34.0, 32
_LOGARITHMIC_FROM = 8.0
"""Ratio of a parameter's largest to its smallest value from which its strip is logarithmic."""


@dataclass(frozen=True)
class ChannelPlot:
    """How the pixels of one map are distributed, in train and in test."""

    channel: str
    svg: str


@dataclass(frozen=True)
class CoverageStrip:
    """Where the simulations lie in one parameter: paths in a box of `WIDTH` x `HEIGHT`, train above and test below."""

    WIDTH = _STRIP_WIDTH
    HEIGHT = _STRIP_HEIGHT

    parameter: str
    lower: str
    """Smallest value, as text; likewise the largest one."""
    upper: str
    logarithmic: bool
    train: str
    """Outline of the histogram of the train simulations; empty without any."""
    test: str
    """A tick for each test simulation."""
    outside: int
    """Test simulations beyond the range of the train ones."""


def mass_function_plot(samples: pl.DataFrame, halo_masses: pl.DataFrame) -> str | None:
    """Draw how many haloes of each mass the catalogues hold, and how many of them have samples.

    Parameters
    ----------
    samples : DataFrame
        Rows of the table ``samples``.
    halo_masses : DataFrame
        Haloes of the catalogues: ``simulation``, ``halo``, ``halo_mass`` in Msun/h; may be empty.

    Returns
    -------
    str or None
        An SVG; None if there is no halo.
    """
    catalogue = _log_masses(halo_masses)
    splits = {split: np.empty(0) for split in _SPLIT_COLOURS}
    if not samples.is_empty():
        selected = samples.unique(["simulation", "halo"])
        splits = {split: _log_masses(selected.filter(pl.col("split") == split)) for split in splits}
    everything = np.concatenate([catalogue, *splits.values()])
    if everything.size == 0:
        return None
    lowest, highest = math.floor(everything.min() / _DEX + 1e-9), math.floor(everything.max() / _DEX) + 1
    edges = np.arange(lowest, highest + 1) * _DEX
    counts = {split: np.histogram(masses, edges)[0] for split, masses in splits.items()}
    chosen = np.sum(list(counts.values()), axis=0)
    known = np.histogram(catalogue, edges)[0]
    logarithmic = max(known.max(), chosen.max()) > _LOGARITHMIC_COUNTS
    floor = _LEAST if logarithmic else 0.0
    with_ratio = catalogue.size > 0
    figure = _figure(7.2, 4.1)
    grid = figure.add_gridspec(2 if with_ratio else 1, 1, height_ratios=[3.2, 1] if with_ratio else None, hspace=0.12)
    axes = figure.add_subplot(grid[0])
    handles: list[Artist] = []
    if with_ratio:
        drawn = np.maximum(known, floor)
        axes.stairs(drawn, edges, fill=True, baseline=floor, color=_CATALOGUE, alpha=0.35)
        handles.append(Patch(color=_CATALOGUE, alpha=0.35, label=f"catalogues: {catalogue.size:,}"))
    for split, of_split in counts.items():
        if of_split.any():
            colour, line = _SPLIT_COLOURS[split], "-" if split == Split.TRAIN else (0, (4, 1.5))
            drawn = np.maximum(of_split, floor)
            axes.stairs(drawn, edges, baseline=floor, color=colour, linewidth=1.8, linestyle=line)
            handles.append(Patch(color=colour, label=f"with samples, {split}: {splits[split].size:,}"))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else ""))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=floor)
    axes.set_xlim(edges[0], edges[-1])
    _style(axes, "", f"haloes per {_DEX:g} dex")
    _legend(axes, handles, "upper right", (1.0, 1.0))
    if with_ratio:
        axes.tick_params(labelbottom=False)
        axes = figure.add_subplot(grid[1], sharex=axes)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(known > 0, chosen / known, np.nan)
        axes.plot((edges[:-1] + edges[1:]) / 2, share, "o", color=_INK, markersize=3.5)
        axes.axhline(1, color=_FAINT, linewidth=0.8)
        axes.set_ylim(-0.08, max(1.15, float(np.nanmax(share)) * 1.1))
        _style(axes, "", "share taken")
    axes.set_xlabel("log₁₀ of M200c in Msun/h")
    return _svg(figure, "mass function")


def orientation_plot(samples: pl.DataFrame) -> str | None:
    """Draw the lines of sight on the sphere of the box frame, in Mollweide's equal-area projection.

    Few of them are points. Many are counted in cells of equal area, coloured by how far their number is from that of
    uniform orientations, in its standard deviation: uniform orientations leave the sphere almost blank.

    Parameters
    ----------
    samples : DataFrame
        Rows of the table ``samples``.

    Returns
    -------
    str or None
        An SVG; None if there is no sample.
    """
    directions = _lines_of_sight(samples)
    longitude = np.arctan2(directions[1], directions[0])
    height = np.clip(directions[2], -1, 1)
    if longitude.size == 0:
        return None
    figure = _figure(7.2, 4.3)
    axes = figure.add_axes((0.07, 0.16, 0.92, 0.83), projection="mollweide")
    if longitude.size <= MOST_POINTS:
        splits = samples["split"].to_numpy()
        marks: list[Artist] = []
        for split, colour in _SPLIT_COLOURS.items():
            of_split = splits == split
            if of_split.any():
                marks += axes.plot(
                    longitude[of_split],
                    np.arcsin(height[of_split]),
                    "o" if split == Split.TRAIN else "^",
                    color=colour,
                    label=f"{split}: {of_split.sum():,}",
                    markersize=4 if longitude.size < 300 else 2.5,
                    alpha=0.8,
                    markeredgewidth=0,
                )
        _legend(axes, marks, "lower center", (0.5, -0.2))
    else:
        _draw_density(figure, axes, longitude, height)
    axes.grid(True, color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.patch.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_color(_FAINT)
    axes.set_xticklabels([])
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
    axes.tick_params(colors=_FAINT, labelsize=_SMALL)
    return _svg(figure, "orientations")


def channel_plots(channels: pl.DataFrame) -> list[ChannelPlot]:
    """Draw how the pixels of each map are distributed, in train and in test.

    Parameters
    ----------
    channels : DataFrame
        Histograms of ``log10(pixel + 1)``: ``split``, ``channel``, ``lower``, ``upper``, ``pixels``; may be empty.

    Returns
    -------
    list of ChannelPlot
        In the order in which the channels appear.
    """
    if channels.is_empty():
        return []
    return [
        ChannelPlot(channel, _channel_plot(channel, channels.filter(pl.col("channel") == channel)))
        for channel in channels["channel"].unique(maintain_order=True)
    ]


def coverage_strips(parameters: pl.DataFrame) -> list[CoverageStrip]:
    """Return where the train and test simulations lie, for each parameter that differs between simulations.

    Parameters
    ----------
    parameters : DataFrame
        ``simulation``, ``split`` and a column per parameter; may be empty.
    """
    if parameters.is_empty():
        return []
    splits = parameters["split"].to_numpy()
    strips = []
    for name in parameters.columns:
        if name not in {"simulation", "split"}:
            strip = _coverage_strip(name, parameters[name].cast(pl.Float64).to_numpy(), splits)
            if strip is not None:
                strips.append(strip)
    return strips


def _log_masses(rows: pl.DataFrame) -> NDArray[np.float64]:
    if rows.is_empty():
        return np.empty(0)
    masses = rows["halo_mass"].cast(pl.Float64).drop_nulls().to_numpy()
    return np.log10(masses[np.isfinite(masses) & (masses > 0)])


def _lines_of_sight(samples: pl.DataFrame) -> NDArray[np.float64]:
    """Return the z' axes in the box frame, (3, n): the third row of each rotation matrix."""
    if samples.is_empty():
        return np.empty((3, 0))
    w, x, y, z = (samples[f"quaternion_{part}"].cast(pl.Float64).to_numpy() for part in "wxyz")
    return np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])


def _draw_density(figure: Figure, axes: Axes, longitude: NDArray[np.float64], height: NDArray[np.float64]) -> None:
    rows = int(min(_MOST_ROWS, max(6, math.sqrt(longitude.size / _SAMPLES_PER_CELL / 2))))
    across, down = np.linspace(-np.pi, np.pi, 2 * rows + 1), np.linspace(-1, 1, rows + 1)
    counts = np.histogram2d(height, longitude, [down, across])[0]
    expected = longitude.size / counts.size
    deviation = (counts - expected) / math.sqrt(expected)
    # Blank where the number is as expected, so that it looks the same on a light and on a dark page.
    colours = [
        (*(_MORE if step > 0 else _FEWER), min(1.0, abs(step))) for step in np.linspace(-1, 1, 129, dtype=np.float64)
    ]
    mesh = axes.pcolormesh(
        across,
        np.arcsin(down),
        deviation,
        cmap=ListedColormap(colours),
        vmin=-_MOST_DEVIATION,
        vmax=_MOST_DEVIATION,
        rasterized=True,
        antialiased=False,  # else the cells' edges show
    )
    bar_axes = figure.add_axes((0.36, 0.075, 0.28, 0.022))
    bar = figure.colorbar(mesh, cax=bar_axes, orientation="horizontal", ticks=[-4, -2, 0, 2, 4])
    bar_axes.set_xticklabels(["-4", "-2", "0", "+2", "+4"])
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.outline.set_edgecolor(_RULE)
    bar_axes.tick_params(colors=_FAINT, labelsize=_SMALL, length=2)
    bar_axes.set_title("standard deviations from uniform", color=_FAINT, fontsize=_SMALL, pad=4)


def _channel_plot(name: str, channel: pl.DataFrame) -> str:
    figure = _figure(3.7, 2.5)
    axes = figure.add_axes((0.19, 0.21, 0.79, 0.76))
    lowest, last = 1.0, 0.0
    for split, colour in _SPLIT_COLOURS.items():
        bins = channel.filter(pl.col("split") == split).sort("lower")
        pixels = bins["pixels"].cast(pl.Float64).to_numpy()
        if pixels.sum() == 0:
            continue
        lower, upper = bins["lower"].to_numpy(), bins["upper"].to_numpy()
        shares = pixels / pixels.sum() / (upper - lower)
        lowest = min(lowest, float(shares[shares > 0].min()))
        last = max(last, float(upper[shares > 0].max()))
        edges = np.append(lower, upper[-1])
        drawn = np.where(shares > 0, shares, 1e-12)
        if split == Split.TRAIN:
            axes.stairs(drawn, edges, fill=True, baseline=1e-12, color=colour, alpha=0.3)
        axes.stairs(drawn, edges, baseline=None, color=colour, linewidth=1.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(lowest, 1e-7) * 0.7)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_xlim(right=last * 1.02 or None)
    _style(axes, "log₁₀(x + 1)", "density of pixels")
    return _svg(figure, f"channel {name}")


def _coverage_strip(name: str, values: NDArray[np.float64], splits: NDArray) -> CoverageStrip | None:
    finite = np.isfinite(values)
    values, splits = values[finite], splits[finite]
    if values.size == 0 or values.min() == values.max():
        return None
    lowest, highest = float(values.min()), float(values.max())
    logarithmic = lowest > 0 and highest / lowest >= _LOGARITHMIC_FROM
    scaled = np.log(values / lowest) / math.log(highest / lowest) if logarithmic else values - lowest
    if not logarithmic:
        scaled = scaled / (highest - lowest)
    train, test = values[splits == Split.TRAIN], values[splits == Split.TEST]
    outside = int(((test < train.min()) | (test > train.max())).sum()) if train.size else 0
    ticks = np.unique(np.round(scaled[splits == Split.TEST] * _STRIP_WIDTH, 1))
    return CoverageStrip(
        parameter=name,
        lower=f"{lowest:.4g}",
        upper=f"{highest:.4g}",
        logarithmic=logarithmic,
        train=_histogram_path(scaled[splits == Split.TRAIN]),
        test="".join(f"M{x:g} {_STRIP_HEIGHT - 7:g}v7" for x in ticks),
        outside=outside,
    )


def _histogram_path(scaled: NDArray[np.float64]) -> str:
    if scaled.size == 0:
        return ""
    counts = np.histogram(scaled, _STRIP_BINS, (0, 1))[0]
    floor, width = _STRIP_HEIGHT - 9, _STRIP_WIDTH / _STRIP_BINS
    tops = floor - counts / counts.max() * (floor - 1)
    return f"M0 {floor:g}" + "".join(f"V{top:.1f}h{width:g}" for top in tops) + f"V{floor:g}Z"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="none")
    FigureCanvasSVG(figure)
    figure.subplots_adjust(left=0.115, right=0.965, top=0.975, bottom=0.125)
    return figure


def _style(axes: Axes, across: str, up: str) -> None:
    axes.set_facecolor("none")
    axes.set_xlabel(across, color=_FAINT, fontsize=_NORMAL)
    axes.set_ylabel(up, color=_FAINT, fontsize=_NORMAL)
    axes.xaxis.label.set_color(_FAINT)
    axes.tick_params(which="both", colors=_FAINT, labelsize=_NORMAL)
    axes.grid(True, which="major", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(_FAINT)
        spine.set_visible(side in {"left", "bottom"})


def _legend(axes: Axes, handles: Sequence[Artist], place: Any, anchor: tuple[float, float]) -> None:
    if handles:
        axes.legend(
            handles=handles,
            frameon=False,
            labelcolor=_INK,
            fontsize=_NORMAL,
            loc=place,
            bbox_to_anchor=anchor,
            ncols=1 if place == "upper right" else len(handles),
            markerscale=2,
        )


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG for the middle of a page, with the page's variables for colours and its fonts."""
    stream = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context(settings):
        figure.savefig(stream, format="svg", metadata=unsaid, dpi=_RASTER_DPI)
    # The prologue and the names of its vocabularies belong to a file of its own.
    svg = re.sub(r'\s(xmlns|xmlns:xlink|version)="[^"]*"', "", stream.getvalue()[stream.getvalue().index("<svg") :])
    svg = re.sub(r'\sid="[A-Za-z0-9.]+_\d+"', "", svg)  # would be there once per plot, and nothing refers to them
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    for name, colour in _PLACEHOLDERS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
