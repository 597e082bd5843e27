"""Conditions of a dark-matter-only simulation, made by the very functions that make the training set."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.digests import ParticleDigests
from bind_core.errors import SnapshotError
from bind_core.field_reading import FieldPass, ParticlePass
from bind_core.halos import Halo
from bind_core.maps import input_maps
from bind_core.mesh import ParticleMesh
from bind_core.particles import PositionTally, component_source, read_slices
from bind_core.projection import Backend
from bind_core.windows import Windows

IDENTITY = np.eye(3)
"""The orientation at inference: the projected frame is the box frame."""


@dataclass(frozen=True)
class HaloCondition:
    """What the model needs to paint one halo; the counterpart of `bind_core.sample.Sample` without targets."""

    condition: NDArray[np.float32]
    """(npix, npix): Msun/h per native pixel."""
    large_scale: NDArray[np.float32]
    """(n_context, npix, npix): Msun/h per native pixel."""
    halo: Halo
    rotation: NDArray[np.float64]
    """(3, 3): from the box frame to the projected frame."""


def halo_conditions(
    dmo: ParticleMesh,
    halos: Iterable[Halo],
    windows: Windows,
    backend: Backend = Backend.FUSED,
    rotation: NDArray[np.float64] = IDENTITY,
) -> Iterator[HaloCondition]:
    """Make condition and context maps of a list of haloes.

    Parameters
    ----------
    dmo : ParticleMesh
        Particles of the dark-matter-only simulation, of any box size; see `read_particles`.
    halos : iterable of Halo
        Which haloes.
    windows : Windows
        The geometry that the model was trained with, in Mpc/h: windows keep their physical size in any box.
    backend : Backend
        Implementation of the projection.
    rotation : (3, 3) array
        Orientation; the identity by default.

    Yields
    ------
    HaloCondition
        In the order of the haloes.
    """
    for halo in halos:
        maps = input_maps(dmo, np.array(halo.center), rotation, windows, backend)
        yield HaloCondition(condition=maps[0], large_scale=maps[1:], halo=halo, rotation=rotation)


def read_particles(
    component: ParticlePass, files: Sequence[Path], config: DatasetConfig, digests: ParticleDigests | None = None
) -> ParticleMesh:
    """Read all particles of a component of a snapshot, or of a further field, and sort them into a chaining mesh.

    Parameters
    ----------
    component : Component or FieldPass
        Which particles.
    files : sequence of Path
        The snapshot's files, in chunk order.
    config : DatasetConfig
        Gives the policies for wind and black holes.
    digests : ParticleDigests, optional
        Takes the digests of what is read, as a snapshot's digest is made of.

    Raises
    ------
    SnapshotError
        If a file cannot be read, or holds positions, masses or numbers of a field that cannot be.
    """
    source = component_source(component, files, config)
    tally = PositionTally()
    positions, masses = [np.empty((0, 3), dtype=np.float32)], [np.empty(0, dtype=np.float32)]
    for particles in read_slices(source, source.pieces):
        tally.merge(particles.tally)
        positions.append(particles.positions)
        if particles.masses is not None:
            masses.append(particles.masses)
    if digests is not None:
        digests.merge(tally.digests)
    if tally.non_finite or tally.outside or tally.bad_masses:
        raise SnapshotError(
            f"{files[0]}: {component.value}: expected finite positions in [0, {source.box_size:g}] Mpc/h and masses "
            f"above 0, found {tally.non_finite:,} non-finite and {tally.outside:,} outside positions and "
            f"{tally.bad_masses:,} bad masses among {tally.particles:,}. The file is damaged: fetch it again."
        )
    if isinstance(component, FieldPass) and tally.bad_values:
        raise SnapshotError(
            f"{tally.bad_values_in}: expected {component.expected}, for the field {component.field.name}, found "
            f"{tally.bad_values:,} of {tally.particles:,} that are not. Fetch the file again, or leave the field out."
        )
    mass = np.concatenate(masses) if source.uniform_mass is None else source.uniform_mass
    return ParticleMesh.build(np.concatenate(positions), mass, source.box_size)
