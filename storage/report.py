"""The report of an audit: one HTML page that needs nothing but a browser.

Everything is in the page: style, script, plots and pictures. Whatever comes from the data set (names, messages,
paths) is text and nothing else: the template escapes it, the plots hold none of it, and the page's own policy forbids
any script but its one and any request to anywhere.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bind_core.findings import Severity
from bind_core.splits import Split
from storage.audit_result import AuditCode, AuditFinding, AuditResult, Outcome
from storage.columns import SimulationStatus
from storage.files import remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout
from storage.report_gallery import gallery_of, map_title, picked_by_suspicion
from storage.report_plots import MOST_POINTS, channel_plots, coverage_strips, mass_function_plot, orientation_plot

_SPECIAL_IN_QUOTES = set('"$`\\!')
"""What a shell reads within double quotes as something other than itself."""
_ORDER = (Outcome.FAILED, Outcome.WARNINGS, Outcome.NOT_MADE, Outcome.PASSED)
_ICONS = {Outcome.FAILED: "bad", Outcome.WARNINGS: "warn", Outcome.NOT_MADE: "none", Outcome.PASSED: "good"}
_MOST_FINDINGS = 40
"""Shown of each kind; the true number is shown with them."""
_MOST_CHARACTERS = 600
"""Of any one text that comes from the data set."""
_MOST_CELLS = 4096
"""Of the completeness matrix; where there are more simulations, the complete ones are left out first."""
_MOST_ROWS = 24
"""Up to this many simulations, each has a line with its name."""


@dataclass(frozen=True)
class Verdict:
    """The audit's outcome, in words, with a name for its colour and icon."""

    kind: str
    """``good``, ``warn`` or ``bad``."""
    headline: str
    sentence: str


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one kind."""

    code: AuditCode
    severity: Severity
    """The worst of them."""
    count: int
    """All of them."""
    shown: tuple[AuditFinding, ...]
    advice: str
    """Where all of them have the same, else empty."""
    query: str
    """Likewise."""


@dataclass(frozen=True)
class SimulationCell:
    """One simulation in the completeness matrix."""

    simulation: str
    state: str
    """``complete``, ``partial``, …: picks colour and sign."""
    share: int
    """Percent of the planned samples that are committed."""
    summary: str
    """All that is known, in one line."""


@dataclass(frozen=True)
class CompletenessMatrix:
    """How far every simulation is."""

    splits: dict[str, tuple[SimulationCell, ...]]
    states: dict[str, int]
    """Number of simulations by state."""
    left_out: int
    """Complete simulations that are not shown."""
    as_rows: bool


def write_report(result: AuditResult, layout: DatasetLayout, path: Path) -> Path:
    """Write the report of an audit, atomically.

    Parameters
    ----------
    result : AuditResult
        What the audit found; any of its tables may be empty.
    layout : DatasetLayout
        Where the samples lie that the gallery shows.
    path : Path
        The HTML file to make or replace; missing folders are made.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    StorageFullError
        If the disk or the quota is full.
    OSError
        If the file cannot be written for any other reason.
    """
    remove_stale_temporaries(path.parent)
    write_bytes(path, render_report(result, layout).encode("utf-8"))
    return path


def render_report(result: AuditResult, layout: DatasetLayout) -> str:
    """Return the report of an audit as HTML; see `write_report`."""
    script = _part("report.js")
    groups, windows = _groups(result), result.config.windows
    fingerprint = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            verdict=_verdict(result),
            counts=_counts(result),
            size=_size(result.samples),
            groups=groups,
            most=max((group.count for group in groups), default=0),
            ask=lambda sql: _command(result, sql),
            errors=Severity.ERROR,
            checks=sorted(result.checks, key=lambda check: _ORDER.index(check.outcome)),
            icon_of=_ICONS,
            matrix=_matrix(result.simulations),
            mass_function=_drawn(mass_function_plot(result.samples, result.halo_masses)),
            orientations=_drawn(orientation_plot(result.samples)),
            channels=[(map_title(plot.channel, windows), Markup(plot.svg)) for plot in channel_plots(result.channels)],  # noqa: S704
            strips=coverage_strips(result.parameters),
            many_orientations=result.samples.height > MOST_POINTS,
            gallery=gallery_of(result, layout),
            by_suspicion=picked_by_suspicion(result),
            style=Markup(_part("report.css")),  # noqa: S704  (the package's own files)
            script=Markup(script),  # noqa: S704
            script_policy=f"'sha256-{fingerprint}'",
        )
    )


def _part(name: str) -> str:
    return (files("storage") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("storage"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {
        "clip": _clip,
        "number": lambda value: f"{value:,}",
        "counted": _counted,
        "marked": _marked,
        "words": lambda text: str(text).replace("_", " "),
    }
    return environment


def _printable(value: Any) -> Any:
    """Return text with what has no place on a page (control and direction characters, half characters) spelt out."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in value
    )


def _clip(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return the beginning of a text, cut between words unless one word takes more than half of it."""
    if len(text) <= most:
        return text
    words = text[: most + 1].rpartition(" ")[0].rstrip(" .,;:")
    return f"{words if 2 * len(words) > most else text[:most]}…"


def _marked(text: str) -> Markup:
    """Return text as HTML, with what stands between back quotes as code."""
    parts = [escape(_printable(part)) for part in text.split("`")]
    if len(parts) % 2 == 0:
        return escape(_printable(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts)
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _drawn(svg: str | None) -> Markup | None:
    # matplotlib wrote it, from numbers and our own words alone.
    return None if svg is None else Markup(svg)  # noqa: S704


def _verdict(result: AuditResult) -> Verdict:
    if not result.ok:
        return Verdict("bad", "Damaged", result.verdict)
    if result.warnings:
        return Verdict("warn", "Sound, with warnings", result.verdict)
    return Verdict("good", "Sound", result.verdict)


def _counts(result: AuditResult) -> dict[str, Any]:
    samples = result.samples
    by_split = {
        str(split): 0 if samples.is_empty() else samples.filter(pl.col("split") == split).height for split in Split
    }
    statuses: dict[str, int] = {}
    if not result.simulations.is_empty():
        found = dict(result.simulations.group_by("status").len().iter_rows())
        order = [*(status.value for status in SimulationStatus), ""]
        statuses = {status: found[status] for status in [*order, *sorted(set(found) - set(order))] if status in found}
    return {
        "samples": samples.height,
        "by_split": by_split,
        "haloes": 0 if samples.is_empty() else samples.select("simulation", "halo").unique().height,
        "simulations": result.simulations.height,
        "statuses": statuses,
    }


def _size(samples: pl.DataFrame) -> str:
    """Return how much room the samples take, as text."""
    size = 0.0 if samples.is_empty() else float(samples["bytes"].sum())
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _groups(result: AuditResult) -> list[FindingGroup]:
    by_code: dict[AuditCode, list[AuditFinding]] = {}
    for finding in result.findings:
        by_code.setdefault(finding.code, []).append(finding)
    groups = []
    for code, found in by_code.items():
        errors = any(finding.severity is Severity.ERROR for finding in found)
        groups.append(
            FindingGroup(
                code=code,
                severity=Severity.ERROR if errors else Severity.WARNING,
                count=max(result.counts.get(code, 0), len(found)),
                shown=tuple(found[:_MOST_FINDINGS]),
                advice=_shared(finding.advice for finding in found),
                query=_shared(finding.query for finding in found),
            )
        )
    return sorted(groups, key=lambda group: (group.severity is not Severity.ERROR, -group.count))


def _command(result: AuditResult, sql: str) -> str:
    """Return what to type to ask the version that was audited."""
    version = f" --version {result.version}" if result.version >= 0 else ""
    # Queries are full of single quotes; within double ones they stay readable.
    quoted = shlex.quote(sql) if _SPECIAL_IN_QUOTES & set(sql) else f'"{sql}"'
    return f"bind-data query --dataset {shlex.quote(result.root)}{version} {quoted}"


def _shared(texts: Iterator[str]) -> str:
    """Return the text that all of them are; empty if they differ."""
    different = set(texts)
    return different.pop() if len(different) == 1 else ""


def _matrix(simulations: pl.DataFrame) -> CompletenessMatrix:
    cells = [(row["split"] or "", _cell(row)) for row in simulations.iter_rows(named=True)]
    states: dict[str, int] = {}
    for _, cell in cells:
        states[cell.state] = states.get(cell.state, 0) + 1
    left_out = 0
    if len(cells) > _MOST_CELLS:
        kept = [pair for pair in cells if pair[1].state != "complete"][:_MOST_CELLS]
        left_out = len(cells) - len(kept)
        cells = kept
    splits: dict[str, list[SimulationCell]] = {str(split): [] for split in Split}
    for split, cell in cells:
        splits.setdefault(split, []).append(cell)
    return CompletenessMatrix(
        splits={split: tuple(of_split) for split, of_split in splits.items() if of_split},
        states=dict(sorted(states.items(), key=lambda item: -item[1])),
        left_out=left_out,
        as_rows=simulations.height <= _MOST_ROWS,
    )


def _cell(row: dict[str, Any]) -> SimulationCell:
    planned, committed = row["planned"], row["committed"] or 0
    of_planned = "planned unknown" if planned is None else f"of {planned:,} planned"
    parts = [row["status"] or "no attempt recorded", f"{committed:,} {of_planned}"]
    parts += [f"{row[name]:,} {name}" for name in ("missing", "stale", "broken") if row[name]]
    if row["message"]:
        parts.append(_clip(row["message"], 160))
    return SimulationCell(
        simulation=row["simulation"],
        state=_state(row, planned, committed),
        share=100 if not planned else min(100, round(100 * committed / planned)),
        summary=" · ".join(parts).replace("_", " "),
    )


def _state(row: dict[str, Any], planned: int | None, committed: int) -> str:
    status = row["status"]
    if row["broken"]:
        return "broken"
    if row["stale"] or status == SimulationStatus.STALE:
        return "stale"
    if status in {SimulationStatus.BLOCKED, SimulationStatus.FAILED, SimulationStatus.NO_WORK}:
        return str(status)
    if planned is not None and planned > committed:
        return "partial" if committed else "planned"
    if status == SimulationStatus.COMPLETE:
        return "complete"
    return "complete" if planned and committed >= planned else status or "unknown"
