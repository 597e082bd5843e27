"""What mends a data set: rows that are there twice, files in the wrong place, files of no sample, samples to remake."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from bind_core.errors import ConfigurationError
from bind_core.findings import Severity
from bind_core.splits import Split, split_of
from bind_core.suite import simulation_number
from storage.audit_result import AuditCode, AuditFinding
from storage.faults import Step, passing
from storage.files import flush_folder, make_folder, remove_stale_temporaries, sha256_of
from storage.layout import DatasetLayout
from storage.manifest import Manifest

_SAMPLE_IS_BAD = {
    AuditCode.SCHEMA,
    AuditCode.DUPLICATE_PATH,
    AuditCode.DUPLICATE_CONTENT,
    AuditCode.WRONG_PATH,
    AuditCode.MISSING_FILE,
    AuditCode.WRONG_SIZE,
    AuditCode.WRONG_STRATUM,
    AuditCode.WRONG_SEED,
    AuditCode.WRONG_ORIENTATION,
    AuditCode.UNREADABLE_FILE,
    AuditCode.WRONG_DIGEST,
    AuditCode.BROKEN_CONTRACT,
    AuditCode.NOT_FINITE,
    AuditCode.NEGATIVE_MASS,
    AuditCode.CONSTANT_MAP,
    AuditCode.WRONG_MASS,
    AuditCode.WINDOWS_DISAGREE,
    AuditCode.ROW_DISAGREES,
}
_OF_A_SPLIT = {AuditCode.WRONG_SPLIT, AuditCode.LEAK}
"""Said of a simulation: those of its samples are bad that stand in the split to which it does not belong."""
_MAKING_MENDS = {AuditCode.UNRECORDED_SAMPLE, AuditCode.WRONG_COUNT, AuditCode.NO_ATTEMPT, AuditCode.STALE}


@dataclass(frozen=True)
class RepairPlan:
    """What is to be done to mend what an audit found."""

    duplicates: bool
    """Whether rows are to be removed that are there twice."""
    unfinished: tuple[str, ...]
    """Ids of samples whose files wait for their places, where a killed run was to put them."""
    moves: tuple[tuple[str, str], ...]
    """Files to be moved back: from and to, relative to the root."""
    orphans: tuple[str, ...]
    """Files to be removed, relative to the root."""
    remake: tuple[str, ...]
    """Ids of samples to be made anew."""
    simulations: tuple[str, ...]
    """Simulations that something is to be made of."""
    left: tuple[AuditFinding, ...]
    """Errors that no repair mends: they need their input mended, or somebody's decision."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.duplicates or self.unfinished or self.moves or self.orphans or self.simulations)


def plan_repair(layout: DatasetLayout, manifest: Manifest, findings: Iterable[AuditFinding]) -> RepairPlan:
    """Return what mends the errors of an audit of the latest version; nothing is changed.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    manifest : Manifest
        Its record.
    findings : iterable of AuditFinding
        Those of the audit; warnings are left alone, but for stale and unrecorded samples.
    """
    rows = manifest.samples().select("sample_id", "simulation", "path", "sha256", "split")
    samples = {name: (simulation, path) for name, simulation, path, _, _ in rows.rows()}
    digests: dict[str, set[str]] = {}
    of_simulation: dict[str, list[str]] = {}
    elsewhere: dict[str, list[str]] = {}
    splits = {simulation: _split(manifest, simulation) for simulation in rows["simulation"].unique()}
    for name, simulation, _, sha256, split in rows.rows():
        digests.setdefault(name, set()).add(sha256)  # where there are two rows, the file decides which one stays
        of_simulation.setdefault(simulation, []).append(name)
        if split != splits[simulation]:
            elsewhere.setdefault(simulation, []).append(name)
    duplicates = False
    moves, orphans, left = [], [], []
    remake, simulations = set(), set()
    findings = list(findings)
    unfinished = {finding.subject for finding in findings if finding.code is AuditCode.UNFINISHED_COMMIT}
    for finding in findings:
        if finding.subject in unfinished:
            continue  # whatever is said of a file that is not the row's
        if finding.code is AuditCode.DUPLICATE_SAMPLE:
            duplicates = True
        elif finding.code in _MAKING_MENDS:
            simulations.add(finding.simulation)
        elif finding.severity is not Severity.ERROR:
            continue
        elif finding.code is AuditCode.ORPHAN:
            orphans.append(finding.subject)
        elif finding.code is AuditCode.MISPLACED_FILE:
            if _is_one_of(layout, finding.found, digests[finding.subject]):
                moves.append((finding.found, samples[finding.subject][1]))
            else:  # what it was before it was made anew, or another sample's
                orphans.append(finding.found)
                remake.add(finding.subject)
        elif finding.code in _OF_A_SPLIT:
            remake.update(elsewhere.get(finding.subject, []))
        elif finding.code in _SAMPLE_IS_BAD:
            remake.update([finding.subject] if finding.subject in samples else of_simulation.get(finding.subject, []))
        else:
            left.append(finding)
    simulations.update(samples[name][0] for name in remake)
    return RepairPlan(
        duplicates=duplicates,
        unfinished=tuple(sorted(unfinished)),
        moves=tuple(moves),
        orphans=tuple(orphans),
        remake=tuple(sorted(remake)),
        simulations=tuple(sorted(simulations - {""})),
        left=tuple(left),
    )


def tidy(layout: DatasetLayout, manifest: Manifest, plan: RepairPlan, run_id: str) -> None:
    """Do what needs no simulation: finish killed commits, remove rows that are there twice, move files, remove orphans.

    What killed runs have left half written among the samples goes, too: no run looks at a simulation of which nothing
    is to be made any more.

    Raises
    ------
    ManifestError
        If the manifest cannot be written.
    LayoutError
        If a path leads out of the data set.
    """
    manifest.finish_interrupted()
    for split in Split:
        for of_samples, _, _ in os.walk(layout.root / split):
            remove_stale_temporaries(Path(of_samples))
    folders = set()
    for source, target in plan.moves:
        path = layout.absolute(target)
        make_folder(path.parent)
        layout.absolute(source).replace(path)
        passing(Step.WITHIN_REPAIR)
        folders.add(path.parent)
    for orphan in plan.orphans:
        path = layout.absolute(orphan)
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        flush_folder(folder)
    if plan.duplicates:
        manifest.remove_duplicates(run_id)


def _split(manifest: Manifest, simulation: str) -> str | None:
    """Return the split that a simulation belongs to; None where the configuration does not know such a name."""
    config = manifest.config
    if config is None:
        return None
    try:
        return str(split_of(simulation, simulation_number(simulation, config.set_name), config))
    except ConfigurationError:
        return None


def _is_one_of(layout: DatasetLayout, path: str, digests: Collection[str]) -> bool:
    try:
        return sha256_of(layout.absolute(path)) in digests
    except OSError:
        return False
