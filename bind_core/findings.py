"""What validation finds: one `Finding` for each thing that is wrong with a simulation's input."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

REFETCH = "Fetch the file again, or remove the simulation."
"""Advice for what only the origin of a file can mend."""


class Severity(StrEnum):
    """Whether a finding stops a simulation from being used."""

    ERROR = "error"
    """The simulation is blocked."""
    WARNING = "warning"
    """Recorded, and the simulation is used."""


class FindingCode(StrEnum):
    """The causes."""

    ABSENT = "absent"
    """The simulation does not exist under any base path."""
    MISSING_FILES = "missing_files"
    """A snapshot or catalogue is not there at all."""
    AMBIGUOUS_FILES = "ambiguous_files"
    """Two layouts of the same snapshot lie side by side."""
    MISSING_CHUNK = "missing_chunk"
    """A snapshot or catalogue lacks some of its files, or has too many."""
    UNREADABLE = "unreadable"
    """A file is damaged, or lacks an attribute or a dataset."""
    WRONG_COUNT = "wrong_count"
    """Particles or groups do not add up to the header's total."""
    NO_PARTICLES = "no_particles"
    """A species that every simulation has is absent."""
    WRONG_KIND_OF_RUN = "wrong_kind_of_run"
    """A dark-matter-only snapshot has gas or stars."""
    NON_FINITE_POSITIONS = "non_finite_positions"
    """Positions are NaN or infinite."""
    POSITIONS_OUTSIDE = "positions_outside"
    """Positions lie outside the box."""
    POSITIONS_CONFINED = "positions_confined"
    """Positions fill a small part of the box only: they are in another unit than BoxSize."""
    BAD_MASSES = "bad_masses"
    """Masses are zero, negative, NaN or infinite."""
    BAD_FIELD = "bad_field"
    """A dataset of a further target channel is missing, has another shape, or holds NaN or infinity."""
    HEADER_MISMATCH = "header_mismatch"
    """BoxSize, Omega0, HubbleParam or Redshift differ between files that belong together."""
    NO_PARAMETERS = "no_parameters"
    """The parameter table has no usable row for the simulation."""
    PARAMETERS_CONTRADICT_HEADER = "parameters_contradict_header"
    """The parameter table's cosmology is not the header's."""
    MISPAIRED = "mispaired"
    """The two runs did not start from the same phases, or the catalogue is of another run."""
    BAD_HALO = "bad_halo"
    """A halo has a position or mass that cannot be."""
    MASS_BUDGET = "mass_budget"
    """The mass in the box is not Omega0 times the critical density."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what was expected, what was found, and what to do."""

    code: FindingCode
    simulation: str
    where: str
    """File and dataset or attribute."""
    expected: str
    found: str
    advice: str
    severity: Severity = Severity.ERROR

    @property
    def message(self) -> str:
        """The finding as one line."""
        return (
            f"{self.simulation}: {self.code.value.replace('_', ' ')}: {self.where}: expected {self.expected}, "
            f"found {self.found}. {self.advice}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain values, for JSON."""
        return {key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a finding from what `as_dict` returned."""
        return cls(
            **{
                **values,
                "code": FindingCode(values["code"]),
                "severity": Severity(values["severity"]),
            }
        )


def blocks(findings: list[Finding] | tuple[Finding, ...]) -> bool:
    """Return whether any of the findings stops the simulation from being used."""
    return any(finding.severity is Severity.ERROR for finding in findings)
