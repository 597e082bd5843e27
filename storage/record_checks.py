"""Audit of the manifest's rows: against their schema, against each other, and against the configuration."""

from typing import Any

import polars as pl

from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import SAMPLE_QUERY, SIMULATION_QUERY, Checklist, Offenders, no_offenders, one_offender
from storage.columns import SAMPLES, SIMULATIONS, TableForm
from storage.evidence import Evidence
from storage.schemas import failures_of

_REMAKE = "Make the sample again (`bind-data repair`)."
_RULES = {
    r"^isin\(\(?\[?(.*?)\]?\)?\)$": "be one of $1",
    r"^str_matches\((.*)\)$": "match $1",
    r"^greater_than\((.*)\)$": "be more than $1",
    r"^greater_than_or_equal_to\((.*)\)$": "be at least $1",
    r"^less_than_or_equal_to\((.*)\)$": "be at most $1",
    r"^not_nullable$": "be given",
    r"^(.*\(.*)$": "satisfy $1",
}
"""Checks as pandera writes them, and in words."""
_SHOWN = 3
_SHOWN_CHARACTERS = 120


def check_form(rows: pl.DataFrame, attempts: pl.DataFrame, checklist: Checklist) -> bool:
    """Hold both tables against their schemas.

    Parameters
    ----------
    rows, attempts : DataFrame
        All rows of the tables ``samples`` and ``simulations``.
    checklist : Checklist
        Takes the outcome.

    Returns
    -------
    bool
        Whether the columns are there and of their type, without which no other check can be made.
    """
    groups, usable = [], True
    for form, table in ((SAMPLES, rows), (SIMULATIONS, attempts)):
        query = SAMPLE_QUERY if form is SAMPLES else "SELECT * FROM simulations WHERE simulation = '{subject}'"
        wrong = _wrong_columns(table, form)
        usable = usable and not wrong
        offenders = (
            one_offender(f"table {form.title}", "", "the columns of its schema", wrong)
            if wrong
            else _failures(table, form)
        )
        mended = form is SAMPLES and not wrong
        advice = (
            _REMAKE
            if mended
            else f"Restore an earlier version of the table {form.title}, or correct it with the Delta library."
        )
        groups.append(Offenders(AuditCode.SCHEMA, Severity.ERROR, offenders, advice, "" if wrong else query))
    detail = f"{rows.height:,} rows of samples, {attempts.height:,} of simulations"
    checklist.record("rows have the form that their schemas prescribe", detail, *groups)
    return usable


def _wrong_columns(rows: pl.DataFrame, form: TableForm) -> str:
    expected = form.schema_for(rows.columns)
    problems = [f"no column {name}" for name in expected if name not in rows.columns]
    problems += [f"an unknown column {name}" for name in rows.columns if name not in expected]
    problems += [
        f"{name} of type {rows.schema[name]} instead of {dtype}"
        for name, dtype in expected.items()
        if name in rows.columns and rows.schema[name] != dtype
    ]
    return ", ".join(problems)


def _failures(rows: pl.DataFrame, form: TableForm) -> pl.DataFrame:
    """Return the rows that fail their schema, one offender for each row and check."""
    cases = failures_of(rows, form)
    if cases is None:
        return no_offenders()
    # Samples that are listed twice have a check of their own.
    cases = cases.filter(pl.col("check").cast(pl.String) != "field_uniqueness")
    named = rows.select(pl.col(form.key).alias("subject"), "simulation").with_row_index("index")
    text = pl.col("failure_case").cast(pl.String)
    value = (
        pl.when(text.str.len_chars() > _SHOWN_CHARACTERS)
        .then(pl.format("{}…", text.str.slice(0, _SHOWN_CHARACTERS)))
        .otherwise(text.replace("", "an empty text"))
    )
    rule = pl.col("check")
    for check, words in _RULES.items():
        rule = rule.str.replace(check, words)
    of_column = pl.col("schema_context") == "Column"
    return (
        cases.with_columns(pl.col("index").cast(pl.UInt32))
        .join(named.cast({"index": pl.UInt32}), on="index", how="left")
        .select(
            pl.col("subject").fill_null(pl.lit("(not given)")),
            pl.col("simulation").fill_null(""),
            expected=pl.when(of_column)
            .then(pl.format("{} to {}", "column", rule))
            .otherwise(pl.col("check").str.replace(r"^must ", "it to ")),
            found=pl.when(of_column)
            .then(pl.coalesce(value, pl.lit("nothing")))
            .otherwise(pl.lit("a row that does not")),
        )
    )


def check_records(evidence: Evidence, checklist: Checklist) -> None:
    """Hold the rows against each other and against the configuration."""
    _listed_once(evidence.samples, checklist)
    _paths(evidence, checklist)
    _splits(evidence, checklist)
    _settings(evidence, checklist)
    _attempts(evidence, checklist)


def _listed_once(rows: pl.DataFrame, checklist: Checklist) -> None:
    again = rows.group_by("sample_id").agg(pl.col("simulation").first(), pl.len()).filter(pl.col("len") > 1)
    duplicates = again.sort("sample_id").select(
        "simulation", subject="sample_id", expected=pl.lit("one row"), found=pl.format("{} rows", "len")
    )
    checklist.record(
        "every sample is listed once",
        f"{rows['sample_id'].n_unique():,} samples in {rows.height:,} rows",
        Offenders(
            AuditCode.DUPLICATE_SAMPLE,
            Severity.ERROR,
            duplicates,
            "Remove all rows but one (`bind-data repair`): a model would see the sample as often as it is listed.",
            SAMPLE_QUERY,
        ),
    )
    distinct = rows.unique("sample_id", keep="first", maintain_order=True)
    checklist.record(
        "no two samples share a file or its bytes",
        f"{distinct['path'].n_unique():,} paths and {distinct['sha256'].n_unique():,} digests",
        Offenders(
            AuditCode.DUPLICATE_PATH,
            Severity.ERROR,
            _shared(distinct, "path", "a file of its own"),
            "Make all of these samples again but the one that the file is of.",
            "SELECT sample_id, path FROM samples WHERE path IN "
            "(SELECT path FROM samples WHERE sample_id = '{subject}')",
        ),
        Offenders(
            AuditCode.DUPLICATE_CONTENT,
            Severity.ERROR,
            _shared(distinct, "sha256", "bytes of its own"),
            "One is a copy of the other under another name. Make these samples again.",
            "SELECT sample_id, path, sha256 FROM samples WHERE sha256 IN "
            "(SELECT sha256 FROM samples WHERE sample_id = '{subject}')",
        ),
    )


def _shared(rows: pl.DataFrame, column: str, expected: str) -> pl.DataFrame:
    """Return the first sample of each group that shares a value."""
    groups = rows.group_by(column).agg("sample_id", pl.col("simulation").first(), pl.len()).filter(pl.col("len") > 1)
    others = pl.col("sample_id").list.sort()
    return groups.select(
        "simulation",
        subject=others.list.first(),
        expected=pl.lit(expected),
        found=pl.format("the same {} as {}", pl.lit(column), others.list.slice(1, _SHOWN).list.join(", "))
        + pl.when(pl.col("len") > _SHOWN + 1)
        .then(pl.format(" and {} more", pl.col("len") - _SHOWN - 1))
        .otherwise(pl.lit("")),
    ).sort("subject")


def _paths(evidence: Evidence, checklist: Checklist) -> None:
    folder = evidence.expected.select("simulation", "expected_folder")
    expected = pl.format(
        "{}/{}/{}_halo_{}_rot_{}.npz", "split", "expected_folder", "expected_folder", "halo", "rotation"
    )
    wrong = (
        evidence.samples.join(folder, on="simulation", how="left", maintain_order="left")
        .with_columns(expected=expected)
        .filter(pl.col("path") != pl.col("expected"))
        .select("simulation", "expected", subject="sample_id", found="path")
    )
    checklist.record(
        "paths are those of the sample's split, simulation, halo and rotation",
        f"{evidence.samples.height:,} paths",
        Offenders(AuditCode.WRONG_PATH, Severity.ERROR, wrong, _REMAKE, SAMPLE_QUERY),
    )


def _splits(evidence: Evidence, checklist: Checklist) -> None:
    per_split = evidence.samples.group_by("simulation", "split").len()
    known = per_split.join(evidence.expected, on="simulation", how="left")
    unknown = known.filter(pl.col("problem").is_not_null()).unique("simulation")
    of_config = evidence.samples_of_config.group_by("simulation", "split").len()
    wrong = of_config.join(evidence.expected, on="simulation", how="left").filter(
        pl.col("split") != pl.col("expected_split")
    )
    both = per_split.group_by("simulation").agg(pl.col("split").sort()).filter(pl.col("split").list.len() > 1)
    query = (
        "SELECT simulation, split, count(*) AS samples FROM samples WHERE simulation = '{subject}' "
        "GROUP BY simulation, split"
    )
    checklist.record(
        "simulations stand in the split that the configuration gives them",
        f"{per_split['simulation'].n_unique():,} simulations with samples",
        Offenders(
            AuditCode.WRONG_SPLIT,
            Severity.ERROR,
            wrong.sort("simulation", "split").select(
                "simulation",
                subject="simulation",
                expected=pl.format("all samples in {}", "expected_split"),
                found=pl.format("{} samples in {}", "len", "split"),
            ),
            "Remove these rows and make the samples again: they leak across the split.",
            query,
        ),
        Offenders(
            AuditCode.UNKNOWN_SIMULATION,
            Severity.ERROR,
            unknown.sort("simulation").select(
                "simulation",
                subject="simulation",
                expected=pl.format("a simulation of set {}", pl.lit(evidence.config.set_name)),
                found="problem",
            ),
            "Remove its rows, or correct the settings of the data set.",
            query,
        ),
    )
    checklist.record(
        "no simulation is in both train and test",
        f"{per_split['simulation'].n_unique():,} simulations with samples",
        Offenders(
            AuditCode.LEAK,
            Severity.ERROR,
            both.sort("simulation").select(
                "simulation",
                subject="simulation",
                expected=pl.lit("samples in one split"),
                found=pl.format("samples in {}", pl.col("split").list.join(" and ")),
            ),
            "Remove the rows of the wrong split: what a model is tested on must be new to it.",
            query,
        ),
    )


def _settings(evidence: Evidence, checklist: Checklist) -> None:
    others = evidence.samples.filter(pl.col("config_digest") != evidence.config.digest)
    checklist.record(
        "all samples were made with the data set's settings",
        f"configuration {evidence.config.digest[:12]}…",
        Offenders(
            AuditCode.OTHER_CONFIGURATION,
            # The settings of an earlier version need not be those on record now.
            Severity.ERROR if evidence.is_latest else Severity.WARNING,
            others.select(
                "simulation",
                subject="sample_id",
                expected=pl.lit(f"configuration {evidence.config.digest}"),
                found=pl.format("configuration {}", "config_digest"),
            ),
            "Make the samples again with the settings in dataset.yaml (`bind-data generate --refresh`).",
            "SELECT config_digest, count(*) AS samples FROM samples GROUP BY config_digest",
        ),
    )


def _attempts(evidence: Evidence, checklist: Checklist) -> None:
    rows = evidence.samples.group_by("simulation").agg(pl.col("sample_id").n_unique().alias("rows"))
    both = rows.join(evidence.attempts, on="simulation", how="full", coalesce=True).sort("simulation")
    both = both.with_columns(pl.col("rows").fill_null(0).cast(pl.Int64))
    no_attempt = both.filter(pl.col("n_committed").is_null())
    lost = both.filter(pl.col("rows") < pl.col("n_committed"))
    more = both.filter(pl.col("rows") > pl.col("n_committed"))
    counts: dict[str, Any] = {
        "subject": "simulation",
        "expected": pl.format("{} samples, as its last attempt recorded", "n_committed"),
        "found": pl.format("{} samples", "rows"),
    }
    query = (
        "SELECT s.n_committed AS recorded, (SELECT count(DISTINCT sample_id) FROM samples WHERE simulation = "
        "'{subject}') AS rows FROM current_simulations s WHERE simulation = '{subject}'"
    )
    checklist.record(
        "every simulation has as many samples as its last attempt recorded",
        f"{evidence.attempts.height:,} simulations with an attempt",
        Offenders(
            AuditCode.NO_ATTEMPT,
            Severity.WARNING,
            no_attempt.select(
                "simulation",
                subject="simulation",
                expected=pl.lit("an attempt that made its samples"),
                found=pl.format("{} samples and no attempt", "rows"),
            ),
            "A run was killed between its two commits. The next run records what it finds.",
            "SELECT count(*) AS samples FROM samples WHERE simulation = '{subject}'",
        ),
        Offenders(
            AuditCode.WRONG_COUNT,
            Severity.ERROR,
            lost.select("simulation", **counts),
            "Rows were lost. The next run makes the samples again; `bind-data repair` does so at once.",
            query,
        ),
        Offenders(
            AuditCode.WRONG_COUNT,
            Severity.WARNING,
            more.select("simulation", **counts),
            "A run was killed between its two commits. The next run records what it finds.",
            query,
        ),
    )
    unsettled = evidence.attempts.filter(pl.col("status").is_in(["blocked", "failed"])).sort("simulation")
    checklist.record(
        "the last attempt at every simulation came to an end",
        f"{evidence.attempts.height:,} simulations with an attempt",
        Offenders(
            AuditCode.UNSETTLED,
            Severity.WARNING,
            unsettled.select(
                "simulation",
                subject="simulation",
                expected=pl.lit("complete, partial or no work"),
                found=pl.format("{}: {}", "status", pl.col("message").str.slice(0, _SHOWN_CHARACTERS)),
            ),
            "`bind-data status` says what its input lacks.",
            SIMULATION_QUERY,
        ),
    )
