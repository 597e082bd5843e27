"""What came, went and changed between two versions of a data set."""

from dataclasses import dataclass

import polars as pl

from bind_core.suite import natural_order
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.versions import DatasetVersion

_KEY = ["sample_id", "occurrence"]
_KINDS = ("added", "removed", "changed")
_NAMED = ["sample_id", "simulation", "halo", "rotation", "split"]


@dataclass(frozen=True)
class VersionDifference:
    """How a version of a data set differs from an earlier one."""

    before: DatasetVersion
    after: DatasetVersion
    samples: pl.DataFrame
    """A row per sample that differs: ``sample_id``, ``simulation``, ``split``, ``what`` (``added``, ``removed``,
    ``changed``) and, of changed ones, ``columns``: the list of those with another value."""
    statuses: pl.DataFrame
    """A row per simulation whose status differs: ``simulation``, ``before``, ``after`` (null where it was not
    recorded) and ``message``, that of the later attempt."""

    @property
    def empty(self) -> bool:
        """Whether neither a sample nor a status differs."""
        return self.samples.is_empty() and self.statuses.is_empty()

    @property
    def counts(self) -> dict[str, int]:
        """How many samples were ``added``, ``removed`` and ``changed``."""
        return {kind: self.samples.filter(pl.col("what") == kind).height for kind in _KINDS}

    @property
    def per_simulation(self) -> pl.DataFrame:
        """A row per simulation with samples that differ: how many were ``added``, ``removed`` and ``changed``."""
        counts = self.samples.group_by("simulation").agg((pl.col("what") == kind).sum().alias(kind) for kind in _KINDS)
        return _in_order(counts)

    @property
    def changed_columns(self) -> dict[str, int]:
        """In how many changed samples each column has another value, the most frequent one first."""
        counts = self.samples["columns"].explode().drop_nulls().value_counts()
        return dict(counts.sort("count", "columns", descending=[True, False]).rows())


def difference(layout: DatasetLayout, before: DatasetVersion, after: DatasetVersion) -> VersionDifference:
    """Compare two versions of a data set, as its manifest has them.

    A sample that was made anew is a changed one. A sample that is in the table twice counts as two.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    before, after : DatasetVersion
        The versions, in either order of time.

    Raises
    ------
    ManifestError
        If a table cannot be read.
    """
    manifest = Manifest(layout)
    old, new = (_numbered(manifest.samples(version.number)) for version in (before, after))
    samples = pl.concat(
        [
            _described(new.join(old, on=_KEY, how="anti"), "added"),
            _described(old.join(new, on=_KEY, how="anti"), "removed"),
            _changed(old, new),
        ]
    )
    samples = _in_order(samples, "halo", "rotation").drop("halo", "rotation")
    return VersionDifference(before, after, samples, _statuses(manifest, before, after))


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    if rows["sample_id"].n_unique() == rows.height:
        return rows.with_columns(occurrence=pl.lit(1, pl.UInt32))
    occurrence = pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("sample_id")
    return rows.sort("created_at").with_columns(occurrence=occurrence)


def _described(rows: pl.DataFrame, what: str) -> pl.DataFrame:
    return rows.select(*_NAMED, pl.lit(what).alias("what"), pl.lit(None, pl.List(pl.String)).alias("columns"))


def _changed(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    # A column that one of the versions does not have yet is empty there.
    columns = [name for name in dict.fromkeys([*new.columns, *old.columns]) if name not in _KEY]
    types = dict(old.schema) | dict(new.schema)
    old, new = (
        rows.with_columns(pl.lit(None, types[name]).alias(name) for name in columns if name not in rows.columns)
        for rows in (old, new)
    )
    both = new.join(old, on=_KEY, suffix=" before")
    differs = [pl.col(name).ne_missing(pl.col(f"{name} before")) for name in columns]
    both = both.filter(pl.any_horizontal(differs))
    names = [pl.when(test).then(pl.lit(name)) for test, name in zip(differs, columns, strict=True)]
    listed = pl.concat_list(names).list.drop_nulls()
    return both.select(*_NAMED, pl.lit("changed").alias("what"), listed.alias("columns"))


def _statuses(manifest: Manifest, before: DatasetVersion, after: DatasetVersion) -> pl.DataFrame:
    attempts = (manifest.simulations(version.simulations_number) for version in (before, after))
    old, new = (
        rows.unique("simulation", keep="last", maintain_order=True).select("simulation", "status", "message")
        for rows in attempts
    )
    both = old.join(new, on="simulation", how="full", coalesce=True, suffix="_after")
    rows = both.filter(pl.col("status").ne_missing(pl.col("status_after"))).select(
        "simulation", before="status", after="status_after", message="message_after"
    )
    return _in_order(rows)


def _in_order(rows: pl.DataFrame, *then: str) -> pl.DataFrame:
    names = sorted(rows["simulation"].unique(), key=natural_order)
    place = pl.col("simulation").replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    return rows.sort(place, *then)
