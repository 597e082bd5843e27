"""What the MPI program leaves of each simulation: light enough to import on every rank."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from bind_core.findings import Finding
from bind_core.records import record_from_json


@dataclass(frozen=True)
class SampleRecord:
    """A sample that was written: what the manifest needs to know beyond its target."""

    sample_id: str
    path: str
    """Relative to the data set's root."""
    bytes: int
    sha256: str
    masses: dict[str, float]
    """Msun/h, as `Sample.map_masses` returns them."""
    written_to: str = ""
    """Where the file lies until its row is committed, relative to the root; empty where that is `path`."""

    @property
    def file(self) -> str:
        """Where the file lies before its row is committed, relative to the root."""
        return self.written_to or self.path


@dataclass(frozen=True)
class SimulationResult:
    """What the projection made of one simulation."""

    simulation: str
    samples: tuple[SampleRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    input_digests: dict[str, str] = field(default_factory=dict)
    """Digest of each snapshot file that was read, by path."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase, on rank 0 of the node."""
    error: str = ""
    """Why it was not made, if that was for another reason than its input."""
    lasting: bool = False
    """Whether that reason stays: making it again in the same place would end likewise."""

    def to_json(self) -> str:
        """Return the result as JSON that `from_json` reads back to an equal one."""
        return json.dumps(
            {
                "simulation": self.simulation,
                "samples": [asdict(sample) for sample in self.samples],
                "findings": [finding.as_dict() for finding in self.findings],
                "input_digests": self.input_digests,
                "seconds": self.seconds,
                "error": self.error,
                "lasting": self.lasting,
            }
        )

    @classmethod
    def from_json(cls, text: bytes | str, source: Path | str = "The text") -> Self:
        """Rebuild a result from what `to_json` returned.

        Raises
        ------
        RecordError
            If the text is something else; the message names the source.
        """
        return record_from_json(cls, text, source)
