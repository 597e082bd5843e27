"""What a row of the manifest must look like; checked on every write and every audit."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Optional

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from bind_core.errors import BindDataError
from bind_core.splits import Split

_UNIT_NORM_TOLERANCE = 1e-9
_SHOWN_FAILURES = 20
_SHOWN_CHARACTERS = 120
_DIGEST = r"^[0-9a-f]{64}$"
_MASS_LARGE_SCALE = r"^mass_large_scale_\d+$"
_UNIT_RANGE: dict[str, Any] = {"min_value": -1, "max_value": 1}
_MASS: dict[str, Any] = {"unit": "Msun/h"}
_LENGTH: dict[str, Any] = {"unit": "Mpc/h"}
_QUATERNION = "The orientation as a unit quaternion, box frame to projected frame: {}."
_CENTRE = "Centre of the halo in the box frame, {}."
_MASS_IN = "Mass in the window of {}."

_NAME = "must be <simulation>_halo_<halo>_rot_<rotation>"
_UNIT_NORM = "must be of unit norm"
_INSIDE = "must lie in the folder of its split, and not lead out of the data set"
_FINITE = "every number must be finite"
_JSON_LISTS = "must be JSON lists"
_COLUMNS_OF_CHECK = {
    _NAME: ("sample_id", "simulation", "halo", "rotation"),
    _UNIT_NORM: tuple(f"quaternion_{part}" for part in "wxyz"),
    _INSIDE: ("path", "split"),
    _JSON_LISTS: ("findings", "inputs"),
}
_READABLE = {"field_uniqueness": "unique", "not_nullable": "given"}


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


class SampleRow(pa.DataFrameModel):
    """A row of the table ``samples``: one committed sample.

    Each column says what it holds in its description and, where it has one, its unit in its metadata: they appear
    in the data card.
    """

    sample_id: str = pa.Field(
        unique=True, description="Identity of the sample: <simulation>_halo_<halo>_rot_<rotation>."
    )
    simulation: str = pa.Field(
        str_length={"min_value": 1}, description="Name of the simulation, with its set's prefix."
    )
    halo: pl.Int64 = pa.Field(ge=0, description="Index of the halo in the catalogue of the dark-matter-only run.")
    rotation: pl.Int32 = pa.Field(ge=0, description="Number of the orientation, from 0.")
    quaternion_w: pl.Float64 = pa.Field(in_range=_UNIT_RANGE, description=_QUATERNION.format("real part"))
    quaternion_x: pl.Float64 = pa.Field(in_range=_UNIT_RANGE, description=_QUATERNION.format("part along i"))
    quaternion_y: pl.Float64 = pa.Field(in_range=_UNIT_RANGE, description=_QUATERNION.format("part along j"))
    quaternion_z: pl.Float64 = pa.Field(in_range=_UNIT_RANGE, description=_QUATERNION.format("part along k"))
    seed_entropy: str = pa.Field(
        str_matches=r"^\d+(,\d+)*$",
        description="The integers that the orientation was drawn from, joined by commas; some exceed 64 bits.",
    )
    stratum: str = pa.Field(
        str_length={"min_value": 1}, description="Name of the mass range that the halo was selected by."
    )
    halo_mass: pl.Float64 = pa.Field(gt=0, description="M200c of the halo.", metadata=_MASS)
    halo_center_x: pl.Float64 = pa.Field(description=_CENTRE.format("x"), metadata=_LENGTH)
    halo_center_y: pl.Float64 = pa.Field(description=_CENTRE.format("y"), metadata=_LENGTH)
    halo_center_z: pl.Float64 = pa.Field(description=_CENTRE.format("z"), metadata=_LENGTH)
    split: str = pa.Field(
        isin=[str(split) for split in Split],
        description="train or test; all samples of a simulation are in the same one.",
    )
    path: str = pa.Field(
        str_matches=r"^[^/].*\.npz$", description="The sample's file, relative to the root of the data set."
    )
    bytes: pl.Int64 = pa.Field(gt=0, description="Size of the file.", metadata={"unit": "bytes"})
    sha256: str = pa.Field(str_matches=_DIGEST, description="SHA-256 of the file's content.")
    mass_condition: pl.Float64 = pa.Field(ge=0, description=_MASS_IN.format("the condition"), metadata=_MASS)
    mass_target_dark_matter: pl.Float64 = pa.Field(
        ge=0, description=_MASS_IN.format("the target's dark matter"), metadata=_MASS
    )
    mass_target_gas: pl.Float64 = pa.Field(ge=0, description=_MASS_IN.format("the target's gas"), metadata=_MASS)
    mass_target_stars: pl.Float64 = pa.Field(ge=0, description=_MASS_IN.format("the target's stars"), metadata=_MASS)
    mass_large_scale: Optional[pl.Float64] = pa.Field(  # noqa: UP045
        alias=_MASS_LARGE_SCALE,
        regex=True,
        ge=0,
        description=_MASS_IN.format("a context map; one column per map, in ascending size"),
        metadata=_MASS,
    )
    config_digest: str = pa.Field(
        str_matches=_DIGEST, description="SHA-256 of the settings that decide what is in a sample."
    )
    inputs_digest: str = pa.Field(
        str_matches=_DIGEST, description="SHA-256 of the digests of all inputs that the sample was made from."
    )
    code_version: str = pa.Field(description="Version of the code that made the sample.")
    output_version: pl.Int32 = pa.Field(
        ge=1, description="Version of what the code makes; code of the same output version makes the same sample."
    )
    run_id: str = pa.Field(description="Run that made the sample.")
    created_at: Annotated[pl.Datetime, "us", "UTC"] = pa.Field(description="When the sample's block was packaged, UTC.")

    @pa.dataframe_check(error=_NAME)
    def _names_agree(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805
        name = pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation")
        return data.lazyframe.select(pl.col("sample_id") == name)

    @pa.dataframe_check(error=_UNIT_NORM)
    def _rotations_are_rotations(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805
        norm = pl.sum_horizontal(pl.col(f"quaternion_{part}") ** 2 for part in "wxyz").sqrt()
        return data.lazyframe.select((norm - 1).abs() <= _UNIT_NORM_TOLERANCE)

    @pa.dataframe_check(error=_INSIDE)
    def _paths_stay_inside(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805
        inside = pl.col("path").str.starts_with(pl.col("split") + "/")
        return data.lazyframe.select(inside & ~pl.col("path").str.contains(r"(^|/)\.\.?(/|$)|\\|//"))

    @pa.dataframe_check(error=_FINITE)
    def _numbers_are_finite(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805
        floats = pl.col(pl.Float64)
        return data.lazyframe.select(pl.all_horizontal(floats.is_finite()))

    class Config:
        """No unknown columns; what is coerced is coerced before."""

        strict = True


class SimulationRow(pa.DataFrameModel):
    """A row of the table ``simulations``: one attempt at one simulation."""

    simulation: str = pa.Field(
        str_length={"min_value": 1}, description="Name of the simulation, with its set's prefix."
    )
    run_id: str = pa.Field(description="Run that the attempt was part of.")
    recorded_at: Annotated[pl.Datetime, "us", "UTC"] = pa.Field(description="When the attempt ended, UTC.")
    status: str = pa.Field(
        isin=[str(status) for status in SimulationStatus], description="How far the simulation was after the attempt."
    )
    split: str = pa.Field(isin=[str(split) for split in Split], description="train or test.")
    n_halos: pl.Int64 = pa.Field(
        ge=0, nullable=True, description="Haloes in any of the strata; null if the catalogue could not be read."
    )
    n_planned: pl.Int64 = pa.Field(ge=0, description="Samples that the attempt was to make.")
    n_committed: pl.Int64 = pa.Field(
        ge=0, description="Samples of the simulation in the manifest after the attempt, earlier ones included."
    )
    findings: str = pa.Field(description="What validation found: a JSON list of objects.")
    inputs: str = pa.Field(
        description="The inputs: a JSON list of {role, path, bytes, mtime, digest}; the last three may be null.",
    )
    config_digest: str = pa.Field(
        str_matches=_DIGEST, description="SHA-256 of the settings that decide what is in a sample."
    )
    code_version: str = pa.Field(description="Version of the code that made the attempt.")
    message: str = pa.Field(description="One sentence for a human reader; may be empty.")

    @pa.dataframe_check(error=_JSON_LISTS)
    def _lists_are_lists(cls, data: pa.PolarsData) -> pl.LazyFrame:  # noqa: N805
        json_list = r"(?s)^\s*\[.*\]\s*$"
        return data.lazyframe.select(
            pl.col("findings").str.contains(json_list) & pl.col("inputs").str.contains(json_list)
        )

    class Config:
        """No unknown columns; what is coerced is coerced before."""

        strict = True


Row = type[SampleRow] | type[SimulationRow]


def table_schema(model: Row, n_context: int = 0) -> dict[str, pl.DataType]:
    """Return the columns of a table with their types, in order.

    Parameters
    ----------
    model : SampleRow or SimulationRow
        Which table.
    n_context : int
        Number of context windows, each of which has a column ``mass_large_scale_<i>`` in the samples.
    """
    columns: dict[str, pl.DataType] = {}
    for name, column in model.to_schema().columns.items():
        names = [f"mass_large_scale_{index}" for index in range(n_context)] if column.regex else [name]
        columns |= dict.fromkeys(names, column.dtype.type)
    return columns


@dataclass(frozen=True)
class Column:
    """A column of a table, for people who read it."""

    name: str
    dtype: pl.DataType
    description: str
    unit: str
    """Empty where it has none."""


def described_columns(model: Row, n_context: int = 0) -> list[Column]:
    """Return the columns of a table with what they hold, in order; parameters as of `table_schema`."""
    described = model.to_schema().columns
    regex = next((column for column in described.values() if column.regex), None)
    return [
        Column(name, dtype, column.description or "", (column.metadata or {}).get("unit", ""))
        for name, dtype in table_schema(model, n_context).items()
        for column in [described.get(name, regex)]
        if column is not None
    ]


def validate_rows(rows: pl.DataFrame, model: Row) -> pl.DataFrame:
    """Check rows against their schema, all of it at once.

    Parameters
    ----------
    rows : DataFrame
        Columns in any order; integers and times of another width are converted where that loses nothing. An
        empty text in ``findings`` or ``inputs`` counts as an empty list.
    model : SampleRow or SimulationRow
        Which table they are for.

    Returns
    -------
    DataFrame
        The rows, with the schema's types and order of columns.

    Raises
    ------
    ManifestError
        With every failure: which column or check, which row, and the value.
    """
    n_context = sum(column.startswith("mass_large_scale_") for column in rows.columns)
    schema = table_schema(model, n_context)
    missing = [column for column in schema if column not in rows.columns]
    unknown = [column for column in rows.columns if column not in schema]
    if missing or unknown:
        lines = [f"  missing: {', '.join(missing)}"] if missing else []
        lines += [f"  unknown: {', '.join(unknown)}"] if unknown else []
        raise ManifestError(f"Rows for {_title(model)} do not have its columns:\n" + "\n".join(lines))
    lists = pl.col("findings", "inputs").fill_null("").replace("", "[]")
    if model is SimulationRow:
        rows = rows.with_columns(lists)
    try:
        typed = rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise ManifestError(f"Rows for {_title(model)} have values of a wrong type: {error}") from error
    try:
        return model.validate(typed, lazy=True)
    except SchemaErrors as error:
        raise ManifestError(_explain(error.failure_cases, typed, model)) from error


def _title(model: Row) -> str:
    return f"the table {'samples' if model is SampleRow else 'simulations'!r}"


def _explain(failures: pl.DataFrame, rows: pl.DataFrame, model: Row) -> str:
    name = "sample_id" if model is SampleRow else "simulation"
    lines = [f"{failures.height} checks failed on rows for {_title(model)}; nothing was written:"]
    for failure in failures.head(_SHOWN_FAILURES).to_dicts():
        row, check = failure["index"], failure["check"]
        who = "all rows" if row is None else f"row {row} ({rows[name][row]})"
        if failure["schema_context"] == "Column":
            check = f"must be {_READABLE.get(check, check)}"
            found = {failure["column"]: failure["failure_case"]}
        else:
            columns = _COLUMNS_OF_CHECK.get(check) or [
                column.name for column in rows.select(pl.col(pl.Float64)) if not column.is_finite().all()
            ]
            found = {} if row is None else {column: rows[column][row] for column in columns}
        values = ", ".join(f"{column} = {str(value)[:_SHOWN_CHARACTERS]}" for column, value in found.items())
        lines.append(f"  {who}: {values}: {check}")
    if failures.height > _SHOWN_FAILURES:
        lines.append(f"  … and {failures.height - _SHOWN_FAILURES} more")
    return "\n".join(lines)
