"""Losses on the GPU, each the mean over the batch.

logits, prediction: N, K or any shape, activations      loss: a 0-d array, float32 (float64 for float64)
labels: int64      targets, class_weights, pos_weight: of the loss's type

Each function is as its namesake in kernels/cpu/loss.py; the kernels are in loss.cu. What `..._forward` hands
on to `..._dx` is our own affair: for the cross entropies it is the gradient for dloss = 1.
"""

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import NULL, Array, Defines, blocks, contiguous, ctype, empty, real

THREADS = 128  # as in loss.cu
BLOCKS = 256  # whose sums are kept apart

VARIANTS = ({"T": "float"}, {"T": "bf16"}, {"T": "double"})


def _launch(name: str, dtype: np.dtype, count: int, *args: object) -> None:
    defines: Defines = {"T": ctype(dtype)}
    assert defines in VARIANTS
    runtime.launch("loss", name, (count,), (THREADS,), args, **defines)


def _total(losses: Array, dtype: np.dtype) -> Array:
    """Return the sum of the parts of a loss, a 0-d array."""
    loss = empty((), real(dtype))
    _launch("add_losses", dtype, 1, losses, np.int32(losses.size), loss)
    return loss


def _times_dloss(x: Array, dloss: Array, factor: float) -> Array:
    out = empty(x.shape, x.dtype)
    count = blocks(x.nbytes, 16 * THREADS)
    number = real(x.dtype).type(factor)
    _launch("times_dloss", x.dtype, count, x, dloss, number, out, np.int64(x.size))
    return out


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, class_weights: Array | None, label_smoothing: float
) -> tuple[Array, Array]:
    """Return the loss and its gradient, (N, K), of the logits' type.

    For the formula see `ops.softmax_cross_entropy`. Labels must lie in 0 .. K - 1.
    """
    logits, labels = contiguous(logits), contiguous(labels)
    n, k = logits.shape
    losses, gradient = empty((n,), np.float64), empty((n, k), logits.dtype)
    norm = NULL
    if class_weights is not None:
        class_weights = contiguous(class_weights)
        norm = empty((), np.float64)
        _launch("label_weights", logits.dtype, 1, labels, class_weights, np.int32(n), norm)
    _launch(
        "softmax_cross_entropy_forward",
        logits.dtype,
        n,
        logits,
        labels,
        NULL if class_weights is None else class_weights,
        norm,
        np.float64(label_smoothing),
        np.int32(k),
        losses,
        gradient,
    )
    return _total(losses, logits.dtype), gradient


def softmax_cross_entropy_dx(
    dloss: Array,
    probabilities: Array,
    labels: Array,
    class_weights: Array | None,
    label_smoothing: float,
) -> Array:
    """Return the gradient of the logits; `probabilities` is the second result of forward."""
    return _times_dloss(probabilities, dloss, 1)


def sigmoid_binary_cross_entropy_forward(
    logits: Array, targets: Array, pos_weight: Array | None
) -> tuple[Array, Array]:
    """Return the loss and its gradient, of the shape and type of the logits."""
    logits, targets = contiguous(logits), contiguous(targets)
    count = blocks(logits.size, THREADS, BLOCKS)
    losses, gradient = empty((count,), np.float64), empty(logits.shape, logits.dtype)
    _launch(
        "sigmoid_binary_cross_entropy_forward",
        logits.dtype,
        count,
        logits,
        targets,
        NULL if pos_weight is None else contiguous(pos_weight),
        np.int64(1 if pos_weight is None else pos_weight.size),
        np.int64(logits.size),
        losses,
        gradient,
    )
    return _total(losses, logits.dtype), gradient


def sigmoid_binary_cross_entropy_dx(
    dloss: Array, probabilities: Array, targets: Array, pos_weight: Array | None
) -> Array:
    """Return the gradient of the logits; `probabilities` is the second result of forward."""
    return _times_dloss(probabilities, dloss, 1)


def mean_squared_error_forward(prediction: Array, target: Array) -> tuple[Array, Array]:
    """Return the loss and the difference prediction - target, of the prediction's type."""
    prediction, target = contiguous(prediction), contiguous(target)
    count = blocks(prediction.size, THREADS, BLOCKS)
    losses, difference = empty((count,), np.float64), empty(prediction.shape, prediction.dtype)
    args = (prediction, target, np.int64(prediction.size), losses, difference)
    _launch("mean_squared_error_forward", prediction.dtype, count, *args)
    return _total(losses, prediction.dtype), difference


def mean_squared_error_dx(dloss: Array, difference: Array) -> Array:
    """Return the gradient of the prediction, 2 * difference / elements."""
    return _times_dloss(difference, dloss, 2 / difference.size)
