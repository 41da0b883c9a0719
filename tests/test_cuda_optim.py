"""Steps of the optimizers on CUDA, on the checker and on a GPU."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import optim as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device

cuda = Launchers(launchers)
device = each_device()

TYPES = (np.float32, np.float64)
SIZES = (1, 3, 4, 67, 2050)


def arrays(size, dtype, count):
    """Return parameters, gradient and memories; the last in the middle of 16 bytes for odd sizes."""
    rng = np.random.default_rng(size)
    made = [rng.standard_normal(size).astype(dtype) for _ in range(count)]
    if size % 2:
        whole = np.empty(size + 1, dtype)
        whole[1:] = made[-1]
        made[-1] = whole[1:]
    return made


def close(found, expected, dtype):
    rounding = ROUNDING["float" if dtype == np.float32 else "double"]
    np.testing.assert_allclose(found, expected, rtol=8 * rounding, atol=8 * rounding)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_sgd(dtype, size, on_device):
    p, g = arrays(size, dtype, 2)
    expected = p.astype("d") - 0.25 * (g.astype("d") + 0.5 * p)
    lr = np.array([0.25], np.float32) if on_device else 0.25
    cuda.sgd_step(p, g, None, lr, 0.0, 0.5, False, False)
    close(p, expected, dtype)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_sgd_with_momentum(dtype, size, nesterov, first, on_device):
    p, g, v = arrays(size, dtype, 3)
    wide = g.astype("d") + 0.125 * p
    velocity = wide if first else 0.75 * v.astype("d") + wide
    expected = p - 0.25 * (wide + 0.75 * velocity if nesterov else velocity)
    lr = np.array([0.25], np.float32) if on_device else 0.25
    begins = np.array([first], np.int64) if on_device else first
    if first:
        v[:] = np.nan  # it has no value yet
    cuda.sgd_step(p, g, v, lr, 0.75, 0.125, nesterov, begins)
    close(v, velocity, dtype)
    close(p, expected, dtype)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_adam(dtype, size, step, decoupled, on_device):
    p, g, m, v = arrays(size, dtype, 4)
    v[:] = np.abs(v)
    beta1, beta2, eps, decay, lr = 0.9, 0.999, 1e-8, 0.0625, 0.03125
    wide = p.astype("d") * (1 - lr * decay if decoupled else 1)
    gradient = g + (0 if decoupled else decay) * wide
    mean = beta1 * m.astype("d") + (1 - beta1) * gradient
    square = beta2 * v.astype("d") + (1 - beta2) * gradient**2
    corrected = mean / (1 - beta1**step), square / (1 - beta2**step)
    expected = wide - lr * corrected[0] / (np.sqrt(corrected[1]) + eps)
    given = (np.array([step]), np.array([lr], np.float32)) if on_device else (step, lr)
    cuda.adam_step(p, g, m, v, *given, beta1, beta2, eps, decay, decoupled)
    close(m, mean, dtype)
    close(v, square, dtype)
    close(p, expected, dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_average(dtype, size):
    average, value = arrays(size, dtype, 2)
    expected = average + 0.375 * (value.astype("d") - average)
    cuda.average_step(average, value, 0.375)
    close(average, expected, dtype)


@pytest.mark.parametrize("most", [0.5, 1e3])
@pytest.mark.parametrize("dtype", TYPES)
def test_clipping(dtype, most):
    gradients = [arrays(size, dtype, 1)[0] for size in (1, 67, 40_001)]
    before = [g.copy() for g in gradients]
    norm = np.sqrt(sum((g.astype("d") ** 2).sum() for g in gradients))
    cuda.clip_norm(gradients, most)
    for found, given in zip(gradients, before, strict=True):
        close(found, given.astype("d") * min(1, most / (norm + 1e-6)), dtype)
        assert most < 1 or np.array_equal(found, given)


def test_clipping_has_no_limit_below_that_of_double_and_shows_a_nan():
    huge = np.array([3e30, 4e30], np.float32)
    cuda.clip_norm([huge], 5.0)
    np.testing.assert_allclose(huge, [3, 4], rtol=1e-6)
    for bad in (np.nan, np.inf):
        gradient = np.array([bad, 1], np.float32)
        cuda.clip_norm([np.ones(3, np.float32), gradient], 1.0)
        assert np.isnan(gradient).any()


def test_a_number_on_the_device_must_be_one_of_its_type():
    p, g = arrays(4, np.float32, 2)
    with pytest.raises(TypeError, match="lr on the device must be one float32; got 1 of float64"):
        cuda.sgd_step(p, g, None, np.zeros(1), 0.0, 0.0, False, False)


def test_bfloat16_parameters_are_refused():
    p = np.zeros(4, np.uint16)
    with pytest.raises(TypeError, match="float32 or float64, not bf16"):
        cuda.adam_step(p, p, p, p, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, False)
