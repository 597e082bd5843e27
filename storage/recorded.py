"""The samples that rows of the manifest describe, each held against its digest before it is used."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import polars as pl

from bind_core.errors import BindDataError
from bind_core.sample import Sample
from storage.in_order import map_in_order
from storage.layout import DatasetLayout
from storage.samples import decode_sample

Result = TypeVar("Result")

_READ_AHEAD = 256
"""Samples that threads read before they are asked for; bounds what waits in memory."""


class RecordedSampleError(BindDataError):
    """A sample whose file is missing or is not the one that was recorded."""


@dataclass(frozen=True)
class RecordedSample:
    """A sample as it was recorded."""

    sample_id: str
    content: bytes
    """The whole file."""
    path: Path
    """Where it was read."""

    @cached_property
    def sample(self) -> Sample:
        """What the file holds, decoded when it is first asked for.

        Raises
        ------
        SampleError
            If it cannot be read as a sample.
        """
        return decode_sample(self.content, self.path)


def map_recorded(
    layout: DatasetLayout, rows: pl.DataFrame, work: Callable[[RecordedSample], Result], threads: int = 1
) -> Iterator[Result]:
    """Read recorded samples, do something with each, and yield what comes of it, in the order of the rows.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    rows : DataFrame
        Rows of the table ``samples``, of any version: of samples that were made anew since, what they were is read.
    work : callable
        Called in a thread.
    threads : int
        Threads that read, decompress and work.

    Raises
    ------
    RecordedSampleError
        If a file is missing or differs from what was recorded.
    SampleError
        If a file is asked for its sample, in the thread, and cannot be read as one.
    """

    def of_row(row: tuple[str, str, str]) -> Result:
        return work(_read(layout, *row))

    columns = rows.select("sample_id", "path", "sha256").iter_rows()
    return map_in_order(of_row, columns, threads, _READ_AHEAD)


def _read(layout: DatasetLayout, sample_id: str, relative: str, sha256: str) -> RecordedSample:
    path = layout.absolute(relative)
    problem = ""
    for place in (path, layout.superseded_file(sha256)):
        try:
            content = place.read_bytes()
        except OSError as error:
            problem = problem or f"it cannot be read: {error.strerror or error}"
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == sha256:
            return RecordedSample(sample_id, content, place)
        problem = problem or f"expected SHA-256 {sha256}, found {found}"
    raise RecordedSampleError(
        f"The file {path} of the sample {sample_id} is not the one that was recorded, nor was that kept: {problem}. "
        "Make it again with `bind-data repair`."
    )
