"""Whether rows of the manifest are what they must be; checked on every write and every audit."""

from functools import cache
from typing import Any

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from storage.columns import SAMPLES, SIMULATIONS, Column, ManifestError, TableForm

_UNIT_NORM_TOLERANCE = 1e-9
_SHOWN_FAILURES = 20
_SHOWN_CHARACTERS = 120

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


def failures_of(rows: pl.DataFrame, form: TableForm) -> pl.DataFrame | None:
    """Hold rows of a table against its schema.

    Parameters
    ----------
    rows : DataFrame
        With the columns of the form, in any order, and no other.
    form : TableForm
        Which table they are of.

    Returns
    -------
    DataFrame or None
        pandera's failure cases: all columns and relations that fail, with row numbers; None if nothing does.
    """
    try:
        _schema(form, len(rows.columns) - len(form.columns())).validate(rows, lazy=True)
    except SchemaErrors as error:
        return error.failure_cases
    return None


def validate_rows(rows: pl.DataFrame, form: TableForm) -> pl.DataFrame:
    """Check rows against their schema, all of it at once.

    Parameters
    ----------
    rows : DataFrame
        Columns in any order; integers and times of another width are converted where that loses nothing. An
        empty text in ``findings`` or ``inputs`` counts as an empty list.
    form : TableForm
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
    schema = form.schema_for(rows.columns)
    missing = [column for column in schema if column not in rows.columns]
    unknown = [column for column in rows.columns if column not in schema]
    if missing or unknown:
        lines = [f"  missing: {', '.join(missing)}"] if missing else []
        lines += [f"  unknown: {', '.join(unknown)}"] if unknown else []
        raise ManifestError(f"Rows for {_title(form)} do not have its columns:\n" + "\n".join(lines))
    lists = pl.col("findings", "inputs").fill_null("").replace("", "[]")
    if form is SIMULATIONS:
        rows = rows.with_columns(lists)
    try:
        typed = rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise ManifestError(f"Rows for {_title(form)} have values of a wrong type: {error}") from error
    failures = failures_of(typed, form)
    if failures is not None:
        raise ManifestError(_explain(failures, typed, form))
    return typed


@cache
def _schema(form: TableForm, n_context: int) -> pa.DataFrameSchema:
    relations = {SAMPLES: _SAMPLE_RELATIONS, SIMULATIONS: _SIMULATION_RELATIONS}[form]
    return pa.DataFrameSchema(
        {column.name: _column(column) for column in form.columns(n_context)},
        checks=[pa.Check(holds, error=error) for error, holds in relations.items()],
        strict=True,  # no unknown columns; what is coerced is coerced before
    )


def _column(column: Column) -> pa.Column:
    checks: list[pa.Check] = []
    if column.at_least is not None:
        checks.append(pa.Check.ge(column.at_least))
    if column.above is not None:
        checks.append(pa.Check.gt(column.above))
    if column.at_most is not None:
        checks.append(pa.Check.le(column.at_most))
    if column.one_of:
        checks.append(pa.Check.isin(column.one_of))
    if column.pattern:
        checks.append(pa.Check.str_contains(column.pattern))
    return pa.Column(column.dtype, checks=checks, nullable=column.nullable, unique=column.unique)


def _names_agree(data: pa.PolarsData) -> pl.LazyFrame:
    name = pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation")
    return data.lazyframe.select(pl.col("sample_id") == name)


def _rotations_are_rotations(data: pa.PolarsData) -> pl.LazyFrame:
    norm = pl.sum_horizontal(pl.col(f"quaternion_{part}") ** 2 for part in "wxyz").sqrt()
    return data.lazyframe.select((norm - 1).abs() <= _UNIT_NORM_TOLERANCE)


def _paths_stay_inside(data: pa.PolarsData) -> pl.LazyFrame:
    inside = pl.col("path").str.starts_with(pl.col("split") + "/")
    return data.lazyframe.select(inside & ~pl.col("path").str.contains(r"(^|/)\.\.?(/|$)|\\|//"))


def _numbers_are_finite(data: pa.PolarsData) -> pl.LazyFrame:
    floats = pl.col(pl.Float64)
    return data.lazyframe.select(pl.all_horizontal(floats.is_finite()))


def _lists_are_lists(data: pa.PolarsData) -> pl.LazyFrame:
    json_list = r"(?s)^\s*\[.*\]\s*$"
    return data.lazyframe.select(pl.col("findings").str.contains(json_list) & pl.col("inputs").str.contains(json_list))


_SAMPLE_RELATIONS: dict[str, Any] = {
    _NAME: _names_agree,
    _UNIT_NORM: _rotations_are_rotations,
    _INSIDE: _paths_stay_inside,
    _FINITE: _numbers_are_finite,
}
_SIMULATION_RELATIONS: dict[str, Any] = {_JSON_LISTS: _lists_are_lists}


def _title(form: TableForm) -> str:
    return f"the table {form.title!r}"


def _explain(failures: pl.DataFrame, rows: pl.DataFrame, form: TableForm) -> str:
    lines = [f"{failures.height} checks failed on rows for {_title(form)}; nothing was written:"]
    for failure in failures.head(_SHOWN_FAILURES).to_dicts():
        row, check = failure["index"], failure["check"]
        who = "all rows" if row is None else f"row {row} ({rows[form.key][row]})"
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
