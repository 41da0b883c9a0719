"""What a network computes for a loader's pictures; a frozen backbone computes it only once.

Where every parameter but the head's is frozen and the pictures are not varied, the backbone hands the
head the same features in every epoch. They are kept in memory (4 bytes a feature: 200 MB for 100,000
pictures of a ResNet-18), and each epoch after the first costs the head alone.
"""

from collections.abc import Callable, Iterator

import numpy as np

from minitl.data.loader import Loader
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad
from minitl.train.console import Progress

EVALUATION_BATCH = 32  # pictures at once where nothing is trained
Count = Callable[[int], object]


def backbone_is_frozen(model: Classifier) -> bool:
    """Whether only the head trains."""
    return not any(parameter.requires_grad for parameter in model.backbone_parameters().values())


class Forward:
    """A model on the pictures of one loader.

    keep_features: compute the backbone once and reuse its output; for a frozen one and a loader that
    does not vary its pictures.
    """

    def __init__(self, model: Classifier, loader: Loader, keep_features: bool, label: str) -> None:
        if keep_features and (loader.augment is not None or loader.drop_last):
            raise ValueError(
                "features can be kept only where every picture is used and none is varied"
            )
        self.model, self.loader, self.label = model, loader, label
        self._keep_features = keep_features
        self._features: np.ndarray | None = None

    def prepare(self) -> None:
        """Compute the features that are to be kept, once."""
        if self._keep_features and self._features is None:
            self._features = self._compute_features()

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield (logits, labels) for the batches of an epoch, in the model's present mode."""
        if not self._keep_features:
            for batch in self.loader.epoch(epoch):
                yield self.model(Tensor(batch.images)), batch.labels
            return
        self.prepare()
        assert self._features is not None
        order, size = self.loader.order(epoch), self.loader.batch_size
        labels = np.array([sample.label for sample in self.loader.samples], np.int64)
        for number in range(len(self.loader)):
            indices = order[number * size : (number + 1) * size]
            yield self.model.head(Tensor(self._features[indices])), labels[indices]

    @no_grad()
    def _compute_features(self) -> np.ndarray:
        """Return the backbone's output for every sample, (N, F), in the samples' order."""
        features: np.ndarray | None = None
        images = len(self.loader.samples)
        with Progress(f"features of the frozen backbone, {self.label}", images) as progress:
            for batch in self.loader.epoch(0):
                part = self.model.features(Tensor(batch.images)).numpy()
                if features is None:
                    features = np.empty((images, part.shape[1]), part.dtype)
                features[batch.indices] = part
                progress.update(len(part))
        assert features is not None
        return features

    @no_grad()
    def logits(self, on_batch: Count = lambda images: None) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, K) and labels (N,) in evaluation mode, in the loader's order.

        Calls `on_batch` with the size of each batch. The model is left in the mode it was in.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            parts, labels = [], []
            for logits, batch_labels in self.epoch(0):
                parts.append(logits.numpy())
                labels.append(batch_labels)
                on_batch(len(batch_labels))
            return np.concatenate(parts), np.concatenate(labels)
        finally:
            self.model.train(was_training)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
