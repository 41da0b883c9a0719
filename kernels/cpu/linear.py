"""The dense layer on the CPU: matrix products.

x: N, I      weight: O, I      bias: O      y: N, O

    y = x weight^T + bias
"""

import numpy as np

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.blas import multiply


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return y, shape (N, O)."""
    y = multiply(x, weight.T, memory.empty((x.shape[0], weight.shape[0]), x.dtype))
    if bias is not None:
        y += bias
    return y


def linear_dx(dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the gradient of x, dy weight, shape (N, I)."""
    return multiply(dy, weight, memory.empty((dy.shape[0], weight.shape[1]), dy.dtype))


def linear_dw(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the gradient of the weight, dy^T x, shape (O, I)."""
    return multiply(dy.T, x, memory.empty((dy.shape[1], x.shape[1]), dy.dtype))


def linear_db(dy: np.ndarray) -> np.ndarray:
    """Return the gradient of the bias, the sum of dy over the batch, shape (O,)."""
    db: np.ndarray = dy.sum(axis=0, dtype=np.float64).astype(dy.dtype)
    return db
