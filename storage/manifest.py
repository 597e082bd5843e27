"""The manifest: two Delta tables that say which samples exist and what became of every simulation.

A sample exists if, and only if, the table ``samples`` has a row for it. Every commit is atomic, and earlier
versions can be read back.
"""

import errno
import getpass
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import ArrowException, Schema, Table, array, dataset, schema, string
from pyarrow.parquet import read_schema, read_table
from pyarrow.types import is_large_string, is_string_view

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from storage.compaction import AFTER_COMMIT, TABLE_SETTINGS, commit_properties, keep_compact
from storage.files import StorageFullError, sha256_of, write_bytes
from storage.layout import DatasetLayout
from storage.replacement import NewFile, OldFile, Replacement, announce, finish, finish_interrupted
from storage.schemas import ManifestError, Row, SampleRow, SimulationRow, table_schema, validate_rows

SAMPLE_ORDER = ("simulation", "halo", "rotation")
"""Order in which `Manifest.samples` returns the rows, whichever order they were committed in."""

_SHOWN_IDS = 10

BEFORE_THE_FIRST = -1
"""The version of a table to which nothing was committed yet."""


class ConfigurationMismatchError(BindDataError):
    """A data set that was made with settings other than those of this run."""


@dataclass(frozen=True)
class ManifestVersion:
    """A version of the table ``samples``, and who made it; texts are empty where the commit does not say."""

    version: int
    committed_at: datetime
    """UTC."""
    operation: str
    """What Delta calls it: ``WRITE`` where rows were added; ``OPTIMIZE`` where only the files were rearranged."""
    run_id: str
    """Run that made the commit."""
    samples_added: int
    samples_removed: int = 0
    """A sample that was made anew counts as added and as removed."""
    action: str = ""
    """What it was for: ``generate``, ``refresh``, ``repair``, ``compact``."""
    user: str = ""
    host: str = ""
    config_digest: str = ""
    """Of the configuration's content."""
    code_version: str = ""


class Manifest:
    """The record of a data set.

    Parameters
    ----------
    layout : DatasetLayout
        Where the data set lies.
    config : DatasetConfig, optional
        The configuration of this run; needed to commit. `open_dataset` checks it against the recorded one.
    """

    def __init__(self, layout: DatasetLayout, config: DatasetConfig | None = None) -> None:
        self.layout = layout
        self.config = config

    def exists(self) -> bool:
        """Whether anything was ever committed."""
        return any(_exists(table) for table in (self.layout.samples_table, self.layout.simulations_table))

    def samples(self, version: int | None = None) -> pl.DataFrame:
        """Return the committed samples.

        Parameters
        ----------
        version : int, optional
            An earlier version of the table; the latest by default.

        Returns
        -------
        DataFrame
            Columns as in `storage.schemas.SampleRow`, ordered by simulation, halo and rotation; empty if there is
            none yet.

        Raises
        ------
        ManifestError
            If there is no such version, or the table cannot be read.
        """
        return _read(self.layout.samples_table, SampleRow, version).sort(SAMPLE_ORDER)

    def simulations(self, version: int | None = None) -> pl.DataFrame:
        """Return all attempts at all simulations, oldest first.

        Parameters
        ----------
        version : int, optional
            An earlier version of the table; the latest by default.

        Returns
        -------
        DataFrame
            Columns as in `storage.schemas.SimulationRow`; empty if there is none yet.

        Raises
        ------
        ManifestError
            If there is no such version, or the table cannot be read.
        """
        rows = _read(self.layout.simulations_table, SimulationRow, version)
        return rows.sort("recorded_at", "run_id", "simulation")

    def latest_simulations(self) -> pl.DataFrame:
        """Return the newest attempt at each simulation, ordered by name."""
        newest = self.simulations().unique("simulation", keep="last", maintain_order=True)
        return newest.sort("simulation")

    def samples_made_alike(self) -> pl.DataFrame:
        """Return the committed samples in groups that came from the same inputs, settings and code.

        Returns
        -------
        DataFrame
            A row for each ``simulation``, ``config_digest``, ``inputs_digest`` and ``output_version`` that occur
            together, with the lists ``halo`` and ``rotation`` of the samples.
        """
        groups = ["simulation", "config_digest", "inputs_digest", "output_version"]
        rows = _read(self.layout.samples_table, SampleRow, columns=[*groups, "halo", "rotation"])
        return rows.group_by(groups, maintain_order=True).agg("halo", "rotation")

    def run_of_samples(self, sample_ids: Sequence[str]) -> dict[str, str]:
        """Return the run that made each of some samples; those that do not exist are left out."""
        named = one_of("sample_id", sample_ids)
        rows = _read(self.layout.samples_table, SampleRow, columns=["sample_id", "run_id"], where=named)
        return dict(rows.rows())

    @property
    def version(self) -> int:
        """The latest version of the table ``samples``; `BEFORE_THE_FIRST` as long as it has none."""
        table = _open(self.layout.samples_table)
        return BEFORE_THE_FIRST if table is None else table.version()

    @property
    def versions(self) -> list[ManifestVersion]:
        """All versions of the table ``samples``, oldest first."""
        return [_version(entry) for entry in table_history(self.layout.samples_table)]

    def commit(
        self,
        samples: pl.DataFrame | None,
        simulations: pl.DataFrame,
        run_id: str,
        *,
        replaced: Collection[str] = (),
        staged: Mapping[str, str] = MappingProxyType({}),
        action: str = "generate",
    ) -> int:
        """Record the outcome of a block: first its samples, in one atomic commit, then its simulations.

        A process that is killed in between leaves samples that exist and simulations without a row of this
        attempt, which is what the next run completes.

        Parameters
        ----------
        samples : DataFrame or None
            New rows for the table ``samples``; None or empty if there are none.
        simulations : DataFrame
            New rows for the table ``simulations``, at least one.
        run_id : str
            The run; stored with the commit and expected in each row.
        replaced : collection of str
            Ids of samples that exist and whose rows go, in the same commit. Their files are kept by their digests.
        staged : mapping
            Where the files of new rows lie until then, relative to the root, by id; in their places if not named.
        action : str
            What the commit is for: ``generate``, ``refresh``, ``repair``.

        Returns
        -------
        int
            The version of the table ``samples`` that holds the new rows; -1 if it has none at all.

        Raises
        ------
        ManifestError
            If rows do not match their schema, belong to another run or configuration, or name a sample that
            exists already. Nothing is written then.
        StorageFullError
            If the disk or the quota is full.
        """
        metadata = self._metadata(run_id, action)
        attempts = self._checked(simulations, SimulationRow, run_id)
        if attempts.is_empty():
            raise ManifestError("A commit needs at least one row for the table 'simulations', but got none.")
        new = None if samples is None or samples.is_empty() else self._checked(samples, SampleRow, run_id)
        if new is not None:
            self._refuse_existing(new, frozenset(replaced))
        self._record_configuration()
        if replaced:
            self._replace(new, frozenset(replaced), staged, metadata)
        elif new is not None:
            _append(self.layout.samples_table, new, metadata | {"samples_added": str(new.height)})
        version = self.version
        _append(self.layout.simulations_table, attempts, metadata | {"samples_version": str(version)})
        for table in (self.layout.samples_table, self.layout.simulations_table):
            keep_compact(table, metadata, datetime.now(UTC))
        return version

    def remove_duplicates(self, run_id: str) -> int:
        """Keep one row of each sample: the one that its file is of, if there is such.

        Returns
        -------
        int
            The number of rows removed.

        Raises
        ------
        ManifestError
            If the manifest was opened for reading, or cannot be written.
        """
        metadata = self._metadata(run_id, "repair")
        samples = self.samples()
        twice = samples.filter(pl.col("sample_id").is_duplicated())
        if twice.is_empty():
            return 0
        simulations = twice["simulation"].unique().sort().to_list()
        rows = samples.filter(pl.col("simulation").is_in(simulations))
        of_the_file = [self._is_of_its_file(*row) for row in rows.select("path", "sha256").rows()]
        kept = rows.with_columns(own=pl.Series(of_the_file)).sort("own", descending=True, maintain_order=True)
        kept = kept.unique("sample_id", keep="first", maintain_order=True).drop("own")
        counts = {"samples_added": "0", "samples_removed": str(rows.height - kept.height)}
        _overwrite(self.layout.samples_table, kept, simulations, metadata | counts)
        return rows.height - kept.height

    def _is_of_its_file(self, path: str, sha256: str) -> bool:
        try:
            return sha256_of(self.layout.absolute(path)) == sha256
        except (OSError, BindDataError):
            return False

    def finish_interrupted(self) -> list[str]:
        """Put the files of rows that a killed run has committed into their places; return these runs.

        Call it only where no other process is writing.
        """
        return finish_interrupted(self.layout, self.run_of_samples)

    def _checked(self, rows: pl.DataFrame, model: Row, run_id: str) -> pl.DataFrame:
        checked = validate_rows(rows, model)
        expected = {"run_id": run_id, "config_digest": self.config.digest if self.config else ""}
        for column, value in expected.items():
            others = checked.filter(pl.col(column) != value)[column].unique().sort().to_list()
            if others:
                raise ManifestError(
                    f"Rows of another {column} cannot be committed: expected {value}, found {', '.join(others)}."
                )
        return checked

    def _replace(
        self, new: pl.DataFrame | None, replaced: frozenset[str], staged: Mapping[str, str], metadata: dict[str, str]
    ) -> None:
        """Exchange rows in one commit, and then the files."""
        going = _read(self.layout.samples_table, SampleRow, where=one_of("sample_id", replaced))
        coming = going.clear() if new is None else new
        simulations = sorted({*going["simulation"], *coming["simulation"]})
        if not simulations:
            return
        of_these = one_of("simulation", simulations)
        before = _read(self.layout.samples_table, SampleRow, where=of_these)
        rows = pl.concat([before.filter(~pl.col("sample_id").is_in(list(replaced))), coming])
        replacement = Replacement(
            metadata["run_id"],
            new=tuple(
                NewFile(name, staged[name], path)
                for name, path in coming.select("sample_id", "path").rows()
                if name in staged
            ),
            old=tuple(OldFile(*file) for file in going.select("sample_id", "path", "sha256").rows()),
        )
        journal = announce(self.layout, replacement)
        counts = {"samples_added": str(coming.height), "samples_removed": str(going.height)}
        _overwrite(self.layout.samples_table, rows, simulations, metadata | counts)
        finish(self.layout, replacement, journal)

    def _refuse_existing(self, new: pl.DataFrame, replaced: frozenset[str]) -> None:
        of_these_simulations = one_of("simulation", new["simulation"].unique())
        known = _read(self.layout.samples_table, SampleRow, columns=["sample_id"], where=of_these_simulations)
        again = sorted(set(new["sample_id"]) & set(known["sample_id"]) - replaced)
        if again:
            more = f" and {len(again) - _SHOWN_IDS} more" if len(again) > _SHOWN_IDS else ""
            raise ManifestError(
                f"{len(again)} of {new.height} samples are in the manifest of {self.layout.root} already: "
                f"{', '.join(again[:_SHOWN_IDS])}{more}. Nothing was written. Plan again: another run may have "
                "made them meanwhile."
            )

    def _metadata(self, run_id: str, action: str) -> dict[str, str]:
        """Return what a commit says of itself."""
        if self.config is None:
            raise ManifestError(
                f"The manifest of {self.layout.root} was opened for reading. To commit, open it with "
                "open_dataset(layout, config)."
            )
        return {
            "run_id": run_id,
            "committed_at": datetime.now(UTC).isoformat(),
            "action": action,
            "user": user_name(),
            "host": socket.gethostname(),
            "config_digest": self.config.digest,
            "code_version": version("bind-data"),
        }

    def _record_configuration(self) -> None:
        if self.config is None:
            return
        text = self.config.to_yaml().encode()
        path = self.layout.configuration_file
        if not path.exists() or path.read_bytes() != text:
            write_bytes(path, text)


def open_dataset(layout: DatasetLayout, config: DatasetConfig, *, refresh: bool = False) -> Manifest:
    """Open the manifest of a data set for a run, which may be its first.

    Settings that do not decide what is in a sample may differ from the recorded ones: paths, strata, workers.
    The first commit records the configuration in ``dataset.yaml``; later ones keep it up to date.

    Parameters
    ----------
    layout : DatasetLayout
        Where the data set lies, or will lie.
    config : DatasetConfig
        The configuration of this run.
    refresh : bool
        The run makes samples anew that were made with other settings: these may differ too.

    Raises
    ------
    ConfigurationMismatchError
        If the data set was made with other settings that decide what is in a sample.
    ConfigurationError
        If the recorded configuration cannot be read.
    """
    manifest = Manifest(layout, config)
    recorded = recorded_configuration(layout.root)
    if recorded is not None and recorded.digest != config.digest and not refresh:
        raise ConfigurationMismatchError(_differences(layout, recorded.content, config.content))
    if recorded is None and manifest.exists() and not refresh:
        digests = manifest.simulations()["config_digest"].unique().to_list()
        if digests != [config.digest]:
            raise ConfigurationMismatchError(
                f"The data set {layout.root} was made with another configuration than that of this run, and its "
                f"{layout.configuration_file.name}, which would say with which, is missing. Restore that file, or "
                "choose another output_root."
            )
    return manifest


def recorded_configuration(root: Path) -> DatasetConfig | None:
    """Return the configuration that a data set was made with, or None if nothing was committed yet.

    Raises
    ------
    ConfigurationError
        If its ``dataset.yaml`` cannot be read.
    """
    path = DatasetLayout(root, "").configuration_file
    return DatasetConfig.from_yaml(path) if path.exists() else None


def layout_at(root: Path) -> DatasetLayout:
    """Return the layout of the data set in a folder.

    Raises
    ------
    ManifestError
        If there is no data set.
    ConfigurationError
        If its ``dataset.yaml`` cannot be read.
    """
    config = recorded_configuration(root)
    if config is None:
        raise ManifestError(
            f"There is no data set in {root.absolute()}: it has no dataset.yaml. Give the folder that samples were "
            "generated into; a data set appears there with the first committed block."
        )
    return DatasetLayout(root, config.set_name)


def _differences(layout: DatasetLayout, recorded: dict[str, Any], current: dict[str, Any]) -> str:
    lines = [f"The data set {layout.root} was made with other settings than those of this run:"]
    for name in sorted(recorded.keys() | current.keys()):
        before, now = recorded.get(name, "(not set)"), current.get(name, "(not set)")
        if before != now:
            lines.append(f"  {name}: the data set has {before}, this run has {now}")
    lines.append(
        f"Samples made with both would not belong together. Set these back (the data set's are in "
        f"{layout.configuration_file}), choose another output_root, or ask for a refresh (--refresh), which makes the "
        "samples anew."
    )
    return "\n".join(lines)


def _exists(path: Path) -> bool:
    return (path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path))


def _open(path: Path, version: int | None = None) -> DeltaTable | None:
    try:
        return DeltaTable(path, version=version)
    except TableNotFoundError:
        if version is None:
            return None
        raise ManifestError(f"The table {path} has no version {version}: nothing was committed to it yet.") from None
    except DeltaError as error:
        latest = _open(path) if version is not None else None
        if latest is not None and not 0 <= (version or 0) <= latest.version():
            raise ManifestError(
                f"The table {path} has no version {version}; its versions are 0 to {latest.version()}."
            ) from error
        raise ManifestError(f"Cannot read the table {path}: {error}") from error


def table_rows(path: Path, model: Row, version: int | None = None) -> dataset.Dataset:
    """Return a table for pyarrow, DuckDB or anything else that reads Arrow's data sets; nothing is loaded yet.

    The files that the version consists of are read as plain Parquet: polars' Delta reader takes the path for a URL,
    in which a blank leads nowhere, and the Delta library's own data set skips files by statistics that its
    checkpoints are known to confuse (delta-rs issue 3201).

    Parameters
    ----------
    path : Path
        Folder of the table.
    model : SampleRow or SimulationRow
        Its schema, for a table that does not exist yet.
    version : int, optional
        An earlier version; the latest by default. `BEFORE_THE_FIRST` has no rows.

    Raises
    ------
    ManifestError
        If there is no such version, or the table cannot be read.
    """
    table = None if version == BEFORE_THE_FIRST else _open(path, version)
    if table is None:
        return dataset.dataset(_plain(pl.DataFrame(schema=table_schema(model))))
    files = [path / PurePosixPath(uri).name for uri in table.file_uris()]  # whose folder is percent-encoded
    try:
        return _rows_of(files, schema(table.schema().to_arrow()))
    except (ArrowException, OSError) as error:
        raise ManifestError(
            f"Cannot read the table {path}: {error}. One of its files is missing or damaged; restore it from a copy, "
            "or read an earlier version."
        ) from error


def _rows_of(files: list[Path], columns: Schema) -> dataset.Dataset:
    """Return the rows of Parquet files.

    Files that the Delta library has rewritten by itself, to delete or change rows, hold texts as views, which cannot
    be filtered; these are loaded and converted.
    """
    views = [path for path in files if any(is_string_view(kind) for kind in read_schema(path).types)]
    plain = dataset.dataset([path for path in files if path not in views], schema=columns, format="parquet")
    if not views:
        return plain
    converted = [read_table(path, partitioning=None).select(columns.names).cast(columns) for path in views]
    return dataset.dataset([plain, dataset.dataset(converted, schema=columns)])


def table_history(path: Path) -> list[dict[str, Any]]:
    """Return what each commit to a table says of itself, oldest first; nothing if there is no such table.

    Parameters
    ----------
    path : Path
        Folder of the table.

    Returns
    -------
    list of dict
        ``version``, ``timestamp`` (milliseconds since 1970, UTC), ``operation`` and ``operationMetrics`` as Delta has
        them, and what the committer added, as text.

    Raises
    ------
    ManifestError
        If the table cannot be read.
    """
    table = _open(path)
    try:
        history: list[dict[str, Any]] = [] if table is None else table.history()
    except (DeltaError, OSError) as error:
        raise ManifestError(f"Cannot read the history of the table {path}: {error}") from error
    return sorted(history, key=lambda entry: entry["version"])


def _version(entry: dict[str, Any]) -> ManifestVersion:
    metrics = entry.get("operationMetrics", {})  # of commits by other tools, which say no more
    added = metrics.get("num_added_rows") or metrics.get("num_target_rows_inserted") or 0
    removed = metrics.get("num_deleted_rows") or metrics.get("num_target_rows_deleted") or 0
    texts = ("run_id", "action", "user", "host", "config_digest", "code_version")
    return ManifestVersion(
        version=entry["version"],
        committed_at=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
        operation=entry["operation"],
        samples_added=int(entry.get("samples_added", added)),
        samples_removed=int(entry.get("samples_removed", removed)),
        **{name: entry.get(name, "") for name in texts},
    )


def _plain(rows: pl.DataFrame) -> Table:
    """Return rows with texts as Arrow's plain strings; in files of polars' string views, texts cannot be filtered."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    texts = [field.with_type(string()) if is_large_string(field.type) else field for field in table.schema]
    return table.cast(schema(texts))


def _read(
    path: Path,
    model: Row,
    version: int | None = None,
    columns: list[str] | None = None,
    where: dataset.Expression | None = None,
) -> pl.DataFrame:
    try:
        return pl.DataFrame(table_rows(path, model, version).to_table(columns=columns, filter=where))
    except (ArrowException, DeltaError, OSError) as error:
        raise ManifestError(
            f"Cannot read the table {path}: {error}. One of its files is missing or damaged; restore it from a copy, "
            "or read an earlier version."
        ) from error


def one_of(column: str, texts: Iterable[str]) -> dataset.Expression:
    """Return the condition that a column holds one of some texts, of which there may be none."""
    return dataset.field(column).isin(array(list(texts), string()))


def user_name() -> str:
    """Return who runs this process; a number where the user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return str(os.getuid())


def _overwrite(path: Path, rows: pl.DataFrame, simulations: Sequence[str], metadata: dict[str, str]) -> None:
    """Replace all rows of some simulations in one commit."""
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in simulations)
    with _failures_explained(path, rows):
        write_deltalake(
            path,
            _plain(rows),
            mode="overwrite",
            predicate=f"simulation IN ({names})",
            commit_properties=commit_properties(metadata),
            post_commithook_properties=AFTER_COMMIT,
        )


def _append(path: Path, rows: pl.DataFrame, metadata: dict[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with _failures_explained(path, rows):
        write_deltalake(
            path,
            _plain(rows),
            mode="append",
            configuration=None if _exists(path) else TABLE_SETTINGS,
            commit_properties=commit_properties(metadata),
            post_commithook_properties=AFTER_COMMIT,
        )


@contextmanager
def _failures_explained(path: Path, rows: pl.DataFrame) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
            raise StorageFullError.at(path, "no space left") from error
        raise ManifestError(f"Cannot commit {rows.height} rows to the table {path}: {error}") from error
