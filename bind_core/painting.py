"""Where a patch lies in its box, and how it is put back: the inverse of cutting it out."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bind_core.windows import Windows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatchGrid:
    """The nodes of a native map in the box that it was projected from.

    Attributes
    ----------
    center : (3,) array
        Centre of the halo in the box frame, Mpc/h; it sits on node (npix/2, npix/2).
    rotation : (3, 3) array
        From the box frame to the projected frame.
    pixel_size : float
        Spacing of the nodes, Mpc/h.
    npix : int
        Nodes per side.
    box_size : float
        Side of the periodic box, Mpc/h.
    depth : float
        What was projected along z', Mpc/h: half of it on either side of the centre.
    """

    center: Floats
    rotation: Floats
    pixel_size: float
    npix: int
    box_size: float
    depth: float

    @classmethod
    def of(cls, center: Floats, rotation: Floats, box_size: float, windows: Windows) -> Self:
        """Return the grid of a native map that was made with these windows."""
        return cls(
            np.asarray(center, dtype=np.float64),
            np.asarray(rotation, dtype=np.float64),
            windows.pixel_size,
            windows.resolution,
            box_size,
            windows.depth,
        )

    def node_positions(self) -> Floats:
        """Return where the nodes are in the box, on the plane through the halo.

        Returns
        -------
        (npix, npix, 3) array
            Mpc/h, in ``[0, box_size)``.
        """
        offsets = (np.arange(self.npix) - self.npix // 2) * self.pixel_size
        plane = np.stack([*np.meshgrid(offsets, offsets, indexing="ij"), np.zeros((self.npix, self.npix))], axis=-1)
        return np.mod(self.center + plane @ self.rotation, self.box_size)  # the inverse rotation, of row vectors

    def pixels_of(self, positions: Floats) -> Floats:
        """Return where positions in the box lie on the map, by their images nearest to the halo.

        Parameters
        ----------
        positions : (n, 3) array
            Mpc/h, in the box frame.

        Returns
        -------
        (n, 3) array
            x' and y' in pixels, where node i is at i, and z' from the halo in Mpc/h. Of a rotated window that is
            wider than half the box, other images may lie on the map too.
        """
        offsets = np.asarray(positions, dtype=np.float64) - self.center
        offsets -= self.box_size * np.round(offsets / self.box_size)
        projected = offsets @ self.rotation.T
        projected[:, :2] = projected[:, :2] / self.pixel_size + self.npix // 2
        return projected


def paste(canvas: Floats, patch: NDArray[np.floating], grid: PatchGrid) -> None:
    """Add the mass of a patch to a map of the whole box, seen along its z axis.

    Each node's mass goes to the four nodes of the canvas around it, by cloud-in-cell, so that nothing is lost; the
    canvas is periodic.

    Parameters
    ----------
    canvas : (n, n) float64 array
        Mass per pixel, changed in place; node i lies at i * box_size / n. Axis 0 is x, axis 1 is y.
    patch : (npix, npix) array
        Mass per pixel of a native map, such as one channel of a target.
    grid : PatchGrid
        Where it lies. Its rotation must leave the line of sight along z.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the patch was seen along another direction.
    """
    if canvas.ndim != 2 or canvas.shape[0] != canvas.shape[1]:
        raise ValueError(f"The canvas must be a square map, found shape {canvas.shape}")
    if patch.shape != (grid.npix, grid.npix):
        raise ValueError(f"The patch has shape {patch.shape}, its grid {(grid.npix, grid.npix)}")
    if not np.allclose(np.abs(grid.rotation[2]), (0.0, 0.0, 1.0), atol=1e-9):
        raise ValueError(
            f"The patch was seen along {grid.rotation[2]}, which is not the box's z axis: its mass cannot be put onto "
            "a map that is seen along z. Make the conditions with the identity rotation."
        )
    n = len(canvas)
    scaled = grid.node_positions()[..., :2] * (n / grid.box_size)
    lower = np.floor(scaled).astype(np.int64)
    upper_share = scaled - lower
    for x_side in (0, 1):
        for y_side in (0, 1):
            x_share = upper_share[..., 0] if x_side else 1.0 - upper_share[..., 0]
            y_share = upper_share[..., 1] if y_side else 1.0 - upper_share[..., 1]
            cells = ((lower[..., 0] + x_side) % n, (lower[..., 1] + y_side) % n)
            np.add.at(canvas, cells, patch * x_share * y_share)
