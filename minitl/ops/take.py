"""Some rows and columns of a table: what one task's loss looks at.

x: N, K      rows: M of 0 .. N-1, each once      columns: start .. stop-1      result: M, stop-start
"""

import numpy as np

from minitl.backend import is_on_gpu
from minitl.tensor import Op, Tensor


class Take(Op):
    """Selection; y[m, j] = x[rows[m], start + j]."""

    saves = ("shape", "rows", "columns")

    def forward(self, x: np.ndarray, rows: np.ndarray, columns: slice) -> np.ndarray:
        """Compute y, shape (M, stop - start)."""
        self.shape, self.rows, self.columns = x.shape, rows, columns
        return np.ascontiguousarray(x[rows, columns])

    # Each element of y is one of x, and none is taken twice: dx is dY where it was taken from, else 0.
    def backward(self, dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """Compute dx."""
        dx = np.zeros(self.shape, dy.dtype)
        dx[self.rows, self.columns] = dy
        return (dx,)


def take(x: Tensor, rows: np.ndarray, columns: slice) -> Tensor:
    """Return the given rows and columns of a table on the CPU (see `to_host`).

    x: (N, K). rows: integers (M,), different ones from 0 to N - 1. columns: from start up to, not including,
        stop.

    Raises TypeError for a table on a GPU, ValueError for rows or columns that are not there, for none, and
    for a row that is there twice.
    """
    if is_on_gpu(x.data):
        raise TypeError("take works on the CPU; bring the table there with ops.to_host")
    if x.ndim != 2:
        raise ValueError(f"take needs a table of shape (N, K); got {x.shape}")
    n, k = x.shape
    rows = np.asarray(rows)
    wrong = rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size
    if wrong or not 0 <= rows.min() <= rows.max() < n or len(np.unique(rows)) < len(rows):
        raise ValueError(f"take needs different rows from 0 to {n - 1}; got {rows.tolist()}")
    if columns.step not in (None, 1) or not 0 <= columns.start < columns.stop <= k:
        raise ValueError(f"take needs columns from 0 to {k - 1}; got {columns}")
    return Take.apply(x, rows=rows.astype(np.int64), columns=columns)
