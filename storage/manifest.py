"""The manifest: two Delta tables that say which samples exist and what became of every simulation.

A sample exists if, and only if, the table ``samples`` has a row for it. Every commit is atomic, and earlier
versions can be read back.
"""

import reprlib
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, ConfigurationError
from storage.columns import SAMPLES, SIMULATIONS, ManifestError, SimulationStatus, TableForm
from storage.commits import ManifestVersion, version_of
from storage.compaction import COMMIT_RETRIES, keep_compact
from storage.declared_transforms import other_transforms, with_transforms_of
from storage.faults import Step, passing
from storage.files import one_at_a_time, sha256_of, write_bytes
from storage.layout import DatasetLayout
from storage.lease import Lease
from storage.process_identity import user_name
from storage.replacement import NewFile, OldFile, Replacement, announce, finish, finish_interrupted, unfinished
from storage.tables import (
    BEFORE_THE_FIRST,
    OutrunError,
    append_rows,
    one_of,
    open_table,
    overwrite_rows,
    read_rows,
    table_exists,
    table_history,
)

SAMPLE_ORDER = ("simulation", "halo", "rotation")
"""Order in which `Manifest.samples` returns the rows, whichever order they were committed in."""

_SHOWN_IDS = 10


class ConfigurationMismatchError(BindDataError):
    """A data set that was made with settings other than those of this run."""


class Manifest:
    """The record of a data set.

    Parameters
    ----------
    layout : DatasetLayout
        Where the data set lies.
    config : DatasetConfig, optional
        The configuration of this run; needed to commit. `open_dataset` checks it against the recorded one.
    lease : Lease, optional
        The right to write, which is checked before each commit.
    """

    def __init__(self, layout: DatasetLayout, config: DatasetConfig | None = None, lease: Lease | None = None) -> None:
        self.layout = layout
        self.config = config
        self.lease = lease

    def exists(self) -> bool:
        """Whether anything was ever committed."""
        return any(table_exists(table) for table in (self.layout.samples_table, self.layout.simulations_table))

    def samples(self, version: int | None = None) -> pl.DataFrame:
        """Return the committed samples.

        Parameters
        ----------
        version : int, optional
            An earlier version of the table; the latest by default.

        Returns
        -------
        DataFrame
            Columns as in `storage.columns.SAMPLES`, ordered by simulation, halo and rotation; empty if there is
            none yet.

        Raises
        ------
        ManifestError
            If there is no such version, or the table cannot be read.
        """
        return read_rows(self.layout.samples_table, SAMPLES, version).sort(SAMPLE_ORDER)

    def simulations(self, version: int | None = None) -> pl.DataFrame:
        """Return all attempts at all simulations, oldest first.

        Parameters
        ----------
        version : int, optional
            An earlier version of the table; the latest by default.

        Returns
        -------
        DataFrame
            Columns as in `storage.columns.SIMULATIONS`; empty if there is none yet.

        Raises
        ------
        ManifestError
            If there is no such version, or the table cannot be read.
        """
        rows = read_rows(self.layout.simulations_table, SIMULATIONS, version)
        unknown = set(rows["status"].unique()) - set(SimulationStatus)
        if unknown:
            raise ManifestError(
                f"The table {self.layout.simulations_table} has simulations of the status "
                f"{reprlib.repr(unknown.pop())}; expected {', '.join(SimulationStatus)}. It was damaged or tampered "
                "with: restore it from a copy."
            )
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
        rows = read_rows(self.layout.samples_table, SAMPLES, columns=[*groups, "halo", "rotation"])
        return rows.group_by(groups, maintain_order=True).agg("halo", "rotation")

    def run_of_samples(self, sample_ids: Sequence[str]) -> dict[str, str]:
        """Return the run that made each of some samples; those that do not exist are left out."""
        named = one_of("sample_id", sample_ids)
        rows = read_rows(self.layout.samples_table, SAMPLES, columns=["sample_id", "run_id"], where=named)
        return dict(rows.rows())

    @property
    def version(self) -> int:
        """The latest version of the table ``samples``; `BEFORE_THE_FIRST` as long as it has none."""
        table = open_table(self.layout.samples_table)
        return BEFORE_THE_FIRST if table is None else table.version()

    @property
    def state(self) -> tuple[int, ...]:
        """A number for each table that changes with every commit."""
        tables = (open_table(path) for path in (self.layout.samples_table, self.layout.simulations_table))
        return tuple(BEFORE_THE_FIRST if table is None else table.version() for table in tables)

    @property
    def versions(self) -> list[ManifestVersion]:
        """All versions of the table ``samples``, oldest first."""
        return [version_of(entry) for entry in table_history(self.layout.samples_table)]

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
            What the commit is for: ``generate``, ``refresh``, ``repair``, ``import``.

        Returns
        -------
        int
            The version of the table ``samples`` that holds the new rows; -1 if it has none at all.

        Raises
        ------
        ManifestError
            If rows do not match their schema, belong to another run or configuration, or name a sample that
            exists already. Nothing is written then.
        LeaseLostError
            If the right to write was lost.
        StorageFullError
            If the disk or the quota is full.
        """
        metadata = self._metadata(run_id, action)
        attempts = self._checked(simulations, SIMULATIONS, run_id)
        if attempts.is_empty():
            raise ManifestError("A commit needs at least one row for the table 'simulations', but got none.")
        new = None if samples is None or samples.is_empty() else self._checked(samples, SAMPLES, run_id)
        # Of two commits of the same version, the Delta library lets one win. With this lock, they seldom meet.
        with one_at_a_time(self.layout.commit_lock):
            return self._commit(new, attempts, frozenset(replaced), staged, metadata)

    def _commit(
        self,
        new: pl.DataFrame | None,
        attempts: pl.DataFrame,
        replaced: frozenset[str],
        staged: Mapping[str, str],
        metadata: dict[str, str],
    ) -> int:
        self._record_configuration()
        passing(Step.BETWEEN_RENAME_AND_COMMIT)
        for attempts_left in reversed(range(COMMIT_RETRIES)):
            try:
                self._commit_samples(new, replaced, staged, metadata)
                break
            except OutrunError:  # by a run that writes other simulations, or by one that took this one for dead
                if not attempts_left:
                    raise
        version = self.version
        passing(Step.WITHIN_COMMIT)
        append_rows(self.layout.simulations_table, attempts, metadata | {"samples_version": str(version)})
        for table in (self.layout.samples_table, self.layout.simulations_table):
            keep_compact(table, metadata, datetime.now(UTC))
        return version

    def _commit_samples(
        self,
        new: pl.DataFrame | None,
        replaced: frozenset[str],
        staged: Mapping[str, str],
        metadata: dict[str, str],
    ) -> None:
        """Commit samples on top of what the manifest holds while the right to write is ours: that, or nothing."""
        version = self.version
        self._check_lease()
        if new is not None:
            self._refuse_existing(new, replaced, version)
        if replaced:
            self._replace(new, replaced, staged, metadata, version)
        elif new is not None:
            append_rows(self.layout.samples_table, new, metadata | {"samples_added": str(new.height)}, version)

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
        with one_at_a_time(self.layout.commit_lock):
            return self._remove_duplicates(metadata)

    def _remove_duplicates(self, metadata: dict[str, str]) -> int:
        version = self.version
        self._check_lease()
        samples = self.samples(version)
        twice = samples.filter(pl.col("sample_id").is_duplicated())
        if twice.is_empty():
            return 0
        simulations = twice["simulation"].unique().sort().to_list()
        rows = samples.filter(pl.col("simulation").is_in(simulations))
        of_the_file = [self._is_of_its_file(*row) for row in rows.select("path", "sha256").rows()]
        kept = rows.with_columns(own=pl.Series(of_the_file)).sort("own", descending=True, maintain_order=True)
        kept = kept.unique("sample_id", keep="first", maintain_order=True).drop("own")
        counts = {"samples_added": "0", "samples_removed": str(rows.height - kept.height)}
        overwrite_rows(self.layout.samples_table, kept, simulations, metadata | counts, version)
        return rows.height - kept.height

    def _is_of_its_file(self, path: str, sha256: str) -> bool:
        try:
            return sha256_of(self.layout.absolute(path)) == sha256
        except (OSError, BindDataError):
            return False

    @property
    def is_interrupted(self) -> bool:
        """Whether there is anything that `finish_interrupted` would look at."""
        return self.layout.staging_folder.is_dir()

    def finish_interrupted(self) -> list[str]:
        """Put the files of rows that killed runs have committed into their places; return these runs."""
        if not self.is_interrupted:
            return []
        self._check_lease()
        with one_at_a_time(self.layout.commit_lock):
            return finish_interrupted(self.layout, self.run_of_samples)

    def unfinished(self) -> list[Replacement]:
        """Return what killed runs, or one at work, have committed whose files are not all in their places."""
        return unfinished(self.layout, self.run_of_samples)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _checked(self, rows: pl.DataFrame, form: TableForm, run_id: str) -> pl.DataFrame:
        from storage.schemas import validate_rows  # takes long to import, and readers do not need it

        checked = validate_rows(rows, form)
        expected = {"run_id": run_id, "config_digest": self.config.digest if self.config else ""}
        for column, value in expected.items():
            others = checked.filter(pl.col(column) != value)[column].unique().sort().to_list()
            if others:
                raise ManifestError(
                    f"Rows of another {column} cannot be committed: expected {value}, found {', '.join(others)}."
                )
        return checked

    def _replace(
        self,
        new: pl.DataFrame | None,
        replaced: frozenset[str],
        staged: Mapping[str, str],
        metadata: dict[str, str],
        version: int,
    ) -> None:
        """Exchange rows in one commit, the one after `version`, and then the files."""
        going = read_rows(self.layout.samples_table, SAMPLES, version, where=one_of("sample_id", replaced))
        coming = going.clear() if new is None else new
        simulations = sorted({*going["simulation"], *coming["simulation"]})
        if not simulations:
            return
        of_these = one_of("simulation", simulations)
        before = read_rows(self.layout.samples_table, SAMPLES, version, where=of_these)
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
        passing(Step.BEFORE_REPLACEMENT)
        counts = {"samples_added": str(coming.height), "samples_removed": str(going.height)}
        try:
            overwrite_rows(self.layout.samples_table, rows, simulations, metadata | counts, version)
        except OutrunError:
            journal.unlink()  # the next attempt writes its own
            raise
        finish(self.layout, replacement, journal)

    def _refuse_existing(self, new: pl.DataFrame, replaced: frozenset[str], version: int) -> None:
        of_these = one_of("simulation", new["simulation"].unique())
        known = read_rows(self.layout.samples_table, SAMPLES, version, columns=["sample_id"], where=of_these)
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
        if path.exists() and path.read_bytes() != text:
            with suppress(ConfigurationError):  # one that cannot be read is replaced
                text = with_transforms_of(DatasetConfig.from_yaml(path), self.config).to_yaml().encode()
        if not path.exists() or path.read_bytes() != text:
            write_bytes(path, text)


def open_dataset(
    layout: DatasetLayout, config: DatasetConfig, lease: Lease | None = None, *, refresh: bool = False
) -> Manifest:
    """Open the manifest of a data set for a run, which may be its first.

    Settings that do not decide what is in a sample may differ from the recorded ones: paths, strata, workers.
    The first commit records the configuration in ``dataset.yaml``; later ones keep it up to date.

    Parameters
    ----------
    layout : DatasetLayout
        Where the data set lies, or will lie.
    config : DatasetConfig
        The configuration of this run.
    lease : Lease, optional
        The right to write that the run has got.
    refresh : bool
        The run makes samples anew that were made with other settings: these may differ too.

    Raises
    ------
    ConfigurationMismatchError
        If the data set was made with other settings that decide what is in a sample, or declares other transforms.
    ConfigurationError
        If the recorded configuration cannot be read.
    """
    manifest = Manifest(layout, config, lease)
    recorded = recorded_configuration(layout.root)
    if recorded is not None and recorded.digest != config.digest and not refresh:
        raise ConfigurationMismatchError(_differences(layout, recorded.content, config.content))
    if recorded is not None and (problem := other_transforms(layout, recorded, config)):
        raise ConfigurationMismatchError(problem)
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
