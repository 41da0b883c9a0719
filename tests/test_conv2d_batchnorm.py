"""A convolution with its normalisation: equal to the two one after the other, in every state."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl import nn, no_grad, ops
from minitl.kernels import cpu
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients

NAMES = ("x", "weight", "bn_weight", "bn_bias", "residual")
STATES = {
    "training": (True, NAMES),
    "evaluation": (False, NAMES),
    "frozen": (False, ("x", "weight", "residual")),
}


def inputs(shape=(2, 5, 4, 3), filters=4, kernel=3, dtype=np.float32, seed=0, **geometry):
    random = np.random.default_rng(seed)
    groups = geometry.get("groups", 1)
    values = {
        "x": random.normal(size=shape) + 1,
        "weight": random.normal(size=(filters, kernel, kernel, shape[3] // groups)),
        "bn_weight": random.uniform(0.5, 2, size=filters),
        "bn_bias": random.normal(size=filters),
    }
    values = {name: value.astype(dtype) for name, value in values.items()}
    y = ops.conv2d(Tensor(values["x"]), Tensor(values["weight"]), **geometry)
    values["residual"] = random.normal(size=y.shape).astype(dtype)
    return values


def running(given):
    random = np.random.default_rng(9)
    c, dtype = len(given["bn_bias"]), given["x"].dtype
    return random.normal(size=c).astype(dtype), random.uniform(0.5, 2, size=c).astype(dtype)


def composed(x, weight, bn_weight, bn_bias, mean, var, *, residual, relu, training, **geometry):
    z = ops.conv2d(x, weight, **geometry)
    arguments = z, bn_weight, bn_bias, mean, var
    if residual is not None:
        return ops.batchnorm_add_relu(z, residual, *arguments[1:], training=training)
    return (ops.batchnorm_relu if relu else ops.batchnorm)(*arguments, training=training)


def run(function, given, needs, training, residual, relu, geometry):
    """Return what comes out, the gradients by name, and the running statistics afterwards."""
    tensors = {name: Tensor(given[name], name in needs) for name in NAMES}
    if not residual:
        tensors["residual"] = None
    mean, var = running(given)
    options = {"residual": tensors["residual"], "relu": relu, "training": training, **geometry}
    y = function(*list(tensors.values())[:4], mean, var, **options)
    if y.requires_grad:
        y.backward(given["residual"])
    return y.data, {n: t.grad for n, t in tensors.items() if t is not None}, mean, var


cases = st.tuples(
    st.sampled_from([1, 3]),  # pictures
    st.sampled_from([4, 7]),  # height
    st.sampled_from([(3, 5), (16, 16), (8, 12), (1, 33)]),  # channels, filters
    st.sampled_from([1, 3]),  # kernel
    st.sampled_from([1, 2]),  # stride
)
FORMS = [(False, False), (False, True), (True, True)]  # residual, ReLU


@given(
    cases, st.sampled_from(list(STATES)), st.sampled_from(FORMS), st.sets(st.sampled_from(NAMES))
)
def test_equals_the_convolution_and_the_normalisation(case, state, form, wanted):
    n, height, (channels, filters), kernel, stride = case
    groups = 4 if channels == 8 else 1
    geometry = {"stride": stride, "padding": kernel // 2, "groups": groups}
    training, needs = STATES[state]
    # With fixed statistics a float32 convolution takes the scale into its filters, which rounds differently.
    dtype = np.float32 if training else np.float64
    given = inputs((n, height, 6, channels), filters, kernel, dtype, **geometry)
    arguments = given, wanted & set(needs), training, *form, geometry
    ours = run(ops.conv2d_batchnorm, *arguments)
    theirs = run(composed, *arguments)
    np.testing.assert_array_equal(ours[0], theirs[0], "y")
    assert ours[1].keys() == theirs[1].keys()
    bound = 0 if training else 1e-12  # likewise the gradient's scale
    for name, gradient in ours[1].items():
        if gradient is None or theirs[1][name] is None:
            assert gradient is theirs[1][name], name
        else:
            np.testing.assert_allclose(gradient, theirs[1][name], bound, bound, err_msg=name)
    np.testing.assert_array_equal(ours[2], theirs[2], "running_mean")
    np.testing.assert_array_equal(ours[3], theirs[3], "running_var")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_match_differences(training, residual):
    geometry = {"stride": 2, "padding": 1}
    given = inputs(dtype=np.float64, **geometry)
    names = NAMES if residual else NAMES[:4]

    def function(x, weight, bn_weight, bn_bias, residual=None):
        return ops.conv2d_batchnorm(
            x,
            weight,
            bn_weight,
            bn_bias,
            *running(given),
            residual=residual,
            relu=True,
            training=training,
            **geometry,
        )

    check_gradients(function, *(given[name] for name in names))


def test_gradients_match_differences_while_frozen():
    given = inputs(dtype=np.float64)
    bn_weight, bn_bias = Tensor(given["bn_weight"]), Tensor(given["bn_bias"])

    def function(x, weight, residual):
        return ops.conv2d_batchnorm(
            x, weight, bn_weight, bn_bias, *running(given), residual=residual, relu=True,
            training=False,
        )  # fmt: skip

    check_gradients(function, given["x"], given["weight"], given["residual"])


@pytest.mark.parametrize(
    ("state", "needs", "kept"),
    [
        ("training", NAMES, {"x", "weight", "z", "y", "mean"}),
        ("training", ("weight",), {"x", "z", "y", "mean"}),
        ("training", ("residual",), {"y"}),
        ("evaluation", NAMES, {"x", "weight", "z", "y", "mean"}),
        ("frozen", ("x", "weight", "residual"), {"x", "weight", "y"}),
        ("frozen", ("x",), {"weight", "y"}),
        ("frozen", ("weight",), {"x", "y"}),
    ],
)
def test_keeps_what_its_gradients_need(state, needs, kept):
    given = inputs()
    tensors = {name: Tensor(given[name], name in needs) for name in NAMES}
    residual = tensors.pop("residual")
    options = {"residual": residual, "relu": True, "training": STATES[state][0]}
    op = ops.conv2d_batchnorm(*tensors.values(), *running(given), **options)._op
    large = {"x", "weight", "z", "y", "mean"}
    assert {n for n in large if getattr(op, n, None) is not None} == kept


def test_fixed_statistics_use_the_single_pass(monkeypatch):
    calls = []

    def record(name):
        kernel = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, **o: calls.append(name) or kernel(*a, **o))

    for name in ("conv2d_scale_shift_forward", "conv2d_statistics_forward", "batchnorm_apply"):
        record(name)
    given = inputs()
    for (training, needs), grad in itertools.product(STATES.values(), (True, False)):
        calls.append("|")
        with contextlib.nullcontext() if grad else no_grad():
            run(ops.conv2d_batchnorm, given, needs, training, True, True, {})
    two, one = ["conv2d_statistics_forward", "batchnorm_apply"], ["conv2d_scale_shift_forward"]
    expected = ["|", *two, "|", *two, "|", "batchnorm_apply", "|", *one, "|", *one, "|", *one]
    assert calls == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "freeze"])
def test_a_layer_after_a_convolution(mode, bias):
    results = []
    for fused in (False, True):
        rng = np.random.default_rng(3)
        conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=bias, rng=rng)
        bn = nn.BatchNorm2d(5)
        bn.running_mean += rng.normal(size=5)
        if bias:
            conv.bias.data += 1
        getattr(bn, mode)()
        x = Tensor(rng.normal(size=(2, 7, 7, 3)).astype(np.float32), requires_grad=True)
        residual = Tensor(rng.normal(size=(2, 4, 4, 5)).astype(np.float32))
        y = bn.after(conv, x, residual=residual) if fused else bn(conv(x), residual=residual)
        y.backward(residual.data)
        results.append([y.data, x.grad, conv.weight.grad, bn.running_mean])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_says_what_does_not_fit():
    given = inputs()
    tensors = [Tensor(given[name]) for name in NAMES[:4]]
    mean, var = running(given)

    def apply(*arguments, **options):
        return ops.conv2d_batchnorm(*arguments, **{"training": True} | options)

    with pytest.raises(ValueError, match=r"running_mean must have shape \(4,\)"):
        apply(*tensors, mean[:3], var)
    with pytest.raises(ValueError, match=r"residual must have the shape of x, \(2, 3, 2, 4\)"):
        apply(*tensors, mean, var, residual=Tensor(given["residual"][:1]))
    with pytest.raises(ValueError, match="filters need 3"):
        apply(tensors[0], Tensor(given["weight"][..., :2]), *tensors[2:], mean, var)
    one = Tensor(given["x"][:1, :3, :3])
    with pytest.raises(ValueError, match="more than one value per channel"):
        apply(one, *tensors[1:], mean, var)
