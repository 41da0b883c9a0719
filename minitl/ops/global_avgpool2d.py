"""Global average pooling: the mean of each channel over the picture.

x: N, H, W, C      result: N, C
"""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class GlobalAvgPool2d(Op):
    """y = the mean of x over H and W."""

    saves = ("x_shape",)

    def forward(self, x: Array) -> Array:
        """Compute y, shape (N, C)."""
        self.x_shape = x.shape
        return self.kernels.global_avgpool2d_forward(x)

    # Every pixel has weight 1 / (H * W):    dx = dy / (H * W), the same for all pixels.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.global_avgpool2d_dx(dy, self.x_shape),)


def global_avgpool2d(x: Tensor) -> Tensor:
    """Take the mean of each channel over the whole picture.

    x: (N, H, W, C). Returns (N, C). Raises ValueError for another number of axes or an empty picture.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"global_avgpool2d needs pictures of shape (N, H, W, C); got {x.shape}")
    return GlobalAvgPool2d.apply(x)
