"""How far the user's pictures are from those a network was pretrained on, as its own layers see it.

Nothing of the pretraining data is needed: batch normalisation keeps the mean and variance that each of its
channels had there. For channel c of a layer, with the stored mean m, variance v and sigma = sqrt(v + eps),
and with the mean n and variance w that the user's pictures have at the same place,

    d_c^2 = ((n - m) / sigma)^2 + (sqrt(w + eps) / sigma - 1)^2

is the squared Frechet distance between the two normal distributions (Dowson and Landau 1982, "The Frechet
distance between multivariate normal distributions"), in units of the stored deviation. It is what Heusel et
al. 2017 use on features ("GANs Trained by a Two Time-Scale Update Rule ..."), here channel by channel,
because no covariances between channels are stored. A layer's distance is the median over its channels, so
that a few dead ones do not decide, and the distance of the data the mean over the layers.

The user's statistics are taken with the earlier layers normalised by the user's data as well: what Li et
al. 2016, "Revisiting Batch Normalization for Practical Domain Adaptation", would put in place of the stored
ones. So a layer's distance is what is new there, not what earlier layers handed on.

There is no natural zero: stored statistics are of varied pictures in training. `floor` is the same distance
between two halves of the user's own pictures, the size below which it says nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitl import nn
from minitl.data.dataset import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.data.views import ViewLoader
from minitl.device import CPU
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad

PICTURES = 256  # at most; statistics hardly change with more


@dataclass(frozen=True)
class Shift:
    """The distance, that between halves of the data, and that of each layer, by name in their order."""

    distance: float
    floor: float
    layers: dict[str, float]


@dataclass
class _Moments:
    """Mean and mean square of each channel, summed over batches."""

    pictures: int
    mean: np.ndarray
    square: np.ndarray

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.pictures + other.pictures, self.mean + other.mean, self.square + other.square
        )

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance."""
        mean = self.mean / self.pictures
        return mean, np.maximum(self.square / self.pictures - mean**2, 0)


def domain_shift(
    model: Classifier, samples: list[Sample], root: Path, *, workers: int = 1, seed: int = 0
) -> Shift | None:
    """Measure it on at most 256 pictures; None for fewer than 4, or without batch normalisation.

    The model is on the CPU and is left as it was.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if not norms or len(samples) < 4:
        return None
    drawn = np.random.default_rng(seed).permutation(len(samples))[:PICTURES]
    halves = [
        _moments(model, norms, [samples[i] for i in half], root, workers)
        for half in np.array_split(drawn, 2)
    ]
    layers, floors = {}, []
    for name, norm in norms.items():
        stored = norm.running_mean.astype(np.float64), norm.running_var.astype(np.float64)
        first, second = halves[0][name], halves[1][name]
        layers[name] = distance(stored, (first + second).statistics(), norm.eps)
        floors.append(distance(first.statistics(), second.statistics(), norm.eps))
    return Shift(float(np.mean(list(layers.values()))), float(np.mean(floors)), layers)


def distance(
    stored: tuple[np.ndarray, np.ndarray], seen: tuple[np.ndarray, np.ndarray], eps: float
) -> float:
    """Return a layer's distance between two (mean, variance), each of shape (C,); see above."""
    sigma = np.sqrt(stored[1] + eps)
    moved = (seen[0] - stored[0]) / sigma
    spread = np.sqrt(seen[1] + eps) / sigma - 1
    return float(np.median(np.sqrt(moved**2 + spread**2)))


@no_grad()
def _moments(
    model: Classifier,
    norms: dict[str, nn.BatchNorm2d],
    samples: list[Sample],
    root: Path,
    workers: int,
) -> dict[str, _Moments]:
    """Read each layer's batch statistics off its running ones, which are put back in the end."""
    was_training = model.training
    kept = {
        name: (m.running_mean.copy(), m.running_var.copy(), m.momentum, m.frozen, m.training)
        for name, m in norms.items()
    }
    sums: dict[str, _Moments] = {}
    loader = ViewLoader(
        samples, root, Preprocessing.from_dict(model.preprocessing), skip_bad=True, workers=workers
    )
    model.eval()  # dropout keeps everything
    try:
        for norm in norms.values():
            norm.training, norm.frozen, norm.momentum = True, False, 1.0
        with CPU.computing("float32"):
            for batch in loader.epoch(0):
                good = np.array([int(index) not in loader.bad for index in batch.indices])
                if good.sum() < 2:  # a single picture may have no variance
                    continue
                model(Tensor(batch.images[good]))
                for name, norm in norms.items():
                    new = _of_batch(norm, int(good.sum()))
                    sums[name] = sums[name] + new if name in sums else new
    finally:
        for name, norm in norms.items():
            mean, var, norm.momentum, norm.frozen, norm.training = kept[name]
            norm.running_mean[...], norm.running_var[...] = mean, var
        model.train(was_training)
        for name, norm in norms.items():
            norm.training = kept[name][4]
    return sums


def _of_batch(norm: nn.BatchNorm2d, pictures: int) -> _Moments:
    mean = norm.running_mean.astype(np.float64)
    square = norm.running_var.astype(np.float64) + mean**2
    return _Moments(pictures, pictures * mean, pictures * square)


__all__ = ["Shift", "distance", "domain_shift"]
