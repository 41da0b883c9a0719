"""Max pooling: the largest value of each window.

x: N, H, W, C      result: N, P, Q, C
"""

from minitl.backend import Array
from minitl.shapes import Padding, Padding2d, Pair, padding2d, pair, window_output_shape
from minitl.tensor import Op, Tensor


class MaxPool2d(Op):
    """y = the maximum over each window."""

    saves = ("index", "x_shape", "window")

    def forward(self, x: Array, **window: Pair | Padding2d) -> Array:
        """Compute y, shape (N, P, Q, C)."""
        y, index = self.kernels.maxpool2d_forward(x, **window)
        if any(self.needs_grad):
            self.index, self.x_shape, self.window = index, x.shape, window
        return y

    # y of a window is one of its pixels, x_m; so dy goes to that pixel, and the others have no share:
    #     dx = the sum of dy over the windows in which the pixel was the one chosen.
    # Where several are largest, y has no derivative; the first one is taken, as in PyTorch.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (self.kernels.maxpool2d_dx(dy, self.index, self.x_shape, **self.window),)


def maxpool2d(
    x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Padding = 0
) -> Tensor:
    """Take the largest value of each window.

    x: (N, H, W, C). stride: by default the kernel size.
    padding: p, (rows, columns) or ((top, bottom), (left, right)), each smaller than the kernel; it is
        never the largest. A window with a NaN gives NaN.

    Returns (N, P, Q, C) with P = (H + top + bottom - kernel rows) // stride + 1, Q likewise.
    Raises ValueError for shapes that do not fit each other.
    """
    return MaxPool2d.apply(x, **pooling_window("maxpool2d", x.shape, kernel_size, stride, padding))


def pooling_window(
    name: str, x: tuple[int, ...], kernel_size: Pair, stride: Pair | None, padding: Padding
) -> dict[str, Pair | Padding2d]:
    """Return kernel, stride and padding as the kernels take them; ValueError if they do not fit."""
    if len(x) != 4 or 0 in x:
        raise ValueError(f"{name} needs pictures of shape (N, H, W, C); got {x}")
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    around = padding2d(padding)
    if max(around.top, around.bottom) >= kernel[0] or max(around.left, around.right) >= kernel[1]:
        raise ValueError(
            f"{name}: padding must be smaller than the kernel, {kernel}, or a window could see nothing "
            f"but padding; got {padding}"
        )
    window_output_shape(x[1], x[2], kernel, steps, around)  # raises if no window fits
    return {"kernel": kernel, "stride": steps, "padding": around}
