"""Steps of the optimizers on the CPU: one pass over flat arrays, in place.

The order of operations is PyTorch's, so that results agree to rounding. Numbers are brought to the
arrays' own type first; corrections that need more digits are computed before that, in double precision.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import prange

from minitl.kernels.cpu.jit import kernel

BLOCK = 1 << 16  # elements whose squares are held in float64 at a time


@kernel(parallel=True)
def _sgd(param, grad, lr, weight_decay):  # type: ignore[no-untyped-def]
    for i in prange(param.size):
        param[i] -= lr * (grad[i] + weight_decay * param[i])


@kernel(parallel=True)
def _sgd_momentum(param, grad, velocity, lr, momentum, weight_decay, nesterov, first):  # type: ignore[no-untyped-def]
    for i in prange(param.size):
        g = grad[i] + weight_decay * param[i]
        v = g if first else momentum * velocity[i] + g
        velocity[i] = v
        param[i] -= lr * (g + momentum * v if nesterov else v)


def sgd_step(
    param: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None:
    """Take one step of gradient descent.

    velocity: flat array like param, or None where momentum is 0. first: velocity has no value yet.
    """
    number = param.dtype.type
    if velocity is None:
        _sgd(param, grad, number(lr), number(weight_decay))
    else:
        _sgd_momentum(
            param,
            grad,
            velocity,
            number(lr),
            number(momentum),
            number(weight_decay),
            nesterov,
            first,
        )


@kernel(parallel=True)
def _adam(param, grad, m, v, rate, m_share, beta2, v_share, root_correction, eps, shrink, l2):  # type: ignore[no-untyped-def]
    for i in prange(param.size):
        p = param[i] * shrink
        g = grad[i] + l2 * p
        m[i] += m_share * (g - m[i])
        v[i] = beta2 * v[i] + v_share * (g * g)
        param[i] = p - rate * (m[i] / (np.sqrt(v[i]) / root_correction + eps))


def adam_step(
    param: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Take one step of Adam (Kingma, Ba 2014), or of AdamW (Loshchilov, Hutter 2017) where `decoupled`.

    m, v: running means of the gradient and of its square, zero at the beginning. step: counted from 1.
    """
    number = param.dtype.type
    _adam(
        param,
        grad,
        m,
        v,
        number(lr / (1 - beta1**step)),
        number(1 - beta1),
        number(beta2),
        number(1 - beta2),
        number(math.sqrt(1 - beta2**step)),
        number(eps),
        number(1 - lr * weight_decay if decoupled else 1),
        number(0 if decoupled else weight_decay),
    )


def average_step(average: np.ndarray, value: np.ndarray, share: float) -> None:
    """Move an average towards a value by this share of the way; both of one shape."""
    average += share * (value - average)


def clip_norm(gradients: Sequence[np.ndarray], most: float) -> None:
    """Scale flat arrays, in place, by one factor so that the norm of all together is at most `most`.

    Squares are summed in float64, always in the same order. A NaN makes all of them NaN.
    """
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for gradient in gradients:
            for start in range(0, gradient.size, BLOCK):
                total += float(np.square(gradient[start : start + BLOCK], dtype=np.float64).sum())
        factor = most / (math.sqrt(total) + 1e-6)
        if factor <= 1 or math.isnan(factor):
            for gradient in gradients:
                gradient *= gradient.dtype.type(factor)
