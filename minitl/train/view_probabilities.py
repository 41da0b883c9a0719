"""What a network says of pictures, batch by batch, as the mean over several views of each."""

import functools
from collections import deque
from collections.abc import Iterator

import numpy as np

from minitl.data.views import ViewLoader
from minitl.device import Device, dtype_of
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.tensor import Tensor
from minitl.train.batches import on_device
from minitl.train.inference import Inference
from minitl.train.metrics import softmax
from minitl.train.task_metrics import answers

LATE = 2  # batches whose results may still be on a GPU


def probabilities(
    model: Classifier, loader: ViewLoader, device: Device, precision: str
) -> Iterator[np.ndarray]:
    """Yield probabilities (n, K) of the loader's pictures in order, n at a time; means over their views.

    Of a model with several tasks: what `answers` gives, means as well.
    The model is put into evaluation mode. Raises UserError where it says what is no number.
    """
    model.eval()
    said = functools.partial(answers, model.tasks) if model.tasks else softmax
    dtype = dtype_of(precision)
    late: deque[Tensor] = deque()

    def read() -> np.ndarray:
        logits = late.popleft().numpy()
        if not np.isfinite(logits).all():
            raise UserError(
                f"the outputs of this {model.arch} are not numbers (nan or infinite): its weights are "
                "damaged, or of a training that diverged; take others"
            )
        views = said(logits.astype(np.float32)).reshape(-1, loader.views.count, logits.shape[1])
        mean: np.ndarray = views.mean(axis=1)
        return mean

    with device.computing(precision), Inference(model, device) as infer:
        for inputs in on_device(loader.epoch(0), loader.preprocessing, device, dtype):
            late.append(infer(inputs.x))
            if len(late) > (LATE if device.kind == "cuda" else 0):
                yield read()
        while late:
            yield read()


__all__ = ["probabilities"]
