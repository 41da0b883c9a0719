"""The dense layer on the GPU: convolution of pictures of one pixel, by the same kernels.

x: N, I      weight: O, I      bias: O      y: N, O

    y = x weight^T + bias

Number types and precision are as in conv2d.py.
"""

from minitl.kernels.cuda import conv2d
from minitl.kernels.cuda.runtime import Array, contiguous
from minitl.shapes import Padding2d

ONE_PIXEL = ((1, 1), Padding2d(0, 0, 0, 0), (1, 1), 1)  # stride, padding, dilation, groups


def _pixels(matrix: Array) -> Array:
    rows, columns = matrix.shape
    return contiguous(matrix).reshape(rows, 1, 1, columns)


def linear_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return y, shape (N, O)."""
    y = conv2d.conv2d_forward(_pixels(x), _pixels(weight), bias, *ONE_PIXEL)
    return y.reshape(x.shape[0], weight.shape[0])


def linear_dx(dy: Array, weight: Array) -> Array:
    """Return the gradient of x, dy weight, shape (N, I)."""
    shape = dy.shape[0], weight.shape[1]
    dx = conv2d.conv2d_dx(_pixels(dy), _pixels(weight), (shape[0], 1, 1, shape[1]), *ONE_PIXEL)
    return dx.reshape(*shape)


def linear_dw(dy: Array, x: Array) -> Array:
    """Return the gradient of the weight, dy^T x, shape (O, I)."""
    shape = dy.shape[1], x.shape[1]
    dw = conv2d.conv2d_dw(_pixels(dy), _pixels(x), (shape[0], 1, 1, shape[1]), *ONE_PIXEL)
    return dw.reshape(*shape)


def linear_db(dy: Array) -> Array:
    """Return the gradient of the bias, the sum of dy over the batch, shape (O,)."""
    return conv2d.conv2d_db(dy)
