"""Context maps added to samples that lack them, or made anew: one simulation read, its samples rewritten one by one."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig, RotationPolicy
from bind_core.errors import BindDataError, CatalogueError, ConfigurationError, SnapshotError
from bind_core.halos import Halo, halos_in, read_catalogue
from bind_core.inference import read_particles
from bind_core.legacy import AXES, SampleName, context_from_projection, parse_sample_name
from bind_core.maps import input_maps
from bind_core.mesh import ParticleMesh
from bind_core.rotations import rotation_matrix, seed_entropy
from bind_core.snapshot import Component, read_header
from bind_core.suite import InputFiles, find_simulation, natural_order
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes
from storage.in_order import map_in_order
from storage.layout import DatasetLayout
from storage.lease import writing
from storage.manifest import Manifest
from storage.recording import new_run_id
from storage.samples import CONTRACT

KEY = "large_scale"
SPLITS = ("train", "test")

Arrays = dict[str, NDArray]


class ContextError(BindDataError):
    """Context maps that cannot be made."""


class Orientation(StrEnum):
    """Where the orientation of a sample is known from."""

    AUTO = "auto"
    """From the file, else from the axes in its name, else from the older generator's seed formula."""
    RECORDED = "recorded"
    """The file's key ``rotation``."""
    EULER = "euler"
    """The older generator's seed formula."""
    AXES = "axes"
    """The axes in the file's name."""


class Outcome(StrEnum):
    """What became of a sample."""

    ADDED = "added"
    REBUILT = "rebuilt"
    PRESENT = "present"
    """It has context maps of the sizes asked for already."""
    UNCHANGED = "unchanged"
    """Made anew, its maps came out as they were."""


@dataclass
class ContextReport:
    """What was done."""

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    problems: list[str] = field(default_factory=list)
    """What could not be done, with the file."""


def add_context_maps(
    config: DatasetConfig,
    *,
    orientation: Orientation = Orientation.AUTO,
    projections: Path | None = None,
    rebuild: bool = False,
    threads: int = 1,
    progress: Callable[[str, int], None] = lambda simulation, samples: None,
) -> ContextReport:
    """Add the context maps of a configuration to all samples below its ``output_root`` that lack them.

    Each file is replaced atomically and keeps its other arrays, so that a run that was killed goes on where it was.
    Files that a manifest has recorded are only written if they come out as they were recorded.

    Parameters
    ----------
    config : DatasetConfig
        Where samples, snapshots and catalogues are, and which context sizes the samples are to have.
    orientation : Orientation
        Where the samples' orientations are known from.
    projections : Path, optional
        Folder with ``projections_{xy,xz,yz}_<simulation>.npz``, whose key ``dm`` is the mass of the whole box per
        pixel: axis-aligned samples are cut out of these instead of projected from the snapshot.
    rebuild : bool
        Make the maps of samples anew that have them.
    threads : int
        Threads that project, compress and write; samples come out the same with any number.
    progress : callable
        Called with a simulation and its number of samples before they are worked on.

    Returns
    -------
    ContextReport
        How many were added, and what could not be done, each with its file; the others are done.

    Raises
    ------
    ContextError
        If there is no sample at all.
    DatasetHeldError
        If another run is writing to the data set.
    StorageFullError
        If the disk or the quota is full.
    """
    files = _samples_by_simulation(config.output_root)
    if not files:
        raise ContextError(
            f"There are no samples below {config.output_root}: expected in its folders train and test "
            "sim_<simulation>_halo_<halo>_rot_<rotation>.npz or sim_<simulation>/halo_<halo>_{xy,xz,yz}.npz."
        )
    report = ContextReport()
    with writing(DatasetLayout(config.output_root, config.set_name), "add_large_scale.py", new_run_id()):
        recorded = _recorded_digests(config)
        for simulation, samples in files.items():
            progress(simulation, len(samples))
            work = _Simulation(config, simulation, orientation, projections)
            for folder in {path.parent for path, _ in samples}:
                remove_stale_temporaries(folder)
            add = partial(_added, work=work, rebuild=rebuild, recorded=recorded)
            for outcome in map_in_order(add, samples, threads, ahead=threads):
                if isinstance(outcome, Outcome):
                    report.outcomes[outcome] += 1
                    passing(Step.WITHIN_CONTEXT_MAPS)
                else:
                    report.problems.append(outcome)
    return report


def _added(
    sample: tuple[Path, SampleName], work: "_Simulation", rebuild: bool, recorded: dict[Path, str]
) -> Outcome | str:
    """Return what became of a sample, or why it could not be done."""
    path, name = sample
    try:
        return _add(path, name, work, rebuild, recorded)
    except (ContextError, ConfigurationError, SnapshotError, CatalogueError, ArchiveError) as error:
        return f"{path}: {error}"


def _add(path: Path, name: SampleName, work: "_Simulation", rebuild: bool, recorded: dict[Path, str]) -> Outcome:
    before = path.read_bytes()
    arrays = decode_arrays(before, path)
    n_context = len(work.config.context_sizes)
    present = KEY in arrays and arrays[KEY].shape[:1] == (n_context,)
    if present and not rebuild:
        return Outcome.PRESENT
    maps = work.maps(name, arrays)
    changed = arrays | {KEY: maps}
    ordered = {key: changed[key] for key in (*CONTRACT, *changed) if key in changed}
    content = encode_arrays(ordered)
    if content == before or (present and np.array_equal(maps, arrays[KEY])):
        return Outcome.UNCHANGED
    if path in recorded and hashlib.sha256(content).hexdigest() != recorded[path]:
        raise ContextError(
            "with these context maps, it is not the sample that the manifest has recorded. `bind-data generate "
            "--refresh` makes the samples of a data set with other maps."
        )
    write_bytes(path, content)
    return Outcome.REBUILT if KEY in arrays else Outcome.ADDED


class _Simulation:
    """One simulation, of which nothing is read before it is needed, and everything once, for all threads."""

    def __init__(
        self, config: DatasetConfig, simulation: str, orientation: Orientation, projections: Path | None
    ) -> None:
        self.config = config
        self.simulation = simulation
        self.name = f"{config.set_name}_{simulation}"
        self.orientation = orientation
        self.projections = projections
        self._projections: dict[str, NDArray] = {}
        self._reading = Lock()

    def maps(self, name: SampleName, arrays: Arrays) -> NDArray[np.float32]:
        """Return the context maps of a sample."""
        if "condition" not in arrays:
            raise ContextError("it has no key 'condition', by which the number of pixels is known.")
        windows = replace(self.config.windows, resolution=len(arrays["condition"]))
        if name.axes is not None and self.projections is not None:
            with self._reading:
                in_plane = (AXES[name.axes] @ self._center(name, arrays))[:2]
                projection = self._projection(name.axes, self.projections)
                box_size = self._box_size
            try:
                return context_from_projection(projection, in_plane, box_size, windows)
            except ValueError as error:
                raise ContextError(f"the projection {name.axes} of {self.name} cannot be used: {error}.") from error
        with self._reading:
            center, rotation = self._center(name, arrays), self._rotation(name, arrays)
            particles = self._particles
        return input_maps(particles, center, rotation, windows, self.config.backend)[1:]

    def _center(self, name: SampleName, arrays: Arrays) -> NDArray[np.float64]:
        if "halo_center" in arrays:
            return arrays["halo_center"].astype(np.float64)
        return np.array(self._halo(name).center)

    def _rotation(self, name: SampleName, arrays: Arrays) -> NDArray[np.float64]:
        how = self.orientation
        if how is Orientation.AUTO:
            known = Orientation.RECORDED if "rotation" in arrays else Orientation.EULER
            how = Orientation.AXES if name.axes is not None else known
        if how is Orientation.RECORDED:
            if "rotation" not in arrays:
                raise ContextError(
                    "it has no key 'rotation'. The orientation of samples of the older generator follows from its seed "
                    "formula: --rotation euler."
                )
            return arrays["rotation"]
        if how is Orientation.AXES:
            if name.axes is None:
                raise ContextError("its name has no axes: expected halo_<halo>_{xy,xz,yz}.npz for --rotation axes.")
            return AXES[name.axes]
        if name.rotation is None:
            raise ContextError("its name has no number of a rotation, from which the seed formula starts.")
        number = int(self.simulation) if self.simulation.isdecimal() else None
        halo = self._halo(name)
        entropy = seed_entropy(RotationPolicy.EULER, 0, self.name, number, halo.index, halo.ordinal, name.rotation)
        return rotation_matrix(RotationPolicy.EULER, entropy)

    def _halo(self, name: SampleName) -> Halo:
        """Return the halo that a name means: by its index in this system's data sets, else by its position."""
        by_index = (self.config.output_root / "dataset.yaml").exists()
        for halo in self._halos:
            if name.halo == (halo.index if by_index else halo.ordinal):
                return halo
        what = "index in the catalogue" if by_index else f"position among its {len(self._halos)} haloes"
        raise ContextError(
            f"there is no halo with {what} {name.halo} above {self.config.strata[0].min_mass:g} Msun/h in {self.name}. "
            "Correct --mass_threshold or --fof_nbody_base."
        )

    @cached_property
    def _halos(self) -> list[Halo]:
        return halos_in(read_catalogue(self._files("catalogue").files), self.config.strata[0])

    @cached_property
    def _particles(self) -> ParticleMesh:
        return read_particles(Component.DMO, self._files("dmo").files, self.config)

    @cached_property
    def _box_size(self) -> float:
        return read_header(self._files("dmo").files[0]).box_size

    def _files(self, role: str) -> InputFiles:
        inputs: InputFiles = getattr(find_simulation(self.name, self.config), role)
        if not inputs.files:
            raise ContextError(f"no {role} in {inputs.folder}: expected one of {', '.join(inputs.expected)}.")
        return inputs

    def _projection(self, axes: str, folder: Path) -> NDArray:
        if axes not in self._projections:
            path = folder / f"projections_{axes}_{self.simulation}.npz"
            try:
                self._projections[axes] = decode_arrays(path.read_bytes(), path)["dm"]
            except (OSError, KeyError) as error:
                raise ContextError(f"cannot read the key 'dm' of {path}: {error}.") from error
        return self._projections[axes]


def _samples_by_simulation(root: Path) -> dict[str, list[tuple[Path, SampleName]]]:
    found: dict[str, list[tuple[Path, SampleName]]] = {}
    for split in SPLITS:
        if not (root / split).resolve().is_relative_to(root.resolve()):
            raise ContextError(
                f"{root / split} is a link to {(root / split).resolve()}, outside of {root}: nothing is changed there. "
                "Give the folder that it is a part of."
            )
        for path in sorted((root / split).rglob("*.npz")):
            name = parse_sample_name(path)
            if name is not None:
                found.setdefault(name.simulation, []).append((path, name))
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


def _recorded_digests(config: DatasetConfig) -> dict[Path, str]:
    layout = DatasetLayout(config.output_root, config.set_name)
    rows = Manifest(layout).samples()
    return {config.output_root / path: sha256 for path, sha256 in rows.select("path", "sha256").iter_rows()}
