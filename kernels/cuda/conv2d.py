"""2-D convolution on the GPU.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

    y[n,p,q,k] = bias[k] + sum over r,s,c of x[n, i, j, c] * weight[k,r,s,c]
    with i = p * stride + r * dilation - top, j = q * stride + s * dilation - left, zero outside x

Activations are float32, float64 or bfloat16 (held as uint16); weight, bias and all gradients of parameters
are float32 (float64 beside float64). Sums are taken in float32 (float64), in a fixed order. float32 is
multiplied exactly, or after `set_precision("tf32")` on tensor cores, with 10 bits of fraction.

Each of the three products is one launch, plus small ones where the weight has to be rounded or turned round,
where the sums are split among blocks, and where channels are filled up with zeros to 16 bytes for tensor
cores. The kernels are in conv2d.cu (forward, dx), conv2d_weight.cu and conv2d_passes.cu; which tiles they
work in is chosen in conv2d_plan.py.
"""

import numpy as np

from minitl.kernels.cuda import conv2d_plan, runtime, warpgroups
from minitl.kernels.cuda.conv2d_passes import (
    Epilogue,
    conv2d_db,
    finish_statistics,
    pad_channels,
    sum_splits,
    transpose_weight,
)
from minitl.kernels.cuda.conv2d_plan import (
    FORMATS,
    SLICE,
    SMALL,
    Defines,
    Format,
    Geometry,
    Pair,
    Plan,
    Tile,
    channels_for,
    format_of,
    matrix_defines,
    piece,
    pieces_of,
    set_precision,
    tiles_for,
)
from minitl.kernels.cuda.conv2d_weight import conv2d_dw
from minitl.kernels.cuda.elementwise import cast
from minitl.kernels.cuda.runtime import NULL, Array, contiguous, ctype, empty, real
from minitl.shapes import Padding2d

__all__ = [
    "conv2d_db",
    "conv2d_dw",
    "conv2d_dx",
    "conv2d_forward",
    "conv2d_scale_shift_forward",
    "conv2d_statistics_forward",
    "set_precision",
]


def _variants(form: Format, pieces: tuple[int, int], tile: Tile) -> list[Defines]:
    matrix = matrix_defines(form, pieces, tile)
    variants = [matrix | {"DX": dx, "SPLIT": 0, "STATISTICS": 0} for dx in (0, 1)]
    variants += [matrix | {"DX": 0, "SPLIT": 0, "STATISTICS": 1}]
    if form.ctype == "bf16" and tile == SMALL:  # where few results are split among blocks
        variants += [matrix | {"DX": dx, "SPLIT": 1, "STATISTICS": 0} for dx in (0, 1)]
    return variants


VARIANTS = tuple(
    variant
    for form in FORMATS
    for both in pieces_of(form.ctype)
    for tile in tiles_for(form, (both, both), dw=False, warpgroups=True)
    for variant in _variants(form, (both, both), tile)
)


def _check_parameter(array: Array | None, dtype: np.dtype, name: str) -> None:
    wanted = np.dtype(np.float64) if name in ("scale", "shift") else real(dtype)
    if array is not None and array.dtype != wanted:
        raise TypeError(
            f"beside activations of {ctype(dtype)}, {name} must be {wanted}; got {array.dtype}"
        )


def _multiply(
    name: str,
    gathered: Array,
    weight: Array,
    to: Array,
    g: Geometry,
    epilogue: Epilogue,
    moments: bool,
) -> tuple[Plan, Array | None]:
    """Compute `to`: y from x, or dx from dy. Return the plan and, if asked for, the tiles' moments.

    weight: K, R, S, C/groups for y; C, R, S, K/groups for dx.
    """
    dx = name == "conv2d_dx"
    depth, columns = (g.kg, g.cg) if dx else (g.cg, g.kg)
    phases = g.stride_h * g.stride_w if dx else 1
    # Of the first phase, which is the largest.
    lines = -(-g.h // g.stride_h) * -(-g.w // g.stride_w) if dx else g.p * g.q
    rows = g.n * lines
    pieces = (piece(depth, gathered, weight),) * 2
    form = format_of(gathered.dtype)
    by_warpgroups = form.ctype == "bf16" and warpgroups.usable()
    tiles = tiles_for(form, pieces, dw=False, warpgroups=by_warpgroups)
    slices = -(-g.r * g.s * depth * gathered.itemsize // SLICE) // phases
    copies = g.groups * phases
    plan = conv2d_plan.choose(rows, columns, slices, copies, tiles, dw=False, split=not moments)
    splits = empty((plan.splits, *to.shape), real(to.dtype)) if plan.splits > 1 else None
    partial = None
    if moments:
        partial = empty((-(-rows // plan.tile.m), 2, to.shape[-1]), real(to.dtype))
    defines = matrix_defines(form, pieces, plan.tile) | {
        "DX": int(dx),
        "SPLIT": int(splits is not None and to.itemsize == 2),
        "STATISTICS": int(moments),
    }
    assert defines in VARIANTS
    *arrays, relu = (epilogue if splits is None else Epilogue()).arguments()
    runtime.launch(
        "conv2d",
        name,
        (plan.tiles(rows, columns), plan.splits, copies),
        (plan.tile.threads,),
        (
            gathered,
            weight,
            *arrays,
            to if splits is None else splits,
            NULL if partial is None else partial,
            relu,
            *g.arguments(),
        ),
        shared_mem=plan.tile.shared_mem,
        **defines,
    )
    if splits is not None:
        sum_splits(splits, to, epilogue)
    return plan, partial


def _forward(
    x: Array, weight: Array, g: Geometry, epilogue: Epilogue, moments: bool
) -> tuple[Array, Plan | None, Array | None]:
    for name, parameter in (
        ("weight", weight),
        ("scale", epilogue.scale),
        ("shift", epilogue.shift),
        ("bias", epilogue.bias),
    ):
        _check_parameter(parameter, x.dtype, name)
    y = empty((g.n, g.p, g.q, g.k), x.dtype)
    if not y.size:
        return y, None, None
    channels = channels_for(g, x.dtype)
    operands = pad_channels(x, channels), pad_channels(cast(weight, x.dtype), channels // g.groups)
    plan, partial = _multiply(
        "conv2d_forward", *operands, y, g._replace(c=channels), epilogue.contiguous(), moments
    )
    return y, plan, partial


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return y, shape (N, P, Q, K)."""
    g = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    return _forward(x, weight, g, Epilogue(bias=bias), False)[0]


def conv2d_scale_shift_forward(
    x: Array,
    weight: Array,
    scale: Array,
    shift: Array,
    residual: Array | None,
    relu: bool,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return conv2d(x, weight) * scale + shift [+ residual], cut off below zero if `relu`; in one pass.

    scale, shift: (K,) float64. residual: as the result.
    """
    g = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    epilogue = Epilogue(scale, shift, residual=residual, relu=relu)
    return _forward(x, weight, g, epilogue, False)[0]


def conv2d_statistics_forward(
    x: Array,
    weight: Array,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array, Array]:
    """Return y = conv2d(x, weight), and mean and biased variance of its channels, float64 (K,).

    The statistics are those of y as it is stored, after rounding. Raises ValueError if y has no elements.
    """
    g = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    y, plan, moments = _forward(x, weight, g, Epilogue(), True)
    if plan is None or moments is None:
        raise ValueError(f"no statistics of y of shape {y.shape}; give at least one picture")
    return y, *finish_statistics(moments, y, plan.tile.m)


def conv2d_dx(
    dy: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    scale: Array | None = None,
    rest: Array | None = None,
    positive: Array | None = None,
) -> Array:
    """Return the gradient of x, shape (N, H, W, C); what is done besides takes no pass of its own.

    scale: float64 (K,), of dy's channels. rest: like x, is added. positive: like x; where it is not above
    zero, the gradient is 0.
    """
    g = Geometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    for name, parameter in (("weight", weight), ("scale", scale)):
        _check_parameter(parameter, dy.dtype, name)
    dx = empty(x_shape, dy.dtype)
    if dx.size:
        turned = transpose_weight(weight, scale, dy.dtype, g)
        epilogue = Epilogue(residual=rest, positive=positive).contiguous()
        _multiply("conv2d_dx", contiguous(dy), turned, dx, g, epilogue, False)
    return dx
