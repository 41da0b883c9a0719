"""From a loader's batches to arrays on the device that trains.

The CPU takes batches as they are. To a GPU the pictures go as bytes, a quarter of the numbers they become,
and are normalised there. They are copied from pinned memory on a stream of their own while the GPU is
busy with the step before: two buffers take turns, and events say when each is free again. The host waits
only if it is two batches ahead.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minitl.backend import Array, copied
from minitl.data.loader import Batch, usable_cores
from minitl.data.preprocessing import Preprocessing
from minitl.device import Device, cupy


class Mixed(NamedTuple):
    """What else is in the pictures of a mixed batch: these labels, and the share of their own ones.

    labels, host_labels: as of `Inputs`.
    """

    labels: Array
    share: float
    host_labels: np.ndarray


class Inputs(NamedTuple):
    """What a step is given.

    x: (n, crop, crop, 3), or (n, F) features, on the device. labels: (n,) int64, there as well.
    host_labels: the labels as a NumPy array. mixed: for pictures that are mixed, see mixing.py.
    """

    x: Array
    labels: Array
    host_labels: np.ndarray
    mixed: Mixed | None = None


def decoding_threads(device: str) -> int:
    """Return how many threads decode pictures if nobody says: one beside a CPU that trains, which needs
    its cores itself; one for each core beside a GPU.
    """
    return 1 if device == "cpu" else usable_cores()


def on_device(
    batches: Iterable[Batch], preprocessing: Preprocessing, device: Device, dtype: np.dtype
) -> Iterator[Inputs]:
    """Yield batches as arrays on the device, x in `dtype`.

    For a GPU they must come from a loader that does not normalise.
    """
    if device.kind == "cpu":
        for batch in batches:
            yield Inputs(batch.images, batch.labels, batch.labels)
        return
    copying = cupy().cuda.Stream(non_blocking=True)
    buffers = _Buffer(), _Buffer()
    try:
        for number, batch in enumerate(batches):
            x, labels = buffers[number % 2].send(batch, copying, preprocessing, device, dtype)
            yield Inputs(x, labels, batch.labels)
    finally:
        copying.synchronize()  # pinned memory is handed out again without asking who still reads it


class _Buffer:
    """Room for a batch in pinned memory and on the device."""

    def __init__(self) -> None:
        self._size = 0
        self._copied: Any = None  # event: pinned memory may be written again
        self._used: Any = None  # event: the device's memory may be written again

    def send(
        self,
        batch: Batch,
        copying: Any,
        preprocessing: Preprocessing,
        device: Device,
        dtype: np.dtype,
    ) -> tuple[Array, Array]:
        """Return the normalised pictures and the labels, as the current stream will see them."""
        current = cupy().cuda.get_current_stream()
        n = len(batch.labels)
        if self._copied is not None:
            self._copied.synchronize()
        if n > self._size:
            self._allocate(batch)
            self._used = current.record()  # what the memory was used for before is done by then
        self._host_images[:n], self._host_labels[:n] = batch.images, batch.labels
        copying.wait_event(self._used)
        images, labels = self._images[:n], self._labels[:n]
        images.set(self._host_images[:n], stream=copying)
        labels.set(self._host_labels[:n], stream=copying)
        self._copied = copying.record()
        current.wait_event(self._copied)
        p = preprocessing
        x = device.kernels.normalize_images(
            images, p.mean, p.std, p.scale, None, None, None, p.crop, dtype
        )
        labels = copied(labels)
        self._used = current.record()
        return x, labels

    def _allocate(self, batch: Batch) -> None:
        self._size = len(batch.labels)
        self._host_images, self._host_labels = pinned_like(batch.images), pinned_like(batch.labels)
        self._images, self._labels = (
            cupy().empty(host.shape, host.dtype) for host in (self._host_images, self._host_labels)
        )


def parts_of(n: int, most: int | None) -> list[tuple[int, int]]:
    """Return (start, end) of about equal parts of n pictures, of at most so many (None: all of them)."""
    parts = math.ceil(n / (most or n))
    edges = [n * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def pinned_like(array: np.ndarray) -> np.ndarray:
    """Return an array of this shape and dtype in memory that a GPU can copy from by itself."""
    memory = cupy().cuda.alloc_pinned_memory(array.nbytes)
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
