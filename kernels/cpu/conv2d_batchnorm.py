"""A convolution together with what batch normalisation does to its result, on the CPU.

x: N, H, W, C      weight: K, R, S, C/groups      y, residual: N, P, Q, K      scale, shift, mean, var: K
"""

import numpy as np

from minitl.kernels.cpu.batchnorm import batchnorm_statistics
from minitl.kernels.cpu.conv2d import Pair, conv2d_forward
from minitl.shapes import Padding2d


def conv2d_statistics_forward(
    x: np.ndarray,
    weight: np.ndarray,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y = conv2d(x, weight), and mean and biased variance of its channels, float64."""
    y = conv2d_forward(x, weight, None, stride, padding, dilation, groups)
    mean, var = batchnorm_statistics(y)
    return y, mean, var
