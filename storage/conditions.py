"""The conditions of a dark-matter-only simulation on disk: what a trained model paints, and where it belongs."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from bind_core.inference import HaloCondition
from bind_core.painting import PatchGrid
from bind_core.records import RecordError, record_from_json
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.array_groups import group_attributes, group_item, growing_group, is_group
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes

INDEX_FILE = "conditions.json"


_MASS_PER_PIXEL = "Msun/h per native pixel"
_DESCRIPTIONS: dict[str, dict[str, str]] = {
    "condition": {"unit": _MASS_PER_PIXEL, "axes": "halo, x', y'"},
    "large_scale": {"unit": _MASS_PER_PIXEL, "axes": "halo, context window, x', y'"},
    "halo": {"description": "index in the catalogue"},
    "halo_mass": {"unit": "Msun/h", "description": "M200c"},
    "halo_center": {"unit": "Mpc/h", "description": "in the box frame; on node (npix/2, npix/2)"},
    "rotation": {"description": "from the box frame to the projected frame"},
    "params": {"description": "parameters of the simulation, in the table's order"},
}


class ConditionError(BindDataError):
    """Conditions that cannot be read, or a folder that they cannot be written to."""


class ConditionFormat(StrEnum):
    """How conditions lie on disk."""

    NPZ = "npz"
    """One archive for each halo, and an index."""
    ZARR = "zarr"
    """One Zarr v3 group, with the haloes along the first axis of its arrays."""


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
    form: ConditionFormat = ConditionFormat.NPZ,
) -> ConditionSet:
    """Write one ``halo_<index>.npz`` for each condition, and last the index that makes the folder whole.

    Or write one Zarr group, which has its name when it is whole.

    Parameters
    ----------
    folder : Path
        Made if it is missing; files of the same names, or the group that it is, are replaced.
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
    form : ConditionFormat
        Archives or a group.

    Returns
    -------
    ConditionSet
        What was written. The arrays have the keys of a sample but for ``target``, and ``halo``; ``box_size``,
        ``pixel_size`` and ``depth``, from which `read_condition` has a `bind_core.painting.PatchGrid`, are arrays of
        each archive, but attributes of the group.

    Raises
    ------
    ConditionError
        If the folder holds something else.
    StorageFullError
        If the disk or the quota is full.
    """
    _refuse_others(folder, form)
    shared = {
        "box_size": float(box_size),
        "pixel_size": float(config.windows.pixel_size),
        "depth": float(config.windows.depth),
    }
    written: list[int] = []

    def add_all(add: Callable[[int, dict[str, ArrayLike]], None]) -> ConditionSet:
        for condition in conditions:
            arrays: dict[str, ArrayLike] = {
                "condition": condition.condition,
                "large_scale": condition.large_scale,
                "halo": np.int64(condition.halo.index),
                "halo_mass": np.float64(condition.halo.mass),
                "halo_center": np.array(condition.halo.center, dtype=np.float64),
                "rotation": np.asarray(condition.rotation, dtype=np.float64),
            }
            if parameters is not None:
                arrays["params"] = np.array(parameters)
            add(condition.halo.index, arrays)
            written.append(condition.halo.index)
            passing(Step.WITHIN_CONDITIONS)
        return ConditionSet(simulation, box_size, config.digest, tuple(written), parameters)

    if form is ConditionFormat.ZARR:
        with growing_group(folder, _DESCRIPTIONS) as group:
            found = add_all(lambda _, arrays: group.add(arrays))
            group.finish(asdict(found) | shared | {"window_sizes": config.windows.sizes})
        return found
    numbers = {name: np.float64(value) for name, value in shared.items()}
    remove_stale_temporaries(folder)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    found = add_all(lambda halo, arrays: write_bytes(folder / _name(halo), encode_arrays(arrays | numbers)))
    write_bytes(folder / INDEX_FILE, json.dumps(asdict(found), indent=2).encode())
    return found


def read_condition_set(folder: Path) -> ConditionSet:
    """Return what a folder of conditions holds, in either format.

    Raises
    ------
    ConditionError
        If it is none, or is not whole.
    """
    path = folder if is_group(folder) else folder / INDEX_FILE
    try:
        content = group_attributes(folder) if is_group(folder) else path.read_bytes()
        found = record_from_json(ConditionSet, content, path)
    except (OSError, ValueError, RecordError) as error:
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
    path = folder if is_group(folder) else folder / _name(halo)
    try:
        arrays = _from_group(folder, halo) if is_group(folder) else decode_arrays(path.read_bytes(), path)
        grid = PatchGrid(
            _numbers(arrays, "halo_center", (3,)),
            _numbers(arrays, "rotation", (3, 3)),
            float(_numbers(arrays, "pixel_size", ())),
            len(arrays["condition"]),
            float(_numbers(arrays, "box_size", ())),
            float(_numbers(arrays, "depth", ())),
        )
    except (OSError, ArchiveError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConditionError(
            f"Cannot read the conditions of halo {halo} in {path}: {error}. Make them with `bind-data conditions`."
        ) from error
    return arrays, grid


def _from_group(folder: Path, halo: int) -> dict[str, NDArray]:
    halos = read_condition_set(folder).halos
    if halo not in halos:
        raise ValueError(f"it holds {len(halos):,} others")
    shared = json.loads(group_attributes(folder))
    numbers = {name: np.float64(shared[name]) for name in ("box_size", "pixel_size", "depth")}
    return group_item(folder, halos.index(halo)) | {name: np.asarray(value) for name, value in numbers.items()}


def _refuse_others(folder: Path, form: ConditionFormat) -> None:
    if not folder.exists():
        return
    is_own = not is_group(folder) if form is ConditionFormat.NPZ else is_group(folder) and _holds_conditions(folder)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if not (is_own or is_empty):
        raise ConditionError(
            f"{folder} is there, and no {form.value} of conditions; it was left as it is. Give another folder, or "
            "remove this one."
        )


def _holds_conditions(folder: Path) -> bool:
    try:
        read_condition_set(folder)
    except ConditionError:
        return False
    return True


def _numbers(arrays: dict[str, NDArray], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    numbers = np.asarray(arrays[name], dtype=np.float64)
    if numbers.shape != shape or not np.all(np.isfinite(numbers)):
        raise ValueError(f"{name} should be finite numbers of shape {shape}, found {numbers.tolist()}")
    return numbers


def _name(halo: int) -> str:
    return f"halo_{halo}.npz"
