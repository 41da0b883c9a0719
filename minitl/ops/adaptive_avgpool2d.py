"""Adaptive average pooling: a picture of any size to a given number of windows.

x: N, H, W, C      result: N, P, Q, C

Window p covers the rows floor(p H / P) up to, not including, ceil((p + 1) H / P), columns likewise, as
in PyTorch: windows overlap where P does not divide H, and repeat rows where P is larger.
"""

from minitl.backend import Array
from minitl.shapes import Pair, pair
from minitl.tensor import Op, Tensor


class AdaptiveAvgPool2d(Op):
    """y = the mean over each window."""

    saves = ("x_shape",)

    def forward(self, x: Array, size: tuple[int, int]) -> Array:
        """Compute y, shape (N, P, Q, C)."""
        self.x_shape = x.shape
        return self.kernels.adaptive_avgpool2d_forward(x, size)

    # y of a window is linear in x, with weight 1 / size for each of its pixels:
    #     dx = the sum of dy / size over the windows that saw the pixel.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.adaptive_avgpool2d_dx(dy, self.x_shape),)


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
