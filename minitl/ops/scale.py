"""A number times a tensor, as the loss of a second head counts for less."""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class Scale(Op):
    """Product with a constant; y = factor * x."""

    saves = ("factor",)

    def forward(self, x: Array, factor: float) -> Array:
        """Compute y."""
        self.factor = factor
        return self.kernels.scale_forward(x, factor)

    # dL = <dY, factor * dX> = <factor * dY, dX>.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.scale_forward(dy, self.factor),)


def scale(x: Tensor, factor: float) -> Tensor:
    """Return factor * x; any shape."""
    return Scale.apply(x, factor=float(factor))
