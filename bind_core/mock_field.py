"""The linear density field of a mock universe, and the displacements that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bind_core.content import CRITICAL_DENSITY

Floats = NDArray[np.floating]

# Relative slack when comparing float32 numbers.
_ROUNDING = 1e-5
_TABLE_POINTS = 1024
# Wavenumbers (h/Mpc) over which sigma8 is integrated, and the radius (Mpc/h) of its spheres.
_VARIANCE_RANGE = (1e-4, 1e2)
_VARIANCE_RADIUS = 8.0


@dataclass(frozen=True)
class MockCosmology:
    """What the linear power spectrum and the densities depend on. Flat, with negligible radiation.

    Parameters
    ----------
    omega_matter, omega_baryon : float
        Density parameters of all matter and of baryons today.
    hubble : float
        H0 in 100 km/s/Mpc.
    sigma8 : float
        Linear rms fluctuation in spheres of 8 Mpc/h today.
    spectral_index : float
        Slope n_s of the primordial power spectrum.
    """

    omega_matter: float = 0.3
    omega_baryon: float = 0.049
    hubble: float = 0.6711
    sigma8: float = 0.8
    spectral_index: float = 0.9624

    @property
    def matter_density(self) -> float:
        """Mean density of all matter, (Msun/h) / (Mpc/h)^3."""
        return self.omega_matter * CRITICAL_DENSITY


def linear_power(wavenumber: Floats, cosmology: MockCosmology) -> Floats:
    """Linear matter power spectrum today, without baryon wiggles.

    Parameters
    ----------
    wavenumber : ndarray
        h/Mpc, > 0.
    cosmology : MockCosmology
        Sets shape and amplitude.

    Returns
    -------
    ndarray
        Power in (Mpc/h)^3, of the shape of `wavenumber`.

    Notes
    -----
    Transfer function of Bardeen, Bond, Kaiser & Szalay (1986), eq. G3, with the shape parameter of Sugiyama (1995),
    normalised by the variance in top-hat spheres of 8 Mpc/h.
    """
    k = np.geomspace(*_VARIANCE_RANGE, _TABLE_POINTS)
    x = _VARIANCE_RADIUS * k
    top_hat = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
    variance = np.trapezoid(k**3 * _unnormalised_power(k, cosmology) * top_hat**2 / (2.0 * np.pi**2), np.log(k))
    return _unnormalised_power(wavenumber, cosmology) * (cosmology.sigma8**2 / variance)


def _unnormalised_power(k: Floats, cosmology: MockCosmology) -> Floats:
    shape = cosmology.omega_matter * cosmology.hubble
    shape *= np.exp(-cosmology.omega_baryon * (1.0 + np.sqrt(2.0 * cosmology.hubble) / cosmology.omega_matter))
    q = k / shape
    transfer = np.log1p(2.34 * q) / (2.34 * q)
    transfer *= (1.0 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4) ** -0.25
    return k**cosmology.spectral_index * transfer**2


class LinearField:
    """A Gaussian random density contrast today on a periodic grid, and its Zel'dovich displacements.

    Parameters
    ----------
    cosmology : MockCosmology
        Sets the power spectrum.
    box_size : float
        Side of the periodic box, Mpc/h.
    cells : int
        Nodes of the grid along a side; node i is at i * box_size / cells.
    rng : numpy.random.Generator
        Gives the phases and amplitudes, once.

    Notes
    -----
    Fourier modes are numpy's, in complex64: 16 bytes a node at the peak, 12 more for each displacement held.
    """

    def __init__(self, cosmology: MockCosmology, *, box_size: float, cells: int, rng: np.random.Generator) -> None:
        self._box_size = box_size
        self._cells = cells
        modes = np.fft.rfftn(rng.standard_normal(self.shape, dtype=np.float32))
        fundamental = 2.0 * np.pi / box_size
        table_k = np.geomspace(0.5 * fundamental, fundamental * cells, _TABLE_POINTS)
        table = np.sqrt(linear_power(table_k, cosmology) * (cells / box_size) ** 3)
        for plane, k_squared in zip(modes, self._k_squared, strict=True):
            plane *= np.interp(np.sqrt(k_squared), table_k, table, right=0.0).astype(np.float32)
        modes[0, 0, 0] = 0.0
        self._modes = modes.astype(np.complex64, copy=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the grid."""
        return (self._cells, self._cells, self._cells)

    def density(self, smoothing: float) -> NDArray[np.float32]:
        """Linear density contrast.

        Parameters
        ----------
        smoothing : float
            Standard deviation of the Gaussian that it is smoothed with, Mpc/h.

        Returns
        -------
        ndarray of shape (cells, cells, cells), float32
            Density over its mean, less one, on the grid's nodes.
        """
        return np.fft.irfftn(self._smoothed(smoothing), s=self.shape, axes=(0, 1, 2)).astype(np.float32, copy=False)

    def displacement(self, smoothing: float) -> NDArray[np.float32]:
        """Zel'dovich displacement: minus its divergence is the density contrast.

        Parameters
        ----------
        smoothing : float
            Standard deviation of the Gaussian that the density is smoothed with, Mpc/h.

        Returns
        -------
        ndarray of shape (3, cells, cells, cells), float32
            Displacement along each axis on the grid's nodes, Mpc/h.
        """
        potential = 1j * self._smoothed(smoothing) / self._k_squared
        field = np.empty((3, *self.shape), dtype=np.float32)
        nyquist = np.pi * self._cells / self._box_size
        for axis, wavenumbers in enumerate(self._wavenumbers()):
            # the gradient of a Nyquist mode would not be real
            k = np.where(np.abs(wavenumbers) < (1.0 - _ROUNDING) * nyquist, wavenumbers, np.float32(0.0))
            field[axis] = np.fft.irfftn(k * potential, s=self.shape, axes=(0, 1, 2))
        return field

    def _smoothed(self, length: float) -> NDArray[np.complex64]:
        return self._modes * np.exp(-0.5 * length**2 * self._k_squared)

    def _wavenumbers(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Wavenumbers along the axes (h/Mpc), shaped to broadcast over the Fourier grid."""
        fundamental = np.float32(2.0 * np.pi / self._box_size)
        full = fundamental * np.fft.fftfreq(self._cells, 1.0 / self._cells).astype(np.float32)
        half = fundamental * np.arange(self._cells // 2 + 1, dtype=np.float32)
        return full[:, None, None], full[None, :, None], half[None, None, :]

    @cached_property
    def _k_squared(self) -> NDArray[np.float32]:
        kx, ky, kz = self._wavenumbers()
        squared = kx**2 + ky**2 + kz**2
        squared[0, 0, 0] = 1.0  # of no effect: the mode of the mean is zero
        return squared
