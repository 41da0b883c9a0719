"""Numbers that change from step to step, for training steps that are recorded once and replayed.

A recorded step (a CUDA graph) repeats its kernels with the arguments they had; the code that chose the
arguments does not run again. A learning rate, an optimizer's count of steps or the place in a random
stream where dropout begins would stay what they were. So whoever needs such a number gives a function
that finds it, and counts on what it has to:

    offset = in_memory(lambda: self._take(size), np.int64)

It is called at once. While a step is run to be recorded, its result is put into device memory, from
where the kernels read it, and before each replay it is called again, all of them in the order they came.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from numpy.typing import DTypeLike


class Places(Protocol):
    """Where the numbers of a step are held."""

    def place(self, find: Callable[[], Any], dtype: DTypeLike) -> Any:
        """Return a one-element array on the device for what `find` gives, now and in each replay."""


class _Active(threading.local):
    places: Places | None = None


_active = _Active()


@contextlib.contextmanager
def held_in(places: Places | None) -> Iterator[None]:
    """Within the block, hold changing numbers in these places."""
    before, _active.places = _active.places, places
    try:
        yield
    finally:
        _active.places = before


def in_memory(find: Callable[[], Any], dtype: DTypeLike) -> Any:
    """Return the number that `find` gives: itself, or in a step to be recorded an array that holds it."""
    return find() if _active.places is None else _active.places.place(find, dtype)
