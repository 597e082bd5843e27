"""Audit of one sample: its file's bytes, its arrays, and the physics that its maps must show."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.content import CRITICAL_DENSITY
from bind_core.fields import ExtraField
from bind_core.findings import Severity
from bind_core.sample import CHANNELS_KEY, TARGET_CHANNELS, Sample
from bind_core.windows import Windows, block_mean
from storage.archives import ArchiveError, decode_arrays
from storage.audit_result import AuditCode
from storage.samples import CONTRACT, target_channels

MASS_TOLERANCE = 1e-6
"""Relative. The recorded masses are float64 sums of the very pixels in the file, in whatever order."""
WINDOW_TOLERANCE = 1e-5
"""Relative to a wider window's pixel. Both windows come from the same nodes, so that they differ by the rounding of
float32 alone, which is 1e-7 on real samples of all backends."""
WINDOW_FLOOR = 1e-6
"""The same relative to the window's brightest pixel, below which rounding may be all there is."""
LEAST_CONTRAST = 1.0
"""Surface density within R200c of the halo in units of the window's mean. A halo of 1e12 Msun/h alone has 3 in the mean
column of 50 Mpc/h, and more massive ones more; less than the mean is no halo, however cluttered the window."""
GAS_FRACTION = (0.0, 1.5)
"""Gas over all mass within the projected R200c, in units of the cosmic baryon fraction. Groups and clusters have 0.3 to
0.9 of it within R500c (Lovisari et al. 2015; Eckert et al. 2021), strong feedback leaves next to nothing, and nothing
gathers more than all of it, but for noise."""
STAR_FRACTION = (0.0, 1.0)
"""Likewise for stars, which are 0.1 to 0.3 of a group's baryons (Gonzalez et al. 2013; Behroozi et al. 2019) and, where
feedback is off, not more than all of them."""
BARYON_FRACTION = 0.69
"""Where a simulation's parameters are not known: the largest of the CAMELS SB35 set, 0.069 / 0.1."""
ROTATION_TOLERANCE = 1e-9

HISTOGRAM_STEP = 0.1
"""Width of a bin in log10(pixel + 1)."""
HISTOGRAM_BINS = 180
FINGERPRINT_PIXELS = 8
"""Per side of the small picture by which samples are compared."""

_MOST_CHARACTERS = 500
_OVERDENSITY = 200.0
_LEAST_PIXELS = 4
"""Fewest pixels of a half window within which a halo can be told from its surroundings."""
_LARGEST_SHARE = 0.5
"""Of the half window that R200c may fill, so that there are surroundings at all."""
_FRACTIONS = {"gas": GAS_FRACTION, "stars": STAR_FRACTION}
_MAPS = ("condition", "target", "large_scale")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a sample."""

    code: AuditCode
    expected: str
    found: str
    severity: Severity = Severity.ERROR


@dataclass
class SampleInspection:
    """What was seen of one sample."""

    row: int
    """Its position among the rows."""
    digest: str = ""
    """SHA-256 of its file; empty where it cannot be read."""
    problems: list[Problem] = field(default_factory=list)
    readable: bool = False
    """Whether the following is known."""
    log_masses: dict[str, float] = field(default_factory=dict)
    """log10 of the mass of each map, as `map_names` calls them, plus 1."""
    field_levels: dict[str, float] = field(default_factory=dict)
    """Mean of each further channel's pixels after its transform, by name."""
    gas_fraction: float = math.nan
    star_fraction: float = math.nan
    central_contrast: float = math.nan
    parameters: NDArray[np.float64] | None = None
    """(P,)."""
    fingerprint: NDArray[np.float32] | None = None
    """(FINGERPRINT_PIXELS^2,): the condition as a small picture of zero mean and unit norm."""
    histogram: NDArray[np.int64] | None = None
    """(maps, HISTOGRAM_BINS)."""


@dataclass(frozen=True)
class SampleExpectation:
    """What a sample's row and the data set's settings call for."""

    config: DatasetConfig
    parameters: dict[str, NDArray[np.float64]]
    """By simulation; without those that the table does not know."""
    baryon_fractions: dict[str, float]
    """Of the universe, by simulation."""

    def inspect(
        self, index: int, row: dict[str, Any], rotation: NDArray[np.float64], content: bytes
    ) -> SampleInspection:
        """Look at everything that a sample's file holds.

        Parameters
        ----------
        index : int
            Position of the row.
        row : dict
            The manifest's row.
        rotation : (3, 3) array
            The rotation that the row records.
        content : bytes
            The whole file.
        """
        inspection = SampleInspection(index, digest := hashlib.sha256(content).hexdigest())
        problems = inspection.problems
        if digest != row["sha256"]:
            size = "the recorded size" if len(content) == row["bytes"] else f"{len(content)} bytes, not {row['bytes']}"
            problems.append(Problem(AuditCode.WRONG_DIGEST, f"SHA-256 {row['sha256']}", f"{digest} with {size}"))
        try:
            arrays = decode_arrays(content, Path(row["path"]))
        except ArchiveError as error:
            problems.append(Problem(AuditCode.UNREADABLE_FILE, "a whole .npz archive", _cause(error)))
            return inspection
        if row["config_digest"] != self.config.digest:
            return inspection  # what such a sample should be like is not on record
        broken = [*_contract_problems(arrays, self.config), *_value_problems(arrays)]
        problems += broken
        if broken:
            return inspection
        sample = Sample.from_arrays(arrays)
        windows = self.config.windows
        problems += self._row_problems(sample, row, rotation)
        problems += _mass_problems(sample, row, windows)
        problems += _constant_problems(sample)
        problems += _window_problems(sample, windows)
        self._measure(inspection, sample, row)
        return inspection

    def _row_problems(self, sample: Sample, row: dict[str, Any], rotation: NDArray[np.float64]) -> list[Problem]:
        found = []
        centre = np.array([row[f"halo_center_{axis}"] for axis in "xyz"])
        if sample.halo_mass != row["halo_mass"]:
            found.append(("halo_mass", f"{row['halo_mass']!r} Msun/h", f"{sample.halo_mass!r}"))
        if not np.array_equal(sample.halo_center, centre):
            found.append(("halo_center", f"{centre.tolist()} Mpc/h", f"{sample.halo_center.tolist()}"))
        deviation = float(np.abs(sample.rotation - rotation).max())
        if not deviation <= ROTATION_TOLERANCE:
            found.append(("rotation", "that of the recorded quaternion", f"one that differs by {deviation:.3g}"))
        known = self.parameters.get(row["simulation"])
        if known is not None and not np.array_equal(sample.params, known):
            found.append(("params", f"{_few(known)} of the parameter table", _few(sample.params)))
        return [Problem(AuditCode.ROW_DISAGREES, f"{name} to be {expected}", value) for name, expected, value in found]

    def _measure(self, inspection: SampleInspection, sample: Sample, row: dict[str, Any]) -> None:
        maps = maps_of(sample)
        windows = self.config.windows
        inspection.readable = True
        masses = sample.map_masses(windows).values()
        inspection.log_masses = {name: math.log10(mass + 1) for name, mass in zip(maps, masses, strict=True)}
        further = zip(self.config.extra_fields, sample.target[len(TARGET_CHANNELS) :], strict=True)
        inspection.field_levels = {field.name: _level(field, values) for field, values in further}
        inspection.parameters = sample.params
        inspection.fingerprint = fingerprint(sample.condition)
        inspection.histogram = np.stack([_histogram(values) for values in maps.values()])
        inside = _aperture(sample.halo_mass, windows)
        if inside is None:
            return
        mean = float(sample.condition.mean(dtype=np.float64))
        if mean > 0:
            inspection.central_contrast = float(sample.condition[inside].mean(dtype=np.float64)) / mean
        contents = sample.target[: len(TARGET_CHANNELS), inside].sum(axis=1, dtype=np.float64)
        if contents.sum() > 0:
            _, inspection.gas_fraction, inspection.star_fraction = contents / contents.sum()
        inspection.problems += self._physics_problems(inspection, row["simulation"])

    def _physics_problems(self, inspection: SampleInspection, simulation: str) -> list[Problem]:
        problems = []
        if inspection.central_contrast < LEAST_CONTRAST:
            problems.append(
                Problem(
                    AuditCode.OFF_CENTRE,
                    f"at least {LEAST_CONTRAST:g} times the window's mean surface density within R200c of the centre",
                    f"{inspection.central_contrast:.3g} times",
                    Severity.WARNING,
                )
            )
        baryons = self.baryon_fractions.get(simulation, BARYON_FRACTION)
        for species, share in (("gas", inspection.gas_fraction), ("stars", inspection.star_fraction)):
            lowest, highest = (limit * baryons for limit in _FRACTIONS[species])
            if not math.isnan(share) and not lowest <= share <= highest:
                problems.append(
                    Problem(
                        AuditCode.IMPLAUSIBLE_FRACTION,
                        f"{lowest:.3g} to {highest:.3g} of the mass within R200c in {species}",
                        f"{share:.3g}",
                        Severity.WARNING,
                    )
                )
        return problems


def map_names(config: DatasetConfig) -> tuple[str, ...]:
    """Return what a sample's maps of mass are called in measures and histograms, in their order."""
    return ("condition", *TARGET_CHANNELS, *(f"large_scale_{index}" for index in range(len(config.context_sizes))))


def maps_of(sample: Sample) -> dict[str, NDArray[np.float32]]:
    """Return the maps of a sample's masses, each (npix, npix), by the names of `map_names`."""
    context = {f"large_scale_{index}": values for index, values in enumerate(sample.large_scale)}
    return {"condition": sample.condition, **dict(zip(TARGET_CHANNELS, sample.target, strict=False)), **context}


def _level(field: ExtraField, values: NDArray[np.float32]) -> float:
    """Return the mean of a channel as models see it, before the z-score; 0 where its transform takes no such values."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = float(np.mean(field.transform.apply(values)))
    return mean if math.isfinite(mean) else 0.0


def fingerprint(pixels: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return a map as a small picture of its logarithm, of zero mean and unit norm; None for one without contrast."""
    n = pixels.shape[0]
    edges = np.linspace(0, n, min(FINGERPRINT_PIXELS, n), endpoint=False).astype(int)
    small = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), edges, axis=0), edges, axis=1)
    picture = np.log10(small + 1).ravel()
    picture -= picture.mean()
    norm = float(np.linalg.norm(picture))
    return (picture / norm).astype(np.float32) if norm > 0 else None


def _cause(error: ArchiveError) -> str:
    return shorten(str(error), _MOST_CHARACTERS, placeholder=" …")


def _contract_problems(arrays: dict[str, NDArray], config: DatasetConfig) -> list[Problem]:
    channels = config.target_channels
    extents: dict[str | int, int] = {
        "npix": config.resolution,
        "n_context": len(config.context_sizes),
        "n_target": len(channels),
    }
    problems = []
    if target_channels(arrays) != channels:
        found = arrays.get(CHANNELS_KEY, np.array(TARGET_CHANNELS))
        said = shorten(str(found.tolist()), _MOST_CHARACTERS, placeholder=" …")
        problems.append(Problem(AuditCode.BROKEN_CONTRACT, f"the target channels {', '.join(channels)}", said))
    for name, contract in CONTRACT.items():
        expected = tuple(extents.get(extent, extent) for extent in contract.shape)
        wanted = f"{name} of {np.dtype(contract.dtype)} and shape ({', '.join(map(str, expected))})"
        array = arrays.get(name)
        if array is None:
            problems.append(Problem(AuditCode.BROKEN_CONTRACT, wanted, f"only {', '.join(arrays) or 'no array'}"))
            continue
        fits = array.ndim == len(expected) and all(
            isinstance(extent, str) or extent == found for extent, found in zip(expected, array.shape, strict=True)
        )
        if array.dtype != contract.dtype or not fits:
            problems.append(Problem(AuditCode.BROKEN_CONTRACT, wanted, f"{array.dtype} and shape {array.shape}"))
    return problems


def _value_problems(arrays: dict[str, NDArray]) -> list[Problem]:
    problems = []
    for name in CONTRACT:
        array = arrays.get(name)
        if array is None or array.dtype.kind != "f":
            continue
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            problems.append(
                Problem(AuditCode.NOT_FINITE, f"finite numbers in {name}", f"{bad} of {array.size} are not")
            )
            continue
        masses = array[: len(TARGET_CHANNELS)] if name == "target" else array
        if name in _MAPS and masses.size and masses.min() < 0:
            found = f"{int((masses < 0).sum())} pixels below 0, the lowest {masses.min():g} Msun/h"
            problems.append(Problem(AuditCode.NEGATIVE_MASS, f"mass of 0 or more in {name}", found))
    return problems


def _constant_problems(sample: Sample) -> list[Problem]:
    # Simulations without any star are legitimate; of all other matter there is some in every window.
    return [
        Problem(AuditCode.CONSTANT_MAP, f"structure in {name}", f"{values.flat[0]:g} Msun/h in every pixel")
        for name, values in maps_of(sample).items()
        if np.ptp(values) == 0 and not (name == "stars" and values.flat[0] == 0)
    ]


def _mass_problems(sample: Sample, row: dict[str, Any], windows: Windows) -> list[Problem]:
    return [
        Problem(AuditCode.WRONG_MASS, f"{name} {row[name]:.10g} Msun/h", f"{mass:.10g} Msun/h in the map")
        for name, mass in sample.map_masses(windows).items()
        if not abs(mass - row[name]) <= MASS_TOLERANCE * max(mass, row[name])
    ]


def _window_problems(sample: Sample, windows: Windows) -> list[Problem]:
    """Hold each window against every narrower one, where they show the same matter."""
    maps = [sample.condition, *sample.large_scale]
    factors = (1, *windows.factors)
    problems = []
    for outer in range(1, len(maps)):
        for inner in range(outer):
            narrow, wide = shared_pixels(maps[inner], maps[outer], factors[inner], factors[outer])
            if not narrow.size:
                continue
            allowed = WINDOW_TOLERANCE * np.maximum(narrow, wide) + WINDOW_FLOOR * max(narrow.max(), wide.max())
            excess = np.abs(narrow - wide) > allowed
            if excess.any():
                sizes = windows.sizes[inner], windows.sizes[outer]
                problems.append(
                    Problem(
                        AuditCode.WINDOWS_DISAGREE,
                        f"the {sizes[1]:g} Mpc/h window to show in its middle the mass of the {sizes[0]:g} Mpc/h one",
                        f"{int(excess.sum())} of {excess.size} pixels that differ, by up to "
                        f"{float(np.abs(narrow - wide).max()):.3g} Msun/h; {wide.sum():.6g} against {narrow.sum():.6g}",
                    )
                )
    return problems


def shared_pixels(
    narrow: NDArray[np.float32], wide: NDArray[np.float32], narrow_factor: int, wide_factor: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what two windows around the same halo show of the same matter, at the wider one's pixels.

    A window of factor ``f`` is the block mean of ``f * npix`` native nodes, of which the halo sits on number
    ``f * npix / 2``. So the narrower window's nodes are numbers ``npix * (wide - narrow) / 2`` and on of the wider
    one's, and those of the wider one's blocks that lie within them hold the same nodes.

    Parameters
    ----------
    narrow, wide : (npix, npix) arrays
        Mass per native pixel.
    narrow_factor, wide_factor : int
        Native nodes per pixel and axis.

    Returns
    -------
    tuple of two (n, n) float64 arrays
        The block means of the narrower window and the middle of the wider one, equal but for rounding. Empty where
        blocks of the two do not fit together.
    """
    npix = narrow.shape[0]
    start = npix * (wide_factor - narrow_factor) // 2
    first = -(-start // wide_factor)
    last = (start + npix * narrow_factor) // wide_factor
    offset, ratio = first * wide_factor - start, wide_factor // narrow_factor
    if last <= first or wide_factor % narrow_factor or offset % narrow_factor:
        return np.empty((0, 0)), np.empty((0, 0))
    begin, size = offset // narrow_factor, (last - first) * ratio
    inner = narrow[begin : begin + size, begin : begin + size].astype(np.float64)
    return block_mean(inner, ratio), wide[first:last, first:last].astype(np.float64)


def _aperture(halo_mass: float, windows: Windows) -> NDArray[np.bool_] | None:
    """Return which pixels lie within R200c of the halo, one pixel at least around it; None where that is everything."""
    radius = (3 * halo_mass / (4 * math.pi * _OVERDENSITY * CRITICAL_DENSITY)) ** (1 / 3) / windows.pixel_size
    middle = windows.resolution // 2
    if middle < _LEAST_PIXELS or radius > _LARGEST_SHARE * middle:
        return None
    distance = np.arange(windows.resolution) - middle
    return np.asarray(np.hypot(distance[:, None], distance[None, :]) <= max(radius, 1.0))


def _histogram(values: NDArray[np.float32]) -> NDArray[np.int64]:
    bins = (np.log10(values.ravel() + 1) / HISTOGRAM_STEP).astype(np.int64)
    return np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)


def _few(values: NDArray[np.float64]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:3])
    return f"{len(values)} numbers ({shown}{', …' if len(values) > 3 else ''})"
