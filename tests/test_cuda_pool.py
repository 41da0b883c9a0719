"""Max pooling and the mean of each picture on CUDA, on the checker and on a GPU."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cpu import pool as cpu
from minitl.kernels.cuda import pool as launchers
from minitl.shapes import padding2d
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened
from tests.reference import pool as reference

cuda = Launchers(launchers)
device = each_device()

TYPES = ("float", "bf16", "double")
# x, kernel, stride, padding (top, bottom, left, right)
CASES = (
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((2, 5, 4, 3), (3, 3), (2, 2), (1, 1, 1, 1)),
    ((1, 6, 7, 33), (2, 3), (3, 1), (1, 0, 0, 2)),
    ((2, 7, 7, 16), (3, 3), (2, 2), (0, 1, 0, 1)),
    ((1, 4, 5, 67), (2, 2), (2, 2), (0, 0, 0, 0)),
    ((3, 3, 3, 264), (3, 3), (1, 1), (1, 1, 1, 1)),
    ((1, 17, 18, 2), (17, 16), (1, 2), (3, 0, 0, 3)),  # 272 pixels: the index is int32
)


def window(kernel, stride, padding):
    top, bottom, left, right = padding
    return kernel, stride, padding2d(((top, bottom), (left, right)))


def distinct(shape, ctype, seed=0):
    """Return numbers of which no two are equal, in bfloat16 too as far as there are that many."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    values = of_type(np.arange(-128, 128) / 8, ctype) if ctype == "bf16" else None
    x = (order - order.size / 2) / 8
    return (values[order % 256] if ctype == "bf16" else of_type(x, ctype)).reshape(shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ctype", TYPES)
def test_maxpool(ctype, case):
    shape, kernel, stride, padding = case
    x = distinct(shape, ctype)
    y, index = cuda.maxpool2d_forward(x, *window(kernel, stride, padding))
    np.testing.assert_array_equal(
        widened(y), reference.maxpool2d_forward(widened(x), kernel, stride, padding)
    )
    wide = x if ctype != "bf16" else widened(x).astype(np.float32)
    expected_index = cpu.maxpool2d_forward(wide, *window(kernel, stride, padding))[1]
    assert index.dtype == expected_index.dtype
    np.testing.assert_array_equal(index, expected_index)

    dy = of_type(np.random.default_rng(1).integers(-8, 9, y.shape), ctype)  # sums are exact
    dx = cuda.maxpool2d_dx(dy, index, shape, *window(kernel, stride, padding))
    np.testing.assert_array_equal(
        widened(dx), reference.maxpool2d_dx(widened(dy), widened(x), kernel, stride, padding)
    )


@pytest.mark.parametrize("channels", [1, 8])
def test_maxpool_of_equals_takes_the_first_and_of_nans_the_last(channels):
    x = np.zeros((1, 2, 2, channels), np.float32)
    y, index = cuda.maxpool2d_forward(x - np.inf, (2, 2), (2, 2), padding2d(0))
    assert (y == -np.inf).all()
    assert (index == 0).all()
    x[0, 0, 1] = x[0, 1, 0] = np.nan
    y, index = cuda.maxpool2d_forward(x, (2, 2), (2, 2), padding2d(0))
    assert np.isnan(y).all()
    assert (index == 2).all()


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 7, 7, 3), (3, 2, 5, 16), (1, 40, 50, 5), (2, 3, 3, 67), (1, 2, 2, 520)],
)
@pytest.mark.parametrize("ctype", TYPES)
def test_global_avgpool(ctype, shape):
    x = of_type(np.random.default_rng(0).standard_normal(shape) + 1, ctype)
    y = cuda.global_avgpool2d_forward(x)
    arithmetic = ROUNDING["double" if ctype == "double" else "float"]
    np.testing.assert_allclose(
        widened(y), widened(x).mean((1, 2)), rtol=ROUNDING[ctype] * 1.01, atol=32 * arithmetic
    )
    dx = cuda.global_avgpool2d_dx(y, shape)
    expected = np.broadcast_to(widened(y)[:, None, None] / (shape[1] * shape[2]), shape)
    np.testing.assert_allclose(widened(dx), expected, rtol=ROUNDING[ctype] * 1.01)


def test_arrays_that_are_not_aligned():
    x = distinct((2, 4, 4, 8), "float")
    memory = np.empty(x.size + 1, x.dtype)
    off = memory[1:].reshape(x.shape)
    off[...] = x
    pooling = window((2, 2), (2, 2), (0, 0, 0, 0))
    for found, expected in zip(
        cuda.maxpool2d_forward(off, *pooling), cuda.maxpool2d_forward(x, *pooling), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        cuda.global_avgpool2d_forward(off), cuda.global_avgpool2d_forward(x)
    )


def test_too_many_pixels_are_refused():
    """Of a shape alone: nobody has that much memory here."""
    like = np.lib.stride_tricks.as_strided(np.zeros(1, "f"), (2**16, 2**8, 2**8, 1), (0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"4294967296 pixels.*use a smaller batch"):
        launchers.pixel_tiles(like)
