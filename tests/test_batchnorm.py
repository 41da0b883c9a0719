"""Batch normalisation against float64, against PyTorch, and against itself in parts."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import ops
from minitl.kernels import cpu
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import batchnorm as reference

FORMS = ("batchnorm", "batchnorm_relu", "batchnorm_add_relu")
EPS = 1e-5


def to_torch(a, requires_grad=False):
    a = np.ascontiguousarray(np.moveaxis(a, -1, 1))
    return torch.tensor(a, requires_grad=requires_grad)


def from_torch(t):
    return np.moveaxis(t.detach().numpy(), 1, -1)


def inputs(shape, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    c = shape[-1]
    return {
        "x": (random.normal(size=shape) * 2 + 1).astype(dtype),
        "residual": random.normal(size=shape).astype(dtype),
        "weight": random.normal(size=c).astype(dtype),
        "bias": random.normal(size=c).astype(dtype),
        "running_mean": random.normal(size=c).astype(dtype),
        "running_var": random.uniform(0.5, 2, size=c).astype(dtype),
        "dy": random.normal(size=shape).astype(dtype),
    }


def run(form, given, training, needs=("x", "residual", "weight", "bias"), backward=True):
    """Return the result and the gradients by name; the running statistics in `given` are updated."""
    names = ["x", "residual", "weight", "bias"]
    if form != "batchnorm_add_relu":
        names.remove("residual")
    tensors = {name: Tensor(given[name], name in needs) for name in names}
    y = getattr(ops, form)(
        *tensors.values(), given["running_mean"], given["running_var"], training=training
    )
    if backward:
        y.backward(given["dy"])
    return y, {name: t.grad for name, t in tensors.items()}


def run_torch(form, given, training):
    x, residual = to_torch(given["x"], True), to_torch(given["residual"], True)
    weight, bias = (torch.tensor(given[n], requires_grad=True) for n in ("weight", "bias"))
    mean, var = (torch.tensor(given[n]) for n in ("running_mean", "running_var"))
    y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS)
    if form == "batchnorm_add_relu":
        y = y + residual
    if form != "batchnorm":
        y = y.relu()
    y.backward(to_torch(given["dy"]))
    gradients = {"x": from_torch(x.grad), "weight": weight.grad.numpy(), "bias": bias.grad.numpy()}
    if form == "batchnorm_add_relu":
        gradients["residual"] = from_torch(residual.grad)
    return from_torch(y), gradients, mean.numpy(), var.numpy()


def assert_as_accurate(ours, theirs, exact, what, terms=1.0):
    """Our error is at most twice PyTorch's in the same precision, plus a few roundings of the terms."""
    floor = 8 * np.finfo(ours.dtype).eps * max(terms, np.abs(exact).max())
    error, allowed = np.abs(ours - exact).max(), 2 * np.abs(theirs - exact).max() + floor
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"
    assert ours.dtype == theirs.dtype


pictures = st.tuples(
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 2, 7, 12]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([1, 3, 16, 17, 33]),
)
shapes = st.one_of(pictures, st.tuples(st.integers(2, 9), st.sampled_from([1, 3, 17, 33])))


@given(shapes, st.sampled_from(FORMS), st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_agrees_with_the_reference_and_with_torch(shape, form, training, dtype):
    given = inputs(shape, dtype)
    pixels = given["x"].size // shape[-1]
    if training and pixels == 1:
        return
    theirs, their_gradients, their_mean, their_var = run_torch(form, given, training)

    mean, var = given["running_mean"], given["running_var"]
    if training:
        mean, var = reference.statistics(given["x"])
        exact_mean = 0.9 * given["running_mean"] + 0.1 * mean
        exact_var = 0.9 * given["running_var"] + 0.1 * var * pixels / (pixels - 1)
    else:
        exact_mean, exact_var = mean.copy(), var.copy()
    relu, residual = form != "batchnorm", given["residual"] if "add" in form else None
    exact = reference.forward(
        given["x"], given["weight"], given["bias"], mean, var, EPS, residual, relu
    )
    exact_gradients = dict(
        zip(
            ("x", "weight", "bias", "residual"),
            reference.gradients(
                given["dy"], exact, given["x"], given["weight"], mean, var, EPS, relu, training
            ),
            strict=True,
        )
    )

    # The kernels' sums and per-channel factors are float64. So in float32 a mean of many standard
    # deviations costs no digits; in float64 it does, as there is nothing wider.
    std = np.sqrt(var + EPS)
    condition = 1 if dtype == np.float32 else 4 * (1 + (np.abs(mean) / std).max())
    slope = np.abs(given["weight"] / std).max() * np.abs(given["dy"]).max()
    y, gradients = run(form, given, training)
    assert_as_accurate(y.data, theirs, exact, "y", condition)
    for name, gradient in gradients.items():
        their, value = their_gradients[name], exact_gradients[name]
        terms = max(1, slope) if name == "x" else np.sqrt(pixels)
        assert_as_accurate(gradient, their, value, name, terms * condition)
    assert_as_accurate(given["running_mean"], their_mean, exact_mean, "running_mean")
    assert_as_accurate(given["running_var"], their_var, exact_var, "running_var")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (4, 5)])
def test_gradients_match_differences(form, training, shape):
    given = inputs(shape, np.float64)
    names = ["x", "residual", "weight", "bias"] if "add" in form else ["x", "weight", "bias"]

    def function(*tensors):
        statistics = given["running_mean"].copy(), given["running_var"].copy()
        return getattr(ops, form)(*tensors, *statistics, training=training)

    check_gradients(function, *(given[name] for name in names))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 7, 17), (8, 16, 16, 64)])
def test_fused_forms_equal_the_composition(shape, training):
    given = inputs(shape)

    def composed(form):
        x, residual, weight, bias = (
            Tensor(given[n], True) for n in ("x", "residual", "weight", "bias")
        )
        statistics = given["running_mean"].copy(), given["running_var"].copy()
        y = ops.batchnorm(x, weight, bias, *statistics, training=training)
        if "add" in form:
            y = ops.add(y, residual)
        y = ops.relu(y)
        y.backward(given["dy"])
        gradients = {"x": x.grad, "weight": weight.grad, "bias": bias.grad}
        return y, gradients | ({"residual": residual.grad} if "add" in form else {})

    for form in FORMS[1:]:
        y, gradients = composed(form)
        statistics = {n: given[n].copy() for n in ("running_mean", "running_var")}
        fused, fused_gradients = run(form, given | statistics, training)
        np.testing.assert_array_equal(fused.data, y.data)
        for name in gradients:
            np.testing.assert_array_equal(fused_gradients[name], gradients[name], name)


def test_one_and_two_threads_give_the_same_bits():
    given = inputs((6, 28, 28, 48))
    threads = numba.get_num_threads()
    results = []
    try:
        for count in (1, min(2, threads)):
            numba.set_num_threads(count)
            statistics = {n: given[n].copy() for n in ("running_mean", "running_var")}
            y, gradients = run("batchnorm_add_relu", given | statistics, True)
            results.append([y.data, *gradients.values(), *statistics.values()])
    finally:
        numba.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("shape", [(4, 30, 30, 3), (16, 16, 16, 64), (700, 5)])
@pytest.mark.parametrize("offset", [0, 1e4, -1e4])
def test_statistics_keep_their_digits_far_from_zero(shape, offset):
    x = (np.random.default_rng(0).normal(size=shape) * 0.1 + offset).astype(np.float32)
    mean, var = cpu.batchnorm_statistics(x)
    exact_mean, exact_var = reference.statistics(x)
    np.testing.assert_allclose(mean, exact_mean, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(var, exact_var, rtol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_mean_of_many_standard_deviations_costs_no_digits(form):
    given = inputs((4, 16, 16, 8))
    given["x"] = (given["x"] * 0.1 + 1e4).astype(np.float32)
    mean, var = reference.statistics(given["x"])
    relu, residual = form != "batchnorm", given["residual"] if "add" in form else None
    arguments = given["weight"], mean, var, EPS, relu
    exact = reference.forward(
        given["x"], given["weight"], given["bias"], mean, var, EPS, residual, relu
    )
    y, gradients = run(form, given, True)
    np.testing.assert_allclose(y.data, exact, atol=2e-6)
    dx, dweight, _, _ = reference.gradients(given["dy"], y.data, given["x"], *arguments, True)
    np.testing.assert_allclose(gradients["x"], dx, atol=3e-6 * np.abs(dx).max())
    np.testing.assert_allclose(gradients["weight"], dweight, atol=1e-6 * np.abs(dweight).max())


def test_an_outlier_in_the_first_pixel_does_not_spoil_the_statistics():
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 8)).astype(np.float32)
    x[0, 0, 0] = 1e3
    mean, var = cpu.batchnorm_statistics(x)
    exact_mean, exact_var = reference.statistics(x)
    np.testing.assert_allclose(mean, exact_mean, atol=1e-6)
    np.testing.assert_allclose(var, exact_var, rtol=2e-5)


def test_a_constant_channel_has_no_variance():
    x = np.full((2, 9, 9, 3), 0.1, np.float32)
    mean, var = cpu.batchnorm_statistics(x)
    np.testing.assert_array_equal(var, 0)
    np.testing.assert_array_equal(mean, np.float32(0.1))


def test_training_moves_the_running_statistics_and_the_other_states_do_not():
    for training, needs in (
        (True, ("x", "weight", "bias")),
        (False, ("x", "weight")),
        (False, "x"),
    ):
        given = inputs((2, 4, 4, 3))
        before = given["running_mean"].copy(), given["running_var"].copy()
        run("batchnorm_relu", given, training, needs)
        moved = [
            (given[name] != old).all()
            for name, old in zip(("running_mean", "running_var"), before, strict=True)
        ]
        assert moved == [training, training]


def test_what_each_state_keeps_for_backward():
    def kept(form, training, needs):
        given = inputs((2, 4, 4, 3))
        y, _ = run(form, given, training, needs, backward=False)
        op = y._op
        names = {name for name in type(op).saves if getattr(op, name, None) is not None}
        if "y" in names:
            assert op.y is y.data  # no second copy
        return names - {"weight", "inv_std", "training"}

    every = ("x", "residual", "weight", "bias")
    assert kept("batchnorm", True, every) == {"x", "mean"}
    assert kept("batchnorm_relu", True, every) == {"x", "mean", "y"}
    assert kept("batchnorm_relu", False, every) == {"x", "mean", "y"}
    assert kept("batchnorm_relu", True, ("x",)) == {"x", "mean", "y"}
    assert kept("batchnorm_add_relu", False, ("x", "residual")) == {"y"}
    assert kept("batchnorm_add_relu", True, ("residual",)) == {"y"}
    assert kept("batchnorm", False, ("x",)) == set()


def test_relu_at_zero_has_gradient_zero_and_nan_stays_nan():
    statistics = np.zeros(1, np.float32), np.ones(1, np.float32)
    x = Tensor(np.array([[0.0], [1.0], [-1.0], [np.nan]], np.float32), True)
    weight, bias = Tensor(np.ones(1, np.float32)), Tensor(np.zeros(1, np.float32))
    y = ops.batchnorm_relu(x, weight, bias, *statistics, training=False, eps=0)
    np.testing.assert_array_equal(y.data.ravel(), [0, 1, 0, np.nan])
    y.backward(np.ones_like(y.data))
    np.testing.assert_array_equal(x.grad.ravel()[:3], [0, 1, 0])


def test_arrays_need_not_be_contiguous():
    given = inputs((2, 6, 5, 4))
    other = {n: np.asfortranarray(given[n]) for n in ("x", "residual", "dy")}
    statistics = {n: given[n].copy() for n in ("running_mean", "running_var")}
    y, gradients = run("batchnorm_add_relu", given, True)
    y2, gradients2 = run("batchnorm_add_relu", given | other | statistics, True)
    np.testing.assert_array_equal(y.data, y2.data)
    for name in gradients:
        np.testing.assert_array_equal(gradients[name], gradients2[name])


def test_errors_say_what_is_wrong():
    def call(x=(2, 3, 3, 4), weight=4, bias=4, mean=4, residual=None, training=True):
        def f(*shape):
            return Tensor(np.ones(shape, np.float32))

        statistics = np.zeros(mean, np.float32), np.ones(4, np.float32)
        if residual is None:
            ops.batchnorm(f(*x), f(weight), f(bias), *statistics, training=training)
        else:
            ops.batchnorm_add_relu(
                f(*x), f(*residual), f(weight), f(bias), *statistics, training=training
            )

    with pytest.raises(ValueError, match=r"\(N, H, W, C\) or \(N, C\); got \(2, 3, 4\)"):
        call(x=(2, 3, 4))
    with pytest.raises(ValueError, match=r"weight must have shape \(4,\); got \(5,\)"):
        call(weight=5)
    with pytest.raises(ValueError, match="running_mean must have shape"):
        call(mean=3)
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        call(residual=(2, 3, 1, 4))
    with pytest.raises(ValueError, match="more than one value per channel"):
        call(x=(1, 1, 1, 4))
    call(x=(1, 1, 1, 4), training=False)


@pytest.mark.parametrize("training", [True, False])
def test_a_weight_of_zero_gives_the_bias_and_no_gradient(training):
    given = inputs((2, 4, 4, 3)) | {"weight": np.zeros(3, np.float32)}
    y, gradients = run("batchnorm", given, training)
    np.testing.assert_array_equal(y.data, np.broadcast_to(given["bias"], y.shape))
    np.testing.assert_array_equal(gradients["x"], 0)
