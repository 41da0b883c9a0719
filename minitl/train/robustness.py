"""How many pictures a network still gets right when each is changed on purpose, and hardly visibly."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minitl.data.folder import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.data.views import ViewLoader
from minitl.device import CPU
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad
from minitl.train.attack import Attack


def under_attack(
    model: Classifier,
    samples: list[Sample],
    root: Path,
    attack: Attack,
    *,
    workers: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int], object] = lambda pictures: None,
) -> dict[str, Any]:
    """Return {"kind", "epsilon", ..., "images", "accuracy"}: the share right although attacked.

    A picture counts only if the network was right about it before too, so this is at most the accuracy
    without attack; it is an upper bound, as a stronger attack may find more. Computed on the CPU, to
    where the model is moved.
    """
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    loader = ViewLoader(samples, root, preprocessing, skip_bad=skip_bad, workers=workers)
    model.to("cpu").eval()
    right: list[np.ndarray] = []
    with CPU.computing("float32"):
        for batch in loader.epoch(0):
            good = np.array([int(index) not in loader.bad for index in batch.indices])
            images, labels = batch.images[good], batch.labels[good]
            progress(len(good))
            if not len(images):
                continue
            moved = attack(model, images, labels, preprocessing)
            right.append(
                (_predicted(model, images) == labels) & (_predicted(model, moved) == labels)
            )
    flags = np.concatenate(right)
    return {**asdict(attack), "images": len(flags), "accuracy": float(flags.mean())}


@no_grad()
def _predicted(model: Classifier, images: np.ndarray) -> np.ndarray:
    predicted: np.ndarray = model(Tensor(images)).numpy().argmax(axis=1)
    return predicted


__all__ = ["under_attack"]
