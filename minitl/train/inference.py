"""A model on pictures without training: logits, and the figures that follow from them."""

from collections.abc import Callable

import numpy as np

from minitl.data.loader import Loader
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad

BATCH = 32  # pictures at once; the result does not depend on it beyond rounding


@no_grad()
def predict_logits(
    model: Classifier, loader: Loader, on_batch: Callable[[int], None] = lambda images: None
) -> tuple[np.ndarray, np.ndarray]:
    """Run the model over a loader's first epoch in evaluation mode.

    Returns logits (N, K) and labels (N,) in the loader's order; calls `on_batch` with each batch's
    size. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        logits, labels = [], []
        for batch in loader.epoch(0):
            logits.append(model(Tensor(batch.images)).numpy().copy())
            labels.append(batch.labels)
            on_batch(len(batch.labels))
        return np.concatenate(logits), np.concatenate(labels)
    finally:
        model.train(was_training)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
