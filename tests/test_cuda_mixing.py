"""Mixup and cutmix on CUDA, on the checker and on a GPU, beside the CPU's."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels import cpu
from minitl.kernels.cuda import mixing as launchers
from tests.cuda_launch import ROUNDING, Launchers, each_device, of_type, widened

cuda = Launchers(launchers)
device = each_device()

# One picture meets itself; an odd number has one that does; rows of 16 bytes and others.
SHAPES = ((1, 2, 3, 3), (4, 5, 8, 3), (5, 3, 7, 3), (2, 40, 16, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", ["float", "bf16"])
def test_mixup(ctype, shape):
    x = of_type(np.random.default_rng(0).standard_normal(shape), ctype)
    found = cuda.mixup_forward(x, 0.3)
    assert found.dtype == x.dtype
    expected = cpu.mixup_forward(widened(x), 0.3)
    error = 4 * ROUNDING["float"] + ROUNDING[ctype] * (ctype == "bf16")
    np.testing.assert_allclose(widened(found), expected, rtol=error, atol=4 * ROUNDING["float"])


@pytest.mark.parametrize("box", [(0, 2, 1, 3), (0, 0, 0, 0), (1, 2, 0, 3), (0, 2, 2, 2)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ctype", ["float", "bf16"])
def test_cutmix_gives_the_cpus_bits(ctype, shape, box):
    x = of_type(np.random.default_rng(0).standard_normal(shape), ctype)
    np.testing.assert_array_equal(cuda.cutmix_forward(x, *box), cpu.cutmix_forward(x, *box))


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float32 or bfloat16, not float64"):
        cuda.mixup_forward(np.zeros((2, 2, 2, 3)), 0.5)
