"""Element by element on the GPU: add, ReLU, dropout, joining along channels, changing the number type.

Each function is as its namesake in kernels/cpu/elementwise.py; the kernels are in elementwise.cu.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import Array, Defines, blocks, contiguous, ctype, empty, real

THREADS = 256

CASTS = {("float", "bf16"), ("bf16", "float")}
VARIANTS = (
    {"T": "float"},
    {"T": "bf16"},
    {"T": "double"},
    *({"T": to, "FROM": source} for source, to in sorted(CASTS)),
)


def _launch(name: str, out: Array, *args: object, **more: Any) -> Array:
    """Start a kernel that makes `out`, 16 bytes of it a thread; return it."""
    defines: Defines = {"T": ctype(out.dtype), **more}
    assert defines in VARIANTS
    grid = (blocks(out.nbytes, 16 * THREADS),)
    runtime.launch("elementwise", name, grid, (THREADS,), args, **defines)
    return out


def add_forward(x: Array, y: Array) -> Array:
    """Return x + y; both of one shape."""
    out = empty(x.shape, x.dtype)
    return _launch("add_forward", out, contiguous(x), contiguous(y), out, np.int64(out.size))


def scale_forward(x: Array, factor: float | Array) -> Array:
    """Return factor * x. factor: may be a float32 array of one element on the device."""
    out = empty(x.shape, x.dtype)
    value, at = runtime.number_or_array(factor, np.float32, "factor")
    number = real(x.dtype).type(value)
    return _launch("scale_forward", out, contiguous(x), number, at, out, np.int64(out.size))


def relu_forward(x: Array) -> Array:
    """Return max(x, 0)."""
    out = empty(x.shape, x.dtype)
    return _launch("relu_forward", out, contiguous(x), out, np.int64(out.size))


def relu_dx(dy: Array, y: Array) -> Array:
    """Return 0 where the result y is zero or less, else dy (so the gradient at 0 is 0)."""
    dx = empty(dy.shape, dy.dtype)
    return _launch("relu_dx", dx, contiguous(dy), contiguous(y), dx, np.int64(dx.size))


def dropout_forward(x: Array, p: float, seed: int, offset: int | Array) -> Array:
    """Return x with each element set to zero with probability p, and the others times 1 / (1 - p).

    seed: 0 .. 2^64 - 1. offset: likewise, or an int64 array of one element on the device, read when the
    kernel runs. Element i (in memory order) takes number offset + i of the seed's stream.
    """
    out = empty(x.shape, x.dtype)
    number, at = runtime.number_or_array(offset, np.int64, "offset")
    return _launch(
        "dropout_forward",
        out,
        contiguous(x),
        out,
        np.int64(out.size),
        np.uint64(seed),
        np.uint64(number),
        at,
        np.uint64(round(p * 2**32)),
        runtime.real(x.dtype).type(1 / (1 - p) if p < 1 else 0),
    )


def dropout_dx(dy: Array, p: float, seed: int, offset: int | Array) -> Array:
    """Return the gradient of x: dy through the same mask and scale."""
    return dropout_forward(dy, p, seed, offset)


def copy_columns(source: Array, start: int, into: Array, into_start: int, columns: int) -> None:
    """Copy columns start, ... of one array to into_start, ... of another with as many rows."""
    rows = math.prod(source.shape[:-1])
    wide = min(32, max(1, columns // (16 // source.itemsize)))
    across = 1 << (wide - 1).bit_length()
    defines: Defines = {"T": ctype(source.dtype)}
    assert defines in VARIANTS
    runtime.launch(
        "elementwise",
        "copy_columns",
        (blocks(rows, THREADS // across),),
        (across, THREADS // across),
        (
            source,
            np.int32(source.shape[-1]),
            np.int32(start),
            into,
            np.int32(into.shape[-1]),
            np.int32(into_start),
            np.int64(rows),
            np.int32(columns),
        ),
        **defines,
    )


def concat_forward(arrays: Sequence[Array]) -> Array:
    """Return the arrays side by side along their last axis."""
    sizes = [a.shape[-1] for a in arrays]
    out, start = empty((*arrays[0].shape[:-1], sum(sizes)), arrays[0].dtype), 0
    for array, size in zip(arrays, sizes, strict=True):
        copy_columns(contiguous(array), 0, out, start, size)
        start += size
    return out


def concat_dx(dy: Array, sizes: Sequence[int]) -> list[Array]:
    """Return the part of dy that belongs to each joined array, given their sizes on the last axis."""
    dy, start, parts = contiguous(dy), 0, []
    for size in sizes:
        part = empty((*dy.shape[:-1], size), dy.dtype)
        copy_columns(dy, start, part, 0, size)
        parts.append(part)
        start += size
    return parts


def cast(x: Array, dtype: DTypeLike) -> Array:
    """Return x in another float format, as a new array; itself where it has that format already.

    Raises TypeError for anything but float32 to bfloat16 (held as uint16) and back.
    """
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    if (ctype(x.dtype), ctype(dtype)) not in CASTS:
        raise TypeError(f"no cast from {ctype(x.dtype)} to {ctype(dtype)} on the GPU")
    out = empty(x.shape, dtype)
    return _launch("cast", out, contiguous(x), out, np.int64(x.size), FROM=ctype(x.dtype))
