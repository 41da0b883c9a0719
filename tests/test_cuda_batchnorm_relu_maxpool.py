"""The stem's fused kernels on CUDA, on the checker and on a GPU."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import batchnorm_relu_maxpool as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened
from tests.reference import pool as reference
from tests.test_cuda_pool import CASES, window

cuda = Launchers(launchers)
device = each_device()

TYPES = ("float", "bf16", "double")


def case(shape, ctype):
    rng = np.random.default_rng(4)
    x = of_type(rng.standard_normal(shape), ctype)
    slopes, shifts = rng.uniform(-2, 2, (2, shape[-1]))
    return x, slopes, shifts


@pytest.mark.parametrize("case_", CASES)
@pytest.mark.parametrize("ctype", TYPES)
def test_forward(ctype, case_):
    shape, kernel, stride, padding = case_
    x, scale, shift = case(shape, ctype)
    y, index, chosen = cuda.batchnorm_relu_maxpool_forward(
        x, scale, shift, *window(kernel, stride, padding)
    )
    z = widened(x) * scale + shift
    expected = reference.maxpool2d_forward(np.maximum(z, 0), kernel, stride, padding)
    arithmetic = ROUNDING["double" if ctype == "double" else "float"]
    np.testing.assert_allclose(
        widened(y), expected, rtol=1.01 * ROUNDING[ctype], atol=16 * arithmetic
    )
    assert index.dtype == (np.uint8 if kernel[0] * kernel[1] <= 255 else np.int32)

    none = np.iinfo(index.dtype).max
    np.testing.assert_array_equal(index == none, widened(y) == 0)
    np.testing.assert_array_equal(widened(chosen)[index == none], 0)
    # What was chosen is the pixel that index names, and it gives y.
    padded = np.pad(widened(x), ((0, 0), padding[:2], padding[2:], (0, 0)))
    for n, p, q, c in zip(*np.nonzero(index != none), strict=True):
        r, s = divmod(int(index[n, p, q, c]), kernel[1])
        assert widened(chosen)[n, p, q, c] == padded[n, p * stride[0] + r, q * stride[1] + s, c]
    again = np.where(index != none, widened(chosen) * scale + shift, 0)
    np.testing.assert_allclose(again, expected, atol=16 * arithmetic)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case_", CASES)
@pytest.mark.parametrize("ctype", TYPES)
def test_dx(ctype, case_, training):
    shape, kernel, stride, padding = case_
    x, scale, shift = case(shape, ctype)
    y, index, _ = cuda.batchnorm_relu_maxpool_forward(
        x, scale, shift, *window(kernel, stride, padding)
    )
    rng = np.random.default_rng(5)
    dy = of_type(rng.standard_normal(y.shape), ctype)
    a, b, c = rng.uniform(-1, 1, (3, shape[-1])).astype(scale.dtype)
    dx = cuda.batchnorm_relu_maxpool_dx(
        dy,
        index,
        shape,
        *((x, a, b, c) if training else (None, a, None, None)),
        *window(kernel, stride, padding),
    )
    z = widened(x) * scale + shift
    relu = np.maximum(z, 0)
    dz = reference.maxpool2d_dx(
        np.where(widened(y) > 0, widened(dy), 0), relu, kernel, stride, padding
    )
    expected = a * dz + (b * widened(x) + c if training else 0)
    arithmetic = ROUNDING["double" if ctype == "double" else "float"]
    np.testing.assert_allclose(
        widened(dx),
        expected,
        rtol=1.01 * ROUNDING[ctype],
        atol=32 * arithmetic * kernel[0] * kernel[1],
    )


def test_nan_wins():
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 0, 1] = np.nan
    one = np.ones(1)
    y, index, chosen = cuda.batchnorm_relu_maxpool_forward(
        x, one, one, *window((2, 2), (2, 2), (0, 0, 0, 0))
    )
    assert np.isnan(y).all()
    assert np.isnan(chosen).all()
    assert index == 1
