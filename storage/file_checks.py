"""Audit of the files under ``train/`` and ``test/`` by their names and sizes, and of the samples that are planned."""

import polars as pl

from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import OFFENDER_SCHEMA, SAMPLE_QUERY, Checklist, Offenders
from storage.evidence import Evidence
from storage.file_listing import TAKEN_FOR_SAMPLE
from storage.layout import DatasetLayout
from storage.manifest import Manifest

_NAME = r"^(?:train|test)/(sim_.+)/sim_.+_halo_(\d+)_rot_(\d+)\.npz$"


def check_files(evidence: Evidence, files: pl.DataFrame, checklist: Checklist) -> None:
    """Hold the files against the rows, and say what the others are.

    Parameters
    ----------
    evidence : Evidence
        The rows.
    files : DataFrame
        As `storage.file_listing.list_files` returns them.
    checklist : Checklist
        Takes the outcomes.
    """
    rows = evidence.samples.unique("sample_id", keep="first", maintain_order=True)
    joined = rows.join(files, on="path", how="left", maintain_order="left")
    listed = pl.col("path").is_in(files["path"].implode())
    absent = joined.filter(~listed)
    strays = files.filter(~pl.col("path").is_in(evidence.latest_paths.implode()))
    if not evidence.is_latest:
        absent = _not_superseded(evidence.layout, absent)
    elsewhere = _same_name(absent, strays)
    misplaced = absent.join(elsewhere, on="path", how="inner", maintain_order="left")
    strays = strays.filter(~pl.col("path").is_in(misplaced["found"].implode()))
    missing = absent.filter(~pl.col("path").is_in(misplaced["path"].implode()))
    checklist.record(
        "every sample's file is there",
        f"{rows.height:,} samples, {files.height:,} files",
        Offenders(
            AuditCode.MISSING_FILE,
            Severity.ERROR,
            missing.select("simulation", subject="sample_id", expected="path", found=pl.lit("no such file")),
            "Make the sample again (`bind-data repair`).",
            SAMPLE_QUERY,
        ),
        Offenders(
            AuditCode.MISPLACED_FILE,
            Severity.ERROR,
            misplaced.select("simulation", "found", subject="sample_id", expected="path"),
            "Move the file back, or let `bind-data repair` make it again. Readers that walk the folders take it for "
            "a sample of the split that it lies in.",
            SAMPLE_QUERY,
        ),
    )
    _check_sizes(evidence, joined.filter(listed), checklist)
    _check_strays(evidence, strays, checklist)
    if evidence.is_latest:
        _check_finished(evidence, checklist)


def _check_sizes(evidence: Evidence, there: pl.DataFrame, checklist: Checklist) -> None:
    differs = pl.col("found_bytes").is_null() | (pl.col("found_bytes") != pl.col("bytes"))
    wrong = there.filter(differs)
    if not evidence.is_latest:
        wrong = _not_superseded(evidence.layout, wrong)
    checklist.record(
        "files have the recorded size",
        f"{there.height:,} files",
        Offenders(
            AuditCode.WRONG_SIZE,
            Severity.ERROR,
            wrong.select(
                "simulation",
                subject="sample_id",
                expected=pl.format("{} bytes", "bytes"),
                found=pl.coalesce(pl.format("{} bytes", "found_bytes"), pl.lit("no regular file")),
            ),
            "The file was cut off or replaced. Make the sample again (`bind-data repair`).",
            SAMPLE_QUERY,
        ),
    )


def _check_finished(evidence: Evidence, checklist: Checklist) -> None:
    simulations = dict(evidence.samples.select("sample_id", "simulation").drop_nulls("sample_id").iter_rows())
    unfinished = Manifest(evidence.layout).unfinished()
    waiting = [
        (file.sample_id, simulations.get(file.sample_id, ""), f"the file {file.path}", f"it waits as {file.staged}")
        for replacement in unfinished
        for file in replacement.waiting(evidence.layout)
    ]
    checklist.record(
        "no committed file waits for its place",
        f"commits that are not finished: {len(unfinished):,}",
        Offenders(
            AuditCode.UNFINISHED_COMMIT,
            Severity.ERROR,
            pl.DataFrame(waiting, schema=OFFENDER_SCHEMA, orient="row"),
            "A run was killed between the commit of its rows and the move of their files, or is at work. The next run "
            "puts them into their places; `bind-data repair` does so at once.",
            SAMPLE_QUERY,
        ),
    )


def _check_strays(evidence: Evidence, strays: pl.DataFrame, checklist: Checklist) -> None:
    """Say of files without a row which are planned samples, and which are not."""
    parts = pl.col("path").str.extract_groups(_NAME)
    folder, halo, rotation = (parts.struct.field(name) for name in ("1", "2", "3"))
    named = strays.with_columns(folder=folder, halo=halo, rotation=rotation).join(
        evidence.expected.select("simulation", "expected_folder", "expected_split"),
        left_on=["folder", pl.col("path").str.extract(r"^(train|test)/")],
        right_on=["expected_folder", "expected_split"],
        how="left",
        maintain_order="left",
    )
    named = named.with_columns(
        sample_id=pl.format("{}_halo_{}_rot_{}", "simulation", "halo", "rotation"),
        regular=pl.col("path").str.ends_with(pl.format("/{}_halo_{}_rot_{}.npz", "folder", "halo", "rotation")),
    )
    counted = evidence.samples.group_by("simulation").agg(pl.col("sample_id").n_unique().alias("rows"))
    recorded = evidence.attempts.select("simulation", "n_committed").join(counted, on="simulation", how="left")
    lost = recorded.filter(pl.col("n_committed") > pl.col("rows").fill_null(0))["simulation"]
    named = named.with_columns(lost=pl.col("simulation").is_in(lost.implode()).fill_null(value=False))
    if evidence.suite is None:
        planned = pl.col("lost")  # which samples are planned is not known, but that rows are missing is
    else:
        planned = pl.col("sample_id").is_in(evidence.suite.planned_samples["sample_id"].implode())
    known = evidence.samples["sample_id"].implode()
    # A file of that name with a row lies elsewhere: this one is a copy.
    unrecorded = named.filter((pl.col("regular") & planned & ~pl.col("sample_id").is_in(known)).fill_null(value=False))
    orphans = named.filter(~pl.col("path").is_in(unrecorded["path"].implode()))
    taken_for_sample = pl.col("path").str.contains(TAKEN_FOR_SAMPLE)
    groups = []
    for was_lost, severity, advice in (
        (
            True,
            Severity.ERROR,
            "Its row was lost: the last attempt at the simulation recorded more samples than there are. The next "
            "run makes it again; `bind-data repair` does so at once.",
        ),
        (
            False,
            Severity.WARNING,
            "A run that was interrupted, or is still at work, has not committed it. The next run makes it again and "
            "records it.",
        ),
    ):
        rows = unrecorded.filter(pl.col("lost") == was_lost).select(
            "simulation",
            subject="sample_id",
            expected=pl.lit("a row in the manifest"),
            found=pl.format("the file {} alone", "path"),
        )
        query = "SELECT * FROM current_simulations WHERE simulation = '{simulation}'"
        groups.append(Offenders(AuditCode.UNRECORDED_SAMPLE, severity, rows, advice, query))
    for is_taken, severity, advice in (
        (
            True,
            Severity.ERROR,
            "Readers that walk the folders take it for a sample. Remove it (`bind-data repair`).",
        ),
        (False, Severity.WARNING, "Move it elsewhere: nothing but samples belongs there."),
    ):
        rows = orphans.filter(taken_for_sample if is_taken else ~taken_for_sample).select(
            pl.col("simulation").fill_null(""),
            subject="path",
            expected=pl.lit("samples of the manifest only"),
            found=pl.format("a file of {} bytes", pl.col("found_bytes").fill_null(0)),
        )
        groups.append(Offenders(AuditCode.ORPHAN, severity, rows, advice))
    checklist.record(
        "every file belongs to a sample", f"files without a row under train/ and test/: {strays.height:,}", *groups
    )


def _same_name(absent: pl.DataFrame, strays: pl.DataFrame) -> pl.DataFrame:
    """Return where files of the absent ones' names lie: ``path``, where it should be, and ``found``."""
    name = pl.col("path").str.extract(r"([^/]+)$").alias("name")
    there = strays.select(name, found="path").unique("name", keep="first", maintain_order=True)
    return absent.select("path", name).join(there, on="name", how="inner").select("path", "found")


def _not_superseded(layout: DatasetLayout, rows: pl.DataFrame) -> pl.DataFrame:
    """Leave out samples of an earlier version whose files were kept when they were made anew."""
    kept = [layout.superseded_file(sha256).is_file() for sha256 in rows["sha256"]]
    return rows.filter(~pl.Series(kept, dtype=pl.Boolean))
