"""A convolution and the batch normalisation of its result, with a residual and a ReLU, in as few passes
as the state of the normalisation allows.

x: N, H, W, C    weight: K, R, S, C/groups    bn_weight, bn_bias, running_mean, running_var: K
result, residual: N, P, Q, K

With z the convolution's result and y what comes out:

    training      z and its statistics in one pass, y in a second                            keeps z
    evaluation    z in one pass, y in a second                                               keeps z
    frozen        y in one: the line of each channel is applied inside the convolution       no z

Evaluation in which bn_weight and bn_bias need no gradient is as cheap as frozen. Of x, weight and y (if
there is a ReLU) what backward needs is kept in all three.
"""

import math
from typing import Any

from minitl.backend import Array
from minitl.ops.batchnorm import check_batchnorm, gradients
from minitl.ops.conv2d import conv2d_geometry
from minitl.shapes import Padding, Pair, window_output_shape
from minitl.tensor import Op, Tensor


class Conv2dBatchNorm(Op):
    """y = [relu](batchnorm(z) [+ residual]) with z = conv(x, weight)."""

    saves = (
        "x",
        "weight",
        "x_shape",
        "weight_shape",
        "geometry",
        "y",
        "z",
        "bn_weight",
        "mean",
        "inv_std",
        "training",
    )
    parameters = (1, 2, 3)

    def forward(
        self,
        x: Array,
        weight: Array,
        bn_weight: Array,
        bn_bias: Array,
        residual: Array | None,
        *,
        running_mean: Array,
        running_var: Array,
        pixels: int,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
        geometry: dict[str, Any],
    ) -> Array:
        """Compute y, shape (N, P, Q, K); in training, update the running statistics."""
        k = self.kernels
        needs_x, needs_weight, needs_bn_weight, needs_bn_bias, _ = self.needs_grad
        keep = needs_bn_weight or needs_bn_bias or (training and (needs_x or needs_weight))
        z = mean = var = None
        if training:
            z, mean, var = k.conv2d_statistics_forward(x, weight, **geometry)
        elif keep:
            z = k.conv2d_forward(x, weight, None, **geometry)
        running = running_mean, running_var
        scale, shift, mean, inv_std = k.batchnorm_fold(
            mean, var, bn_weight, bn_bias, *running, pixels, momentum, eps, training
        )
        if z is None:
            y = k.conv2d_scale_shift_forward(x, weight, scale, shift, residual, relu, **geometry)
        else:
            y = k.batchnorm_apply(z, scale, shift, residual, relu)

        self.training, self.geometry = training, geometry
        self.x_shape, self.weight_shape = x.shape, weight.shape
        self.y = y if relu and any(self.needs_grad) else None
        self.z = z if keep else None
        self.mean = mean if keep else None
        if any(self.needs_grad):
            self.bn_weight, self.inv_std = bn_weight, inv_std
        if needs_x:
            self.weight = weight
        if needs_weight:
            self.x = x
        self.finishes_dx, self.rectified = needs_x and needs_weight, relu
        return y

    # A chain: the gradient of z is that of `batchnorm`, and from it those of `conv2d` follow:
    #     dz = a * dy' + b * z + c,    dx_rs = dz W_rs^T,    dW_rs = X_rs^T dz,
    # where dy' is dy with the ReLU's zeros. With fixed statistics b = c = 0, which is why z is not needed
    # then, and a need not be multiplied into pictures:
    #     dx_rs = dy' (a W_rs)^T,    dW_rs = a (X_rs^T dy').
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx, dweight, dbn_weight, dbn_bias and dresidual."""
        k = self.kernels
        needs_x, needs_weight, *needs_others = self.needs_grad
        y = None if self.dy_is_cut else self.y
        if self.training:
            scale = None
            dz, *others = gradients(
                k,
                dy,
                y,
                self.z,
                self.bn_weight,
                self.mean,
                self.inv_std,
                True,
                (needs_x or needs_weight, *needs_others),
            )
        else:
            dz, scale, *others = self._with_fixed_statistics(dy, y)
        del y
        self.y = self.z = None  # their memory can serve what follows
        dx = dw = None
        if needs_x:
            positive = self.x if self.cut else None
            finish = {"scale": scale, "rest": self.rest, "positive": positive}
            dx = k.conv2d_dx(dz, self.weight, self.x_shape, **self.geometry, **finish)
        if needs_weight:
            dw = k.conv2d_dw(dz, self.x, self.weight_shape, **self.geometry, scale=scale)
        return dx, dw, *others

    def _with_fixed_statistics(self, dy: Array, y: Array | None) -> tuple[Array | None, ...]:
        """Return dy', a, dbn_weight, dbn_bias and dresidual."""
        k, (*_, needs_bn_weight, needs_bn_bias, needs_residual) = self.kernels, self.needs_grad
        sums: list[Array | None] = [None, None]
        if self.z is not None:
            *sums, dz = k.batchnorm_reduce(dy, y, self.z, self.mean, self.inv_std, keep_dz=True)
        else:
            dz = dy if y is None else k.relu_dx(dy, y)
        pixels = math.prod(dy.shape[:-1])
        a, _, _, dweight, dbias = k.batchnorm_coefficients(
            *sums, self.bn_weight, self.mean, self.inv_std, pixels, False
        )
        return (
            dz,
            a,
            dweight if needs_bn_weight else None,
            dbias if needs_bn_bias else None,
            dz if needs_residual else None,
        )


def conv2d_batchnorm(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Array,
    running_var: Array,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Return [relu](batchnorm(conv2d(x, weight)) [+ residual]).

    x, weight, stride, padding, dilation, groups: as for `conv2d`.
    bn_weight, bn_bias, running_mean, running_var, training, momentum, eps: as for `batchnorm`, (K,).
    residual: of the result's shape, added before the ReLU.

    Returns (N, P, Q, K). Raises ValueError as `conv2d` and `batchnorm` do.
    """
    geometry = conv2d_geometry(x, weight, None, stride, padding, dilation, groups)
    n, height, width, _ = x.shape
    filters, *kernel, _ = weight.shape
    window = geometry["stride"], geometry["padding"], geometry["dilation"]
    p, q = window_output_shape(height, width, (kernel[0], kernel[1]), *window)
    shape = n, p, q, filters
    check_batchnorm(shape, residual, bn_weight, bn_bias, running_mean, running_var, training)
    return Conv2dBatchNorm.apply(
        x,
        weight,
        bn_weight,
        bn_bias,
        residual,
        running_mean=running_mean,
        running_var=running_var,
        pixels=n * p * q,
        training=training,
        momentum=momentum,
        eps=eps,
        relu=relu,
        geometry=geometry,
    )
