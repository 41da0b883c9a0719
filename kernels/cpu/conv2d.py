"""2-D convolution on the CPU: which algorithm computes which shape.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

    y[n,p,q,k] = bias[k] + sum over r,s,c of x[n, i, j, c] * weight[k,r,s,c]
    with i = p * stride + r * dilation - top, j = q * stride + s * dilation - left, zero outside x

Arrays are float32 or float64; results have the same type and are C-contiguous. The same input gives the
same bits for any number of threads.

    portable     NumPy; float64, and machines without the vectors that the microkernel is written for
    direct       float32, every shape; as exact as sums in float32 are
    winograd_f2  3x3 with stride 1; as exact as direct, 2.25 times fewer multiplications
    winograd_f4  3x3 with stride 1; 4 times fewer multiplications

Errors against float64, in parts of the largest result, on normal inputs of up to 1024 channels: direct and
F(2x2) below 1e-6, F(4x4) about 1e-5, and 1e-4 is what it is tested to keep. Where a large mean of x cancels
against filters that sum to zero, read these as parts of the largest value before cancelling.
"""

from functools import lru_cache

import numpy as np

from minitl.kernels.cpu import conv2d_direct, conv2d_portable, winograd
from minitl.kernels.cpu.batchnorm import batchnorm_apply, batchnorm_reduce
from minitl.kernels.cpu.conv2d_tables import PIXELS_IN_SET
from minitl.kernels.cpu.elementwise import add_forward, relu_dx
from minitl.kernels.cpu.microkernel import host_lanes
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]

__all__ = [
    "choose_algorithm",
    "conv2d_db",
    "conv2d_dw",
    "conv2d_dx",
    "conv2d_forward",
    "conv2d_scale_shift_forward",
    "set_conv_algorithm",
]

ALGORITHMS = ("auto", "exact", "f2", "f4")
_setting = "auto"


def set_conv_algorithm(name: str) -> str:
    """Say how float32 3x3 convolutions with stride 1 are computed from now on; return what held before.

    "auto": the quickest for the shape, batch size included; errors stay within 1e-4 of the largest result.
    "exact": never Winograd's algorithm. "f2", "f4": F(2x2) or F(4x4) wherever the shape allows it.
    """
    global _setting
    if name not in ALGORITHMS:
        raise ValueError(
            f"no convolution algorithm {name!r}; choose one of {', '.join(ALGORITHMS)}"
        )
    before, _setting = _setting, name
    return before


@lru_cache(maxsize=1024)
def choose_algorithm(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: np.dtype,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    setting: str,
    lanes: int,
) -> str:
    """Return the name of the algorithm for a convolution and both of its gradients.

    setting: see `set_conv_algorithm`. lanes: width of the machine's vectors as `host_lanes` tells it.
    """
    (n, h, w, c), (k, r, s, _) = x_shape, weight_shape
    p, q = window_output_shape(h, w, (r, s), stride, padding, dilation)
    if dtype != np.float32 or not lanes or not n * c * k:
        return "portable"
    # Offsets within a set of pictures are 32 bits wide. Sets are those of `picture_sets` for y and for dx;
    # channels are filled up to whole vectors, and pictures by their padding, where that is written out.
    pixels = min(p * q, max(1, h * w // (stride[0] * stride[1])))
    pictures = min(n, 2 * -(-PIXELS_IN_SET // pixels) - 1)
    padded = (h + padding.top + padding.bottom) * (w + padding.left + padding.right)
    if pictures * max(padded * max(c, lanes), p * q * max(k, lanes)) >= 2**31:
        return "portable"

    plain = (r, s) == (3, 3) and stride == dilation == (1, 1) and groups == 1
    if setting == "exact" or not plain or max(padding) > 2 or min(c, k) < lanes:
        return "direct"
    if setting in ("f2", "f4"):
        return f"winograd_{setting}"
    # Multiplications for a picture and a pair of channels. Transforms cost about half as much again, and
    # those of the filters pay only if there are tiles enough to share them.
    tiles = {m: -(-p // m) * -(-q // m) for m in (2, 4)}
    cost = {
        "direct": 9 * p * q,
        "winograd_f2": 1.5 * 16 * tiles[2] * (1 + 24 / (n * tiles[2])),
        "winograd_f4": 1.5 * 36 * tiles[4] * (1 + 24 / (n * tiles[4])),
    }
    return min(cost, key=lambda name: cost[name])


def _plan(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: np.dtype,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> tuple[str, int]:
    """Return the algorithm, and m for Winograd's F(m x m)."""
    algorithm = choose_algorithm(
        x_shape, weight_shape, dtype, stride, padding, dilation, groups, _setting, host_lanes()
    )
    return algorithm, {"winograd_f2": 2, "winograd_f4": 4}.get(algorithm, 0)


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
    return _forward(x, weight, None, bias, None, False, (stride, padding, dilation, groups))


def conv2d_scale_shift_forward(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return conv2d(x, weight) * scale + shift [+ residual], cut off below zero if `relu`.

    scale, shift: (K,). residual: of the shape of y. All of it is done while a part of y is in registers;
    the filters are multiplied by the scale when they are packed.
    """
    geometry = stride, padding, dilation, groups
    return _forward(x, weight, scale, shift, residual, relu, geometry)


def _forward(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    geometry: tuple[Pair, Padding2d, Pair, int],
) -> np.ndarray:
    algorithm, m = _plan(x.shape, weight.shape, x.dtype, *geometry)
    if algorithm == "portable":
        if scale is None or shift is None:
            return conv2d_portable.conv2d_forward(x, weight, shift, *geometry)
        y = conv2d_portable.conv2d_forward(x, weight, None, *geometry)
        return batchnorm_apply(y, scale, shift, residual, relu)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    scale, shift, residual = (
        None if a is None else np.ascontiguousarray(a, np.float32) for a in (scale, shift, residual)
    )
    epilogue = scale, shift, residual, relu
    if m:
        return winograd.conv2d_forward(x, weight, *epilogue, geometry[1], m, host_lanes())
    return conv2d_direct.conv2d_forward(x, weight, *epilogue, *geometry, host_lanes())


def conv2d_dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    scale: np.ndarray | None = None,
    rest: np.ndarray | None = None,
    positive: np.ndarray | None = None,
) -> np.ndarray:
    """Return the gradient of x, shape (N, H, W, C).

    scale: (K,), of dy's channels. rest: like x, is added. positive: like x; where it is zero or less, the
    gradient is 0. The last two are passes of their own.
    """
    if scale is not None:
        weight = _scaled(weight, scale)
    dx = _dx(dy, weight, x_shape, (stride, padding, dilation, groups))
    if rest is not None:
        dx = add_forward(dx, rest)
    return dx if positive is None else relu_dx(dx, positive)


def _scaled(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the weight (K, R, S, C/groups) with its filters multiplied."""
    return weight * scale.astype(weight.dtype)[:, None, None, None]  # type: ignore[no-any-return]


def _dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    geometry: tuple[Pair, Padding2d, Pair, int],
) -> np.ndarray:
    algorithm, m = _plan(x_shape, weight.shape, dy.dtype, *geometry)
    if algorithm == "portable":
        return conv2d_portable.conv2d_dx(dy, weight, x_shape, *geometry)
    dy, weight = np.ascontiguousarray(dy), np.ascontiguousarray(weight)
    if m:
        return winograd.conv2d_dx(dy, weight, x_shape, geometry[1], m, host_lanes())
    return conv2d_direct.conv2d_dx(dy, weight, x_shape, *geometry, host_lanes())


def conv2d_dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """Return the gradient of the weight, shape (K, R, S, C/groups). scale: (K,), of dy's channels."""
    dw = _dw(dy, x, weight_shape, (stride, padding, dilation, groups))
    return dw if scale is None else _scaled(dw, scale)


def _dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    geometry: tuple[Pair, Padding2d, Pair, int],
) -> np.ndarray:
    algorithm, m = _plan(x.shape, weight_shape, dy.dtype, *geometry)
    if algorithm == "portable":
        return conv2d_portable.conv2d_dw(dy, x, weight_shape, *geometry)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    if m:
        return winograd.conv2d_dw(dy, x, weight_shape, geometry[1], m, host_lanes())
    return conv2d_direct.conv2d_dw(dy, x, weight_shape, *geometry, host_lanes())


def conv2d_db(dy: np.ndarray) -> np.ndarray:
    """Return the gradient of the bias, the sum of dy over all pixels, shape (K,)."""
    k = dy.shape[3]
    if not dy.size:
        return np.zeros(k, dy.dtype)
    total, _, _ = batchnorm_reduce(dy, None, dy, np.zeros(k), np.ones(k))
    return total.astype(dy.dtype)
