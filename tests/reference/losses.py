"""The losses and their gradients in float64, term by term."""

import numpy as np


def softmax_cross_entropy(logits, labels, class_weights=None, label_smoothing=0.0):
    """Return the loss and its gradient, picture by picture."""
    n, k = logits.shape
    weights = np.ones(k) if class_weights is None else class_weights.astype(np.float64)
    loss, norm, gradient = 0.0, 0.0, np.zeros((n, k))
    for row in range(n):
        z = logits[row].astype(np.float64)
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        target = np.full(k, label_smoothing / k)
        target[labels[row]] += 1 - label_smoothing
        for c in range(k):
            if target[c] * weights[c] > 0:
                loss -= target[c] * weights[c] * log_p[c]
                # d log_p[c] / dz = onehot(c) - p
                gradient[row, c] -= target[c] * weights[c]
                gradient[row] += target[c] * weights[c] * np.exp(log_p)
        norm += weights[labels[row]]
    return loss / norm, gradient / norm


def sigmoid_binary_cross_entropy(logits, targets, pos_weight=None):
    z, t = logits.astype(np.float64), targets.astype(np.float64)
    w = 1.0 if pos_weight is None else pos_weight.astype(np.float64)
    # -log(sigmoid(z)) = log(1 + exp(-z)) and -log(1 - sigmoid(z)) = log(1 + exp(z))
    losses = w * t * np.logaddexp(0, -z) + (1 - t) * np.logaddexp(0, z)
    p, not_p = np.exp(-np.logaddexp(0, -z)), np.exp(-np.logaddexp(0, z))
    return losses.mean(), ((1 - t) * p - w * t * not_p) / z.size


def mean_squared_error(prediction, target):
    d = prediction.astype(np.float64) - target.astype(np.float64)
    return (d**2).mean(), 2 * d / d.size
