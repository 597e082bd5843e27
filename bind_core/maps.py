"""The maps of a sample, made from particles: the one way to them, for training and for inference."""

import numpy as np
from numpy.typing import NDArray

from bind_core.mesh import ParticleMesh
from bind_core.projection import Backend, project_all, project_native
from bind_core.windows import Windows


def input_maps(
    dmo: ParticleMesh, center: NDArray[np.float64], rotation: NDArray[np.float64], windows: Windows, backend: Backend
) -> NDArray[np.float32]:
    """Return a sample's condition and context maps; training and inference both take them from here.

    Parameters
    ----------
    dmo : ParticleMesh
        Dark matter of the dark-matter-only run.
    center : (3,) array
        Centre of the halo in the box frame, in Mpc/h.
    rotation : (3, 3) array
        From the box frame to the projected frame.
    windows : Windows
        The geometry.
    backend : Backend
        Implementation of the projection.

    Returns
    -------
    (1 + n_context, npix, npix) float32 array
        The condition, then the context maps in ascending size; Msun/h per native pixel.
    """
    return project_all(dmo, center, rotation, windows, backend).astype(np.float32)


def target_map(
    particles: ParticleMesh,
    center: NDArray[np.float64],
    rotation: NDArray[np.float64],
    windows: Windows,
    backend: Backend,
) -> NDArray[np.float32]:
    """Return one channel of a sample's target: a component of the hydrodynamic run in the native window.

    Parameters are those of `input_maps`.

    Returns
    -------
    (npix, npix) float32 array
        Msun/h per native pixel.
    """
    return project_native(particles, center, rotation, windows, backend).astype(np.float32)
