"""The table of simulation parameters, joined by the simulation's name."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.errors import ParameterTableError

_NAME_COLUMNS = {"name", "simulation", "sim_name", "simname", "sim"}
_SPELLINGS = {"RadioFeedbackReiorientationFactor": "RadioFeedbackReorientationFactor"}
_NOT_PARAMETERS = {"seed"}


@dataclass(frozen=True)
class ParameterTable:
    """The parameters of every simulation that the table knows."""

    file: Path
    names: tuple[str, ...]
    """The parameters, in the table's order."""
    rows: Mapping[str, NDArray[np.float64]]
    """By simulation name, each of shape (P,)."""
    unusable: Mapping[str, str]
    """Simulations whose row cannot be used, with the reason."""

    def values(self, simulation: str) -> dict[str, float]:
        """Return a simulation's parameters by name.

        Raises
        ------
        KeyError
            If the table has no row for it.
        """
        return dict(zip(self.names, self.rows[simulation].tolist(), strict=True))


def find_parameter_file(config: DatasetConfig) -> Path:
    """Return the parameter table of a configuration.

    If the configuration names none, it is the only ``CosmoAstroSeed_*<set>*.txt`` in the base folders or the
    folders that hold them.

    Raises
    ------
    ParameterTableError
        If there is none, or more than one with different names.
    """
    if config.parameter_file is not None:
        return config.parameter_file
    bases = (config.dmo_base, config.hydro_base, config.catalogue_base)
    folders = list(dict.fromkeys([*bases, *(base.absolute().parent for base in bases)]))
    pattern = f"CosmoAstroSeed_*{config.set_name}*.txt"
    # The pattern's own '*' would let set 'SB3' take the table of 'SB35'.
    found = {
        path.name: path
        for folder in reversed(folders)
        for path in sorted(folder.glob(pattern))
        if config.set_name in path.stem.split("_")
    }
    if len(found) == 1:
        return next(iter(found.values()))
    where = ", ".join(str(folder) for folder in folders)
    if not found:
        raise ParameterTableError(
            f"No parameter table: looked for {pattern} in {where}. Name it with parameter_file (--param_file)."
        )
    raise ParameterTableError(
        f"Several parameter tables fit {pattern} in {where}: {', '.join(sorted(found))}. "
        "Name the right one with parameter_file (--param_file)."
    )


def read_parameter_table(path: Path) -> ParameterTable:
    """Read a parameter table.

    Two forms are read: white-space separated with a header line that starts with ``#`` (``#Name Omega0 … seed``),
    and comma separated with a column of simulation names. The column ``seed`` is not a parameter, and the one
    known misspelling is mended.

    Raises
    ------
    ParameterTableError
        If the file cannot be read or has no column of names. A row that cannot be used is no error of the table:
        it is listed in `ParameterTable.unusable`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterTableError(
            f"Cannot read the parameter table {path}: {reason}. Name an existing text file with parameter_file "
            "(--param_file)."
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ParameterTableError(f"The parameter table {path} is empty. Expected a header line and a row each.")
    start = _header_line([line for _, line in lines])
    (_, header), body = lines[start], lines[start + 1 :]
    comma_separated = "," in header
    columns = _fields(header.lstrip("#").strip(), comma_separated)
    name_column = _name_column(path, columns, has_marker=header.startswith("#"))
    kept = [
        index
        for index, column in enumerate(columns)
        if index != name_column and column and column.lower() not in _NOT_PARAMETERS
    ]
    names = tuple(_SPELLINGS.get(columns[index], columns[index]) for index in kept)
    if len(set(names)) != len(names):
        raise ParameterTableError(f"The parameter table {path} has columns of the same name: {', '.join(names)}.")
    rows: dict[str, NDArray[np.float64]] = {}
    unusable: dict[str, str] = {}
    for number, line in body:
        if line.startswith("#"):
            continue
        fields = _fields(line, comma_separated)
        simulation = fields[name_column] if name_column < len(fields) else f"line {number}"
        if len(fields) != len(columns):
            unusable[simulation] = (
                f"line {number} has {len(fields)} fields, where the header has {len(columns)} columns"
            )
            continue
        values = np.array([_number(fields[index]) for index in kept])
        if not np.all(np.isfinite(values)):
            bad = kept[int(np.argmin(np.isfinite(values)))]
            unusable[simulation] = f"line {number}, column {columns[bad]}: {fields[bad]!r} is not a finite number"
        elif simulation in rows and not np.array_equal(rows[simulation], values):
            unusable[simulation] = f"line {number} contradicts an earlier row for the same simulation"
        else:
            rows[simulation] = values
    return ParameterTable(path, names, rows, unusable)


def _header_line(lines: list[str]) -> int:
    """Return which line is the header: comments may stand before it."""
    comments = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    marked = [_fields(line.lstrip("#").strip(), "," in line) for line in lines[:comments]]
    named = [index for index, columns in enumerate(marked) if columns and columns[0].lower() in _NAME_COLUMNS]
    if named:
        return named[-1]
    if comments < len(lines) and _has_name_column(_fields(lines[comments], "," in lines[comments])):
        return comments
    return max(comments - 1, 0)


def _fields(line: str, comma_separated: bool) -> list[str]:
    if not comma_separated:
        return line.split()
    try:
        return [field.strip() for field in next(csv.reader([line]), [])]
    except csv.Error:
        return line.split(",")


def _has_name_column(columns: list[str]) -> bool:
    return any(column.lower() in _NAME_COLUMNS for column in columns)


def _name_column(path: Path, columns: list[str], has_marker: bool) -> int:
    for index, column in enumerate(columns):
        if column.lower() in _NAME_COLUMNS:
            return index
    if has_marker:
        return 0
    raise ParameterTableError(
        f"The parameter table {path} has no column of simulation names: expected one called Name, found "
        f"{', '.join(columns)}. Rows are joined by name, never by row number, so the column is needed."
    )


def _number(field: str) -> float:
    try:
        return float("nan") if "_" in field else float(field)  # Python alone reads 1_0 as 10
    except ValueError:
        return float("nan")
