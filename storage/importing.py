"""An older data set taken over: its samples under this system's names and contract, in a manifest, checked.

The older files are only read. What is taken over is marked as another generator's (`IMPORTED_VERSION`), so that it
counts as stale, and a refresh makes it anew.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bind_core.config import DatasetConfig, RotationPolicy, SplitPolicy, Stratum
from bind_core.errors import BindDataError, CatalogueError, ConfigurationError
from bind_core.halos import read_catalogue
from bind_core.plan import SimulationPlan, in_blocks, sample_id
from bind_core.splits import Split, shuffled_test_numbers, split_of
from bind_core.suite import SimulationFiles, discover_simulations, find_simulation, natural_order, simulation_number
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes
from storage.import_check import compare_maps, map_names, maps_of, recompute
from storage.import_report import ImportReport, Refusal, SimulationRecord
from storage.layout import DatasetLayout
from storage.lease import writing
from storage.manifest import Manifest, open_dataset
from storage.older_samples import Expectation, OlderDataset, OlderFile, OlderSampleError
from storage.preparation import prepare_root
from storage.provenance import with_snapshot_digests
from storage.recording import SimulationOutcome, commit_outcomes, new_run_id
from storage.results import SampleRecord
from storage.samples import SampleError, encode_sample
from storage.workload import Comparison, SimulationWork

CHECKED_PER_SIMULATION = 3

_LARGEST_SUITE = 2048
"""Numbers of simulations that are tried, for advice."""
_SHOWN = 5

Key = tuple[int, int]
"""Halo and rotation."""


def older_settings(
    older: OlderDataset, config: DatasetConfig, given: dict[str, Any], mass_threshold: float | None
) -> dict[str, Any]:
    """Return the settings by which an older data set is continued, where none are given.

    Parameters
    ----------
    older : OlderDataset
        The data set.
    config : DatasetConfig
        Where the simulations are.
    given : dict
        Settings that are given, which stay.
    mass_threshold : float, optional
        M200c above which haloes were numbered, Msun/h.

    Returns
    -------
    dict
        All settings. The older generator's number of simulations, if it is not given, is taken to be that of the
        suite.
    """
    settings = {"rotations": RotationPolicy.EULER.value, "split": SplitPolicy.SHUFFLE.value} | given
    if mass_threshold is not None or "strata" not in settings:
        threshold = Stratum().min_mass if mass_threshold is None else mass_threshold
        settings["strata"] = [{"min_mass": threshold, "rotations": older.rotations}]
    if settings["split"] == SplitPolicy.SHUFFLE.value and settings.get("total_simulations") is None:
        in_suite = [simulation_number(name, config.set_name) for name in discover_simulations(config)]
        highest = max([number for number in in_suite if number is not None] + older.numbers, default=0)
        settings["total_simulations"] = highest + 1
    return settings


def import_samples(
    older: OlderDataset,
    config: DatasetConfig,
    *,
    checked: int = CHECKED_PER_SIMULATION,
    threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Take over the samples of an older data set, simulation by simulation, and commit them in blocks.

    A run that was killed is taken up again by the same call, to the same end. Samples that are in the manifest
    already stay as they are.

    Parameters
    ----------
    older : OlderDataset
        What `storage.older_samples.survey` found.
    config : DatasetConfig
        Where the simulations are, and what `older_settings` says.
    checked : int
        Samples per simulation, drawn at random, that are made anew and compared.
    threads : int
        Threads that read and write samples.
    progress : callable
        Called with the number of simulations that are done, and of all.

    Raises
    ------
    ConfigurationError
        If the settings are not those of the older data set, as its split shows.
    ConfigurationMismatchError
        If the new data set was begun with other settings.
    DatasetHeldError
        If another run is writing to the new data set.
    StorageFullError
        If the disk or the quota is full.
    """
    _check_settings(older, config)
    layout = DatasetLayout(config.output_root, config.set_name)
    open_dataset(layout, config)
    prepare_root(layout)
    run_id = new_run_id()
    records: list[SimulationRecord] = []
    with writing(layout, "bind-data import", run_id) as lease, ThreadPoolExecutor(threads) as pool:
        manifest = open_dataset(layout, config, lease)
        importer = _Importer(older, config, manifest, checked)
        for block in in_blocks(older.names(), config.simulations_per_block):
            outcomes = []
            for simulation in block:
                record, outcome = importer.take(simulation, pool)
                records.append(record)
                outcomes += [] if outcome is None else [outcome]
            passing(Step.WITHIN_IMPORT)
            if outcomes:
                commit_outcomes(manifest, config, outcomes, run_id, imported=True)
            progress(len(records), len(older.simulations))
    strays = tuple(Refusal(str(path), _STRAY) for path in older.strays)
    report = ImportReport(older.source, tuple(records), strays)
    report.write(layout)
    return report


_STRAY = "its name is not sim_<simulation>_halo_<halo>_rot_<rotation>.npz, by which its orientation is known."


@dataclass(frozen=True)
class _Samples:
    """A simulation's files, sorted out."""

    known: dict[Key, "_Entry"]
    """Those whose samples are in the manifest."""
    new: dict[Key, "_Entry"]
    refused: list[Refusal]


@dataclass(frozen=True)
class _Entry:
    """A file, and what it must be."""

    file: OlderFile
    expected: Expectation


class _Importer:
    def __init__(self, older: OlderDataset, config: DatasetConfig, manifest: Manifest, checked: int) -> None:
        self.older = older
        self.config = config
        self.layout = manifest.layout
        self.comparison = Comparison(manifest, config)
        self.checked = checked

    def take(self, simulation: str, pool: ThreadPoolExecutor) -> tuple[SimulationRecord, SimulationOutcome | None]:
        """Take over a simulation; return what became of it, and what is to be committed, if anything is."""
        name = f"{self.config.set_name}_{simulation}"
        record = SimulationRecord.read(self.layout, name)
        before = replace(record, comparisons=list(record.comparisons))
        record.files = self.older.simulations[simulation].files
        record.imported, record.refused, record.unchecked = 0, [], []
        try:
            split = self._split(simulation)
            files = find_simulation(name, self.config)
            work = self._work(files)
            samples = self._sorted_out(simulation, work)
        except BindDataError as error:
            record.refused = [Refusal(f"{self.older.source}: all {record.files:,} files of {name}", str(error))]
            return self._kept(record, before), None
        record.split = str(split)
        written = self._write(samples.new, split, pool)
        taken = {key: result for key, result in written.items() if isinstance(result, SampleRecord)}
        refused = [result for result in written.values() if isinstance(result, Refusal)]
        record.refused = sorted(samples.refused + refused, key=lambda refusal: natural_order(refusal.file))
        record.imported = len(samples.known) + len(taken)
        at_hand = samples.known | {key: samples.new[key] for key in taken}
        digests = self._check(files, work, at_hand, record, read_anyway=bool(taken))
        self._kept(record, before)
        return record, self._outcome(work, split, at_hand, taken, digests) if taken else None

    def _kept(self, record: SimulationRecord, before: SimulationRecord) -> SimulationRecord:
        if record != before:
            record.write(self.layout)
        return record

    def _split(self, simulation: str) -> Split:
        splits = self.older.simulations[simulation].splits
        if len(splits) > 1:
            raise ConfigurationError(
                "they lie in train and in test: a model that was trained on some of them must not be tested on the "
                "others. Remove those of one split."
            )
        return next(iter(splits))

    def _work(self, files: SimulationFiles) -> SimulationWork:
        if not files.catalogue.files:
            raise CatalogueError(
                f"there is no catalogue in {files.catalogue.folder}, by which haloes are known: expected one of "
                f"{', '.join(files.catalogue.expected)}."
            )
        return self.comparison.work_of(files, read_catalogue(files.catalogue.files))

    def _sorted_out(self, simulation: str, work: SimulationWork) -> _Samples:
        name, (stratum,) = work.files.name, self.config.strata
        index_of = {halo.ordinal: halo.index for _, halo in work.predicted.halos}
        targets = {(target.halo, target.rotation): target for target in work.predicted.targets()}
        table = self.comparison.table
        parameters = None if table is None else table.rows.get(name)
        samples = _Samples({}, {}, [])
        paths: dict[Key, Path] = {}
        for file in self.older.files_of(simulation):
            key = (index_of.get(file.halo, -1), file.rotation)
            reason = ""
            if file.halo not in index_of:
                reason = (
                    f"there is no halo number {file.halo}: the catalogue has {len(index_of)} above "
                    f"{stratum.min_mass:g} Msun/h. Correct --mass-threshold or --catalogue-base."
                )
            elif key not in targets:
                reason = f"rotation {file.rotation} is not among the {stratum.rotations} of the setting strata."
            elif key in paths:
                reason = f"it is the same sample as {paths[key]}. Remove one of them."
            if reason:
                samples.refused.append(Refusal(str(file.path), reason))
                continue
            paths[key] = file.path
            rotation = targets[key].rotation_matrix(self.config)
            expected = Expectation(targets[key], rotation, parameters, self.config.windows)
            (samples.new if key in work.missing else samples.known)[key] = _Entry(file, expected)
        return samples

    def _write(
        self, new: dict[Key, _Entry], split: Split, pool: ThreadPoolExecutor
    ) -> dict[Key, SampleRecord | Refusal]:
        def written(entry: _Entry) -> SampleRecord | Refusal:
            target, source = entry.expected.target, str(entry.file.path)
            path = self.layout.own_sample_path(split, target.simulation, target.halo, target.rotation)
            try:
                sample = entry.expected.sample_of(entry.file)
                content = encode_sample(sample, source)
            except (OlderSampleError, SampleError) as error:
                return Refusal(source, str(error).removeprefix(source).lstrip(": "))
            write_bytes(path, content)
            digest = hashlib.sha256(content).hexdigest()
            masses = sample.map_masses(self.config.windows)
            return SampleRecord(target.sample_id, self.layout.relative(path), len(content), digest, masses)

        for entry in list(new.values())[:1]:
            folder = self.layout.simulation_folder(split, entry.expected.target.simulation)
            remove_stale_temporaries(self.layout.absolute(self.layout.relative(folder)))
        return dict(zip(new, pool.map(written, new.values()), strict=True))

    def _check(
        self,
        files: SimulationFiles,
        work: SimulationWork,
        at_hand: dict[Key, _Entry],
        record: SimulationRecord,
        *,
        read_anyway: bool,
    ) -> dict[str, str]:
        """Compare samples drawn at random, as far as no earlier run did; return the digests of what was read."""
        compared, maps = record.compared(), set(map_names(self.config))
        drawn = _drawn(sorted(at_hand), files.name, self.config.root_seed, self.checked)
        wanted = [at_hand[key] for key in drawn if compared.get(sample_id(files.name, *key), set()) < maps]
        if not wanted and not (read_anyway and any(file.digest is None for file in work.inputs)):
            return {}
        recomputed = recompute(files, [entry.expected.target for entry in wanted], self.config)
        record.unchecked = recomputed.problems
        for entry in wanted:
            name = entry.expected.target.sample_id
            try:
                imported = maps_of(entry.expected.sample_of(entry.file), self.config)
            except OlderSampleError as error:  # it was whole when it was imported
                record.unchecked.append(f"{entry.file.path}: {error}")
            else:
                record.add(compare_maps(name, imported, recomputed.maps[name]))
        return recomputed.digests

    def _outcome(
        self,
        work: SimulationWork,
        split: Split,
        at_hand: dict[Key, _Entry],
        taken: dict[Key, SampleRecord],
        digests: dict[str, str],
    ) -> SimulationOutcome:
        absent = len(work.missing) - len(taken)
        message = f"{absent:,} samples were not taken from the older data set; `bind-data generate` makes them."
        return SimulationOutcome(
            work,
            findings=(),
            inputs=with_snapshot_digests(work.inputs, digests),
            plan=SimulationPlan(work.files.name, split, (), tuple(at_hand[key].expected.target for key in taken)),
            samples=tuple(taken.values()),
            error=message if absent else "",
        )


def _drawn(keys: Sequence[Key], simulation: str, seed: int, number: int) -> list[Key]:
    """Return some of a simulation's samples, the same ones whenever there are the same to choose from."""
    digest = int.from_bytes(hashlib.sha256(simulation.encode()).digest()[:16], "big")
    order = np.random.default_rng(np.random.SeedSequence([seed, digest])).permutation(len(keys))
    return sorted(keys[index] for index in order[:number])


def _check_settings(older: OlderDataset, config: DatasetConfig) -> None:
    root, source = config.output_root.resolve(), older.source.resolve()
    if root == source or any(root.is_relative_to(source / split) for split in Split):
        raise ConfigurationError(
            f"The data set {config.output_root} would lie among the older samples of {older.source}, which stay as "
            "they are: give another folder (--dataset)."
        )
    if config.rotations is not RotationPolicy.EULER:
        raise ConfigurationError(
            f"rotations: {config.rotations.value}: the older generator's orientations are those of rotations: euler."
        )
    if config.extra_fields:
        raise ConfigurationError(
            f"extra_fields: the older generator's samples have no channels but dark matter, gas and stars, and so no "
            f"{', '.join(field.name for field in config.extra_fields)}. Import without, and make a data set of its own "
            "with further fields."
        )
    if len(config.strata) != 1:
        raise ConfigurationError(
            f"strata: the older generator numbered the haloes above one threshold, but there are {len(config.strata)} "
            "ranges. Import with one, and add the others afterwards."
        )
    wrong = [name for name in older.names() if not _in_its_split(name, older, config)]
    if wrong:
        raise ConfigurationError(_other_split(wrong, older, config))


def _in_its_split(simulation: str, older: OlderDataset, config: DatasetConfig) -> bool:
    splits = older.simulations[simulation].splits
    number = int(simulation) if simulation.isdecimal() else None
    if len(splits) > 1 or number is None:
        return True  # it is refused by itself
    if config.split is SplitPolicy.SHUFFLE and number >= (config.total_simulations or 0):
        return False
    return split_of(f"{config.set_name}_{simulation}", number, config) in splits


def _other_split(wrong: Sequence[str], older: OlderDataset, config: DatasetConfig) -> str:
    names = ", ".join(f"{config.set_name}_{simulation}" for simulation in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
    policy = f"split: {config.split.value}"
    if config.split is SplitPolicy.SHUFFLE:
        policy += f" of {config.total_simulations:,} simulations"
    fitting = _fitting_total(older, config)
    advice = (
        "No number of simulations fits: give the settings split, test_fraction and root_seed that the older run had."
        if fitting is None
        else f"A run of {fitting:,} simulations would have split them as they are: --total-sims {fitting}."
    )
    return (
        f"{len(wrong):,} of {len(older.simulations):,} simulations lie in another split than {policy} puts them into: "
        f"{names}{more}. A model must find every simulation in the split that it was trained with. {advice}"
    )


def _fitting_total(older: OlderDataset, config: DatasetConfig) -> int | None:
    """Return the least number of simulations whose shuffle gives the split that is found, if there is one."""
    found = {
        number: older.simulations[str(number)].splits for number in older.numbers if str(number) in older.simulations
    }
    clear = {number: next(iter(splits)) for number, splits in found.items() if len(splits) == 1}
    for total in range(max(clear, default=0) + 1, _LARGEST_SUITE + 1):
        tested = shuffled_test_numbers(total, config.test_fraction, config.root_seed)
        if all((number in tested) == (split is Split.TEST) for number, split in clear.items()):
            return total
    return None
