"""What an audit says of a data set: its checks, what they found, and what they measured on the way."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.findings import Severity
from storage.audit_depth import Depth

WHOLE_DATASET = "data set"
"""Subject of a finding that is about no single sample, file or simulation."""


class AuditCode(StrEnum):
    """The kinds of things that can be wrong, each with a sentence."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Make a member that is its value and carries its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    SCHEMA = "schema", "A row does not have the form that the manifest's tables prescribe."
    DUPLICATE_SAMPLE = "duplicate_sample", "The manifest lists a sample more than once."
    DUPLICATE_PATH = "duplicate_path", "Several samples are recorded with the same file."
    DUPLICATE_CONTENT = "duplicate_content", "Several samples have the very same bytes."
    WRONG_PATH = "wrong_path", "A sample's file lies in another folder, or has another name, than its row calls for."
    MISSING_FILE = "missing_file", "The manifest lists a sample whose file is not there."
    MISPLACED_FILE = "misplaced_file", "A sample's file lies in another folder than its row says."
    WRONG_SIZE = "wrong_size", "A sample's file does not have the recorded size."
    UNRECORDED_SAMPLE = "unrecorded_sample", "A planned sample's file is there, and the manifest has no row for it."
    ORPHAN = "orphan", "A file under train/ or test/ belongs to no row of the manifest and to no planned sample."
    UNFINISHED_COMMIT = "unfinished_commit", "A row is committed whose file has not been put into its place."
    MISSING_SAMPLE = "missing_sample", "The configuration asks for samples that do not exist yet."
    STALE = "stale", "An input, the configuration or the code has changed since samples were made."
    UNSETTLED = "unsettled", "The last attempt at a simulation was blocked or failed."
    WRONG_SPLIT = "wrong_split", "Samples stand in another split than the one that their simulation belongs to."
    LEAK = "leak", "A simulation has samples in both train and test."
    UNKNOWN_SIMULATION = "unknown_simulation", "Samples are of a simulation that the configuration does not know."
    OTHER_CONFIGURATION = "other_configuration", "Samples were made with other settings than the data set's."
    NO_ATTEMPT = "no_attempt", "A simulation has samples, and no attempt at it is recorded."
    WRONG_COUNT = "wrong_count", "A simulation has another number of samples than its last attempt recorded."
    WRONG_HALO = "wrong_halo", "The halo of a sample is not in the catalogue, or has another mass or centre there."
    WRONG_STRATUM = "wrong_stratum", "The halo's mass lies outside the stratum that the sample is recorded with."
    WRONG_SEED = "wrong_seed", "A sample's seed is not the one that the configuration gives it."
    WRONG_ORIENTATION = "wrong_orientation", "A sample's orientation is not the one that its seed gives."
    UNEVEN_ORIENTATIONS = "uneven_orientations", "The orientations are not uniform."
    PARAMETER_COVERAGE = "parameter_coverage", "The test simulations' parameters are not covered by the train ones."
    IMPLAUSIBLE_MASS = "implausible_mass", "A recorded mass is out of the range that is physically plausible."
    UNREADABLE_FILE = "unreadable_file", "A sample's file cannot be read as an archive of arrays."
    WRONG_DIGEST = "wrong_digest", "A sample's file does not have the recorded SHA-256."
    BROKEN_CONTRACT = "broken_contract", "A sample lacks an array, or one has another shape or type than it should."
    NOT_FINITE = "not_finite", "A sample holds NaN or infinite values."
    NEGATIVE_MASS = "negative_mass", "A map holds negative mass."
    CONSTANT_MAP = "constant_map", "All pixels of a map have the same value."
    WRONG_MASS = "wrong_mass", "A map's mass is not the recorded one."
    WINDOWS_DISAGREE = "windows_disagree", "A wider window does not show the mass that a narrower one holds."
    ROW_DISAGREES = "row_disagrees", "A sample's own halo, orientation or parameters are not those on record."
    OFF_CENTRE = "off_centre", "The centre of a map, where the halo should be, is not bright."
    IMPLAUSIBLE_FRACTION = "implausible_fraction", "The share of gas or stars is implausible for the halo's mass."
    OUTLIER = "outlier", "A map's mass is far from that of samples with a similar halo mass."
    NEAR_DUPLICATE = "near_duplicate", "Samples of different haloes show almost the same picture."


@dataclass(frozen=True)
class AuditFinding:
    """One thing that is wrong with a data set."""

    code: AuditCode
    severity: Severity
    """``ERROR``: the data set is not sound. ``WARNING``: somebody should look."""
    subject: str
    """Sample id, simulation, file relative to the root, or `WHOLE_DATASET`."""
    simulation: str
    """Empty where it is about none."""
    expected: str
    found: str
    advice: str
    query: str
    """SQL for ``bind-data query`` that shows it; empty where no query can."""

    @property
    def message(self) -> str:
        """The finding as one line."""
        kind = self.code.value.replace("_", " ")
        return f"{self.subject}: {kind}: expected {self.expected}, found {self.found}. {self.advice}"

    def as_dict(self) -> dict[str, str]:
        """Return the finding as plain values, for JSON and tables."""
        return {key: str(value) for key, value in asdict(self).items()}


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    """It found nothing."""
    WARNINGS = "warnings"
    """It found nothing worse than what somebody should look at."""
    FAILED = "failed"
    """It found errors."""
    NOT_MADE = "not made"
    """It could not be made."""


@dataclass(frozen=True)
class CheckOutcome:
    """What became of one check."""

    name: str
    """For example ``orientations are uniform on the sphere``."""
    passed: bool | None
    """None where it could not be made; `detail` says why."""
    detail: str
    """For example ``chi-square 45.1 for 47 degrees of freedom, p = 0.55``."""
    findings: int = 0
    """All of its findings, also those beyond the limit that `AuditResult.findings` holds."""
    errors: int = 0
    """Those of them that are errors; the others are warnings."""

    @property
    def outcome(self) -> Outcome:
        """What became of it, by the worst that it found."""
        if self.passed is None:
            return Outcome.NOT_MADE
        if self.passed:
            return Outcome.PASSED
        return Outcome.FAILED if self.errors else Outcome.WARNINGS

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain values, for JSON and tables."""
        return asdict(self) | {"outcome": self.outcome.value}


@dataclass(frozen=True, eq=False)
class AuditResult:
    """All that an audit found out."""

    root: str
    set_name: str
    depth: Depth
    version: int
    """Of the table ``samples``; -1 where it has none."""
    committed_at: datetime | None
    """When that version was committed, UTC."""
    audited_at: datetime
    """As the caller gave it, UTC."""
    config: DatasetConfig
    checks: tuple[CheckOutcome, ...]
    """In the order in which they were made."""
    findings: tuple[AuditFinding, ...]
    """Errors first, then by code; of each code no more than asked for, or `storage.checklist.MOST_FINDINGS`."""
    counts: dict[AuditCode, int]
    """The true number of findings of each code that has any."""
    errors: int
    """Number of all findings that are errors."""
    warnings: int
    """Number of all findings that are warnings."""
    samples: pl.DataFrame
    """The version's rows, as in `storage.columns.SAMPLES`."""
    simulations: pl.DataFrame
    """A row per simulation, in natural order: ``simulation``, ``split``, ``status`` (text; empty where none is
    recorded), ``planned``, ``committed``, ``missing``, ``stale``, ``broken`` (samples that have an error),
    ``message``. ``planned`` and ``missing`` are null where the catalogue is out of reach."""
    measures: pl.DataFrame
    """A row per sample that could be read, in the order of `samples`; empty at depth ``known``: ``sample_id``,
    ``suspicion`` (0 is typical; it grows with every check that the sample is far from passing), ``gas_fraction`` and
    ``star_fraction`` (of all mass within the projected R200c; NaN where the window is too coarse or too small),
    ``central_contrast`` (surface density of the condition within R200c in units of the window's mean) and, per map,
    ``z_<map>``: the robust z-score of its log mass, or of a further field's mean after its transform, among samples of
    similar halo mass."""
    channels: pl.DataFrame
    """Histograms of ``log10(pixel + 1)``, empty at depth ``known``: ``split``, ``channel``, ``lower``, ``upper``,
    ``pixels``."""
    halo_masses: pl.DataFrame
    """Haloes of the catalogues above the lowest stratum's limit: ``simulation``, ``halo``, ``halo_mass`` (Msun/h);
    empty where the suite is out of reach."""
    parameters: pl.DataFrame
    """A row per simulation with samples: ``simulation``, ``split`` and a column per parameter of the table; empty
    where the parameters are out of reach."""
    offences: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Every finding, without limit: ``code``, ``severity``, ``subject``, ``simulation``."""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.errors == 0

    @property
    def verdict(self) -> str:
        """The outcome as one sentence."""
        what = f"{_counted(self.samples.height, 'sample')} of {_counted(self.simulations.height, 'simulation')}"
        undone = sum(check.passed is None for check in self.checks)
        limits = f" {_counted(undone, 'check')} could not be made." if undone else ""
        if self.ok:
            to_look_at = f", with {_counted(self.warnings, 'warning')}" if self.warnings else ""
            return f"Sound: {what} at depth {self.depth.value}{to_look_at}.{limits}"
        return (
            f"Not sound: {_counted(self.errors, 'error')} and {_counted(self.warnings, 'warning')} in {what} at depth "
            f"{self.depth.value}.{limits}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return verdict, checks and findings as plain values, for JSON."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "root": self.root,
            "depth": self.depth.value,
            "version": self.version,
            "committed_at": None if self.committed_at is None else self.committed_at.isoformat(),
            "audited_at": self.audited_at.isoformat(),
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": {code.value: count for code, count in self.counts.items()},
            "checks": [check.as_dict() for check in self.checks],
            "findings": [finding.as_dict() for finding in self.findings],
        }


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
