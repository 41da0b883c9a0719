"""Initial values of weights, drawn from a seeded generator.

In place of a generator, "zeros" draws nothing: for a model whose weights are about to be loaded.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Rng = np.random.Generator | Literal["zeros"]


def generator(seed: int | Sequence[int] | None) -> Rng:
    """Return what draws the weights of a network: the generator of a seed, or "zeros" for None."""
    return "zeros" if seed is None else np.random.default_rng(seed)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out): how many inputs reach an output, and the other way round.

    Filters are (K, R, S, C/groups), dense weights (out, in).
    """
    taps = math.prod(shape[1:-1])
    return shape[-1] * taps, shape[0] * taps


def he_normal(shape: tuple[int, ...], rng: Rng) -> np.ndarray:
    """Normal with variance 2 / fan_out: keeps the scale of gradients through ReLU layers.

    He et al. 2015, "Delving Deep into Rectifiers", section 2.2.
    """
    if isinstance(rng, str):
        return np.zeros(shape, np.float32)
    scale = np.float32(math.sqrt(2.0 / fans(shape)[1]))
    return rng.standard_normal(shape, dtype=np.float32) * scale


def xavier_uniform(shape: tuple[int, ...], rng: Rng) -> np.ndarray:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)).

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward networks".
    """
    return _uniform(shape, math.sqrt(6.0 / sum(fans(shape))), rng)


def lecun_uniform(shape: tuple[int, ...], rng: Rng, fan_in: int | None = None) -> np.ndarray:
    """Uniform in +-1 / sqrt(fan_in), what PyTorch gives dense layers and their biases."""
    return _uniform(shape, 1.0 / math.sqrt(fan_in or fans(shape)[0]), rng)


def _uniform(shape: tuple[int, ...], bound: float, rng: Rng) -> np.ndarray:
    if isinstance(rng, str):
        return np.zeros(shape, np.float32)
    return (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(bound)
