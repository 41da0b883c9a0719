"""2-D convolution in plain NumPy: every shape, float32 and float64, any machine.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

    y[n,p,q,k] = bias[k] + sum over r,s,c of x[n, i, j, c] * weight[k,r,s,c]
    with i = p * stride + r * dilation - top, j = q * stride + s * dilation - left, zero outside x

One matrix product for each tap (r, s): the pixels a tap sees, as rows, times the tap's C x K matrix.
"""

import numpy as np

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.blas import multiply
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]


def _pad(x: np.ndarray, padding: Padding2d) -> np.ndarray:
    if not any(padding):
        return x
    n, h, w, c = x.shape
    padded = memory.zeros(
        (n, h + padding.top + padding.bottom, w + padding.left + padding.right, c), x.dtype
    )
    padded[:, padding.top : padding.top + h, padding.left : padding.left + w] = x
    return padded


def _multiply(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return pixels (N, P, Q, c) times matrix (c, k), the same bits for any number of threads."""
    n, p, q, c = pixels.shape
    product = memory.empty((n, p, q, matrix.shape[1]), pixels.dtype)
    multiply(pixels.reshape(n * p * q, c), matrix, product.reshape(n * p * q, matrix.shape[1]))
    return product


def _tap(
    padded: np.ndarray, r: int, s: int, p: int, q: int, stride: Pair, dilation: Pair
) -> np.ndarray:
    """Return the view (N, P, Q, C) of the pixels that tap (r, s) sees."""
    top, left = r * dilation[0], s * dilation[1]
    return padded[
        :,
        top : top + (p - 1) * stride[0] + 1 : stride[0],
        left : left + (q - 1) * stride[1] + 1 : stride[1],
    ]


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
    n, h, w, _ = x.shape
    k, kr, ks, cg = weight.shape
    p, q = window_output_shape(h, w, (kr, ks), stride, padding, dilation)
    padded = _pad(x, padding)
    y = memory.empty((n, p, q, k), x.dtype)
    y[...] = 0 if bias is None else bias
    kg = k // groups
    for g in range(groups):
        into = y[..., g * kg : (g + 1) * kg]
        for r in range(kr):
            for s in range(ks):
                seen = _tap(padded, r, s, p, q, stride, dilation)[..., g * cg : (g + 1) * cg]
                into += _multiply(seen, weight[g * kg : (g + 1) * kg, r, s].T)
    return y


def conv2d_dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return the gradient of x: every tap hands dy @ weight[tap] back to the pixels it saw."""
    n, h, w, c = x_shape
    k, kr, ks, cg = weight.shape
    p, q = dy.shape[1:3]
    padded = memory.zeros(
        (n, h + padding.top + padding.bottom, w + padding.left + padding.right, c), dy.dtype
    )
    kg = k // groups
    for g in range(groups):
        from_y = np.ascontiguousarray(dy[..., g * kg : (g + 1) * kg])
        for r in range(kr):
            for s in range(ks):
                seen = _tap(padded, r, s, p, q, stride, dilation)[..., g * cg : (g + 1) * cg]
                seen += _multiply(from_y, weight[g * kg : (g + 1) * kg, r, s])
    return np.ascontiguousarray(
        padded[:, padding.top : padding.top + h, padding.left : padding.left + w]
    )


def conv2d_dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Return the gradient of the weight: for each tap, dy^T times the pixels it saw."""
    k, kr, ks, cg = weight_shape
    p, q = dy.shape[1:3]
    padded = _pad(x, padding)
    dw = memory.empty((k, kr, ks, cg), dy.dtype)
    kg = k // groups
    for g in range(groups):
        from_y = dy[..., g * kg : (g + 1) * kg].reshape(-1, kg)
        for r in range(kr):
            for s in range(ks):
                seen = _tap(padded, r, s, p, q, stride, dilation)[..., g * cg : (g + 1) * cg]
                product = np.empty((kg, cg), dy.dtype)
                dw[g * kg : (g + 1) * kg, r, s] = multiply(from_y.T, seen.reshape(-1, cg), product)
    return dw
