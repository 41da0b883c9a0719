"""Mean squared error: the loss of regression.

prediction, target: any shape, the same      result: a scalar
"""

from typing import Any

import numpy as np

from minitl.backend import Array, is_on_gpu, real
from minitl.backend import like as on_device_of
from minitl.tensor import Op, Tensor


class MeanSquaredError(Op):
    """The mean of (prediction - target)^2."""

    saves = ("difference",)

    def forward(self, prediction: Array, target: Array) -> Array:
        """Compute the loss, a 0-d array."""
        loss, difference = self.kernels.mean_squared_error_forward(prediction, target)
        if any(self.needs_grad):
            self.difference = difference
        return loss

    # L = sum(d^2) / m with d = prediction - target:    dprediction = 2 d / m.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dprediction."""
        return (self.kernels.mean_squared_error_dx(dy, self.difference),)


def mean_squared_error(prediction: Tensor, target: Array) -> Tensor:
    """Return the mean of (prediction - target)^2 over all elements, as PyTorch's `mse_loss`.

    prediction: any shape. target: an array of that shape, or a tensor of PyTorch on the CPU; no gradient
        flows to it. One that is on the GPU already must have the prediction's dtype (float32 beside
        bfloat16).

    Raises TypeError for a target that is no array of numbers, ValueError for another shape (nothing is
    broadcast: (N, 1) against (N,) would silently compare every pair).
    """
    target = check_target("mean_squared_error: target", target, prediction)
    return MeanSquaredError.apply(prediction, target=target)


def check_target(name: str, target: Array, like: Tensor) -> Array:
    """Return the target in the dtype of `like`, or raise an error that names what is wrong with it."""
    target = as_array(name, target)
    kind = getattr(target, "dtype", None)
    if isinstance(target, Tensor) or kind is None or kind.kind not in "biuf":
        given = type(target).__name__ if isinstance(target, Tensor) or kind is None else kind
        raise TypeError(f"{name} must be an array of numbers; got {given}")
    if tuple(target.shape) != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}; got {tuple(target.shape)}")
    if not target.size:
        raise ValueError(f"{name} is empty, shape {like.shape}: a mean needs at least one element")
    if is_on_gpu(target):
        return target
    return on_device_of(like.data, target.astype(real(like.dtype), copy=False))


def as_array(name: str, given: Any) -> Any:
    """Return a tensor of PyTorch, or what else has a dtype that is not NumPy's, as an array of NumPy's.

    Anything else is returned as it is. Raises TypeError for what cannot be read, as on a GPU.
    """
    if isinstance(getattr(given, "dtype", None), np.dtype | None):
        return given
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: a {type(given).__name__} of {given.dtype} cannot be read as an array ({error}); give a "
            "NumPy array, or a tensor of PyTorch after .detach().cpu()"
        ) from error


def as_weights(name: str, given: Any) -> Array:
    """Return numbers that say how much something counts as an array; one on the GPU is not looked at.

    given: an array, a list or a tensor of PyTorch. Raises TypeError for what holds no numbers, ValueError
    for numbers that are negative or not finite.
    """
    if is_on_gpu(given):
        return given
    weights = np.asarray(as_array(name, given))
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers; got a {type(given).__name__} of {weights.dtype}")
    bad = np.argwhere(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        whose = f"class {', '.join(map(str, where))} has" if where else "got"
        raise ValueError(f"{name} must be finite and not negative; {whose} {weights[where]}")
    return weights
