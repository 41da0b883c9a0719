"""Our own kernels with one line left out: the checker must notice, or the tests of kernels prove little.

Each barrier, each wait for copies or products and each fence is taken out in turn.
HYPOTHESIS_PROFILE=thorough takes them all, else every fourth, and those of matmul.cuh.
"""

import os
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels import cuda
from minitl.kernels.cuda import conv2d_plan
from minitl.shapes import padding2d
from tests.cuda_on_cpu import fake_cupy, host_module
from tests.cuda_on_cpu.host_module import KERNELS, KernelError

pytestmark = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def run_batchnorm():
    x = normal(300, 70)
    mean, var = cuda.batchnorm_statistics(x)
    cuda.batchnorm_reduce(x, x, x, mean, var, False)


def run_conv2d():
    x, weight = normal(2, 9, 8, 16), normal(72, 3, 3, 16)
    geometry = (1, 1), padding2d(1), (1, 1), 1
    cuda.conv2d_statistics_forward(x, weight, *geometry)
    scale, shift = rng.standard_normal((2, 72))  # in double, as the launcher wants them
    cuda.conv2d_scale_shift_forward(x, weight, scale, shift, None, True, *geometry)


def run_conv2d_dx():
    dy, weight = normal(2, 9, 8, 16), normal(16, 3, 3, 72)
    cuda.conv2d_dx(dy, weight, (2, 18, 16, 72), (2, 2), padding2d(1), (1, 1), 1)


def run_warpgroups():
    """In bfloat16."""
    x, dy = (rng.integers(0, 1 << 14, (2, 9, 8, 136)).astype(np.uint16) for _ in range(2))
    weight = normal(136, 1, 3, 136)  # twice as many slices as there are stages
    geometry = (1, 1), padding2d((0, 1)), (1, 1), 1
    for tile in conv2d_plan.WARPGROUP_TILES:
        with conv2d_plan.forced(conv2d_plan.Plan(tile, 1)):
            cuda.conv2d_forward(x, weight, None, *geometry)
            cuda.conv2d_dw(dy, x, weight.shape, *geometry)


def run_conv2d_passes():
    dy, weight = normal(2, 40, 40, 12), normal(12, 1, 1, 70)
    cuda.conv2d_dx(dy, weight, (2, 40, 40, 70), (1, 1), padding2d(0), (1, 1), 1)
    cuda.conv2d_db(dy)
    cuda.conv2d_statistics_forward(dy, normal(9, 1, 1, 12), (1, 1), padding2d(0), (1, 1), 1)


def run_loss():
    labels = rng.integers(0, 40, 5)
    cuda.softmax_cross_entropy_forward(normal(5, 40), labels, None, 0.1)
    cuda.mean_squared_error_forward(normal(50, 300), normal(50, 300))


def run_optim():
    step = np.ones(1, np.int64)
    cuda.adam_step(
        *(normal(500), normal(500), np.zeros(500, np.float32), np.zeros(500, np.float32)),
        *(step, 1e-3, 0.9, 0.999, 1e-8, 0.1, True),
    )


def run_pool():
    cuda.global_avgpool2d_forward(normal(2, 20, 20, 70))


RUNS = {  # file: what uses all of it
    "batchnorm.cu": run_batchnorm,
    "common.cuh": run_loss,
    "conv2d.cu": run_conv2d_dx,
    "conv2d_passes.cu": run_conv2d_passes,
    "epilogue.cuh": run_conv2d,
    "matmul.cuh": run_conv2d,  # in tf32
    "optim.cu": run_optim,
    "pool.cu": run_pool,
}
BY_WARPGROUPS = "wgmma", "fence_proxy"  # in lines of matmul.cuh that nothing else runs
LINE = re.compile(
    r"^\s*(__syncthreads\(\)|__syncwarp\(\)|cp_async_wait<.*>\(\)"
    r"|fence_proxy_async\(\)|wgmma_(fence\(\)|commit\(\)|wait<.*>\(\)));",
    re.M,
)
FOUND = "DATA RACE|UNINITIALISED|UNFINISHED|NO PROXY FENCE|NO WGMMA FENCE"
CAUTION = {  # file and which of its lines: why nothing goes wrong without it
    (
        "batchnorm.cu",
        0,
    ): "a block comes to further channels only where there are more than 32,768 pieces",
    ("pool.cu", 0): "likewise",
    ("common.cuh", 2): "there is always another barrier before block_max is called again",
    ("matmul.cuh", 6): "the groups that are left hold no copies",
}


def sites():
    """Yield file and line number of each line that is left out."""
    for path in sorted(KERNELS.glob("*.cu*")):
        lines = path.read_text().splitlines()
        numbers = [i for i, line in enumerate(lines, 1) if LINE.match(line)]
        for which, number in enumerate(numbers):
            if (path.name, which) not in CAUTION:
                yield path.name, number


SITES = list(sites())
SOME = [s for i, s in enumerate(SITES) if i % 4 == 0 or s[0] == "matmul.cuh"]
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A copy of the kernels, to change."""
    for path in KERNELS.glob("*.cu*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(fake_cupy, "KERNELS", tmp_path)
    return tmp_path


def run(function):
    before = conv2d_plan.set_precision("tf32")
    try:
        for order in (1, 2):
            with fake_cupy.install(strict=False, order=order):
                function()
    finally:
        conv2d_plan.set_precision(before)


def test_unchanged_kernels_stay_clean(kernels):
    for function in dict.fromkeys([*RUNS.values(), run_warpgroups]):
        run(function)


@pytest.mark.parametrize(("file", "number"), SITES if THOROUGH else SOME)
def test_a_line_left_out_is_noticed(kernels, file, number):
    lines = (kernels / file).read_text().splitlines()
    by_warpgroups = any(name in lines[number - 1] for name in BY_WARPGROUPS)
    lines[number - 1] = LINE.sub("", lines[number - 1])
    (kernels / file).write_text("\n".join(lines))
    with pytest.raises(KernelError, match=FOUND):
        run(run_warpgroups if by_warpgroups else RUNS[file])
