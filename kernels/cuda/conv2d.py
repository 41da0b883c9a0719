"""2-D convolution on the GPU.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

    y[n,p,q,k] = bias[k] + sum over r,s,c of x[n, i, j, c] * weight[k,r,s,c]
    with i = p * stride + r * dilation - top, j = q * stride + s * dilation - left, zero outside x

Activations are float32, float64 or bfloat16 (held as uint16); weight, bias and all gradients of parameters
are float32 (float64 beside float64). Sums are taken in float32 (float64), in a fixed order. float32 is
multiplied exactly, or after `set_precision("tf32")` on tensor cores, with 10 bits of fraction.

Each of the three products is one launch, plus a small one where the weight has to be rounded or turned
round and where the sums are split among blocks. The kernels are in conv2d.cu (forward, dx), conv2d_dw.cu
and conv2d_passes.cu; which tiles they work in is chosen in conv2d_plan.py.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitl.kernels.cuda import conv2d_plan, runtime
from minitl.kernels.cuda.conv2d_plan import STAGES, Plan, Tile
from minitl.kernels.cuda.elementwise import cast
from minitl.kernels.cuda.runtime import NULL, Array, contiguous, ctype, empty, real
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]
Defines = dict[str, object]

SLICE = 64  # bytes of a row that are multiplied between two barriers
CHANNELS, SHARERS, SIDE = 8, 128, 32  # as in conv2d_passes.cu
SHARES = 64  # of the rows, in bias gradients

PRECISIONS = ("float32", "tf32")
_precision = "float32"


def set_precision(name: str) -> str:
    """Say how float32 arrays are multiplied from now on; return what held before.

    "float32": exactly, on CUDA cores. "tf32": on tensor cores, operands rounded to 10 bits of fraction.
    bfloat16 arrays are multiplied on tensor cores in any case.
    """
    global _precision
    if name not in PRECISIONS:
        raise ValueError(f"no precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    before, _precision = _precision, name
    return before


class Geometry(NamedTuple):
    """What the kernels are told about a convolution, in their order of arguments."""

    n: int
    h: int
    w: int
    c: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    groups: int

    @classmethod
    def of(
        cls,
        x_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: Pair,
        padding: Padding2d,
        dilation: Pair,
        groups: int,
    ) -> "Geometry":
        """Return the geometry; ValueError if it is larger than the kernels can count."""
        (n, h, w, c), (k, r, s, _) = x_shape, weight_shape
        p, q = window_output_shape(h, w, (r, s), stride, padding, dilation)
        largest = max(n * h * w, n * p * q, math.prod(weight_shape))
        if largest > 2**31 - 2**16 or groups * stride[0] * stride[1] > 65535:
            raise ValueError(
                f"conv2d of x {x_shape} and weight {weight_shape} is too large for the GPU kernels: at most "
                "2^31 pixels and elements of a filter, and 65535 groups; use smaller batches"
            )
        return cls(n, h, w, c, k, r, s, p, q, *stride, padding.top, padding.left, *dilation, groups)

    def arguments(self) -> Iterator[np.int32]:
        """Yield the numbers as kernels take them."""
        return map(np.int32, self)


class Epilogue(NamedTuple):
    """What is done to sums before they are stored: y = [relu](sums * scale + shift + residual)."""

    scale: Array | None = None
    shift: Array | None = None
    residual: Array | None = None
    relu: bool = False

    def arguments(self) -> tuple[object, ...]:
        """Return what kernels take, NULL for what is absent."""
        arrays = (NULL if a is None else a for a in (self.scale, self.shift, self.residual))
        return *arrays, np.int32(self.relu)


def _piece(channels: int, array: Array) -> int:
    """Return how many elements may be copied at once: 16 bytes' worth, or what alignment allows.

    channels: elements that lie in a row, from one jump to the next.
    """
    byte_count = 16
    while runtime.address(array) % byte_count or channels * array.itemsize % byte_count:
        byte_count //= 2
    return byte_count // int(array.itemsize)


def _defines(dtype: np.dtype, pieces: tuple[int, int], tile: Tile, **more: int) -> Defines:
    defines: Defines = {
        "T": ctype(dtype),
        "TF32": int(dtype == np.float32 and _precision == "tf32"),
        "BM": tile.m,
        "BN": tile.n,
        "WM": tile.warp_m,
        "WN": tile.warp_n,
        "STAGES": STAGES,
        "PIECE_A": pieces[0],
        "PIECE_B": pieces[1],
    }
    return defines | more


def _shared(tile: Tile, padding: int = 0) -> int:
    return STAGES * ((tile.m + tile.n) * SLICE + padding)


def _operand(weight: Array, dtype: np.dtype) -> Array:
    """Return the weight as activations of this type are multiplied with it."""
    _check_parameter(weight, dtype, "weight")
    return contiguous(cast(weight, dtype))


def _check_parameter(array: Array | None, dtype: np.dtype, name: str) -> None:
    if array is not None and array.dtype != real(dtype):
        raise TypeError(
            f"beside activations of {ctype(dtype)}, {name} must be {real(dtype)}; got {array.dtype}"
        )


def _sum_splits(splits: Array, y: Array, epilogue: Epilogue) -> None:
    defines = {"T": ctype(y.dtype)}
    runtime.launch(
        "conv2d_passes",
        "conv2d_sum_splits",
        (runtime.blocks(y.size, 256),),
        (256,),
        (
            splits,
            np.int32(len(splits)),
            np.int64(y.size),
            np.int32(y.shape[-1]),
            *epilogue.arguments(),
            y,
        ),
        **defines,
    )


def _multiply(
    name: str,
    from_: Array,
    weight: Array,
    to: Array,
    g: Geometry,
    epilogue: Epilogue,
    moments: bool,
) -> tuple[Plan, Array | None]:
    """Compute `to`, y or dx, from x or dy; return the plan, and moments of each row of tiles.

    weight: K, R, S, C/groups for y; C, R, S, K/groups for dx.
    """
    dx = name == "conv2d_dx"
    channels, columns = (g.k, g.c) if dx else (g.c, g.k)
    lines = (-(-g.h // g.stride_h), -(-g.w // g.stride_w)) if dx else (g.p, g.q)
    rows = g.n * lines[0] * lines[1]  # of the first phase, the largest
    phases = g.stride_h * g.stride_w if dx else 1
    depth = g.r * g.s * channels // g.groups
    pieces = (min(_piece(channels // g.groups, a) for a in (from_, weight)),) * 2
    tiles = conv2d_plan.tiles_for(ctype(from_.dtype), pieces, dw=False)
    slices = -(-depth * from_.itemsize // SLICE) // phases
    plan = conv2d_plan.choose(
        rows, columns // g.groups, slices, g.groups * phases, tiles, dw=False, split=not moments
    )
    sums = empty((plan.splits, *to.shape), real(to.dtype)) if plan.splits > 1 else None
    partial = None
    if moments:
        partial = empty((-(-rows // plan.tile.m), 2, columns), real(to.dtype))
    defines = _defines(
        from_.dtype,
        pieces,
        plan.tile,
        DX=int(dx),
        SPLIT=int(plan.splits > 1),
        STATISTICS=int(moments),
    )
    runtime.launch(
        "conv2d",
        name,
        (plan.tiles(rows, columns // g.groups), plan.splits, g.groups * phases),
        (plan.tile.threads,),
        (
            from_,
            weight,
            *(epilogue if sums is None else Epilogue()).arguments()[:3],
            to if sums is None else sums,
            NULL if partial is None else partial,
            np.int32(epilogue.relu and sums is None),
            *g.arguments(),
        ),
        shared_mem=_shared(plan.tile),
        **defines,
    )
    if sums is not None:
        _sum_splits(sums, to, epilogue)
    return plan, partial


def _forward(x: Array, weight: Array, g: Geometry, epilogue: Epilogue) -> Array:
    y = empty((g.n, g.p, g.q, g.k), x.dtype)
    for name in ("scale", "shift"):
        _check_parameter(getattr(epilogue, name), x.dtype, name)
    if y.size:
        _multiply("conv2d_forward", contiguous(x), _operand(weight, x.dtype), y, g, epilogue, False)
    return y


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
    return _forward(x, weight, g, Epilogue(shift=bias))


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
    """Return conv2d(x, weight) * scale + shift [+ residual], cut off below zero if `relu`. One pass.

    scale, shift: (K,). residual: as the result.
    """
    g = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    added = None if residual is None else contiguous(residual)
    return _forward(x, weight, g, Epilogue(scale, shift, added, relu))


def conv2d_statistics_forward(
    x: Array,
    weight: Array,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array, Array]:
    """Return y = conv2d(x, weight), and mean and biased variance of its channels, shape (K,).

    The statistics are of y as it is stored, that is, after rounding to its type.
    """
    g = Geometry.of(x.shape, weight.shape, stride, padding, dilation, groups)
    y = empty((g.n, g.p, g.q, g.k), x.dtype)
    mean, var = (empty((g.k,), real(x.dtype)) for _ in range(2))
    operands = contiguous(x), _operand(weight, x.dtype)
    plan, moments = _multiply("conv2d_forward", *operands, y, g, Epilogue(), True)
    assert moments is not None
    runtime.launch(
        "conv2d_passes",
        "conv2d_statistics_finish",
        (-(-g.k // CHANNELS),),
        (CHANNELS, SHARERS),
        (
            moments,
            np.int32(len(moments)),
            np.int32(plan.tile.m),
            np.int32(g.n * g.p * g.q),
            np.int32(g.k),
            mean,
            var,
        ),
        T=ctype(x.dtype),
    )
    return y, mean, var


def conv2d_dx(
    dy: Array,
    weight: Array,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return the gradient of x, shape (N, H, W, C)."""
    g = Geometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    dx = empty(x_shape, dy.dtype)
    if not dx.size:
        return dx
    _check_parameter(weight, dy.dtype, "weight")
    kg, cg = g.k // g.groups, g.c // g.groups
    turned = empty((g.c, g.r, g.s, kg), dy.dtype)
    runtime.launch(
        "conv2d_passes",
        "conv2d_transpose_weight",
        (-(-kg // SIDE) * -(-cg // SIDE) * g.r * g.s * g.groups,),
        (SIDE, 8),
        (
            contiguous(weight),
            turned,
            np.int32(g.k),
            np.int32(g.r * g.s),
            np.int32(g.c),
            np.int32(g.groups),
        ),
        T=ctype(dy.dtype),
    )
    _multiply("conv2d_dx", contiguous(dy), turned, dx, g, Epilogue(), False)
    return dx


def conv2d_dw(
    dy: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return the gradient of the weight, shape (K, R, S, C/groups), float32 (float64 beside float64)."""
    g = Geometry.of(x.shape, weight_shape, stride, padding, dilation, groups)
    dw = empty(weight_shape, real(dy.dtype))
    if not dw.size:
        return dw
    dy, x = contiguous(dy), contiguous(x)
    kg, cg = g.k // g.groups, g.c // g.groups
    columns = g.r * g.s * cg
    pieces = _piece(kg, dy), _piece(cg, x)
    tiles = conv2d_plan.tiles_for(ctype(dy.dtype), pieces, dw=True)
    slices = -(-g.n * g.p * g.q * dy.itemsize // SLICE)
    plan = conv2d_plan.choose(kg, columns, slices, g.groups, tiles, dw=True, split=True)
    sums = empty((plan.splits, *weight_shape), dw.dtype) if plan.splits > 1 else dw
    runtime.launch(
        "conv2d_dw",
        "conv2d_dw",
        (plan.tiles(kg, columns), plan.splits, g.groups),
        (plan.tile.threads,),
        (dy, x, sums, *g.arguments()),
        # 4-byte numbers lie in rows that are 32 bytes longer, on both sides.
        shared_mem=_shared(
            plan.tile, 2 * 32 * SLICE // 4 // dy.itemsize if dy.itemsize == 4 else 0
        ),
        **_defines(dy.dtype, pieces, plan.tile),
    )
    if sums is not dw:
        _sum_splits(sums, dw, Epilogue())
    return dw


def conv2d_db(dy: Array) -> Array:
    """Return the gradient of the bias, the sum of dy over all pixels, shape (K,)."""
    dy = contiguous(dy)
    channels = dy.shape[-1]
    rows = dy.size // max(channels, 1)
    shares = runtime.blocks(rows, 4 * SHARERS, SHARES)
    share = -(-rows // shares)
    partial, db = empty((shares, channels), np.float64), empty((channels,), real(dy.dtype))
    across = -(-channels // CHANNELS)
    numbers = np.int32(channels)
    runtime.launch(
        "conv2d_passes",
        "conv2d_db",
        (across, shares),
        (CHANNELS, SHARERS),
        (dy, np.int32(rows), numbers, np.int32(share), partial),
        T=ctype(dy.dtype),
    )
    runtime.launch(
        "conv2d_passes",
        "conv2d_db_finish",
        (across,),
        (CHANNELS, SHARERS),
        (partial, np.int32(shares), numbers, db),
        T=ctype(dy.dtype),
    )
    return db
