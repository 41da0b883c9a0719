"""Compute products by warpgroups and by single warps on a real card; say whether they agree.

Started by warpgroups.py, which says why.

python -m minitl.kernels.cuda.warpgroup_trial 0
"""

import sys

import numpy as np

from minitl.kernels.cuda import conv2d, conv2d_plan, runtime, warpgroups
from minitl.shapes import Padding2d

# Pictures and filters of whole chunks of channels; more than a tile each way, more slices than are in flight.
X_SHAPE, WEIGHT_SHAPE = (2, 13, 11, 72), (136, 3, 2, 72)
GEOMETRY = (2, 1), Padding2d(1, 1, 0, 1), (1, 1), 1


def whole_numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return whole numbers from -2 to 2: their products and sums are exact in any order."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def results(tile: conv2d_plan.Tile) -> list[np.ndarray]:
    """Return y, dx and dw of one convolution in these tiles."""
    cupy = runtime.cupy()
    p, q = conv2d_plan.Geometry.of(X_SHAPE, WEIGHT_SHAPE, *GEOMETRY)[7:9]
    numbers = (whole_numbers(s, i) for i, s in enumerate((X_SHAPE, (2, p, q, WEIGHT_SHAPE[0]))))
    x, dy = (cupy.asarray((n.view(np.uint32) >> 16).astype(np.uint16)) for n in numbers)
    weight = cupy.asarray(whole_numbers(WEIGHT_SHAPE, 2))
    with conv2d_plan.forced(conv2d_plan.Plan(tile, 2)):
        computed = (
            conv2d.conv2d_forward(x, weight, None, *GEOMETRY),
            conv2d.conv2d_dx(dy, weight, X_SHAPE, *GEOMETRY),
            conv2d.conv2d_dw(dy, x, WEIGHT_SHAPE, *GEOMETRY),
        )
    return [cupy.asnumpy(array) for array in computed]


def differences() -> list[str]:
    """Return what warpgroups compute otherwise than single warps do, in words; nothing if they agree."""
    expected = results(conv2d_plan.SMALL)
    found = []
    for tile in conv2d_plan.WARPGROUP_TILES:
        for name, ours, right in zip(("y", "dx", "dw"), results(tile), expected, strict=True):
            wrong = int((ours != right).sum())
            if wrong:
                found.append(
                    f"{name} in tiles of {tile.m} x {tile.n}: {wrong} of {right.size} numbers"
                )
    return found


def main() -> None:
    """Print PASSED or the differences, in one line."""
    device = int(sys.argv[1])
    with runtime.cupy().cuda.Device(device), warpgroups.decided(True):
        found = differences()
    print(warpgroups.DIFFER + "; ".join(found) if found else warpgroups.PASSED)


if __name__ == "__main__":
    main()
