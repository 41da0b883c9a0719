"""Convolution against float64, against PyTorch, exactly on integers, and by the gradient checker.

Wherever the setting of the algorithm makes a difference, every setting is tried.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numba
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minitl import ops
from minitl.kernels.cpu import conv2d as kernels
from minitl.kernels.cpu.microkernel import host_lanes
from minitl.shapes import padding2d, pair
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import conv2d as reference

# What conv2d.py promises of F(4x4): the largest error, in parts of the largest result.
WINOGRAD_F4 = 1e-4


@dataclass
class Case:
    """One convolution: x (N, H, W, C), weight (K, R, S, C/groups) and its geometry."""

    x: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    @property
    def weight(self):
        return self.filters, *self.kernel, self.x[3] // self.groups

    @property
    def options(self):
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def geometry(self):
        """Positional arguments of the reference."""
        return (
            pair(self.stride, ""),
            tuple(padding2d(self.padding)),
            pair(self.dilation, ""),
            self.groups,
        )


CASES = {
    "1x1": Case((2, 7, 5, 13), 33, (1, 1)),
    "1x1 of one pixel": Case((3, 1, 1, 67), 5, (1, 1)),
    "1x1 stride 2": Case((2, 9, 8, 16), 32, (1, 1), stride=2),
    "1x1 padded": Case((1, 4, 4, 3), 5, (1, 1), padding=1),
    "3x3": Case((2, 8, 8, 32), 48, (3, 3), padding=1),
    "3x3 cut tiles": Case((3, 10, 9, 17), 33, (3, 3), padding=(2, 0)),
    "3x3 odd channels": Case((1, 13, 7, 7), 13, (3, 3), padding=1),
    "3x3 without padding": Case((2, 5, 9, 4), 3, (3, 3)),
    "3x3 stride 2": Case((2, 14, 15, 24), 17, (3, 3), stride=2, padding=1),
    "3x3 of the whole picture": Case((2, 3, 3, 5), 4, (3, 3)),
    "stem": Case((2, 33, 32, 3), 64, (7, 7), stride=2, padding=3),
    "5x5": Case((2, 11, 11, 10), 12, (5, 5), padding=2),
    "1x7": Case((1, 9, 17, 16), 24, (1, 7), padding=(0, 3)),
    "7x1": Case((1, 17, 9, 16), 24, (7, 1), padding=(3, 0)),
    "even kernel, uneven padding": Case((2, 9, 10, 6), 7, (4, 2), padding=((1, 2), (0, 1))),
    "more padding than kernel": Case((1, 4, 5, 3), 5, (2, 3), padding=4),
    "stride longer than kernel": Case((2, 11, 12, 5), 6, (2, 1), stride=(3, 4)),
    "unused border": Case((2, 8, 8, 5), 6, (3, 3), stride=3),
    "dilation": Case((2, 12, 11, 8), 9, (3, 3), padding=2, dilation=2),
    "dilation and stride": Case((1, 13, 17, 5), 8, (3, 2), (2, 3), 3, (3, 2)),
    "groups": Case((2, 9, 9, 24), 36, (3, 3), padding=1, groups=4),
    "many groups": Case((1, 6, 7, 64), 64, (3, 3), stride=2, padding=1, groups=16),
    "depthwise": Case((2, 9, 8, 19), 19, (3, 3), padding=1, groups=19),
    "one channel, one filter": Case((1, 5, 5, 1), 1, (3, 3), padding=1),
    "one row": Case((4, 1, 21, 9), 10, (1, 5), padding=(0, 2)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def algorithm(case, setting, dtype=np.float32):
    """Return the name of the algorithm that computes a case."""
    stride, _, dilation, groups = case.geometry
    geometry = stride, padding2d(case.padding), dilation, groups
    return kernels.choose_algorithm(
        case.x, case.weight, np.dtype(dtype), *geometry, setting, host_lanes()
    )


def settings_of(case):
    """Return "auto", and the settings by which something else computes the case."""
    kinds = {algorithm(case, "auto"): "auto"}
    for setting in kernels.ALGORITHMS:
        kinds.setdefault(algorithm(case, setting), setting)
    return kinds.values()


each_case_and_setting = pytest.mark.parametrize(
    ("case", "setting"),
    [
        pytest.param(case, setting, id=f"{name}-{setting}")
        for name, case in CASES.items()
        for setting in settings_of(case)
    ],
)


@contextmanager
def conv_algorithm(setting):
    """Have convolutions computed so for a while."""
    before = kernels.set_conv_algorithm(setting)
    try:
        yield
    finally:
        kernels.set_conv_algorithm(before)


def make_arrays(case, dtype, seed=0, integers=False):
    """Return x, weight, bias and dy."""
    random = np.random.default_rng(seed)
    y = reference.conv2d_forward(
        np.zeros(case.x), np.zeros(case.weight), None, *case.geometry
    ).shape
    shapes = case.x, case.weight, (case.filters,), y
    if integers:
        return [random.integers(-4, 5, shape).astype(dtype) for shape in shapes]
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def compute(case, x, weight, bias, dy):
    """Return y, dx, dw, db by the operation."""
    x, weight, bias = (Tensor(a, requires_grad=True) for a in (x, weight, bias))
    y = ops.conv2d(x, weight, bias, **case.options)
    y.backward(dy)
    return y.data, x.grad, weight.grad, bias.grad


def expect(case, x, weight, bias, dy):
    """Return y, dx, dw, db by the reference."""
    return (
        reference.conv2d_forward(x, weight, bias, *case.geometry),
        reference.conv2d_dx(dy, weight, x.shape, *case.geometry),
        reference.conv2d_dw(dy, x, weight.shape, *case.geometry),
        reference.conv2d_db(dy),
    )


def compute_torch(case, x, weight, bias, dy):
    """Return y, dx, dw, db by PyTorch, in this project's layout."""

    def turned(a):
        return torch.tensor(np.ascontiguousarray(a.transpose(0, 3, 1, 2)), requires_grad=True)

    top, bottom, left, right = padding2d(case.padding)
    given = turned(x), turned(weight), torch.tensor(bias, requires_grad=True)
    padded = torch.nn.functional.pad(given[0], (left, right, top, bottom))
    y = torch.nn.functional.conv2d(
        padded, *given[1:], stride=case.stride, dilation=case.dilation, groups=case.groups
    )
    y.backward(turned(dy).detach())
    back = (0, 2, 3, 1)
    return (
        y.detach().numpy().transpose(back),
        given[0].grad.numpy().transpose(back),
        given[1].grad.numpy().transpose(back),
        given[2].grad.numpy(),
    )


def assert_as_good_as(ours, theirs, exact, bound=0):
    """Fail where the largest error is over twice PyTorch's, plus a few roundings of the largest value.

    bound: a largest error that is allowed in any case, in parts of the largest value.
    """
    for name, a, t, e in zip(("y", "dx", "dw", "db"), ours, theirs, exact, strict=True):
        assert a.shape == e.shape, name
        assert a.dtype == t.dtype, name
        assert a.flags.c_contiguous, name
        floor = 4 * np.finfo(a.dtype).eps * np.abs(e).max(initial=1)
        allowed = 2 * np.abs(t - e).max(initial=0) + floor
        allowed = max(allowed, bound * np.abs(e).max(initial=0))
        assert np.abs(a - e).max(initial=0) <= allowed, name


def bound_of(case, setting, dtype=np.float32):
    """Return the error that the algorithm may make where others are as exact as PyTorch."""
    return WINOGRAD_F4 if algorithm(case, setting, dtype) == "winograd_f4" else 0


@each_case_and_setting
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_as_exact_as_pytorch(case, setting, dtype):
    arrays = make_arrays(case, dtype)
    with conv_algorithm(setting):
        ours = compute(case, *arrays)
    theirs = compute_torch(case, *arrays)
    assert_as_good_as(ours, theirs, expect(case, *arrays), bound_of(case, setting, dtype))


@each_case
def test_the_reference_is_pytorchs_convolution(case):
    arrays = make_arrays(case, np.float64)
    for a, b in zip(expect(case, *arrays), compute_torch(case, *arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def assert_exact(ours, exact, bound):
    """Fail unless all are equal, or within the bound where there is one."""
    for a, e in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=bound * np.abs(e).max(initial=0))


@each_case_and_setting
def test_sums_of_small_integers_are_exact(case, setting):
    arrays = make_arrays(case, np.float32, integers=True)
    with conv_algorithm(setting):
        ours = compute(case, *arrays)
    assert_exact(ours, expect(case, *arrays), bound_of(case, setting))


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 5, 6, 4), 6, (3, 3), padding=1),
        Case((2, 6, 5, 4), 6, (3, 2), (2, 1), ((0, 1), (2, 1)), (1, 2), 2),
    ],
)
def test_gradients(case):
    x, weight, bias, _ = make_arrays(case, np.float64)
    check_gradients(lambda *t: ops.conv2d(*t, **case.options), x, weight, bias)
    check_gradients(lambda *t: ops.conv2d(*t, **case.options), x, weight)


small = st.integers(1, 3)


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pads = st.integers(0, 3)
    case = Case(
        x=(
            draw(small),
            draw(st.integers(1, 12)),
            draw(st.integers(1, 12)),
            groups * draw(st.sampled_from([1, 2, 3, 5, 8, 17])),
        ),
        filters=groups * draw(st.sampled_from([1, 2, 3, 7, 16, 33])),
        kernel=(draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        stride=(draw(small), draw(small)),
        padding=((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        dilation=(draw(small), draw(small)),
        groups=groups,
    )
    top, bottom, left, right = padding2d(case.padding)
    for size, kernel, dilation in zip(
        (case.x[1] + top + bottom, case.x[2] + left + right),
        case.kernel,
        case.dilation,
        strict=True,
    ):
        assume(size >= dilation * (kernel - 1) + 1)
    return case


@st.composite
def winograd_cases(draw):
    pads = st.integers(0, 2)
    case = Case(
        x=(
            draw(small),
            draw(st.integers(1, 13)),
            draw(st.integers(1, 13)),
            draw(st.sampled_from([16, 17, 40])),
        ),
        filters=draw(st.sampled_from([16, 19, 33])),
        kernel=(3, 3),
        padding=((draw(pads), draw(pads)), (draw(pads), draw(pads))),
    )
    assume(case.x[1] + sum(case.padding[0]) >= 3 and case.x[2] + sum(case.padding[1]) >= 3)
    return case


@given(cases(), st.sampled_from([np.float32, np.float64]), st.sampled_from(kernels.ALGORITHMS))
def test_any_shape(case, dtype, setting):
    arrays = make_arrays(case, dtype, integers=True)
    with conv_algorithm(setting):
        ours = compute(case, *arrays)
    assert {a.dtype for a in ours} == {np.dtype(dtype)}
    assert_exact(ours, expect(case, *arrays), bound_of(case, setting, dtype))


@given(winograd_cases(), st.sampled_from(["f2", "f4"]))
def test_any_shape_that_winograd_can_do(case, setting):
    if host_lanes():
        assert algorithm(case, setting) == f"winograd_{setting}"
    arrays = make_arrays(case, np.float32, integers=True)
    with conv_algorithm(setting):
        ours = compute(case, *arrays)
    assert_exact(ours, expect(case, *arrays), bound_of(case, setting))


def test_an_empty_batch():
    case = Case((0, 6, 5, 3), 4, (3, 3), padding=1)
    y, dx, dw, db = compute(case, *make_arrays(case, np.float32))
    assert (y.shape, dx.shape) == ((0, 6, 5, 4), (0, 6, 5, 3))
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize(
    ("dtype", "setting", "channels", "filters"),
    [(np.float64, "auto", 6, 5)] + [(np.float32, name, 18, 17) for name in kernels.ALGORITHMS],
)
def test_memory_order_of_the_inputs_does_not_matter(dtype, setting, channels, filters):
    case = Case((2, 9, 8, channels), filters, (3, 3), padding=1)
    arrays = make_arrays(case, dtype)
    turned = [
        np.asfortranarray(arrays[0]),
        np.ascontiguousarray(arrays[1].transpose(3, 0, 2, 1)).transpose(1, 3, 2, 0),
        np.repeat(arrays[2], 2)[::2],
        np.repeat(arrays[3], 2, axis=2)[:, :, ::2],
    ]
    with conv_algorithm(setting):
        results = compute(case, *arrays), compute(case, *turned)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("setting", kernels.ALGORITHMS)
def test_inputs_are_not_written(setting):
    case = CASES["3x3"]
    arrays = make_arrays(case, np.float32)
    copies = [a.copy() for a in arrays]
    with conv_algorithm(setting):
        compute(case, *arrays)
    for a, b in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["1x1", "3x3", "stem", "groups"])
def test_the_number_of_threads_changes_no_bit(name):
    case = CASES[name]
    case = Case((5, *case.x[1:]), *list(vars(case).values())[1:])
    arrays = make_arrays(case, np.float32)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in sorted({1, before}):
            numba.set_num_threads(threads)
            results.append(compute(case, *arrays))
    finally:
        numba.set_num_threads(before)
    for a, b in zip(results[0], results[-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_nan_and_infinity_pass_through():
    case = Case((1, 5, 5, 3), 4, (3, 3), padding=1)
    x, weight, bias, dy = make_arrays(case, np.float32)
    x[0, 2, 2, 1] = np.nan
    y = compute(case, x, weight, bias, dy)[0]
    seen = np.zeros((5, 5), bool)
    seen[1:4, 1:4] = True
    np.testing.assert_array_equal(np.isnan(y[0, ..., 0]), seen)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "message"),
    [
        ((5, 5, 3), (4, 3, 3, 3), None, {}, r"pictures of shape .* got \(5, 5, 3\)"),
        ((1, 5, 5, 3), (4, 3, 3), None, {}, r"weight of shape .* got \(4, 3, 3\)"),
        ((1, 5, 5, 3), (4, 3, 3, 2), None, {}, "have 3 channels"),
        ((1, 5, 5, 4), (4, 3, 3, 4), None, {"groups": 2}, "filters need 2"),
        ((1, 5, 5, 3), (4, 3, 3, 1), None, {"groups": 2}, "groups=2 must divide"),
        ((1, 5, 5, 0), (4, 3, 3, 0), None, {}, "needs channels and filters"),
        ((1, 5, 5, 3), (0, 3, 3, 3), None, {}, "needs channels and filters"),
        ((1, 5, 5, 3), (4, 3, 3, 3), None, {"groups": 0}, "groups=0"),
        ((1, 5, 5, 3), (4, 3, 3, 3), (3,), {}, r"bias must have shape \(4,\)"),
        ((1, 2, 5, 3), (4, 3, 3, 3), None, {}, "3 does not fit into 2 pixels"),
        ((1, 5, 5, 3), (4, 3, 3, 3), None, {"stride": 0}, "stride must be"),
        ((1, 5, 5, 3), (4, 3, 3, 3), None, {"padding": -1}, "padding must be"),
        ((1, 5, 5, 3), (4, 3, 3, 3), None, {"dilation": (1, 0)}, "dilation must be"),
    ],
)
def test_errors_say_what_does_not_fit(x, weight, bias, options, message):
    x, weight = Tensor(np.zeros(x)), Tensor(np.zeros(weight))
    with pytest.raises(ValueError, match=message):
        ops.conv2d(x, weight, None if bias is None else Tensor(np.zeros(bias)), **options)
