"""The gradient of a convolution's weight on the GPU; the kernel is in conv2d_weight.cu."""

from minitl.kernels.cuda import conv2d_plan, runtime, warpgroups
from minitl.kernels.cuda.conv2d_passes import Epilogue, pad_channels, sum_splits
from minitl.kernels.cuda.conv2d_plan import (
    FORMATS,
    SLICE,
    Geometry,
    Pair,
    channels_for,
    format_of,
    matrix_defines,
    piece,
    pieces_of,
    tiles_for,
)
from minitl.kernels.cuda.elementwise import copy_columns
from minitl.kernels.cuda.runtime import NULL, Array, contiguous, empty, real
from minitl.shapes import Padding2d

VARIANTS = tuple(
    matrix_defines(form, (a, b), tile)
    for form in FORMATS
    for a in pieces_of(form.ctype)
    for b in pieces_of(form.ctype)
    for tile in tiles_for(form, (a, b), dw=True, warpgroups=True)
)


def conv2d_dw(
    dy: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    scale: Array | None = None,
) -> Array:
    """Return the gradient of the weight, shape (K, R, S, C/groups), float32 (float64 beside float64).

    scale: float64 (K,), of dy's channels.
    """
    g = Geometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    dw = empty(weight_shape, real(dy.dtype))
    if not dw.size:
        return dw
    channels = channels_for(g, x.dtype)
    if channels > g.c:
        padded = (*weight_shape[:-1], channels)
        geometry = stride, padding, dilation, groups
        wide = conv2d_dw(dy, pad_channels(x, channels), padded, *geometry, scale)
        copy_columns(wide, 0, dw, 0, g.c)
        return dw
    dy, x = contiguous(dy), contiguous(x)
    columns = g.r * g.s * g.cg
    pieces = piece(g.kg, dy), piece(g.cg, x)
    form = format_of(dy.dtype)
    by_warpgroups = form.ctype == "bf16" and warpgroups.usable()
    tiles = tiles_for(form, pieces, dw=True, warpgroups=by_warpgroups)
    slices = -(-g.n * g.p * g.q * dy.itemsize // SLICE)
    plan = conv2d_plan.choose(g.kg, columns, slices, g.groups, tiles, dw=True, split=True)
    sums = empty((plan.splits, *weight_shape), dw.dtype) if plan.splits > 1 else dw
    # A slice is SLICE / itemsize rows of each operand; of 4-byte numbers, each row is 32 bytes longer.
    longer = 2 * 32 * SLICE // 4 if dy.itemsize == 4 else 0
    defines = matrix_defines(form, pieces, plan.tile)
    assert defines in VARIANTS
    runtime.launch(
        "conv2d_weight",
        "conv2d_dw",
        (plan.tiles(g.kg, columns), plan.splits, g.groups),
        (plan.tile.threads,),
        (dy, x, sums, NULL if scale is None else scale, *g.arguments()),
        shared_mem=plan.tile.shared_mem + plan.tile.stages * longer,
        **defines,
    )
    if sums is not dw:
        sum_splits(sums, dw, Epilogue())
    return dw
