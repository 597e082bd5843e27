"""The conditions of a dark-matter-only simulation on disk: what a trained model paints, and where it belongs."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from bind_core.inference import HaloCondition
from bind_core.painting import PatchGrid
from bind_core.records import RecordError, record_from_json
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes

INDEX_FILE = "conditions.json"


class ConditionError(BindDataError):
    """Conditions that cannot be read."""


@dataclass(frozen=True)
class ConditionSet:
    """What a folder of conditions holds."""

    simulation: str
    box_size: float
    """Mpc/h."""
    config_digest: str
    """Digest of the configuration whose windows they have: normalization statistics are of the same."""
    halos: tuple[int, ...]
    """Indices in the catalogue."""
    parameters: tuple[float, ...] | None
    """The simulation's parameters, in the table's order; None where none are known."""


def write_conditions(
    folder: Path,
    simulation: str,
    conditions: Iterable[HaloCondition],
    box_size: float,
    config: DatasetConfig,
    parameters: tuple[float, ...] | None = None,
) -> ConditionSet:
    """Write one ``halo_<index>.npz`` for each condition, and last the index that makes the folder whole.

    Parameters
    ----------
    folder : Path
        Made if it is missing; files of the same names are replaced.
    simulation : str
        Name of the simulation.
    conditions : iterable of HaloCondition
        From `bind_core.inference.halo_conditions`.
    box_size : float
        Mpc/h.
    config : DatasetConfig
        Its windows are those of the maps.
    parameters : tuple of float, optional
        The simulation's, in the table's order.

    Returns
    -------
    ConditionSet
        What was written. The files have the keys of a sample but for ``target``, and ``halo``, ``box_size``,
        ``pixel_size`` and ``depth``, from which `read_condition` has a `bind_core.painting.PatchGrid`.

    Raises
    ------
    StorageFullError
        If the disk or the quota is full.
    """
    written = []
    remove_stale_temporaries(folder)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for condition in conditions:
        grid = PatchGrid.of(np.array(condition.halo.center), condition.rotation, box_size, config.windows)
        arrays: dict[str, ArrayLike] = {
            "condition": condition.condition,
            "large_scale": condition.large_scale,
            "halo": np.int64(condition.halo.index),
            "halo_mass": np.float64(condition.halo.mass),
            "halo_center": grid.center,
            "rotation": grid.rotation,
            "box_size": np.float64(box_size),
            "pixel_size": np.float64(grid.pixel_size),
            "depth": np.float64(grid.depth),
        }
        if parameters is not None:
            arrays["params"] = np.array(parameters)
        write_bytes(folder / _name(condition.halo.index), encode_arrays(arrays))
        written.append(condition.halo.index)
        passing(Step.WITHIN_CONDITIONS)
    found = ConditionSet(simulation, box_size, config.digest, tuple(written), parameters)
    write_bytes(folder / INDEX_FILE, json.dumps(asdict(found), indent=2).encode())
    return found


def read_condition_set(folder: Path) -> ConditionSet:
    """Return what a folder of conditions holds.

    Raises
    ------
    ConditionError
        If it is none, or is not whole.
    """
    path = folder / INDEX_FILE
    try:
        found = record_from_json(ConditionSet, path.read_bytes(), path)
    except (OSError, RecordError) as error:
        raise ConditionError(f"Cannot read {path}: {error}. `bind-data conditions` writes it, last.") from error
    if not 0 < found.box_size < math.inf:
        raise ConditionError(
            f"{path} says that the box is {found.box_size} Mpc/h wide. `bind-data conditions` mends it."
        )
    return found


def read_condition(folder: Path, halo: int) -> tuple[dict[str, NDArray], PatchGrid]:
    """Return the arrays of a halo's conditions, and where a patch that is painted for them belongs.

    Raises
    ------
    ConditionError
        If the file is missing or damaged.
    """
    path = folder / _name(halo)
    try:
        arrays = decode_arrays(path.read_bytes(), path)
        grid = PatchGrid(
            _numbers(arrays, "halo_center", (3,)),
            _numbers(arrays, "rotation", (3, 3)),
            float(_numbers(arrays, "pixel_size", ())),
            len(arrays["condition"]),
            float(_numbers(arrays, "box_size", ())),
            float(_numbers(arrays, "depth", ())),
        )
    except (OSError, ArchiveError, KeyError, TypeError, ValueError) as error:
        raise ConditionError(
            f"Cannot read the conditions {path}: {error}. Make them with `bind-data conditions`."
        ) from error
    return arrays, grid


def _numbers(arrays: dict[str, NDArray], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    numbers = np.asarray(arrays[name], dtype=np.float64)
    if numbers.shape != shape or not np.all(np.isfinite(numbers)):
        raise ValueError(f"{name} should be finite numbers of shape {shape}, found {numbers.tolist()}")
    return numbers


def _name(halo: int) -> str:
    return f"halo_{halo}.npz"
