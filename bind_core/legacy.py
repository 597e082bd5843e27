"""How older data sets name their samples, and how they were oriented.

The older generator wrote ``sim_<simulation>_halo_<ordinal>_rot_<rotation>.npz`` with rotations from a seed formula, and
before that ``halo_<ordinal>_{xy,xz,yz}.npz`` along the axes of the box, in a folder per simulation. What it calls a
halo is its position among those above the mass threshold.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bind_core.windows import RATIO_TOLERANCE, Windows, block_mean

AXES: dict[str, NDArray[np.float64]] = {
    "xy": np.eye(3)[[0, 1, 2]],
    "xz": np.eye(3)[[0, 2, 1]],
    "yz": np.eye(3)[[1, 2, 0]],
}
"""Frames of axis-aligned samples: which axes of the box are x' and y'. That of xz is left-handed, as it was."""

_ROTATED = re.compile(r"sim_(?P<simulation>.+)_halo_(?P<halo>\d+)_rot_(?P<rotation>\d+)\.npz")
_ALIGNED = re.compile(r"halo_(?P<halo>\d+)_(?P<axes>xy|xz|yz)\.npz")
_FOLDER = re.compile(r"sim_(?P<simulation>.+)")


@dataclass(frozen=True)
class SampleName:
    """What a sample's file name says."""

    simulation: str
    """Without the prefix of its set."""
    halo: int
    rotation: int | None = None
    """None for an axis-aligned sample."""
    axes: str | None = None
    """``xy``, ``xz`` or ``yz``; None for a rotated sample."""


def parse_sample_name(path: Path) -> SampleName | None:
    """Return what the name of a file says, or None if it is not that of a sample.

    Parameters
    ----------
    path : Path
        Of an axis-aligned sample, the folder says which simulation it is of: ``sim_<simulation>``.
    """
    if match := _ROTATED.fullmatch(path.name):
        return SampleName(match["simulation"], int(match["halo"]), rotation=int(match["rotation"]))
    aligned, folder = _ALIGNED.fullmatch(path.name), _FOLDER.fullmatch(path.parent.name)
    if aligned and folder:
        return SampleName(folder["simulation"], int(aligned["halo"]), axes=aligned["axes"])
    return None


def context_from_projection(
    projection: NDArray[np.floating], center: NDArray[np.float64], box_size: float, windows: Windows
) -> NDArray[np.float32]:
    """Cut the context maps of a halo out of a projection of its whole box.

    Parameters
    ----------
    projection : (n, n) array
        Mass per pixel, with nodes at i * box_size / n.
    center : (2,) array
        Centre of the halo in the plane of the projection, Mpc/h. The nearest node stands for it: the maps may be off
        by half a pixel.
    box_size : float
        Mpc/h.
    windows : Windows
        Of the maps. Their native pixels must be those of the projection.

    Returns
    -------
    (n_context, npix, npix) float32 array
        Mass per native pixel, averaged over the pixels of each map.

    Raises
    ------
    ValueError
        If the projection is no square map, or its pixels have another size.
    """
    n = len(projection)
    if projection.ndim != 2 or projection.shape != (n, n):
        raise ValueError(f"expected a square map, found shape {projection.shape}")
    pixel = box_size / n
    if abs(pixel - windows.pixel_size) > RATIO_TOLERANCE * windows.pixel_size:
        expected = box_size / windows.pixel_size
        raise ValueError(
            f"its {n} pixels on {box_size:g} Mpc/h are {pixel:.6g} Mpc/h wide; expected {windows.pixel_size:.6g} "
            f"Mpc/h, {expected:.6g} pixels"
        )
    node = np.round(center / pixel).astype(int)
    maps = []
    for factor in windows.factors:
        side = factor * windows.resolution
        rows, columns = ((np.arange(side) - side // 2 + node[axis]) % n for axis in (0, 1))
        maps.append(block_mean(projection[np.ix_(rows, columns)].astype(np.float64), factor))
    shape = (0, windows.resolution, windows.resolution)
    return np.array(maps, dtype=np.float32) if maps else np.empty(shape, dtype=np.float32)
