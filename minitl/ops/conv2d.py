"""2-D convolution (cross-correlation, as in every deep-learning library).

x: N, H, W, C    weight: K, R, S, C/groups    bias: K    result: N, P, Q, K
"""

from typing import Any

from minitl.backend import Array
from minitl.shapes import Padding, Pair, padding2d, pair, window_output_shape
from minitl.tensor import Op, Tensor


class Conv2d(Op):
    """Convolution; y = conv(x, weight) + bias."""

    saves = ("x", "weight", "x_shape", "weight_shape", "geometry")
    parameters = (1, 2)

    def forward(self, x: Array, weight: Array, bias: Array | None, **geometry: Any) -> Array:
        """Compute y, shape (N, P, Q, K)."""
        needs_x, needs_weight, _ = self.needs_grad
        self.geometry = geometry
        self.x_shape, self.weight_shape = x.shape, weight.shape
        if needs_x:
            self.weight = weight
        if needs_weight:
            self.x = x
        self.finishes_dx = needs_x and needs_weight
        return self.kernels.conv2d_forward(x, weight, bias, **geometry)

    # Forward, for each tap (r, s) as a product of [pixels, C] and [C, K]:    Y  = sum of X_rs W_rs
    # With L the loss, dL = <dY, dX_rs W_rs> + <dY, X_rs dW_rs>, so
    #     dX_rs = dY W_rs^T, added to the pixels that the tap saw,
    #     dW_rs = X_rs^T dY,
    #     db    = dY summed over pixels.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx, dweight and dbias."""
        needs_x, needs_weight, needs_bias = self.needs_grad
        k, dx = self.kernels, None
        if needs_x:
            positive = self.x if self.cut else None
            finish = {"rest": self.rest, "positive": positive}
            dx = k.conv2d_dx(dy, self.weight, self.x_shape, **self.geometry, **finish)
        return (
            dx,
            k.conv2d_dw(dy, self.x, self.weight_shape, **self.geometry) if needs_weight else None,
            k.conv2d_db(dy) if needs_bias else None,
        )


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve pictures with filters.

    x: (N, H, W, C). weight: (K, R, S, C/groups). bias: (K,) or None. All float32 or all float64.
    padding: p, (rows, columns) or ((top, bottom), (left, right)), filled with zeros.

    Returns (N, P, Q, K) with P = (H + top + bottom - dilation * (R - 1) - 1) // stride + 1, Q likewise.
    Raises ValueError for shapes that do not fit each other.
    """
    geometry = conv2d_geometry(x, weight, bias, stride, padding, dilation, groups)
    return Conv2d.apply(x, weight, bias, **geometry)


def conv2d_geometry(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> dict[str, Any]:
    """Return stride, padding, dilation and groups as the kernels take them; ValueError if they do not fit."""
    geometry: dict[str, Any] = {
        "stride": pair(stride, "stride"),
        "padding": padding2d(padding),
        "dilation": pair(dilation, "dilation"),
    }
    check_conv2d(x.shape, weight.shape, bias.shape if bias is not None else None, groups)
    kernel = weight.shape[1], weight.shape[2]
    window_output_shape(x.shape[1], x.shape[2], kernel, **geometry)  # raises if no window fits
    return geometry | {"groups": groups}


def check_conv2d(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, groups: int
) -> None:
    """Raise ValueError unless the shapes make a convolution."""
    if len(x) != 4:
        raise ValueError(f"conv2d needs pictures of shape (N, H, W, C); got {x}")
    if len(weight) != 4:
        raise ValueError(f"conv2d needs a weight of shape (K, R, S, C/groups); got {weight}")
    if groups < 1 or x[3] % groups or weight[0] % groups:
        raise ValueError(
            f"groups={groups} must divide the {x[3]} input and the {weight[0]} output channels"
        )
    if not x[3] or not weight[0]:
        raise ValueError(
            f"conv2d needs channels and filters; got pictures {x} and a weight {weight}"
        )
    if x[3] // groups != weight[3]:
        raise ValueError(
            f"conv2d: pictures have {x[3]} channels in {groups} group(s), so filters need "
            f"{x[3] // groups}; weight has shape {weight}"
        )
    if bias is not None and bias != weight[:1]:
        raise ValueError(f"conv2d: bias must have shape ({weight[0]},); got {bias}")
