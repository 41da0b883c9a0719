"""How many threads compute. Results do not depend on it: work is cut by its size alone."""

import numba

from minitl.kernels.cpu.jit import most_threads


def set_threads(count: int | None) -> int:
    """Compute with `count` threads from now on, or with all that there are (None); return how many.

    A count above that of the cores (of NUMBA_NUM_THREADS, where that is set) means all of them. It
    holds for calls from the present thread.

    Raises ValueError for less than one.
    """
    if count is not None and count < 1:
        raise ValueError(f"cannot compute with {count} threads; give 1 or more, or None for all")
    number = min(count or most_threads(), most_threads())
    numba.set_num_threads(number)
    return number
