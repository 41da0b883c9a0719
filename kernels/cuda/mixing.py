"""Mixup and cutmix on the GPU; the kernels are in mixing.cu.

Each function is as its namesake in kernels/cpu/mixing.py. bfloat16 is mixed in float32 and rounded once.
"""

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import Array, Defines, blocks, contiguous, ctype, empty, real

THREADS = 256
ACROSS, DOWN = 32, 8  # threads along a row of a picture, and rows

VARIANTS = ({"T": "float"}, {"T": "bf16"})


def _launch(
    name: str, x: Array, grid: tuple[int, ...], block: tuple[int, ...], *numbers: object
) -> Array:
    defines: Defines = {"T": ctype(x.dtype)}
    if defines not in VARIANTS:
        raise TypeError(f"pictures to mix are float32 or bfloat16, not {x.dtype}")
    out = empty(x.shape, x.dtype)
    runtime.launch("mixing", name, grid, block, (contiguous(x), out, *numbers), **defines)
    return out


def mixup_forward(x: Array, share: float) -> Array:
    """Return share * x + (1 - share) * x[::-1]."""
    pictures, number = x.shape[0], real(x.dtype).type
    size = x.size // pictures
    grid = blocks(size * x.itemsize, 16 * THREADS), blocks(pictures, 2, 65535)
    numbers = np.int32(pictures), np.int64(size), number(share), number(1 - share)
    return _launch("mixup_forward", x, grid, (THREADS,), *numbers)


def cutmix_forward(x: Array, top: int, bottom: int, left: int, right: int) -> Array:
    """Return x with rows top .. bottom - 1 of columns left .. right - 1 from x[::-1]."""
    pictures, height, width, channels = x.shape
    elements = width * channels, top, bottom, left * channels, right * channels
    numbers = (np.int32(n) for n in (pictures, height, *elements))
    grid = (blocks(pictures * height, DOWN),)
    return _launch("cutmix_forward", x, grid, (ACROSS, DOWN), *numbers)
