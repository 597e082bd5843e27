"""Audit of what is in the samples: every file is read once, by several threads, and looked at in every respect."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bind_core.errors import BindDataError
from bind_core.findings import Severity
from storage.audit_result import AuditCode
from storage.checklist import OFFENDER_SCHEMA, SAMPLE_QUERY, Checklist, Offenders
from storage.content_checks import (
    FINGERPRINT_PIXELS,
    HISTOGRAM_BINS,
    HISTOGRAM_STEP,
    Problem,
    SampleExpectation,
    SampleInspection,
    map_names,
)
from storage.distribution_checks import rotation_matrices
from storage.evidence import Evidence
from storage.population_checks import (
    OUTLIER_SCORE,
    check_near_duplicates,
    check_outliers,
    check_parameters_agree,
    robust_scores,
)

_READ_AHEAD = 256
"""Samples that are handed to the threads at once; bounds what waits in memory."""
_REMAKE = "Make the sample again (`bind-data repair`)."
_LOOK = "Look at the sample with `bind-data show`."
_ERROR_SUSPICION, _WARNING_SUSPICION = 100.0, 10.0

# What holds if a check is passed, what is wrong if it is not, and what to do then.
_CHECKS: tuple[tuple[str, tuple[AuditCode, ...], str], ...] = (
    ("files have the recorded SHA-256", (AuditCode.WRONG_DIGEST,), f"The file was damaged or replaced. {_REMAKE}"),
    ("files can be read", (AuditCode.UNREADABLE_FILE,), f"The file is cut off or damaged. {_REMAKE}"),
    ("arrays have the shape and type of the contract", (AuditCode.BROKEN_CONTRACT,), _REMAKE),
    ("values are finite, and masses not negative", (AuditCode.NOT_FINITE, AuditCode.NEGATIVE_MASS), _REMAKE),
    ("maps show structure", (AuditCode.CONSTANT_MAP,), _REMAKE),
    ("maps hold the recorded masses", (AuditCode.WRONG_MASS,), _REMAKE),
    ("wider windows show the mass that narrower ones hold", (AuditCode.WINDOWS_DISAGREE,), _REMAKE),
    ("halo, orientation and parameters are those on record", (AuditCode.ROW_DISAGREES,), _REMAKE),
    ("the halo in the centre is bright", (AuditCode.OFF_CENTRE,), _LOOK),
    ("shares of gas and stars are plausible", (AuditCode.IMPLAUSIBLE_FRACTION,), _LOOK),
)


@dataclass(frozen=True)
class ContentMeasures:
    """What was measured on the samples that could be read; frames as in `storage.audit_result.AuditResult`."""

    measures: pl.DataFrame
    channels: pl.DataFrame
    parameters: dict[str, NDArray[np.float64]]
    """By simulation, as its first sample has them."""


_CHANNELS = {"split": pl.String, "channel": pl.String, "lower": pl.Float64, "upper": pl.Float64, "pixels": pl.Int64}

NOT_READ = ContentMeasures(pl.DataFrame(), pl.DataFrame(schema=_CHANNELS), {})
"""What is known of samples that were not read."""


def audit_contents(
    evidence: Evidence, checklist: Checklist, threads: int, progress: Callable[[int, int], None] | None
) -> ContentMeasures:
    """Read and check every sample.

    Parameters
    ----------
    evidence : Evidence
        The rows, and what they are held against.
    checklist : Checklist
        Takes the outcomes.
    threads : int
        Threads that read, decompress and check.
    progress : callable, optional
        Called with the number of samples done and the number of all.
    """
    rows = evidence.samples.unique("sample_id", keep="first", maintain_order=True)
    tally = _Tally(evidence, rows, checklist.most_findings)
    for done, inspection in enumerate(_inspections(evidence, rows, threads), start=1):
        tally.add(inspection)
        if progress is not None:
            progress(done, rows.height)
    for name, codes, advice in _CHECKS:
        groups = [
            Offenders(code, severity, tally.offenders(code, severity), advice, SAMPLE_QUERY)
            for code in codes
            for severity in Severity
        ]
        checklist.record(name, f"{tally.opened:,} files read", *groups)
    return tally.compared(checklist)


@dataclass
class _Tally:
    """What is kept of each sample once it has been looked at."""

    evidence: Evidence
    rows: pl.DataFrame
    most_findings: int
    opened: int = 0
    found: dict[tuple[AuditCode, Severity], list[tuple[str, str, str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    read: list[int] = field(default_factory=list)
    measured: list[tuple[float, ...]] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    pictured: list[int] = field(default_factory=list)
    pictures: list[NDArray[np.float16]] = field(default_factory=list)
    parameters: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.rows["sample_id"].to_list()
        self.simulations = self.rows["simulation"].to_list()
        self.splits = self.rows["split"].to_list()
        self.sha256 = self.rows["sha256"].to_list()
        self.owner = dict(zip(reversed(self.sha256), reversed(self.names), strict=True))
        self.maps = map_names(self.evidence.config)
        self.fields = tuple(field.name for field in self.evidence.config.extra_fields)
        self.histograms: dict[str, NDArray[np.int64]] = defaultdict(
            lambda: np.zeros((len(self.maps), HISTOGRAM_BINS), dtype=np.int64)
        )

    def add(self, inspection: SampleInspection) -> None:
        """Keep what is needed of a sample."""
        index = inspection.row
        self.opened += bool(inspection.digest)
        problems = inspection.problems
        owner = self.owner.get(inspection.digest)
        if owner is not None and inspection.digest != self.sha256[index]:
            # All else that is wrong with it follows from this.
            self._note(
                index, [Problem(AuditCode.WRONG_DIGEST, f"SHA-256 {self.sha256[index]}", f"the file of {owner}")]
            )
            return
        self._note(index, problems)
        if not inspection.readable:
            return
        penalty = {Severity.ERROR: _ERROR_SUSPICION, Severity.WARNING: _WARNING_SUSPICION}
        self.read.append(index)
        self.penalties.append(sum(penalty[problem.severity] for problem in problems))
        self.measured.append(
            (
                inspection.gas_fraction,
                inspection.star_fraction,
                inspection.central_contrast,
                *(inspection.log_masses[name] for name in self.maps),
                *(inspection.field_levels[name] for name in self.fields),
            )
        )
        if inspection.parameters is not None:
            content = inspection.parameters.tobytes()
            self.digests.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"))
            self.parameters.setdefault(self.simulations[index], inspection.parameters)
        if inspection.fingerprint is not None:
            self.pictured.append(index)
            self.pictures.append(inspection.fingerprint.astype(np.float16))
        if inspection.histogram is not None:
            self.histograms[self.splits[index]] += inspection.histogram

    def _note(self, index: int, problems: list[Problem]) -> None:
        for problem in problems:
            known = self.found[problem.code, problem.severity]
            # Beyond what is spelt out, what matters is which samples they are.
            texts = (problem.expected, problem.found) if len(known) < self.most_findings else ("", "")
            known.append((self.names[index], self.simulations[index], *texts))

    def offenders(self, code: AuditCode, severity: Severity) -> pl.DataFrame:
        """Return what is wrong in one respect."""
        return pl.DataFrame(self.found.get((code, severity), []), schema=OFFENDER_SCHEMA, orient="row")

    def compared(self, checklist: Checklist) -> ContentMeasures:
        """Hold the samples against each other."""
        rows = self.rows[self.read]
        channels = (*self.maps, *self.fields)
        measured = np.array(self.measured).reshape(len(self.read), 3 + len(channels))
        halo_masses = rows["halo_mass"].to_numpy()
        scores = {name: robust_scores(halo_masses, measured[:, 3 + index]) for index, name in enumerate(channels)}
        check_outliers(rows, scores, checklist)
        pictures = np.stack(self.pictures) if self.pictures else np.empty((0, FINGERPRINT_PIXELS**2), np.float16)
        check_near_duplicates(self.rows[self.pictured], pictures, checklist)
        check_parameters_agree(rows, np.array(self.digests, dtype=np.uint64), checklist)
        typical = np.sqrt(np.mean(np.square(list(scores.values())), axis=0))
        outlying = np.sum([np.abs(values) > OUTLIER_SCORE for values in scores.values()], axis=0)
        suspicion = typical + np.array(self.penalties) + _WARNING_SUSPICION * outlying
        measures = rows.select("sample_id").with_columns(
            suspicion=pl.Series(suspicion, dtype=pl.Float64),
            gas_fraction=pl.Series(measured[:, 0]),
            star_fraction=pl.Series(measured[:, 1]),
            central_contrast=pl.Series(measured[:, 2]),
            **{f"z_{name}": pl.Series(values) for name, values in scores.items()},
        )
        return ContentMeasures(measures, self._channels(), self.parameters)

    def _channels(self) -> pl.DataFrame:
        lower = np.arange(HISTOGRAM_BINS) * HISTOGRAM_STEP
        return pl.concat(
            [
                NOT_READ.channels,
                *(
                    pl.DataFrame({"lower": lower, "upper": lower + HISTOGRAM_STEP, "pixels": counts[index]})
                    .filter(pl.col("pixels").cum_sum() > 0)
                    .select(pl.lit(split).alias("split"), pl.lit(name).alias("channel"), "lower", "upper", "pixels")
                    for split, counts in sorted(self.histograms.items())
                    for index, name in enumerate(self.maps)
                ),
            ]
        )


def _inspections(evidence: Evidence, rows: pl.DataFrame, threads: int) -> Iterator[SampleInspection]:
    expectation = _expectation(evidence)

    def inspect(arguments: tuple[int, dict[str, Any], NDArray[np.float64]]) -> SampleInspection:
        index, row, rotation = arguments
        try:
            path = evidence.layout.absolute(row["path"])
            superseded = evidence.layout.superseded_file(row["sha256"])
            content = (superseded if not evidence.is_latest and superseded.is_file() else path).read_bytes()
            return expectation.inspect(index, row, rotation, content)
        except FileNotFoundError:
            return SampleInspection(index)  # which the check of files has named already
        except (OSError, BindDataError) as error:
            return _unreadable(index, str(error))
        except Exception as error:  # whatever one file does must not end the audit of all
            return _unreadable(index, f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for start in range(0, rows.height, _READ_AHEAD):
            part = rows[start : start + _READ_AHEAD]
            numbered = zip(
                range(start, start + part.height), part.iter_rows(named=True), rotation_matrices(part), strict=True
            )
            yield from pool.map(inspect, numbered)


def _unreadable(index: int, why: str) -> SampleInspection:
    return SampleInspection(index, problems=[Problem(AuditCode.UNREADABLE_FILE, "a file that can be read", why)])


def _expectation(evidence: Evidence) -> SampleExpectation:
    table = evidence.parameters
    parameters = {} if table is None else dict(table.rows)
    shares = {}
    for name, numbers in parameters.items():
        values = dict(zip(table.names if table else (), numbers.tolist(), strict=True))
        matter = next((values[key] for key in ("Omega0", "Omega_m") if values.get(key)), None)
        if matter and values.get("OmegaBaryon"):
            shares[name] = values["OmegaBaryon"] / matter
    return SampleExpectation(evidence.config, parameters, shares)
