"""Answers to queries in the formats that scripts read."""

import io
import json
from typing import Any

import polars as pl
from rich.console import Console

from flows.terminal import print_rows

_WIDE = 100_000
"""Characters per line of a table in a file, which no terminal limits."""


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


def answer_as_table(answer: pl.DataFrame) -> str:
    """Return an answer as a table in plain text."""
    text = io.StringIO()
    print_rows(answer, Console(file=text, width=_WIDE, highlight=False))
    return text.getvalue()


def answer_as_parquet(answer: pl.DataFrame) -> bytes:
    """Return an answer as the content of a Parquet file; DuckDB's whole sums are integers of 64 bits in it."""
    content = io.BytesIO()
    answer.with_columns([_number(column) for column in answer]).write_parquet(content)
    return content.getvalue()


def _readable(answer: pl.DataFrame) -> pl.DataFrame:
    """Return columns that every format can hold: DuckDB's sums are decimals, which JSON would have as texts."""
    return answer.with_columns([_converted(column) for column in answer])


def _converted(column: pl.Series) -> pl.Series:
    if isinstance(column.dtype, pl.Duration):
        return column.dt.to_string("iso")
    if column.dtype == pl.Binary:
        return column.bin.encode("hex")
    return _number(column)


def _number(column: pl.Series) -> pl.Series:
    if not isinstance(column.dtype, pl.Decimal):
        return column
    whole = column.dtype.scale == 0
    exact = column.cast(pl.Int64, strict=False) if whole else column.cast(pl.Float64)
    return exact if exact.null_count() == column.null_count() else column.cast(pl.Float64)


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)
