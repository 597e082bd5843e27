"""What is wrong with a simulation's files, as far as headers, catalogue and parameters tell; no particle is read."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.content import CRITICAL_DENSITY
from bind_core.errors import BindDataError
from bind_core.field_reading import FieldError, passes_of
from bind_core.findings import REFETCH, Finding, FindingCode
from bind_core.halos import HaloCatalogue, read_catalogue, read_catalogue_header
from bind_core.parameters import ParameterTable
from bind_core.particles import BOX_TOLERANCE, component_source, particle_types
from bind_core.snapshot import ParticleType, SnapshotHeader, read_header
from bind_core.suite import InputFiles, Role, SimulationFiles

# Attribute of a header: its name in the files, and by how much two may differ: relative, but for the redshift.
_HEADER_TOLERANCES = {
    "box_size": ("BoxSize", 1e-5),
    "omega0": ("Omega0", 1e-3),
    "hubble": ("HubbleParam", 1e-3),
    "redshift": ("Redshift", 1e-3),
}

_PARAMETER_TOLERANCE = 1e-3

# As the 50 Mpc/h sets spell them, then as the 25 Mpc/h ones do.
_PARAMETERS_IN_HEADER = {
    "Omega0": "omega0",
    "HubbleParam": "hubble",
    "OmegaBaryon": "omega_baryon",
    "Omega_m": "omega0",
}


def unreadable(simulation: str, error: BindDataError) -> Finding:
    """Return the finding that a reading error amounts to."""
    if isinstance(error, FieldError):
        return Finding(FindingCode.BAD_FIELD, simulation, error.where, error.expected, error.found, error.advice)
    where, _, rest = str(error).partition(": ")
    return Finding(
        FindingCode.UNREADABLE,
        simulation,
        where,
        "a whole, readable file",
        rest.split(". ")[0],
        _advice(rest),
    )


def _advice(message: str) -> str:
    sentences = message.rstrip(".").split(". ")
    return (sentences[-1] if len(sentences) > 1 else REFETCH.rstrip(".")) + "."


def absent(files: SimulationFiles) -> Finding:
    """Return the finding that a simulation does not exist at all."""
    return Finding(
        FindingCode.ABSENT,
        files.name,
        ", ".join(str(inputs.folder) for inputs in files.roles()),
        "a folder of this simulation",
        "none",
        "Fetch the simulation, correct the base paths, or leave it out (--skip_missing).",
    )


def file_findings(simulation: str, inputs: InputFiles) -> Iterator[Finding]:
    """Yield what is wrong with the files of a role by their names: missing, doubled, or chunks that lack."""
    if not inputs.files:
        yield Finding(
            FindingCode.MISSING_FILES,
            simulation,
            f"{inputs.role.value}: {inputs.folder}",
            "one of " + ", ".join(inputs.expected),
            _seen_in(inputs.folder),
            "Fetch the files, or correct the base path or the snapshot number.",
        )
    if inputs.rivals:
        yield Finding(
            FindingCode.AMBIGUOUS_FILES,
            simulation,
            f"{inputs.role.value}: {inputs.folder}",
            "one layout only",
            ", ".join(str(path.relative_to(inputs.folder)) for path in (inputs.files[0], *inputs.rivals)),
            "Remove those that do not belong there.",
        )


def _seen_in(folder: Path) -> str:
    """Say what kept files from being found."""
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError:
        return "no such folder"
    except OSError as error:
        return f"a folder that cannot be listed ({error.strerror or error})"
    return "none of them"


def read_headers(simulation: str, inputs: InputFiles) -> tuple[dict[Path, SnapshotHeader], list[Finding]]:
    """Return the headers of a snapshot's files that can be read, by path, and a finding for each of the others."""
    headers, findings = {}, []
    for path in inputs.files:
        try:
            headers[path] = read_header(path)
        except BindDataError as error:
            findings.append(unreadable(simulation, error))
    return headers, findings


def _chunk_findings(simulation: str, inputs: InputFiles, numbers_of_files: Sequence[int]) -> Iterator[Finding]:
    """Compare the files found with the number of files that the headers ask for."""
    numbers = inputs.chunks or (0,)
    asked = sorted(set(numbers_of_files))
    if len(asked) > 1:
        yield Finding(
            FindingCode.HEADER_MISMATCH,
            simulation,
            f"{inputs.role.value}: {inputs.files[0].parent}",
            "the same number of files in every header",
            ", ".join(str(number) for number in asked),
            "The files do not belong together. " + REFETCH,
        )
    for expected in asked[-1:]:
        if len(numbers) == expected and tuple(numbers) == tuple(range(len(numbers))):
            continue
        missing = sorted(set(range(min(expected, 1 << 16))) - set(numbers))
        shown = ", ".join(str(number) for number in missing[:10]) + (", …" if len(missing) > 10 else "")
        yield Finding(
            FindingCode.MISSING_CHUNK,
            simulation,
            f"{inputs.role.value}: {inputs.files[0].parent}",
            f"{expected} file{'s' if expected != 1 else ''}, as the header says",
            f"{len(numbers)}" + (f"; number {shown} missing" if missing else ""),
            "Fetch the missing files." if missing else "Remove the files that do not belong there.",
        )


def snapshot_findings(
    simulation: str, inputs: InputFiles, headers: dict[Path, SnapshotHeader], config: DatasetConfig
) -> Iterator[Finding]:
    """Yield what is wrong with a snapshot: chunks, counts, datasets, and headers that contradict each other."""
    if not headers:
        return
    yield from _chunk_findings(simulation, inputs, [header.number_of_files for header in headers.values()])
    first = next(iter(headers.values()))
    for path, header in headers.items():
        yield from _compare(simulation, (str(inputs.files[0]), first), (str(path), header))
    components = [component for component in passes_of(config) if component.role is inputs.role]
    used = sorted({kind for component in components for kind in particle_types(component, config)})
    for kind in used:
        totals = {header.counts_total[kind] for header in headers.values()}
        if len(totals) > 1:
            yield Finding(
                FindingCode.HEADER_MISMATCH,
                simulation,
                f"{inputs.role.value}: {inputs.files[0].parent}, NumPart_Total[{int(kind)}]",
                "the same total in every file",
                ", ".join(str(total) for total in sorted(totals)),
                "The files do not belong together. " + REFETCH,
            )
        counted = sum(header.counts_this_file[kind] for header in headers.values())
        if len(headers) == len(inputs.files) and counted != max(totals):
            yield Finding(
                FindingCode.WRONG_COUNT,
                simulation,
                f"{inputs.role.value}: {inputs.files[0].parent}, PartType{int(kind)}",
                f"{max(totals):,} particles (NumPart_Total)",
                f"{counted:,} in {len(headers)} file{'s' if len(headers) != 1 else ''}",
                "A file is missing, incomplete or of another run. " + REFETCH,
            )
    if inputs.role is Role.DMO:
        yield from _baryon_findings(simulation, inputs, first)
    needed = {ParticleType.DARK_MATTER} | ({ParticleType.GAS} if inputs.role is Role.HYDRO else set())
    for kind in sorted(needed):
        if all(header.counts_total[kind] == 0 for header in headers.values()):
            yield Finding(
                FindingCode.NO_PARTICLES,
                simulation,
                f"{inputs.role.value}: {inputs.files[0]}, PartType{int(kind)}",
                f"{kind.name.lower().replace('_', ' ')} particles",
                "none (NumPart_Total is 0)",
                "Check that the base path points at the right kind of run.",
            )
    seen: set[str] = set()
    for component in components:
        for path in headers:
            try:
                component_source(component, [path], config)
            except BindDataError as error:
                finding = unreadable(simulation, error)
                if finding.where not in seen:
                    yield finding
                seen.add(finding.where)


def _baryon_findings(simulation: str, inputs: InputFiles, header: SnapshotHeader) -> Iterator[Finding]:
    kinds = [kind for kind in ParticleType if kind is not ParticleType.DARK_MATTER and header.counts_total[kind]]
    if kinds:
        yield Finding(
            FindingCode.WRONG_KIND_OF_RUN,
            simulation,
            f"{inputs.role.value}: {inputs.files[0]}, NumPart_Total",
            "dark matter only",
            ", ".join(
                f"{header.counts_total[kind]:,} {kind.name.lower().replace('_', ' ')} particles" for kind in kinds
            ),
            "This is a hydrodynamic run: check the base path of the dark-matter-only runs.",
        )


def _compare(
    simulation: str, first: tuple[str, SnapshotHeader], second: tuple[str, SnapshotHeader]
) -> Iterator[Finding]:
    """Compare the cosmology and box of two headers."""
    (first_path, a), (second_path, b) = first, second
    for attribute, (name, tolerance) in _HEADER_TOLERANCES.items():
        yield from _differ(
            simulation,
            name,
            (first_path, getattr(a, attribute)),
            (second_path, getattr(b, attribute)),
            tolerance if attribute == "redshift" else tolerance * abs(getattr(a, attribute)),
        )


def _differ(
    simulation: str, name: str, first: tuple[str, float], second: tuple[str, float | None], tolerance: float
) -> Iterator[Finding]:
    if second[1] is None or abs(first[1] - second[1]) <= tolerance:
        return
    yield Finding(
        FindingCode.HEADER_MISMATCH,
        simulation,
        f"{second[0]}, {name}",
        f"{first[1]:g}, as in {first[0]}",
        f"{second[1]:g}",
        "The files are not of the same simulation and snapshot.",
    )


def pair_findings(
    files: SimulationFiles, headers: dict[Role, tuple[SnapshotHeader, ...]], catalogue: HaloCatalogue | None
) -> Iterator[Finding]:
    """Yield where the two snapshots and the catalogue do not describe the same box."""
    if Role.DMO in headers and Role.HYDRO in headers:
        yield from _compare(
            files.name,
            (str(files.dmo.files[0]), headers[Role.DMO][0]),
            (str(files.hydro.files[0]), headers[Role.HYDRO][0]),
        )
    if Role.DMO in headers and catalogue is not None:
        snapshot = headers[Role.DMO][0]
        for attribute, (name, tolerance) in _HEADER_TOLERANCES.items():
            mine = getattr(snapshot, attribute)
            differing = (
                finding
                for path, header in zip(files.catalogue.files, catalogue.headers, strict=True)
                for finding in _differ(
                    files.name,
                    name,
                    (str(files.dmo.files[0]), mine),
                    (str(path), getattr(header, attribute)),
                    tolerance if attribute == "redshift" else tolerance * abs(mine),
                )
            )
            yield from islice(differing, 1)  # a catalogue of a hundred chunks is wrong in all of them


def read_whole_catalogue(files: SimulationFiles) -> tuple[HaloCatalogue | None, list[Finding]]:
    """Return a simulation's catalogue, or None where it cannot be used, and what is wrong with it."""
    inputs = files.catalogue
    findings = list(file_findings(files.name, inputs))
    if not inputs.files:
        return None, findings
    headers, errors = [], []
    for path in inputs.files:
        try:
            headers.append(read_catalogue_header(path))
            read_catalogue([path])
        except BindDataError as error:
            errors.append(unreadable(files.name, error))
    findings += errors
    findings += _chunk_findings(files.name, inputs, [header.number_of_files for header in headers])
    if errors:
        return None, findings
    catalogue = read_catalogue(inputs.files)
    counted = sum(header.groups_this_file for header in catalogue.headers)
    for total in sorted({header.groups_total for header in catalogue.headers} - {counted}):
        findings.append(
            Finding(
                FindingCode.WRONG_COUNT,
                files.name,
                f"catalogue: {inputs.files[0].parent}",
                f"{total:,} groups (Ngroups_Total)",
                f"{counted:,} in {len(inputs.files)} file{'s' if len(inputs.files) != 1 else ''}",
                "A file is missing, incomplete or of another run. " + REFETCH,
            )
        )
    return catalogue, findings


def halo_findings(
    files: SimulationFiles,
    catalogue: HaloCatalogue,
    headers: dict[Role, tuple[SnapshotHeader, ...]],
    config: DatasetConfig,
) -> Iterator[Finding]:
    """Yield what is wrong with the haloes that samples would be made of."""
    where = f"catalogue: {files.catalogue.files[0].parent}"
    in_box = _mass_in_box(headers, catalogue)
    bad_mass = ~np.isfinite(catalogue.masses) | (catalogue.masses < 0) | (catalogue.masses > in_box)
    if np.any(bad_mass):
        first = int(np.argmax(bad_mass))
        yield Finding(
            FindingCode.BAD_HALO,
            files.name,
            f"{where}, Group_M_Crit200",
            f"masses from 0 to the {in_box:.5g} Msun/h that the box holds",
            f"{int(bad_mass.sum()):,} that are not; first at group {first}: {catalogue.masses[first]:g} Msun/h",
            "Check that they are in 1e10 Msun/h. " + REFETCH,
        )
    box = headers[Role.DMO][0].box_size if Role.DMO in headers else catalogue.headers[0].box_size
    lowest = min(stratum.min_mass for stratum in config.strata)
    wanted = catalogue.masses > lowest
    edge = BOX_TOLERANCE * (box or 0.0)
    inside = np.isfinite(catalogue.centers) & (catalogue.centers >= -edge)
    if box is not None:
        inside &= catalogue.centers <= box + edge
    outside = wanted & ~np.all(inside, axis=1)
    if np.any(outside):
        first = int(np.argmax(outside))
        yield Finding(
            FindingCode.BAD_HALO,
            files.name,
            f"{where}, GroupPos",
            f"finite positions in [0, {box:g}] Mpc/h" if box is not None else "finite positions",
            f"{int(outside.sum()):,} of {int(wanted.sum()):,} massive groups elsewhere; group {first} at "
            f"{catalogue.centers[first].tolist()}",
            REFETCH,
        )


def _mass_in_box(headers: dict[Role, tuple[SnapshotHeader, ...]], catalogue: HaloCatalogue) -> float:
    """Return the mass of all matter in the box in Msun/h; infinite where it is not known."""
    if Role.DMO in headers:
        omega0, box = headers[Role.DMO][0].omega0, headers[Role.DMO][0].box_size
    else:
        omega0, box = catalogue.headers[0].omega0 or np.nan, catalogue.headers[0].box_size or np.nan
    mass = omega0 * CRITICAL_DENSITY * box**3
    return float(mass) if mass > 0 else np.inf


def parameter_findings(
    simulation: str, headers: dict[Role, tuple[SnapshotHeader, ...]], table: ParameterTable
) -> tuple[NDArray[np.float64] | None, list[Finding]]:
    """Return a simulation's parameters, or None where there are none to use, and what is wrong with them."""
    reason = table.unusable.get(simulation)
    if reason is not None or simulation not in table.rows:
        return None, [
            Finding(
                FindingCode.NO_PARAMETERS,
                simulation,
                str(table.file),
                f"one usable row called {simulation}",
                reason or f"none among {len(table.rows):,}",
                "Add or correct the row, or name another table with parameter_file (--param_file).",
            )
        ]
    values = table.values(simulation)
    findings = [
        Finding(
            FindingCode.PARAMETERS_CONTRADICT_HEADER,
            simulation,
            f"{table.file}, {name}",
            f"{expected:g}, as in the header of the {role.value} snapshot",
            f"{values[name]:g}",
            "The row or the snapshot belongs to another simulation.",
        )
        for name, attribute in _PARAMETERS_IN_HEADER.items()
        if name in values
        for role, role_headers in headers.items()
        for expected in [getattr(role_headers[0], attribute)]
        # A dark-matter-only run may rightly say nothing of baryons, or that it has none.
        if not (attribute == "omega_baryon" and not expected)
        and abs(values[name] - expected) > _PARAMETER_TOLERANCE * abs(expected)
    ]
    return table.rows[simulation], findings
