"""Pictures of samples: all maps side by side, to be looked at before anything is trained on them."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from bind_core.fields import ExtraField
from bind_core.sample import Sample
from bind_core.windows import Windows
from storage.map_panels import (
    MASS_UNIT,
    ContactSheetError,
    MapPanel,
    bar_ticks,
    colour_scales,
    map_panels,
    round_length,
)

_MASSES = r"$M_\odot/h$ per native pixel"
_BACKGROUND, _TEXT, _FAINT = "#101218", "#eceff4", "#a3abb9"
_DPI = 130

_SCALE_BAR_SHARE = 0.3
"""Largest share of a window's side that its scale bar takes."""
_LONGEST_TEXT = 40
"""Characters of a name or a unit; beyond them, the middle is left out."""


@dataclass(frozen=True)
class SheetEntry:
    """A sample and what to call it on a contact sheet."""

    title: str
    """One line or several."""
    sample: Sample


def sample_title(simulation: str, halo: int, rotation: int, halo_mass: float, separator: str = "   ·   ") -> str:
    """Return what a sample is called on a contact sheet.

    Parameters
    ----------
    simulation : str
        Name of the simulation; never interpreted, and without its middle where it is long.
    halo : int
        Index of the halo in its catalogue.
    rotation : int
        Number of the orientation.
    halo_mass : float
        M200c, Msun/h.
    separator : str
        Between the parts; a line break makes a column of them.
    """
    name = _clipped(simulation).replace("$", r"\$")
    mass = rf"$M_{{200c}}$ = {_scientific(halo_mass)} $M_\odot/h$"
    return separator.join([name, f"halo {halo}", f"rotation {rotation}", mass])


def contact_sheet(
    sample: Sample, windows: Windows, title: str | None = None, fields: Sequence[ExtraField] = ()
) -> bytes:
    """Draw all maps of one sample.

    Colours are logarithmic, but for further fields of both signs or with a linear transform. The condition and the
    dark-matter target share one scale, and the context maps another, so that they can be compared by eye; in the
    context maps the narrower windows are outlined.

    Parameters
    ----------
    sample : Sample
        The maps.
    windows : Windows
        The geometry that they were made with.
    title : str, optional
        Line above the maps, as `sample_title` makes it; the halo's mass by default.
    fields : sequence of ExtraField
        What is known of the target's further channels.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    ContactSheetError
        If the maps do not have the windows' number and resolution.
    """
    panels = map_panels(sample, windows, fields)
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
        norm = norms[panel.scale]
        image = _draw(axes, panel, norm, windows)
        unit = f"   ·   {_clipped(panel.unit)}" if panel.unit and panel.unit != MASS_UNIT else ""
        _fit(axes.text(0, 1.095, _clipped(panel.name), color=_TEXT, fontsize=11, transform=axes.transAxes), 3.2)
        note = f"{panel.size:g} Mpc/h{unit}"
        _fit(axes.text(0, 1.025, note, color=_FAINT, fontsize=9, transform=axes.transAxes, parse_math=False), 3.2)
        if image is not None and norm is not None:
            bar_axes = figure.add_axes(((x + 2.78) / across, y / down, 0.09 / across, 2.72 / down))
            _colour_bar(figure, image, norm, bar_axes, "vertical")
    free = rows * columns - len(panels)
    if free:
        x, y = left + (columns - free) * width, down - top - (rows - 1) * height - 0.48
        _facts(figure, sample, windows, x / across, y / down, _unless_said(panels))
    else:
        x = left + (columns - 1) * width + 2.72
        _unit_note(figure, x / across, 1 - 0.36 / down, f"colours: {_MASSES}, logarithmic{_unless_said(panels)}")
    return _png(figure)


def dataset_contact_sheet(
    entries: Sequence[SheetEntry], windows: Windows, title: str = "", fields: Sequence[ExtraField] = ()
) -> bytes:
    """Draw several samples, one a row, with one colour scale per column.

    Parameters
    ----------
    entries : sequence of SheetEntry
        The samples, at least one; about four make a page.
    windows : Windows
        The geometry that all of them were made with.
    title : str
        Line above the maps.
    fields : sequence of ExtraField
        What is known of the target's further channels.

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
    rows = [map_panels(entry.sample, windows, fields) for entry in entries]
    norms = colour_scales(rows)
    side, gap, left, right, top, bottom = 1.95, 0.1, 2.05, 0.25, 1.0, 0.72
    figure = _figure(
        left + len(rows[0]) * (side + gap) + right,
        top + len(rows) * (side + gap) + bottom,
    )
    across, down = figure.get_size_inches()
    figure.text(0.2 / across, 1 - 0.3 / down, title, color=_TEXT, fontsize=14, va="center")
    scales = "one scale per column (condition and dark matter: the same)"
    note = f"colours: {_MASSES}, logarithmic{_unless_said(rows[0])}; {scales}"
    _unit_note(figure, 1 - right / across, 1 - 0.3 / down, note)
    for row, (entry, panels) in enumerate(zip(entries, rows, strict=True)):
        y = down - top - (row + 1) * (side + gap) + gap
        label = figure.text(0.2 / across, (y + side / 2) / down, entry.title, color=_TEXT, fontsize=9, va="center")
        _fit(label, left - 0.3)
        for column, panel in enumerate(panels):
            x = left + column * (side + gap)
            axes = figure.add_axes((x / across, y / down, side / across, side / down))
            _draw(axes, panel, norms[panel.scale], windows)
            if row == 0:
                name = _clipped(_short(panel.name))
                _fit(axes.text(0, 1.14, name, color=_TEXT, fontsize=9.5, transform=axes.transAxes), side)
                axes.text(0, 1.04, f"{panel.size:g} Mpc/h", color=_FAINT, fontsize=8.5, transform=axes.transAxes)
    for column, panel in enumerate(rows[0]):
        norm = norms[panel.scale]
        x = left + column * (side + gap)
        if norm is not None:
            bar_axes = figure.add_axes((x / across, (bottom - 0.16) / down, side / across, 0.08 / down))
            _colour_bar(figure, ScalarMappable(norm, panel.colours(norm)), norm, bar_axes, "horizontal")
        if panel.unit != MASS_UNIT:
            y, unit = 0.2 / down, _clipped(panel.unit)
            _fit(figure.text(x / across, y, unit, color=_FAINT, fontsize=8.5, va="center", parse_math=False), side)
    return _png(figure)


def _short(name: str) -> str:
    """Return a panel's name without the species that every map of its kind has."""
    return name.removesuffix(": N-body dark matter")


def _clipped(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[: half - 1]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def _fit(text: Text, width: float) -> None:
    """Make a text's font smaller until it is no wider than so many inches."""
    while (found := text.get_window_extent().width / _DPI) > width:
        # A little smaller than in proportion, since hinting widens small letters.
        text.set_fontsize(0.95 * text.get_fontproperties().get_size_in_points() * width / found)


def _unit_note(figure: Figure, right: float, middle: float, note: str) -> None:
    figure.text(right, middle, note, color=_FAINT, fontsize=8.5, ha="right", va="center")


def _unless_said(panels: Sequence[MapPanel]) -> str:
    return ", but for the further fields" if any(panel.transform for panel in panels) else ""


def _facts(figure: Figure, sample: Sample, windows: Windows, x: float, y: float, exception: str) -> None:
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
        f"Colours: {_MASSES}, logarithmic{exception}": "",
    }
    step = 0.3 / float(figure.get_size_inches()[1])
    for index, (name, value) in enumerate(lines.items()):
        figure.text(x, y - index * step, name, color=_FAINT, fontsize=9)
        figure.text(x + 0.105, y - index * step, value, color=_TEXT, fontsize=9)


def _draw(axes: Axes, panel: MapPanel, norm: Normalize | None, windows: Windows) -> AxesImage | None:
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
        image = axes.imshow(
            panel.shown(norm).T,  # the first index of a map runs along x'
            origin="lower",
            extent=extent,
            norm=norm,
            cmap=panel.colours(norm),
            interpolation="nearest",
        )
    else:
        axes.text(0.5, 0.5, panel.emptiness, color=_FAINT, ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")
    for size in panel.inner:
        corner = -size / 2 - windows.pixel_size / 2
        axes.add_patch(Rectangle((corner, corner), size, size, fill=False, color="white", alpha=0.55, linewidth=0.8))
    _scale_bar(axes, panel.size, extent)
    return image


def _scale_bar(axes: Axes, size: float, extent: tuple[float, float, float, float]) -> None:
    length = round_length(_SCALE_BAR_SHARE * size)
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


def _colour_bar(figure: Figure, image: ScalarMappable, norm: Normalize, axes: Axes, orientation: str) -> None:
    marks = bar_ticks(norm)
    bar = figure.colorbar(image, cax=axes, orientation=orientation)
    bar.set_ticks(list(marks), labels=list(marks.values()))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.patch.set_visible(False)  # else its white shows beside the colours where both fall between pixels
    bar.ax.tick_params(colors=_FAINT, labelsize=8, length=2, pad=2)
    bar.outline.set_visible(False)


def _scientific(value: float) -> str:
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value))
    return rf"${value / 10**exponent:.2f} \times 10^{{{exponent}}}$"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
