"""One tensor and a share of another, as the losses of two heads are added."""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class WeightedAdd(Op):
    """Sum; z = x + weight * y. For losses, of one number each: array arithmetic needs no kernel."""

    saves = ("weight",)

    def forward(self, x: Array, y: Array, weight: float) -> Array:
        """Compute z."""
        self.weight = weight
        return x + weight * y

    # dL = <dZ, dX> + weight * <dZ, dY>.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Hand dz to x, and weight * dz to y."""
        needs_x, needs_y = self.needs_grad
        return dy if needs_x else None, self.weight * dy if needs_y else None


def weighted_add(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Return x + weight * y; equal shapes, nothing is broadcast (ValueError otherwise)."""
    if x.shape != y.shape:
        raise ValueError(
            f"weighted_add needs two tensors of one shape; got {x.shape} and {y.shape}"
        )
    return WeightedAdd.apply(x, y, weight=float(weight))
