"""How good predictions are."""

from typing import Any

import numpy as np

CONFIDENCE_BINS = 10


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities, in the same kind of floats."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into logarithms of probabilities, in float64: none of them is too small for it."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """Compare predictions with labels.

    logits: (N, K). labels: integers (N,). classes: K names.

    Returns images, loss (mean cross-entropy), accuracy, top3 and top5 (where K is larger), macro_f1 over the
    classes that occur, as true or predicted ones, confusion (rows: the true classes, columns: the predicted
    ones), calibration (see `calibration`), and per class: images, precision, recall, f1. Shares are 0 to 1.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = logits.argmax(axis=1)
    every = np.arange(len(classes))
    log_probabilities = log_softmax(logits)
    rows = np.arange(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    result: dict[str, Any] = {
        "images": len(labels),
        "loss": float(-log_probabilities[rows, labels].mean()),
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1[np.union1d(labels, predicted)].mean()),
    }
    result["confusion"] = confusion_matrix(labels, predicted, labels=every).tolist()
    result["calibration"] = calibration(np.exp(log_probabilities), labels)
    for k in (3, 5):
        if len(classes) > k:
            best = np.argpartition(-logits, k, axis=1)[:, :k]
            result[f"top{k}"] = float((best == labels[:, None]).any(axis=1).mean())
    result["per_class"] = {
        name: {
            "images": int(support[i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, name in enumerate(classes)
    }
    return result


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare how sure the predictions are with how often they are right.

    probabilities: (N, K). labels: integers (N,).

    Returns confidence, accuracy and images of each of 10 equal ranges of the largest probability (None
    where a range is empty), and expected_error: the mean gap between confidence and accuracy, weighted
    by pictures, "expected calibration error" in Guo et al. 2017, "On Calibration of Modern Neural
    Networks".
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((sure * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    counts = np.bincount(bins, minlength=CONFIDENCE_BINS)
    sums = [np.bincount(bins, values, CONFIDENCE_BINS) for values in (sure, right)]
    confidence, accuracy = (
        [float(s / n) if n else None for s, n in zip(total, counts, strict=True)] for total in sums
    )
    gaps = np.abs(sums[0] - sums[1])  # of a range: images * |confidence - accuracy|
    return {
        "expected_error": float(gaps.sum() / len(labels)),
        "images": counts.tolist(),
        "confidence": confidence,
        "accuracy": accuracy,
    }
