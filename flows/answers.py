"""Answers to queries in the formats that scripts read."""

import json
from typing import Any

import polars as pl


def answer_as_json(answer: pl.DataFrame) -> str:
    """Return an answer as a JSON list of one object per row.

    Whole numbers of up to 64 bits stay whole; what is no number, such as NaN, is null. Times and durations are in
    ISO 8601, binary values hexadecimal.
    """
    return f"{_readable(answer).write_json()}\n"


def answer_as_csv(answer: pl.DataFrame) -> str:
    """Return an answer as CSV with a line of names; lists and structures are JSON within their field."""
    readable = _readable(answer)
    nested = [column.name for column in readable if column.dtype.is_nested()]
    texts = [pl.Series(name, [_as_json(value) for value in readable[name].to_list()], pl.String) for name in nested]
    return readable.with_columns(texts).write_csv()


def _readable(answer: pl.DataFrame) -> pl.DataFrame:
    """Return columns that every format can hold: DuckDB's sums are decimals, which JSON would have as texts."""
    return answer.with_columns([_converted(column) for column in answer])


def _converted(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Decimal):
        whole = column.dtype.scale == 0
        exact = column.cast(pl.Int64, strict=False) if whole else column.cast(pl.Float64)
        return exact if exact.null_count() == column.null_count() else column.cast(pl.Float64)
    if isinstance(column.dtype, pl.Duration):
        return column.dt.to_string("iso")
    if column.dtype == pl.Binary:
        return column.bin.encode("hex")
    return column


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)
