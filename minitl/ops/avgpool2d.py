"""Average pooling: the mean value of each window.

x: N, H, W, C      result: N, P, Q, C
"""

from typing import Any

from minitl.backend import Array
from minitl.ops.maxpool2d import pooling_window
from minitl.shapes import Padding, Pair
from minitl.tensor import Op, Tensor


class AvgPool2d(Op):
    """y = the sum over each window, divided by its size."""

    saves = ("x_shape", "window")

    def forward(self, x: Array, **window: Any) -> Array:
        """Compute y, shape (N, P, Q, C)."""
        self.x_shape, self.window = x.shape, window
        return self.kernels.avgpool2d_forward(x, **window)

    # y is linear in x, with weight 1 / size for each pixel of the window:
    #     dx = the sum of dy / size over the windows that saw the pixel.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.avgpool2d_dx(dy, self.x_shape, **self.window),)


def avgpool2d(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> Tensor:
    """Take the mean value of each window.

    x: (N, H, W, C). stride: by default the kernel size.
    padding: p, (rows, columns) or ((top, bottom), (left, right)), each smaller than the kernel.
    count_include_pad: whether padding counts as zeros; if not, a mean is over the pixels alone.

    Returns (N, P, Q, C) with P = (H + top + bottom - kernel rows) // stride + 1, Q likewise.
    Raises ValueError for shapes that do not fit each other.
    """
    window = pooling_window("avgpool2d", x.shape, kernel_size, stride, padding)
    return AvgPool2d.apply(x, **window, count_include_pad=count_include_pad)
