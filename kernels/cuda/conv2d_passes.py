"""Small passes around the convolutions on the GPU; the kernels are in conv2d_passes.cu."""

from typing import NamedTuple

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.conv2d_plan import Geometry
from minitl.kernels.cuda.runtime import NULL, Array, contiguous, ctype, empty, real

CHANNELS, SHARERS, SIDE = 8, 128, 32  # as in conv2d_passes.cu
SHARES = 64  # of the rows, in bias gradients

VARIANTS = ({"T": "float"}, {"T": "bf16"}, {"T": "double"})


class Epilogue(NamedTuple):
    """What is done to sums before they are stored: y = [relu](sums * scale + shift + residual).

    scale, shift: float64. bias: a shift as a parameter, in place of both. positive: an array like y; where it
    is zero or less, y is 0.
    """

    scale: Array | None = None
    shift: Array | None = None
    bias: Array | None = None
    residual: Array | None = None
    positive: Array | None = None
    relu: bool = False

    def contiguous(self) -> "Epilogue":
        """Return the same with arrays in C order."""
        names = self._fields[:-1]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return self._replace(**{name: contiguous(array) for name, array in given.items()})

    def arguments(self) -> tuple[object, ...]:
        """Return what kernels take, NULL for what is absent."""
        return *(NULL if array is None else array for array in self[:-1]), np.int32(self.relu)


def _launch(
    name: str, dtype: np.dtype, grid: tuple[int, ...], block: tuple[int, ...], *args: object
) -> None:
    kind = ctype(dtype)
    assert {"T": kind} in VARIANTS
    runtime.launch("conv2d_passes", name, grid, block, args, T=kind)


def transpose_weight(weight: Array, scale: Array | None, dtype: np.dtype, g: Geometry) -> Array:
    """Return the weight (K, R, S, C/groups) as (C, R, S, K/groups), in the type of activations.

    scale: what filters are multiplied by, float64 (K,).
    """
    turned = empty((g.c, g.r, g.s, g.kg), dtype)
    squares = -(-g.kg // SIDE) * -(-g.cg // SIDE) * g.r * g.s * g.groups
    numbers = map(np.int32, (g.k, g.r * g.s, g.c, g.groups))
    args = contiguous(weight), turned, *numbers, NULL if scale is None else scale
    _launch("conv2d_transpose_weight", dtype, (squares,), (SIDE, 8), *args)
    return turned


def pad_channels(x: Array, channels: int) -> Array:
    """Return x (..., C) with so many channels, itself where it has them; those that are added are zero."""
    x = contiguous(x)
    if x.shape[-1] == channels:
        return x
    out = empty((*x.shape[:-1], channels), x.dtype)
    rows = out.size // channels
    numbers = np.int64(rows), np.int32(x.shape[-1]), np.int32(channels)
    grid = (runtime.blocks(out.nbytes, 16 * 256),)
    _launch("conv2d_pad_channels", x.dtype, grid, (256,), x, *numbers, out)
    return out


def sum_splits(splits: Array, y: Array, epilogue: Epilogue) -> None:
    """Compute y from partial sums (splits, *shape of y)."""
    numbers = np.int32(len(splits)), np.int64(y.size), np.int32(y.shape[-1])
    grid = (runtime.blocks(y.size, 256),)
    args = splits, *numbers, *epilogue.arguments(), y
    _launch("conv2d_sum_splits", y.dtype, grid, (256,), *args)


def finish_statistics(moments: Array, y: Array, tile_rows: int) -> tuple[Array, Array]:
    """Return mean and biased variance of y's channels from the moments of each tile of rows.

    moments: (tiles, 2, K), means and sums of squared distances from them.
    """
    channels = y.shape[-1]
    mean, var = (empty((channels,), np.float64) for _ in range(2))
    numbers = map(np.int32, (len(moments), tile_rows, y.size // channels, channels))
    grid = (-(-channels // CHANNELS),)
    args = moments, *numbers, mean, var
    _launch("conv2d_statistics_finish", y.dtype, grid, (CHANNELS, SHARERS), *args)
    return mean, var


def conv2d_db(dy: Array) -> Array:
    """Return the gradient of the bias, the sum of dy (..., K) over all pixels, shape (K,)."""
    dy = contiguous(dy)
    channels = dy.shape[-1]
    rows = dy.size // max(channels, 1)
    shares = runtime.blocks(rows, 4 * SHARERS, SHARES)
    partial, db = empty((shares, channels), np.float64), empty((channels,), real(dy.dtype))
    across, block = -(-channels // CHANNELS), (CHANNELS, SHARERS)
    numbers = np.int32(rows), np.int32(channels), np.int32(-(-rows // shares))
    _launch("conv2d_db", dy.dtype, (across, shares), block, dy, *numbers, partial)
    args = partial, np.int32(shares), np.int32(channels), db
    _launch("conv2d_db_finish", dy.dtype, (across,), block, *args)
    return db
