"""Batch normalisation, ReLU and max pooling in one pass on the CPU: the stem of a ResNet.

x: N, H, W, C      y, dy, index, chosen: N, P, Q, C      scale, shift, a, b, c: C

The normalised map is as large as x and is never stored: it is four times the size of the result, and
writing and reading it would cost more than normalising each pixel for each of the windows that see it.

index tells which pixel of its window each result is, as `maxpool2d_forward` counts them, or that it is
none: where no pixel is above zero the ReLU's 0 is the result, and no gradient passes. chosen is that pixel
of x; with it the sums over the map that the gradients need are sums over the windows, `batchnorm_reduce`.
"""

import numpy as np
from numba import prange

from minitl.kernels.cpu import jit, memory
from minitl.kernels.cpu.batchnorm import _line
from minitl.kernels.cpu.pool import Pair, _chunks, _seeing, _seen
from minitl.shapes import Padding2d, window_output_shape


@jit.kernel()
def _larger(x, place, zero, slope, rest, best, at, source):  # type: ignore[no-untyped-def]
    """Return the largest value so far, its place and its x, now that x at `place` is seen."""
    v = (x - zero) * slope + rest
    better = (v > best) | (v != v)  # a NaN wins, as in max pooling
    return v if better else best, place if better else at, x if better else source


@jit.kernel()
def _forward_chunk(x, lines, y, index, chosen, none, kernel, stride, before, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = x.shape
    _, p, q, _ = y.shape
    z, m, d = lines[0], lines[1], lines[2]
    kind = index.dtype.type
    for row in range(first, last):
        n, i = row // p, row % p
        top, bottom = _seen(i, height, kernel[0], stride[0], before[0])
        for j in range(q):
            left, right = _seen(j, width, kernel[1], stride[1], before[1])
            corner = (before[0] - i * stride[0]) * kernel[1] + before[1] - j * stride[1]
            best, at, source = y[n, i, j], index[n, i, j], chosen[n, i, j]
            best[:] = 0
            at[:] = none
            source[:] = 0
            for h in range(top, bottom):
                w = left
                while w < right:
                    here = corner + h * kernel[1] + w
                    x0, k0 = x[n, h, w], kind(here)
                    if w + 3 <= right:  # three at a time: fewer passes over the best so far
                        x1, x2, k1, k2 = (
                            x[n, h, w + 1],
                            x[n, h, w + 2],
                            kind(here + 1),
                            kind(here + 2),
                        )
                        for c in range(channels):
                            b, k, s = best[c], at[c], source[c]
                            b, k, s = _larger(x0[c], k0, z[c], m[c], d[c], b, k, s)
                            b, k, s = _larger(x1[c], k1, z[c], m[c], d[c], b, k, s)
                            b, k, s = _larger(x2[c], k2, z[c], m[c], d[c], b, k, s)
                            best[c], at[c], source[c] = b, k, s
                        w += 3
                    else:
                        for c in range(channels):
                            b, k, s = best[c], at[c], source[c]
                            b, k, s = _larger(x0[c], k0, z[c], m[c], d[c], b, k, s)
                            best[c], at[c], source[c] = b, k, s
                        w += 1


@jit.kernel(parallel=True)
def _forward(x, scale, shift, y, index, chosen, none, kernel, stride, before, chunks):  # type: ignore[no-untyped-def]
    lines = np.empty((3, x.shape[3]), x.dtype)
    _line(scale, shift, lines)
    rows = y.shape[0] * y.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _forward_chunk(x, lines, y, index, chosen, none, kernel, stride, before, first, last)


def batchnorm_relu_maxpool_forward(
    x: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the largest of x * scale + shift and 0 in each window, (N, P, Q, C), its index and its x.

    Where that is 0, so is the x. The index is uint8, or int32 for windows of more than 255 pixels.
    """
    n, h, w, c = x.shape
    p, q = window_output_shape(h, w, kernel, stride, padding)
    y = memory.empty((n, p, q, c), x.dtype)
    index = memory.empty(y.shape, np.uint8 if kernel[0] * kernel[1] <= 255 else np.int32)
    chosen = memory.empty(y.shape, x.dtype)
    _forward(
        np.ascontiguousarray(x),
        np.asarray(scale, np.float64),
        np.asarray(shift, np.float64),
        y,
        index,
        chosen,
        index.dtype.type(np.iinfo(index.dtype).max),
        kernel,
        stride,
        (padding.top, padding.left),
        _chunks(n * p, y.size * kernel[0] * kernel[1]),
    )
    return y, index, chosen


@jit.kernel()
def _dx_chunk(dy, index, x, a, lines, dx, kernel, stride, before, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = dx.shape
    rows = _seeing(height, dy.shape[1], kernel[0], stride[0], before[0])
    columns = _seeing(width, dy.shape[2], kernel[1], stride[1], before[1])
    nothing = dy.dtype.type(0)
    zero, slope, rest = lines[0], lines[1], lines[2]
    training = x.shape[0] > 0
    for row in range(first, last):
        n, h = row // height, row % height
        for w in range(width):
            into = dx[n, h, w]
            into[:] = nothing
            for i in range(rows[h, 0], rows[h, 1]):
                for j in range(columns[w, 0], columns[w, 1]):
                    r, s = h + before[0] - i * stride[0], w + before[1] - j * stride[1]
                    here = index.dtype.type(r * kernel[1] + s)
                    g, at = dy[n, i, j], index[n, i, j]
                    for c in range(channels):
                        into[c] += g[c] if at[c] == here else nothing
            if training:
                value = x[n, h, w]
                for c in range(channels):
                    into[c] = a[c] * into[c] + ((value[c] - zero[c]) * slope[c] + rest[c])
            else:
                for c in range(channels):
                    into[c] *= a[c]


@jit.kernel(parallel=True)
def _dx(dy, index, x, a, b, c, dx, kernel, stride, before, chunks):  # type: ignore[no-untyped-def]
    factor, lines = np.empty(len(a), dy.dtype), np.empty((3, len(a)), dy.dtype)
    for i in range(len(a)):
        factor[i] = a[i]
    _line(b, c, lines)
    rows = dx.shape[0] * dx.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _dx_chunk(dy, index, x, factor, lines, dx, kernel, stride, before, first, last)


def batchnorm_relu_maxpool_dx(
    dy: np.ndarray,
    index: np.ndarray,
    x_shape: tuple[int, ...],
    x: np.ndarray | None,
    a: np.ndarray,
    b: np.ndarray | None,
    c: np.ndarray | None,
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> np.ndarray:
    """Return a * dz + b * x + c, shape (N, H, W, C).

    dz, the gradient of the normalised map, is dy at the pixels that `index` names and 0 elsewhere.
    With fixed statistics the gradient is a * dz: then x, b and c are None.
    """
    dx = memory.empty(x_shape, dy.dtype)
    a = np.asarray(a, np.float64)
    _dx(
        np.ascontiguousarray(dy),
        index,
        np.empty((0, 0, 0, 0), dy.dtype) if x is None else np.ascontiguousarray(x),
        a,
        a if b is None else np.asarray(b, np.float64),
        a if c is None else np.asarray(c, np.float64),
        dx,
        kernel,
        stride,
        (padding.top, padding.left),
        _chunks(x_shape[0] * x_shape[1], dx.size),
    )
    return dx
