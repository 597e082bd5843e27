"""One sample: the aligned maps of one halo in one orientation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bind_core.windows import Windows

OUTPUT_VERSION = 1
"""Raised by one with every change of the code that makes other samples from the same inputs and settings."""

CHANNELS_KEY = "target_channels"
"""Array of text with the names of the target's channels; only where there are more than the three of every sample."""

IMPORTED_VERSION = 0
"""Output version of samples that another generator made: no code of ours makes them."""

TARGET_CHANNELS = ("dark_matter", "gas", "stars")
"""The hydrodynamic maps of every `Sample.target`, in order; further fields come after them."""


@dataclass(frozen=True)
class Sample:
    """The arrays of one sample; the keys of its ``.npz`` are the fields' names.

    Every pixel holds mass in Msun/h per native pixel, but for those of further fields. ``npix`` is the resolution, 128
    by default.
    """

    condition: NDArray[np.float32]
    """(npix, npix): dark matter of the dark-matter-only run in the native window."""
    target: NDArray[np.float32]
    """(n_target, npix, npix): dark matter, gas and stars of the hydrodynamic run in the native window, then further
    fields of it, where there are any."""
    large_scale: NDArray[np.float32]
    """(n_context, npix, npix): dark matter of the dark-matter-only run in the wider windows."""
    params: NDArray[np.float64]
    """(P,): the simulation's parameters, in the table's order."""
    halo_mass: float
    """M200c in Msun/h."""
    halo_center: NDArray[np.float64]
    """(3,): centre of the halo in the box frame, in Mpc/h."""
    rotation: NDArray[np.float64]
    """(3, 3): from the box frame to the projected frame."""
    target_channels: tuple[str, ...] = TARGET_CHANNELS
    """What the channels of `target` are called. Only an array of the ``.npz`` where there are further fields."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Self:
        """Return the sample whose arrays these are, by name; others are left out.

        Raises
        ------
        KeyError
            If one is missing.
        """
        values: dict[str, Any] = {name: arrays[name] for name in cls.numbers()}
        if CHANNELS_KEY in arrays:
            values[CHANNELS_KEY] = tuple(arrays[CHANNELS_KEY].tolist())
        return cls(**values | {"halo_mass": float(arrays["halo_mass"])})

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        """Return the names of the arrays of numbers, which every sample has."""
        return tuple(field.name for field in fields(cls) if field.name != CHANNELS_KEY)

    def arrays(self) -> dict[str, NDArray]:
        """Return the arrays by name, with the dtypes of the contract, in the contract's order."""
        further = {} if self.target_channels == TARGET_CHANNELS else {CHANNELS_KEY: np.array(self.target_channels)}
        return {
            "condition": np.asarray(self.condition, dtype=np.float32),
            "target": np.asarray(self.target, dtype=np.float32),
            "large_scale": np.asarray(self.large_scale, dtype=np.float32),
            "params": np.asarray(self.params, dtype=np.float64),
            "halo_mass": np.asarray(self.halo_mass, dtype=np.float64),
            "halo_center": np.asarray(self.halo_center, dtype=np.float64),
            "rotation": np.asarray(self.rotation, dtype=np.float64),
            **further,
        }

    def map_masses(self, windows: Windows) -> dict[str, float]:
        """Return the mass that each map's window holds, in Msun/h.

        A context map's pixels are means over native pixels, so its sum counts ``factor**2`` times.

        Parameters
        ----------
        windows : Windows
            The geometry that the maps were made with.

        Returns
        -------
        dict of str to float
            ``mass_condition``, ``mass_target_dark_matter``, ``mass_target_gas``, ``mass_target_stars`` and
            ``mass_large_scale_0``, … for the context windows in ascending size.
        """
        masses = {"mass_condition": _total(self.condition)}
        for channel, values in zip(TARGET_CHANNELS, self.target, strict=False):  # further fields are no masses
            masses[f"mass_target_{channel}"] = _total(values)
        for index, (factor, values) in enumerate(zip(windows.factors, self.large_scale, strict=True)):
            masses[f"mass_large_scale_{index}"] = factor**2 * _total(values)
        return masses


def _total(values: NDArray[np.float32]) -> float:
    return float(np.sum(values, dtype=np.float64))
