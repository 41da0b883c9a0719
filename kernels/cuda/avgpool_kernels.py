"""Average pooling: kernels that Numba compiles, launched by avgpool.py. It alone imports this file.

Floor: memory; forward reads x and writes y, backward the other way. Windows overlap, but what a neighbour
has read lies in the caches. Threads of a warp take neighbouring channels; each keeps one pixel, so that
positions are worked out once for many channels. Nothing is shared between threads, and every element is
written by one of them, in one order.

x: N, H, W, C      y: N, P, Q, C      whole: a window's size counts the padding that it covers
"""

from typing import Any

import numba.cuda

cuda: Any = numba.cuda  # its types know neither of threadIdx nor of blockIdx


@cuda.jit
def avgpool2d_forward(x, y, kernel_h, kernel_w, stride_h, stride_w, before_h, before_w, whole):  # type: ignore[no-untyped-def]
    """Write the mean of each window to y."""
    _, height, width, channels = x.shape
    n, p, q, _ = y.shape
    pixel = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while pixel < n * p * q:
        j, i, picture = pixel % q, pixel // q % p, pixel // q // p
        row, column = i * stride_h - before_h, j * stride_w - before_w
        top, bottom = max(row, 0), min(row + kernel_h, height)
        left, right = max(column, 0), min(column + kernel_w, width)
        count = kernel_h * kernel_w if whole else (bottom - top) * (right - left)
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while c < channels:
            total = x.dtype.type(0)
            for h in range(top, bottom):
                for w in range(left, right):
                    total += x[picture, h, w, c]
            y[picture, i, j, c] = total / x.dtype.type(count)
            c += cuda.gridDim.y * cuda.blockDim.x
        pixel += cuda.gridDim.x * cuda.blockDim.y


@cuda.jit
def avgpool2d_dx(dy, dx, kernel_h, kernel_w, stride_h, stride_w, before_h, before_w, whole):  # type: ignore[no-untyped-def]
    """Write to dx what each pixel's windows hand on of dy."""
    _, p, q, channels = dy.shape
    n, height, width, _ = dx.shape
    pixel = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while pixel < n * height * width:
        w, h, picture = pixel % width, pixel // width % height, pixel // width // height
        # The windows that see the pixel, rows and columns of them.
        below, beside = h + before_h, w + before_w
        first_i = (below - kernel_h) // stride_h + 1 if below >= kernel_h else 0
        first_j = (beside - kernel_w) // stride_w + 1 if beside >= kernel_w else 0
        last_i, last_j = min(below // stride_h + 1, p), min(beside // stride_w + 1, q)
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while c < channels:
            total = dy.dtype.type(0)
            for i in range(first_i, last_i):
                row = i * stride_h - before_h
                rows = min(row + kernel_h, height) - max(row, 0)
                for j in range(first_j, last_j):
                    column = j * stride_w - before_w
                    columns = min(column + kernel_w, width) - max(column, 0)
                    count = kernel_h * kernel_w if whole else rows * columns
                    total += dy[picture, i, j, c] / dy.dtype.type(count)
            dx[picture, h, w, c] = total
            c += cuda.gridDim.y * cuda.blockDim.x
        pixel += cuda.gridDim.x * cuda.blockDim.y


@cuda.jit
def adaptive_avgpool2d_forward(x, y):  # type: ignore[no-untyped-def]
    """Write the mean of each window to y; window i of p covers rows i H / p to (i + 1) H / p, rounded out."""
    _, height, width, channels = x.shape
    n, p, q, _ = y.shape
    pixel = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while pixel < n * p * q:
        j, i, picture = pixel % q, pixel // q % p, pixel // q // p
        top, bottom = i * height // p, ((i + 1) * height + p - 1) // p
        left, right = j * width // q, ((j + 1) * width + q - 1) // q
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while c < channels:
            total = x.dtype.type(0)
            for h in range(top, bottom):
                for w in range(left, right):
                    total += x[picture, h, w, c]
            y[picture, i, j, c] = total / x.dtype.type((bottom - top) * (right - left))
            c += cuda.gridDim.y * cuda.blockDim.x
        pixel += cuda.gridDim.x * cuda.blockDim.y


@cuda.jit
def adaptive_avgpool2d_dx(dy, dx):  # type: ignore[no-untyped-def]
    """Write to dx what each pixel's windows hand on of dy."""
    _, p, q, channels = dy.shape
    n, height, width, _ = dx.shape
    pixel = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    while pixel < n * height * width:
        w, h, picture = pixel % width, pixel // width % height, pixel // width // height
        # The windows that see the pixel: i H / p <= h < (i + 1) H / p, rounded out.
        first_i, last_i = h * p // height, ((h + 1) * p + height - 1) // height
        first_j, last_j = w * q // width, ((w + 1) * q + width - 1) // width
        c = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        while c < channels:
            total = dy.dtype.type(0)
            for i in range(first_i, last_i):
                rows = ((i + 1) * height + p - 1) // p - i * height // p
                for j in range(first_j, last_j):
                    columns = ((j + 1) * width + q - 1) // q - j * width // q
                    total += dy[picture, i, j, c] / dy.dtype.type(rows * columns)
            dx[picture, h, w, c] = total
            c += cuda.gridDim.y * cuda.blockDim.x
        pixel += cuda.gridDim.x * cuda.blockDim.y
