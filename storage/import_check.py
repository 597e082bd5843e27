"""Imported samples against the simulations: their maps made anew, and how those of the older generator differ.

Its periodic copies reached no farther than 10 Mpc/h beyond the six faces of the box, so that mass is missing in the
corners of the widest maps; and its deposition wrapped mass around the edge of the widest grid, which changes the
outermost pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.digests import ParticleDigests
from bind_core.errors import BindDataError, SnapshotError
from bind_core.inference import read_particles
from bind_core.inputs import read_snapshot_digest, snapshot_digests
from bind_core.maps import input_maps, target_map
from bind_core.plan import Target
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.snapshot import Component
from bind_core.suite import InputFiles, SimulationFiles
from bind_core.windows import block_mean

TOLERANCE = 2e-3
"""Mass in other pixels than expected, as a share of the map's. Single precision, in positions and sums, explains less;
a rotation or centre that is off by a pixel, much more."""
COARSE_PIXELS = 32
"""Per side, in which empty corners are looked for: fine enough to lie within one, and never empty by chance."""
COARSE_TOLERANCE = 0.02
"""Mass that a coarse pixel of a context map may lack."""

_TARGETS = (Component.DARK_MATTER, Component.GAS, Component.STARS)


class Verdict(StrEnum):
    """How an imported map compares with the one made anew."""

    MATCHES = "matching"
    MASS_MISSING = "mass missing"
    """It lacks mass in places, and has too much nowhere: periodic copies were left out."""
    DIFFERS = "differing"


@dataclass(frozen=True)
class MapComparison:
    """One imported map and the one made anew."""

    sample_id: str
    map: str
    verdict: Verdict
    deviation: float
    """Sum of |imported - anew| over the sum of the one made anew; of context maps without the outermost pixels."""
    missing_share: float
    """Mass that the imported map lacks, as a share of the one made anew; negative where it has more."""
    emptiest: float
    """Emptiest coarse pixel of the imported map, relative to the mean of the one made anew."""
    emptiest_anew: float
    """The same of the map made anew."""
    lowest_ratio: float
    """Least of what the imported map has of a coarse pixel's mass, of context maps without the outermost pixels."""

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, from which it can be rebuilt."""
        return asdict(self) | {"verdict": self.verdict.value}


@dataclass
class Recomputed:
    """Maps of samples made anew from the simulation."""

    maps: dict[str, dict[str, NDArray[np.float32]]]
    """By sample and by map, as far as the snapshots can be read."""
    digests: dict[str, str]
    """Of the snapshot files that were read, by path."""
    problems: list[str]
    """Why snapshots cannot be read."""


def map_names(config: DatasetConfig) -> tuple[str, ...]:
    """Return what the maps of a sample are called, in order."""
    return ("condition", *TARGET_CHANNELS, *(f"{size:g} Mpc/h" for size in config.context_sizes))


def maps_of(sample: Sample, config: DatasetConfig) -> dict[str, NDArray[np.float32]]:
    """Return the maps of a sample by name."""
    maps = [sample.condition, *sample.target, *sample.large_scale]
    return dict(zip(map_names(config), maps, strict=True))


def recompute(files: SimulationFiles, targets: Sequence[Target], config: DatasetConfig) -> Recomputed:
    """Make maps of samples anew; the particles of one component are in memory at a time.

    Parameters
    ----------
    files : SimulationFiles
        The simulation. What of it cannot be read is told in the outcome.
    targets : sequence of Target
        The samples; without any, the snapshots are only read for their digests.
    config : DatasetConfig
        Windows, policies and backend.
    """
    result = Recomputed({target.sample_id: {} for target in targets}, {}, [])
    for inputs, components in ((files.dmo, (Component.DMO,)), (files.hydro, _TARGETS)):
        try:
            if not inputs.files:
                raise SnapshotError(
                    f"there is no {inputs.role.value} in {inputs.folder}: expected one of {', '.join(inputs.expected)}."
                )
            if targets:
                digests = ParticleDigests()
                for component in components:
                    _project(component, inputs, targets, config, digests, result)
                result.digests |= snapshot_digests(inputs.files, digests)
            else:
                result.digests |= {str(path): read_snapshot_digest(path, inputs.role, config) for path in inputs.files}
        except BindDataError as error:
            result.problems.append(str(error))
    return result


def _project(
    component: Component,
    inputs: InputFiles,
    targets: Sequence[Target],
    config: DatasetConfig,
    digests: ParticleDigests,
    result: Recomputed,
) -> None:
    particles = read_particles(component, inputs.files, config, digests)
    condition, *rest = map_names(config)
    context = rest[len(TARGET_CHANNELS) :]
    for target in targets:
        place = (np.array(target.halo_center), target.rotation_matrix(config))
        if component is Component.DMO:
            made = input_maps(particles, *place, config.windows, config.backend)
            result.maps[target.sample_id] |= dict(zip((condition, *context), made, strict=True))
        else:
            made = target_map(particles, *place, config.windows, config.backend)
            result.maps[target.sample_id][TARGET_CHANNELS[_TARGETS.index(component)]] = made


def compare_maps(
    sample_id: str, imported: dict[str, NDArray[np.float32]], anew: dict[str, NDArray[np.float32]]
) -> list[MapComparison]:
    """Compare the maps of a sample that were made anew with the imported ones.

    Parameters
    ----------
    sample_id : str
        The sample.
    imported, anew : dict of str to (npix, npix) array
        Maps by name, as of `maps_of`; those that were not made anew are left out.
    """
    in_context = {name for name in anew if name not in ("condition", *TARGET_CHANNELS)}
    return [
        _compared(sample_id, name, imported[name].astype(np.float64), anew[name].astype(np.float64), name in in_context)
        for name in imported
        if name in anew
    ]


def _compared(
    sample_id: str, name: str, imported: NDArray[np.float64], anew: NDArray[np.float64], is_context: bool
) -> MapComparison:
    inner = np.s_[1:-1, 1:-1] if is_context else np.s_[:, :]
    difference = imported[inner] - anew[inner]
    deviation = _share(float(np.abs(difference).sum()), float(anew[inner].sum()))
    excess = _share(float(difference.clip(min=0).sum()), float(anew[inner].sum()))
    without_edge = anew.copy()
    without_edge[inner] = imported[inner]
    coarse, coarse_anew = _coarse(without_edge), _coarse(anew)
    filled = coarse_anew > 0
    lowest = float((coarse[filled] / coarse_anew[filled]).min()) if filled.any() else 1.0
    mean = float(anew.mean())
    if deviation <= TOLERANCE and not (is_context and lowest < 1 - COARSE_TOLERANCE):
        verdict = Verdict.MATCHES
    elif is_context and excess <= TOLERANCE:
        verdict = Verdict.MASS_MISSING
    else:
        verdict = Verdict.DIFFERS
    return MapComparison(
        sample_id,
        name,
        verdict,
        deviation,
        missing_share=_share(float(anew.sum() - imported.sum()), float(anew.sum())),
        emptiest=_share(float(_coarse(imported).min()), mean),
        emptiest_anew=_share(float(coarse_anew.min()), mean),
        lowest_ratio=lowest,
    )


def _share(part: float, whole: float) -> float:
    """Return a part of a whole; of nothing, nothing is a share of 0 and all else one of 1."""
    return part / whole if whole else float(part != 0)


def _coarse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    factor = len(values) // COARSE_PIXELS
    return values if factor < 2 or len(values) % factor else block_mean(values, factor)
