"""Max, average and global average pooling against float64 and against PyTorch."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minitl import ops
from minitl.kernels import cpu
from minitl.shapes import Padding2d
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import pool as reference


def distinct(shape, dtype=np.float32, seed=0):
    """Return a picture without two equal values."""
    values = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return (values.reshape(shape) / 8 - 5).astype(dtype)


def to_torch(a, requires_grad=False):
    a = np.ascontiguousarray(np.moveaxis(a, -1, 1))
    return torch.tensor(a, requires_grad=requires_grad)


def from_torch(t):
    return np.moveaxis(t.detach().numpy(), 1, -1)


def run(function, x, dy_seed=1):
    """Return result, seed gradient and dx."""
    x = Tensor(x, requires_grad=True)
    y = function(x)
    dy = np.random.default_rng(dy_seed).normal(size=y.shape).astype(y.dtype)
    y.backward(dy)
    return y.data, dy, x.grad


def run_torch(function, x, dy):
    x = to_torch(x, requires_grad=True)
    y = function(x)
    y.backward(to_torch(dy))
    return from_torch(y), from_torch(x.grad)


pictures = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 8]),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 3, 17, 33]),
)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def pools(draw):
    """Draw shape, kernel, stride and padding (top, bottom, left, right) that fit each other."""
    shape, kernel, stride = draw(pictures), draw(pairs), draw(pairs)
    top, bottom = (draw(st.integers(0, kernel[0] - 1)) for _ in range(2))
    left, right = (draw(st.integers(0, kernel[1] - 1)) for _ in range(2))
    assume(shape[1] + top + bottom >= kernel[0] and shape[2] + left + right >= kernel[1])
    return shape, kernel, stride, (top, bottom, left, right)


def two_sided(padding):
    return padding[:2], padding[2:]


dtypes = st.sampled_from([np.float32, np.float64])


@given(pools(), dtypes)
def test_maxpool2d_agrees_with_the_reference(pool, dtype):
    shape, kernel, stride, padding = pool
    x = distinct(shape, dtype)
    y, dy, dx = run(lambda t: ops.maxpool2d(t, kernel, stride, two_sided(padding)), x)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, reference.maxpool2d_forward(x, kernel, stride, padding))
    exact = reference.maxpool2d_dx(dy, x, kernel, stride, padding)
    np.testing.assert_allclose(dx, exact, rtol=0, atol=16 * np.finfo(dtype).eps)


@given(pools(), dtypes, st.booleans())
def test_avgpool2d_agrees_with_the_reference(pool, dtype, count_include_pad):
    shape, kernel, stride, padding = pool
    x = distinct(shape, dtype)
    y, dy, dx = run(
        lambda t: ops.avgpool2d(t, kernel, stride, two_sided(padding), count_include_pad), x
    )
    assert y.dtype == dx.dtype == dtype
    exact = reference.avgpool2d_forward(x, kernel, stride, padding, count_include_pad)
    # The sums are exact, multiples of 1/8, so one rounding is left: the division.
    np.testing.assert_allclose(y, exact, rtol=np.finfo(dtype).eps)
    exact = reference.avgpool2d_dx(dy, x, kernel, stride, padding, count_include_pad)
    np.testing.assert_allclose(dx, exact, rtol=0, atol=16 * np.finfo(dtype).eps)


# PyTorch pads both sides alike, with half the kernel at most.
TORCH_CASES = [
    ((2, 9, 12, 16), 3, 2, 1),
    ((2, 9, 12, 17), 3, 1, 1),
    ((1, 7, 6, 3), 2, 2, 0),
    ((2, 8, 8, 33), 3, 3, 0),
    ((3, 1, 1, 5), 3, 2, 1),
    ((1, 10, 9, 4), (5, 2), (1, 3), (2, 1)),
    ((2, 6, 6, 1), 2, 4, 1),
]


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), TORCH_CASES)
def test_agrees_with_torch(shape, kernel, stride, padding):
    x = distinct(shape)
    window = kernel, stride, padding
    for ours, theirs in (
        (lambda t: ops.maxpool2d(t, *window), torch.nn.MaxPool2d(*window)),
        (lambda t: ops.avgpool2d(t, *window), torch.nn.AvgPool2d(*window)),
        (
            lambda t: ops.avgpool2d(t, *window, count_include_pad=False),
            torch.nn.AvgPool2d(*window, count_include_pad=False),
        ),
        (ops.global_avgpool2d, lambda t: t.mean((2, 3))),
    ):
        y, dy, dx = run(ours, x)
        their_y, their_dx = run_torch(theirs, x, dy)
        np.testing.assert_allclose(y, their_y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dx, their_dx, rtol=0, atol=2e-6)


def test_the_first_of_equal_values_takes_the_gradient():
    x = np.zeros((1, 2, 4, 1), np.float32)  # every window is a tie
    _, dy, dx = run(lambda t: ops.maxpool2d(t, 2), x)
    expected = np.zeros_like(x)
    expected[0, 0, 0::2, 0] = dy[0, 0, :, 0]
    np.testing.assert_array_equal(dx, expected)

    x = np.random.default_rng(0).integers(0, 3, size=(2, 9, 8, 6)).astype(np.float32)
    for window in ((3, 2, 1), (3, 1, 1), (2, 2, 0)):
        _, dy, dx = run(lambda t, window=window: ops.maxpool2d(t, *window), x)
        _, their_dx = run_torch(torch.nn.MaxPool2d(*window), x, dy)
        np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-6)


def test_nan_and_infinity_in_a_window():
    x = distinct((1, 7, 8, 5))
    x[0, 3, 4, 2] = x[0, 3, 5, 2] = np.nan
    x[0, 0, 0, 1] = -np.inf
    x[..., 3] = -np.inf
    x[0, 2, 2, 4] = np.inf
    y, dy, dx = run(lambda t: ops.maxpool2d(t, 3, 2, 1), x)
    their_y, their_dx = run_torch(torch.nn.MaxPool2d(3, 2, 1), x, dy)
    assert np.isnan(y).any()
    np.testing.assert_array_equal(y, their_y)
    np.testing.assert_allclose(dx, their_dx, rtol=0, atol=1e-6)


def test_windows_of_more_than_256():
    x = distinct((2, 20, 20, 3))
    y, dy, dx = run(lambda t: ops.maxpool2d(t, (18, 17), 2, 1), x)
    padding = (1, 1, 1, 1)
    np.testing.assert_array_equal(y, reference.maxpool2d_forward(x, (18, 17), (2, 2), padding))
    exact = reference.maxpool2d_dx(dy, x, (18, 17), (2, 2), padding)
    np.testing.assert_allclose(dx, exact, rtol=0, atol=1e-6)
    _, index = cpu.maxpool2d_forward(x, (18, 17), (2, 2), Padding2d(*padding))
    assert index.dtype == np.int32 and index.max() > 255


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 7, 7, 33), (3, 5, 1, 1)])
def test_global_avgpool2d(shape):
    for dtype in (np.float32, np.float64):
        x = distinct(shape, dtype)
        y, dy, dx = run(ops.global_avgpool2d, x)
        assert y.shape == (shape[0], shape[3]) and y.dtype == dtype
        np.testing.assert_allclose(y, x.astype(float).mean((1, 2)), rtol=np.finfo(dtype).eps)
        share = dy[:, None, None] / (shape[1] * shape[2])
        np.testing.assert_allclose(dx, np.broadcast_to(share, shape), rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: ops.maxpool2d(t, 3, 2, 1),
        lambda t: ops.avgpool2d(t, 3, 2, 1),
        lambda t: ops.avgpool2d(t, 3, 2, 1, count_include_pad=False),
        ops.global_avgpool2d,
    ],
)
def test_gradients_match_differences(function):
    check_gradients(function, distinct((2, 6, 5, 3), np.float64))


def test_one_and_two_threads_give_the_same_bits():
    x = np.random.default_rng(0).normal(size=(3, 40, 40, 32)).astype(np.float32)
    threads = numba.get_num_threads()
    results = []
    try:
        for count in (1, min(2, threads)):
            numba.set_num_threads(count)
            results.append(
                [
                    array
                    for function in (ops.maxpool2d, ops.avgpool2d)
                    for array in run(lambda t, f=function: f(t, 3, 2, 1), x)
                ]
            )
    finally:
        numba.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_arrays_need_not_be_contiguous():
    x = distinct((2, 6, 5, 4))
    for function in (lambda t: ops.maxpool2d(t, 2), lambda t: ops.avgpool2d(t, 2)):
        for one, two in zip(run(function, x), run(function, np.asfortranarray(x)), strict=True):
            np.testing.assert_array_equal(one, two)


def test_backward_keeps_no_picture():
    x = Tensor(distinct((1, 8, 8, 4)), requires_grad=True)
    assert ops.maxpool2d(x, 2)._op.index.dtype == np.uint8
    for function in (lambda t: ops.maxpool2d(t, 2), lambda t: ops.avgpool2d(t, 2)):
        op = function(x)._op
        assert not any(getattr(op, name) is x.data for name in op.saves)


def test_errors_say_what_is_wrong():
    x = Tensor(np.zeros((1, 4, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"maxpool2d needs pictures .* got \(4, 2\)"):
        ops.maxpool2d(Tensor(np.zeros((4, 2), np.float32)), 2)
    with pytest.raises(ValueError, match="kernel_size must be"):
        ops.avgpool2d(x, 0)
    with pytest.raises(ValueError, match="padding must be smaller than the kernel"):
        ops.avgpool2d(x, 2, padding=2)
    with pytest.raises(ValueError, match="a window of 5 does not fit into 4 pixels"):
        ops.maxpool2d(x, 5)
    with pytest.raises(ValueError, match="global_avgpool2d needs pictures"):
        ops.global_avgpool2d(Tensor(np.zeros((4, 2), np.float32)))


@given(pictures, pairs.map(lambda p: (p[0] * 2 - 1, p[1] * 2)), dtypes)
def test_adaptive_avgpool2d_agrees_with_torch(shape, size, dtype):
    x = distinct(shape, dtype)
    y, dy, dx = run(lambda t: ops.adaptive_avgpool2d(t, size), x)
    if shape[1:3] == size:
        np.testing.assert_array_equal(y, x)
        return
    expected, expected_dx = run_torch(
        lambda t: torch.nn.functional.adaptive_avg_pool2d(t, size), x, dy
    )
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * np.abs(x).max())
    np.testing.assert_allclose(dx, expected_dx, rtol=tolerance, atol=tolerance * np.abs(dy).max())


def test_adaptive_avgpool2d_gradients():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4))
    check_gradients(lambda t: ops.adaptive_avgpool2d(t, (7, 2)), x)
