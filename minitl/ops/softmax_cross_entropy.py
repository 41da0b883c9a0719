"""Cross entropy of a softmax: the loss of classification into one of K classes.

logits: N, K      labels: N integers      class_weights: K      result: a scalar
"""

from typing import Any

import numpy as np

from minitl.backend import Array, is_on_gpu, like, real
from minitl.ops.mean_squared_error import as_array, as_weights
from minitl.tensor import Op, Tensor


class SoftmaxCrossEntropy(Op):
    """The weighted mean of -log softmax(logits)[label]."""

    saves = ("probabilities", "labels", "class_weights", "label_smoothing")

    def forward(
        self, logits: Array, labels: Array, class_weights: Array | None, label_smoothing: float
    ) -> Array:
        """Compute the loss, a 0-d array."""
        loss, probabilities = self.kernels.softmax_cross_entropy_forward(
            logits, labels, class_weights, label_smoothing
        )
        if any(self.needs_grad):
            self.probabilities, self.labels = probabilities, labels
            self.class_weights, self.label_smoothing = class_weights, label_smoothing
        return loss

    # For one picture with logits z and any weights q of the classes (the smoothed, weighted target),
    #     L = -sum_k q_k log p_k,    log p_k = z_k - log(sum_j exp z_j)
    #     d log p_k / d z_j = [j = k] - p_j
    #     dL / d z_j = -q_j + p_j sum_k q_k,
    # and all pictures together are divided by the sum of their labels' weights.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dlogits."""
        return (
            self.kernels.softmax_cross_entropy_dx(
                dy, self.probabilities, self.labels, self.class_weights, self.label_smoothing
            ),
        )


def softmax_cross_entropy(
    logits: Tensor,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
) -> Tensor:
    """Return the mean over the batch of -log softmax(logits)[label], as PyTorch's `cross_entropy`.

    logits: (N, K). labels: integer array (N,), or tensor of PyTorch on the CPU, with values 0 .. K - 1.
        Labels and class weights that are on the GPU already are not looked at, so that nothing waits for
        it: they are int64, and of the loss's dtype, and their values must be right.
    label_smoothing: this share of each label, 0 to 1, is spread over all K classes alike
        (Szegedy et al., "Rethinking the Inception architecture", 2015).
    class_weights: (K,), an array or list, finite, not negative, and above 0 for some label of the batch.
        Each class's term counts so much; the sum over the batch is then divided by the sum of the labels'
        weights.

    Raises TypeError for labels that are no integers, ValueError for shapes that do not fit each other
    and for values out of range; the first bad label is named.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"softmax_cross_entropy needs logits of shape (N, K); got {logits.shape}")
    n, k = logits.shape
    labels = like(logits.data, check_labels(labels, n, k))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0 .. 1; got {label_smoothing}")
    if class_weights is not None:
        class_weights = as_weights("class_weights", class_weights)
        if tuple(class_weights.shape) != (k,):
            raise ValueError(
                f"class_weights must have shape ({k},), one for each class; "
                f"got {tuple(class_weights.shape)}"
            )
        if not is_on_gpu(class_weights):
            _refuse_no_weight(class_weights, None if is_on_gpu(labels) else labels)
            class_weights = like(logits.data, class_weights.astype(real(logits.dtype)))
    options: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    return SoftmaxCrossEntropy.apply(logits, labels=labels, **options)


def _refuse_no_weight(class_weights: Array, labels: Array | None) -> None:
    counted = class_weights if labels is None else class_weights[labels]
    if not counted.any():
        raise ValueError(
            "class_weights are 0 for every label of the batch, so there is nothing to take a mean of; "
            f"give some class of the batch a weight above 0 (weights {class_weights.tolist()})"
        )


def check_labels(labels: Array, n: int, classes: int) -> Array:
    """Return the labels as int64, or raise an error that names what is wrong with them."""
    labels = as_array("labels", labels)
    kind = getattr(labels, "dtype", None)
    if kind is None or kind.kind not in "iu":
        raise TypeError(
            f"labels must be an integer array, one class index for each picture; "
            f"got {kind if kind is not None else type(labels).__name__}"
        )
    if tuple(labels.shape) != (n,):
        raise ValueError(
            f"labels must have shape ({n},), one for each row of the logits; got {tuple(labels.shape)}"
        )
    if is_on_gpu(labels):
        return labels
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        more = f" ({bad.size} labels are out of range)" if bad.size > 1 else ""
        raise ValueError(
            f"label {labels[bad[0]]} at index {bad[0]} is not in 0 .. {classes - 1}: "
            f"the logits have {classes} classes{more}"
        )
    return labels.astype(np.int64, copy=False)
