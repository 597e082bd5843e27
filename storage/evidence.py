"""What an audit works from: the rows of one version, the configuration, and the suite as far as it is in reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import CatalogueError, ConfigurationError, ParameterTableError
from bind_core.halos import HaloCatalogue, halos_in, read_catalogue
from bind_core.parameters import ParameterTable, find_parameter_file, read_parameter_table
from bind_core.splits import split_of
from bind_core.suite import discover_simulations, find_simulation, natural_order, simulation_number
from storage.layout import DatasetLayout
from storage.workload import Comparison, SimulationWork

CENTRE = ("halo_center_x", "halo_center_y", "halo_center_z")

_PLANNED = {
    "simulation": pl.String,
    "halo": pl.Int64,
    "stratum": pl.String,
    "rotations": pl.Int64,
    "ordinal": pl.Int64,
}
_HALOS = {"simulation": pl.String, "halo": pl.Int64, "halo_mass": pl.Float64, **dict.fromkeys(CENTRE, pl.Float64)}
_EXPECTED = {
    "simulation": pl.String,
    "number": pl.Int64,
    "expected_split": pl.String,
    "expected_folder": pl.String,
    "problem": pl.String,
}


@dataclass(frozen=True)
class SuiteRecord:
    """What the halo catalogues of a suite say."""

    simulations: frozenset[str]
    """All that have a folder."""
    unreadable: dict[str, str]
    """Simulations whose catalogue cannot be read, with the reason."""
    planned: pl.DataFrame
    """A row per halo of a stratum: ``simulation``, ``halo``, ``stratum``, ``rotations``, ``ordinal`` (its position
    among those of the stratum)."""
    halos: pl.DataFrame
    """``simulation``, ``halo``, ``halo_mass`` (Msun/h), ``halo_center_x``, … (Mpc/h) of every halo above the lowest
    stratum's limit, and of every other one that has samples."""
    works: dict[str, SimulationWork] = field(default_factory=dict)
    """What a run would do for each simulation; empty unless it was asked for."""

    @cached_property
    def planned_samples(self) -> pl.DataFrame:
        """A row per planned sample: ``sample_id``, ``simulation``."""
        every = self.planned.select(
            "simulation", "halo", rotation=pl.int_ranges(pl.lit(0, pl.Int64), pl.col("rotations"))
        ).explode("rotation")
        return every.select(
            pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation").alias("sample_id"), "simulation"
        )


@dataclass(frozen=True)
class Evidence:
    """What is audited, and what it is held against."""

    layout: DatasetLayout
    config: DatasetConfig
    samples: pl.DataFrame
    """Rows of the version that is audited, by simulation, halo and rotation."""
    attempts: pl.DataFrame
    """The newest attempt at each simulation as of that version."""
    is_latest: bool
    """Whether that is the latest version, to which files and suite belong."""
    latest_paths: pl.Series
    """Paths that the latest version records: files that are no leftovers, whichever version is audited."""
    suite: SuiteRecord | None
    """None where the suite is out of reach."""
    no_suite: str
    """Why it is out of reach; empty if it is not."""
    parameters: ParameterTable | None
    """None where the parameter table is out of reach."""
    no_parameters: str
    """Why it is out of reach; empty if it is not."""

    @cached_property
    def samples_of_config(self) -> pl.DataFrame:
        """Those made with the settings on record; what the others should be like is not known."""
        return self.samples.filter(pl.col("config_digest") == self.config.digest)

    @cached_property
    def simulations(self) -> tuple[str, ...]:
        """Names of all simulations that have samples, an attempt or a folder, in natural order."""
        names = {*self.samples["simulation"].drop_nulls(), *self.attempts["simulation"].drop_nulls()}
        names.update(() if self.suite is None else self.suite.simulations)
        return tuple(sorted(names, key=natural_order))

    @cached_property
    def known_simulations(self) -> tuple[str, ...]:
        """Those of them whose names the configuration knows."""
        return tuple(self.expected.filter(pl.col("problem").is_null())["simulation"])

    @cached_property
    def expected(self) -> pl.DataFrame:
        """What each simulation's name says: ``number``, ``expected_split``, ``expected_folder``, ``problem``.

        Where the configuration does not know such a name, the problem says why, and the rest is null.
        """
        rows: list[tuple[str, int | None, str | None, str | None, str | None]] = []
        for name in self.simulations:
            try:
                number = simulation_number(name, self.config.set_name)
                split = split_of(name, number, self.config)
                folder = self.layout.simulation_folder(split, name).name
                rows.append((name, number, str(split), folder, None))
            except ConfigurationError as error:
                rows.append((name, None, None, None, str(error)))
        return pl.DataFrame(rows, schema=_EXPECTED, orient="row")


def read_suite(config: DatasetConfig, samples: pl.DataFrame, comparison: Comparison | None = None) -> SuiteRecord:
    """Read the halo catalogues of a suite, each of them once.

    Parameters
    ----------
    config : DatasetConfig
        Gives the folders and the strata.
    samples : DataFrame
        Rows of the samples whose haloes are to be looked up.
    comparison : Comparison, optional
        Tells what a run would do for each simulation, while its catalogue is at hand.

    Raises
    ------
    ConfigurationError
        If a base folder cannot be listed.
    """
    names = discover_simulations(config)
    with_samples = {
        name: np.array(halos, dtype=np.int64)
        for name, halos in samples.group_by("simulation").agg(pl.col("halo").unique().drop_nulls()).iter_rows()
    }
    planned, halos, unreadable, works = [], [], {}, {}
    for name in names:
        files = find_simulation(name, config)
        catalogue = None
        try:
            catalogue = read_catalogue(files.catalogue.files)
        except CatalogueError as error:
            unreadable[name] = str(error)
        if comparison is not None:
            works[name] = comparison.work_of(files, catalogue)
        if catalogue is None:
            continue
        planned += [
            (name, halo.index, stratum.name, stratum.rotations, halo.ordinal)
            for stratum in config.strata
            for halo in halos_in(catalogue, stratum)
        ]
        halos.append(_halos(name, catalogue, with_samples.get(name), min(s.min_mass for s in config.strata)))
    return SuiteRecord(
        frozenset(names),
        unreadable,
        pl.DataFrame(planned, schema=_PLANNED, orient="row"),
        pl.concat([pl.DataFrame(schema=_HALOS), *halos]),
        works,
    )


def read_parameters(config: DatasetConfig) -> ParameterTable:
    """Read the parameter table of a data set's configuration.

    Raises
    ------
    ParameterTableError
        If it is out of reach.
    """
    try:
        return read_parameter_table(find_parameter_file(config))
    except OSError as error:
        raise ParameterTableError(f"Cannot look for the parameter table: {error}") from error


def _halos(
    name: str, catalogue: HaloCatalogue, with_samples: NDArray[np.int64] | None, lowest_mass: float
) -> pl.DataFrame:
    wanted = np.flatnonzero(catalogue.masses > lowest_mass)
    if with_samples is not None:
        wanted = np.union1d(wanted, with_samples[with_samples < len(catalogue.masses)])
    centers = catalogue.centers[wanted]
    columns = {"halo": wanted, "halo_mass": catalogue.masses[wanted]}
    columns |= {axis: centers[:, index] for index, axis in enumerate(CENTRE)}
    return pl.DataFrame(columns).select(pl.lit(name).alias("simulation"), *columns).cast(_HALOS)  # type: ignore[arg-type]


def parameter_frame(
    names: Sequence[str], values: Mapping[str, NDArray[np.float64]], simulations: pl.DataFrame
) -> pl.DataFrame:
    """Return the parameters of simulations.

    Parameters
    ----------
    names : sequence of str
        Of the parameters.
    values : mapping
        By simulation, each of shape (P,).
    simulations : DataFrame
        ``simulation`` and ``split``.

    Returns
    -------
    DataFrame
        ``simulation``, ``split`` and a column per parameter, of those simulations whose values are known.
    """
    known = [name for name in simulations["simulation"] if name in values]
    table = np.array([values[name] for name in known]).reshape(len(known), len(names))
    columns = {name: table[:, index] for index, name in enumerate(names)}
    rows = pl.DataFrame({"simulation": pl.Series(known, dtype=pl.String), **columns})
    return simulations.select("simulation", "split").join(rows, on="simulation", how="inner", maintain_order="left")
