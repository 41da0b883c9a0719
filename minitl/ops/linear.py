"""The dense layer.

x: N, I    weight: O, I    bias: O    result: N, O
"""

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class Linear(Op):
    """Dense layer; y = x weight^T + bias."""

    saves = ("x", "weight")
    parameters = (1, 2)

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Compute y, shape (N, O)."""
        needs_x, needs_weight, _ = self.needs_grad
        if needs_x:
            self.weight = weight
        if needs_weight:
            self.x = x
        return self.kernels.linear_forward(x, weight, bias)

    # With L the loss, dL = <dY, dX W^T> + <dY, X dW^T> + <dY, 1 db^T>, so
    #     dX = dY W,    dW = dY^T X,    db = dY summed over the batch.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx, dweight and dbias."""
        needs_x, needs_weight, needs_bias = self.needs_grad
        k = self.kernels
        return (
            k.linear_dx(dy, self.weight) if needs_x else None,
            k.linear_dw(dy, self.x) if needs_weight else None,
            k.linear_db(dy) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows of features with a weight.

    x: (N, I). weight: (O, I). bias: (O,) or None. All float32 or all float64.

    Returns (N, O). Raises ValueError for shapes that do not fit each other.
    """
    if x.ndim != 2:
        raise ValueError(
            f"linear needs rows of features, shape (N, I); got {x.shape}. Pictures become rows by "
            "flatten(x) or global_avgpool2d(x)"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"linear: rows have {x.shape[1]} features, so the weight must have shape "
            f"(O, {x.shape[1]}); got {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias must have shape ({weight.shape[0]},); got {bias.shape}")
    return Linear.apply(x, weight, bias)
