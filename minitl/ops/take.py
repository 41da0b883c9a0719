"""Some rows and columns of a table: what one task's loss looks at.

x: N, K      rows: M of 0 .. N-1, each once      columns: start .. stop-1      result: M, stop-start
"""

import numpy as np

from minitl.backend import Array, array_module, like
from minitl.tensor import Op, Tensor


class Take(Op):
    """Selection; y[m, j] = x[rows[m], start + j]."""

    saves = ("shape", "rows", "columns")

    def forward(self, x: Array, rows: Array, columns: slice) -> Array:
        """Compute y, shape (M, stop - start)."""
        self.shape, self.rows, self.columns = x.shape, rows, columns
        return array_module(x).ascontiguousarray(x[rows, columns])

    # Each element of y is one of x, and none is taken twice: dx is dY where it was taken from, else 0.
    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        """Compute dx."""
        dx = array_module(dy).zeros(self.shape, dy.dtype)
        dx[self.rows, self.columns] = dy
        return (dx,)


def take(x: Tensor, rows: np.ndarray, columns: slice) -> Tensor:
    """Return the given rows and columns of a table.

    x: (N, K). rows: integers (M,), on the CPU, different ones from 0 to N - 1. columns: from start up to,
        not including, stop.

    Raises ValueError for rows or columns that are not there, for none, and for a row that is there twice.
    """
    if x.ndim != 2:
        raise ValueError(f"take needs a table of shape (N, K); got {x.shape}")
    n, k = x.shape
    rows = np.asarray(rows)
    wrong = rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size
    if wrong or not 0 <= rows.min() <= rows.max() < n or len(np.unique(rows)) < len(rows):
        raise ValueError(f"take needs different rows from 0 to {n - 1}; got {rows.tolist()}")
    if columns.step not in (None, 1) or not 0 <= columns.start < columns.stop <= k:
        raise ValueError(f"take needs columns from 0 to {k - 1}; got {columns}")
    return Take.apply(x, rows=like(x.data, rows.astype(np.int64)), columns=columns)
