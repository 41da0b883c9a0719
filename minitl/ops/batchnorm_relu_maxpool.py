"""Batch normalisation, ReLU and max pooling in one pass: the stem of a ResNet.

x: N, H, W, C      weight, bias, running_mean, running_var: C      result: N, P, Q, C

The normalised map, as large as x, exists neither in forward nor in backward. The three states are those
of `batchnorm`; for each pooled value, backward knows from which pixel it came: its place, a byte, and its x.
"""

import math
from typing import Any

from minitl.backend import Array
from minitl.ops.batchnorm import check_batchnorm, fold
from minitl.ops.maxpool2d import pooling_window
from minitl.shapes import Padding, Pair
from minitl.tensor import Op, Tensor


class BatchNormReluMaxPool(Op):
    """y = the maximum over each window of relu((x - mean) / std * weight + bias)."""

    saves = (
        "x",
        "x_shape",
        "y",
        "index",
        "chosen",
        "weight",
        "mean",
        "inv_std",
        "training",
        "window",
    )
    parameters = (1, 2)

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
        window: dict[str, Any],
    ) -> Array:
        """Compute y, shape (N, P, Q, C); in training, update the running statistics."""
        running = running_mean, running_var
        scale, shift, mean, inv_std = fold(
            self.kernels, x, weight, bias, *running, training, momentum, eps
        )
        y, index, chosen = self.kernels.batchnorm_relu_maxpool_forward(x, scale, shift, **window)
        needs_x, needs_weight, needs_bias = self.needs_grad
        if needs_weight or needs_bias or (needs_x and training):
            self.y, self.chosen, self.mean = y, chosen, mean
        if needs_x and training:
            self.x = x
        if any(self.needs_grad):
            self.x_shape, self.training, self.window = x.shape, training, window
            self.index, self.weight, self.inv_std = index, weight, inv_std
        return y

    # Each y is relu(z) of one pixel of its window, or 0 where no z is above 0. ReLU is monotone, so it
    # may as well come after the maximum. dz of a pixel is then the sum of dy over the windows whose
    # largest z it is, where that is above 0. From there on backward is that of `batchnorm`:
    #     dbias = sum(dz),    dweight = sum(dz * xhat),    dx = a * dz + b * x + c.
    # The sums are taken over windows instead of pixels, each with the x that it chose; in dx, dz is gathered
    # on the way.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx, dweight and dbias."""
        needs_x, needs_weight, needs_bias = self.needs_grad
        k = self.kernels
        sums = mean = None
        if needs_weight or needs_bias or (needs_x and self.training):
            mean = self.mean
            *sums, _ = k.batchnorm_reduce(dy, self.y, self.chosen, mean, self.inv_std)
        a, b, c, dweight, dbias = k.batchnorm_coefficients(
            *(sums or (None, None)),
            self.weight,
            mean,
            self.inv_std,
            math.prod(self.x_shape[:-1]),
            self.training,
        )
        dx = None
        if needs_x:
            x = self.x if self.training else None
            dx = k.batchnorm_relu_maxpool_dx(
                dy, self.index, self.x_shape, x, a, b, c, **self.window
            )
        return dx, dweight if needs_weight else None, dbias if needs_bias else None


def batchnorm_relu_maxpool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return maxpool2d(batchnorm_relu(x, ...), kernel_size, stride, padding), computed in one pass.

    x: (N, H, W, C). The other arguments are as for `batchnorm` and `maxpool2d`.

    Returns (N, P, Q, C). Raises ValueError as the two of them do.
    """
    window = pooling_window("batchnorm_relu_maxpool", x.shape, kernel_size, stride, padding)
    check_batchnorm(x.shape, None, weight, bias, running_mean, running_var, training)
    return BatchNormReluMaxPool.apply(
        x,
        weight,
        bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        window=window,
    )
