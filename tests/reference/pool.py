"""Pooling in float64, window by window."""

import numpy as np


def windows(x_shape, kernel, stride, padding):
    """Yield output position and the rows and columns of x that its window sees.

    padding: (top, bottom, left, right)
    """
    top, bottom, left, right = padding
    height, width = x_shape[1:3]
    for p in range((height + top + bottom - kernel[0]) // stride[0] + 1):
        for q in range((width + left + right - kernel[1]) // stride[1] + 1):
            h, w = p * stride[0] - top, q * stride[1] - left
            rows = slice(max(h, 0), min(h + kernel[0], height))
            columns = slice(max(w, 0), min(w + kernel[1], width))
            yield p, q, rows, columns


def _empty(x_shape, kernel, stride, padding):
    p, q, _, _ = list(windows(x_shape, kernel, stride, padding))[-1]
    return np.zeros((x_shape[0], p + 1, q + 1, x_shape[3]))


def maxpool2d_forward(x, kernel, stride, padding):
    y = _empty(x.shape, kernel, stride, padding)
    for p, q, rows, columns in windows(x.shape, kernel, stride, padding):
        y[:, p, q] = x[:, rows, columns].max(axis=(1, 2))
    return y


def maxpool2d_dx(dy, x, kernel, stride, padding):
    """The first of several largest takes dy."""
    dx = np.zeros(x.shape)
    for p, q, rows, columns in windows(x.shape, kernel, stride, padding):
        seen = x[:, rows, columns]
        into = dx[:, rows, columns]
        for n in range(x.shape[0]):
            for c in range(x.shape[3]):
                first = np.unravel_index(seen[n, :, :, c].argmax(), seen.shape[1:3])
                into[n, first[0], first[1], c] += dy[n, p, q, c]
    return dx


def avgpool2d_forward(x, kernel, stride, padding, count_include_pad):
    y = _empty(x.shape, kernel, stride, padding)
    for p, q, rows, columns in windows(x.shape, kernel, stride, padding):
        seen = x[:, rows, columns].astype(np.float64)
        size = kernel[0] * kernel[1] if count_include_pad else seen.shape[1] * seen.shape[2]
        y[:, p, q] = seen.sum(axis=(1, 2)) / size
    return y


def avgpool2d_dx(dy, x, kernel, stride, padding, count_include_pad):
    dx = np.zeros(x.shape)
    for p, q, rows, columns in windows(x.shape, kernel, stride, padding):
        into = dx[:, rows, columns]
        size = kernel[0] * kernel[1] if count_include_pad else into.shape[1] * into.shape[2]
        into += dy[:, p, q][:, None, None] / size
    return dx
