"""Batch normalisation on the CPU: four passes over the picture elements, everything else per channel.

x, y, dy, residual: (..., C)      mean, var, scale, shift, a, b, c and all sums: (C,)

Each pass is bound by memory, so each is fused as far as it goes. Before a pass the rows of C channels
are folded into longer rows of k * C, because a loop over 16 channels is too short to be quick.

Sums are taken in the input's precision over a block of BLOCK rows at most and from there on in float64.
Rows are dealt to chunks by the size of the array alone, and chunks are added in order: the result does
not depend on the number of threads.

What is left per channel is plain NumPy in float64: `batchnorm_fold` before the pass of forward,
`batchnorm_coefficients` before that of backward. The formulas are derived in minitl/ops/batchnorm.py.
"""

import numpy as np
from numba import prange

from minitl.kernels.cpu import jit, memory

BLOCK = 96  # rows at most that are summed in the input's precision
ROW = 512  # elements; folding stops here
CHUNK = 1 << 15  # elements; less is not worth a thread's while
CHUNKS = 64


def _fold(x: np.ndarray, channels: int) -> np.ndarray:
    """Return x as rows of k * C elements, k a power of two, so that the rows are not too short."""
    pixels = x.size // channels
    k = 1
    while pixels % (2 * k) == 0 and 2 * k * channels <= ROW:
        k *= 2
    return np.ascontiguousarray(x).reshape(pixels // k, k * channels)


def _chunks(rows: np.ndarray) -> int:
    """Return into how many chunks the work is cut."""
    return max(1, min(CHUNKS, rows.size // CHUNK, 2 * len(rows) // BLOCK))


@jit.kernel()
def _statistics_chunk(x, first, last, origin, total, square):  # type: ignore[no-untyped-def]
    """Sum x - origin and its square over the rows first..last.

    Within a block the first row is subtracted, so that a mean far from zero costs no digits; the
    block's sums are then moved to the common origin, in float64.
    """
    width = x.shape[1]
    total[:] = 0.0
    square[:] = 0.0
    s = np.empty(width, x.dtype)
    q = np.empty(width, x.dtype)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        near = x[start]
        s[:] = 0
        q[:] = 0
        row = start + 1
        while row + 4 <= stop:
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            for i in range(width):
                d0, d1 = x0[i] - near[i], x1[i] - near[i]
                d2, d3 = x2[i] - near[i], x3[i] - near[i]
                s[i] += (d0 + d1) + (d2 + d3)
                q[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
            row += 4
        while row < stop:
            x0 = x[row]
            for i in range(width):
                d0 = x0[i] - near[i]
                s[i] += d0
                q[i] += d0 * d0
            row += 1
        count = np.float64(stop - start)
        share = 1 / count
        for i in range(width):
            block_mean = np.float64(s[i]) * share
            d = (np.float64(near[i]) - origin[i]) + block_mean
            total[i] += count * d
            square[i] += (np.float64(q[i]) - np.float64(s[i]) * block_mean) + count * d * d


@jit.kernel(parallel=True)
def _statistics(x, chunks, mean, var):  # type: ignore[no-untyped-def]
    rows, width = x.shape
    channels = len(mean)
    origin = np.empty(width, np.float64)
    for i in range(width):
        origin[i] = x[0, i % channels]
    partial = np.empty((chunks, 2, width), np.float64)
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _statistics_chunk(x, first, last, origin, partial[chunk, 0], partial[chunk, 1])
    _add_partial(partial, mean, var)
    count = np.float64(rows * (width // channels))
    for c in range(channels):
        d = mean[c] / count
        mean[c] = origin[c] + d
        var[c] = max(var[c] / count - d * d, 0.0)


@jit.kernel()
def _add_partial(partial, first, second):  # type: ignore[no-untyped-def]
    """Add the chunks' sums, and the k parts of a folded row, channel by channel."""
    channels = len(first)
    first[:] = 0.0
    second[:] = 0.0
    for chunk in range(partial.shape[0]):
        for start in range(0, partial.shape[2], channels):
            for c in range(channels):
                first[c] += partial[chunk, 0, start + c]
                second[c] += partial[chunk, 1, start + c]


def batchnorm_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and biased variance of each channel, float64, shape (C,)."""
    channels = x.shape[-1]
    mean, var = np.empty(channels), np.empty(channels)
    rows = _fold(x, channels)
    _statistics(rows, _chunks(rows), mean, var)
    return mean, var


def batchnorm_fold(
    mean: np.ndarray | None,
    var: np.ndarray | None,
    weight: np.ndarray,
    bias: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    pixels: int,
    momentum: float,
    eps: float,
    training: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scale, shift, mean and inv_std, all (C,) float64: y = x * scale + shift normalises.

    In training mean and var are those of the batch, over `pixels` values of each channel, and the running
    ones move towards them in place: the mean, and the unbiased variance. Else mean and var are None and
    the running ones are taken.
    """
    if training:
        assert mean is not None
        assert var is not None
        with np.errstate(all="ignore"):  # a diverging loss is reported where it is seen
            running_mean += momentum * (mean - running_mean)
            running_var += momentum * (var * (pixels / (pixels - 1)) - running_var)
    else:
        mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
    inv_std: np.ndarray = 1 / np.sqrt(var + eps)
    scale = weight * inv_std
    return scale, bias - mean * scale, mean, inv_std


@jit.kernel()
def _line(slope, shift, lines):  # type: ignore[no-untyped-def]
    """Write slope * x + shift as (x - zero) * slope + rest, for each element of a folded row.

    Where a channel's mean is many times its standard deviation, slope * x and shift are large and
    nearly cancel. x - zero, with `zero` where the line is zero, cancels before anything is rounded.
    `zero` itself has to be rounded; `rest` makes up for that.
    """
    channels = len(slope)
    for i in range(lines.shape[1]):
        a, b = slope[i % channels], shift[i % channels]
        zero = lines.dtype.type(-b / a)
        if not np.isfinite(zero):
            zero = lines.dtype.type(0)
        lines[0, i], lines[1, i], lines[2, i] = zero, a, b + a * np.float64(zero)


@jit.kernel()
def _apply_chunk(x, residual, lines, floor, y, first, last):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    zero, slope, rest = lines[0], lines[1], lines[2]
    if residual.shape[0]:
        for row in range(first, last):
            xr, rr, yr = x[row], residual[row], y[row]
            for i in range(width):
                v = (xr[i] - zero[i]) * slope[i] + rest[i] + rr[i]
                yr[i] = floor if v < floor else v
    else:
        for row in range(first, last):
            xr, yr = x[row], y[row]
            for i in range(width):
                v = (xr[i] - zero[i]) * slope[i] + rest[i]
                yr[i] = floor if v < floor else v


@jit.kernel(parallel=True)
def _apply(x, residual, scale, shift, floor, y, chunks):  # type: ignore[no-untyped-def]
    rows, width = x.shape
    lines = np.empty((3, width), x.dtype)
    _line(scale, shift, lines)
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _apply_chunk(x, residual, lines, floor, y, first, last)


def batchnorm_apply(
    x: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
) -> np.ndarray:
    """Return x * scale + shift [+ residual], with what is below zero cut off if `relu`."""
    y = memory.empty(x.shape, x.dtype)
    channels = x.shape[-1]
    rows = _fold(x, channels)
    other = _fold(residual, channels) if residual is not None else np.empty((0, 0), x.dtype)
    floor = x.dtype.type(0 if relu else -np.inf)
    scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    _apply(rows, other, scale, shift, floor, _fold(y, channels), _chunks(rows))
    return y


@jit.kernel()
def _reduce_chunk(dy, y, x, mean, dz, first, last, total, product):  # type: ignore[no-untyped-def]
    """Sum dz and dz * (x - mean) over the rows first..last; dz is stored if there is room for it."""
    width = x.shape[1]
    zero = x.dtype.type(0)
    total[:] = 0.0
    product[:] = 0.0
    s = np.empty(width, x.dtype)
    p = np.empty(width, x.dtype)
    masked = np.empty(width, x.dtype)
    relu, keep = y.shape[0] > 0, dz.shape[0] > 0
    for start in range(first, last, BLOCK):
        s[:] = 0
        p[:] = 0
        for row in range(start, min(start + BLOCK, last)):
            g, xr = dy[row], x[row]
            if relu:
                yr = y[row]
                d = dz[row] if keep else masked
                for i in range(width):
                    v = zero if yr[i] <= zero else g[i]
                    d[i] = v
                    s[i] += v
                    p[i] += v * (xr[i] - mean[i])
            else:
                for i in range(width):
                    s[i] += g[i]
                    p[i] += g[i] * (xr[i] - mean[i])
        for i in range(width):
            total[i] += s[i]
            product[i] += p[i]


@jit.kernel(parallel=True)
def _reduce(dy, y, x, mean, dz, chunks, total, product):  # type: ignore[no-untyped-def]
    rows, width = x.shape
    channels = len(mean)
    means = np.empty(width, x.dtype)
    for i in range(width):
        means[i] = mean[i % channels]
    partial = np.empty((chunks, 2, width), np.float64)
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _reduce_chunk(dy, y, x, means, dz, first, last, partial[chunk, 0], partial[chunk, 1])
    _add_partial(partial, total, product)
    for c in range(channels):  # the mean was rounded to the precision of x
        product[c] -= (mean[c] - np.float64(means[c])) * total[c]


def batchnorm_reduce(
    dy: np.ndarray,
    y: np.ndarray | None,
    x: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    keep_dz: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return sum(dz) and sum(dz * xhat) of each channel, float64, with xhat = (x - mean) * inv_std.

    y: the result of a ReLU after the normalisation; then dz is dy where y > 0. Without y, dz is dy.
    keep_dz: return dz as the third value (the gradient of a residual); else that is None.
    """
    channels = x.shape[-1]
    dz = memory.empty(x.shape, x.dtype) if keep_dz and y is not None else None
    total, product = np.empty(channels), np.empty(channels)
    rows = _fold(x, channels)
    absent = np.empty((0, 0), x.dtype)
    _reduce(
        _fold(dy, channels),
        absent if y is None else _fold(y, channels),
        rows,
        np.asarray(mean, np.float64),
        absent if dz is None else _fold(dz, channels),
        _chunks(rows),
        total,
        product,
    )
    if keep_dz and dz is None:
        dz = dy
    return total, product * inv_std, dz


def batchnorm_coefficients(
    sum_dz: np.ndarray | None,
    sum_dz_xhat: np.ndarray | None,
    weight: np.ndarray,
    mean: np.ndarray | None,
    inv_std: np.ndarray,
    pixels: int,
    training: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return a, b, c for `batchnorm_dx`, float64, and dweight and dbias, of the weight's dtype; all (C,).

    With fixed statistics b and c are None. Without the sums dweight and dbias are None.
    """
    a = weight * inv_std
    if sum_dz is None or sum_dz_xhat is None:
        return a, None, None, None, None
    dweight, dbias = sum_dz_xhat.astype(weight.dtype), sum_dz.astype(weight.dtype)
    if not training:
        return a, None, None, dweight, dbias
    b = -a * inv_std * sum_dz_xhat / pixels
    return a, b, -a * sum_dz / pixels - b * mean, dweight, dbias


@jit.kernel()
def _dx_chunk(dy, y, x, a, lines, dx, first, last):  # type: ignore[no-untyped-def]
    width = dy.shape[1]
    nothing = dy.dtype.type(0)
    zero, slope, rest = lines[0], lines[1], lines[2]
    relu, training = y.shape[0] > 0, x.shape[0] > 0
    for row in range(first, last):
        g, out = dy[row], dx[row]
        if relu:
            yr = y[row]
            for i in range(width):
                out[i] = a[i] * (nothing if yr[i] <= nothing else g[i])
        else:
            for i in range(width):
                out[i] = a[i] * g[i]
        if training:
            xr = x[row]
            for i in range(width):
                out[i] += (xr[i] - zero[i]) * slope[i] + rest[i]


@jit.kernel(parallel=True)
def _dx(dy, y, x, a, b, c, dx, chunks):  # type: ignore[no-untyped-def]
    rows, width = dy.shape
    factor, lines = np.empty(width, dy.dtype), np.empty((3, width), dy.dtype)
    for i in range(width):
        factor[i] = a[i % len(a)]
    _line(b, c, lines)
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _dx_chunk(dy, y, x, factor, lines, dx, first, last)


def batchnorm_dx(
    dy: np.ndarray,
    y: np.ndarray | None,
    x: np.ndarray | None,
    a: np.ndarray,
    b: np.ndarray | None,
    c: np.ndarray | None,
) -> np.ndarray:
    """Return a * dz + b * x + c, with dz as in `batchnorm_reduce`.

    With fixed statistics the gradient is a * dz: then x, b and c are None.
    """
    dx = memory.empty(dy.shape, dy.dtype)
    channels = dy.shape[-1]
    rows = _fold(dy, channels)
    absent = np.empty((0, 0), dy.dtype)
    a = np.asarray(a, np.float64)
    _dx(
        rows,
        absent if y is None else _fold(y, channels),
        absent if x is None else _fold(x, channels),
        a,
        a if b is None else np.asarray(b, np.float64),
        a if c is None else np.asarray(c, np.float64),
        _fold(dx, channels),
        _chunks(rows),
    )
    return dx
