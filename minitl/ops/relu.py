"""The rectifier, max(x, 0)."""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class Relu(Op):
    """Rectifier; y = max(x, 0)."""

    saves = ("y",)
    rectified = True

    def forward(self, x: Array) -> Array:
        """Compute y."""
        y = self.kernels.relu_forward(x)
        if self.needs_grad[0]:
            self.y = y  # not x: the next operation keeps y anyway
        return y

    # y = x where x > 0 (which is where y > 0) and constant elsewhere, so dX = dY where Y > 0.
    # At x = 0, where there is no derivative, 0 is taken, and dY where Y is a NaN, as in PyTorch.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (dy if self.dy_is_cut else self.kernels.relu_dx(dy, self.y),)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), element by element; any shape. NaN stays NaN."""
    return Relu.apply(x)
