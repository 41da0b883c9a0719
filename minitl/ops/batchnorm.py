"""Batch normalisation, alone or in one pass with what follows it: a ReLU, a residual and a ReLU.

x, residual, result: N, H, W, C or N, C      weight, bias, running_mean, running_var: C

Three states, which differ in where the statistics come from and in what backward keeps:

    training      the batch's own; the running ones move towards them       x, weight, statistics
    evaluation    the running ones                                          x, scale, statistics
    frozen        evaluation with parameters that need no gradient          scale

With a ReLU, the result is kept as well: it shows where the gradient passes.
"""

import math
from types import ModuleType

from minitl.backend import Array
from minitl.tensor import Op, Tensor


class BatchNorm(Op):
    """Normalise each channel; y = [relu]((x - mean) / std * weight + bias [+ residual])."""

    saves = ("x", "y", "weight", "mean", "inv_std", "training")
    parameters = (1, 2)

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        residual: Array | None,
        *,
        running_mean: Array,
        running_var: Array,
        training: bool,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Array:
        """Compute y, of the shape of x; in training, update the running statistics."""
        running = running_mean, running_var
        scale, shift, mean, inv_std = fold(
            self.kernels, x, weight, bias, *running, training, momentum, eps
        )
        y = self.kernels.batchnorm_apply(x, scale, shift, residual, relu)

        needs_x, needs_weight, needs_bias, _ = self.needs_grad
        self.training, self.rectified = training, relu
        self.y = y if relu and any(self.needs_grad) else None
        keep = needs_weight or needs_bias or (needs_x and training)
        self.x = x if keep else None
        self.mean = mean if keep else None
        if any(self.needs_grad):
            self.weight, self.inv_std = weight, inv_std
        return y

    # Forward, for each channel over its m pixels, with xhat = (x - mean) / std:
    #     y = relu(z),    z = weight * xhat + bias + residual
    # The ReLU passes dz = dy where y > 0. As z is linear in bias, weight and residual,
    #     dbias = sum(dz),    dweight = sum(dz * xhat),    dresidual = dz.
    # With fixed statistics dx = dz * weight / std. With the batch's own, mean and std move with x:
    #     dmean = sum(dx) / m,    dstd = sum(xhat * dx) / m,
    #     dxhat = (dx - dmean - xhat * dstd) / std,
    # that is, xhat loses the part of dx along the constant and the part along xhat itself. Taking out
    # such parts is a symmetric map, so it acts on the gradient in the same way:
    #     dx = weight / std * (dz - sum(dz) / m - xhat * sum(dz * xhat) / m).
    # Sorted by dz, x and 1, this is a * dz + b * x + c, one pass, once the two sums are known.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx, dweight, dbias and dresidual."""
        return gradients(
            self.kernels,
            dy,
            None if self.dy_is_cut else self.y,
            self.x,
            self.weight,
            self.mean,
            self.inv_std,
            self.training,
            self.needs_grad,
        )


def gradients(
    kernels: ModuleType,
    dy: Array,
    y: Array | None,
    x: Array | None,
    weight: Array,
    mean: Array | None,
    inv_std: Array,
    training: bool,
    needs_grad: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Return dx, dweight, dbias and dresidual of a normalisation, those of them that are needed.

    y: the result, if there was a ReLU. x, mean: where neither weight nor bias needs a gradient and the
    statistics are fixed, they may be None.
    """
    needs_x, needs_weight, needs_bias, needs_residual = needs_grad
    sums = dz = None
    if needs_weight or needs_bias or (needs_x and training):
        *sums, dz = kernels.batchnorm_reduce(dy, y, x, mean, inv_std, keep_dz=needs_residual)
    elif needs_residual:
        dz = dy if y is None else kernels.relu_dx(dy, y)
    if dz is not None:
        dy, y = dz, None
    pixels = math.prod(dy.shape[:-1])
    a, b, c, dweight, dbias = kernels.batchnorm_coefficients(
        *(sums or (None, None)), weight, mean, inv_std, pixels, training
    )
    dx = kernels.batchnorm_dx(dy, y, x if training else None, a, b, c) if needs_x else None
    return dx, dweight if needs_weight else None, dbias if needs_bias else None, dz


def fold(
    kernels: ModuleType,
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array, Array]:
    """Return scale, shift, mean and 1 / std of each channel; in training, move the running statistics."""
    mean, var = kernels.batchnorm_statistics(x) if training else (None, None)
    folded: tuple[Array, Array, Array, Array] = kernels.batchnorm_fold(
        mean,
        var,
        weight,
        bias,
        running_mean,
        running_var,
        math.prod(x.shape[:-1]),
        momentum,
        eps,
        training,
    )
    return folded


def batchnorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel: (x - mean) / sqrt(var + eps) * weight + bias.

    x: (N, H, W, C) or (N, C). weight, bias: (C,). All float32 or all float64.
    running_mean, running_var: arrays of shape (C,). In training the batch's own mean and biased
        variance are used, and the running ones are updated in place: they keep 1 - momentum of
        themselves and take momentum of the batch's mean and unbiased variance, as in PyTorch.

    Returns the shape of x. Raises ValueError for shapes that do not fit each other, and in training
    for a batch with one value per channel.
    Source: Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    return _batchnorm(
        x, None, weight, bias, running_mean, running_var, training, momentum, eps, False
    )


def batchnorm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return relu(batchnorm(x, ...)), of the shape of x, computed in one pass.

    Arguments and errors are those of `batchnorm`.
    """
    return _batchnorm(
        x, None, weight, bias, running_mean, running_var, training, momentum, eps, True
    )


def batchnorm_add_relu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return relu(batchnorm(x, ...) + residual), of the shape of x, computed in one pass.

    residual: of the shape and dtype of x. The other arguments are those of `batchnorm`.

    Raises ValueError as `batchnorm`, and for a residual of another shape; TypeError for one of another dtype.
    """
    return _batchnorm(
        x, residual, weight, bias, running_mean, running_var, training, momentum, eps, True
    )


def _batchnorm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    check_batchnorm(x.shape, residual, weight, bias, running_mean, running_var, training)
    return BatchNorm.apply(
        x,
        weight,
        bias,
        residual,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        relu=relu,
    )


def check_batchnorm(
    x: tuple[int, ...],
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
) -> None:
    """Raise ValueError unless the shapes fit each other, and in training unless there is a variance."""
    if len(x) not in (2, 4) or 0 in x:
        raise ValueError(f"batchnorm needs x of shape (N, H, W, C) or (N, C); got {x}")
    channels = x[-1:]
    vectors = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    for name, vector in vectors.items():
        if tuple(vector.shape) != channels:
            raise ValueError(
                f"batchnorm: x has {channels[0]} channels, so {name} must have shape {channels}; "
                f"got {tuple(vector.shape)}"
            )
    if residual is not None and residual.shape != x:
        raise ValueError(
            f"batchnorm: the residual must have the shape of x, {x}; got {residual.shape}"
        )
    if training and math.prod(x[:-1]) == 1:
        raise ValueError(
            f"batchnorm in training needs more than one value per channel; x has shape {x}; "
            "use a larger batch, or freeze the layer (evaluation statistics)"
        )
