"""What an attack does with pictures on CUDA, on the checker and on a GPU, beside the CPU's."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels import cpu
from minitl.kernels.cuda import attack as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened

cuda = Launchers(launchers)
device = each_device()

BOX, MOVE = (0.25, 0.5, 0.125), (0.1, 0.2, 0.3)
DARKEST, BRIGHTEST = (-1.0, -2.0, -0.5), (1.5, 1.0, 2.0)
LIMITS = BOX, DARKEST, BRIGHTEST
SHAPES = ((1, 1, 1, 3), (2, 3, 5, 3), (1, 4, 8, 3), (3, 20, 40, 3))


def normal(shape, ctype, seed):
    return of_type(np.random.default_rng(seed).standard_normal(shape), ctype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", ["float", "bf16"])
def test_a_step(ctype, shape):
    x, gradient, images = (normal(shape, ctype, seed) for seed in range(3))
    gradient.reshape(-1)[0] = 0
    found = cuda.attack_step(x, gradient, images, MOVE, *LIMITS)
    wide = (widened(a).astype(np.float32) for a in (x, gradient, images))
    expected = cpu.attack_step(*wide, MOVE, *LIMITS)
    if ctype == "float":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_array_equal(found, of_type(expected, "bf16"))


def test_a_gradient_that_is_no_number_shows():
    x = np.zeros((1, 1, 2, 3), np.float32)
    gradient = np.full(x.shape, np.nan, np.float32)
    for backend in (cuda, cpu):
        assert np.isnan(backend.attack_step(x, gradient, x, MOVE, *LIMITS)).all()


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", ["float", "bf16"])
def test_the_start_is_the_cpus(ctype, shape, seed):
    images = normal(shape, ctype, 0)
    found = widened(cuda.attack_start(images, *LIMITS, seed))
    expected = cpu.attack_start(widened(images).astype(np.float32), *LIMITS, seed)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING[ctype], atol=1e-6)


def test_the_start_fills_the_box_evenly():
    images = np.zeros((4, 25, 25, 3), np.float32)
    for backend in (cuda, cpu):
        start = backend.attack_start(images, *LIMITS, 5)
        for c, size in enumerate(BOX):
            places = np.sort(start[..., c].ravel()) / size / 2 + 0.5
            even = (np.arange(places.size) + 0.5) / places.size
            assert np.abs(places - even).max() < 1.63 / np.sqrt(places.size)  # Kolmogorov, 1 %
    assert not np.array_equal(start, cpu.attack_start(images, *LIMITS, 6))


def test_float64_is_refused():
    images = np.zeros((1, 2, 2, 3))
    with pytest.raises(TypeError, match="float32 or bfloat16, not float64"):
        cuda.attack_start(images, *LIMITS, 0)
