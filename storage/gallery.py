"""Which samples to look at, and their contact sheets, by what the manifest knows of them."""

from pathlib import Path
from typing import Any

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from storage.contact_sheet import SheetEntry, contact_sheet, dataset_contact_sheet, sample_title
from storage.layout import DatasetLayout
from storage.manifest import Manifest, recorded_configuration
from storage.samples import read_sample

_MOST_SAMPLES = 4


class UnknownSampleError(BindDataError):
    """A sample that the manifest does not know."""


def sheet_of_dataset(layout: DatasetLayout, config: DatasetConfig) -> bytes | None:
    """Return a PNG of some of a data set's samples, the heaviest haloes of different simulations first.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    config : DatasetConfig
        What it is made with.

    Returns
    -------
    bytes or None
        None if there is no sample.
    """
    rows = Manifest(layout).samples()
    if rows.is_empty():
        return None
    first = rows.filter(pl.col("rotation") == pl.col("rotation").min().over("simulation", "halo"))
    ranked = first.with_columns(
        place=pl.col("halo_mass").rank("ordinal", descending=True).over("simulation"),
    ).sort("place", "halo_mass", descending=[False, True])
    entries = [
        SheetEntry(
            sample=read_sample(layout.absolute(row["path"])),
            title=sample_title(row["simulation"], row["halo"], row["rotation"], row["halo_mass"], separator="\n"),
        )
        for row in ranked.head(_MOST_SAMPLES).iter_rows(named=True)
    ]
    return dataset_contact_sheet(entries, config.windows, f"{rows.height:,} samples", config.extra_fields)


def sheet_is_current(layout: DatasetLayout) -> bool:
    """Whether a data set's contact sheet was drawn after its last commit, and not before a run that was killed since.

    Raises
    ------
    ManifestError
        If the manifest cannot be read.
    """
    try:
        drawn = layout.contact_sheet_file.stat().st_mtime
    except FileNotFoundError:
        return False
    versions = Manifest(layout).versions
    return not versions or drawn >= versions[-1].committed_at.timestamp()


def sheet_of_sample(layout: DatasetLayout, name: str) -> tuple[str, bytes]:
    """Return the contact sheet of one sample.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    name : str
        The sample's id, the name of its file, or a path to it.

    Returns
    -------
    tuple of str and bytes
        The sample's id and a PNG.

    Raises
    ------
    UnknownSampleError
        If the manifest has no such sample.
    SampleError
        If its file cannot be read.
    """
    row = find_sample(layout, name)
    config = recorded_configuration(layout.root)
    if config is None:
        raise UnknownSampleError(f"{layout.root} holds no data set.")
    title = sample_title(row["simulation"], row["halo"], row["rotation"], row["halo_mass"])
    sample = read_sample(layout.absolute(row["path"]))
    return row["sample_id"], contact_sheet(sample, config.windows, title, config.extra_fields)


def find_sample(layout: DatasetLayout, name: str) -> dict[str, Any]:
    """Return the manifest's row of a sample, by its id, the name of its file, or a path to it.

    Raises
    ------
    UnknownSampleError
        If there is none.
    """
    stem = Path(name).name.removesuffix(".npz")
    rows = Manifest(layout).samples()
    found = rows.filter((pl.col("sample_id") == stem) | pl.col("path").str.ends_with(f"/{stem}.npz"))
    if found.is_empty():
        examples = ", ".join(rows["sample_id"].head(3).to_list()) or "none yet"
        raise UnknownSampleError(
            f"The manifest of {layout.root} has no sample called {stem}. Samples are called, for example, {examples}; "
            "`bind-data query` lists them from the table samples."
        )
    return found.row(0, named=True)
