"""The stem's fused operation against float64, against PyTorch, and against its three parts."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minitl import nn, ops
from minitl.kernels.cpu import batchnorm_relu_maxpool_forward
from minitl.shapes import Padding2d
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import batchnorm as batchnorm_reference
from tests.reference import batchnorm_relu_maxpool as reference
from tests.test_batchnorm import EPS, assert_as_accurate, from_torch, inputs, to_torch

STEM = (3, 2, 1)
NAMES = ("x", "weight", "bias")


def pooled_shape(shape, window):
    kernel, stride, padding = window
    return (shape[0], *((s + 2 * padding - kernel) // stride + 1 for s in shape[1:3]), shape[3])


def values(shape, window, dtype=np.float32, seed=0):
    """Return inputs as for batch normalisation, and a dy of the pooled shape."""
    dy = np.random.default_rng(seed + 1).normal(size=pooled_shape(shape, window))
    return inputs(shape, dtype, seed) | {"dy": dy.astype(dtype)}


def run(compute, given, window, training, needs=NAMES):
    """Return the result, the gradients and the running statistics by name."""
    tensors = {name: Tensor(given[name], name in needs) for name in NAMES}
    running = {name: given[name].copy() for name in ("running_mean", "running_var")}
    y = compute(*tensors.values(), *running.values(), *window, training=training)
    if needs:
        y.backward(given["dy"])
    return {"y": y.data, **{name: t.grad for name, t in tensors.items()}, **running}


def composed(x, weight, bias, running_mean, running_var, kernel, stride, padding, *, training):
    y = ops.batchnorm(x, weight, bias, running_mean, running_var, training=training)
    return ops.maxpool2d(ops.relu(y), kernel, stride, padding)


def run_torch(given, window, training):
    x = to_torch(given["x"], True)
    weight, bias, mean, var = (
        torch.tensor(given[n], requires_grad=n in NAMES)
        for n in ("weight", "bias", "running_mean", "running_var")
    )
    y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS).relu()
    y = torch.nn.functional.max_pool2d(y, *window)
    y.backward(to_torch(given["dy"]))
    return {
        "y": from_torch(y),
        "x": from_torch(x.grad),
        "weight": weight.grad.numpy(),
        "bias": bias.grad.numpy(),
        "running_mean": mean.numpy(),
        "running_var": var.numpy(),
    }


shapes = st.tuples(
    st.sampled_from([1, 2, 5]),
    st.integers(1, 12),
    st.sampled_from([1, 2, 7, 9]),
    st.sampled_from([1, 3, 16, 17, 64]),
)
windows = st.sampled_from([STEM, (2, 2, 0), (3, 1, 1), (2, 3, 0), (4, 3, 3), (1, 1, 0), (5, 1, 2)])


@given(shapes, windows, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_agrees_with_the_reference_and_with_torch(shape, window, training, dtype):
    assume(min(pooled_shape(shape, window)) > 0)
    assume(window[2] * 2 <= window[0])  # PyTorch's limit
    pixels = shape[0] * shape[1] * shape[2]
    assume(pixels > 1)
    given = values(shape, window, dtype)
    theirs = run_torch(given, window, training)
    ours = run(ops.batchnorm_relu_maxpool, given, window, training)

    kernel, stride, padding = window
    around = (kernel, kernel), (stride, stride), (padding,) * 4
    mean, var = given["running_mean"], given["running_var"]
    if training:
        mean, var = batchnorm_reference.statistics(given["x"])
    arguments = given["x"], given["weight"], given["bias"], mean, var, EPS, around
    exact = {"y": reference.forward(*arguments)}
    # Two values of a window that differ by a rounding only may change places: then compare no gradient.
    order = np.sort(exact["y"], axis=None)
    distinct = np.diff(order[order > 0]).min(initial=1) > 1e-6 * max(order[-1], 1)
    exact |= dict(zip(NAMES, reference.gradients(given["dy"], *arguments, training), strict=True))
    std = np.sqrt(var + EPS)
    condition = 1 if dtype == np.float32 else 4 * (1 + (np.abs(mean) / std).max())
    dz = np.abs(given["dy"]).max() * kernel**2
    slope = max(1, np.abs(given["weight"] / std).max()) * dz
    terms = {"y": 1, "x": slope, "weight": np.sqrt(pixels) * dz, "bias": np.sqrt(pixels) * dz}
    for name in terms if distinct else ("y",):
        assert_as_accurate(ours[name], theirs[name], exact[name], name, terms[name] * condition)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("window", [STEM, (2, 2, 0), (3, 1, 2)])
@pytest.mark.parametrize("shape", [(2, 5, 7, 17), (8, 16, 17, 64), (1, 9, 9, 1)])
def test_equals_the_composition(shape, window, training):
    given = values(shape, window)
    fused = run(ops.batchnorm_relu_maxpool, given, window, training)
    parts = run(composed, given, window, training)
    for name in ("y", "running_mean", "running_var"):
        np.testing.assert_array_equal(fused[name], parts[name], name)
    for name in NAMES:
        # Sums are taken in another order.
        scale = np.abs(parts[name]).max()
        np.testing.assert_allclose(
            fused[name], parts[name], rtol=0, atol=1e-5 * scale, err_msg=name
        )
    if not training:
        np.testing.assert_array_equal(fused["x"], parts["x"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("window", [STEM, (2, 1, 0)])
def test_gradients_match_differences(window, training):
    given = values((2, 5, 4, 3), window, np.float64)

    def function(x, weight, bias):
        running = given["running_mean"].copy(), given["running_var"].copy()
        return ops.batchnorm_relu_maxpool(x, weight, bias, *running, *window, training=training)

    check_gradients(function, *(given[name] for name in NAMES))


def test_what_each_state_keeps_for_backward():
    def kept(training, needs):
        given = values((2, 6, 6, 3), STEM)
        tensors = (Tensor(given[name], name in needs) for name in NAMES)
        running = given["running_mean"], given["running_var"]
        op = ops.batchnorm_relu_maxpool(*tensors, *running, *STEM, training=training)._op
        names = {name for name in type(op).saves if getattr(op, name, None) is not None}
        assert op.index.dtype == np.uint8
        return names - {"weight", "inv_std", "training", "window", "x_shape"}

    assert kept(True, NAMES) == {"x", "y", "chosen", "mean", "index"}
    assert kept(True, ("x",)) == {"x", "y", "chosen", "mean", "index"}
    assert kept(True, ("weight", "bias")) == {
        "y",
        "chosen",
        "mean",
        "index",
    }  # the first layer trains
    assert kept(False, NAMES) == {"y", "chosen", "mean", "index"}
    assert kept(False, ("x",)) == {"index"}  # frozen


def test_the_first_of_equals_counts_and_zero_passes_no_gradient():
    x = np.array([[1, 2, 2], [-1, 0, 2], [-3, -1, 0]], np.float32).reshape(1, 3, 3, 1)
    scale, shift = np.ones(1), np.zeros(1)
    window = (2, 2), (1, 1), Padding2d(0, 0, 0, 0)
    y, index, chosen = batchnorm_relu_maxpool_forward(x, 2 * scale, shift, *window)
    np.testing.assert_array_equal(chosen.ravel(), [2, 2, 0, 2])
    y /= 2
    np.testing.assert_array_equal(y.ravel(), [2, 2, 0, 2])
    np.testing.assert_array_equal(index.ravel(), [1, 0, 255, 1])

    t = Tensor(x, True)
    one, zero = Tensor(np.ones(1, np.float32)), Tensor(np.zeros(1, np.float32))
    fixed = np.zeros(1, np.float32), np.ones(1, np.float32)
    y = ops.batchnorm_relu_maxpool(t, one, zero, *fixed, 2, 1, training=False, eps=0)
    y.backward(np.array([1, 10, 100, 1000], np.float32).reshape(y.shape))
    np.testing.assert_array_equal(t.grad.ravel(), [0, 11, 0, 0, 0, 1000, 0, 0, 0])


def test_a_nan_wins():
    x = np.array([1, np.nan, 3, 2], np.float32).reshape(1, 2, 2, 1)
    window = (2, 2), (2, 2), Padding2d(0, 0, 0, 0)
    y, index, _ = batchnorm_relu_maxpool_forward(x, np.ones(1), np.zeros(1), *window)
    assert np.isnan(y).all()
    assert index.item() == 1


def test_windows_of_more_than_255_pixels():
    given = values((1, 20, 18, 2), (17, 1, 2))
    fused = run(ops.batchnorm_relu_maxpool, given, (17, 1, 2), True)
    parts = run(composed, given, (17, 1, 2), True)
    np.testing.assert_array_equal(fused["y"], parts["y"])
    np.testing.assert_allclose(fused["x"], parts["x"], atol=1e-4)


def test_one_and_two_threads_give_the_same_bits():
    given = values((6, 40, 41, 48), STEM)
    threads = numba.get_num_threads()
    results = []
    try:
        for count in (1, min(2, threads)):
            numba.set_num_threads(count)
            results.append(run(ops.batchnorm_relu_maxpool, given, STEM, True))
    finally:
        numba.set_num_threads(threads)
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], name)


def test_the_layer_in_its_three_states():
    given = values((2, 8, 8, 3), STEM)
    layer = nn.BatchNorm2d(3)
    for name in ("weight", "bias"):
        getattr(layer, name).data = given[name].copy()

    def parts():
        twin = nn.BatchNorm2d(3)
        twin.load_state_dict(layer.state_dict())
        twin.training, twin.frozen = layer.training, layer.frozen
        return ops.maxpool2d(twin(Tensor(given["x"]), relu=True), *STEM).data, twin.state_dict()

    for prepare in (layer.train, layer.eval, lambda: (layer.train(), layer.freeze())):
        prepare()
        expected, state = parts()
        y = layer(Tensor(given["x"]), relu=True, maxpool=STEM)
        np.testing.assert_array_equal(y.data, expected)
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, state[name], name)
    with pytest.raises(ValueError, match="not both"):
        layer(Tensor(given["x"]), residual=Tensor(given["x"]), maxpool=STEM)


def test_errors_are_those_of_the_parts():
    given = values((2, 4, 4, 3), STEM)

    def call(x=given["x"], weight=given["weight"], window=STEM, training=True):
        tensors = Tensor(x), Tensor(weight), Tensor(given["bias"])
        running = given["running_mean"], given["running_var"]
        ops.batchnorm_relu_maxpool(*tensors, *running, *window, training=training)

    with pytest.raises(ValueError, match=r"pictures of shape \(N, H, W, C\)"):
        call(x=given["x"][0])
    with pytest.raises(ValueError, match="padding must be smaller than the kernel"):
        call(window=(2, 2, 2))
    with pytest.raises(ValueError, match=r"weight must have shape \(3,\)"):
        call(weight=given["weight"][:2])
    with pytest.raises(ValueError, match="more than one value per channel"):
        call(x=given["x"][:1, :1, :1])
