"""Dropout (Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014),
scaled in training so that evaluation needs nothing.
"""

from minitl.backend import Array, is_on_gpu
from minitl.tensor import Op, Tensor


class Dropout(Op):
    """Dropout; y = x * mask / (1 - p)."""

    # Not the mask: it is a function of these, and computed a second time.
    saves = ("p", "seed", "offset")

    def forward(self, x: Array, p: float, seed: int, offset: int | Array) -> Array:
        """Compute y."""
        self.p, self.seed, self.offset = p, seed, offset
        return self.kernels.dropout_forward(x, p, seed, offset)

    # y is linear in x, with the mask fixed: dX = dY * mask / (1 - p).
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.dropout_dx(dy, self.p, self.seed, self.offset),)


def dropout(x: Tensor, p: float, *, seed: int, offset: int | Array) -> Tensor:
    """Set each element to zero with probability p and scale the others by 1 / (1 - p); any shape.

    seed: chooses a stream of random numbers. offset: where in it this call begins; it uses as many
        numbers as x has elements, so calls that shall differ begin at least that far apart. On a GPU
        it may also be an int64 array of one element there, of which nothing is checked.
        Equal seed and offset give the equal mask, on every device and number of threads.

    Raises ValueError for p outside 0 .. 1 and for a seed or offset outside 0 .. 2^64 - 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is a probability, 0 to 1; got {p}")
    for name, value in (("seed", seed), ("offset", offset)):
        if not is_on_gpu(value) and not 0 <= value < 2**64:
            raise ValueError(f"dropout: {name} must be in 0 .. 2^64 - 1; got {value}")
    if p == 0:
        return x
    return Dropout.apply(
        x, p=float(p), seed=int(seed), offset=offset if is_on_gpu(offset) else int(offset)
    )
