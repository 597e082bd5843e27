"""What a data set has promised so far, kept beside it by a test, and whether it keeps its word."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from batch_runs import temporaries

from storage.columns import SAMPLES, SIMULATIONS
from storage.file_listing import TAKEN_FOR_SAMPLE
from storage.files import sha256_of
from storage.layout import DatasetLayout
from storage.manifest import Manifest, recorded_configuration
from storage.recorded import map_recorded
from storage.samples import SampleError, read_sample
from storage.tables import read_rows, table_history

_OF_AN_ATTEMPT = ("simulation", "status", "n_committed", "message")
_TAKEN = re.compile(TAKEN_FOR_SAMPLE)


@dataclass
class Ledger:
    """The promises of a data set.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    """

    layout: DatasetLayout
    versions: dict[int, pl.DataFrame] = field(default_factory=dict)
    """Rows of each version, as they were when it was the latest."""
    tags: dict[str, int] = field(default_factory=dict)
    destroyed: set[str] = field(default_factory=set)
    """Digests of files that the test itself has damaged, and that are whole nowhere since."""
    broken: set[tuple[str, str]] = field(default_factory=set)
    """Paths and digests of rows whose files the test itself has damaged, and that are not back in their places."""
    garbage: dict[str, str] = field(default_factory=dict)
    """Digests of files of no sample that the test has put among the samples, by path."""
    doubled: set[str] = field(default_factory=set)
    """Samples of which the test has added a row more."""
    interrupted: bool = False
    """Whether a run was killed or has failed, and none has come to its end since."""
    attempts: int = -1
    """Latest version of the table ``simulations`` that was looked at."""

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.layout)

    @property
    def rows(self) -> pl.DataFrame:
        """The latest version's rows."""
        return self.versions[max(self.versions)] if self.versions else pl.DataFrame(schema=SAMPLES.schema())

    def check(self, expected: Mapping[str, set[str]]) -> None:
        """Assert that everything is as promised, after an operation.

        Parameters
        ----------
        expected : mapping
            Ids of the samples of each simulation that the operation was to have in the end.
        """
        self._note_versions()
        self._check_attempts(expected)
        files = self._files()
        self._check_rows(files)
        self._check_folders(files)
        if self.versions:
            assert recorded_configuration(self.layout.root) is not None

    def check_version(self, number: int) -> None:
        """Assert that a version has the rows that it had, and that readers get the files that they are of."""
        rows = self.manifest.samples(number)
        assert rows.equals(self.versions[number])
        whole = rows.filter(~pl.col("sha256").is_in(list(self.destroyed)))
        if not self.interrupted:
            assert list(map_recorded(self.layout, whole, lambda one: one.sample_id)) == whole["sample_id"].to_list()

    def note_damage(self, path: str, digest: str) -> None:
        """Remember that the file of a row is about to be damaged."""
        self.destroyed.add(digest)
        self.broken.add((path, digest))

    def note_garbage(self, path: Path) -> None:
        """Remember that a file is of no sample."""
        self.garbage[self.layout.relative(path)] = sha256_of(path)

    def check_cleared(self) -> None:
        """Assert that nothing is left of what killed runs had begun."""
        assert temporaries(self.layout.root) == []
        assert not self.layout.staging_folder.exists()

    def _note_versions(self) -> None:
        for number in range(len(self.versions), self.manifest.version + 1):
            self.versions[number] = self.manifest.samples(number)
        for number in range(1, len(self.versions)):
            assert number in self.versions

    def _check_attempts(self, expected: Mapping[str, set[str]]) -> None:
        """Assert that what was recorded of simulations is so: complete ones have all samples, the counts are right."""
        table = self.layout.simulations_table
        new = [entry for entry in table_history(table) if entry["version"] > self.attempts]
        for entry in new:
            before = read_rows(table, SIMULATIONS, entry["version"] - 1)
            rows = read_rows(table, SIMULATIONS, entry["version"]).join(before, on=["simulation", "run_id"], how="anti")
            self.attempts = entry["version"]
            for name, status, committed, message in rows.select(_OF_AN_ATTEMPT).rows():
                then = self.versions.get(int(entry["samples_version"]), pl.DataFrame(schema=SAMPLES.schema()))
                there = then.filter(simulation=name)["sample_id"].unique()
                assert committed == len(there), (name, status, committed, there.to_list())
                missing = expected[name] - set(there)
                is_well = status in ("complete", "no_work")
                assert not missing if is_well else missing or message, (name, status, missing)
                assert status != "no_work" or not expected[name]

    def _files(self) -> dict[str, str]:
        """Return the digest of every file that a reader takes for a sample, and of those kept, by path."""
        root = self.layout.root
        found = [path for folder in ("train", "test", "superseded") for path in sorted(root.glob(f"{folder}/**/*"))]
        return {
            self.layout.relative(path): sha256_of(path)
            for path in found
            if _TAKEN.search(path.as_posix()) or self._is_kept(path)
        }

    def _is_kept(self, path: Path) -> bool:
        return path.is_file() and path.is_relative_to(self.layout.root / "superseded")

    def _check_rows(self, files: Mapping[str, str]) -> None:
        """Assert that each row's file is in its place, or where a journal says that it waits, and no row is twice."""
        ids = self.rows["sample_id"]
        self.doubled &= set(ids.filter(ids.is_duplicated()))
        assert set(ids.filter(ids.is_duplicated())) == self.doubled
        unfinished = self.manifest.unfinished()
        waiting = {file.sample_id: file.staged for one in unfinished for file in one.waiting(self.layout)}
        assert self.interrupted or not waiting
        staged = {path: sha256_of(self.layout.absolute(path)) for path in waiting.values()}
        whole = self._whole(files) | set(staged.values())
        self.destroyed -= whole
        self.broken -= set(files.items())
        for name, path, digest in self.rows.select("sample_id", "path", "sha256").rows():
            is_there = files.get(path) == digest or staged.get(waiting.get(name, "")) == digest
            assert is_there or (path, digest) in self.broken, (name, path, digest, files.get(path))
        everything = whole | self.destroyed
        for number, rows in self.versions.items():
            lost = rows.filter(~pl.col("sha256").is_in(list(everything)))
            assert lost.is_empty(), (number, lost["sample_id"].to_list())
        for path, digest in files.items():
            if path.startswith("superseded/"):
                assert path == self.layout.relative(self.layout.superseded_file(digest))

    def _whole(self, files: Mapping[str, str]) -> set[str]:
        """Return the digests of rows, of any version, whose files are in their places or kept."""
        recorded = {row for rows in self.versions.values() for row in rows.select("path", "sha256").rows()}
        kept = {digest for path, digest in files.items() if path.startswith("superseded/")}
        return kept | {digest for path, digest in recorded if files.get(path) == digest}

    def _check_folders(self, files: Mapping[str, str]) -> None:
        """Assert that whatever a reader takes for a sample is a whole one, or was damaged by the test itself."""
        self.garbage = {path: digest for path, digest in self.garbage.items() if files.get(path) == digest}
        for path in files.keys() - self.garbage.keys():
            try:
                read_sample(self.layout.root / path)
            except SampleError as error:
                raise AssertionError(f"{path} is visible, and is no sample") from error
