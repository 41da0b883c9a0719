"""Max pooling and the mean of each picture on the GPU.

x: N, H, W, C      y: N, P, Q, C

Each function is as its namesake in kernels/cpu/pool.py; the kernels are in pool.cu. Average pooling has a
file of its own, avgpool.py.
"""

import math
from typing import Any

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import Array, Defines, blocks, contiguous, ctype, empty
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]

MOST_PIXELS = (
    2**31 - 2**24
)  # positions are counted in 32 bits (offsets in 64), and step past the end

TYPES = ("float", "bf16", "double")
VARIANTS = (
    *({"T": t} for t in TYPES),
    *({"T": t, "INDEX": index} for t in TYPES for index in ("u8", "int")),
)


def axes(
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> tuple[np.int32, ...]:
    """Return the arguments for AXES_PARAMETERS of window.cuh."""
    numbers = (*x_shape[1:3], *y_shape[1:3], *kernel, *stride, padding.top, padding.left)
    return tuple(np.int32(n) for n in numbers)


def index_type(dtype: np.dtype) -> str:
    """Return the kernels' name of the type of an array of window positions."""
    return "u8" if dtype == np.uint8 else "int"


def pixel_tiles(
    like: Array, each: int = 1
) -> tuple[tuple[int, int], tuple[int, int], np.int32, np.int32]:
    """Return grid, block, pixels and channels for a thread for `each` pixels and piece of channels.

    Raises ValueError for more pixels than positions are counted in.
    """
    pixels, channels = math.prod(like.shape[:-1]), like.shape[-1]
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{pixels} pixels in one array are too many for a GPU; use a smaller batch"
        )
    across, down, beside = runtime.tile(channels, like.dtype)
    grid = blocks(pixels, down * each), min(beside, 1 << 15)
    return grid, (across, down), np.int32(pixels), np.int32(channels)


def _launch(name: str, grid: tuple, block: tuple, args: tuple, **defines: Any) -> None:
    assert defines in VARIANTS
    runtime.launch("pool", name, grid, block, args, **defines)


def maxpool2d_forward(
    x: Array, kernel: Pair, stride: Pair, padding: Padding2d
) -> tuple[Array, Array]:
    """Return the largest value of each window, (N, P, Q, C), and where in the window it stands.

    The position counts row by row, padding included; it is uint8, or int32 for windows of more than
    256. Among equals the first counts. A NaN is larger than all numbers, and the last NaN counts.
    """
    x = contiguous(x)
    n, h, w, c = x.shape
    y = empty((n, *window_output_shape(h, w, kernel, stride, padding), c), x.dtype)
    index = empty(y.shape, np.uint8 if kernel[0] * kernel[1] <= 256 else np.int32)
    grid, block, *sizes = pixel_tiles(y)
    args = (x, y, index, *sizes, *axes(x.shape, y.shape, kernel, stride, padding))
    defines: Defines = {"T": ctype(x.dtype), "INDEX": index_type(index.dtype)}
    _launch("maxpool2d_forward", grid, block, args, **defines)
    return y, index


def maxpool2d_dx(
    dy: Array,
    index: Array,
    x_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> Array:
    """Return the gradient of x: each pixel takes dy of the windows in which it was the largest."""
    dx = empty(x_shape, dy.dtype)
    grid, block, *sizes = pixel_tiles(dx)
    args = (contiguous(dy), index, dx, *sizes, *axes(x_shape, dy.shape, kernel, stride, padding))
    defines: Defines = {"T": ctype(dy.dtype), "INDEX": index_type(index.dtype)}
    _launch("maxpool2d_dx", grid, block, args, **defines)
    return dx


def global_avgpool2d_forward(x: Array) -> Array:
    """Return the mean of each picture's channels, (N, C)."""
    x = contiguous(x)
    n, h, w, c = x.shape
    y = empty((n, c), x.dtype)
    across, down, beside = runtime.tile(c, x.dtype)
    grid, block = (n, min(beside, 1 << 15)), (across, down)
    args = (x, y, np.int32(h * w), np.int32(c))
    _launch("global_avgpool2d_forward", grid, block, args, T=ctype(x.dtype))
    return y


def global_avgpool2d_dx(dy: Array, x_shape: tuple[int, ...]) -> Array:
    """Return the gradient of x: each pixel takes dy / (H * W)."""
    dx = empty(x_shape, dy.dtype)
    grid, block, pixels, channels = pixel_tiles(dx)
    picture = np.int32(x_shape[1] * x_shape[2])
    args = (contiguous(dy), dx, np.int64(pixels), picture, channels)
    _launch("global_avgpool2d_dx", grid, block, args, T=ctype(dy.dtype))
    return dx
