"""Questions to the manifest, in SQL."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from bind_core.errors import BindDataError
from storage.columns import SAMPLES, SIMULATIONS, TableForm
from storage.layout import DatasetLayout
from storage.manifest import recorded_configuration
from storage.tables import table_files, unreadable_table
from storage.versions import DatasetVersion

# Anything that leads out of the tables is off, and stays off whatever a query asks for.
_CLOSED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "''",
    "timezone": "'UTC'",
    "enable_external_access": "false",
    "lock_configuration": "true",
}

_READING = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.MULTI,  # PIVOT
}

_CURRENT_SIMULATIONS = """
    CREATE VIEW current_simulations AS
    SELECT * FROM simulations
    QUALIFY row_number() OVER (PARTITION BY simulation ORDER BY recorded_at DESC, run_id DESC) = 1
"""
_STRATA = {"stratum": pl.String, "min_mass": pl.Float64, "max_mass": pl.Float64, "rotations": pl.Int32}

Value = str | int | float
"""What a parameter of a query can be."""


class QueryError(BindDataError):
    """A query that cannot be answered, or that asks for more than reading the manifest."""


def query(
    layout: DatasetLayout,
    sql: str,
    parameters: Mapping[str, Value] | None = None,
    version: DatasetVersion | None = None,
) -> pl.DataFrame:
    """Answer a question in SQL (DuckDB's dialect).

    The query sees the tables ``samples`` and ``simulations``, ``current_simulations`` with the newest attempt at each
    simulation, and ``strata`` with the mass ranges and numbers of rotations that the data set is configured for now.
    It can read nothing else and write nothing at all.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    sql : str
        One statement that reads.
    parameters : mapping, optional
        Values for the parameters ``$name`` of the statement.
    version : DatasetVersion, optional
        The version of the two tables to ask; the latest by default.

    Returns
    -------
    DataFrame
        The answer.

    Raises
    ------
    QueryError
        If the data set has no manifest, or the query is not valid, or is not one statement that reads.
    ManifestError
        If a table cannot be read.
    ConfigurationError
        If the recorded configuration cannot be read.
    """
    samples, simulations = layout.samples_table, layout.simulations_table
    if not samples.exists() and not simulations.exists():
        raise QueryError(
            f"There is nothing to query in {layout.root}: it has no manifest. Give the folder of a data set to which "
            "at least one block was committed."
        )
    numbers = (None, None) if version is None else (version.number, version.simulations_number)
    with duckdb.connect(":memory:") as connection:
        within_reach = [
            *_show(connection, SAMPLES, samples, numbers[0]),
            *_show(connection, SIMULATIONS, simulations, numbers[1]),
        ]
        connection.register("strata", _strata(layout))
        connection.execute(_CURRENT_SIMULATIONS)
        connection.execute(f"SET allowed_paths = {_list(within_reach)}")
        for setting, value in _CLOSED.items():
            connection.execute(f"SET {setting} = {value}")
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in _READING:
                found = ", ".join(statement.type.name for statement in statements) or "nothing"
                raise QueryError(
                    f"A query must be one statement that reads, such as SELECT or DESCRIBE; found {found}. "
                    "The manifest is changed by runs only."
                )
            answer = connection.sql(sql, params=dict(parameters) if parameters else None)
            if answer is None:
                return pl.DataFrame()
            again = sorted({name for name in answer.columns if answer.columns.count(name) > 1})
            if again:
                raise QueryError(
                    f"The answer has several columns called {', '.join(again)}. Give them names of their own with AS."
                )
            return _frame(answer.to_arrow_table())
        except duckdb.Error as error:
            raise QueryError(
                f"The query cannot be answered: {error}\nTables are samples, simulations, current_simulations and "
                "strata; DESCRIBE samples lists the columns of one. Other tables and files are out of reach."
            ) from error


def _show(connection: duckdb.DuckDBPyConnection, form: TableForm, path: Path, version: int | None) -> list[Path]:
    """Show a table of the manifest to a connection, and return the files that it reads for it."""
    files, schema = table_files(path, form, version)
    if not files:
        connection.register(form.title, _arrow(pl.DataFrame(schema=schema)))
        return []
    try:
        rows = connection.read_parquet([str(file) for file in files])
        rows.select(*schema.names()).create_view(form.title)
    except duckdb.Error as error:
        raise unreadable_table(path, error) from error
    return files


def _list(paths: list[Path]) -> str:
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"


def _strata(layout: DatasetLayout) -> pa.Table:
    config = recorded_configuration(layout.root)
    rows = [
        {"stratum": s.name, "min_mass": s.min_mass, "max_mass": s.upper_mass, "rotations": s.rotations}
        for s in (config.strata if config is not None else ())
    ]
    return _arrow(pl.DataFrame(rows, schema=_STRATA))


def _arrow(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def _frame(answer: pa.Table) -> pl.DataFrame:
    for index, field in enumerate(answer.schema):
        if pa.types.is_interval(field.type):  # which polars does not know; differences of two times are of this kind
            durations = [None if value is None else _duration(value) for value in answer.column(index).to_pylist()]
            answer = answer.set_column(index, field.name, pa.array(durations, pa.duration("us")))
    return pl.DataFrame(answer)


def _duration(interval: pa.MonthDayNano) -> timedelta:
    days = interval.days + 30 * interval.months  # DuckDB counts a month as 30 days where it has to
    return timedelta(days=days, microseconds=interval.nanoseconds / 1000)
