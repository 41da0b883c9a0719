"""How good predictions are."""

from typing import Any

import numpy as np


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """Compare predictions with labels.

    logits: (N, K). labels: integers (N,). classes: K names.

    Returns images, loss (mean cross-entropy), accuracy, top5 (where K > 5), macro_f1 over the
    classes, and per class: images, precision, recall, f1. Shares are 0 to 1.
    """
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    predicted = logits.argmax(axis=1)
    every = np.arange(len(classes))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    result: dict[str, Any] = {
        "images": len(labels),
        "loss": float(-log_probabilities[rows, labels].mean()),
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(
            f1_score(labels, predicted, labels=every, average="macro", zero_division=0)
        ),
    }
    if len(classes) > 5:
        best5 = np.argpartition(-logits, 5, axis=1)[:, :5]
        result["top5"] = float((best5 == labels[:, None]).any(axis=1).mean())
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
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
