"""Large arrays whose memory is used again.

A fresh 50 MB array costs some 12,000 page faults, more than the arithmetic of many operations on it.
Training asks for the same sizes step after step, so freed blocks are kept by size and handed out again.
All but small arrays start at a cache line: NumPy's own start 16 bytes behind one, and then every load of a
64-byte vector would touch two lines.
"""

import math

import numpy as np
from numpy.typing import DTypeLike

SMALLEST = 1 << 20  # bytes; the C library reuses what is smaller than this well enough
LINE = 64  # bytes in a cache line
_free: dict[int, list[np.ndarray]] = {}


class _Block:
    """Owner of one piece of memory; arrays made on it keep it alive, and its end puts it back."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._memory = memory
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (memory.ctypes.data, False),
            "version": 3,
        }

    def __del__(self) -> None:
        _free.setdefault(self._memory.size, []).append(self._memory)


def _aligned(size: int) -> np.ndarray:
    """Return so many bytes of new memory from a cache line's start."""
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an uninitialised C-contiguous array, on reused memory where that is worth it."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize * math.prod(shape)
    if size < LINE:
        return np.empty(shape, dtype)
    if size < SMALLEST:
        return _aligned(size).view(dtype).reshape(shape)
    try:
        memory = _free[size].pop()  # an atomic step: no lock, and so no deadlock with __del__
    except (KeyError, IndexError):
        memory = _aligned(size)
    return np.asarray(_Block(memory, tuple(shape), dtype))


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros, on reused memory where that is worth it."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def release() -> None:
    """Give all memory that is not in use back to the system."""
    _free.clear()
