"""What is wrong with a simulation's particles, seen as they are read.

`ContentCheck` looks at particles in passing, so that the projection can run it on what it reads anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.digests import ParticleDigests
from bind_core.field_reading import FieldPass, ParticlePass
from bind_core.findings import REFETCH, Finding, FindingCode, Severity
from bind_core.pairing import (
    add_to_coarse_mesh,
    coarse_mesh_side,
    coarsened,
    empty_coarse_mesh,
    mesh_correlation,
)
from bind_core.particles import ParticleSlice, PositionTally
from bind_core.snapshot import Component, ParticleType, SnapshotHeader
from bind_core.suite import Role

CRITICAL_DENSITY = 2.77536627e11
"""Critical density today in (Msun/h) / (Mpc/h)^3."""

_MASS_TOLERANCE = 0.02
_CONFINED_FRACTION = 0.5
_CONFINED_MINIMUM = 1000
# Up to this share of lacking or misplaced particles, a field still shows whose it is.
_NEGLIGIBLE = 1e-3
# A halo of so many mean cells' mass must show on the coarse mesh; with so few of them, nothing is said.
_SHOWN_IN_CELLS = 2.0
_FEWEST_SHOWN = 4
# True haloes have a median of 3 and more there; random places have 0.7.
_LEAST_DENSITY = 1.2
_DARK_MATTER = (Component.DMO, Component.DARK_MATTER)


@dataclass
class ContentCheck:
    """What is seen of a simulation's particles as they are read; checks of parts add up."""

    simulation: str
    box_size: float
    """Mpc/h."""
    tallies: dict[ParticlePass, PositionTally] = field(default_factory=dict)
    meshes: dict[ParticlePass, NDArray[np.float64]] = field(default_factory=dict)
    """Coarse dark-matter fields of the two runs."""
    halo_centers: NDArray[np.float64] | None = None
    """(n, 3), Mpc/h: haloes that should be found in the dark-matter-only field; None to leave that out."""
    halo_masses: NDArray[np.float64] | None = None
    """(n,), Msun/h."""

    def start(self, component: ParticlePass, particles: int) -> None:
        """Announce a component or field, so that one without particles is known too.

        Parameters
        ----------
        component : Component or FieldPass
            What will be added.
        particles : int
            Its particles in all files; decides the side of the coarse mesh.
        """
        self.tallies.setdefault(component, PositionTally())
        if component in _DARK_MATTER:
            self.meshes.setdefault(component, empty_coarse_mesh(coarse_mesh_side(particles)))

    def add(self, component: ParticlePass, particles: ParticleSlice) -> None:
        """Look at some particles."""
        self.tallies[component].merge(particles.tally)
        if component in self.meshes:
            add_to_coarse_mesh(self.meshes[component], particles.positions, self.box_size)

    def merge(self, other: "ContentCheck") -> None:
        """Add what another worker saw of the same simulation."""
        for component, tally in other.tallies.items():
            self.tallies.setdefault(component, PositionTally()).merge(tally)
        for component, mesh in other.meshes.items():
            self.meshes[component] = self.meshes[component] + mesh if component in self.meshes else mesh

    @property
    def digests(self) -> ParticleDigests:
        """Digests of all particles seen."""
        digests = ParticleDigests()
        for tally in self.tallies.values():
            digests.merge(tally.digests)
        return digests

    def findings(self, config: DatasetConfig, headers: dict[Role, tuple[SnapshotHeader, ...]]) -> list[Finding]:
        """Return everything that is wrong with the particles seen.

        Parameters
        ----------
        config : DatasetConfig
            Gives the correlation below which a pair is refused.
        headers : dict
            The snapshots' headers, for the mass that there should be.
        """
        findings: list[Finding] = []
        for component, tally in self.tallies.items():
            findings += self._position_findings(component, tally)
            if isinstance(component, FieldPass):
                findings += self._field_findings(component, tally)
        findings = list(dict.fromkeys(findings))  # a field's particles may be a component's too
        findings += self._pairing_findings(config, headers)
        findings += self._halo_findings(config, headers)
        findings += self._mass_findings(headers)
        return findings

    def _position_findings(self, component: ParticlePass, tally: PositionTally) -> Iterator[Finding]:
        where = f"{component.role.value}: {tally.bad_positions_in or tally.file}"
        if tally.non_finite:
            yield Finding(
                FindingCode.NON_FINITE_POSITIONS,
                self.simulation,
                where,
                "finite positions",
                f"NaN or infinity for {tally.non_finite:,} of {tally.particles:,} particles",
                REFETCH,
            )
        if tally.outside:
            yield Finding(
                FindingCode.POSITIONS_OUTSIDE,
                self.simulation,
                where,
                f"positions in [0, {self.box_size:g}] Mpc/h",
                f"{tally.outside:,} of {tally.particles:,} outside: {tally.lowest:g} to {tally.highest:g} Mpc/h",
                "Check that BoxSize and Coordinates are in the same unit (ckpc/h). " + REFETCH,
            )
        elif self._confined(component):
            yield Finding(
                FindingCode.POSITIONS_CONFINED,
                self.simulation,
                where,
                f"{'gas' if component is Component.GAS else 'dark matter'} all over the box of {self.box_size:g} Mpc/h",
                f"all {tally.particles:,} particles below {tally.highest:g} Mpc/h",
                "BoxSize and Coordinates are probably in different units; both must be in ckpc/h. " + REFETCH,
            )
        if tally.bad_masses:
            yield Finding(
                FindingCode.BAD_MASSES,
                self.simulation,
                f"{component.role.value}: {tally.bad_masses_in}",
                "finite masses above 0",
                f"{tally.bad_masses:,} of {tally.particles:,} that are not",
                REFETCH,
            )

    def _field_findings(self, wanted: FieldPass, tally: PositionTally) -> Iterator[Finding]:
        if tally.bad_values:
            yield Finding(
                FindingCode.BAD_FIELD,
                self.simulation,
                f"{wanted.role.value}: {tally.bad_values_in}",
                f"{wanted.expected}, for the field {wanted.field.name}",
                f"{tally.bad_values:,} of {tally.particles:,} that are not",
                f"{REFETCH} Or leave {wanted.field.name} out of extra_fields.",
            )

    def _confined(self, component: ParticlePass) -> bool:
        """Whether a species that fills every box fills a corner of this one only; stars may rightly be few."""
        tally = self.tallies[component]
        return (
            component in (*_DARK_MATTER, Component.GAS)
            and tally.particles >= _CONFINED_MINIMUM
            and tally.highest < _CONFINED_FRACTION * self.box_size
        )

    def _shows_phases(self, component: Component, headers: dict[Role, tuple[SnapshotHeader, ...]]) -> bool:
        """Whether a dark-matter field is there as a whole: where parts lack, it differs for another reason."""
        if component not in self.meshes or component not in self.tallies or not self.meshes[component].any():
            return False
        tally = self.tallies[component]
        total = tally.particles
        if component.role in headers:
            total = headers[component.role][0].counts_total[ParticleType.DARK_MATTER]
        return (
            abs(tally.particles - total) <= _NEGLIGIBLE * total
            and tally.non_finite + tally.outside <= _NEGLIGIBLE * tally.particles
            and not self._confined(component)
        )

    def _pairing_findings(
        self, config: DatasetConfig, headers: dict[Role, tuple[SnapshotHeader, ...]]
    ) -> Iterator[Finding]:
        if not all(self._shows_phases(component, headers) for component in _DARK_MATTER):
            return
        boxes = [found[0].box_size for found in headers.values()]
        if boxes and not np.allclose(boxes, boxes[0]):
            return
        first, second = (self.meshes[component] for component in _DARK_MATTER)
        side = min(len(first), len(second))
        correlation = mesh_correlation(coarsened(first, side), coarsened(second, side))
        if not correlation >= config.pairing_threshold:
            yield Finding(
                FindingCode.MISPAIRED,
                self.simulation,
                "dark matter of " + " and ".join(self.tallies[component].file for component in _DARK_MATTER),
                f"fields that correlate above {config.pairing_threshold:g} on a {side}^3 mesh, as a true pair's do",
                f"a correlation of {correlation:.4f}",
                "The two runs have different initial phases: one of them is another simulation under this name.",
            )

    def _halo_findings(
        self, config: DatasetConfig, headers: dict[Role, tuple[SnapshotHeader, ...]]
    ) -> Iterator[Finding]:
        """Check that haloes lie where dark matter does: a catalogue of another run says so by nothing else."""
        if self.halo_centers is None or self.halo_masses is None or not self._shows_phases(Component.DMO, headers):
            return
        mesh = self.meshes[Component.DMO]
        cell_mass = self.tallies[Component.DMO].mass / mesh.size
        shown = self.halo_masses > max(_SHOWN_IN_CELLS * cell_mass, min(s.min_mass for s in config.strata))
        shown &= np.all(np.isfinite(self.halo_centers), axis=1)
        if np.count_nonzero(shown) < _FEWEST_SHOWN:
            return
        box_size = headers[Role.DMO][0].box_size if Role.DMO in headers else self.box_size
        cells = np.rint(self.halo_centers[shown] * (len(mesh) / box_size)).astype(np.int64) % len(mesh)
        density = float(np.median(mesh[tuple(cells.T)]) / mesh.mean())
        if density < _LEAST_DENSITY:
            yield Finding(
                FindingCode.MISPAIRED,
                self.simulation,
                f"haloes of the catalogue in the dark matter of {self.tallies[Component.DMO].file}",
                f"a median density above {_LEAST_DENSITY:g} times the mean around the {len(cells):,} most massive",
                f"{density:.2f} times the mean",
                "The catalogue is of another simulation, or GroupPos or Group_M_Crit200 are in another unit.",
            )

    def _mass_findings(self, headers: dict[Role, tuple[SnapshotHeader, ...]]) -> Iterator[Finding]:
        for role in (Role.DMO, Role.HYDRO):
            components = [component for component in Component if component.role is role]
            if role not in headers or not all(component in self.tallies for component in components):
                continue
            seen = [self.tallies[component] for component in components]
            header = headers[role][0]
            expected = header.omega0 * CRITICAL_DENSITY * header.box_size**3
            if any(tally.bad_masses for tally in seen) or not expected > 0:
                continue
            found = sum(tally.mass for tally in seen)
            if abs(found / expected - 1) > _MASS_TOLERANCE:
                yield Finding(
                    FindingCode.MASS_BUDGET,
                    self.simulation,
                    f"{role.value}: {next((tally.file for tally in seen if tally.file), 'snapshot')}",
                    f"a total mass of Omega0 rho_crit V = {expected:.5g} Msun/h",
                    f"{found:.5g} Msun/h ({found / expected:.4f} of it)",
                    "Masses, MassTable or BoxSize may be in another unit, or particles may be lacking.",
                    Severity.WARNING,
                )
