"""What remains to be done: predicted samples minus committed ones, in blocks of simulations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import CatalogueError, ConfigurationError, ParameterTableError
from bind_core.halos import HaloCatalogue, read_catalogue
from bind_core.parameters import ParameterTable, find_parameter_file, read_parameter_table
from bind_core.plan import PredictedSamples, Target, in_blocks, predicted_samples, sample_id
from bind_core.suite import SimulationFiles, discover_simulations, find_simulation, natural_order
from storage.columns import SimulationStatus
from storage.digest_memory import SnapshotDigests
from storage.manifest import Manifest
from storage.preparation import is_folder
from storage.provenance import (
    InputFile,
    Inputs,
    complete,
    describe_inputs,
    digest_of_inputs,
    from_json,
    with_touched_read,
)
from storage.staleness import Cause, SampleKey, StaleSamples, stale_samples

Packed = NDArray[np.int64]
"""Halo and rotation in one number, which has as many bits for the rotation as the manifest has."""
_ROTATION_BITS = 32
_MOST_NAMED = 5


class Reason(StrEnum):
    """Why a simulation is, or is not, part of the next run."""

    SAMPLES_MISSING = "samples missing"
    """Predicted samples are not committed."""
    SAMPLES_TO_REMAKE = "samples to be made anew"
    """Samples are stale or damaged, and it was asked for to make them anew."""
    ABSENT = "does not exist"
    """The simulation has no folder under any base path."""
    CATALOGUE_UNREADABLE = "catalogue missing or unreadable"
    """Which samples there should be is not known; validation will say why."""
    NOT_RECORDED = "outcome not recorded"
    """Nothing is to be made, but the manifest does not say so yet."""
    REFRESH_NOT_NOTED = "refresh not noted"
    """Nothing is to be made: samples are of these settings, but a refresh was killed before it recorded its attempt."""
    TOUCHED = "inputs touched"
    """Nothing is to be made: inputs have another time of modification and the same content, which is noted."""
    STALE = "stale"
    """Samples would come out differently today. They are left as they are until a refresh is asked for."""
    NOTHING_TO_DO = "nothing to do"
    """Every predicted sample is committed, or it is recorded that there are none."""


@dataclass(frozen=True)
class SimulationWork:
    """What a run would do for one simulation."""

    files: SimulationFiles
    predicted: PredictedSamples
    """Every sample that the configuration asks for."""
    missing: frozenset[SampleKey]
    """Those of the predicted samples that are not committed."""
    stale: tuple[StaleSamples, ...]
    """Committed samples that would come out differently today."""
    to_make: tuple[Target, ...]
    """What a run makes, anew or for the first time."""
    replaced: frozenset[str]
    """Ids of committed samples whose rows the run replaces or, where it makes none, removes."""
    inputs: Inputs
    """The input files as they are now."""
    reason: Reason

    @property
    def outstanding(self) -> bool:
        """Whether the simulation is part of the next run."""
        return self.reason not in (Reason.NOTHING_TO_DO, Reason.STALE)

    @property
    def is_hopeless(self) -> bool:
        """Whether a run fails at the simulation, as far as can be told before its inputs are read."""
        return self.reason in (Reason.ABSENT, Reason.CATALOGUE_UNREADABLE)

    @property
    def n_stale(self) -> int:
        """Number of stale samples."""
        return sum(len(group.keys) for group in self.stale)

    def as_row(self) -> dict[str, Any]:
        """Return the work as plain values, for JSON."""
        return {
            "simulation": self.files.name,
            "reason": self.reason.value,
            "planned": len(self.predicted),
            "missing": [sample_id(self.files.name, *key) for key in sorted(self.missing)],
            "stale": [sample_id(self.files.name, *key) for group in self.stale for key in sorted(group.keys)],
            "why_stale": self.explanation,
            "to_make": [target.sample_id for target in self.to_make],
            "to_remove": sorted(self.replaced - {target.sample_id for target in self.to_make}),
        }

    @property
    def explanation(self) -> str:
        """Why its samples are stale, in words; empty where none are."""
        return " | ".join(f"{len(group.keys):,} samples stale: {group.detail}" for group in self.stale)


@dataclass(frozen=True)
class Workload:
    """What a run would do."""

    simulations: tuple[SimulationWork, ...]
    """All simulations asked for, in natural order."""

    @property
    def outstanding(self) -> tuple[SimulationWork, ...]:
        """Those with anything to do."""
        return tuple(work for work in self.simulations if work.outstanding)

    @property
    def verdict(self) -> str:
        """Which simulations a run is certain to fail at, as a sentence; empty where there is none."""
        causes = [f"{work.files.name} ({work.reason.value})" for work in self.simulations if work.is_hopeless]
        more = f" and {len(causes) - _MOST_NAMED:,} more" if len(causes) > _MOST_NAMED else ""
        return f"The run would fail, for want of {', '.join(causes[:_MOST_NAMED])}{more}." if causes else ""

    @property
    def samples(self) -> int:
        """Samples to be made, as far as catalogues can be read."""
        return sum(len(work.to_make) for work in self.outstanding)

    def blocks(self, simulations_per_block: int) -> list[tuple[SimulationWork, ...]]:
        """Return the outstanding simulations in blocks."""
        by_name = {work.files.name: work for work in self.outstanding}
        return [tuple(by_name[name] for name in block) for block in in_blocks(list(by_name), simulations_per_block)]


def has_any_file(files: SimulationFiles) -> bool:
    """Return whether a simulation exists at all: whether any of its three folders is there."""
    return any(is_folder(inputs.folder) for inputs in files.roles())


def plan_workload(
    config: DatasetConfig,
    manifest: Manifest,
    simulations: Sequence[str] | None = None,
    *,
    refresh: bool = False,
    remake: Collection[str] = (),
) -> Workload:
    """Compare what a configuration asks for with what the manifest has.

    This reads the catalogues and the manifest, and of the snapshots those that were touched since they were read.

    Parameters
    ----------
    config : DatasetConfig
        Gives the suite and the strata.
    manifest : Manifest
        The record.
    simulations : sequence of str, optional
        Names to consider; by default all that have a folder.
    refresh : bool
        Make stale samples anew.
    remake : collection of str
        Ids of committed samples to make anew whether they are stale or not.

    Raises
    ------
    ConfigurationError
        If a base folder cannot be listed, a name does not belong to the set, or no name is given and there is no
        simulation.
    """
    existing = discover_simulations(config)
    if simulations is None and not existing:
        bases = ", ".join(str(base) for base in (config.dmo_base, config.hydro_base, config.catalogue_base))
        raise ConfigurationError(
            f"There is no simulation of set {config.set_name} in {bases}: expected folders {config.set_name}_0, "
            f"{config.set_name}_1, … Correct the base folders or the set."
        )
    return compare(
        config, manifest, existing if simulations is None else simulations, refresh=refresh, remake=frozenset(remake)
    )


def compare(
    config: DatasetConfig,
    manifest: Manifest,
    simulations: Sequence[str],
    *,
    refresh: bool = False,
    remake: frozenset[str] = frozenset(),
) -> Workload:
    """Compare what a configuration asks for of some simulations with what the manifest has.

    Unlike `plan_workload`, it takes input that is out of reach for input whose catalogues cannot be read.
    """
    record = Comparison(manifest, config, refresh=refresh, remake=remake)
    names = sorted(set(simulations), key=natural_order)
    return Workload(tuple(record.work(find_simulation(name, config)) for name in names))


def recorded_statuses(manifest: Manifest) -> dict[str, SimulationStatus]:
    """Return the newest recorded status of each simulation."""
    latest: pl.DataFrame = manifest.latest_simulations()
    return {
        name: SimulationStatus(status)
        for name, status in zip(latest["simulation"].to_list(), latest["status"].to_list(), strict=True)
    }


class Comparison:
    """What the manifest says, ready to be compared simulation by simulation with what a configuration asks for.

    Parameters
    ----------
    manifest : Manifest
        The record.
    config : DatasetConfig
        Gives the strata.
    refresh, remake
        As in `plan_workload`.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: DatasetConfig,
        *,
        refresh: bool = False,
        remake: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.refresh = refresh
        self.remake = remake
        self.statuses = recorded_statuses(manifest)
        self.settings = dict(manifest.latest_simulations().select("simulation", "config_digest").rows())
        self.alike = manifest.samples_made_alike().partition_by("simulation", as_dict=True)
        self.inputs: Mapping[str, list[str]] = _recorded_inputs(manifest)
        self.table = _parameter_table(config)
        self.digests = SnapshotDigests(manifest.layout, config)

    def work(self, files: SimulationFiles) -> SimulationWork:
        """Return what a run would do for a simulation, by its catalogue, which is read."""
        try:
            catalogue = read_catalogue(files.catalogue.files)
        except CatalogueError:
            catalogue = None
        return self.work_of(files, catalogue)

    def work_of(self, files: SimulationFiles, catalogue: HaloCatalogue | None) -> SimulationWork:
        """Return what a run would do for a simulation; its catalogue is None where it cannot be read."""
        recorded = [from_json(text) for text in self.inputs.get(files.name, [])]
        inputs = describe_inputs(files, self.table, recorded)
        if catalogue is None:
            reason = Reason.CATALOGUE_UNREADABLE if has_any_file(files) else Reason.ABSENT
            nothing = PredictedSamples(files.name, files.number, self.config)
            return SimulationWork(files, nothing, frozenset(), (), (), frozenset(), inputs, reason)
        predicted = predicted_samples(files.name, files.number, catalogue, self.config)
        alike = self.alike.get((files.name,))
        committed = _packed([], [])
        stale: tuple[StaleSamples, ...] = ()
        if alike is not None:
            committed = _packed(alike["halo"].explode(), alike["rotation"].explode())
            on_record = {digest_of_inputs(earlier) for earlier in recorded}
            unrecorded = not on_record.issuperset(alike["inputs_digest"])
            inputs = with_touched_read(inputs, recorded, self.digests.of, unrecorded=unrecorded)
            stale = stale_samples(alike, inputs, recorded, self.config)
        missing = frozenset(_unpacked(np.setdiff1d(_predicted(predicted), committed)))
        wanted, replaced = self._asked(files.name, missing, committed, stale)
        to_make = predicted.targets(wanted) if wanted else ()
        reason = self._reason(predicted, missing, stale, to_make, replaced, inputs, recorded)
        return SimulationWork(files, predicted, missing, stale, to_make, replaced, inputs, reason)

    def _asked(
        self, name: str, missing: frozenset[SampleKey], committed: Packed, stale: tuple[StaleSamples, ...]
    ) -> tuple[frozenset[SampleKey], frozenset[str]]:
        """Return what is to be made, and the ids of the rows that this replaces or removes."""
        anew = {key for key in _unpacked(committed) if sample_id(name, *key) in self.remake} if self.remake else set()
        if self.refresh:
            anew.update(key for group in stale for key in group.keys)
        elif any(Cause.INPUT in group.causes for group in stale):
            return frozenset(), frozenset()  # samples of two inputs would stand side by side
        return missing | anew, frozenset(sample_id(name, *key) for key in anew)

    def _reason(
        self,
        predicted: PredictedSamples,
        missing: frozenset[SampleKey],
        stale: tuple[StaleSamples, ...],
        to_make: tuple[Target, ...],
        replaced: frozenset[str],
        inputs: Inputs,
        recorded: list[Inputs],
    ) -> Reason:
        settled = SimulationStatus.COMPLETE if len(predicted) else SimulationStatus.NO_WORK
        if replaced:
            return Reason.SAMPLES_TO_REMAKE
        if to_make:
            return Reason.SAMPLES_MISSING
        if stale:
            return Reason.STALE
        if self.statuses.get(predicted.simulation) is not settled:
            return Reason.NOT_RECORDED
        if self.settings[predicted.simulation] != self.config.digest:
            return Reason.REFRESH_NOT_NOTED
        noted = bool(recorded) and list(map(_seen, recorded[0])) == list(map(_seen, inputs))
        # Inputs that were removed when their samples were made are no reason to look for them.
        return Reason.NOTHING_TO_DO if noted or not complete(inputs, recorded) else Reason.TOUCHED


def _packed(halos: ArrayLike, rotations: ArrayLike) -> Packed:
    """Return each halo and rotation as one number: half a million pairs are compared at once, and not one by one."""
    return (np.asarray(halos, dtype=np.int64) << _ROTATION_BITS) | np.asarray(rotations, dtype=np.int64)


def _unpacked(keys: Packed) -> list[SampleKey]:
    rotations = keys & ((1 << _ROTATION_BITS) - 1)
    return list(zip((keys >> _ROTATION_BITS).tolist(), rotations.tolist(), strict=True))


def _predicted(samples: PredictedSamples) -> Packed:
    counts = np.array([stratum.rotations for stratum, _ in samples.halos], dtype=np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return _packed(np.repeat(np.array([halo.index for _, halo in samples.halos], dtype=np.int64), counts), within)


def _seen(file: InputFile) -> tuple[str, int | None, str | None]:
    return (file.role, file.bytes, file.mtime)


def _recorded_inputs(manifest: Manifest) -> dict[str, list[str]]:
    """Return the inputs of all attempts at each simulation, newest first."""
    inputs: dict[str, list[str]] = {}
    for name, text in reversed(manifest.simulations().select("simulation", "inputs").rows()):
        if text not in inputs.setdefault(name, []):
            inputs[name].append(text)
    return inputs


def _parameter_table(config: DatasetConfig) -> ParameterTable | None:
    try:
        return read_parameter_table(find_parameter_file(config))
    except ParameterTableError:
        return None  # a run says so when it needs it
