"""How the result of an audit looks on a terminal: the verdict, the checks, and the findings by kind."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.markup import escape

from bind_core.findings import Severity
from storage.audit_result import AuditCode, AuditFinding, AuditResult, Outcome

_MOST_SHOWN = 5
"""Findings of a kind that are printed."""
_MARKS = {
    Outcome.PASSED: "[green]✓[/green]",
    Outcome.WARNINGS: "[yellow]![/yellow]",
    Outcome.FAILED: "[red]✗[/red]",
    Outcome.NOT_MADE: "[dim]○[/dim]",
}
_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


@dataclass(frozen=True)
class FindingsOfAKind:
    """Findings that are alike in severity and code."""

    severity: Severity
    code: AuditCode
    count: int
    """All of them."""
    findings: tuple[AuditFinding, ...]
    """Those that are spelt out."""


def findings_by_kind(result: AuditResult) -> Iterator[FindingsOfAKind]:
    """Yield the findings of an audit in groups, errors first."""
    kinds = result.offences.group_by("severity", "code").len() if result.offences.width else result.offences
    counted = {(severity, code): count for severity, code, count in kinds.iter_rows()}
    for (severity, code), group in groupby(result.findings, key=lambda finding: (finding.severity, finding.code)):
        findings = tuple(group)
        yield FindingsOfAKind(severity, code, counted.get((severity.value, code.value), len(findings)), findings)


def print_audit(result: AuditResult, console: Console) -> None:
    """Print the verdict, then every check, then what was found, and how to see it."""
    style = "green" if result.ok else "red"
    console.print(f"[bold {style}]{escape(result.verdict)}[/bold {style}]", soft_wrap=True)
    version = f"Version {result.version}" if result.version >= 0 else "No version yet"
    when = "" if result.committed_at is None else f", committed {result.committed_at:%Y-%m-%d %H:%M:%S} UTC"
    console.print(f"{version}{when}, in {escape(result.root)}", soft_wrap=True)
    console.print()
    for check in result.checks:
        found = f"{check.findings:,} finding{'' if check.findings == 1 else 's'}: " if check.findings else ""
        detail = f"{found}{check.detail}"
        console.print(f"{_MARKS[check.outcome]} {escape(check.name)} [dim]({escape(detail)})[/dim]", soft_wrap=True)
    dataset = shlex.quote(result.root)
    for kind in findings_by_kind(result):
        style = _STYLES[kind.severity]
        title = f"{kind.severity.value}: {kind.code.value.replace('_', ' ')}: {kind.count:,}"
        console.print(f"\n[bold {style}]{title}[/bold {style}]  {escape(kind.code.meaning)}", soft_wrap=True)
        for finding in kind.findings[:_MOST_SHOWN]:
            text = f"{finding.subject}: expected {finding.expected}, found {finding.found}"
            console.print(f"  {escape(text)}", soft_wrap=True)
        if kind.count > _MOST_SHOWN:
            console.print(f"  … and {kind.count - _MOST_SHOWN:,} more")
        first = kind.findings[0]
        console.print(f"  [dim]{escape(first.advice)}[/dim]", soft_wrap=True)
        if first.query:
            query = f"bind-data query --dataset {dataset} {_shell_text(first.query)}"
            console.print(f"  [dim]To see {'one' if kind.count > 1 else 'it'}: {escape(query)}[/dim]", soft_wrap=True)


def _shell_text(text: str) -> str:
    """Return a text for a shell, in double quotes if these do; SQL is full of single ones."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
