"""Positions into the box, as a compiled kernel.

Whoever reads particles imports it when it comes to that: plans and questions read headers and catalogues only, and
need not wait for the compiler to load.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def into_box(raw, factor, box_size, tolerance, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Scale positions into `out`, wrapped into [0, box_size); return how many are wrong and the extremes."""
    non_finite = 0
    outside = 0
    lowest = np.inf
    highest = -np.inf
    single_box = np.float32(box_size)
    for i in range(raw.shape[0]):
        finite = True
        inside = True
        for k in range(3):
            x = np.float64(raw[i, k]) * factor
            if not np.isfinite(x):
                finite = False
                out[i, k] = np.float32(0.0)
                continue
            lowest = min(lowest, x)
            highest = max(highest, x)
            if x < -tolerance or x > box_size + tolerance:
                inside = False
            x -= box_size * np.floor(x / box_size)
            single = np.float32(x)
            # Also where x is so far out that the difference has no digits left: what follows indexes a mesh.
            out[i, k] = single if np.float32(0.0) <= single < single_box else np.float32(0.0)
        if not finite:
            non_finite += 1
        elif not inside:
            outside += 1
    return non_finite, outside, lowest, highest
