"""The list of checks that an audit works through, and what they find: counted in full, spelt out up to a limit."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from bind_core.findings import Severity
from storage.audit_result import AuditCode, AuditFinding, CheckOutcome

MOST_FINDINGS = 1000
"""Findings of one code that are spelt out unless more are asked for; beyond them they are counted."""

SAMPLE_QUERY = "SELECT * FROM samples WHERE sample_id = '{subject}'"
SIMULATION_QUERY = "SELECT * FROM current_simulations WHERE simulation = '{subject}'"

OFFENDER_SCHEMA = {"subject": pl.String, "simulation": pl.String, "expected": pl.String, "found": pl.String}
OFFENCE_SCHEMA = {"code": pl.String, "severity": pl.String, "subject": pl.String, "simulation": pl.String}


@dataclass(frozen=True)
class Offenders:
    """Everything in which the same kind of thing is wrong."""

    code: AuditCode
    severity: Severity
    rows: pl.DataFrame
    """Texts: ``subject``, ``simulation``, ``expected``, ``found``; other columns are ignored."""
    advice: str
    query: str = ""
    """SQL that shows an offender, with ``{subject}`` and ``{simulation}`` for what it is about."""

    def findings(self, most: int) -> Iterable[AuditFinding]:
        """Yield the first of them as findings."""
        for subject, simulation, expected, found in self.rows.select(*OFFENDER_SCHEMA).head(most).iter_rows():
            query = self.query.replace("{subject}", _quoted(subject)).replace("{simulation}", _quoted(simulation))
            yield AuditFinding(
                self.code, self.severity, subject or "", simulation or "", expected, found, self.advice, query
            )


@dataclass
class Checklist:
    """Checks as they are made, in their order."""

    most_findings: int = MOST_FINDINGS
    """Findings of one code that are spelt out."""
    outcomes: list[CheckOutcome] = field(default_factory=list)
    findings: list[AuditFinding] = field(default_factory=list)
    counts: Counter[AuditCode] = field(default_factory=Counter)
    _offences: list[pl.DataFrame] = field(default_factory=list)

    def record(self, name: str, detail: str, *groups: Offenders) -> None:
        """Note what a check has found.

        Parameters
        ----------
        name : str
            What holds if the check is passed, e.g. ``every sample is listed once``.
        detail : str
            What was looked at, or the numbers that decided.
        *groups : Offenders
            What was found; the check is passed if all of them are empty.
        """
        found = errors = 0
        for group in groups:
            if group.rows.is_empty():
                continue
            found += group.rows.height
            errors += group.rows.height if group.severity is Severity.ERROR else 0
            self.findings += group.findings(max(0, self.most_findings - self.counts[group.code]))
            self.counts[group.code] += group.rows.height
            self._offences.append(
                group.rows.select(
                    pl.lit(group.code.value).alias("code"),
                    pl.lit(group.severity.value).alias("severity"),
                    "subject",
                    "simulation",
                )
            )
        self.outcomes.append(CheckOutcome(name, found == 0, detail, found, errors))

    def skip(self, name: str, why: str) -> None:
        """Note a check that could not be made."""
        self.outcomes.append(CheckOutcome(name, None, why))

    @property
    def summary(self) -> dict[str, Any]:
        """The fields of `storage.audit_result.AuditResult` that the checks decide."""
        offences = self.offences
        severities = Counter(offences["severity"].to_list())
        order = list(AuditCode)
        return {
            "checks": tuple(self.outcomes),
            "findings": tuple(
                sorted(self.findings, key=lambda each: (each.severity is not Severity.ERROR, order.index(each.code)))
            ),
            "counts": {code: self.counts[code] for code in order if self.counts[code]},
            "errors": severities[Severity.ERROR.value],
            "warnings": severities[Severity.WARNING.value],
            "offences": offences,
        }

    @property
    def offences(self) -> pl.DataFrame:
        """Every finding, without limit: ``code``, ``severity``, ``subject``, ``simulation``."""
        return pl.concat([pl.DataFrame(schema=OFFENCE_SCHEMA), *self._offences])


def one_offender(subject: str, simulation: str, expected: str, found: str) -> pl.DataFrame:
    """Return the rows of `Offenders` for a single thing."""
    return pl.DataFrame([(subject, simulation, expected, found)], schema=OFFENDER_SCHEMA, orient="row")


def no_offenders() -> pl.DataFrame:
    """Return the rows of `Offenders` for nothing."""
    return pl.DataFrame(schema=OFFENDER_SCHEMA)


def _quoted(text: str | None) -> str:
    return (text or "").replace("'", "''")
