"""Samples that would come out differently today: made from other inputs, with other settings, or by other code."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.sample import IMPORTED_VERSION, OUTPUT_VERSION
from storage.provenance import Inputs, complete, differences, digest_of_inputs

SampleKey = tuple[int, int]
"""Halo and rotation."""


class Cause(StrEnum):
    """Why samples are stale."""

    INPUT = "input changed"
    """A snapshot, the catalogue or the row of the parameter table has other content."""
    SETTINGS = "settings changed"
    """A setting that decides what is in a sample has another value."""
    CODE = "code changed"
    """The code makes other samples from the same inputs and settings than it did then."""


@dataclass(frozen=True)
class StaleSamples:
    """Samples of one simulation that are stale for the same reasons."""

    keys: frozenset[SampleKey]
    causes: tuple[Cause, ...]
    detail: str
    """What has changed, in words."""


def stale_samples(
    rows: pl.DataFrame, current: Inputs, recorded: Sequence[Inputs], config: DatasetConfig
) -> tuple[StaleSamples, ...]:
    """Return those of a simulation's samples that are stale.

    Parameters
    ----------
    rows : DataFrame
        The simulation's committed samples, one row for each set of samples that were made alike: lists ``halo`` and
        ``rotation``, and ``config_digest``, ``inputs_digest``, ``output_version``.
    current : Inputs
        Its inputs now, with digests. Where one is out of reach, nothing is said about changed inputs.
    recorded : sequence of Inputs
        What was recorded of them, newest first.
    config : DatasetConfig
        The settings of now.
    """
    now = digest_of_inputs(current) if complete(current, recorded) else None
    stale = []
    for row in rows.iter_rows(named=True):
        causes: dict[Cause, str] = {}
        if now is not None and row["inputs_digest"] != now:
            causes[Cause.INPUT] = _changed(row["inputs_digest"], current, recorded)
        if row["config_digest"] != config.digest:
            causes[Cause.SETTINGS] = f"made with the configuration {row['config_digest'][:12]}…"
        if row["output_version"] == IMPORTED_VERSION:
            causes[Cause.CODE] = "imported, as another generator made them"
        elif row["output_version"] != OUTPUT_VERSION:
            causes[Cause.CODE] = f"made by code of output version {row['output_version']}, this is {OUTPUT_VERSION}"
        if causes:
            keys = frozenset(zip(row["halo"], row["rotation"], strict=True))
            detail = "; ".join(f"{cause}: {text}" for cause, text in causes.items())
            stale.append(StaleSamples(keys, tuple(causes), detail))
    return tuple(stale)


def _changed(digest: str, current: Inputs, recorded: Sequence[Inputs]) -> str:
    made_from = next((inputs for inputs in recorded if digest_of_inputs(inputs) == digest), None)
    if made_from is None:
        return "made from inputs that are not on record"
    return ", ".join(differences(made_from, current))
