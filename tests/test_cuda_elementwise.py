"""The CUDA kernels that work element by element, on the checker and on a GPU."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cpu import elementwise as cpu
from minitl.kernels.cuda import elementwise as launchers
from tests.cuda_launch import Launchers, bf16, each_device, of_type, widened

cuda = Launchers(launchers)
device = each_device()

TYPES = ("float", "bf16", "double")
SIZES = (1, 7, 8, 33, 1500)


def numbers(size, ctype, seed=0):
    return of_type(np.random.default_rng(seed).standard_normal(size), ctype)


def shifted(x):
    """Return a copy of x whose memory starts in the middle of 16 bytes."""
    memory = np.empty(x.size + 1, x.dtype)
    memory[1:] = x.reshape(-1)
    return memory[1:].reshape(x.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ctype", TYPES)
def test_add(ctype, size):
    x, y = numbers(size, ctype), numbers(size, ctype, 1)
    expected = of_type(widened(x) + widened(y), ctype)  # of a sum in double, one rounding
    np.testing.assert_array_equal(cuda.add_forward(x, y), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ctype", TYPES)
def test_scale(ctype, size):
    x = numbers(size, ctype)
    factor = 0.4 if ctype == "double" else float(np.float32(0.4))
    expected = of_type(widened(x) * factor, ctype)
    np.testing.assert_array_equal(cuda.scale_forward(x, 0.4), expected)
    np.testing.assert_array_equal(cuda.scale_forward(shifted(x), 0.4), expected)


@pytest.mark.parametrize("ctype", TYPES)
def test_arrays_that_are_not_aligned(ctype):
    x, y = numbers(50, ctype), numbers(50, ctype, 1)
    np.testing.assert_array_equal(cuda.add_forward(shifted(x), y), cuda.add_forward(x, y))
    np.testing.assert_array_equal(cuda.relu_dx(x, shifted(y)), cuda.relu_dx(x, y))
    np.testing.assert_array_equal(
        cuda.dropout_forward(shifted(x), 0.4, 1, 8), cuda.dropout_forward(x, 0.4, 1, 8)
    )
    wide, narrow = x.reshape(2, 25)[:, :16].copy(), y[:16].reshape(2, 8)
    np.testing.assert_array_equal(
        cuda.concat_forward([wide, shifted(narrow)]), np.concatenate([wide, narrow], 1)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ctype", TYPES)
def test_relu(ctype, size):
    x, dy = numbers(size, ctype), numbers(size, ctype, 1)
    x[0] = 0
    y = cuda.relu_forward(x)
    np.testing.assert_array_equal(widened(y), np.maximum(widened(x), 0))
    np.testing.assert_array_equal(
        widened(cuda.relu_dx(dy, y)), np.where(widened(x) > 0, widened(dy), 0)
    )


@pytest.mark.parametrize("ctype", TYPES)
def test_nan_stays_nan(ctype):
    x = numbers(20, ctype)
    x[3] = x[17] = of_type(np.array(np.nan), ctype)
    for y in (cuda.relu_forward(x), cuda.add_forward(x, x)):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(widened(y))), [3, 17])


@pytest.mark.parametrize("offset", [0, 3, 4, 6, 2**34 + 1])
@pytest.mark.parametrize("size", [1, 5, 8, 67, 1030])
@pytest.mark.parametrize("ctype", TYPES)
def test_dropout_is_the_stream_of_the_cpu(ctype, size, offset):
    x, seed, p = numbers(size, ctype), 0x1234567890ABCDEF, 0.3
    y = cuda.dropout_forward(x, p, seed, offset)
    if ctype == "bf16":
        mask = cpu.dropout_forward(np.ones(size, np.float32), p, seed, offset)
        expected = bf16(widened(x).astype(np.float32) * mask)
    else:
        expected = cpu.dropout_forward(x, p, seed, offset)
    np.testing.assert_array_equal(widened(y), widened(expected))
    np.testing.assert_array_equal(cuda.dropout_dx(x, p, seed, offset), y)
    on_device = cuda.dropout_forward(x, p, seed, np.array([offset]))
    np.testing.assert_array_equal(on_device, y)


@pytest.mark.parametrize(("p", "kept"), [(1.0, 0), (1e-12, 100)])
def test_dropout_of_nearly_everything_and_nothing(p, kept):
    assert np.count_nonzero(cuda.dropout_forward(np.ones(100, np.float32), p, 1, 0)) == kept


def test_offset_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="offset on the device must be one int64; got 2 of int64"):
        cuda.dropout_forward(np.ones(4, np.float32), 0.5, 1, np.zeros(2, np.int64))


@pytest.mark.parametrize("sizes", [(1,), (3, 5), (8, 16, 24), (33, 1, 64), (67, 128)])
@pytest.mark.parametrize("rows", [(1, 1, 1), (2, 3, 5)])
@pytest.mark.parametrize("ctype", TYPES)
def test_concat(ctype, rows, sizes):
    arrays = [numbers((*rows, size), ctype, size) for size in sizes]
    joined = cuda.concat_forward(arrays)
    np.testing.assert_array_equal(joined, np.concatenate(arrays, -1))
    for part, array in zip(cuda.concat_dx(joined, sizes), arrays, strict=True):
        np.testing.assert_array_equal(part, array)


@pytest.mark.parametrize("size", SIZES)
def test_cast(size):
    x = numbers(size, "float")
    x[-1] = np.nan
    narrow = cuda.cast(x, np.uint16)
    np.testing.assert_array_equal(narrow[:-1], bf16(x)[:-1])
    assert np.isnan(widened(narrow)[-1])
    wide = cuda.cast(narrow, np.float32)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, widened(narrow))
    assert cuda.cast(x, np.float32) is x
    with pytest.raises(TypeError, match="no cast from double to bf16"):
        cuda.cast(np.ones(3), np.uint16)


def test_rounding_to_bfloat16_at_its_limits():
    # Ties down and up to even, either side of a tie, the largest number, infinities, the smallest number.
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 1]
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x7F80, 0xFF80, 0]
    found = cuda.cast(np.array(bits, np.uint32).view(np.float32), np.uint16)
    np.testing.assert_array_equal(found, expected)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"compute on float32, float64 and bfloat16.*got int32"):
        cuda.relu_forward(np.ones(3, np.int32))
