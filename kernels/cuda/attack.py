"""What an attack does with pictures on the GPU; the kernels are in attack.cu.

Each function is as its namesake in kernels/cpu/attack.py. In bfloat16 the result is rounded, which may take
it out of the box by half a unit in the last of 8 bits.
"""

from collections.abc import Sequence

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import Array, Defines, blocks, contiguous, ctype, empty, real

THREADS = 256

VARIANTS = ({"T": "float"}, {"T": "bf16"})

Channels = Sequence[float] | np.ndarray


def _launch(name: str, out: Array, *args: object) -> Array:
    """Start a kernel that makes `out`; return it."""
    defines: Defines = {"T": ctype(out.dtype)}
    if defines not in VARIANTS:
        raise TypeError(f"pictures to attack are float32 or bfloat16, not {out.dtype}")
    runtime.launch("attack", name, (blocks(out.size, 4 * THREADS),), (THREADS,), args, **defines)
    return out


def _numbers(like: Array, *channels: Channels) -> tuple[np.generic, ...]:
    """Return the numbers of each channel as kernels take them."""
    number = real(like.dtype).type
    return tuple(number(value) for values in channels for value in values)


def attack_start(
    images: Array, box: Channels, darkest: Channels, brightest: Channels, seed: int
) -> Array:
    """Return pictures that lie anywhere in the box, all places alike."""
    out = empty(images.shape, images.dtype)
    numbers = _numbers(images, box, darkest, brightest)
    args = contiguous(images), out, np.int64(out.size), *numbers, np.uint64(seed)
    return _launch("attack_start", out, *args)


def attack_step(
    x: Array,
    gradient: Array,
    images: Array,
    move: Channels,
    box: Channels,
    darkest: Channels,
    brightest: Channels,
) -> Array:
    """Return x moved along the gradient's sign by `move`, then back into the box around `images`."""
    out = empty(x.shape, x.dtype)
    arrays = contiguous(x), contiguous(gradient), contiguous(images)
    numbers = _numbers(images, move, box, darkest, brightest)
    return _launch("attack_step", out, *arrays, out, np.int64(out.size), *numbers)
