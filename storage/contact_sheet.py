"""Pictures of samples: all maps side by side, to be looked at before anything is trained on them."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator
from numpy.typing import NDArray

from bind_core.errors import BindDataError
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.windows import Windows
from storage.files import write_bytes

UNIT = r"$M_\odot/h$ per native pixel"

# All of them start at black, so that emptiness looks the same in every map.
_DARK_MATTER = colormaps["magma"]
_GAS = LinearSegmentedColormap.from_list("gas", ["#000004", "#0b2447", "#125c83", "#2ba8a4", "#a5e3b4", "#fbffe8"])
_STARS = colormaps["bone"]
_BACKGROUND, _TEXT, _FAINT = "#101218", "#eceff4", "#a3abb9"
_DPI = 130

_DYNAMIC_RANGE = 10.0**4.5
"""Largest ratio of the two ends of a colour scale; CIC leaves traces of mass far below anything of interest."""
_SMALLEST_RANGE = 10.0
_DIMMEST_PERCENTILE = 2.0
_SCALE_BAR_SHARE = 0.3
"""Largest share of a window's side that its scale bar takes."""


class ContactSheetError(BindDataError):
    """Samples that no contact sheet can be drawn of."""


@dataclass(frozen=True)
class SheetEntry:
    """A sample and what to call it on a contact sheet."""

    title: str
    """One line or several."""
    sample: Sample


@dataclass(frozen=True)
class MapPanel:
    """One map of a sample with the window it shows."""

    name: str
    pixels: NDArray[np.float32]
    size: float
    """Side of the window, Mpc/h."""
    palette: Colormap
    scale: str
    """Panels of the same scale share their colours' range."""
    inner: tuple[float, ...] = ()
    """Sides of the narrower windows, Mpc/h, to be outlined."""


def sample_title(simulation: str, halo: int, rotation: int, halo_mass: float, separator: str = "   ·   ") -> str:
    """Return what a sample is called on a contact sheet.

    Parameters
    ----------
    simulation : str
        Name of the simulation; shown as it is, never interpreted.
    halo : int
        Index of the halo in its catalogue.
    rotation : int
        Number of the orientation.
    halo_mass : float
        M200c, Msun/h.
    separator : str
        Between the parts; a line break makes a column of them.
    """
    name = simulation.replace("$", r"\$")
    mass = rf"$M_{{200c}}$ = {_scientific(halo_mass)} $M_\odot/h$"
    return separator.join([name, f"halo {halo}", f"rotation {rotation}", mass])


def contact_sheet(sample: Sample, windows: Windows, title: str | None = None) -> bytes:
    """Draw all maps of one sample.

    Colours are logarithmic. The condition and the dark-matter target share one scale, and the context maps
    another, so that they can be compared by eye; in the context maps the narrower windows are outlined.

    Parameters
    ----------
    sample : Sample
        The maps.
    windows : Windows
        The geometry that they were made with.
    title : str, optional
        Line above the maps, as `sample_title` makes it; the halo's mass by default.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    ContactSheetError
        If the maps do not have the windows' number and resolution.
    """
    panels = map_panels(sample, windows)
    norms = colour_scales([panels])
    columns = 4
    rows = math.ceil(len(panels) / columns)
    width, height, left, top, bottom = 3.65, 3.62, 0.35, 0.72, 0.25
    figure = _figure(left + columns * width, top + rows * height + bottom)
    across, down = figure.get_size_inches()
    heading = title or rf"$M_{{200c}}$ = {_scientific(sample.halo_mass)} $M_\odot/h$"
    figure.text(left / across, 1 - 0.36 / down, heading, color=_TEXT, fontsize=15, va="center")
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        x, y = left + column * width, down - top - (row + 1) * height + 0.42
        axes = figure.add_axes((x / across, y / down, 2.72 / across, 2.72 / down))
        image = _draw(axes, panel, norms[panel.scale], windows)
        axes.set_title(f"{panel.name}\n", color=_TEXT, fontsize=11, loc="left", pad=2)
        axes.text(0, 1.025, f"{panel.size:g} Mpc/h", color=_FAINT, fontsize=9, transform=axes.transAxes)
        if image is not None:
            bar_axes = figure.add_axes(((x + 2.78) / across, y / down, 0.09 / across, 2.72 / down))
            _colour_bar(figure, image, bar_axes, "vertical")
    free = rows * columns - len(panels)
    if free:
        x, y = left + (columns - free) * width, down - top - (rows - 1) * height - 0.48
        _facts(figure, sample, windows, x / across, y / down)
    else:
        x = left + (columns - 1) * width + 2.72
        _unit_note(figure, x / across, 1 - 0.36 / down, f"colours: {UNIT}, logarithmic")
    return _png(figure)


def dataset_contact_sheet(entries: Sequence[SheetEntry], windows: Windows, title: str = "") -> bytes:
    """Draw several samples, one a row, with one colour scale per column.

    Parameters
    ----------
    entries : sequence of SheetEntry
        The samples, at least one; about four make a page.
    windows : Windows
        The geometry that all of them were made with.
    title : str
        Line above the maps.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    ContactSheetError
        If there is no sample, or the maps do not have the windows' number and resolution.
    """
    if not entries:
        raise ContactSheetError("A contact sheet needs at least one sample, but got none.")
    rows = [map_panels(entry.sample, windows) for entry in entries]
    norms = colour_scales(rows)
    side, gap, left, right, top, bottom = 1.95, 0.1, 2.05, 0.25, 1.0, 0.72
    figure = _figure(
        left + len(rows[0]) * (side + gap) + right,
        top + len(rows) * (side + gap) + bottom,
    )
    across, down = figure.get_size_inches()
    figure.text(0.2 / across, 1 - 0.3 / down, title, color=_TEXT, fontsize=14, va="center")
    note = f"colours: {UNIT}, logarithmic, one scale per column (condition and dark matter: the same)"
    _unit_note(figure, 1 - right / across, 1 - 0.3 / down, note)
    for row, (entry, panels) in enumerate(zip(entries, rows, strict=True)):
        y = down - top - (row + 1) * (side + gap) + gap
        figure.text(0.2 / across, (y + side / 2) / down, entry.title, color=_TEXT, fontsize=9, va="center")
        for column, panel in enumerate(panels):
            x = left + column * (side + gap)
            axes = figure.add_axes((x / across, y / down, side / across, side / down))
            _draw(axes, panel, norms[panel.scale], windows)
            if row == 0:
                axes.text(0, 1.14, _short(panel.name), color=_TEXT, fontsize=9.5, transform=axes.transAxes)
                axes.text(0, 1.04, f"{panel.size:g} Mpc/h", color=_FAINT, fontsize=8.5, transform=axes.transAxes)
    for column, panel in enumerate(rows[0]):
        norm = norms[panel.scale]
        if norm is not None:
            x = left + column * (side + gap)
            bar_axes = figure.add_axes((x / across, (bottom - 0.16) / down, side / across, 0.08 / down))
            _colour_bar(figure, ScalarMappable(norm, panel.palette), bar_axes, "horizontal")
    return _png(figure)


def write_contact_sheet(path: Path, sample: Sample, windows: Windows, title: str | None = None) -> None:
    """Write `contact_sheet` of a sample atomically."""
    write_bytes(path, contact_sheet(sample, windows, title))


def write_dataset_contact_sheet(path: Path, entries: Sequence[SheetEntry], windows: Windows, title: str = "") -> None:
    """Write `dataset_contact_sheet` of several samples atomically."""
    write_bytes(path, dataset_contact_sheet(entries, windows, title))


def map_panels(sample: Sample, windows: Windows) -> list[MapPanel]:
    """Return all maps of a sample's masses, in the order of the contract.

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
    native = windows.native_size
    dark_matter, gas, stars = sample.target[: len(TARGET_CHANNELS)]
    panels = [
        MapPanel("Condition: N-body dark matter", sample.condition, native, _DARK_MATTER, "native dark matter"),
        MapPanel("Target: dark matter", dark_matter, native, _DARK_MATTER, "native dark matter"),
        MapPanel("Target: gas", gas, native, _GAS, "gas"),
        MapPanel("Target: stars", stars, native, _STARS, "stars"),
    ]
    for index, (size, pixels) in enumerate(zip(windows.context_sizes, sample.large_scale, strict=True)):
        inner = (native, *windows.context_sizes[:index])
        panels.append(MapPanel("Context: N-body dark matter", pixels, size, _DARK_MATTER, "context", inner))
    return panels


def colour_scales(rows: Iterable[Sequence[MapPanel]]) -> dict[str, LogNorm | None]:
    """Return the logarithmic colour scale of every group of panels.

    Parameters
    ----------
    rows : iterable of sequences of MapPanel
        The panels of each sample.

    Returns
    -------
    dict of str to LogNorm or None
        By `MapPanel.scale`; None where none of the panels holds any mass.
    """
    groups: dict[str, list[NDArray[np.float32]]] = {}
    for panels in rows:
        for panel in panels:
            groups.setdefault(panel.scale, []).append(panel.pixels[panel.pixels > 0])
    return {scale: _norm(np.concatenate(pixels)) for scale, pixels in groups.items()}


def _short(name: str) -> str:
    """Return a panel's name without the species that every map of its kind has."""
    return name.removesuffix(": N-body dark matter")


def _unit_note(figure: Figure, right: float, middle: float, note: str) -> None:
    figure.text(right, middle, note, color=_FAINT, fontsize=8.5, ha="right", va="center")


def _facts(figure: Figure, sample: Sample, windows: Windows, x: float, y: float) -> None:
    masses = sample.map_masses(windows)
    center = ", ".join(f"{value:.2f}" for value in sample.halo_center)
    line_of_sight = ", ".join(f"{value:+.3f}" for value in sample.rotation[2])
    lines = {
        "Centre in the box": f"({center}) Mpc/h",
        "Line of sight in the box": f"({line_of_sight})",
        f"Mass within {windows.native_size:g} Mpc/h, {windows.depth:g} Mpc/h deep": "",
        "   N-body": f"{_scientific(masses['mass_condition'])} $M_\\odot/h$",
        "   dark matter": f"{_scientific(masses['mass_target_dark_matter'])} $M_\\odot/h$",
        "   gas": f"{_scientific(masses['mass_target_gas'])} $M_\\odot/h$",
        "   stars": f"{_scientific(masses['mass_target_stars'])} $M_\\odot/h$",
        f"Colours: {UNIT}, logarithmic": "",
    }
    step = 0.3 / float(figure.get_size_inches()[1])
    for index, (name, value) in enumerate(lines.items()):
        figure.text(x, y - index * step, name, color=_FAINT, fontsize=9)
        figure.text(x + 0.105, y - index * step, value, color=_TEXT, fontsize=9)


def _norm(masses: NDArray[np.float32]) -> LogNorm | None:
    if masses.size == 0:
        return None
    brightest = float(masses.max())
    dimmest = float(np.percentile(masses, _DIMMEST_PERCENTILE))
    return LogNorm(min(max(dimmest, brightest / _DYNAMIC_RANGE), brightest / _SMALLEST_RANGE), brightest)


def _draw(axes: Axes, panel: MapPanel, norm: LogNorm | None, windows: Windows) -> AxesImage | None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#3b4252")
    axes.set_facecolor("black")
    image = None
    # Node i sits at i pixels from the window's edge and spreads half a pixel either way.
    edge = -panel.size / 2 - windows.pixel_size / 2
    extent = (edge, edge + panel.size, edge, edge + panel.size)
    if norm is not None and panel.pixels.any():
        # Pixels without mass get the darkest colour instead of a hole.
        shown = np.maximum(panel.pixels, np.float32(norm.vmin or 0))
        image = axes.imshow(
            shown.T,  # the first index of a map runs along x'
            origin="lower",
            extent=extent,
            norm=norm,
            cmap=panel.palette,
            interpolation="nearest",
        )
    else:
        axes.text(0.5, 0.5, "no mass", color=_FAINT, ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")
    for size in panel.inner:
        corner = -size / 2 - windows.pixel_size / 2
        axes.add_patch(Rectangle((corner, corner), size, size, fill=False, color="white", alpha=0.55, linewidth=0.8))
    _scale_bar(axes, panel.size, extent)
    return image


def _scale_bar(axes: Axes, size: float, extent: tuple[float, float, float, float]) -> None:
    length = _round_length(_SCALE_BAR_SHARE * size)
    x, y = extent[0] + 0.05 * size, extent[2] + 0.05 * size
    for colour, width in (("black", 4.0), ("white", 1.8)):
        axes.plot([x, x + length], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    axes.text(
        x,
        y + 0.025 * size,
        f"{length:g} Mpc/h",
        color="white",
        fontsize=8,
        va="bottom",
        bbox={"facecolor": "black", "alpha": 0.45, "edgecolor": "none", "pad": 1.2},
    )


def _round_length(longest: float) -> float:
    """Return the largest of …, 0.5, 1, 2, 5, 10, … that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return power * max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-12))


def _colour_bar(figure: Figure, image: ScalarMappable, axes: Axes, orientation: str) -> None:
    bar = figure.colorbar(image, cax=axes, orientation=orientation, ticks=LogLocator(numticks=6))
    bar.formatter = LogFormatterSciNotation(labelOnlyBase=True)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(colors=_FAINT, labelsize=8, length=2, pad=2)
    bar.outline.set_visible(False)


def _scientific(value: float) -> str:
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value))
    return rf"${value / 10**exponent:.2f} \times 10^{{{exponent}}}$"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
