"""The losses on CUDA, on the checker and on a GPU, beside the reference in float64."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import loss as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened
from tests.reference import losses as reference

cuda = Launchers(launchers)
device = each_device()

TYPES = ("float", "bf16", "double")


def real(x, ctype):
    return np.asarray(x, np.float64 if ctype == "double" else np.float32)


def close(found, expected, ctype, terms=1.0):
    """Compare: one rounding of the result, and few of terms of this size in `real`.

    In double the reference, which adds a thousand terms one by one, is no better than what it checks.
    """
    rtol, atol = 1.01 * ROUNDING[ctype], 8 * ROUNDING["float"] * terms
    if ctype == "double":
        rtol, atol = 1e-12, 1e-14 * terms
    np.testing.assert_allclose(widened(found), expected, rtol=rtol, atol=atol)


def check_loss(loss, expected, ctype):
    assert loss.shape == ()
    assert loss.dtype == real(0, ctype).dtype
    # One rounding of a sum in double; in double, up to 1000 terms of the sum and of its reference.
    np.testing.assert_allclose(loss, expected, rtol=1e-13 if ctype == "double" else 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 10), (3, 67), (2, 1000)])
@pytest.mark.parametrize("ctype", TYPES)
def test_softmax_cross_entropy(ctype, shape, weighted, smoothing):
    rng = np.random.default_rng(0)
    logits = of_type(4 * rng.standard_normal(shape), ctype)
    labels = rng.integers(0, shape[1], shape[0])
    weights = real(rng.uniform(0.2, 3, shape[1]), ctype) if weighted else None
    loss, saved = cuda.softmax_cross_entropy_forward(logits, labels, weights, smoothing)
    dlogits = cuda.softmax_cross_entropy_dx(real(2.0, ctype), saved, labels, weights, smoothing)
    expected, gradient = reference.softmax_cross_entropy(
        widened(logits), labels, weights, smoothing
    )
    if shape[1] == 1:
        assert abs(loss) < 1e-6
    else:
        check_loss(loss, expected, ctype)
    assert dlogits.dtype == logits.dtype
    close(dlogits, 2 * gradient, ctype, terms=4 / shape[0])


def test_more_pictures_than_threads():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((150, 2)).astype("f"), rng.integers(0, 2, 150)
    weights = np.array([0.5, 3], np.float32)
    loss, saved = cuda.softmax_cross_entropy_forward(logits, labels, weights, 0.0)
    expected, gradient = reference.softmax_cross_entropy(logits, labels, weights, 0.0)
    check_loss(loss, expected, "float")
    close(saved, gradient, "float", terms=0.01)


def test_softmax_of_huge_and_infinite_logits():
    logits = np.array([[1e30, 0, -1e30], [0, -np.inf, 0]], np.float32)
    loss, saved = cuda.softmax_cross_entropy_forward(logits, np.array([0, 2]), None, 0.0)
    np.testing.assert_allclose(loss, np.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(saved, [[0, 0, 0], [0.25, 0, -0.25]], atol=1e-7)
    loss, _ = cuda.softmax_cross_entropy_forward(logits, np.array([1, 1]), None, 0.0)
    assert loss == np.inf
    logits[1, 1] = np.nan
    loss, saved = cuda.softmax_cross_entropy_forward(logits, np.array([0, 2]), None, 0.0)
    assert np.isnan(loss)
    assert np.isnan(saved[1]).all()


def test_gradient_of_a_sure_bfloat16_picture_is_not_rounded_away():
    """p is 1 - 3e-4, which bfloat16 cannot tell from 1; the gradient p - 1 has its digits all the same."""
    logits = of_type(np.array([[8.0, 0.0]]), "bf16")
    _, saved = cuda.softmax_cross_entropy_forward(logits, np.array([0]), None, 0.0)
    p = 1 / (1 + np.exp(-8.0))
    np.testing.assert_allclose(widened(saved)[0], [p - 1, 1 - p], rtol=1.01 * ROUNDING["bf16"])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1,), (4, 3), (70, 5), (2, 3, 67)])
@pytest.mark.parametrize("ctype", TYPES)
def test_sigmoid_binary_cross_entropy(ctype, shape, weighted):
    rng = np.random.default_rng(0)
    logits = of_type(5 * rng.standard_normal(shape), ctype)
    targets = real(rng.uniform(0, 1, shape), ctype)
    weight = real(rng.uniform(0.2, 3, shape[-1:]), ctype) if weighted else None
    loss, saved = cuda.sigmoid_binary_cross_entropy_forward(logits, targets, weight)
    dlogits = cuda.sigmoid_binary_cross_entropy_dx(real(4.0, ctype), saved, targets, weight)
    expected, gradient = reference.sigmoid_binary_cross_entropy(widened(logits), targets, weight)
    check_loss(loss, expected, ctype)
    close(dlogits, 4 * gradient, ctype, terms=8 / logits.size)


def test_sigmoid_of_huge_logits():
    logits, targets = np.array([1e30, -1e30, 200], "f"), np.array([1, 0, 0], "f")
    loss, saved = cuda.sigmoid_binary_cross_entropy_forward(logits, targets, None)
    np.testing.assert_allclose(loss, 200 / 3, rtol=1e-6)
    np.testing.assert_allclose(saved, [0, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 5, 67), (40000,)])
@pytest.mark.parametrize("ctype", TYPES)
def test_mean_squared_error(ctype, shape):
    rng = np.random.default_rng(0)
    prediction, target = of_type(rng.standard_normal(shape), ctype), real(rng.random(shape), ctype)
    loss, saved = cuda.mean_squared_error_forward(prediction, target)
    dprediction = cuda.mean_squared_error_dx(real(0.5, ctype), saved)
    expected, gradient = reference.mean_squared_error(widened(prediction), target)
    check_loss(loss, expected, ctype)
    # bfloat16 is rounded twice: the difference, and the gradient.
    np.testing.assert_allclose(widened(dprediction), gradient / 2, rtol=4 * ROUNDING[ctype])
