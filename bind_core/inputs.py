"""What a simulation's samples are made from, as digests: one for each input file, one for its parameters."""

from collections.abc import Sequence
from pathlib import Path

from bind_core.config import DatasetConfig
from bind_core.digests import ParticleDigests, digest_of, header_and_particles_digest
from bind_core.field_reading import passes_of
from bind_core.particles import component_source, read_slices
from bind_core.snapshot import read_header
from bind_core.suite import Role


def snapshot_digests(files: Sequence[Path], particles: ParticleDigests) -> dict[str, str]:
    """Return the digest of each snapshot file whose particles have been read, by path.

    Raises
    ------
    SnapshotError
        If a header cannot be read any more.
    """
    return {str(path): header_and_particles_digest(read_header(path), particles.of_file(str(path))) for path in files}


def read_snapshot_digest(path: Path, role: Role, config: DatasetConfig) -> str:
    """Return the digest of a snapshot file, reading everything of it that a projection would read.

    Parameters
    ----------
    path : Path
        The file.
    role : Role
        Which of the two snapshots it is of.
    config : DatasetConfig
        Its policies and further fields decide which datasets are read.

    Raises
    ------
    SnapshotError
        If the file is damaged.
    """
    particles = ParticleDigests()
    for component in passes_of(config):
        if component.role is role:
            source = component_source(component, [path], config)
            for part in read_slices(source, source.pieces):
                particles.merge(part.tally.digests)
    return snapshot_digests([path], particles)[str(path)]


def inputs_digest(digests: Sequence[tuple[str, str]]) -> str:
    """Return the one digest of all inputs of a simulation.

    Parameters
    ----------
    digests : sequence of (str, str)
        Role and digest of each input, chunks in their order. Where the files lie, and what they are called, does not
        matter.
    """
    return digest_of([list(entry) for entry in digests])
