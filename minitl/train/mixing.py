"""Mixup and cutmix: a batch's pictures are blended with, or get a part of, others of the batch.

    mixup     x' = s * x + (1 - s) * x[::-1]           (Zhang et al. 2017, "mixup")
    cutmix    a rectangle of x is that of x[::-1]      (Yun et al. 2019, "CutMix"), s: the share that is left

The loss is s times that of a picture's own label plus 1 - s times that of the other one's. s comes from
Beta(a, a). Where both are asked for, a coin decides for each batch. Drawn from (seed, epoch, batch), so
neither threads nor resuming change it.
"""

import math

import numpy as np

from minitl.backend import kernels_for, like
from minitl.train.batches import Inputs, Mixed

_MIXING = 2  # what a random stream is for: 0 and 1 are the loader's


def mix(
    inputs: Inputs, mixup: float, cutmix: float, *, seed: int, epoch: int, batch: int
) -> Inputs:
    """Return the batch mixed with itself in reverse, where it lies.

    mixup, cutmix: the parameter a of each one's Beta distribution; 0: never.
    """
    key = np.random.SeedSequence(seed, spawn_key=(_MIXING, epoch, batch))
    rng = np.random.Generator(np.random.Philox(key))
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    strength = cutmix if cut else mixup
    share = float(rng.beta(strength, strength))
    kernels = kernels_for(inputs.x)
    if cut:
        _, height, width, _ = inputs.x.shape
        box, share = _box(height, width, share, rng)
        x = kernels.cutmix_forward(inputs.x, *box)
    else:
        x = kernels.mixup_forward(inputs.x, share)
    other = np.ascontiguousarray(inputs.host_labels[::-1])
    return inputs._replace(x=x, mixed=Mixed(like(x, other), share, other))


def _box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], float]:
    """Return top, bottom, left and right of a rectangle, and which share of the area lies outside."""
    side = math.sqrt(1 - share)
    middle = rng.integers(height), rng.integers(width)
    (top, bottom), (left, right) = (
        (max(0, int(at - side * size / 2)), min(size, int(at + side * size / 2)))
        for at, size in zip(middle, (height, width), strict=True)
    )
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


__all__ = ["mix"]
