"""Every CUDA kernel compiles, in every form that is launched, and stays within its budget.

For sm_90a the large tiles of single warps, and those that are copied number by number, which compile as for
sm_80, are left to the thorough profile.

A budget is what lets enough threads run at a time: of 65,536 registers on a multiprocessor, 128 for each
thread leave room for 512 threads, and 255 for 256. Nothing may spill registers to memory.
"""

import importlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import compiler
from minitl.kernels.cuda.conv2d_plan import SMALL

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
ARCHITECTURES = ("sm_80", "sm_90a")
STEMS = sorted(path.stem for path in compiler.FOLDER.glob("*.cu"))

# Kernel: most registers of a thread (for bfloat16 and float, for double), bytes of static shared memory.
BUDGETS = {
    "batchnorm_dx_training_relu": (120, 96, 0),
    "batchnorm_dx_training": (104, 80, 0),
    "batchnorm_dx_relu": (88, 72, 0),
    "batchnorm_dx": (64, 48, 0),
    "batchnorm_reduce_finish": (32, 32, 4096),
    "batchnorm_reduce_relu_keep": (128, 112, 36864),
    "batchnorm_reduce_relu": (128, 120, 36864),
    "batchnorm_reduce": (128, 96, 36864),
    "batchnorm_apply_add": (96, 80, 0),
    "batchnorm_apply": (80, 56, 0),
    "batchnorm_coefficients": (40, 40, 0),
    "batchnorm_fold": (32, 32, 0),
    "batchnorm_statistics_finish": (32, 32, 4096),
    "batchnorm_statistics": (120, 72, 36864),
    "batchnorm_relu_maxpool_dx_training": (104, 72, 0),
    "batchnorm_relu_maxpool_dx": (72, 64, 0),
    "batchnorm_relu_maxpool_forward": (80, 64, 0),
    "conv2d_forward": (128, 176, 0),
    "conv2d_dx": (128, 184, 0),
    "conv2d_dw": (128, 184, 0),
    "conv2d_db_finish": (32, 32, 8192),
    "conv2d_db": (32, 32, 8192),
    "conv2d_statistics_finish": (40, 40, 8192),
    "conv2d_pad_channels": (32, 32, 0),
    "conv2d_sum_splits": (40, 40, 0),
    "conv2d_transpose_weight": (32, 32, 8448),
    "normalize_images": (32, 0, 0),
    "times_dloss": (32, 32, 0),
    "add_losses": (32, 32, 32),
    "mean_squared_error_forward": (40, 40, 32),
    "sigmoid_binary_cross_entropy_forward": (40, 56, 32),
    "softmax_cross_entropy_forward": (56, 56, 64),
    "label_weights": (32, 32, 32),
    "attack_start": (40, 0, 0),
    "attack_step": (64, 0, 0),
    "mixup_forward": (40, 0, 0),
    "cutmix_forward": (40, 0, 0),
    "sum_of_squares": (32, 32, 64),
    "clip_factor": (32, 32, 64),
    "scale_gradient": (32, 32, 0),
    "average_step": (32, 32, 0),
    "adam_step": (48, 64, 24),
    "sgd_momentum_step": (40, 40, 0),
    "sgd_step": (32, 32, 0),
    "copy_columns": (32, 32, 0),
    "dropout_forward": (32, 32, 0),
    "relu_dx": (32, 32, 0),
    "scale_forward": (32, 32, 0),
    "relu_forward": (32, 32, 0),
    "add_forward": (32, 32, 0),
    "cast": (32, 0, 0),
    "global_avgpool2d_dx": (40, 40, 0),
    "global_avgpool2d_forward": (48, 32, 18432),
    "maxpool2d_dx": (64, 56, 0),
    "maxpool2d_forward": (64, 64, 0),
}


def forms(stem, variants=None):
    """Return (architecture, macros) of everything that is launched of a file, or of these forms of it."""
    if variants is None:
        variants = importlib.import_module(f"minitl.kernels.cuda.{stem}").VARIANTS
    found = []
    for architecture, variant in itertools.product(ARCHITECTURES, variants):
        newest = architecture == compiler.WITH_WARPGROUPS
        by_warpgroups = variant.get("WGMMA")
        large = variant.get("BM", 0) * variant.get("BN", 0) > SMALL.m * SMALL.n
        single = 1 in (variant.get("PIECE_A"), variant.get("PIECE_B"))
        if (newest and (by_warpgroups or not (large or single) or THOROUGH)) or not (
            newest or by_warpgroups
        ):
            found.append((architecture, variant))
    return found


def resources(stem, architecture, defines):
    log = compiler.cubin_path(stem, architecture, defines).with_suffix(".log")
    return compiler.Compiled(b"", log.read_text()).resources()


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_stay_within_their_budgets(stem):
    cases = forms(stem)
    assert cases
    with ThreadPoolExecutor(2) as pool:
        everything = list(pool.map(lambda case: resources(stem, *case), cases))
    over = []
    for (architecture, defines), kernels in zip(cases, everything, strict=True):
        assert kernels, f"{stem} has no kernel with {defines}"
        for name, used in kernels.items():
            single, double, shared = BUDGETS.get(name, (0, 0, 0))
            registers = double if defines["T"] == "double" else single
            if "PIECE_A" in defines and registers == single:  # matmul.cuh, MIN_BLOCKS
                if defines["WM"] * defines["WN"] > 64 * 32:
                    registers = 255
                elif 1 in (defines["PIECE_A"], defines["PIECE_B"]):
                    registers = 200
            if used.spilled or used.registers > registers or used.shared > shared:
                over.append(f"{name} for {architecture}, {defines}: {used}")
    assert not over, "\n".join(over)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_compiled_for(architecture):
    """And budgets are for kernels that exist."""
    names = {
        name
        for stem in STEMS
        for case in forms(stem)
        if case[0] == architecture
        for name in resources(stem, *case)  # from the cache by now
    }
    assert names == set(BUDGETS)
