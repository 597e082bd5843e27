"""The data card of a version: three files that say what it is.

The version's rows as ``samples.parquet``, their description in the Croissant format as ``croissant.json``, and a page
for people, ``DATASET.md``. They are a picture of that version: what is committed later does not change them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from bind_core.dataset import VERSION_KEY
from storage.card_facts import DatasetFacts, Publication, gather
from storage.croissant import CardFile, croissant
from storage.dataset_page import dataset_page
from storage.files import atomic_write, sha256_of, write_bytes
from storage.layout import DatasetLayout
from storage.statistics import statistics_file
from storage.versions import DatasetVersion

SAMPLES_FILE = "samples.parquet"
CROISSANT_FILE = "croissant.json"
PAGE_FILE = "DATASET.md"


@dataclass(frozen=True)
class Card:
    """A card that was written."""

    facts: DatasetFacts
    files: tuple[Path, ...]
    unsaid: tuple[str, ...]
    """What Croissant requires and was not said: ``creators``, ``license``, ``url``."""


def write_card(
    layout: DatasetLayout,
    version: DatasetVersion,
    publication: Publication,
    published_at: datetime,
    folder: Path | None = None,
) -> Card:
    """Write the card of a version, each file atomically.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : DatasetVersion
        Which of its versions.
    publication : Publication
        What its owner says.
    published_at : datetime
        UTC.
    folder : Path, optional
        Where the files go; by default the data set's root, to which all paths in them are relative.

    Raises
    ------
    CardError
        If the version has no sample.
    ManifestError
        If a table cannot be read.
    ConfigurationError
        If ``dataset.yaml`` cannot be read.
    StorageFullError
        If the disk or the quota is full.
    """
    facts = gather(layout, version, publication, published_at)
    folder = folder or layout.root

    def write_rows(stream: BinaryIO) -> None:
        facts.samples.write_parquet(stream, metadata={VERSION_KEY: str(version.number)})

    rows = folder / SAMPLES_FILE
    atomic_write(rows, write_rows)
    what = f"The manifest's rows of version {version.number}, one for each sample."
    table = replace(_described(folder, rows, "application/x-parquet", what), path=SAMPLES_FILE)
    others = [
        _described(layout.root, layout.root / name, media_type, what)
        for name, media_type, what in _companions(layout, facts.config.target_channels)
        if (layout.root / name).is_file()
    ]
    card = json.dumps(croissant(facts, table, others), indent=2, ensure_ascii=False)
    write_bytes(folder / CROISSANT_FILE, f"{card}\n".encode())
    write_bytes(folder / PAGE_FILE, dataset_page(facts, table, others).encode())
    said = {"creators": publication.creators, "license": publication.license, "url": publication.url}
    return Card(
        facts=facts,
        files=tuple(folder / name for name in (CROISSANT_FILE, PAGE_FILE, SAMPLES_FILE)),
        unsaid=tuple(name for name, value in said.items() if not value),
    )


def _companions(layout: DatasetLayout, channels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return files that belong to a data set, where they are there: path, media type and what they are."""
    statistics = [
        (
            layout.relative(layout.statistics_folder / statistics_file(channel)),
            "application/zip",
            f"Normalization statistics of {channel.replace('_', ' ')} and of the inputs, in numpy's .npz.",
        )
        for channel in channels
    ]
    settings = (layout.configuration_file.name, "application/yaml", "The configuration that it was made with.")
    return [settings, *statistics, (layout.contact_sheet_file.name, "image/png", "A picture of some of the samples.")]


def _described(root: Path, path: Path, media_type: str, what: str) -> CardFile:
    return CardFile(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of(path), media_type, what)
