"""Add, ReLU, dropout, concat and flatten."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitl import ops
from minitl.kernels.cpu import elementwise
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import elementwise as reference

FLOATS = [np.float32, np.float64]
LARGE = (3, 41, 29, 13)  # more elements than kernels leave to NumPy
SHAPES = [(), (0, 3), (1,), (7, 13), (2, 3, 5, 4), LARGE]
each_float = pytest.mark.parametrize("dtype", FLOATS)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def normal(shape, dtype=np.float64, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def test_the_large_shape_is_large():
    assert np.prod(LARGE) > elementwise.SMALL > np.prod(SHAPES[-2])


# Add


@each_float
@each_shape
def test_add_is_numpys(shape, dtype):
    x, y, dz = (normal(shape, dtype, seed) for seed in range(3))
    a, b = Tensor(x, requires_grad=True), Tensor(y, requires_grad=True)
    z = ops.add(a, b)
    z.backward(dz)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z.data, x + y)
    np.testing.assert_array_equal(a.grad, dz)
    np.testing.assert_array_equal(b.grad, dz)


@each_float
@pytest.mark.parametrize("shape", SHAPES)
def test_scale(shape, dtype):
    x = normal(shape, dtype)
    y = ops.scale(Tensor(x), 0.4)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data, x * dtype(0.4))


def test_add_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"one shape; got \(2, 3\) and \(3,\)"):
        ops.add(Tensor(np.ones((2, 3))), Tensor(np.ones(3)))


# ReLU


@each_float
@each_shape
def test_relu_is_the_reference_and_pytorchs(shape, dtype):
    x, dy = normal(shape, dtype), normal(shape, dtype, 1)
    a, t = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, u = ops.relu(a), torch.relu(t)
    y.backward(dy)
    u.backward(torch.tensor(dy))
    assert y.dtype == dtype
    for ours, ref, theirs in (
        (y.data, reference.relu(x), u.detach()),
        (a.grad, reference.relu_dx(dy, x), t.grad),
    ):
        np.testing.assert_array_equal(ours, ref)
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("repeat", [1, 20_000])  # small arrays and large ones take different ways
def test_relu_of_special_values(repeat):
    x = np.tile(np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45]), repeat)
    a = Tensor(x, requires_grad=True)
    y = ops.relu(a)
    y.backward(np.full(x.shape, np.inf))
    np.testing.assert_array_equal(y.data[:6], [0, 0, np.nan, np.inf, 0, 1e-45])
    np.testing.assert_array_equal(a.grad[:6], [0, 0, np.inf, np.inf, 0, np.inf])  # as PyTorch


# Dropout


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # published with the authors' library, Random123
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, words):
    ours = elementwise.philox4x32(*(np.uint64(v) for v in (*counter, *key)))
    assert " ".join(f"{w:08x}" for w in ours) == words
    assert " ".join(f"{w:08x}" for w in reference.philox4x32(counter, key)) == words


@each_float
@given(
    size=st.integers(0, 40),
    p=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    seed=st.integers(0, 2**64 - 1),
    offset=st.one_of(st.integers(0, 9), st.integers(2**34 - 20, 2**34), st.just(2**63 + 1)),
)
def test_dropout_is_the_reference(dtype, size, p, seed, offset):
    x, dy = normal(size, dtype), normal(size, dtype, 1)
    a = Tensor(x, requires_grad=True)
    y = ops.dropout(a, p, seed=seed, offset=offset)
    y.backward(dy)
    tolerance = 2 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.data, reference.dropout(x, p, seed, offset), rtol=tolerance)
    np.testing.assert_allclose(a.grad, reference.dropout(dy, p, seed, offset), rtol=tolerance)


def test_dropout_keeps_the_stated_share_and_the_mean():
    n, p = 400_000, 0.3
    y = ops.dropout(Tensor(np.ones(n, np.float32)), p, seed=1, offset=0).data
    assert np.unique(y).tolist() == [0, np.float32(1 / 0.7)]
    assert abs((y == 0).mean() - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_dropout_masks_differ_by_seed_and_by_offset_and_agree_otherwise():
    x = Tensor(np.ones(1000))

    def mask(seed, offset=0):
        return ops.dropout(x, 0.5, seed=seed, offset=offset).data > 0

    np.testing.assert_array_equal(mask(5), mask(5))
    for other in (mask(6), mask(5 + 2**32), mask(5, 1000), mask(5, 1)):
        assert 0.4 < (mask(5) == other).mean() < 0.6
    np.testing.assert_array_equal(mask(5)[123:], mask(5, 123)[:-123])


def test_dropout_does_not_depend_on_the_number_of_threads_nor_on_the_type():
    before = numba.get_num_threads()
    many = ops.dropout(Tensor(np.ones(100_003)), 0.4, seed=3, offset=2).data
    try:
        numba.set_num_threads(1)
        one = ops.dropout(Tensor(np.ones(100_003, np.float32)), 0.4, seed=3, offset=2).data
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(many > 0, one > 0)


def test_dropout_at_the_ends():
    x = Tensor(np.ones(100))
    assert ops.dropout(x, 0, seed=0, offset=0) is x
    assert not ops.dropout(x, 1, seed=0, offset=0).data.any()


@pytest.mark.parametrize(
    ("p", "seed", "offset", "message"),
    [
        (-0.1, 0, 0, "p is a probability, 0 to 1; got -0.1"),
        (1.1, 0, 0, "got 1.1"),
        (float("nan"), 0, 0, "got nan"),
        (0.5, -1, 0, "seed must be"),
        (0.5, 2**64, 0, "seed must be"),
        (0.5, 0, -4, "offset must be .* got -4"),
    ],
)
def test_dropout_errors(p, seed, offset, message):
    with pytest.raises(ValueError, match=message):
        ops.dropout(Tensor(np.ones(3)), p, seed=seed, offset=offset)


# Concat


@each_float
@given(
    leading=hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_concat_is_numpys_and_splits_back(dtype, leading, sizes):
    arrays = [normal((*leading, c), dtype, seed) for seed, c in enumerate(sizes)]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    y = ops.concat(tensors)
    np.testing.assert_array_equal(y.data, np.concatenate(arrays, axis=-1))
    assert y.dtype == dtype
    dy = normal(y.shape, dtype, 99)
    y.backward(dy)
    for t, part in zip(tensors, np.split(dy, np.cumsum(sizes)[:-1], axis=-1), strict=True):
        np.testing.assert_array_equal(t.grad, part)


def test_concat_errors():
    with pytest.raises(ValueError, match="at least one"):
        ops.concat([])
    with pytest.raises(ValueError, match=r"last axis only; got \[\(2, 3\), \(3, 3\)\]"):
        ops.concat([Tensor(np.ones((2, 3))), Tensor(np.ones((3, 3)))])
    with pytest.raises(ValueError, match="last axis only"):
        ops.concat([Tensor(np.array(1.0))])


# Flatten


@each_float
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 1, 1, 7), (2, 4, 3, 1), (0, 2, 2, 3)])
def test_flatten_is_the_order_of_pytorch(shape, dtype):
    x = normal(shape, dtype)
    a = Tensor(x, requires_grad=True)
    y = ops.flatten(a)
    np.testing.assert_array_equal(y.data, reference.flatten(x))
    theirs = torch.flatten(torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), 1)
    np.testing.assert_array_equal(y.data, theirs.numpy())
    y.backward(y.data)
    np.testing.assert_array_equal(a.grad, x)
    assert a.grad.flags.c_contiguous


def test_flatten_leaves_rows_alone_and_refuses_the_rest():
    rows = Tensor(np.ones((2, 3)))
    assert ops.flatten(rows) is rows
    with pytest.raises(ValueError, match=r"or rows; got \(3,\)"):
        ops.flatten(Tensor(np.ones(3)))


# All


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (ops.add, [(3, 4), (3, 4)]),
        (ops.relu, [(3, 4)]),
        (lambda x: ops.dropout(x, 0.4, seed=1, offset=3), [(5, 7)]),
        (lambda *x: ops.concat(x), [(2, 3, 4), (2, 3, 1), (2, 3, 2)]),
        (ops.flatten, [(2, 3, 4, 5)]),
        (lambda x: ops.scale(x, -0.4), [(3, 4)]),
    ],
    ids=["add", "relu", "dropout", "concat", "flatten", "scale"],
)
def test_gradients(function, shapes):
    arrays = [normal(shape, seed=seed) for seed, shape in enumerate(shapes)]
    arrays = [np.where(np.abs(a) < 0.01, 0.5, a) for a in arrays]  # away from the kink at 0
    check_gradients(function, *arrays)


@each_float
def test_memory_order_does_not_matter(dtype):
    x, y = np.asfortranarray(normal(LARGE, dtype)), normal(LARGE, dtype, 1)
    c = np.ascontiguousarray(x)

    def results(x):
        a = Tensor(x, requires_grad=True)
        z = ops.concat([ops.relu(ops.add(a, Tensor(y))), ops.dropout(a, 0.5, seed=1, offset=0)])
        z.backward(np.ones_like(z.data))
        return z.data, a.grad

    for a, b in zip(results(x), results(c), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.flags.c_contiguous
