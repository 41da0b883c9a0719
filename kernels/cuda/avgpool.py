"""Average pooling on the GPU; the kernels are in avgpool_kernels.py, compiled by Numba on first use.

x: N, H, W, C      y: N, P, Q, C

Each function is as its namesake in kernels/cpu/pool.py. bfloat16 is summed in float32: Numba does not know
it, so it is cast before and after.
"""

import numpy as np

from minitl.backend import BFLOAT16
from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.elementwise import cast
from minitl.kernels.cuda.pool import Pair, pixel_tiles
from minitl.kernels.cuda.runtime import Array, contiguous, empty
from minitl.shapes import Padding2d, window_output_shape


def _launch(name: str, source: Array, out: Array, *numbers: np.generic) -> None:
    """Start the kernel `name` with a thread for each pixel of `out` and channel."""
    grid, _, _, channels = pixel_tiles(out)
    across = min(32, 1 << (int(channels) - 1).bit_length())
    grid, block = (grid[0], -(-int(channels) // across)), (across, 256 // across)
    runtime.launch_numba(name, grid, block, (source, out, *numbers))


def _numbers(window: Pair, stride: Pair, padding: Padding2d, whole: bool) -> tuple[np.generic, ...]:
    counts = (*window, *stride, padding.top, padding.left)
    return *(np.int32(n) for n in counts), np.bool_(whole)


def avgpool2d_forward(
    x: Array, kernel: Pair, stride: Pair, padding: Padding2d, count_include_pad: bool
) -> Array:
    """Return the sum of each window divided by its size, with or without the padding it covers."""
    if x.dtype == BFLOAT16:
        wide = avgpool2d_forward(cast(x, np.float32), kernel, stride, padding, count_include_pad)
        return cast(wide, BFLOAT16)
    x = contiguous(x)
    n, h, w, c = x.shape
    y = empty((n, *window_output_shape(h, w, kernel, stride, padding), c), x.dtype)
    _launch("avgpool2d_forward", x, y, *_numbers(kernel, stride, padding, count_include_pad))
    return y


def avgpool2d_dx(
    dy: Array,
    x_shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
    count_include_pad: bool,
) -> Array:
    """Return the gradient of x: each pixel takes its share of dy of the windows that saw it."""
    if dy.dtype == BFLOAT16:
        wide = cast(dy, np.float32)
        dx = avgpool2d_dx(wide, x_shape, kernel, stride, padding, count_include_pad)
        return cast(dx, BFLOAT16)
    dx = empty(x_shape, dy.dtype)
    numbers = _numbers(kernel, stride, padding, count_include_pad)
    _launch("avgpool2d_dx", contiguous(dy), dx, *numbers)
    return dx


def adaptive_avgpool2d_forward(x: Array, size: Pair) -> Array:
    """Return the mean of each of `size` windows, spread evenly over the picture."""
    if x.dtype == BFLOAT16:
        return cast(adaptive_avgpool2d_forward(cast(x, np.float32), size), BFLOAT16)
    y = empty((x.shape[0], *size, x.shape[3]), x.dtype)
    _launch("adaptive_avgpool2d_forward", contiguous(x), y)
    return y


def adaptive_avgpool2d_dx(dy: Array, x_shape: tuple[int, ...]) -> Array:
    """Return the gradient of x: each pixel takes its share of dy of the windows that saw it."""
    if dy.dtype == BFLOAT16:
        return cast(adaptive_avgpool2d_dx(cast(dy, np.float32), x_shape), BFLOAT16)
    dx = empty(x_shape, dy.dtype)
    _launch("adaptive_avgpool2d_dx", contiguous(dy), dx)
    return dx
