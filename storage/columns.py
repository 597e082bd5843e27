"""What the tables of the manifest hold: their columns, and what may be in them."""

from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from bind_core.errors import BindDataError
from bind_core.splits import Split

CONTEXT_MASS = "mass_large_scale_{}"
"""Name of the column of a context map's mass."""

_DIGEST = r"^[0-9a-f]{64}$"
_MASS = "Msun/h"
_LENGTH = "Mpc/h"
_QUATERNION = "The orientation as a unit quaternion, box frame to projected frame: {}."
_CENTRE = "Centre of the halo in the box frame, {}."
_MASS_IN = "Mass in the window of {}."
_TIME = pl.Datetime("us", "UTC")
_SPLITS = tuple(str(split) for split in Split)


class ManifestError(BindDataError):
    """Rows that the manifest does not take, or a manifest that cannot be read or written."""


class SimulationStatus(StrEnum):
    """How far a simulation is."""

    PLANNED = "planned"
    """It has samples to be made, and no attempt at them has ended yet."""
    BLOCKED = "blocked"
    """Its input is missing or invalid; the findings say how."""
    FAILED = "failed"
    """An attempt ended with an error that is not the input's fault, and left no sample."""
    PARTIAL = "partial"
    """Some of its samples are committed, and some are missing."""
    COMPLETE = "complete"
    """All of its samples are committed."""
    NO_WORK = "no_work"
    """Its input is valid and holds no halo of any stratum."""
    STALE = "stale"
    """An input, the configuration or the code's output has changed since its samples were made."""


@dataclass(frozen=True)
class Column:
    """A column of a table, and what may be in it.

    Attributes
    ----------
    name : str
        Its name.
    dtype : polars data type
        Its type.
    description : str
        What it holds, for people who read the table.
    unit : str
        Empty where it has none.
    at_least, above, at_most : float, optional
        Bounds of its values.
    one_of : tuple of str
        The texts that may be in it; empty for any.
    pattern : str
        A regular expression that its texts match; empty for any.
    nullable, unique : bool
        Whether values may be missing, and whether none may appear twice.
    """

    name: str
    dtype: pl.DataType | type[pl.DataType]
    description: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()
    pattern: str = ""
    nullable: bool = False
    unique: bool = False


@dataclass(frozen=True)
class TableForm:
    """The form of a table of the manifest."""

    title: str
    """Name of the table."""
    key: str
    """Column that says whose row it is."""
    leading: tuple[Column, ...]
    trailing: tuple[Column, ...] = ()
    """Columns after those of the context maps."""

    def columns(self, n_context: int = 0) -> tuple[Column, ...]:
        """Return the columns in order.

        Parameters
        ----------
        n_context : int
            Number of context maps, each of which has a column ``mass_large_scale_<i>`` in the samples.
        """
        context = [
            Column(
                CONTEXT_MASS.format(index),
                pl.Float64,
                _MASS_IN.format("a context map; one column per map, in ascending size"),
                _MASS,
                at_least=0,
            )
            for index in range(n_context)
        ]
        return (*self.leading, *context, *self.trailing)

    def schema(self, n_context: int = 0) -> dict[str, pl.DataType | type[pl.DataType]]:
        """Return the columns with their types, in order; parameters as of `columns`."""
        return {column.name: column.dtype for column in self.columns(n_context)}

    def schema_for(self, names: list[str]) -> dict[str, pl.DataType | type[pl.DataType]]:
        """Return the schema with as many context maps as there are columns of that kind among some names."""
        return self.schema(sum(name.startswith(CONTEXT_MASS.format("")) for name in names))


SAMPLES = TableForm(
    title="samples",
    key="sample_id",
    leading=(
        Column("sample_id", pl.String, "Identity of the sample: <simulation>_halo_<halo>_rot_<rotation>.", unique=True),
        Column("simulation", pl.String, "Name of the simulation, with its set's prefix.", pattern="."),
        Column("halo", pl.Int64, "Index of the halo in the catalogue of the dark-matter-only run.", at_least=0),
        Column("rotation", pl.Int32, "Number of the orientation, from 0.", at_least=0),
        Column("quaternion_w", pl.Float64, _QUATERNION.format("real part"), at_least=-1, at_most=1),
        Column("quaternion_x", pl.Float64, _QUATERNION.format("part along i"), at_least=-1, at_most=1),
        Column("quaternion_y", pl.Float64, _QUATERNION.format("part along j"), at_least=-1, at_most=1),
        Column("quaternion_z", pl.Float64, _QUATERNION.format("part along k"), at_least=-1, at_most=1),
        Column(
            "seed_entropy",
            pl.String,
            "The integers that the orientation was drawn from, joined by commas; some exceed 64 bits.",
            pattern=r"^\d+(,\d+)*$",
        ),
        Column("stratum", pl.String, "Name of the mass range that the halo was selected by.", pattern="."),
        Column("halo_mass", pl.Float64, "M200c of the halo.", _MASS, above=0),
        Column("halo_center_x", pl.Float64, _CENTRE.format("x"), _LENGTH),
        Column("halo_center_y", pl.Float64, _CENTRE.format("y"), _LENGTH),
        Column("halo_center_z", pl.Float64, _CENTRE.format("z"), _LENGTH),
        Column("split", pl.String, "train or test; all samples of a simulation are in the same one.", one_of=_SPLITS),
        Column("path", pl.String, "The sample's file, relative to the root of the data set.", pattern=r"^[^/].*\.npz$"),
        Column("bytes", pl.Int64, "Size of the file.", "bytes", above=0),
        Column("sha256", pl.String, "SHA-256 of the file's content.", pattern=_DIGEST),
        Column("mass_condition", pl.Float64, _MASS_IN.format("the condition"), _MASS, at_least=0),
        Column("mass_target_dark_matter", pl.Float64, _MASS_IN.format("the target's dark matter"), _MASS, at_least=0),
        Column("mass_target_gas", pl.Float64, _MASS_IN.format("the target's gas"), _MASS, at_least=0),
        Column("mass_target_stars", pl.Float64, _MASS_IN.format("the target's stars"), _MASS, at_least=0),
    ),
    trailing=(
        Column("config_digest", pl.String, "SHA-256 of the settings that decide what is in a sample.", pattern=_DIGEST),
        Column(
            "inputs_digest",
            pl.String,
            "SHA-256 of the digests of all inputs that the sample was made from.",
            pattern=_DIGEST,
        ),
        Column("code_version", pl.String, "Version of the code that made the sample."),
        Column(
            "output_version",
            pl.Int32,
            "Version of what the code makes; code of the same output version makes the same sample. 0 for samples of "
            "another generator, which were imported.",
            at_least=0,
        ),
        Column("run_id", pl.String, "Run that made the sample."),
        Column("created_at", _TIME, "When the sample's block was packaged, UTC."),
    ),
)
"""One row for each committed sample."""

SIMULATIONS = TableForm(
    title="simulations",
    key="simulation",
    leading=(
        Column("simulation", pl.String, "Name of the simulation, with its set's prefix.", pattern="."),
        Column("run_id", pl.String, "Run that the attempt was part of."),
        Column("recorded_at", _TIME, "When the attempt ended, UTC."),
        Column(
            "status",
            pl.String,
            "How far the simulation was after the attempt.",
            one_of=tuple(str(status) for status in SimulationStatus),
        ),
        Column("split", pl.String, "train or test.", one_of=_SPLITS),
        Column(
            "n_halos",
            pl.Int64,
            "Haloes in any of the strata; null if the catalogue could not be read.",
            at_least=0,
            nullable=True,
        ),
        Column("n_planned", pl.Int64, "Samples that the attempt was to make.", at_least=0),
        Column(
            "n_committed",
            pl.Int64,
            "Samples of the simulation in the manifest after the attempt, earlier ones included.",
            at_least=0,
        ),
        Column("findings", pl.String, "What validation found: a JSON list of objects."),
        Column(
            "inputs",
            pl.String,
            "The inputs: a JSON list of {role, path, bytes, mtime, digest}; the last three may be null.",
        ),
        Column("config_digest", pl.String, "SHA-256 of the settings that decide what is in a sample.", pattern=_DIGEST),
        Column("code_version", pl.String, "Version of the code that made the attempt."),
        Column("message", pl.String, "One sentence for a human reader; may be empty."),
    ),
)
"""One row for each attempt at a simulation."""
