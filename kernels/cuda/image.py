"""From pictures as they come, bytes, to a network's input, on the GPU; the kernel is in image.cu."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import NULL, Array, Defines, blocks, contiguous, ctype, empty

ACROSS, DOWN = 32, 8  # threads along a row of a picture, and rows

VARIANTS = ({"T": "float"}, {"T": "bf16"})


def normalize_images(
    images: Array,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float,
    flip: Array | None,
    top: Array | None,
    left: Array | None,
    crop: int | tuple[int, int],
    dtype: DTypeLike,
) -> Array:
    """Return (byte * scale - mean) / std of a part of each picture, (N, rows, columns, 3).

    images: (N, H, W, 3) uint8, channels in the order of `mean` and `std`.
    crop: rows and columns of the part; or its side. top, left: int32 (N,), where it begins, within the
        picture; without them it is the middle. flip: bool (N,), which parts are mirrored left to right.
    dtype: float32, or bfloat16 (held as uint16).

    Raises ValueError for a crop that is larger than the pictures, TypeError for other types.
    """
    images = contiguous(images)
    n, height, width, channels = images.shape
    rows, columns = (crop, crop) if isinstance(crop, int) else crop
    if channels != 3 or images.dtype != np.uint8:
        raise TypeError(f"images must be (N, H, W, 3) bytes; got {images.shape}, {images.dtype}")
    if not (0 < rows <= height and 0 < columns <= width):
        raise ValueError(f"cannot cut {rows} x {columns} out of pictures of {height} x {width}")
    for name, array, kind in (("flip", flip, "b"), ("top", top, "i"), ("left", left, "i")):
        size = 1 if kind == "b" else 4
        if array is not None and (array.dtype.kind, array.itemsize, array.shape) != (
            kind,
            size,
            (n,),
        ):
            expected = "bool" if kind == "b" else "int32"
            raise TypeError(f"{name} must be {expected} ({n},); got {array.dtype} {array.shape}")
    defines: Defines = {"T": ctype(dtype)}
    if defines not in VARIANTS:
        raise TypeError(f"images become float32 or bfloat16, not {np.dtype(dtype)}")
    out = empty((n, rows, columns, 3), dtype)
    runtime.launch(
        "image",
        "normalize_images",
        (blocks(n * rows, DOWN),),
        (ACROSS, DOWN),
        (
            images,
            np.int32(height),
            np.int32(width),
            *(np.float32(scale / s) for s in std),
            *(np.float32(-m / s) for m, s in zip(mean, std, strict=True)),
            NULL if flip is None else flip.view(np.uint8),
            NULL if top is None else top,
            NULL if left is None else left,
            np.int32(round((height - rows) / 2)),
            np.int32(round((width - columns) / 2)),
            out,
            np.int64(n * rows),
            np.int32(rows),
            np.int32(columns),
        ),
        **defines,
    )
    return out
