"""Whether a simulation's input is whole, paired and in range: all findings at once.

There are two depths. `inspect_simulation` opens the files and compares headers, counts, shapes, the catalogue and the
parameter table; it reads no particle. `check_content` reads them all.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.content import ContentCheck
from bind_core.errors import BindDataError
from bind_core.field_reading import passes_of
from bind_core.findings import Finding, blocks
from bind_core.halos import HaloCatalogue
from bind_core.input_checks import (
    absent,
    file_findings,
    halo_findings,
    pair_findings,
    parameter_findings,
    read_headers,
    read_whole_catalogue,
    snapshot_findings,
    unreadable,
)
from bind_core.parameters import ParameterTable
from bind_core.particles import component_source, read_slices
from bind_core.snapshot import SnapshotHeader
from bind_core.suite import Role, SimulationFiles


@dataclass(frozen=True)
class Inspection:
    """What `inspect_simulation` learnt of a simulation without reading its particles."""

    files: SimulationFiles
    findings: tuple[Finding, ...]
    headers: dict[Role, tuple[SnapshotHeader, ...]] = field(default_factory=dict)
    """Of the snapshots whose headers could all be read."""
    catalogue: HaloCatalogue | None = None
    parameters: NDArray[np.float64] | None = None
    """(P,): in the table's order."""

    @property
    def blocked(self) -> bool:
        """Whether the simulation cannot be used."""
        return blocks(self.findings)


def inspect_simulation(files: SimulationFiles, config: DatasetConfig, table: ParameterTable) -> Inspection:
    """Check everything about a simulation that can be told without reading particles.

    Parameters
    ----------
    files : SimulationFiles
        The simulation.
    config : DatasetConfig
        Gives the policies, which decide which datasets are needed.
    table : ParameterTable
        The suite's parameters.

    Returns
    -------
    Inspection
        With all findings; never raises for bad input.
    """
    if not any(inputs.folder.is_dir() for inputs in files.roles()):
        return Inspection(files, (absent(files),))
    findings: list[Finding] = []
    headers: dict[Role, tuple[SnapshotHeader, ...]] = {}
    for inputs in (files.dmo, files.hydro):
        findings += file_findings(files.name, inputs)
        if inputs.files:
            read, unreadable = read_headers(files.name, inputs)
            findings += unreadable
            if len(read) == len(inputs.files):
                headers[inputs.role] = tuple(read.values())
            findings += snapshot_findings(files.name, inputs, read, config)
    catalogue, catalogue_findings = read_whole_catalogue(files)
    findings += catalogue_findings
    findings += pair_findings(files, headers, catalogue)
    if catalogue is not None:
        findings += halo_findings(files, catalogue, headers, config)
    parameters, of_the_table = parameter_findings(files.name, headers, table)
    findings += of_the_table
    return Inspection(files, tuple(findings), headers, catalogue, parameters)


def check_content(inspection: Inspection, config: DatasetConfig) -> list[Finding]:
    """Read all particles of a simulation, as far as its files allow, and return what is wrong with them."""
    boxes = [headers[0].box_size for headers in inspection.headers.values()]
    check = ContentCheck(inspection.files.name, boxes[0] if boxes else 0.0)
    if inspection.catalogue is not None:
        check.halo_centers, check.halo_masses = inspection.catalogue.centers, inspection.catalogue.masses
    findings: list[Finding] = []
    for component in passes_of(config):
        if component.role not in inspection.headers:
            continue
        files = inspection.files.dmo if component.role is Role.DMO else inspection.files.hydro
        check.box_size = inspection.headers[component.role][0].box_size
        try:
            source = component_source(component, files.files, config)
            check.start(component, source.count)
            for particles in read_slices(source, source.pieces):
                check.add(component, particles)
        except BindDataError as error:
            findings.append(unreadable(inspection.files.name, error))
            check.tallies.pop(component, None)
            check.meshes.pop(component, None)
    findings += check.findings(config, inspection.headers)
    return [finding for finding in findings if finding not in inspection.findings]


def validate_simulation(files: SimulationFiles, config: DatasetConfig, table: ParameterTable) -> Inspection:
    """Check a simulation at both depths; this reads every particle.

    Returns
    -------
    Inspection
        With the findings of both depths.
    """
    return _with_content(inspect_simulation(files, config, table), config)


def screen_simulation(files: SimulationFiles, config: DatasetConfig, table: ParameterTable) -> Inspection:
    """Check a simulation before its projection, which checks the particles as it reads them.

    Where the simulation is blocked already, there will be no projection: then its particles are read here, so that
    all findings come at once.
    """
    inspection = inspect_simulation(files, config, table)
    return _with_content(inspection, config) if inspection.blocked else inspection


def _with_content(inspection: Inspection, config: DatasetConfig) -> Inspection:
    content = check_content(inspection, config)
    return replace(inspection, findings=inspection.findings + tuple(content))
