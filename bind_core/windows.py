"""The windows of a sample: one native window around the halo and wider context windows around it.

Geometry, in the projected frame with the halo at its origin: native node ``i`` sits at ``i * pixel_size``
from the window's lower edge and the halo sits exactly on node ``resolution / 2``. A context window is
``factor`` times wider; its native grid has ``factor * resolution`` nodes of the same spacing, again with the
halo on the middle node, so that the native window is a crop of it. A context map holds the block means of that
grid.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: How far a ratio of window sizes may be from a whole number: sizes such as 0.1 are not exact in binary.
RATIO_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Windows:
    """Sizes of the projected windows, in Mpc/h whatever the box, and the number of pixels of every map.

    Parameters
    ----------
    native_size : float
        Side of the native window, Mpc/h.
    context_sizes : tuple of float
        Sides of the context windows, Mpc/h: ascending, whole multiples (at least 2) of `native_size`. May be
        empty.
    depth : float
        Depth along the line of sight, Mpc/h: particles with ``-depth/2 <= z' < depth/2`` are projected.
    resolution : int
        Pixels per side of every map; even, so that the halo sits on a node.

    Raises
    ------
    ValueError
        If a size is not positive and finite, a context size is not a whole multiple of the native size, the
        context sizes do not ascend, or the resolution is not a positive even number.
    """

    native_size: float = 6.25
    context_sizes: tuple[float, ...] = (12.5, 25.0, 50.0)
    depth: float = 50.0
    resolution: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.context_sizes, tuple) and isinstance(self.context_sizes, Iterable):
            object.__setattr__(self, "context_sizes", tuple(self.context_sizes))
        sizes = {"native_size": self.native_size, "depth": self.depth}
        sizes |= {f"context_sizes[{i}]": size for i, size in enumerate(self.context_sizes)}
        for name, size in sizes.items():
            if not (math.isfinite(size) and size > 0):
                raise ValueError(f"{name} must be a positive length in Mpc/h, found {size!r}")
        if self.resolution != int(self.resolution) or self.resolution <= 0 or self.resolution % 2:
            raise ValueError(
                f"resolution must be a positive even number of pixels, so that the halo sits on node "
                f"resolution / 2, found {self.resolution!r}"
            )
        for size in self.context_sizes:
            ratio = size / self.native_size
            if round(ratio) < 2 or abs(ratio - round(ratio)) > RATIO_TOLERANCE * ratio:
                raise ValueError(
                    f"each context size must be a whole multiple, at least 2, of the native size "
                    f"{self.native_size} Mpc/h, so that its pixels are blocks of native pixels; found {size} "
                    f"Mpc/h, which is {ratio:.6g} times as wide"
                )
        if any(b <= a for a, b in zip(self.context_sizes, self.context_sizes[1:], strict=False)):
            raise ValueError(f"context_sizes must ascend without repetition, found {self.context_sizes}")

    @property
    def pixel_size(self) -> float:
        """Spacing of the native nodes, Mpc/h."""
        return self.native_size / self.resolution

    @property
    def factors(self) -> tuple[int, ...]:
        """Native pixels per pixel and axis of each context map: its width in native windows."""
        return tuple(round(size / self.native_size) for size in self.context_sizes)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Sides of all windows, Mpc/h: the native one first, then the context windows."""
        return (self.native_size, *self.context_sizes)

    @property
    def native_only(self) -> "Windows":
        """The same native window and depth without context windows: what a target needs."""
        return Windows(self.native_size, (), self.depth, self.resolution)


def block_mean(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average a square map over blocks of pixels.

    Parameters
    ----------
    pixels : ndarray of shape (factor * n, factor * n)
    factor : int
        Pixels per block and axis.

    Returns
    -------
    ndarray of shape (n, n)
        Means of the blocks; a map of mass per native pixel keeps its unit.

    Raises
    ------
    ValueError
        If the map does not divide into such blocks.
    """
    return block_sum(pixels, factor) / factor**2


def block_sum(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Add up a map over blocks of ``factor x factor`` pixels; see `block_mean`."""
    rows, columns = pixels.shape
    if factor < 1 or rows % factor or columns % factor:
        raise ValueError(f"a map of {rows} x {columns} pixels does not divide into blocks of {factor} x {factor}")
    blocks = pixels.reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.sum(axis=(1, 3)))


def central_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the middle ``size x size`` pixels of a square map, such that middle node stays on middle node.

    Parameters
    ----------
    pixels : ndarray of shape (n, n)
    size : int
        At most n, and even where n is even.

    Raises
    ------
    ValueError
        If the crop is larger than the map or cannot be centred.
    """
    n = pixels.shape[0]
    if size > n or (n - size) % 2:
        raise ValueError(f"cannot crop the middle {size} x {size} pixels out of a map of {pixels.shape}")
    margin = (n - size) // 2
    return pixels[margin : margin + size, margin : margin + size]
