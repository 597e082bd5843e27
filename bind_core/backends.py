"""The interchangeable ways to project particles, by name.

They stand apart from `bind_core.projection`, so that whoever reads a configuration need not load compiled kernels.
"""

from enum import StrEnum


class Backend(StrEnum):
    """Interchangeable ways to project particles."""

    FUSED = "fused"
    """Chaining mesh, per-cell culling and compiled kernels on nested grids: the fast one."""
    PYLIANS = "pylians"
    """The field's reference cloud-in-cell code, on explicitly tiled and rotated particles."""
    REFERENCE = "reference"
    """Double-precision numpy, written to be obviously right: what the others are tested against."""
