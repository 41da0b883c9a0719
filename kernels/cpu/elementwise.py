"""Element by element: add, ReLU, dropout, and joining along channels. All are bound by memory.

Sums and maxima of small arrays are left to NumPy, which starts no threads.

Dropout stores no mask. Whether element i is kept is a pure function of (seed, offset + i), computed by
Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
as 1, 2, 3", SC 2011); backward computes it once more. The seed is the key, and one block of four
32-bit words serves elements 4b .. 4b + 3 of the stream.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.jit import kernel

SMALL = 1 << 15  # elements


@kernel(parallel=True)
def _add(x, y, out):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        out[i] = x[i] + y[i]


def add_forward(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x + y; both of one shape."""
    out = memory.empty(x.shape, x.dtype)
    if x.size < SMALL:
        np.add(x, y, out=out)
    else:
        _add(_flat(x), _flat(y), _flat(out))
    return out


def scale_forward(x: np.ndarray, factor: float) -> np.ndarray:
    """Return factor * x. For losses and other small arrays: no threads."""
    y: np.ndarray = np.asarray(x * x.dtype.type(factor))
    return y


@kernel(parallel=True)
def _relu(x, zero, out):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        out[i] = zero if x[i] <= zero else x[i]  # a NaN stays a NaN


def relu_forward(x: np.ndarray) -> np.ndarray:
    """Return max(x, 0)."""
    out = memory.empty(x.shape, x.dtype)
    if x.size < SMALL:
        np.maximum(x, x.dtype.type(0), out=out)
    else:
        _relu(_flat(x), x.dtype.type(0), _flat(out))
    return out


@kernel(parallel=True)
def _relu_dx(dy, y, zero, out):  # type: ignore[no-untyped-def]
    for i in prange(dy.size):
        out[i] = zero if y[i] <= zero else dy[i]


def relu_dx(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return 0 where the result y is zero or less, else dy (so the gradient at 0 is 0)."""
    out = memory.empty(dy.shape, dy.dtype)
    _relu_dx(_flat(dy), _flat(y), dy.dtype.type(0), _flat(out))
    return out


# Philox4x32-10: multipliers of the rounds and the steps of the key (golden ratio, sqrt(3) - 1).
_MULTIPLY_0, _MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEP_0, _STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@kernel()
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Return four random 32-bit words for a counter of four and a key of two (all held in uint64)."""
    for _ in range(10):
        product_0, product_1 = _MULTIPLY_0 * c0, _MULTIPLY_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _32) ^ c1 ^ k0,
            product_1 & _LOW,
            (product_0 >> _32) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _STEP_0) & _LOW, (k1 + _STEP_1) & _LOW
    return c0, c1, c2, c3


@kernel(parallel=True)
def _dropout(x, seed, first_block, skip, threshold, scale, zero, out):  # type: ignore[no-untyped-def]
    for block in prange((skip + x.size + 3) // 4):
        counter = first_block + np.uint64(block)
        words = philox4x32(
            counter & _LOW, counter >> _32, np.uint64(0), np.uint64(0), seed & _LOW, seed >> _32
        )
        for j in range(4):
            i = block * 4 + j - skip
            if 0 <= i < x.size:
                out[i] = x[i] * scale if words[j] >= threshold else zero


def dropout_forward(x: np.ndarray, p: float, seed: int, offset: int) -> np.ndarray:
    """Return x with each element set to zero with probability p, and the others times 1 / (1 - p).

    seed, offset: 0 .. 2^64 - 1; element i (in memory order) takes number offset + i of the seed's stream.
    p is rounded to a multiple of 2^-32.
    """
    out = memory.empty(x.shape, x.dtype)
    number = x.dtype.type
    _dropout(
        _flat(x),
        np.uint64(seed),
        np.uint64(offset // 4),
        offset % 4,
        np.uint64(round(p * 2**32)),
        number(1 / (1 - p) if p < 1 else 0),
        number(0),
        _flat(out),
    )
    return out


def dropout_dx(dy: np.ndarray, p: float, seed: int, offset: int) -> np.ndarray:
    """Return the gradient of x: dy through the same mask and scale."""
    return dropout_forward(dy, p, seed, offset)


@kernel(parallel=True)
def _copy_columns(source, source_start, into, into_start, columns):  # type: ignore[no-untyped-def]
    for row in prange(source.shape[0]):
        for c in range(columns):
            into[row, into_start + c] = source[row, source_start + c]


def concat_forward(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the arrays side by side along their last axis."""
    sizes = [a.shape[-1] for a in arrays]
    out = memory.empty((*arrays[0].shape[:-1], sum(sizes)), arrays[0].dtype)
    into, start = _rows(out), 0
    for array, size in zip(arrays, sizes, strict=True):
        _copy_columns(_rows(array), 0, into, start, size)
        start += size
    return out


def concat_dx(dy: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return the part of dy that belongs to each joined array, given their sizes on the last axis."""
    source, start, parts = _rows(dy), 0, []
    for size in sizes:
        part = memory.empty((*dy.shape[:-1], size), dy.dtype)
        _copy_columns(source, start, _rows(part), 0, size)
        parts.append(part)
        start += size
    return parts


def _flat(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1)


def _rows(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(math.prod(array.shape[:-1]), array.shape[-1])
