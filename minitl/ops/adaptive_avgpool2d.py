"""Adaptive average pooling: a picture of any size to a given number of windows.

x: N, H, W, C      result: N, P, Q, C

Window p covers the rows floor(p H / P) up to, not including, ceil((p + 1) H / P), columns likewise, as
in PyTorch: windows overlap where P does not divide H, and repeat rows where P is larger.
"""

from collections.abc import Iterator

import numpy as np

from minitl.backend import BFLOAT16, Array
from minitl.shapes import Pair, pair
from minitl.tensor import Op, Tensor


class AdaptiveAvgPool2d(Op):
    """y = the mean over each window."""

    # Where this pooling is used, behind the last convolution, a picture is a few pixels wide: array
    # arithmetic, window by window, is quick enough, and there is no kernel.
    saves = ("x_shape",)

    def forward(self, x: Array, size: tuple[int, int]) -> Array:
        """Compute y, shape (N, P, Q, C)."""
        self.x_shape = x.shape
        half = x.dtype == BFLOAT16
        if half:
            x = self.kernels.cast(x, np.float32)
        y = _blank(x, size)
        for p, rows in _windows(x.shape[1], size[0]):
            for q, columns in _windows(x.shape[2], size[1]):
                y[:, p, q] = x[:, rows, columns].mean(axis=(1, 2))
        return self.kernels.cast(y, BFLOAT16) if half else y

    # y of a window is linear in x, with weight 1 / size for each of its pixels:
    #     dx = the sum of dy / size over the windows that saw the pixel.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        _, h, w, _ = self.x_shape
        half = dy.dtype == BFLOAT16
        if half:
            dy = self.kernels.cast(dy, np.float32)
        dx = _blank(dy, (h, w))
        dx[...] = 0
        for p, rows in _windows(h, dy.shape[1]):
            for q, columns in _windows(w, dy.shape[2]):
                area = (rows.stop - rows.start) * (columns.stop - columns.start)
                dx[:, rows, columns] += dy[:, p : p + 1, q : q + 1] / area
        return (self.kernels.cast(dx, BFLOAT16) if half else dx,)


def _blank(like: Array, size: tuple[int, int]) -> Array:
    """Return an array of another height and width, to be filled, where `like` lives."""
    return like[:, :1, :1].repeat(size[0], 1).repeat(size[1], 2)


def _windows(size: int, count: int) -> Iterator[tuple[int, slice]]:
    for number in range(count):
        yield number, slice(number * size // count, -(-(number + 1) * size // count))


def adaptive_avgpool2d(x: Tensor, size: Pair) -> Tensor:
    """Take the mean of each of `size` windows, spread evenly over the picture.

    x: (N, H, W, C). size: (P, Q) or one number for both.

    Returns (N, P, Q, C); x itself where it has that size. Raises ValueError for another number of axes, an
    empty picture or a size below 1.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"adaptive_avgpool2d needs pictures of shape (N, H, W, C); got {x.shape}")
    both = pair(size, "size")
    return x if x.shape[1:3] == both else AdaptiveAvgPool2d.apply(x, size=both)
