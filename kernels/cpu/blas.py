"""Matrix products by NumPy's BLAS, with the same bits for any number of threads.

Left to itself a BLAS divides a product among as many threads as there are, and the place of the cuts shows
in the last digits. So the cuts are made here, by shape alone; each block is computed by one BLAS thread,
and several blocks at a time by threads of our own.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
import numpy as np
import threadpoolctl

BLOCK = 512  # rows or columns of the result
_lock = threading.Lock()


@cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries of this process.

    threadpoolctl's own context manager asks and describes all of them each time, for 20 us.
    """
    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold every BLAS to one thread.

    The limit is one number for the whole process: two threads must not set and restore it crosswise.
    """
    with _lock:
        before = [library.get_num_threads() for library in _libraries()]
        try:
            for library in _libraries():
                library.set_num_threads(1)
            yield
        finally:
            for library, threads in zip(_libraries(), before, strict=True):
                library.set_num_threads(threads)


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "minitl-blas")


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a @ b to `out` and return it; all of them have two axes."""
    rows, columns = out.shape
    if max(rows, columns) <= BLOCK:
        with one_thread():
            np.matmul(a, b, out=out)
        return out
    if rows > columns:
        blocks = [(slice(i, i + BLOCK), slice(None)) for i in range(0, rows, BLOCK)]
    else:
        blocks = [(slice(None), slice(j, j + BLOCK)) for j in range(0, columns, BLOCK)]

    def compute(block: tuple[slice, slice]) -> None:
        i, j = block
        np.matmul(a[i], b[:, j], out=out[i, j])

    threads = min(numba.get_num_threads(), len(blocks))
    with one_thread():
        if threads < 2:
            for block in blocks:
                compute(block)
        else:
            list(_workers(threads).map(compute, blocks))
    return out
