"""Pictures joined along their channels, as the branches of an Inception block are."""

from collections.abc import Sequence

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class Concat(Op):
    """Join; y = [x_1 | x_2 | ...] along the last axis."""

    saves = ("sizes",)

    def forward(self, *arrays: Array) -> Array:
        """Compute y, shape (..., sum of channels)."""
        self.sizes = [array.shape[-1] for array in arrays]
        return self.kernels.concat_forward(arrays)

    # Each element of y is one element of one x, so dx_i is the part of dY that x_i went to.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute the gradient of each input."""
        parts = self.kernels.concat_dx(dy, self.sizes)
        return tuple(
            part if needs else None for part, needs in zip(parts, self.needs_grad, strict=True)
        )


def concat(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along the last axis (channels).

    tensors: at least one, shapes equal but for the last axis.

    Raises ValueError for shapes that do not fit each other.
    """
    if not tensors:
        raise ValueError("concat needs at least one tensor; got none")
    shapes = [t.shape for t in tensors]
    if any(not shape or shape[:-1] != shapes[0][:-1] for shape in shapes):
        raise ValueError(f"concat needs shapes that differ in the last axis only; got {shapes}")
    return Concat.apply(*tensors)
