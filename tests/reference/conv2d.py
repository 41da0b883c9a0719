"""2-D convolution and its gradients in float64, output pixel by output pixel.

stride, dilation: (rows, columns). padding: (top, bottom, left, right). Each function reads: the window
of pixels that output (p, q) sees, and what it has to do with that output.
"""

import numpy as np


def _padded(x, padding):
    top, bottom, left, right = padding
    return np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))


def _windows(height, width, kernel, stride, dilation):
    """Yield (p, q, rows, columns): the slices of the padded picture that output (p, q) sees."""
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    for p, top in enumerate(range(0, height - extent[0] + 1, stride[0])):
        for q, left in enumerate(range(0, width - extent[1] + 1, stride[1])):
            yield (
                p,
                q,
                slice(top, top + extent[0], dilation[0]),
                slice(left, left + extent[1], dilation[1]),
            )


def _groups(x_channels, filters, groups):
    """Yield, for each group, the slices of its input channels and of its filters."""
    c, k = x_channels // groups, filters // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)


def conv2d_forward(x, weight, bias, stride, padding, dilation, groups):
    x, weight = _padded(x, padding), weight.astype(np.float64)
    windows = list(_windows(*x.shape[1:3], weight.shape[1:3], stride, dilation))
    y = np.zeros((len(x), windows[-1][0] + 1, windows[-1][1] + 1, len(weight)))
    for p, q, rows, columns in windows:
        for cs, ks in _groups(x.shape[3], len(weight), groups):
            y[:, p, q, ks] = np.einsum("nrsc,krsc->nk", x[:, rows, columns, cs], weight[ks])
    return y if bias is None else y + bias


def conv2d_dx(dy, weight, x_shape, stride, padding, dilation, groups):
    dy, weight = dy.astype(np.float64), weight.astype(np.float64)
    top, _, left, _ = padding
    result = _padded(np.zeros(x_shape), padding)
    for p, q, rows, columns in _windows(*result.shape[1:3], weight.shape[1:3], stride, dilation):
        for cs, ks in _groups(x_shape[3], len(weight), groups):
            result[:, rows, columns, cs] += np.einsum("nk,krsc->nrsc", dy[:, p, q, ks], weight[ks])
    return result[:, top : top + x_shape[1], left : left + x_shape[2]]


def conv2d_dw(dy, x, weight_shape, stride, padding, dilation, groups):
    x, dy = _padded(x, padding), dy.astype(np.float64)
    result = np.zeros(weight_shape)
    for p, q, rows, columns in _windows(*x.shape[1:3], weight_shape[1:3], stride, dilation):
        for cs, ks in _groups(x.shape[3], weight_shape[0], groups):
            result[ks] += np.einsum("nk,nrsc->krsc", dy[:, p, q, ks], x[:, rows, columns, cs])
    return result


def conv2d_db(dy):
    return dy.astype(np.float64).sum(axis=(0, 1, 2))
