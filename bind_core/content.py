"""What is wrong with a simulation's particles, seen as they are read.

`ContentCheck` looks at particles in passing, so that the projection can run it on what it reads anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.findings import REFETCH, Finding, FindingCode, Severity
from bind_core.pairing import add_to_coarse_mesh, coarse_mesh_side, empty_coarse_mesh, mesh_correlation
from bind_core.snapshot import Component, ParticleSlice, PositionTally, SnapshotHeader
from bind_core.suite import Role

CRITICAL_DENSITY = 2.77536627e11
"""Critical density today in (Msun/h) / (Mpc/h)^3."""

_MASS_TOLERANCE = 0.02
_CONFINED_FRACTION = 0.5
_CONFINED_MINIMUM = 1000


@dataclass
class ContentCheck:
    """What is seen of a simulation's particles as they are read; checks of parts add up."""

    simulation: str
    box_size: float
    """Mpc/h."""
    tallies: dict[Component, PositionTally] = field(default_factory=dict)
    meshes: dict[Component, NDArray[np.float64]] = field(default_factory=dict)
    """Coarse dark-matter fields of the two runs."""

    def start(self, component: Component, particles: int) -> None:
        """Announce a component, so that one without particles is known too.

        Parameters
        ----------
        component : Component
            What will be added.
        particles : int
            Its particles in all files; decides the side of the coarse mesh.
        """
        self.tallies.setdefault(component, PositionTally())
        if component in (Component.DMO, Component.DARK_MATTER):
            self.meshes.setdefault(component, empty_coarse_mesh(coarse_mesh_side(particles)))

    def add(self, component: Component, particles: ParticleSlice) -> None:
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
        findings += self._pairing_findings(config)
        findings += self._mass_findings(headers)
        return findings

    def _position_findings(self, component: Component, tally: PositionTally) -> Iterator[Finding]:
        where = f"{component.role.value} snapshot, {component.value} Coordinates"
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
                f"{tally.outside:,} of {tally.particles:,} outside; they span {tally.lowest:g} to {tally.highest:g} Mpc/h",
                "Check that BoxSize and Coordinates are in the same unit (ckpc/h). " + REFETCH,
            )
        elif (
            component in (Component.DMO, Component.DARK_MATTER)
            and tally.particles >= _CONFINED_MINIMUM
            and tally.highest < _CONFINED_FRACTION * self.box_size
        ):
            yield Finding(
                FindingCode.POSITIONS_CONFINED,
                self.simulation,
                where,
                f"dark matter all over the box of {self.box_size:g} Mpc/h",
                f"all {tally.particles:,} particles below {tally.highest:g} Mpc/h",
                "BoxSize and Coordinates are probably in different units; both must be in ckpc/h. " + REFETCH,
            )
        if tally.bad_masses:
            yield Finding(
                FindingCode.BAD_MASSES,
                self.simulation,
                f"{component.role.value} snapshot, {component.value} Masses",
                "finite masses above 0",
                f"{tally.bad_masses:,} of {tally.particles:,} that are not",
                REFETCH,
            )

    def _pairing_findings(self, config: DatasetConfig) -> Iterator[Finding]:
        meshes = [self.meshes.get(component) for component in (Component.DMO, Component.DARK_MATTER)]
        positions_usable = not any(
            tally.non_finite or tally.outside for component, tally in self.tallies.items() if component in self.meshes
        )
        first, second = meshes
        if first is None or second is None or not positions_usable:
            return
        if not first.any() or not second.any():
            return
        side = min(len(first), len(second))
        correlation = mesh_correlation(_coarsened(first, side), _coarsened(second, side))
        if not correlation >= config.pairing_threshold:
            yield Finding(
                FindingCode.MISPAIRED,
                self.simulation,
                "dark matter of the dmo and the hydro snapshot",
                f"fields that correlate above {config.pairing_threshold:g} on a {side}^3 mesh, as a true pair's do",
                f"a correlation of {correlation:.4f}",
                "The two runs have different initial phases: one of them is another simulation under this name.",
            )

    def _mass_findings(self, headers: dict[Role, tuple[SnapshotHeader, ...]]) -> Iterator[Finding]:
        for role in (Role.DMO, Role.HYDRO):
            seen = [tally for component, tally in self.tallies.items() if component.role is role]
            if role not in headers or not seen or any(tally.bad_masses for tally in seen):
                continue
            expected = headers[role][0].omega0 * CRITICAL_DENSITY * self.box_size**3
            found = sum(tally.mass for tally in seen)
            if abs(found / expected - 1) > _MASS_TOLERANCE:
                yield Finding(
                    FindingCode.MASS_BUDGET,
                    self.simulation,
                    f"{role.value} snapshot",
                    f"a total mass of Omega0 rho_crit V = {expected:.5g} Msun/h",
                    f"{found:.5g} Msun/h ({found / expected:.4f} of it)",
                    "Masses, MassTable or BoxSize may be in another unit, or particles may be lacking.",
                    Severity.WARNING,
                )


def _coarsened(mesh: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return a mesh resampled to fewer cells per side, by sums over the cells whose lower corner they hold."""
    if len(mesh) == side:
        return mesh
    edges = (np.arange(side) * len(mesh)) // side
    for axis in range(3):
        mesh = np.add.reduceat(mesh, edges, axis=axis)
    return mesh
