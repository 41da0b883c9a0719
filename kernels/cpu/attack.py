"""What an attack does with pictures on the CPU: where it starts, and one step of it.

x, images, gradient: N, H, W, 3      box, move, darkest, brightest: 3 numbers, one for each channel

A picture may change by `box`, and no further than from `darkest` to `brightest`. These are in the units of
the pictures, as the network gets them.
"""

from collections.abc import Sequence

import numpy as np
from numba import prange

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.elementwise import philox4x32
from minitl.kernels.cpu.jit import kernel

Channels = Sequence[float] | np.ndarray

_LOW, _32, _8 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)


@kernel(parallel=True)
def _uniform(seed, unit, out):  # type: ignore[no-untyped-def]
    for block in prange((out.size + 3) // 4):
        counter = np.uint64(block)
        nothing = np.uint64(0)
        words = philox4x32(
            counter & _LOW, counter >> _32, nothing, nothing, seed & _LOW, seed >> _32
        )
        for j in range(4):
            i = block * 4 + j
            if i < out.size:
                out[i] = np.int64(words[j] >> _8) * unit


def _limits(
    images: np.ndarray, box: Channels, darkest: Channels, brightest: Channels
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest that each value may become."""
    box, darkest, brightest = (np.asarray(v, images.dtype) for v in (box, darkest, brightest))
    return np.maximum(images - box, darkest), np.minimum(images + box, brightest)


def attack_start(
    images: np.ndarray, box: Channels, darkest: Channels, brightest: Channels, seed: int
) -> np.ndarray:
    """Return pictures that lie anywhere in the box, all places alike.

    seed: 0 .. 2^64 - 1; element i (in memory order) is placed by the upper 24 bits of number i of the
    stream that dropout of this seed takes.
    """
    place = memory.empty(images.shape, images.dtype)
    _uniform(np.uint64(seed), images.dtype.type(2**-24), place.reshape(-1))
    low, high = _limits(images, box, darkest, brightest)
    start: np.ndarray = np.minimum(low + place * (high - low), high)
    return start


def attack_step(
    x: np.ndarray,
    gradient: np.ndarray,
    images: np.ndarray,
    move: Channels,
    box: Channels,
    darkest: Channels,
    brightest: Channels,
) -> np.ndarray:
    """Return x moved along the gradient's sign by `move`, then back into the box around `images`."""
    low, high = _limits(images, box, darkest, brightest)
    moved: np.ndarray = np.clip(x + np.asarray(move, x.dtype) * np.sign(gradient), low, high)
    return moved
