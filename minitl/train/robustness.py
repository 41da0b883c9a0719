"""How many pictures a network still gets right when each is changed on purpose, and hardly visibly."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minitl.backend import Array
from minitl.data.dataset import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.data.views import ViewLoader
from minitl.device import CPU, Device, dtype_of
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad
from minitl.train.attack import Attack
from minitl.train.batches import on_device


def under_attack(
    model: Classifier,
    samples: list[Sample],
    root: Path,
    attack: Attack,
    *,
    workers: int = 1,
    device: Device = CPU,
    precision: str = "float32",
    progress: Callable[[int], object] = lambda pictures: None,
) -> dict[str, Any]:
    """Return {"kind", "epsilon", ..., "images", "accuracy"}: the share right although attacked.

    A picture counts only if the network was right about it before too, so this is at most the accuracy
    without attack; it is an upper bound, as a stronger attack may find more. The model is moved to the
    device. Raises ImageError for a picture that cannot be read.
    """
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    loader = ViewLoader(
        samples, root, preprocessing, workers=workers, normalise=device.kind == "cpu"
    )
    model.to(device).eval()
    right: list[np.ndarray] = []
    with device.computing(precision):
        batches = on_device(loader.epoch(0), preprocessing, device, dtype_of(precision))
        for x, labels, truth, _ in batches:
            moved = attack(model, x, labels, preprocessing)
            right.append((_predicted(model, x) == truth) & (_predicted(model, moved) == truth))
            progress(len(truth))
    flags = np.concatenate(right)
    return {**asdict(attack), "images": len(flags), "accuracy": float(flags.mean())}


@no_grad()
def _predicted(model: Classifier, images: Array) -> np.ndarray:
    predicted: np.ndarray = model(Tensor(images)).numpy().argmax(axis=1)
    return predicted


__all__ = ["under_attack"]
