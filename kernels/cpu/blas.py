"""Matrix products by NumPy's BLAS, with the same bits for any number of threads.

Left to itself a BLAS divides a product among as many threads as there are, and the place of the cuts shows
in the last digits. So the cuts are made here, by shape alone; each block is computed by one BLAS thread,
and several blocks at a time by threads of our own.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import threadpoolctl

BLOCK = 512  # rows or columns of the result
_lock = threading.Lock()


@cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "minitl-blas")


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a @ b to `out` and return it; all of them have two axes."""
    rows, columns = out.shape
    if rows > columns:
        blocks = [(slice(i, i + BLOCK), slice(None)) for i in range(0, rows, BLOCK)]
    else:
        blocks = [(slice(None), slice(j, j + BLOCK)) for j in range(0, columns, BLOCK)]

    def compute(block: tuple[slice, slice]) -> None:
        i, j = block
        np.matmul(a[i], b[:, j], out=out[i, j])

    threads = min(numba.get_num_threads(), len(blocks))
    # The limit is one number for the whole process: two threads must not set and restore it crosswise.
    with _lock, _controller().limit(limits=1, user_api="blas"):
        if threads < 2:
            for block in blocks:
                compute(block)
        else:
            list(_workers(threads).map(compute, blocks))
    return out
