"""Steps of the optimizers on the GPU: one pass over flat arrays, in place.

Each function is as its namesake in kernels/cpu/optim.py; the kernels are in optim.cu. Numbers that change
from step to step may be arrays of one element on the device: lr float32, step and first int64.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import (
    Array,
    Defines,
    blocks,
    contiguous,
    ctype,
    empty,
    number_or_array,
)

THREADS = 256  # as in optim.cu
SUMMING_BLOCKS = 1024  # at most, fixed: the rounding of sums depends on it

VARIANTS = ({"T": "float"}, {"T": "double"})


def _launch(name: str, param: Array, *args: object, count: int | None = None) -> None:
    """Start a kernel with so many blocks, or enough for 16 bytes of `param` a thread."""
    defines: Defines = {"T": ctype(param.dtype)}
    if defines not in VARIANTS:
        raise TypeError(f"parameters are float32 or float64, not {defines['T']}")
    grid = (count or blocks(param.nbytes, 16 * THREADS),)
    runtime.launch("optim", name, grid, (THREADS,), args, **defines)


def sgd_step(
    param: Array,
    grad: Array,
    velocity: Array | None,
    lr: float | Array,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    first: bool | Array,
) -> None:
    """Take one step of gradient descent.

    velocity: flat array like param, or None where momentum is 0. first: velocity has no value yet.
    """
    number = param.dtype.type
    rate, rate_at = number_or_array(lr, np.float32, "lr")
    if velocity is None:
        args = (np.int64(param.size), number(rate), rate_at, number(weight_decay))
        _launch("sgd_step", param, param, grad, *args)
        return
    starts, starts_at = number_or_array(first, np.int64, "first")
    _launch(
        "sgd_momentum_step",
        param,
        param,
        grad,
        velocity,
        np.int64(param.size),
        number(rate),
        rate_at,
        number(momentum),
        number(weight_decay),
        np.int32(nesterov),
        np.int64(starts),
        starts_at,
    )


def adam_step(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int | Array,
    lr: float | Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Take one step of Adam (Kingma, Ba 2014), or of AdamW (Loshchilov, Hutter 2017) where `decoupled`.

    m, v: running means of the gradient and of its square, zero at the beginning. step: counted from 1.
    """
    rate, rate_at = number_or_array(lr, np.float32, "lr")
    count, count_at = number_or_array(step, np.int64, "step")
    _launch(
        "adam_step",
        param,
        param,
        grad,
        m,
        v,
        np.int64(param.size),
        np.float64(rate),
        rate_at,
        np.int64(count),
        count_at,
        np.float64(beta1),
        np.float64(beta2),
        param.dtype.type(eps),
        np.float64(weight_decay),
        np.int32(decoupled),
    )


def average_step(average: Array, value: Array, share: float) -> None:
    """Move an average towards a value by this share of the way; both of one shape."""
    number = average.dtype.type(share)
    _launch("average_step", average, average, contiguous(value), np.int64(average.size), number)


def clip_norm(gradients: Sequence[Array], most: float) -> None:
    """Scale arrays, in place, by one factor so that the norm of all together is at most `most`.

    The factor never leaves the device.
    """
    counts = [blocks(g.nbytes, 64 * THREADS, SUMMING_BLOCKS) for g in gradients]
    ends = list(itertools.accumulate(counts, initial=0))
    partial, factor = empty((ends[-1],), np.float64), empty((1,), np.float64)
    for gradient, (start, end) in zip(gradients, itertools.pairwise(ends), strict=True):
        args = gradient, np.int64(gradient.size), partial[start:end]
        _launch("sum_of_squares", gradient, *args, count=end - start)
    numbers = np.int32(ends[-1]), np.float64(most)
    _launch("clip_factor", gradients[0], partial, *numbers, factor, count=1)
    for gradient in gradients:
        _launch("scale_gradient", gradient, gradient, np.int64(gradient.size), factor)
