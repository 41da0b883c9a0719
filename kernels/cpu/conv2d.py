"""2-D convolution on the CPU: which algorithm computes which shape.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

    y[n,p,q,k] = bias[k] + sum over r,s,c of x[n, i, j, c] * weight[k,r,s,c]
    with i = p * stride + r * dilation - top, j = q * stride + s * dilation - left, zero outside x

Arrays are float32 or float64; results have the same type and are C-contiguous. The same input gives the
same bits for any number of threads.
"""

import numpy as np

from minitl.kernels.cpu import conv2d_direct, conv2d_portable
from minitl.kernels.cpu.microkernel import host_lanes
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]

__all__ = ["choose_algorithm", "conv2d_db", "conv2d_dw", "conv2d_dx", "conv2d_forward"]

conv2d_db = conv2d_portable.conv2d_db


def choose_algorithm(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], dtype: np.dtype, lanes: int
) -> str:
    """Return "portable" or "direct" for the convolution of these shapes.

    lanes: the width of the machine's vectors as `host_lanes` gives it, 0 if the microkernel does not suit it.
    """
    pixels = y_shape[1] * y_shape[2]
    if dtype != np.float32 or not lanes or 0 in x_shape or 0 in y_shape:
        return "portable"
    # Offsets within a set of pictures are 32 bits wide.
    pictures = -(-conv2d_direct.PIXELS_IN_SET // pixels)
    largest = max(x_shape[1] * x_shape[2] * x_shape[3], pixels * y_shape[3])
    if pictures * largest >= 2**31:
        return "portable"
    return "direct"


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return y, shape (N, P, Q, K)."""
    (n, h, w, _), (k, r, s, _) = x.shape, weight.shape
    p, q = window_output_shape(h, w, (r, s), stride, padding, dilation)
    lanes = host_lanes()
    geometry = stride, padding, dilation, groups
    if choose_algorithm(x.shape, (n, p, q, k), x.dtype, lanes) == "portable":
        return conv2d_portable.conv2d_forward(x, weight, bias, *geometry)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    return conv2d_direct.conv2d_forward(x, weight, bias, *geometry, lanes)


def conv2d_dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return the gradient of x, shape (N, H, W, C)."""
    lanes = host_lanes()
    geometry = stride, padding, dilation, groups
    if choose_algorithm(x_shape, dy.shape, dy.dtype, lanes) == "portable":
        return conv2d_portable.conv2d_dx(dy, weight, x_shape, *geometry)
    dy, weight = np.ascontiguousarray(dy), np.ascontiguousarray(weight)
    return conv2d_direct.conv2d_dx(dy, weight, x_shape, *geometry, lanes)


def conv2d_dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return the gradient of the weight, shape (K, R, S, C/groups)."""
    lanes = host_lanes()
    geometry = stride, padding, dilation, groups
    if choose_algorithm(x.shape, dy.shape, dy.dtype, lanes) == "portable":
        return conv2d_portable.conv2d_dw(dy, x, weight_shape, *geometry)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    return conv2d_direct.conv2d_dw(dy, x, weight_shape, *geometry, lanes)
