"""Further target channels as they are read: which passes over the particles they take, and a number per particle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import SnapshotError
from bind_core.fields import MASSES, ExtraField, FieldParticles, FieldStatistic
from bind_core.snapshot import MASS_UNIT, Component, ParticleType
from bind_core.stored_data import member, require_stored
from bind_core.suite import Role

_PARTICLE_TYPES = {
    FieldParticles.GAS: ParticleType.GAS,
    FieldParticles.DARK_MATTER: ParticleType.DARK_MATTER,
    FieldParticles.STARS: ParticleType.STARS,
    FieldParticles.BLACK_HOLES: ParticleType.BLACK_HOLES,
}


@dataclass(frozen=True)
class FieldPass:
    """One pass over the particles of a field, for one number of each: field times weight, or the weight alone."""

    field: ExtraField
    weights: bool = False
    """Whether it is the weight alone, which means are divided by."""

    @property
    def value(self) -> str:
        """What the pass is called, as `Component.value` calls those of the components."""
        return f"{self.field.name} (weight)" if self.weights else self.field.name

    @property
    def role(self) -> Role:
        """The snapshot that holds the particles."""
        return Role.HYDRO

    @property
    def particle_type(self) -> ParticleType:
        """The particles."""
        return _PARTICLE_TYPES[self.field.particle_type]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets whose product is summed."""
        names = (self.field.weight,) if self.weights else (self.field.field, self.field.weight)
        return tuple(name for name in names if name)

    def column(self, dataset: str) -> int | None:
        """Return which column of a dataset is meant; None for one that has a number per particle."""
        return self.field.component if dataset == self.field.field and not self.weights else None

    def label(self, dataset: str) -> str:
        """Return a dataset's name with its column."""
        column = self.column(dataset)
        return dataset if column is None else f"{dataset}[:, {column}]"

    @property
    def expected(self) -> str:
        """What each of the numbers must be."""
        return "finite weights of 0 or more" if self.weights else "finite numbers that single precision can hold"


class FieldError(SnapshotError):
    """A dataset of a further field that is missing or cannot be used.

    Parameters
    ----------
    where : str
        File and dataset.
    expected, found, advice : str
        As of a finding.
    """

    def __init__(self, where: str, expected: str, found: str, advice: str) -> None:
        super().__init__(where, expected, found, advice)
        self.where, self.expected, self.found, self.advice = where, expected, found, advice

    def __str__(self) -> str:
        """Return the message."""
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.advice}"


ParticlePass = Component | FieldPass
"""What is read, projected and let go of before the next one."""


def passes_of(config: DatasetConfig) -> tuple[ParticlePass, ...]:
    """Return everything that is projected for a data set, in order: the components, then those of further fields."""
    return (*Component, *field_passes(config.extra_fields))


def field_passes(fields: Sequence[ExtraField]) -> tuple[FieldPass, ...]:
    """Return the passes that fields take: one each, in their order, then one for each weight that means are over."""
    weights = {_weight_of(field): FieldPass(field, weights=True) for field in reversed(fields) if _is_mean(field)}
    return (*(FieldPass(field) for field in fields), *reversed(weights.values()))


def target_stack(projected: NDArray[np.float32], fields: Sequence[ExtraField]) -> NDArray[np.float32]:
    """Return a sample's target.

    Parameters
    ----------
    projected : (3 + n_passes, npix, npix) array
        Dark matter, gas and stars, then the maps of `field_passes`.
    fields : sequence of ExtraField
        The further channels.

    Returns
    -------
    (3 + n_fields, npix, npix) float32 array
        With means divided by their weights, and 0 where there is none.
    """
    passes = field_passes(fields)
    first = len(projected) - len(passes)
    stack = projected[: first + len(fields)]
    weights = {
        _weight_of(each.field): pixels for each, pixels in zip(passes, projected[first:], strict=True) if each.weights
    }
    if not weights:
        return stack
    stack = stack.copy()
    for channel, field in enumerate(fields, first):
        if _is_mean(field):
            weight = weights[_weight_of(field)].astype(np.float64)
            stack[channel] = np.divide(stack[channel], weight, out=np.zeros_like(weight), where=weight > 0)
    return stack


def _is_mean(field: ExtraField) -> bool:
    return field.statistic is FieldStatistic.MEAN


def _weight_of(field: ExtraField) -> tuple[FieldParticles, str]:
    return field.particle_type, field.weight


def check_datasets(file: h5py.File, path: Path, count: int, wanted: FieldPass) -> None:
    """Check that the datasets of a field are there and fit the number of particles.

    Parameters
    ----------
    file : h5py.File
        A file of the snapshot, at `path`.
    path : Path
        For the error message.
    count : int
        Particles of the field's type in the file; at least one.
    wanted : FieldPass
        What is to be read. Masses may be missing: then the header gives them.

    Raises
    ------
    FieldError
        If a dataset is missing, or has another shape or type.
    """
    group = file[f"PartType{int(wanted.particle_type)}"]
    name = wanted.field.name
    advice = f"Fetch a snapshot that has it, or change or leave out {name} of extra_fields."
    for dataset_name in wanted.datasets:
        where = f"{path}, PartType{int(wanted.particle_type)}/{dataset_name}"
        dataset = member(group, dataset_name)
        if not isinstance(dataset, h5py.Dataset):
            if dataset_name == MASSES:
                continue
            raise FieldError(
                where, f"a dataset of {count:,} particles, for the field {name}", f"only {', '.join(group)}", advice
            )
        column = wanted.column(dataset_name)
        fits = dataset.ndim == (1 if column is None else 2) and len(dataset) == count
        if not fits or (column is not None and column >= dataset.shape[1]):
            shape = f"({count},)" if column is None else f"({count}, {column + 1}) or more columns"
            raise FieldError(
                where,
                f"the shape {shape}, for the field {name}",
                f"{dataset.shape}",
                "The setting component chooses a column, and is empty for a dataset without columns. " + advice,
            )
        if dataset.dtype.kind not in "fiu":
            raise FieldError(where, f"numbers, for the field {name}", f"{dataset.dtype}", advice)
        require_stored(dataset)


@dataclass(frozen=True)
class FieldValues:
    """The numbers of some particles."""

    values: NDArray[np.float32]
    """(n,): field times weight, or the weight; in the files' units, with masses in Msun/h."""
    read: dict[str, NDArray]
    """What was read, by dataset and column."""
    bad: int
    """How many cannot be used."""
    bad_in: str
    """The dataset that makes them so; empty if there are none."""


def read_values(group: h5py.Group, rows: slice, wanted: FieldPass, mass_of_each: Callable[[], float]) -> FieldValues:
    """Read the numbers of some particles.

    Parameters
    ----------
    group : h5py.Group
        The particles.
    rows : slice
        Which of them.
    wanted : FieldPass
        What to read.
    mass_of_each : callable
        Returns the mass of every particle in Msun/h, where there is no dataset Masses.
    """
    read: dict[str, NDArray] = {}
    product = np.ones(rows.stop - rows.start)
    bad, bad_in = 0, ""
    with np.errstate(over="ignore", invalid="ignore"):
        for name, factor in _factors(group, rows, wanted, mass_of_each, read):
            product *= factor
            usable = np.isfinite(product.astype(np.float32))
            if wanted.weights:
                usable &= product >= 0
            if not bad and not usable.all():
                bad, bad_in = int(np.count_nonzero(~usable)), name
        return FieldValues(product.astype(np.float32), read, bad, bad_in)


def _factors(
    group: h5py.Group, rows: slice, wanted: FieldPass, mass_of_each: Callable[[], float], read: dict[str, NDArray]
) -> Iterator[tuple[str, NDArray[np.float64] | float]]:
    for name in wanted.datasets:
        label = wanted.label(name)
        if name not in group:
            yield label, mass_of_each()
            continue
        raw = read[label] = native_rows(group[name], rows, wanted.column(name))
        yield label, raw.astype(np.float64) * (MASS_UNIT if name == MASSES else 1.0)


def native_rows(dataset: h5py.Dataset, rows: slice, column: int | None = None) -> NDArray:
    """Read rows of a dataset, or of one of its columns, in this machine's byte order."""
    chosen = rows if column is None else (rows, column)
    return np.asarray(dataset[chosen], dtype=dataset.dtype.newbyteorder("="))
