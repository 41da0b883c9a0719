"""From pictures to rows of features.

x: N, H, W, C    result: N, C*H*W

Features come in the order channel, row, column, which is that of libraries with N, C, H, W pictures:
the weight of a dense layer that follows is the same there and here.
"""

from minitl.backend import Array, array_module, copied
from minitl.tensor import Op, Tensor


class Flatten(Op):
    """Rearrangement; y[n, (c*H + h)*W + w] = x[n, h, w, c]."""

    saves = ("x_shape",)

    def forward(self, x: Array) -> Array:
        """Compute y, shape (N, C*H*W)."""
        self.x_shape = x.shape
        n, h, w, c = x.shape
        y = array_module(x).empty((n, c, h, w), x.dtype)
        y[...] = x.transpose(0, 3, 1, 2)
        return y.reshape(n, c * h * w)

    # A permutation, so its gradient is the inverse permutation of dY.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        n, h, w, c = self.x_shape
        return (copied(dy.reshape(n, c, h, w).transpose(0, 2, 3, 1)),)


def flatten(x: Tensor) -> Tensor:
    """Turn pictures (N, H, W, C) into rows (N, C*H*W), in the order channel, row, column.

    Rows (N, I) are returned as they are. Raises ValueError for any other number of axes.
    """
    if x.ndim == 2:
        return x
    if x.ndim != 4:
        raise ValueError(f"flatten needs pictures of shape (N, H, W, C) or rows; got {x.shape}")
    return Flatten.apply(x)
