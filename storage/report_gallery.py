"""The samples that an audit's report shows: which ones, their pictures, and all that is known of them."""

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.colors import Normalize
from PIL import Image

from bind_core.errors import BindDataError
from bind_core.findings import Severity
from bind_core.windows import Windows
from storage.audit_result import AuditFinding, AuditResult, Depth
from storage.layout import DatasetLayout
from storage.map_panels import MapPanel, colour_scales, map_panels
from storage.samples import SampleError, decode_sample

_MOST_TYPICAL, _MOST_SUSPICIOUS = 4, 8
_MOST_PIXELS = 256
"""Side of a picture; larger maps are averaged down to it."""
_QUALITY = 82
_BAR_STEPS = 12
_UNKNOWN = "\N{EN DASH}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Picture:
    """One map as an image."""

    name: str
    window: str
    """Side of its window, with the unit."""
    uri: str
    """The image itself, as a ``data:`` address; empty where the map holds nothing."""
    pixels: int
    """Side of the map."""
    scale: str
    """Which of the gallery's colour bars it belongs to."""
    brightest: str
    """Largest value, as text."""
    emptiness: str
    """What to say in place of the image."""


@dataclass(frozen=True)
class ColourBar:
    """What the colours of some pictures stand for."""

    scale: str
    gradient: str
    """Colours from `lowest` to `highest`, for a CSS gradient."""
    lowest: str
    highest: str
    unit: str
    """Empty where nobody has said it."""


@dataclass(frozen=True)
class Card:
    """A sample in the gallery."""

    sample_id: str
    caption: str
    suspicion: float | None
    pictures: tuple[Picture, ...]
    problem: str
    """Why there are no pictures, or that they are of another file than the recorded one; else empty."""
    facts: dict[str, dict[str, str]]
    """All numbers of the sample as text: heading -> name -> value."""
    findings: tuple[AuditFinding, ...]
    """Those about this sample."""


@dataclass(frozen=True)
class CardGroup:
    """Samples that were picked for the same reason."""

    title: str
    reason: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Gallery:
    """All pictures of a report."""

    groups: tuple[CardGroup, ...]
    bars: tuple[ColourBar, ...]


@dataclass(frozen=True)
class _Pick:
    """A reason to be shown, with the rows of the samples that it picks."""

    title: str
    reason: str
    rows: list[dict]
    typical: bool
    """Whether these samples set the range of the colours."""


def gallery_of(result: AuditResult, layout: DatasetLayout) -> Gallery:
    """Pick samples to look at and read their maps.

    After a verified audit these are the most suspicious, the most typical and the middle ones, by its measures;
    otherwise the heaviest, the median and the lightest haloes, and those that findings name. As far as there are
    enough haloes, each shows once. Colours mean the same in all pictures of a kind, and the typical samples set
    their range, so that an odd sample looks odd.

    Parameters
    ----------
    result : AuditResult
        Of the data set.
    layout : DatasetLayout
        Where its samples lie. One that cannot be read is shown with the reason in place of its pictures.
    """
    picks = _picks(result)
    about = _findings_by_sample(result, {row["sample_id"] for pick in picks for row in pick.rows})
    measures = {row["sample_id"]: row for row in _measures_of(result, about)}
    panels: dict[str, list[MapPanel]] = {}
    problems: dict[str, str] = {}
    for row in (row for pick in picks for row in pick.rows):
        try:
            content = _recorded_content(row, layout)
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                problems[row["sample_id"]] = "The file is not the recorded one: its SHA-256 is another."
            sample = decode_sample(content, layout.absolute(row["path"]))
            panels[row["sample_id"]] = map_panels(sample, result.config.windows, result.config.extra_fields)
        except BindDataError as error:
            problems[row["sample_id"]] = str(error)
    everything = list(panels.values())
    typical = [
        panels[row["sample_id"]] for pick in picks if pick.typical for row in pick.rows if row["sample_id"] in panels
    ]
    scales = {**colour_scales(everything), **{k: v for k, v in colour_scales(typical).items() if v is not None}}
    groups = tuple(
        CardGroup(
            pick.title,
            pick.reason,
            tuple(
                _card(
                    row,
                    measures.get(row["sample_id"], {}),
                    panels.get(row["sample_id"], []),
                    scales,
                    problems.get(row["sample_id"], ""),
                    about[row["sample_id"]],
                    result.config.windows,
                )
                for row in pick.rows
            ),
        )
        for pick in picks
        if pick.rows
    )
    return Gallery(groups, tuple(_bars(everything, scales)))


def picked_by_suspicion(result: AuditResult) -> bool:
    """Whether the audit measured samples, so that they can be ordered by suspicion."""
    return result.depth is Depth.VERIFIED and not result.measures.is_empty()


def scientific(value: float | None) -> str:
    """Return a number as people write it: mantissa, cross, and a raised power of ten."""
    if value is None or not math.isfinite(value):
        return _UNKNOWN
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} \N{MULTIPLICATION SIGN} 10{str(int(exponent)).translate(_RAISED)}"


def map_title(name: str, windows: Windows) -> str:
    """Return a map's or a measure's name in words, with the size of the window where it is one of several."""
    for index, size in enumerate(windows.context_sizes):
        name = name.replace(f"large_scale_{index}", f"context {size:g} Mpc/h")
    return name.replace("_", " ")


def _picks(result: AuditResult) -> list[_Pick]:
    samples = result.samples
    if samples.is_empty():
        return []
    named = {
        finding.subject for finding in result.findings if finding.severity is Severity.ERROR and finding.simulation
    }
    ranked = samples.select("sample_id", "simulation", "halo", "halo_mass").unique("sample_id", keep="first")
    by_suspicion = picked_by_suspicion(result)
    if by_suspicion:
        # A sample that could not be read has no measures, and nothing is more suspicious.
        measured = result.measures.select("sample_id", pl.col("suspicion").cast(pl.Float64))
        ranked = ranked.join(measured, on="sample_id", how="left").with_columns(
            rank=pl.col("suspicion").fill_nan(None).fill_null(math.inf)
        )
    else:
        ranked = ranked.with_columns(rank=pl.col("halo_mass").cast(pl.Float64))
    ranked = ranked.sort("rank", "sample_id", descending=[True, False])
    some = max(1, math.ceil(samples["sample_id"].n_unique() / 3))
    typical, suspicious = min(_MOST_TYPICAL, some), min(_MOST_SUSPICIOUS, some)
    if not by_suspicion:
        suspects = _different_haloes(ranked.filter(pl.col("sample_id").is_in(list(named))), _MOST_SUSPICIOUS)
        rest = ranked.filter(~pl.col("sample_id").is_in(suspects))
        heaviest = _different_haloes(rest, typical)
        rest = rest.filter(~pl.col("sample_id").is_in(heaviest))
        lightest = _different_haloes(rest.reverse(), typical)
        rest = rest.filter(~pl.col("sample_id").is_in(lightest))
        chosen = [
            ("Named by a finding", "An error is about the sample itself.", suspects, False),
            ("Heaviest haloes", "Largest M200c first.", heaviest, True),
            ("Median haloes", "Around the median M200c.", _middle(rest, typical), True),
            ("Lightest haloes", "Smallest M200c first.", lightest, True),
        ]
    else:
        unmeasured = ranked.filter(pl.col("rank").is_infinite())["sample_id"].head(math.ceil(suspicious / 2)).to_list()
        others = ranked.filter(~pl.col("sample_id").is_in(unmeasured))
        suspects = unmeasured + _different_haloes(others, suspicious - len(unmeasured))
        rest = ranked.filter(~pl.col("sample_id").is_in(suspects))
        best = _different_haloes(rest.reverse(), typical)
        rest = rest.filter(~pl.col("sample_id").is_in(best))
        chosen = [
            (
                "Most suspicious",
                "Largest suspicion first, after what cannot be read.",
                suspects,
                False,
            ),
            ("Median", "Around the middle of all samples, by suspicion.", _middle(rest, typical), True),
            ("Best", "Least suspicious of all.", best, True),
        ]
    wanted = [sample for _, _, ids, _ in chosen for sample in ids]
    rows = {row["sample_id"]: row for row in samples.filter(pl.col("sample_id").is_in(wanted)).iter_rows(named=True)}
    return [_Pick(title, reason, [rows[name] for name in ids], typical) for title, reason, ids, typical in chosen]


def _different_haloes(ranked: pl.DataFrame, number: int) -> list[str]:
    """Return the first samples, of as many different haloes as there are."""
    placed = ranked.with_row_index("order").with_columns(
        place=pl.col("order").rank("ordinal").over("simulation", "halo")
    )
    return placed.sort("place", "order").head(number).sort("order")["sample_id"].to_list()


def _middle(ranked: pl.DataFrame, number: int) -> list[str]:
    distinct = ranked.unique(["simulation", "halo"], keep="first", maintain_order=True)
    pool = distinct if distinct.height >= number else ranked
    start = max(0, (pool.height - number) // 2)
    return pool.slice(start, number)["sample_id"].to_list()


def _findings_by_sample(result: AuditResult, wanted: set[str]) -> dict[str, tuple[AuditFinding, ...]]:
    found: dict[str, list[AuditFinding]] = {sample: [] for sample in wanted}
    for finding in result.findings:
        if finding.subject in found:
            found[finding.subject].append(finding)
    return {sample: tuple(findings) for sample, findings in found.items()}


def _measures_of(result: AuditResult, wanted: dict[str, tuple[AuditFinding, ...]]) -> Iterator[dict]:
    if not result.measures.is_empty():
        yield from result.measures.filter(pl.col("sample_id").is_in(list(wanted))).iter_rows(named=True)


def _recorded_content(row: dict, layout: DatasetLayout) -> bytes:
    """Return the bytes that a row is about, or those that lie in their place.

    A sample of an earlier version may have been made anew since; what it was then is kept by its digest.
    """
    place, kept = layout.absolute(row["path"]), layout.superseded_file(row["sha256"])
    try:
        content = place.read_bytes()
        if hashlib.sha256(content).hexdigest() != row["sha256"] and kept.is_file():
            content = kept.read_bytes()
    except OSError as error:
        raise SampleError(f"Cannot read {row['path']}: {error.strerror or error}.") from error
    return content


def _card(
    row: dict,
    measures: dict,
    panels: Sequence[MapPanel],
    scales: dict[str, Normalize | None],
    problem: str,
    findings: tuple[AuditFinding, ...],
    windows: Windows,
) -> Card:
    suspicion = measures.get("suspicion")
    return Card(
        sample_id=row["sample_id"],
        caption=f"{scientific(row['halo_mass'])} Msun/h · {row['split']}",
        suspicion=suspicion,
        pictures=tuple(_picture(panel, scales[panel.scale]) for panel in panels),
        problem=problem,
        facts=_facts(row, measures, windows),
        findings=findings,
    )


def _facts(row: dict, measures: dict, windows: Windows) -> dict[str, dict[str, str]]:
    w, x, y, z = (row[f"quaternion_{part}"] for part in "wxyz")
    sight = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    masses = {
        map_title(name.removeprefix("mass_"), windows): f"{scientific(value)} Msun/h"
        for name, value in row.items()
        if name.startswith("mass_")
    }
    numbers = {
        name.replace("_", " "): _UNKNOWN
        if value is None
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
        for name, value in measures.items()
        if name != "sample_id"
    }
    facts = {
        "Sample": {
            "simulation": row["simulation"],
            "split": row["split"],
            "halo": str(row["halo"]),
            "rotation": str(row["rotation"]),
            "stratum": row["stratum"],
            "M200c": f"{scientific(row['halo_mass'])} Msun/h",
            "centre": "({:.3f}, {:.3f}, {:.3f}) Mpc/h".format(*(row[f"halo_center_{axis}"] for axis in "xyz")),
            "line of sight": "({:+.3f}, {:+.3f}, {:+.3f})".format(*sight),
            "quaternion": f"({w:+.4f}, {x:+.4f}, {y:+.4f}, {z:+.4f})",
        },
        "Mass in the window": masses,
        "Measured": numbers,
        "File": {
            "path": row["path"],
            "size": f"{row['bytes']:,} bytes",
            "SHA-256": row["sha256"],
            "run": row["run_id"],
            "code": row["code_version"],
            "made": f"{row['created_at']:%Y-%m-%d %H:%M} UTC",
        },
    }
    return {heading: values for heading, values in facts.items() if values}


def _picture(panel: MapPanel, scale: Normalize | None) -> Picture:
    return Picture(
        name=panel.name,
        window=f"{panel.size:g} Mpc/h",
        uri=_image(panel, scale) if scale is not None and panel.pixels.any() else "",
        pixels=panel.pixels.shape[0],
        scale=panel.scale,
        brightest=scientific(float(panel.pixels.max())) + (f" {panel.unit}" if panel.transform and panel.unit else ""),
        emptiness=panel.emptiness,
    )


def _image(panel: MapPanel, scale: Normalize) -> str:
    # The first index of a map runs along x', and images are stored from the top.
    pixels = np.ascontiguousarray(panel.shown(scale).T[::-1])
    if max(pixels.shape) > _MOST_PIXELS:
        smaller = Image.fromarray(pixels).resize((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BOX)
        pixels = np.asarray(smaller)
    colours = panel.colours(scale)(scale(pixels), bytes=True)[..., :3]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(stream, format="WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _bars(rows: Sequence[Sequence[MapPanel]], scales: dict[str, Normalize | None]) -> Iterator[ColourBar]:
    for name, panel in {panel.scale: panel for panels in rows for panel in panels}.items():
        scale = scales[name]
        if scale is not None:
            palette = panel.colours(scale)
            steps = (palette(step / (_BAR_STEPS - 1), bytes=True)[:3] for step in range(_BAR_STEPS))
            yield ColourBar(
                scale=name,
                gradient=", ".join(f"rgb({red} {green} {blue})" for red, green, blue in steps),
                lowest=scientific(float(scale.vmin or 0)),
                highest=scientific(float(scale.vmax or 0)),
                unit=panel.unit,
            )
