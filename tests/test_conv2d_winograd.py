"""Winograd's two ways through a convolution, by blocks of tiles and by columns of y, give the same bits."""

import numpy as np
import pytest

from minitl.kernels.cpu import microkernel, winograd
from minitl.shapes import Padding2d

LANES = [lanes for lanes in microkernel.compiled_lanes() if lanes]
CASES = {
    "one tile": ((1, 3, 3, 16), 16, (1, 1, 1, 1)),
    "cut tiles": ((3, 7, 9, 32), 48, (1, 1, 1, 1)),
    "odd channels": ((2, 9, 14, 17), 33, (0, 2, 1, 0)),
    "padding 2": ((2, 4, 5, 16), 19, (2, 2, 2, 2)),
    "sums in pieces": ((1, 5, 14, 300), 40, (1, 1, 1, 1)),
}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_by_columns_as_by_blocks(case, m, lanes, monkeypatch):
    (n, h, w, c), k, sides = case
    padding = Padding2d(*sides)
    y_shape = n, h + sum(sides[:2]) - 2, w + sum(sides[2:]) - 2, k
    random = np.random.default_rng(0)
    x, weight, residual = (
        random.standard_normal(shape, np.float32) for shape in ((n, h, w, c), (k, 3, 3, c), y_shape)
    )
    scale, shift = random.standard_normal((2, k), np.float32)

    def results():
        yield winograd.conv2d_dx(residual, weight, x.shape, padding, m, lanes)
        for other, relu in ((None, False), (residual, True)):
            epilogue = scale, shift, other, relu
            yield winograd.conv2d_forward(x, weight, *epilogue, padding, m, lanes)

    monkeypatch.setattr(winograd, "FILTERS_IN_CACHE", 1 << 40)
    by_blocks = list(results())
    monkeypatch.setattr(winograd, "FILTERS_IN_CACHE", 0)
    for tiles in (12, 264):  # several blocks of tiles, and one
        monkeypatch.setattr(winograd, "TILES_BY_COLUMNS", tiles)
        for columns, blocks in zip(results(), by_blocks, strict=True):
            np.testing.assert_array_equal(columns, blocks)
