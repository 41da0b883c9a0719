"""Batch normalisation, ReLU and max pooling in one pass on the GPU: the stem of a ResNet.

x: N, H, W, C      y, dy, index, chosen: N, P, Q, C      scale, shift, a, b, c: C, float64

Each function is as its namesake in kernels/cpu/batchnorm_relu_maxpool.py; the kernels are in
batchnorm_relu_maxpool.cu.
"""

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.pool import TYPES, Pair, axes, index_type, pixel_tiles
from minitl.kernels.cuda.runtime import Array, Defines, contiguous, ctype, empty
from minitl.shapes import Padding2d, window_output_shape

PIXELS = 4  # that a thread goes through, so that its channels' numbers pay

VARIANTS = tuple({"T": t, "INDEX": index} for t in TYPES for index in ("u8", "int"))


def _launch(name: str, like: Array, index: Array, args: tuple, sizes: tuple) -> None:
    """Start a kernel with a thread for each pixel of `like` and piece of its channels."""
    defines: Defines = {"T": ctype(like.dtype), "INDEX": index_type(index.dtype)}
    assert defines in VARIANTS
    grid, block, pixels, channels = pixel_tiles(like, PIXELS)
    args = (*args, pixels, channels, *sizes)
    runtime.launch("batchnorm_relu_maxpool", name, grid, block, args, **defines)


def batchnorm_relu_maxpool_forward(
    x: Array, scale: Array, shift: Array, kernel: Pair, stride: Pair, padding: Padding2d
) -> tuple[Array, Array, Array]:
    """Return the largest of x * scale + shift and 0 in each window, (N, P, Q, C), its index and its x.

    Where that is 0, so is the x. The index is uint8, or int32 for windows of more than 255 pixels.
    """
    x = contiguous(x)
    n, h, w, c = x.shape
    y = empty((n, *window_output_shape(h, w, kernel, stride, padding), c), x.dtype)
    index = empty(y.shape, np.uint8 if kernel[0] * kernel[1] <= 255 else np.int32)
    chosen = empty(y.shape, x.dtype)
    sizes = axes(x.shape, y.shape, kernel, stride, padding)
    args = (x, scale, shift, y, index, chosen)
    _launch("batchnorm_relu_maxpool_forward", y, index, args, sizes)
    return y, index, chosen


def batchnorm_relu_maxpool_dx(
    dy: Array,
    index: Array,
    x_shape: tuple[int, ...],
    x: Array | None,
    a: Array,
    b: Array | None,
    c: Array | None,
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
) -> Array:
    """Return a * dz + b * x + c, shape (N, H, W, C).

    dz, the gradient of the normalised map, is dy at the pixels that `index` names and 0 elsewhere.
    With fixed statistics the gradient is a * dz: then x, b and c are None.
    """
    dy, dx = contiguous(dy), empty(x_shape, dy.dtype)
    sizes = axes(x_shape, dy.shape, kernel, stride, padding)
    if x is None:
        _launch("batchnorm_relu_maxpool_dx", dx, index, (dy, index, a, dx), sizes)
    else:
        args = (dy, index, contiguous(x), a, b, c, dx)
        _launch("batchnorm_relu_maxpool_dx_training", dx, index, args, sizes)
    return dx
