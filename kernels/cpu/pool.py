"""Pooling on the CPU: the largest or the mean value of each window, and the mean of each picture.

x: N, H, W, C      y: N, P, Q, C

Forward goes by output pixel, backward by input pixel, gathering from the windows that saw it: every
element is written by one thread, in one order. Channels are the innermost loop.

The padding must be smaller than the kernel, so that each window sees at least one pixel.
"""

from collections.abc import Iterator

import numpy as np
from numba import prange

from minitl.kernels.cpu import jit, memory
from minitl.kernels.cpu.blas import one_thread
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]

CHUNK = 1 << 14  # elements read; less is not worth a thread's while


def _chunks(rows: int, elements: int) -> int:
    """Return into how many chunks rows of pixels are cut."""
    return max(1, min(rows, 64, elements // CHUNK))


@jit.kernel()
def _seen(output, size, kernel, stride, before):  # type: ignore[no-untyped-def]
    """Return the range of input positions that the window at `output` sees, along one axis."""
    start = output * stride - before
    return max(start, 0), min(start + kernel, size)


@jit.kernel()
def _seeing(size, outputs, kernel, stride, before):  # type: ignore[no-untyped-def]
    """Return for each input position the range of windows that see it, along one axis, (size, 2)."""
    ranges = np.empty((size, 2), np.int64)
    for i in range(size):
        padded = i + before
        ranges[i, 0] = (padded - kernel) // stride + 1 if padded >= kernel else 0
        ranges[i, 1] = min(padded // stride + 1, outputs)
    return ranges


@jit.kernel()
def _maxpool2d_chunk(x, y, index, kernel, stride, before, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = x.shape
    _, p, q, _ = y.shape
    for row in range(first, last):
        n, i = row // p, row % p
        top, bottom = _seen(i, height, kernel[0], stride[0], before[0])
        for j in range(q):
            left, right = _seen(j, width, kernel[1], stride[1], before[1])
            # The position in the window of the pixel (h, w) is corner + h * kernel[1] + w.
            corner = (before[0] - i * stride[0]) * kernel[1] + before[1] - j * stride[1]
            best, at = y[n, i, j], index[n, i, j]
            start = x[n, top, left]
            here = index.dtype.type(corner + top * kernel[1] + left)
            for c in range(channels):
                best[c] = start[c]
                at[c] = here
            for h in range(top, bottom):
                for w in range(left + (h == top), right):
                    value = x[n, h, w]
                    here = index.dtype.type(corner + h * kernel[1] + w)
                    for c in range(channels):
                        v, b = value[c], best[c]
                        better = (v > b) | (v != v)  # a NaN wins, and nothing is larger than it
                        best[c] = v if better else b
                        at[c] = here if better else at[c]


@jit.kernel(parallel=True)
def _maxpool2d(x, y, index, kernel, stride, before, chunks):  # type: ignore[no-untyped-def]
    rows = y.shape[0] * y.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _maxpool2d_chunk(x, y, index, kernel, stride, before, first, last)


def maxpool2d_forward(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Padding2d
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest value of each window, (N, P, Q, C), and where in the window it stands.

    The position counts row by row, padding included; it is uint8, or int32 for windows of more than
    256. Among equals the first counts. A NaN is larger than all numbers, and the last NaN counts.
    """
    n, h, w, c = x.shape
    p, q = window_output_shape(h, w, kernel, stride, padding)
    x = np.ascontiguousarray(x)
    y = memory.empty((n, p, q, c), x.dtype)
    index = memory.empty(y.shape, np.uint8 if kernel[0] * kernel[1] <= 256 else np.int32)
    before = padding.top, padding.left
    _maxpool2d(x, y, index, kernel, stride, before, _chunks(n * p, y.size * kernel[0] * kernel[1]))
    return y, index


@jit.kernel()
def _maxpool2d_dx_chunk(dy, index, dx, kernel, stride, before, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = dx.shape
    rows = _seeing(height, dy.shape[1], kernel[0], stride[0], before[0])
    columns = _seeing(width, dy.shape[2], kernel[1], stride[1], before[1])
    zero = dy.dtype.type(0)
    for row in range(first, last):
        n, h = row // height, row % height
        for w in range(width):
            into = dx[n, h, w]
            into[:] = zero
            for i in range(rows[h, 0], rows[h, 1]):
                for j in range(columns[w, 0], columns[w, 1]):
                    r, s = h + before[0] - i * stride[0], w + before[1] - j * stride[1]
                    here = index.dtype.type(r * kernel[1] + s)
                    g, at = dy[n, i, j], index[n, i, j]
                    for c in range(channels):
                        into[c] += g[c] if at[c] == here else zero


@jit.kernel(parallel=True)
def _maxpool2d_dx(dy, index, dx, kernel, stride, before, chunks):  # type: ignore[no-untyped-def]
    rows = dx.shape[0] * dx.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _maxpool2d_dx_chunk(dy, index, dx, kernel, stride, before, first, last)


def maxpool2d_dx(
    dy: np.ndarray,
    index: np.ndarray,
    x_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> np.ndarray:
    """Return the gradient of x: each pixel takes dy of the windows in which it was the largest."""
    dx = memory.empty(x_shape, dy.dtype)
    before = padding.top, padding.left
    chunks = _chunks(x_shape[0] * x_shape[1], dx.size)
    _maxpool2d_dx(np.ascontiguousarray(dy), index, dx, kernel, stride, before, chunks)
    return dx


@jit.kernel()
def _avgpool2d_chunk(x, y, kernel, stride, before, whole, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = x.shape
    _, p, q, _ = y.shape
    for row in range(first, last):
        n, i = row // p, row % p
        top, bottom = _seen(i, height, kernel[0], stride[0], before[0])
        for j in range(q):
            left, right = _seen(j, width, kernel[1], stride[1], before[1])
            count = kernel[0] * kernel[1] if whole else (bottom - top) * (right - left)
            total = y[n, i, j]
            total[:] = 0
            for h in range(top, bottom):
                w = left
                while w + 3 <= right:  # three at a time: fewer passes over the total
                    x0, x1, x2 = x[n, h, w], x[n, h, w + 1], x[n, h, w + 2]
                    for c in range(channels):
                        total[c] += x0[c] + x1[c] + x2[c]
                    w += 3
                while w < right:
                    x0 = x[n, h, w]
                    for c in range(channels):
                        total[c] += x0[c]
                    w += 1
            divisor = y.dtype.type(count)
            for c in range(channels):
                total[c] /= divisor


@jit.kernel(parallel=True)
def _avgpool2d(x, y, kernel, stride, before, whole, chunks):  # type: ignore[no-untyped-def]
    rows = y.shape[0] * y.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _avgpool2d_chunk(x, y, kernel, stride, before, whole, first, last)


def avgpool2d_forward(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Padding2d, count_include_pad: bool
) -> np.ndarray:
    """Return the sum of each window divided by its size, with or without the padding it covers."""
    n, h, w, c = x.shape
    p, q = window_output_shape(h, w, kernel, stride, padding)
    y = memory.empty((n, p, q, c), x.dtype)
    before = padding.top, padding.left
    chunks = _chunks(n * p, y.size * kernel[0] * kernel[1])
    _avgpool2d(np.ascontiguousarray(x), y, kernel, stride, before, count_include_pad, chunks)
    return y


@jit.kernel()
def _avgpool2d_dx_chunk(dy, dx, kernel, stride, before, whole, first, last):  # type: ignore[no-untyped-def]
    _, height, width, channels = dx.shape
    rows = _seeing(height, dy.shape[1], kernel[0], stride[0], before[0])
    columns = _seeing(width, dy.shape[2], kernel[1], stride[1], before[1])
    for row in range(first, last):
        n, h = row // height, row % height
        for w in range(width):
            into = dx[n, h, w]
            into[:] = 0
            for i in range(rows[h, 0], rows[h, 1]):
                top, bottom = _seen(i, height, kernel[0], stride[0], before[0])
                for j in range(columns[w, 0], columns[w, 1]):
                    left, right = _seen(j, width, kernel[1], stride[1], before[1])
                    count = kernel[0] * kernel[1] if whole else (bottom - top) * (right - left)
                    divisor = dy.dtype.type(count)
                    g = dy[n, i, j]
                    for c in range(channels):
                        into[c] += g[c] / divisor


@jit.kernel(parallel=True)
def _avgpool2d_dx(dy, dx, kernel, stride, before, whole, chunks):  # type: ignore[no-untyped-def]
    rows = dx.shape[0] * dx.shape[1]
    for chunk in prange(chunks):
        first, last = rows * chunk // chunks, rows * (chunk + 1) // chunks
        _avgpool2d_dx_chunk(dy, dx, kernel, stride, before, whole, first, last)


def avgpool2d_dx(
    dy: np.ndarray,
    x_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
    count_include_pad: bool,
) -> np.ndarray:
    """Return the gradient of x: each pixel takes its share of dy of the windows that saw it."""
    dx = memory.empty(x_shape, dy.dtype)
    before = padding.top, padding.left
    chunks = _chunks(x_shape[0] * x_shape[1], dx.size)
    _avgpool2d_dx(np.ascontiguousarray(dy), dx, kernel, stride, before, count_include_pad, chunks)
    return dx


def _even_windows(size: int, count: int) -> Iterator[tuple[int, slice]]:
    """Yield `count` windows spread evenly over `size` pixels, with their numbers."""
    for number in range(count):
        yield number, slice(number * size // count, -(-(number + 1) * size // count))


def adaptive_avgpool2d_forward(x: np.ndarray, size: Pair) -> np.ndarray:
    """Return the mean of each of `size` windows, (N, *size, C).

    Behind the last convolution a picture is a few pixels wide: NumPy, window by window, is quick enough.
    """
    y = memory.empty((x.shape[0], *size, x.shape[3]), x.dtype)
    for p, rows in _even_windows(x.shape[1], size[0]):
        for q, columns in _even_windows(x.shape[2], size[1]):
            y[:, p, q] = x[:, rows, columns].mean(axis=(1, 2))
    return y


def adaptive_avgpool2d_dx(dy: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of x: each pixel takes its share of dy of the windows that saw it."""
    dx = memory.empty(x_shape, dy.dtype)
    dx[...] = 0
    for p, rows in _even_windows(x_shape[1], dy.shape[1]):
        for q, columns in _even_windows(x_shape[2], dy.shape[2]):
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            dx[:, rows, columns] += dy[:, p : p + 1, q : q + 1] / dy.dtype.type(area)
    return dx


def global_avgpool2d_forward(x: np.ndarray) -> np.ndarray:
    """Return the mean of each picture's channels, (N, C).

    Each picture is a matrix of pixels and channels; a row of ones from the left sums its pixels. The maps at
    the end of a network are small: not worth the second that a kernel takes to compile.
    """
    n, h, w, c = x.shape
    with one_thread():
        sums = np.matmul(np.ones((1, h * w), x.dtype), x.reshape(n, h * w, c))
    y: np.ndarray = sums.reshape(n, c)
    y /= x.dtype.type(h * w)
    return y


def global_avgpool2d_dx(dy: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of x: each pixel takes dy / (H * W)."""
    dx = memory.empty(x_shape, dy.dtype)
    dx[...] = (dy / dy.dtype.type(x_shape[1] * x_shape[2]))[:, None, None, :]
    return dx
