"""The sum of two tensors of one shape, as residual connections need it."""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class Add(Op):
    """Sum; z = x + y."""

    def forward(self, x: Array, y: Array) -> Array:
        """Compute z."""
        return self.kernels.add_forward(x, y)

    # dL = <dZ, dX> + <dZ, dY>: both gradients are dZ itself.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Hand dz to both inputs."""
        return tuple(dy if needs else None for needs in self.needs_grad)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y; equal shapes, nothing is broadcast (ValueError otherwise)."""
    if x.shape != y.shape:
        raise ValueError(f"add needs two tensors of one shape; got {x.shape} and {y.shape}")
    return Add.apply(x, y)
