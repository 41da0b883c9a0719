"""A number times a tensor, as the loss of a second head counts for less."""

from minitl.backend import Array, is_on_gpu
from minitl.tensor import Op, Tensor


class Scale(Op):
    """Product with a constant; y = factor * x."""

    saves = ("factor",)

    def forward(self, x: Array, factor: float | Array) -> Array:
        """Compute y."""
        self.factor = factor
        return self.kernels.scale_forward(x, factor)

    # dL = <dY, factor * dX> = <factor * dY, dX>.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.scale_forward(dy, self.factor),)


def scale(x: Tensor, factor: float | Array) -> Tensor:
    """Return factor * x; any shape. factor: on a GPU also a float32 array of one element there."""
    return Scale.apply(x, factor=factor if is_on_gpu(factor) else float(factor))
