"""Digests of what is read of a simulation's inputs: they tell a changed input from one that was only touched.

They cover what samples are made from (positions, masses, headers, a row of the parameter table), and not the files'
other datasets, which are many times larger and are never read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from bind_core.parameters import ParameterTable

_MODULUS = 1 << 128


@dataclass
class ParticleDigests:
    """Digests of the particles read, by file and particle type; digests of parts add up in any order.

    Each piece of a file is hashed together with the row that it begins at, and the hashes are added modulo 2^128. So
    the sum does not depend on which worker reads which pieces, but it does on how a file is divided into them, which
    `bind_core.particles.SLICE_ROWS` and the file's chunks decide.
    """

    sums: dict[tuple[str, int], int] = field(default_factory=dict)
    """By (path, particle type)."""

    def add(self, path: str, particle_type: int, start: int, arrays: Mapping[str, NDArray]) -> None:
        """Add one piece.

        Parameters
        ----------
        path : str
            The file.
        particle_type : int
            Which of its groups.
        start : int
            The first row.
        arrays : mapping
            What was read of these rows, by the datasets' names.
        """
        digest = xxhash.xxh3_128()
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype.str} {start} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        self._add((path, int(particle_type)), digest.intdigest())

    def merge(self, other: "ParticleDigests") -> None:
        """Add what another worker has read."""
        for key, value in other.sums.items():
            self._add(key, value)

    def of_file(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield particle type and digest of everything that was read of a file, in the types' order."""
        for (file, particle_type), value in sorted(self.sums.items()):
            if file == path:
                yield particle_type, f"{value:032x}"

    def _add(self, key: tuple[str, int], value: int) -> None:
        self.sums[key] = (self.sums.get(key, 0) + value) % _MODULUS


def parameters_digest(table: ParameterTable, simulation: str) -> str | None:
    """Return the digest of a simulation's row in the parameter table; None where it has no usable one."""
    if simulation not in table.rows:
        return None
    return digest_of([list(table.values(simulation).items())])


def header_and_particles_digest(header: object, particles: Iterator[tuple[int, str]]) -> str:
    """Return the digest of a snapshot file: of its header (a dataclass) and of the particles read from it."""
    return digest_of([asdict(header), list(particles)])  # type: ignore[call-overload]


def digest_of(values: object) -> str:
    """Return the SHA-256 of plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
