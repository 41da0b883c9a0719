"""Number formats on the CPU: float32 is computed in float32, float64 in float64."""

import numpy as np
from numpy.typing import DTypeLike

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def set_precision(name: str) -> str:
    """Say how float32 arrays are multiplied from now on; return what held before.

    Raises ValueError for anything but "float32": a CPU has nothing quicker to offer here.
    """
    if name != "float32":
        raise ValueError(f"the CPU computes in float32; it has no precision {name!r}")
    return "float32"


def cast(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Return x in another float format, as a new array; itself where it has that format already.

    Raises ValueError for a format that the CPU does not compute in.
    """
    if np.dtype(dtype) not in FLOATS:
        raise ValueError(f"the CPU computes in float32 and float64, not in {np.dtype(dtype)}")
    return x.astype(dtype, copy=False)
