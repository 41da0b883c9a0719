"""Batch normalisation on the GPU.

x, y, dy, residual: (..., C), activations      everything per channel: (C,), float64, but for parameters,
their gradients and running statistics, which are float32 (float64 for float64)

Each function is as its namesake in kernels/cpu/batchnorm.py; the kernels are in batchnorm.cu.
"""

import math

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import NULL, Array, Defines, blocks, contiguous, ctype, empty, real

THREADS = 256  # as in batchnorm.cu, like COLUMNS and LANES
COLUMNS, LANES = 8, 32

ROWS = 8  # rows at least that a thread goes through, so that its channels' numbers pay
SUMMING_BLOCKS = (
    1024  # 8 for each multiprocessor of an H100; fixed, as the sums' rounding depends on it
)
BLOCKS = 8192

VARIANTS = ({"T": "float"}, {"T": "bf16"}, {"T": "double"})


def _launch(
    name: str, dtype: np.dtype, grid: tuple[int, ...], block: tuple[int, ...], *args: object
) -> None:
    defines: Defines = {"T": ctype(dtype)}
    assert defines in VARIANTS
    runtime.launch("batchnorm", name, grid, block, args, **defines)


def _launch_tiles(name: str, like: Array, *args: object) -> None:
    """Start a kernel that goes once over the rows of arrays like `like`."""
    rows, channels = math.prod(like.shape[:-1]), like.shape[-1]
    across, down, beside = runtime.tile(channels, like.dtype)
    grid = (blocks(rows, down * ROWS, max(1, BLOCKS // beside)), beside)
    numbers = np.int64(rows), np.int32(channels)
    _launch(name, like.dtype, grid, (across, down), *numbers, *args)


def _launch_sums(name: str, like: Array, *args: object) -> tuple[Array, np.int32]:
    """Start a kernel that adds over the rows of arrays like `like`; return its partial sums, how many."""
    rows, channels = math.prod(like.shape[:-1]), like.shape[-1]
    across, down, beside = runtime.tile(channels, like.dtype)
    count = blocks(rows, down * ROWS, max(1, SUMMING_BLOCKS // beside))
    chunk = -(-rows // count)
    count = -(-rows // chunk)
    partial = empty((count, 2, channels), np.float64)
    numbers = np.int64(rows), np.int32(channels), np.int64(chunk)
    _launch(name, like.dtype, (count, beside), (across, down), *numbers, partial, *args)
    return partial, np.int32(count)


def _launch_finish(name: str, dtype: np.dtype, channels: int, *args: object) -> None:
    _launch(name, dtype, (-(-channels // COLUMNS),), (COLUMNS, LANES), *args)


def _doubles(channels: int, count: int) -> tuple[Array, ...]:
    """Return so many uninitialised arrays of a number for each channel."""
    return tuple(empty((channels,), np.float64) for _ in range(count))


def _require_float64(**vectors: Array | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.dtype != np.float64:
            raise TypeError(
                f"batch normalisation on the GPU takes {name} in float64, not {vector.dtype}"
            )


def batchnorm_statistics(x: Array) -> tuple[Array, Array]:
    """Return mean and biased variance of each channel, shape (C,)."""
    x = contiguous(x)
    channels = x.shape[-1]
    mean, var = _doubles(channels, 2)
    partial, count = _launch_sums("batchnorm_statistics", x, x)
    rows = np.int64(math.prod(x.shape[:-1]))
    _launch_finish(
        "batchnorm_statistics_finish",
        x.dtype,
        channels,
        *(partial, count, x, rows, np.int32(channels), mean, var),
    )
    return mean, var


def batchnorm_fold(
    mean: Array | None,
    var: Array | None,
    weight: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    pixels: int,
    momentum: float,
    eps: float,
    training: bool,
) -> tuple[Array, Array, Array, Array]:
    """Return scale, shift, mean and inv_std, all (C,): y = x * scale + shift normalises.

    In training the running statistics move towards those of the batch, in place.
    """
    channels = weight.size
    _require_float64(mean=mean, var=var)
    weight, bias = contiguous(weight), contiguous(bias)
    scale, shift, used_mean, inv_std = _doubles(channels, 4)
    _launch(
        "batchnorm_fold",
        weight.dtype,
        (-(-channels // 128),),
        (128,),
        mean if training else NULL,
        var if training else NULL,
        weight,
        bias,
        running_mean,
        running_var,
        np.int32(channels),
        np.int64(pixels),
        np.float64(momentum),
        np.float64(eps),
        scale,
        shift,
        used_mean,
        inv_std,
    )
    return scale, shift, used_mean, inv_std


def batchnorm_apply(
    x: Array, scale: Array, shift: Array, residual: Array | None, relu: bool
) -> Array:
    """Return x * scale + shift [+ residual], with what is below zero cut off if `relu`."""
    _require_float64(scale=scale, shift=shift)
    x, y = contiguous(x), empty(x.shape, x.dtype)
    floor = real(x.dtype).type(0 if relu else -np.inf)
    if residual is None:
        _launch_tiles("batchnorm_apply", x, x, scale, shift, y, floor)
    else:
        residual = contiguous(residual)
        _launch_tiles("batchnorm_apply_add", x, x, residual, scale, shift, y, floor)
    return y


def batchnorm_reduce(
    dy: Array,
    y: Array | None,
    x: Array,
    mean: Array,
    inv_std: Array,
    keep_dz: bool = False,
) -> tuple[Array, Array, Array | None]:
    """Return sum(dz) and sum(dz * xhat) of each channel, with xhat = (x - mean) * inv_std.

    y: the result of a ReLU after the normalisation; then dz is dy where y > 0. Without y, dz is dy.
    keep_dz: return dz as the third value (the gradient of a residual); else that is None.
    """
    _require_float64(mean=mean, inv_std=inv_std)
    dy, x = contiguous(dy), contiguous(x)
    channels = x.shape[-1]
    dz = None
    if y is None:
        partial, count = _launch_sums("batchnorm_reduce", x, dy, x, mean)
    elif not keep_dz:
        partial, count = _launch_sums("batchnorm_reduce_relu", x, dy, contiguous(y), x, mean)
    else:
        dz = empty(x.shape, x.dtype)
        partial, count = _launch_sums(
            "batchnorm_reduce_relu_keep", x, dy, contiguous(y), x, mean, dz
        )
    sum_dz, sum_dz_xhat = _doubles(channels, 2)
    _launch_finish(
        "batchnorm_reduce_finish",
        x.dtype,
        channels,
        *(partial, count, mean, inv_std, np.int32(channels), sum_dz, sum_dz_xhat),
    )
    return sum_dz, sum_dz_xhat, dy if keep_dz and dz is None else dz


def batchnorm_coefficients(
    sum_dz: Array | None,
    sum_dz_xhat: Array | None,
    weight: Array,
    mean: Array | None,
    inv_std: Array,
    pixels: int,
    training: bool,
) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
    """Return a, b, c for `batchnorm_dx`, and dweight and dbias, of the weight's dtype; all (C,).

    With fixed statistics b and c are None. Without the sums dweight and dbias are None.
    """
    channels, weight = weight.size, contiguous(weight)
    _require_float64(sum_dz=sum_dz, sum_dz_xhat=sum_dz_xhat, mean=mean, inv_std=inv_std)
    (a,) = _doubles(channels, 1)
    b = c = dweight = dbias = None
    if sum_dz is not None:
        dweight, dbias = empty((channels,), weight.dtype), empty((channels,), weight.dtype)
        if training:
            b, c = _doubles(channels, 2)
    optional = (NULL if array is None else array for array in (b, c, dweight, dbias))
    _launch(
        "batchnorm_coefficients",
        weight.dtype,
        (-(-channels // 128),),
        (128,),
        NULL if sum_dz is None else sum_dz,
        NULL if sum_dz_xhat is None else sum_dz_xhat,
        weight,
        NULL if mean is None else mean,
        inv_std,
        np.int32(channels),
        np.int64(pixels),
        a,
        *optional,
    )
    return a, b, c, dweight, dbias


def batchnorm_dx(
    dy: Array,
    y: Array | None,
    x: Array | None,
    a: Array,
    b: Array | None,
    c: Array | None,
) -> Array:
    """Return a * dz + b * x + c, with dz as in `batchnorm_reduce`.

    With fixed statistics the gradient is a * dz: then x, b and c are None.
    """
    _require_float64(a=a, b=b, c=c)
    dy, dx = contiguous(dy), empty(dy.shape, dy.dtype)
    name, args = "batchnorm_dx", [dy]
    if x is not None:
        name += "_training"
    if y is not None:
        name += "_relu"
        args.append(contiguous(y))
    if x is not None:
        args += [contiguous(x), a, b, c]
    else:
        args.append(a)
    _launch_tiles(name, dy, *args, dx)
    return dx
