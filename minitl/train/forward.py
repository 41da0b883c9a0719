"""What a network computes for a loader's pictures; its frozen front does it only once.

Where the first stages are frozen and the pictures not varied, these hand the rest the same features in
every epoch. They are computed once and kept on disk (features.py); each epoch costs the rest alone.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minitl.data.dataset import Dataset, Sample
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import CPU, Device, dtype_of
from minitl.models import Classifier
from minitl.tensor import Tensor
from minitl.train.batches import Inputs, on_device
from minitl.train.feature_cache import FeatureCache
from minitl.train.features import Features
from minitl.train.inference import Inference

EVALUATION_BATCH = 32  # pictures at once where nothing is trained
UNREAD = 64  # batches whose results may still be on a GPU
Count = Callable[[int], object]


def backbone_is_frozen(model: Classifier) -> bool:
    """Whether only the head trains."""
    return not any(parameter.requires_grad for parameter in model.backbone_parameters().values())


def evaluation_loader(
    model: Classifier,
    samples: Sequence[Sample],
    dataset: Dataset,
    workers: int | None,
    device: Device,
) -> Loader:
    """Return a loader that prepares a dataset's pictures for a model to be judged on, in their order."""
    return Loader(
        samples,
        dataset.root,
        Preprocessing.from_dict(model.preprocessing),
        EVALUATION_BATCH,
        workers=workers,
        normalise=device.kind == "cpu",
        targets=dataset.targets,
    )


class Forward:
    """A model on the pictures of one loader.

    cut: so many of the first stages are computed apart, see features.py; 0 for none. They must be frozen.
    cache: where what they compute is kept, None to compute it each time; views: variations of each picture
        that are kept, where the loader varies them. device: where the model is; for a GPU the loader must
        not normalise.
    precision: with "bf16" the network's inputs are in it; as for `Device.computing`, which is around all
    that is done here.
    """

    def __init__(
        self,
        model: Classifier,
        loader: Loader,
        cut: int,
        label: str,
        device: Device = CPU,
        precision: str = "float32",
        cache: FeatureCache | None = None,
        views: int = 1,
    ) -> None:
        self.model, self.loader, self.label, self.device = model, loader, label, device
        self._dtype = dtype_of(precision)
        self.cut = cut
        self._features = Features(model, cut, loader, label, device, self._dtype, cache, views)
        self._inference = Inference(self.network, device)

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """What computes logits from `inputs`: the model, or what lies behind the cut."""
        return functools.partial(self.model.from_stage, self.cut) if self.cut else self.model

    def prepare(self) -> None:
        """Compute the features that are to be kept, once."""
        if self.cut:
            self._features.prepare()

    def inputs(self, epoch: int, start_batch: int = 0) -> Iterator[Inputs]:
        """Yield what `network` is given in an epoch, batch by batch, from `start_batch` on."""
        if not self.cut:
            batches = self.loader.epoch(epoch, start_batch)
            yield from on_device(batches, self.loader.preprocessing, self.device, self._dtype)
            return
        for features, labels in self._features.batches(epoch, start_batch):
            x = self.device.kernels.cast(self.device.array(features), self._dtype)
            yield Inputs(x, self.device.array(labels), labels)

    def logits(self, on_batch: Count = lambda images: None) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, K) and labels (N,), or targets, in evaluation mode, in the loader's order.

        Calls `on_batch` with the size of each batch. The model is left in the mode it was in.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            parts, unread, labels = [], [], []
            with self._inference as infer:
                for inputs in self.inputs(0):
                    unread.append(infer(inputs.x))
                    labels.append(inputs.host_labels)
                    if self.device.kind == "cpu" or len(unread) == UNREAD:
                        parts += [logits.numpy() for logits in unread]
                        unread.clear()
                    on_batch(len(inputs.host_labels))
                parts += [logits.numpy() for logits in unread]
            return np.concatenate(parts), np.concatenate(labels)
        finally:
            self.model.train(was_training)


__all__ = ["EVALUATION_BATCH", "Forward", "backbone_is_frozen", "evaluation_loader"]
