"""Compiled kernels of the fused projection: walk the cells that a window crosses, rotate, deposit.

The algorithm, from the outside in:

1. `deposit_window` walks the *unwrapped* cells: integer triples (I, J, K) that tile all of space, of which
   (I mod n, J mod n, K mod n) is a cell of the mesh while the quotients number the periodic image. For every I
   the range of J, and for every (I, J) the range of K, in which cell centres can touch the window follow from
   linear inequalities (Fourier-Motzkin elimination): only rows that cross the window are visited, in whatever
   image, in boxes smaller or larger than the window.
2. A row is cut into pieces that belong to one *level* (the narrowest window that the cell touches) and that
   lie wholly inside the depth or not. Each level has a grid with the coarsest pixel from which all wider maps
   can still be summed up, and a margin wide enough for every cell of the level: the bulk needs no test at all.
   Pieces that straddle the depth limit are sieved first, with z' in the very expression of the reference.
3. Particles are handled in blocks: a vectorised pass computes pixel and weights, a scalar pass deposits. CIC
   on native nodes followed by a sum over blocks of g native pixels shares a particle between two coarse pixels
   of an axis only if it lies between the last node of one block and the first of the next; else it is one add.

Grids and sums are float64, and so are coordinates, except where the caller knows that a level's pixels hold
enough particles for single precision, relative to a nearby particle, to be harmless. There a particle is not
shared out at all: CIC is linear in each of its two fractions u and v, so the four shares of all particles of a
pixel follow from four sums over them, of 1, u, v and uv. These lie side by side, and one vector add per particle
takes the place of four scattered ones, or of the branch that avoids them. They are integers, so they are exact
and independent of order. What bounds the speed is that read-modify-write (about half of the time), then the
vectorised pass; the knob worth turning is the number of cells per side of the mesh.

All parts of the kernel stand in this one file: numba's cache is renewed when the file of a compiled function changes,
and does not look at the files of what that function calls.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

#: Particles per block: their pixel numbers and weights stay in the first-level cache.
BLOCK = 512
#: Blocks are rounded up to this many particles, a multiple of what a vector register holds.
VECTOR = 16
#: Native pixels per pixel and axis from which on most particles lie in one pixel.
COMPACT_BLOCK = 3
#: Single-precision fractions are rounded to this many bits, so that the product of two fits into an int32.
FRACTION_BITS = 15
#: Sums over the particles of a pixel: of 1, u, v and uv.
MOMENTS = 4
#: Bytes.
CACHE_LINE = 64
#: Added to every half-width of the walk, Mpc/h: far above rounding, so that no cell is missed.
WALK_SLACK = 1e-7

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
_inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
# Untyped: its annotations are those of a call from Python, with the compiler's context as the first argument
_intrinsic: Any = intrinsic
# Multiply-adds may be fused: faster, and at least as accurate
_contracted = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nnan", "nsz"})


@_inlined
def _interval(
    offset: float, slope: float, half: float, low: float, high: float
) -> tuple[float, float]:  # pragma: no cover - compiled
    """Narrow [low, high] to the t with |offset + slope * t| <= half; an empty result has low > high."""
    if half < 0.0:
        return 1.0, 0.0
    if abs(slope) < 1e-9:
        if abs(offset) > half + WALK_SLACK:
            return 1.0, 0.0
        return low, high
    a = (-half - offset) / slope
    b = (half - offset) / slope
    return max(low, min(a, b)), min(high, max(a, b))


@_compiled
def _aligned(n: int, dtype: type) -> np.ndarray:  # pragma: no cover - compiled
    """Return an uninitialised array that starts on a cache line, so that no vector store crosses one."""
    values: np.ndarray = np.empty(n + CACHE_LINE // 4, dtype=dtype)
    start = (-values.ctypes.data % CACHE_LINE) // values.itemsize
    return values[start : start + n]


@_contracted
def _coordinates(
    positions: np.ndarray,
    axes: np.ndarray,
    block_size: float,
    stride: float,
    pixel: np.ndarray,
    up: np.ndarray,
    vp: np.ndarray,
    both_lower: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Fill the pixel numbers and CIC fractions of a block of particles; vectorised by the compiler.

    Parameters
    ----------
    positions : ndarray of shape (3 n,)
        float32, Mpc/h, box frame.
    axes : ndarray of shape (2, 4)
        Row a gives the grid coordinate along a as ``axes[a, :3] . x + axes[a, 3]``, which is >= 0.
    block_size : float
        Native pixels per pixel of the grid and axis (g).
    stride : float
        Pixels per side of the grid.
    pixel : ndarray of shape (>= n,)
        int32; receives the flat number of the lower pixel.
    up, vp : ndarray of shape (>= n,)
        Receive the fractions that go to the upper pixel of axis 0 and of axis 1.
    both_lower : ndarray of shape (>= n,)
        Receives ``(1 - up) * (1 - vp)``: 1 if the particle lies in one pixel.
    """
    a0, a1, a2, a3 = axes[0, 0], axes[0, 1], axes[0, 2], axes[0, 3]
    b0, b1, b2, b3 = axes[1, 0], axes[1, 1], axes[1, 2], axes[1, 3]
    last = block_size - 1.0
    for i in range(positions.size // 3):
        x = np.float64(positions[3 * i])
        y = np.float64(positions[3 * i + 1])
        z = np.float64(positions[3 * i + 2])
        u = a0 * x + (a1 * y + (a2 * z + a3))
        v = b0 * x + (b1 * y + (b2 * z + b3))
        floor_u = np.floor(u)
        floor_v = np.floor(v)
        # exact in float64, and one conversion instead of two
        pixel[i] = np.int32(floor_u * stride + floor_v)
        upper_u = (u - floor_u) * block_size - last
        upper_v = (v - floor_v) * block_size - last
        upper_u = upper_u if upper_u > 0.0 else 0.0
        upper_v = upper_v if upper_v > 0.0 else 0.0
        up[i] = upper_u
        vp[i] = upper_v
        both_lower[i] = (1.0 - upper_u) * (1.0 - upper_v)


@_contracted
def _coordinates_single(
    positions: np.ndarray,
    axes: np.ndarray,
    block_size: float,
    stride: int,
    pixel: np.ndarray,
    up: np.ndarray,
    vp: np.ndarray,
    both_upper: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Do what `_coordinates` does in single precision, twice as fast, relative to the block's first particle.

    Neighbours in memory are neighbours in space, so the offsets are short: for a block that spans r native
    pixels, coordinates are good to about 2e-7 r of them. Parameters as for `_coordinates`, but `up` and `vp` are
    int32, in units of ``2**-FRACTION_BITS``, and `both_upper` receives their product.
    """
    x0, y0, z0 = positions[0], positions[1], positions[2]
    u0 = axes[0, 0] * x0 + axes[0, 1] * y0 + axes[0, 2] * z0 + axes[0, 3]
    v0 = axes[1, 0] * x0 + axes[1, 1] * y0 + axes[1, 2] * z0 + axes[1, 3]
    base = np.int32(np.int64(np.floor(u0)) * stride + np.int64(np.floor(v0)))
    a0, a1, a2 = np.float32(axes[0, 0]), np.float32(axes[0, 1]), np.float32(axes[0, 2])
    b0, b1, b2 = np.float32(axes[1, 0]), np.float32(axes[1, 1]), np.float32(axes[1, 2])
    a3 = np.float32(u0 - np.floor(u0))
    b3 = np.float32(v0 - np.floor(v0))
    zero = np.float32(0.0)
    size = np.float32(block_size * 2.0**FRACTION_BITS)
    # Half a unit less, so that cutting off rounds to nearest
    last = np.float32((block_size - 1.0) * 2.0**FRACTION_BITS - 0.5)
    step = np.float32(stride)
    for i in range(positions.size // 3):
        x = positions[3 * i] - x0
        y = positions[3 * i + 1] - y0
        z = positions[3 * i + 2] - z0
        u = a0 * x + (a1 * y + (a2 * z + a3))
        v = b0 * x + (b1 * y + (b2 * z + b3))
        floor_u = np.floor(u)
        floor_v = np.floor(v)
        # exact: grids have fewer than 2^24 pixels
        pixel[i] = np.int32(floor_u * step + floor_v) + base
        upper_u = (u - floor_u) * size - last
        upper_v = (v - floor_v) * size - last
        fixed_u = np.int32(upper_u if upper_u > zero else zero)
        fixed_v = np.int32(upper_v if upper_v > zero else zero)
        up[i] = fixed_u
        vp[i] = fixed_v
        both_upper[i] = fixed_u * fixed_v


@_compiled
def _deposit_spread(
    grid: np.ndarray,
    masses: np.ndarray,
    weighted: bool,
    pixel: np.ndarray,
    up: np.ndarray,
    vp: np.ndarray,
    both_lower: np.ndarray,
    n: int,
    stride: np.uint32,
) -> None:  # pragma: no cover - compiled
    """Add a block of particles that mostly share four pixels."""
    for i in range(n):
        m = np.float64(masses[i]) if weighted else 1.0
        j = pixel[i]
        u = np.float64(up[i])
        v = np.float64(vp[i])
        uv = u * v
        grid[j] += m * both_lower[i]
        grid[j + np.uint32(1)] += m * (v - uv)
        grid[j + stride] += m * (u - uv)
        grid[j + stride + np.uint32(1)] += m * uv


@_compiled
def _deposit_compact(
    grid: np.ndarray,
    masses: np.ndarray,
    weighted: bool,
    pixel: np.ndarray,
    up: np.ndarray,
    vp: np.ndarray,
    both_lower: np.ndarray,
    listed: np.ndarray,
    n: int,
    stride: np.uint32,
) -> None:  # pragma: no cover - compiled
    """Add a block of particles that mostly lie in one pixel; the others are listed and visited again."""
    n_listed = np.uint64(0)
    for i in range(n):
        m = np.float64(masses[i]) if weighted else 1.0
        grid[pixel[i]] += m * both_lower[i]
        # no branch to mispredict: an entry that does not count is overwritten by the next
        listed[n_listed] = np.uint32(i)
        n_listed += np.uint64(both_lower[i] < 1.0)
    for k in range(n_listed):
        i = listed[k]
        m = np.float64(masses[i]) if weighted else 1.0
        j = pixel[i]
        u = np.float64(up[i])
        v = np.float64(vp[i])
        uv = u * v
        grid[j + np.uint32(1)] += m * (v - uv)
        grid[j + stride] += m * (u - uv)
        grid[j + stride + np.uint32(1)] += m * uv


#: Lanes of two vectors of eight, numbered through, that interleave the lower or upper halves of their four
#: lanes each: single values, then pairs of values. Lanes never change their half, which would cost more.
LOWER_SINGLES, UPPER_SINGLES = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
LOWER_PAIRS, UPPER_PAIRS = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)


@_intrinsic
def _add_eight(typing_context: Any, moments: Any, pixel: Any, up: Any, vp: Any, both_upper: Any, start: Any) -> Any:
    """Add the eight particles from `start` on to the moments of their pixels, each by one vector add.

    Written in the compiler's own terms, because it finds neither the transposition nor the vectors by itself.
    Equivalent to, for i from start to start + 7,
    ``moments[4 * pixel[i] + (0, 1, 2, 3)] += (1, up[i], vp[i], both_upper[i])``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:-1], arguments[:-1], strict=True)
        ]
        first = arguments[-1]
        lane, index = ir.IntType(32), ir.IntType(64)
        eight, wide = ir.VectorType(lane, 8), ir.VectorType(index, MOMENTS)

        def loaded(array: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(array, [first]), eight.as_pointer()), align=4)

        def shuffled(a: Any, b: Any, lanes: tuple[int, ...]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(lane, len(lanes)), list(lanes)))

        ones = ir.Constant(eight, [1] * 8)
        u, v, uv = (loaded(array) for array in arrays[2:])
        # Of four lanes each: (1, u, 1, u) and (v, uv, v, uv); then (1, u, v, uv), of particles k and k + 4
        particles = []
        for singles in (LOWER_SINGLES, UPPER_SINGLES):
            one_u, v_uv = shuffled(ones, u, singles), shuffled(v, uv, singles)
            particles += [shuffled(one_u, v_uv, pairs) for pairs in (LOWER_PAIRS, UPPER_PAIRS)]
        all_moments = builder.bitcast(arrays[0], wide.as_pointer())
        for k in range(8):
            lanes = tuple(range(MOMENTS * (k // 4), MOMENTS * (k // 4 + 1)))
            own = builder.zext(shuffled(particles[k % 4], particles[k % 4], lanes), wide)
            number = builder.load(builder.gep(arrays[1], [builder.add(first, ir.Constant(index, k))]))
            place = builder.gep(all_moments, [builder.zext(number, index)])
            builder.store(builder.add(builder.load(place, align=8), own), place, align=8)
        return context.get_dummy_value()

    return numba.types.void(moments, pixel, up, vp, both_upper, start), generate


@_intrinsic
def _prefetch(typing_context: Any, values: Any, index: Any) -> Any:
    """Ask for the cache line of ``values[index]``, which may lie beyond the end: nothing is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # to read, into all levels of the cache, data
        builder.call(function, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return numba.types.void(values, index), generate


@_compiled
def _deposit_moments(
    moments: np.ndarray,
    pixel: np.ndarray,
    up: np.ndarray,
    vp: np.ndarray,
    both_upper: np.ndarray,
    n: int,
    upcoming: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Add a block of particles to the moments of their lower pixels, while the `upcoming` block is fetched."""
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        # The processor's own look-ahead stops at the end of each page of memory, which a block crosses
        _prefetch(upcoming, 3 * i)
        _prefetch(upcoming, 3 * i + CACHE_LINE // 4)
        _add_eight(moments, pixel, up, vp, both_upper, i)
    for i in range(whole, n):
        j = np.uint64(MOMENTS) * np.uint64(pixel[i])
        moments[j] += 1
        moments[j + np.uint64(1)] += up[i]
        moments[j + np.uint64(2)] += vp[i]
        moments[j + np.uint64(3)] += both_upper[i]


@_compiled
def _deposit_run(
    positions: np.ndarray,
    masses: np.ndarray,
    weighted: bool,
    first: int,
    last: int,
    axes: np.ndarray,
    block_size: int,
    stride: int,
    single: bool,
    grid: np.ndarray,
    moments: np.ndarray,
    pixel: np.ndarray,
    fractions: np.ndarray,
    fixed_fractions: np.ndarray,
    listed: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Deposit the consecutive particles `first` to `last`, all of which lie within the padded grid."""
    unsigned = pixel.view(np.uint32)
    step = np.uint32(stride)
    for start in range(first, last, BLOCK):
        n = min(last - start, BLOCK)
        # Whole vectors: what is computed beyond the block's end is not deposited
        stop = min(start + (n + VECTOR - 1) // VECTOR * VECTOR, positions.size // 3)
        block = positions[3 * start : 3 * stop]
        mass = masses[start : start + n] if weighted else masses
        if single:
            up, vp, both_upper = fixed_fractions[0], fixed_fractions[1], fixed_fractions[2]
            _coordinates_single(block, axes, float(block_size), stride, pixel, up, vp, both_upper)
            _deposit_moments(moments, unsigned, up, vp, both_upper, n, positions[3 * stop :])
        else:
            u, v, w = fractions[0], fractions[1], fractions[2]
            _coordinates(block, axes, float(block_size), float(stride), pixel, u, v, w)
            if block_size < COMPACT_BLOCK:
                _deposit_spread(grid, mass, weighted, unsigned, u, v, w, n, step)
            else:
                _deposit_compact(grid, mass, weighted, unsigned, u, v, w, listed, n, step)


@_compiled
def _sieve(
    positions: np.ndarray,
    masses: np.ndarray,
    weighted: bool,
    center: np.ndarray,
    shift: np.ndarray,
    rotation: np.ndarray,
    half_depth: float,
    outer: float,
    inner: float,
    depths: np.ndarray,
    kept_positions: np.ndarray,
    kept_masses: np.ndarray,
) -> int:  # pragma: no cover - compiled
    """Copy the particles that lie inside the depth and between two squares; return their number.

    No contraction into fused multiply-adds here: z' must be the reference's to the bit, so that a particle on
    the depth limit falls on the same side.

    Parameters
    ----------
    positions, masses : ndarray of shape (3 n,), (n,)
        n <= BLOCK.
    weighted : bool
    center, shift : ndarray of shape (3,)
        Halo and periodic image, Mpc/h.
    rotation : ndarray of shape (3, 3)
    half_depth : float
        Mpc/h; keeps ``-half_depth <= z' < half_depth``.
    outer, inner : float
        Mpc/h; keeps ``inner <= max(|x'|, |y'|) < outer``. ``outer = inf`` keeps all.
    depths : ndarray of shape (BLOCK,)
        Work space.
    kept_positions, kept_masses : ndarray of shape (3 BLOCK,), (BLOCK,)
        Receive the kept particles.
    """
    c0, c1, c2 = center[0], center[1], center[2]
    s0, s1, s2 = shift[0], shift[1], shift[2]
    z0, z1, z2 = rotation[2, 0], rotation[2, 1], rotation[2, 2]
    n = positions.size // 3
    for i in range(n):
        d0 = (np.float64(positions[3 * i]) - c0) + s0
        d1 = (np.float64(positions[3 * i + 1]) - c1) + s1
        d2 = (np.float64(positions[3 * i + 2]) - c2) + s2
        depths[i] = z0 * d0 + z1 * d1 + z2 * d2
    if outer < np.inf:
        for i in range(n):
            d0 = (np.float64(positions[3 * i]) - c0) + s0
            d1 = (np.float64(positions[3 * i + 1]) - c1) + s1
            d2 = (np.float64(positions[3 * i + 2]) - c2) + s2
            x = rotation[0, 0] * d0 + rotation[0, 1] * d1 + rotation[0, 2] * d2
            y = rotation[1, 0] * d0 + rotation[1, 1] * d1 + rotation[1, 2] * d2
            distance = max(abs(x), abs(y))
            if not (inner <= distance < outer):
                depths[i] = np.inf
    kept = np.uint64(0)
    for i in range(n):
        kept_positions[np.uint64(3) * kept] = positions[3 * i]
        kept_positions[np.uint64(3) * kept + np.uint64(1)] = positions[3 * i + 1]
        kept_positions[np.uint64(3) * kept + np.uint64(2)] = positions[3 * i + 2]
        if weighted:
            kept_masses[kept] = masses[i]
        z = depths[i]
        kept += np.uint64((z >= -half_depth) & (z < half_depth))
    return int(kept)


@_compiled
def deposit_window(
    positions: np.ndarray,
    masses: np.ndarray,
    weighted: bool,
    cell_starts: np.ndarray,
    cells: int,
    box_size: float,
    center: np.ndarray,
    rotation: np.ndarray,
    half_depth: float,
    half_widths: np.ndarray,
    pixel_size: float,
    block_sizes: np.ndarray,
    half_grids: np.ndarray,
    grid_starts: np.ndarray,
    grids: np.ndarray,
    moments: np.ndarray,
    single: np.ndarray,
    by_particle: bool,
) -> None:  # pragma: no cover - compiled
    """Deposit all periodic images of a mesh of particles into the nested grids of a stack of windows.

    Parameters
    ----------
    positions : ndarray of shape (3 n,)
        float32, Mpc/h, in cell order.
    masses : ndarray of shape (n,)
        float32, any unit; ignored (may be empty) unless `weighted`.
    weighted : bool
        If false, every particle deposits one.
    cell_starts : ndarray of shape (cells**3 + 1,)
        int64.
    cells : int
        Cells per side of the mesh.
    box_size : float
        Mpc/h.
    center : ndarray of shape (3,)
        Halo, Mpc/h, box frame.
    rotation : ndarray of shape (3, 3)
        Box frame -> projected frame.
    half_depth : float
        Mpc/h.
    half_widths : ndarray of shape (levels,)
        Mpc/h, ascending: particles with max(|x'|, |y'|) beyond the k-th contribute nothing to window k.
    pixel_size : float
        Mpc/h.
    block_sizes : ndarray of shape (levels,)
        int64; native pixels per pixel and axis of each level's grid.
    half_grids : ndarray of shape (levels,)
        int64; pixels from each grid's lower edge to the halo. The grid has twice as many per side.
    grid_starts : ndarray of shape (levels + 1,)
        int64; where each level's grid starts in `grids`.
    grids : ndarray of shape (grid_starts[-1],)
        float64; added to, where a level is not `single`.
    moments : ndarray of shape (MOMENTS * grid_starts[-1],)
        int64; added to, where a level is `single`. Sums over the particles of a pixel; see `grid_from_moments`.
    single : ndarray of shape (levels,)
        bool; whether single precision is good enough for a level's coordinates. For particles of one mass only.
    by_particle : bool
        Decide the level by particle instead of by cell: for cells too wide to pad grids with.
    """
    levels = half_widths.size
    cell_size = box_size / cells
    pixel = _aligned(BLOCK, np.int32)
    fractions = _aligned(3 * BLOCK, np.float64).reshape(3, BLOCK)
    fixed_fractions = _aligned(3 * BLOCK, np.int32).reshape(3, BLOCK)
    listed = _aligned(BLOCK + 1, np.uint32)
    depths = _aligned(BLOCK, np.float64)
    # zeros, because whole vectors of it are read
    kept_positions = np.zeros(3 * BLOCK + 3, dtype=np.float32)
    kept_masses = np.zeros(BLOCK + 1, dtype=np.float32)
    axes = np.empty((levels, 2, 4))
    shift = np.empty(3)
    cuts = np.empty(4, dtype=np.int64)

    # Half-widths, along the projected axes, within which a cell's centre must lie for the cell to touch
    extent = np.empty(3)
    for a in range(3):
        extent[a] = 0.5 * cell_size * (abs(rotation[a, 0]) + abs(rotation[a, 1]) + abs(rotation[a, 2]))
        extent[a] = extent[a] * (1.0 + 1e-6) + WALK_SLACK
    reach = np.empty((levels, 3))
    for k in range(levels):
        reach[k, 0] = half_widths[k] + extent[0]
        reach[k, 1] = half_widths[k] + extent[1]
        reach[k, 2] = half_depth + extent[2]
    widest = reach[levels - 1]
    clear_depth = half_depth - extent[2]
    bound = np.empty(3)
    for i in range(3):
        bound[i] = widest[0] * abs(rotation[0, i]) + widest[1] * abs(rotation[1, i]) + widest[2] * abs(rotation[2, i])

    low = np.empty(levels, dtype=np.int64)
    high = np.empty(levels, dtype=np.int64)
    offset = np.empty(3)
    # t in cell units: the centre of cell I lies at (I + 0.5) * cell_size - center
    first_i = int(np.ceil((center[0] - bound[0]) / cell_size - 0.5))
    last_i = int(np.floor((center[0] + bound[0]) / cell_size - 0.5))
    for cell_i in range(first_i, last_i + 1):
        dx = (cell_i + 0.5) * cell_size - center[0]
        image_i = cell_i // cells
        shift[0] = image_i * box_size
        # Range of y from each pair of slabs, z eliminated
        y_low, y_high = -bound[1], bound[1]
        for a in range(2):
            for b in range(a + 1, 3):
                fa, fb = rotation[b, 2], rotation[a, 2]
                y_low, y_high = _interval(
                    (fa * rotation[a, 0] - fb * rotation[b, 0]) * dx,
                    fa * rotation[a, 1] - fb * rotation[b, 1],
                    abs(fa) * widest[a] + abs(fb) * widest[b],
                    y_low,
                    y_high,
                )
        if y_low > y_high:
            continue
        first_j = int(np.ceil((center[1] + y_low) / cell_size - 0.5))
        last_j = int(np.floor((center[1] + y_high) / cell_size - 0.5))
        for cell_j in range(first_j, last_j + 1):
            dy = (cell_j + 0.5) * cell_size - center[1]
            image_j = cell_j // cells
            shift[1] = image_j * box_size
            row = ((cell_i - image_i * cells) * cells + (cell_j - image_j * cells)) * cells
            for a in range(3):
                offset[a] = rotation[a, 0] * dx + rotation[a, 1] * dy
            z_low, z_high = _interval(offset[2], rotation[2, 2], widest[2], -bound[2], bound[2])
            for back in range(levels):
                k = levels - 1 - back
                if z_low <= z_high:
                    z_low, z_high = _interval(offset[0], rotation[0, 2], reach[k, 0], z_low, z_high)
                if z_low <= z_high:
                    z_low, z_high = _interval(offset[1], rotation[1, 2], reach[k, 1], z_low, z_high)
                if z_low <= z_high:
                    low[k] = int(np.ceil((center[2] + z_low) / cell_size - 0.5))
                    high[k] = int(np.floor((center[2] + z_high) / cell_size - 0.5)) + 1
                if z_low > z_high or low[k] >= high[k]:
                    z_low, z_high = 1.0, 0.0
                    low[k] = high[k] = low[k + 1] if back else 0
            if low[levels - 1] >= high[levels - 1]:
                continue
            # Cells wholly inside the depth
            clear_low, clear_high = _interval(
                offset[2], rotation[2, 2], clear_depth - 2.0 * WALK_SLACK, -bound[2], bound[2]
            )
            clear_first, clear_last = 0, 0
            if clear_low <= clear_high and not by_particle:
                clear_first = int(np.ceil((center[2] + clear_low) / cell_size - 0.5))
                clear_last = int(np.floor((center[2] + clear_high) / cell_size - 0.5)) + 1
            for k in range(levels):
                if by_particle:
                    pieces = 1
                    cuts[0], cuts[1] = low[levels - 1], high[levels - 1]
                elif k == 0 or low[k - 1] >= high[k - 1]:
                    pieces = 1
                    cuts[0], cuts[1] = low[k], high[k]
                else:
                    pieces = 2
                    cuts[0], cuts[1], cuts[2], cuts[3] = low[k], low[k - 1], high[k - 1], high[k]
                grid = grids[grid_starts[k] : grid_starts[k + 1]]
                sums = moments[MOMENTS * grid_starts[k] : MOMENTS * grid_starts[k + 1]]
                for piece in range(pieces):
                    cell_k, end = cuts[2 * piece], cuts[2 * piece + 1]
                    while cell_k < end:
                        image_k = cell_k // cells
                        stop = min(end, (image_k + 1) * cells)
                        inside = clear_first <= cell_k < clear_last
                        if inside:
                            stop = min(stop, clear_last)
                        elif cell_k < clear_first < stop and clear_first < clear_last:
                            stop = clear_first
                        first = cell_starts[row + cell_k - image_k * cells]
                        last = cell_starts[row + stop - image_k * cells]
                        cell_k = stop
                        if first == last:
                            continue
                        shift[2] = image_k * box_size
                        scale = 1.0 / (pixel_size * block_sizes[k])
                        for a in range(2):
                            total = 0.0
                            for i in range(3):
                                axes[k, a, i] = rotation[a, i] * scale
                                total += rotation[a, i] * (shift[i] - center[i])
                            axes[k, a, 3] = total * scale + half_grids[k]
                        if inside:
                            _deposit_run(
                                positions,
                                masses,
                                weighted,
                                first,
                                last,
                                axes[k],
                                block_sizes[k],
                                2 * half_grids[k],
                                single[k],
                                grid,
                                sums,
                                pixel,
                                fractions,
                                fixed_fractions,
                                listed,
                            )
                            continue
                        for start in range(first, last, BLOCK):
                            finish = min(start + BLOCK, last)
                            kept = _sieve(
                                positions[3 * start : 3 * finish],
                                masses[start:finish] if weighted else masses,
                                weighted,
                                center,
                                shift,
                                rotation,
                                half_depth,
                                half_widths[k] if by_particle else np.inf,
                                half_widths[k - 1] if k > 0 else 0.0,
                                depths,
                                kept_positions,
                                kept_masses,
                            )
                            if kept > 0:
                                _deposit_run(
                                    kept_positions,
                                    kept_masses,
                                    weighted,
                                    0,
                                    kept,
                                    axes[k],
                                    block_sizes[k],
                                    2 * half_grids[k],
                                    single[k],
                                    grid,
                                    sums,
                                    pixel,
                                    fractions,
                                    fixed_fractions,
                                    listed,
                                )


def grid_from_moments(moments: np.ndarray, stride: int) -> np.ndarray:
    """Share the particles of each pixel out to it and its three upper neighbours.

    Parameters
    ----------
    moments : ndarray of shape (MOMENTS * n,)
        int64; of every pixel, the sums over its particles of 1, u, v and uv, with the fractions u and v in units
        of ``2**-FRACTION_BITS``. Empty in the last row and column.
    stride : int
        Pixels per side of the grid.

    Returns
    -------
    ndarray of shape (n,)
        float64, in particles.
    """
    # Integers to the end, so that no share comes out below zero
    count, u, v, uv = moments.reshape(-1, MOMENTS).T
    u, v = u << FRACTION_BITS, v << FRACTION_BITS
    shares = (count << 2 * FRACTION_BITS) - u - v + uv
    shares[stride:] += (u - uv)[:-stride]
    shares[1:] += (v - uv)[:-1]
    shares[stride + 1 :] += uv[: -stride - 1]
    return shares * 2.0 ** (-2 * FRACTION_BITS)
