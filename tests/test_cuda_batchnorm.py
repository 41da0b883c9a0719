"""Batch normalisation on CUDA, on the checker and on a GPU, beside the reference in float64."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import batchnorm as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened
from tests.reference import batchnorm as reference

cuda = Launchers(launchers)
device = each_device()

EPS = 1e-5
TYPES = ("float", "bf16", "double")
# One value a channel; odd channels; vectors with a single and with many rows; more than one tile.
SHAPES = (
    (2, 1, 1, 1),
    (1, 3, 2, 3),
    (5, 33),
    (2, 5, 7, 8),
    (3, 9, 5, 67),
    (40, 4, 4, 16),
    (2, 1, 3, 320),
)


def real(x, ctype):
    return x.astype(np.float64 if ctype == "double" else np.float32)


def close(found, expected, ctype, terms=1.0, roundings=1.01):
    """Compare: so many roundings of the result, and of terms of this size in `real`."""
    arithmetic = ROUNDING["double" if ctype == "double" else "float"]
    np.testing.assert_allclose(
        widened(found), expected, rtol=roundings * ROUNDING[ctype], atol=16 * arithmetic * terms
    )


def case(shape, ctype, seed=0, mean=0.0):
    """Return x, dy and residual, weight, bias as the kernels take them."""
    rng = np.random.default_rng(seed)
    x, dy, residual = (of_type(rng.standard_normal(shape) + m, ctype) for m in (mean, 0, 0))
    weight, bias = rng.uniform(0.5, 2, shape[-1]), rng.standard_normal(shape[-1])
    return x, dy, residual, real(weight, ctype), real(bias, ctype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", TYPES)
def test_statistics(ctype, shape):
    x = case(shape, ctype)[0]
    mean, var = cuda.batchnorm_statistics(x)
    expected = reference.statistics(widened(x))
    kind = "double" if ctype == "double" else "float"  # what sums of few are taken in
    assert mean.dtype == var.dtype == np.float64
    close(mean, expected[0], kind)
    close(var, expected[1], kind, roundings=32)


@pytest.mark.parametrize(("channels", "rows"), [(8, 3000), (3, 2500)])
@pytest.mark.parametrize("mean", [1e4, -3e5])
def test_statistics_far_from_zero(channels, rows, mean):
    """Where the mean is many times the deviation, nothing is lost beyond what x itself has lost."""
    x = case((rows, channels), "float", mean=mean)[0]
    found_mean, var = cuda.batchnorm_statistics(x)
    expected_mean, expected_var = reference.statistics(x)
    np.testing.assert_allclose(found_mean, expected_mean, rtol=2 * ROUNDING["float"])
    np.testing.assert_allclose(var, expected_var, rtol=1e-5)


def test_statistics_of_a_constant_and_of_a_nan():
    x = np.full((70, 8), 3e7, np.float32)
    mean, var = cuda.batchnorm_statistics(x)
    np.testing.assert_array_equal(mean, x[0])
    np.testing.assert_array_equal(var, np.zeros(8))
    x[5, 2] = np.nan
    mean, var = cuda.batchnorm_statistics(x)
    assert np.isnan(mean[2])
    assert np.isnan(var[2])
    assert np.isfinite(np.delete(mean, 2)).all()


@pytest.mark.parametrize("channels", [1, 67, 130])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ctype", ["float", "double"])
def test_fold(ctype, training, channels):
    rng = np.random.default_rng(3)
    mean, var = rng.standard_normal(channels), rng.uniform(0.1, 3, channels)
    weight, bias, running_mean = real(rng.standard_normal((3, channels)), ctype)
    running_var = real(rng.uniform(0.1, 3, channels), ctype)
    means, variances = running_mean.copy(), running_var.copy()
    scale, shift, used, inv_std = cuda.batchnorm_fold(
        *((mean, var) if training else (None, None)),
        *(weight, bias, means, variances),
        *(12, 0.25, EPS, training),
    )
    if training:
        close(means, running_mean + 0.25 * (mean.astype("d") - running_mean), ctype)
        unbiased = var.astype("d") * 12 / 11
        close(variances, running_var + 0.25 * (unbiased - running_var), ctype)
    else:
        np.testing.assert_array_equal(means, running_mean)
        np.testing.assert_array_equal(variances, running_var)
        mean, var = running_mean, running_var
    np.testing.assert_array_equal(used, mean)
    expected = 1 / np.sqrt(var.astype("d") + EPS)
    close(inv_std, expected, "double")
    close(scale, weight * expected, "double")
    close(shift, bias - mean.astype("d") * weight * expected, "double")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", TYPES)
def test_apply(ctype, shape, add, relu):
    x, _, residual, *line = case(shape, ctype)
    scale, shift = (v.astype("d") for v in line)
    y = cuda.batchnorm_apply(x, scale, shift, residual if add else None, relu)
    expected = widened(x) * scale + shift + (widened(residual) if add else 0)
    close(y, np.maximum(expected, 0) if relu else expected, ctype, terms=4)


def test_apply_where_scale_is_zero_and_x_is_nan():
    x = np.array([[1, np.nan], [2, 3]], np.float32)
    y = cuda.batchnorm_apply(x, np.zeros(2), np.array([5.0, -5]), None, True)
    np.testing.assert_array_equal(y, [[5, np.nan], [5, 0]])


def test_apply_far_from_zero():
    """(x - mean) / std with a mean of 1e5 standard deviations costs no digits."""
    x, mean = case((64, 8), "float", mean=1e5)[0], 1e5 + 0.003
    y = cuda.batchnorm_apply(x, np.full(8, 1.7), np.full(8, -1.7 * mean), None, False)
    np.testing.assert_allclose(y, 1.7 * (x.astype("d") - mean), rtol=1e-6, atol=1e-6)


def test_whole_normalisation_far_from_zero():
    """Forward and gradient of (x - mean) / std with a mean of 1e4 standard deviations."""
    x, dy, y, weight, bias = case((4, 9, 9, 8), "float", mean=1e4)
    mean, var = cuda.batchnorm_statistics(x)
    running = np.zeros(8, "f"), np.ones(8, "f")
    pixels = x.size // 8
    scale, shift, used, inv_std = cuda.batchnorm_fold(
        mean, var, weight, bias, *running, pixels, 0.1, EPS, True
    )
    exact_mean, exact_var = reference.statistics(x)
    y = cuda.batchnorm_apply(x, scale, shift, None, False)
    expected = reference.forward(x, weight, bias, exact_mean, exact_var, EPS, None, False)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    sums = cuda.batchnorm_reduce(dy, None, x, used, inv_std)[:2]
    a, b, c, dweight, dbias = cuda.batchnorm_coefficients(
        *sums, weight, used, inv_std, pixels, True
    )
    assert dweight.dtype == dbias.dtype == np.float32
    dx = cuda.batchnorm_dx(dy, None, x, a, b, c)
    arguments = weight, exact_mean, exact_var, EPS, False, True
    exact = reference.gradients(dy, y, x, *arguments)
    for found, right in zip((dx, dweight, dbias), exact, strict=False):
        np.testing.assert_allclose(found, right, atol=3e-6 * np.abs(right).max())


def test_float32_for_a_channel_is_refused():
    x, vector = np.zeros((2, 4), "f"), np.zeros(4, "f")
    with pytest.raises(TypeError, match="takes scale in float64, not float32"):
        cuda.batchnorm_apply(x, vector, vector, None, False)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", TYPES)
def test_reduce(ctype, shape, keep, relu):
    x, dy, y, *_ = case(shape, ctype, mean=3)
    y[0] = 0  # no gradient passes at 0
    mean, var = reference.statistics(widened(x))
    inv_std = 1 / np.sqrt(var + EPS)
    sum_dz, sum_dz_xhat, dz = cuda.batchnorm_reduce(
        dy, y if relu else None, x, mean, inv_std, keep_dz=keep
    )
    expected = np.where(widened(y) > 0, widened(dy), 0) if relu else widened(dy)
    if keep:
        np.testing.assert_array_equal(widened(dz), expected)
    else:
        assert dz is None
    over = tuple(range(x.ndim - 1))
    xhat = (widened(x) - mean) * inv_std
    kind = "double" if ctype == "double" else "float"
    close(sum_dz, expected.sum(over), kind, terms=np.abs(expected).sum(over).max())
    close(
        sum_dz_xhat,
        (expected * xhat).sum(over),
        kind,
        terms=np.abs(expected * xhat).sum(over).max(),
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("ctype", TYPES)
def test_whole_gradient(ctype, shape, training, relu):
    """reduce, coefficients and dx together are the reference's gradient."""
    x, dy, y, weight, _ = case(shape, ctype, mean=2)
    mean, var = reference.statistics(widened(x))
    inv_std = 1 / np.sqrt(var + EPS)
    pixels = x.size // shape[-1]
    sums = cuda.batchnorm_reduce(dy, y if relu else None, x, mean, inv_std)[:2]
    a, b, c, dweight, dbias = cuda.batchnorm_coefficients(
        *sums, weight, mean, inv_std, pixels, training
    )
    assert (b is not None) == (c is not None) == training
    dx = cuda.batchnorm_dx(dy, y if relu else None, x if training else None, a, b, c)
    expected = reference.gradients(
        widened(dy), widened(y), widened(x), weight.astype("d"), mean, var, EPS, relu, training
    )
    kind = "double" if ctype == "double" else "float"
    scale = (weight * inv_std).max()
    close(dx, expected[0], ctype, terms=16 * scale)
    terms = 8 * pixels
    close(dweight, expected[1], kind, terms=terms)
    close(dbias, expected[2], kind, terms=terms)


def test_coefficients_without_sums():
    weight, inv_std = np.array([2, 3], "f"), np.array([0.5, 4])
    a, *others = cuda.batchnorm_coefficients(None, None, weight, None, inv_std, 7, False)
    np.testing.assert_array_equal(a, [1, 12])
    assert others == [None] * 4


def test_arrays_that_are_not_aligned():
    x, dy, y, weight, _ = case((7, 16), "float")
    weight = weight.astype("d")
    mean, var = cuda.batchnorm_statistics(x)
    memory = np.empty(x.size + 1, x.dtype)
    off = memory[1:].reshape(x.shape)
    off[...] = x
    np.testing.assert_allclose(cuda.batchnorm_statistics(off), (mean, var), rtol=1e-6)
    # One kernel, two widths: on a GPU they may join multiplications and additions differently.
    for residual in (None, dy):
        np.testing.assert_allclose(
            cuda.batchnorm_apply(off, weight, mean, residual, True),
            cuda.batchnorm_apply(x, weight, mean, residual, True),
            atol=1e-6,
        )
    np.testing.assert_allclose(
        cuda.batchnorm_dx(dy, y, off, weight, mean, var),
        cuda.batchnorm_dx(dy, y, x, weight, mean, var),
        atol=1e-6,
    )
