"""What a network computes for a loader's pictures; a frozen backbone computes it only once.

Where every parameter but the head's is frozen and the pictures are not varied, the backbone hands the
head the same features in every epoch. They are kept in memory (4 bytes a feature: 200 MB for 100,000
pictures of a ResNet-18), and each epoch after the first costs the head alone.
"""

from collections.abc import Callable, Iterator

import numpy as np

from minitl.backend import BFLOAT16
from minitl.data.loader import Loader
from minitl.device import CPU, Device
from minitl.models import Classifier
from minitl.nn import Module
from minitl.tensor import Tensor, no_grad
from minitl.train.batches import Inputs, on_device
from minitl.train.console import Progress

EVALUATION_BATCH = 32  # pictures at once where nothing is trained
UNREAD = 64  # batches whose results may still be on a GPU
Count = Callable[[int], object]


def backbone_is_frozen(model: Classifier) -> bool:
    """Whether only the head trains."""
    return not any(parameter.requires_grad for parameter in model.backbone_parameters().values())


class Forward:
    """A model on the pictures of one loader.

    keep_features: compute the backbone once and reuse its output; for a frozen one and a loader that
    does not vary its pictures. device: where the model is; for a GPU the loader must not normalise.
    precision: with "bf16" the network's inputs are in it; as for `Device.computing`, which is around all
    that is done here.
    """

    def __init__(
        self,
        model: Classifier,
        loader: Loader,
        keep_features: bool,
        label: str,
        device: Device = CPU,
        precision: str = "float32",
    ) -> None:
        if keep_features and (loader.augment is not None or loader.drop_last):
            raise ValueError(
                "features can be kept only where every picture is used and none is varied"
            )
        self.model, self.loader, self.label, self.device = model, loader, label, device
        self._dtype = BFLOAT16 if precision == "bf16" else np.dtype(np.float32)
        self._keep_features = keep_features
        self._features: np.ndarray | None = None

    @property
    def network(self) -> Module:
        """What computes logits from `inputs`: the model, or its head alone on kept features."""
        return self.model.head if self._keep_features else self.model

    def prepare(self) -> None:
        """Compute the features that are to be kept, once."""
        if self._keep_features and self._features is None:
            self._features = self._compute_features()

    def inputs(self, epoch: int) -> Iterator[Inputs]:
        """Yield what `network` is given in an epoch, batch by batch."""
        if not self._keep_features:
            yield from self._pictures(self.loader, epoch)
            return
        self.prepare()
        assert self._features is not None
        order, size = self.loader.order(epoch), self.loader.batch_size
        all_labels = np.array([sample.label for sample in self.loader.samples], np.int64)
        for number in range(len(self.loader)):
            indices = order[number * size : (number + 1) * size]
            features = self.device.array(self._features[indices])
            labels = all_labels[indices]
            x = self.device.kernels.cast(features, self._dtype)
            yield Inputs(x, self.device.array(labels), labels)

    def _pictures(self, loader: Loader, epoch: int) -> Iterator[Inputs]:
        batches = loader.epoch(epoch)
        return on_device(batches, loader.preprocessing, self.device, self._dtype)

    @no_grad()
    def _compute_features(self) -> np.ndarray:
        """Return the backbone's output for every sample, (N, F), in the samples' order."""
        features: np.ndarray | None = None
        loader = self.loader.each_once()
        places, images = loader.order(0), len(loader.samples)
        was_training = self.model.training
        self.model.eval()  # dropout in the backbone would be the same in every epoch
        with Progress(f"features of the frozen backbone, {self.label}", images) as progress:
            done = 0
            for inputs in self._pictures(loader, 0):
                part = self.model.features(Tensor(inputs.x)).numpy()
                if features is None:
                    features = np.empty((images, part.shape[1]), part.dtype)
                features[places[done : done + len(part)]] = part
                done += len(part)
                progress.update(len(part))
        self.model.train(was_training)
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
            parts, unread, labels = [], [], []
            for inputs in self.inputs(0):
                unread.append(self.network(Tensor(inputs.x)))
                labels.append(inputs.host_labels)
                if self.device.kind == "cpu" or len(unread) == UNREAD:
                    parts += [logits.numpy() for logits in unread]
                    unread.clear()
                on_batch(len(inputs.host_labels))
            parts += [logits.numpy() for logits in unread]
            return np.concatenate(parts), np.concatenate(labels)
        finally:
            self.model.train(was_training)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (N, K) into probabilities."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
