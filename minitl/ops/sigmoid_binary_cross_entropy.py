"""Binary cross entropy of a sigmoid: the loss of yes-or-no questions, one for each logit.

logits, targets: any shape, the same      pos_weight: broadcast against them      result: a scalar
"""

import numpy as np

from minitl.backend import Array, is_on_gpu, like, real
from minitl.ops.mean_squared_error import as_array, as_weights, check_target
from minitl.tensor import Op, Tensor


class SigmoidBinaryCrossEntropy(Op):
    """The mean of -(pos_weight * t * log p + (1 - t) * log(1 - p)) with p = sigmoid(logits)."""

    saves = ("pos_weight", "probabilities", "targets")

    def forward(self, logits: Array, targets: Array, pos_weight: Array | None) -> Array:
        """Compute the loss, a 0-d array."""
        loss, probabilities = self.kernels.sigmoid_binary_cross_entropy_forward(
            logits, targets, pos_weight
        )
        if any(self.needs_grad):
            self.probabilities, self.targets, self.pos_weight = probabilities, targets, pos_weight
        return loss

    # With p = sigmoid(z):    d log p / dz = 1 - p,    d log(1 - p) / dz = -p, so for each element
    #     dz = (1 - t) * p - pos_weight * t * (1 - p),    which is p - t without weight,
    # divided by the number of elements.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dlogits."""
        return (
            self.kernels.sigmoid_binary_cross_entropy_dx(
                dy, self.probabilities, self.targets, self.pos_weight
            ),
        )


def sigmoid_binary_cross_entropy(
    logits: Tensor, targets: Array, *, pos_weight: Array | None = None
) -> Tensor:
    """Return the mean binary cross entropy, as PyTorch's `binary_cross_entropy_with_logits`.

    logits: any shape. targets: an array of that shape, values 0 to 1; on the GPU already, of the
        loss's dtype, they are not looked at.
    pos_weight: how much a positive target counts against a negative one; an array or list that
        broadcasts to the logits, (K,) for one weight for each of K answers, finite and not negative. One
        that is on the GPU already is not looked at.

    Raises TypeError for targets that are no numbers, ValueError for shapes that do not fit each other,
    for targets outside 0 .. 1 and for a weight that is none.
    """
    name = "sigmoid_binary_cross_entropy: targets"
    given = as_array(name, targets)
    targets = check_target(name, given, logits)
    if not is_on_gpu(given):
        _check_range(given)
    if pos_weight is not None:
        pos_weight = as_weights("pos_weight", pos_weight)
        shape = tuple(pos_weight.shape)
        if shape != logits.shape[logits.ndim - len(shape) :]:
            raise ValueError(
                f"pos_weight must have the shape of the logits' last axes, {logits.shape}; got {shape}"
            )
        if not is_on_gpu(pos_weight):
            pos_weight = like(logits.data, pos_weight.astype(real(logits.dtype)))
    return SigmoidBinaryCrossEntropy.apply(logits, targets=targets, pos_weight=pos_weight)


def _check_range(targets: Array) -> None:
    outside = np.argwhere(~((targets >= 0) & (targets <= 1)))
    if len(outside):
        where = tuple(int(i) for i in outside[0])
        raise ValueError(
            f"sigmoid_binary_cross_entropy: targets must be in 0 .. 1; got {targets[where]} at {where}"
        )
