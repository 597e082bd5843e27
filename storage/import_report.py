"""What became of an import: which samples were taken over, which were not and why, and how their maps compare."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from bind_core.records import RecordError, record_from_json
from storage.files import write_bytes
from storage.import_check import MapComparison, Verdict
from storage.layout import DatasetLayout

REPORT_FILE = "report.json"

_MAKE_ANEW = (
    "`bind-data generate --refresh` makes the imported samples anew, in the same orientations, as a new version; what "
    "they were is kept."
)
_REBUILD = (
    "Or, before importing into another folder: `python add_large_scale.py --samples {source} --rebuild` makes the "
    "context maps of the older files anew, in place."
)


@dataclass(frozen=True)
class Refusal:
    """A file, or a whole simulation's, that was not imported."""

    file: str
    reason: str


@dataclass
class SimulationRecord:
    """What became of one simulation; kept beside the data set, so that the next run need not look again."""

    simulation: str
    split: str = ""
    files: int = 0
    imported: int = 0
    refused: list[Refusal] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """Why maps could not be made anew."""
    comparisons: list[MapComparison] = field(default_factory=list)

    def compared(self) -> dict[str, set[str]]:
        """Return which maps of which samples were compared."""
        found: dict[str, set[str]] = {}
        for comparison in self.comparisons:
            found.setdefault(comparison.sample_id, set()).add(comparison.map)
        return found

    def add(self, comparisons: Sequence[MapComparison]) -> None:
        """Add comparisons; those of maps that were compared before take their places."""
        known = {(comparison.sample_id, comparison.map): comparison for comparison in self.comparisons}
        known |= {(comparison.sample_id, comparison.map): comparison for comparison in comparisons}
        self.comparisons = list(known.values())

    def write(self, layout: DatasetLayout) -> None:
        """Keep the record in its file, atomically."""
        values = asdict(self) | {"comparisons": [comparison.as_dict() for comparison in self.comparisons]}
        write_bytes(_file_of(layout, self.simulation), _json(values))

    @classmethod
    def read(cls, layout: DatasetLayout, simulation: str) -> Self:
        """Return what is on record; an empty record where nothing of use is."""
        try:
            file = _file_of(layout, simulation)
            found = record_from_json(cls, file.read_bytes(), file)
        except (OSError, RecordError):
            return cls(simulation)
        return found if found.simulation == simulation else cls(simulation)


def _file_of(layout: DatasetLayout, simulation: str) -> Path:
    return layout.import_folder / "simulations" / f"{simulation}.json"


@dataclass(frozen=True)
class MapSummary:
    """How one kind of map compares, over all samples that were looked at."""

    map: str
    compared: int
    verdicts: dict[Verdict, int]
    largest_deviation: float
    mean_missing_share: float
    largest_missing_share: float
    emptiest: float
    emptiest_anew: float
    lowest_ratio: float

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        verdicts = {verdict.value: number for verdict, number in self.verdicts.items()}
        return asdict(self) | {"verdicts": verdicts}


@dataclass(frozen=True)
class ImportReport:
    """What became of an import."""

    source: Path
    simulations: tuple[SimulationRecord, ...]
    strays: tuple[Refusal, ...]
    """Files whose names are none that can be imported."""

    @property
    def refused(self) -> list[Refusal]:
        """Everything that was not imported."""
        return [*self.strays, *(refusal for record in self.simulations for refusal in record.refused)]

    @property
    def imported(self) -> int:
        """Number of samples of the older data set that the new one holds."""
        return sum(record.imported for record in self.simulations)

    @property
    def files(self) -> int:
        """Number of files of the older data set that readers take for samples."""
        return len(self.strays) + sum(record.files for record in self.simulations)

    @property
    def unchecked(self) -> list[tuple[str, str]]:
        """Simulations whose maps could not be made anew, and why."""
        return [(record.simulation, reason) for record in self.simulations for reason in record.unchecked]

    @property
    def maps(self) -> list[MapSummary]:
        """How each kind of map compares, in order."""
        by_map: dict[str, list[MapComparison]] = {}
        for record in self.simulations:
            for comparison in record.comparisons:
                by_map.setdefault(comparison.map, []).append(comparison)
        return [_summary(name, compared) for name, compared in by_map.items()]

    @property
    def ok(self) -> bool:
        """Whether everything was imported, could be checked, and differs in nothing but empty corners."""
        differing = any(summary.verdicts[Verdict.DIFFERS] for summary in self.maps)
        return not (self.refused or self.unchecked or differing)

    @property
    def advice(self) -> list[str]:
        """What is wrong with the maps, and what to do about it."""
        lines = []
        for verdict, what in (
            (Verdict.MASS_MISSING, "lack mass, since the older generator made too few periodic copies"),
            (Verdict.DIFFERS, "are not what the simulations give: other inputs, seeds, haloes or settings"),
        ):
            names = [summary.map for summary in self.maps if summary.verdicts[verdict]]
            if names:
                lines.append(f"Maps that {what}: {', '.join(names)}.")
        if lines:
            lines.append(_MAKE_ANEW)
        if any(summary.verdicts[Verdict.MASS_MISSING] for summary in self.maps):
            lines.append(_REBUILD.format(source=self.source))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values; the same for the same import, whenever and in however many runs."""
        return {
            "source": str(self.source),
            "ok": self.ok,
            "files": self.files,
            "imported": self.imported,
            "refused": [asdict(refusal) for refusal in self.refused],
            "unchecked": [{"simulation": name, "reason": reason} for name, reason in self.unchecked],
            "maps": [summary.as_dict() for summary in self.maps],
            "advice": self.advice,
            "simulations": [
                {
                    "simulation": record.simulation,
                    "split": record.split,
                    "files": record.files,
                    "imported": record.imported,
                    "comparisons": [comparison.as_dict() for comparison in record.comparisons],
                }
                for record in self.simulations
            ],
        }

    def write(self, layout: DatasetLayout) -> Path:
        """Write the report into the data set, atomically; return its file."""
        path = layout.import_folder / REPORT_FILE
        write_bytes(path, _json(self.as_dict()))
        return path


def _summary(name: str, compared: Sequence[MapComparison]) -> MapSummary:
    missing = [comparison.missing_share for comparison in compared]
    return MapSummary(
        map=name,
        compared=len(compared),
        verdicts={verdict: sum(comparison.verdict is verdict for comparison in compared) for verdict in Verdict},
        largest_deviation=max(comparison.deviation for comparison in compared),
        mean_missing_share=sum(missing) / len(missing),
        largest_missing_share=max(missing),
        emptiest=min(comparison.emptiest for comparison in compared),
        emptiest_anew=min(comparison.emptiest_anew for comparison in compared),
        lowest_ratio=min(comparison.lowest_ratio for comparison in compared),
    )


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
