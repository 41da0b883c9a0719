"""Losses on the CPU, each the mean over the batch. Small arrays, so plain NumPy.

logits, prediction: N, K or any shape      loss: a 0-d array of their dtype

Whatever is summed is summed in float64. Nothing overflows: only differences from the largest logit, or
negative magnitudes, are exponentiated.
"""

import numpy as np


def softmax_cross_entropy_forward(
    logits: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray | None,
    label_smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the probabilities, (N, K); for the formula see `ops.softmax_cross_entropy`."""
    rows = np.arange(len(labels))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted)
        total = probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
        probabilities /= total.astype(logits.dtype)
        log_total = np.log(total[:, 0])
        chosen = log_total - shifted[rows, labels]  # -log of the label's probability
        weights = None if class_weights is None else class_weights[labels].astype(np.float64)
        norm = len(labels) if weights is None else weights.sum()
        loss = (chosen if weights is None else chosen * weights).sum() / norm
        if label_smoothing:
            every = log_total[:, None] - shifted
            smooth = (every if class_weights is None else every * class_weights).sum() / norm
            loss = (1 - label_smoothing) * loss + label_smoothing / logits.shape[1] * smooth
    return np.asarray(loss, logits.dtype), probabilities


def softmax_cross_entropy_dx(
    dloss: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray | None,
    label_smoothing: float,
) -> np.ndarray:
    """Return the gradient of the logits, (p * sum(q) - q) / norm, with q the smoothed, weighted target."""
    n, k = probabilities.shape
    rows, dtype = np.arange(n), probabilities.dtype
    with np.errstate(divide="ignore", invalid="ignore"):
        if class_weights is None:
            dx: np.ndarray = probabilities * (dloss / n).astype(dtype)
            if label_smoothing:
                dx -= (dloss * label_smoothing / k / n).astype(dtype)
            dx[rows, labels] -= (dloss * (1 - label_smoothing) / n).astype(dtype)
            return dx
        target = np.tile(class_weights.astype(np.float64) * (label_smoothing / k), (n, 1))
        target[rows, labels] += class_weights[labels] * (1 - label_smoothing)
        norm = class_weights[labels].sum(dtype=np.float64)
        dx = probabilities * target.sum(axis=1, keepdims=True) - target
        dx *= dloss / norm
        return dx.astype(dtype)


def sigmoid_binary_cross_entropy_forward(
    logits: np.ndarray, targets: np.ndarray, pos_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the probabilities, of the shape of the logits."""
    small = np.exp(-np.abs(logits))  # exp of what is below zero: at most 1
    probabilities = np.where(logits >= 0, 1, small) / (1 + small)
    # -log(sigmoid(z)) = log(1 + exp(-|z|)) + max(-z, 0), and -log(1 - sigmoid(z)) is z more.
    losses = np.log1p(small) + np.maximum(-logits, 0)
    if pos_weight is not None:
        losses *= 1 + (pos_weight - 1) * targets
    losses += (1 - targets) * logits
    return np.asarray(losses.mean(dtype=np.float64), logits.dtype), probabilities


def sigmoid_binary_cross_entropy_dx(
    dloss: np.ndarray,
    probabilities: np.ndarray,
    targets: np.ndarray,
    pos_weight: np.ndarray | None,
) -> np.ndarray:
    """Return the gradient of the logits, ((1 - t) * p - pos_weight * t * (1 - p)) / elements."""
    if pos_weight is None:
        dx: np.ndarray = probabilities - targets
    else:
        dx = (1 - targets) * probabilities - pos_weight * targets * (1 - probabilities)
    dx *= (dloss / dx.size).astype(dx.dtype)
    return dx


def mean_squared_error_forward(
    prediction: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the difference prediction - target."""
    difference = prediction - target
    return np.asarray(
        (difference * difference).mean(dtype=np.float64), difference.dtype
    ), difference


def mean_squared_error_dx(dloss: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return the gradient of the prediction, 2 * difference / elements."""
    dx: np.ndarray = difference * (2 * dloss / difference.size).astype(difference.dtype)
    return dx
