"""The dense layer against float64, against PyTorch, exactly on integers, and by the gradient checker."""

import numba
import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import ops
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import linear as reference

SHAPES = [  # N, I, O
    (1, 1, 1),
    (1, 512, 10),
    (7, 13, 33),
    (32, 2048, 5),
    (33, 67, 1),
    (16, 300, 1000),
]


def make_arrays(n, i, o, dtype, integers=False):
    """Return x, weight, bias and dy."""
    random = np.random.default_rng(0)
    shapes = (n, i), (o, i), (o,), (n, o)
    if integers:
        return [random.integers(-4, 5, shape).astype(dtype) for shape in shapes]
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def compute(x, weight, bias, dy):
    """Return y, dx, dw, db by the operation."""
    x, weight, bias = (Tensor(a, requires_grad=True) for a in (x, weight, bias))
    y = ops.linear(x, weight, bias)
    y.backward(dy)
    return y.data, x.grad, weight.grad, bias.grad


def expect(x, weight, bias, dy):
    """Return y, dx, dw, db by the reference."""
    return (
        reference.linear_forward(x, weight, bias),
        reference.linear_dx(dy, weight),
        reference.linear_dw(dy, x),
        reference.linear_db(dy),
    )


def compute_torch(x, weight, bias, dy):
    """Return y, dx, dw, db by PyTorch."""
    given = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    y = torch.nn.functional.linear(*given)
    y.backward(torch.tensor(dy))
    return y.detach().numpy(), *(t.grad.numpy() for t in given)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_exact_as_pytorch(shape, dtype):
    arrays = make_arrays(*shape, dtype)
    both = compute(*arrays), compute_torch(*arrays)
    for name, a, t, e in zip(("y", "dx", "dw", "db"), *both, expect(*arrays), strict=True):
        assert a.dtype == dtype, name
        floor = 4 * np.finfo(dtype).eps * np.abs(e).max()
        assert np.abs(a - e).max() <= 2 * np.abs(t - e).max() + floor, name


@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([np.float32, np.float64]),
)
def test_sums_of_small_integers_are_exact(n, i, o, dtype):
    arrays = make_arrays(n, i, o, dtype, integers=True)
    for a, e in zip(compute(*arrays), expect(*arrays), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, e)


def test_gradients():
    x, weight, bias, _ = make_arrays(4, 6, 5, np.float64)
    check_gradients(ops.linear, x, weight, bias)
    check_gradients(ops.linear, x, weight)


@pytest.mark.parametrize("shape", [(1, 512, 10), (32, 2048, 1000), (33, 67, 13)])
def test_the_number_of_threads_changes_no_bit(shape):
    arrays = make_arrays(*shape, np.float32)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in sorted({1, before}):
            numba.set_num_threads(threads)
            with threadpoolctl.threadpool_limits(threads):
                results.append(compute(*arrays))
    finally:
        numba.set_num_threads(before)
    for a, b in zip(results[0], results[-1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3, 3, 4), (5, 36), None, "flatten"),
        ((2, 36), (5, 35), None, r"\(O, 36\); got \(5, 35\)"),
        ((2, 36), (36,), None, r"\(O, 36\)"),
        ((2, 36), (5, 36), (36,), r"bias must have shape \(5,\)"),
    ],
)
def test_errors_say_what_does_not_fit(x, weight, bias, message):
    x, weight = Tensor(np.zeros(x)), Tensor(np.zeros(weight))
    with pytest.raises(ValueError, match=message):
        ops.linear(x, weight, None if bias is None else Tensor(np.zeros(bias)))
