"""An older data set on disk: which samples there are, in which split, and what each is in this system's contract.

The older generator wrote ``{train,test}/sim_<s>/sim_<s>_halo_<h>_rot_<r>.npz``, in which h is the position of a halo
among those above the mass threshold, and kept neither the rotation nor, in some versions, halo and parameters.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bind_core.errors import BindDataError, ConfigurationError
from bind_core.legacy import parse_sample_name
from bind_core.plan import Target
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.splits import Split
from bind_core.suite import natural_order
from bind_core.windows import Windows
from storage.archives import ArchiveError, decode_arrays

MAPS = ("condition", "target", "large_scale")

_RELATIVE_TOLERANCE = 1e-5
"""Of masses and parameters, which older files may hold in single precision."""
_CENTER_TOLERANCE = 1e-3
"""Mpc/h."""
_ROTATION_TOLERANCE = 1e-5


class OlderSampleError(BindDataError):
    """A file of an older data set that cannot become a sample."""


@dataclass(frozen=True)
class OlderFile:
    """A sample's file, and what its name says."""

    path: Path
    halo: int
    """Position of the halo among those above the mass threshold."""
    rotation: int


@dataclass
class OlderSimulation:
    """What there is of one simulation."""

    splits: set[Split] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)
    """Where its files are."""
    files: int = 0


@dataclass
class OlderDataset:
    """What there is of an older data set."""

    source: Path
    simulations: dict[str, OlderSimulation] = field(default_factory=dict)
    """By the simulation's name without the prefix of its set."""
    strays: list[Path] = field(default_factory=list)
    """Files that readers take for samples, and whose names are none that can be imported."""
    rotations: int = 0
    """Highest number of a rotation, plus 1."""

    @property
    def files(self) -> int:
        """Number of samples' files."""
        return sum(simulation.files for simulation in self.simulations.values())

    @property
    def numbers(self) -> list[int]:
        """Numbers of the simulations that have one."""
        return [int(simulation) for simulation in self.simulations if simulation.isdecimal()]

    def names(self) -> list[str]:
        """Return the simulations in natural order."""
        return sorted(self.simulations, key=natural_order)

    def files_of(self, simulation: str) -> list[OlderFile]:
        """Return a simulation's files by halo, rotation and path."""
        found = []
        for folder in self.simulations[simulation].folders:
            for path in folder.iterdir():
                name = parse_sample_name(path)
                if name is not None and name.simulation == simulation and name.rotation is not None:
                    found.append(OlderFile(path, name.halo, name.rotation))
        return sorted(found, key=lambda file: (file.halo, file.rotation, file.path))


def survey(source: Path) -> OlderDataset:
    """Look at the names of all files of an older data set; none is opened.

    Raises
    ------
    ConfigurationError
        If there is no sample in it, or it is one of this system's data sets.
    """
    if (source / "dataset.yaml").exists():
        raise ConfigurationError(
            f"{source} is a data set with a manifest of its own, in which haloes are numbered otherwise: expected the "
            "folder of an older data set. `bind-data status` looks at this one."
        )
    older = OlderDataset(source)
    for split, path in _walk(source):
        name = parse_sample_name(path)
        if name is None or name.rotation is None:
            older.strays.append(path)
            continue
        simulation = older.simulations.setdefault(name.simulation, OlderSimulation())
        simulation.splits.add(split)
        simulation.folders.add(path.parent)
        simulation.files += 1
        older.rotations = max(older.rotations, name.rotation + 1)
    if not older.simulations:
        raise ConfigurationError(
            f"There are no samples of the older generator in {source}: expected in its folders train and test files "
            "called sim_<simulation>_halo_<halo>_rot_<rotation>.npz."
        )
    return older


def _walk(source: Path) -> Iterator[tuple[Split, Path]]:
    for split in Split:
        for folder, below, names in os.walk(source / split):
            below.sort()
            for name in sorted(names):
                if "halo" in name and name.endswith(".npz"):
                    yield split, Path(folder, name)


@dataclass(frozen=True)
class Expectation:
    """What a sample must be, by the catalogue, the parameter table and the settings."""

    target: Target
    rotation: NDArray[np.float64]
    """(3, 3): from the seed formula."""
    parameters: NDArray[np.float64] | None
    """(P,): the simulation's row of the table; None where it has none."""
    windows: Windows

    def sample_of(self, file: OlderFile) -> Sample:
        """Read an older file, and complete it with what it lacks.

        Its maps are taken as they are. What it says of halo, parameters and rotation must be what is expected, and is
        replaced by that, which has full precision.

        Raises
        ------
        OlderSampleError
            If the file cannot be read, lacks a map, or holds something else than is expected.
        """
        try:
            arrays = decode_arrays(file.path.read_bytes(), file.path)
        except (ArchiveError, OSError) as error:
            raise OlderSampleError(str(error)) from error
        for name, shape in self._shapes().items():
            _check_map(arrays, name, shape)
        center = np.array(self.target.halo_center)
        self._check("halo_mass", arrays, np.array(self.target.halo_mass), _RELATIVE_TOLERANCE, 0.0)
        self._check("halo_center", arrays, center, 0.0, _CENTER_TOLERANCE)
        self._check("rotation", arrays, self.rotation, 0.0, _ROTATION_TOLERANCE)
        parameters = self.parameters
        if parameters is None:
            if "params" not in arrays:
                raise OlderSampleError(
                    f"it has no key 'params', and {self.target.simulation} is in no parameter table: give --param-file."
                )
            parameters = arrays["params"].astype(np.float64)
        else:
            self._check("params", arrays, parameters, _RELATIVE_TOLERANCE, 0.0)
        return Sample(
            condition=arrays["condition"],
            target=arrays["target"],
            large_scale=arrays["large_scale"],
            params=parameters,
            halo_mass=self.target.halo_mass,
            halo_center=center,
            rotation=self.rotation,
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        plane = (self.windows.resolution, self.windows.resolution)
        depths = ((), (len(TARGET_CHANNELS),), (len(self.windows.context_sizes),))
        return {name: (*depth, *plane) for name, depth in zip(MAPS, depths, strict=True)}

    def _check(
        self, key: str, arrays: dict[str, NDArray], expected: NDArray[np.float64], relative: float, absolute: float
    ) -> None:
        if key not in arrays:
            return
        found = arrays[key]
        same_size = found.dtype.kind in "fiu" and found.size == expected.size
        if same_size and np.allclose(found.reshape(expected.shape), expected, rtol=relative, atol=absolute):
            return
        raise OlderSampleError(
            f"its {key!r} is {_shown(found)}, expected {_shown(expected)} for halo {self.target.halo} of "
            f"{self.target.simulation}. {_ADVICE[key]}"
        )


_OTHER_HALO = "It is of another halo: correct --mass-threshold, or --catalogue-base."
_ADVICE = {
    "halo_mass": _OTHER_HALO,
    "halo_center": _OTHER_HALO,
    "rotation": "It was not drawn by the seed formula, 1000 simulation + 100 halo + rotation, and cannot be continued.",
    "params": "They are not those of the parameter table: correct --param-file.",
}


def _check_map(arrays: dict[str, NDArray], name: str, shape: tuple[int, ...]) -> None:
    if name not in arrays:
        advice = " `add_large_scale.py` adds it." if name == "large_scale" else ""
        raise OlderSampleError(f"it has no key {name!r}, only {', '.join(arrays) or 'none'}.{advice}")
    found = arrays[name]
    if found.shape != shape:
        raise OlderSampleError(
            f"{name!r} has shape {found.shape}, expected {shape}. If all files have it, set resolution and "
            "context_sizes to what they were made with (--option)."
        )
    if found.dtype != np.float32:
        raise OlderSampleError(f"{name!r} has dtype {found.dtype}, expected float32.")


def _shown(values: NDArray) -> str:
    return np.array2string(values, precision=6, threshold=6, edgeitems=2).replace("\n", "")
