"""Every output-size formula, once.

Images are N, H, W, C; spatial arguments are given as in PyTorch (an int, or one value per axis) and
are brought to one form here, the only form that kernels see.
"""

from numbers import Integral
from typing import Any, NamedTuple


class Padding2d(NamedTuple):
    """Rows and columns of padding on each side of a picture."""

    top: int
    bottom: int
    left: int
    right: int


Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | Padding2d


def pair(value: Pair, name: str, minimum: int = 1) -> tuple[int, int]:
    """Return `value` as (rows, columns); a ValueError names the argument if it is not valid."""
    both: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(v, Integral) and int(v) >= minimum for v in both):
        raise ValueError(f"{name} must be an int or two ints, each at least {minimum}; got {value}")
    return int(both[0]), int(both[1])


def padding2d(value: Padding) -> Padding2d:
    """Bring p, (rows, columns) or ((top, bottom), (left, right)) to one form."""
    if isinstance(value, Padding2d):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, tuple) for v in value):
        vertical, horizontal = (pair(v, "padding", 0) for v in value)
        return Padding2d(*vertical, *horizontal)
    rows, columns = pair(value, "padding", 0)  # type: ignore[arg-type]
    return Padding2d(rows, rows, columns, columns)


def same_padding(
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Padding2d:
    """Return TensorFlow's padding "same": ceil(size / stride) windows along each axis.

    What is needed in all is split in halves, the odd one goes below and to the right. So at stride 2
    a kernel of 3 pads an even size by (0, 1), where PyTorch's padding of 1 is (1, 1).
    """
    sides: list[int] = []
    for size, k, s, d in zip((height, width), kernel, stride, dilation, strict=True):
        needed = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        sides += [needed // 2, needed - needed // 2]
    return Padding2d(*sides)


def window_output_size(
    size: int, before: int, after: int, kernel: int, stride: int, dilation: int
) -> int:
    """Return how many windows fit along one axis; a ValueError says so if none does."""
    extent = dilation * (kernel - 1) + 1
    if size + before + after < extent:
        raise ValueError(
            f"a window of {extent} does not fit into {size} pixels padded by {before} + {after}; "
            "use a larger picture, more padding or a smaller kernel"
        )
    return (size + before + after - extent) // stride + 1


def window_output_shape(
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding2d,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Return the output height and width of a convolution or pooling."""
    return (
        window_output_size(height, padding.top, padding.bottom, kernel[0], stride[0], dilation[0]),
        window_output_size(width, padding.left, padding.right, kernel[1], stride[1], dilation[1]),
    )
