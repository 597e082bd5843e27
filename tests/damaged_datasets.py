"""Copies of a sound data set that tests damage, and what an audit says of them."""

import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from block_runs import layout_of, make
from deltalake import DeltaTable, write_deltalake
from numpy.typing import ArrayLike, NDArray

from bind_core.config import DatasetConfig
from bind_core.sample import Sample
from storage.archives import decode_arrays, encode_arrays
from storage.audit import audit
from storage.audit_depth import Depth
from storage.audit_result import AuditResult
from storage.manifest import Manifest
from storage.mock_suite import MockSuite, write_mock_suite

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
BASES = ("dmo_base", "hydro_base", "catalogue_base")


@dataclass(frozen=True)
class AuditedDataset:
    """A data set with its suite, both in one folder."""

    folder: Path
    config: DatasetConfig

    @property
    def root(self) -> Path:
        return self.config.output_root

    @property
    def rows(self) -> pl.DataFrame:
        return Manifest(layout_of(self.config)).samples()

    def row(self, sample_id: str) -> dict[str, Any]:
        return self.rows.row(by_predicate=pl.col("sample_id") == sample_id, named=True)

    def file(self, sample_id: str) -> Path:
        return self.root / self.row(sample_id)["path"]

    def copied_to(self, folder: Path) -> "AuditedDataset":
        """Return a copy, with the times of its files."""
        shutil.copytree(self.folder, folder)
        paths = {name: folder / getattr(self.config, name).relative_to(self.folder) for name in (*BASES, "output_root")}
        config = self.config.model_copy(update=paths)
        layout_of(config).configuration_file.write_text(config.to_yaml())
        return AuditedDataset(folder, config)

    def audit(self, depth: Depth = Depth.VERIFIED, **options: Any) -> AuditResult:
        return audit(layout_of(self.config), depth, **({"audited_at": NOON, "threads": 2} | options))

    def found(self, depth: Depth = Depth.VERIFIED) -> dict[str, set[str]]:
        """Return what an audit names, by code."""
        offences = self.audit(depth).offences
        return {code: set(subjects) for code, subjects in offences.group_by("code").agg("subject").iter_rows()}

    def delete_rows(self, where: str, table: str = "samples") -> None:
        self._table(table).delete(where)

    def update_rows(self, where: str, table: str = "samples", **values: Any) -> None:
        """Change columns of rows, as somebody with the Delta library could."""
        self._table(table).update(predicate=where, new_values=values)

    def append_rows(self, rows: pl.DataFrame) -> None:
        arrow = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        write_deltalake(self.root / "manifest" / "samples", arrow, mode="append")

    def arrays(self, sample_id: str) -> dict[str, NDArray]:
        path = self.file(sample_id)
        return decode_arrays(path.read_bytes(), path)

    def write(self, sample_id: str, masses: bool = False, **arrays: ArrayLike) -> None:
        """Replace arrays of a sample, with a row that says so: size, digest and, if asked for, masses."""
        changed = {**self.arrays(sample_id), **arrays}
        content = encode_arrays({name: values for name, values in changed.items() if values is not None})
        self.file(sample_id).write_bytes(content)
        values: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if masses:
            values |= Sample(**{name: np.asarray(array) for name, array in changed.items()}).map_masses(
                self.config.windows
            )
        self.update_rows(f"sample_id = '{sample_id}'", **values)

    def _table(self, name: str) -> DeltaTable:
        return DeltaTable(self.root / "manifest" / name)


def mock_dataset(folder: Path, rotations: int = 10, particles_per_side: int = 16) -> AuditedDataset:
    """Make a data set of four mock simulations, the last of which is for testing."""
    suite: MockSuite = write_mock_suite(
        folder / "suite", simulations=4, particles_per_side=particles_per_side, halos_per_simulation=2
    )
    config = DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        output_root=folder / "dataset",
        resolution=16,
        strata=({"rotations": rotations},),  # type: ignore[arg-type]
        test_fraction=0.3,
    )
    make(config)
    return AuditedDataset(folder, config)
