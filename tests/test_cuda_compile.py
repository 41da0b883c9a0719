"""Every CUDA kernel compiles, in every form that is launched, and stays within its budget.

A budget is what lets enough threads run at a time: of 65,536 registers on a multiprocessor, 128 for each
thread leave room for 512 threads. Nothing may spill registers to memory.

The convolution has more forms than a test run has time for. Each is compiled for one of the two
architectures, those that copy in small pieces (odd channels) only in part; HYPOTHESIS_PROFILE=thorough
compiles everything for both.
"""

import importlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import compiler, conv2d_plan

ARCHITECTURES = ("sm_80", "sm_90a")
STEMS = sorted(path.stem for path in compiler.FOLDER.glob("*.cu"))
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

# Kernel: most registers of a thread (for bfloat16 and float, for double), bytes of static shared memory.
BUDGETS = {
    "batchnorm_dx_training_relu": (72, 56, 0),
    "batchnorm_dx_training": (64, 48, 0),
    "batchnorm_dx_relu": (48, 48, 0),
    "batchnorm_dx": (40, 40, 0),
    "batchnorm_reduce_finish": (32, 32, 4096),
    "batchnorm_reduce_relu_keep": (128, 64, 36864),
    "batchnorm_reduce_relu": (104, 64, 36864),
    "batchnorm_reduce": (104, 64, 36864),
    "batchnorm_apply_add": (64, 48, 0),
    "batchnorm_apply": (64, 64, 0),
    "batchnorm_coefficients": (32, 32, 0),
    "batchnorm_fold": (32, 32, 0),
    "batchnorm_statistics_finish": (32, 32, 4096),
    "batchnorm_statistics": (104, 48, 36864),
    "batchnorm_relu_maxpool_dx_training": (88, 72, 0),
    "batchnorm_relu_maxpool_dx": (72, 64, 0),
    "batchnorm_relu_maxpool_forward": (80, 64, 0),
    "conv2d_forward": (128, 176, 0),
    "conv2d_dx": (128, 184, 0),
    "conv2d_dw": (128, 152, 0),
    "conv2d_db_finish": (32, 32, 8192),
    "conv2d_db": (32, 32, 8192),
    "conv2d_statistics_finish": (40, 40, 8192),
    "conv2d_sum_splits": (32, 32, 0),
    "conv2d_transpose_weight": (32, 32, 8448),
    "copy_columns": (32, 32, 0),
    "dropout_forward": (40, 32, 0),
    "relu_dx": (32, 32, 0),
    "relu_forward": (32, 32, 0),
    "add_forward": (32, 32, 0),
    "cast": (32, 0, 0),
    "global_avgpool2d_dx": (40, 40, 0),
    "global_avgpool2d_forward": (48, 32, 18432),
    "maxpool2d_dx": (64, 56, 0),
    "maxpool2d_forward": (64, 64, 0),
}


def convolutions():
    """Yield stem and macros of every convolution that conv2d.py can launch, the usual ones first."""
    kinds = [
        {"DX": dx, "SPLIT": split, "STATISTICS": statistics}
        for dx, split, statistics in [(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0)]
    ]
    types = [("bf16", 0, 8), ("float", 1, 4), ("float", 0, 4), ("double", 0, 2)]
    for ctype, tf32, vector in types:
        sizes = [vector >> i for i in range(vector.bit_length())]
        for pieces in sorted(itertools.product(sizes, sizes), reverse=True):
            for dw in (False, True):
                if pieces[0] != pieces[1] and not dw:
                    continue  # forward and dx copy both sides in the smaller pieces
                for tile in conv2d_plan.tiles_for(ctype, pieces, dw=dw):
                    defines = {
                        "T": ctype,
                        "TF32": tf32,
                        "BM": tile.m,
                        "BN": tile.n,
                        "WM": tile.warp_m,
                        "WN": tile.warp_n,
                        "STAGES": conv2d_plan.STAGES,
                        "PIECE_A": pieces[0],
                        "PIECE_B": pieces[1],
                    }
                    if dw:
                        yield "conv2d_dw", defines
                    else:
                        yield from (("conv2d", defines | kind) for kind in kinds)


def forms(stem):
    """Return (architecture, macros) of everything that is compiled of a file."""
    if stem not in ("conv2d", "conv2d_dw"):
        found = [{"T": t} for t in ("bf16", "float", "double")]
        if stem != "conv2d_passes":
            found = importlib.import_module(f"minitl.kernels.cuda.{stem}").VARIANTS
        return list(itertools.product(ARCHITECTURES, found))
    found = [defines for name, defines in convolutions() if name == stem]
    if THOROUGH:
        return list(itertools.product(ARCHITECTURES, found))
    vector = {"bf16": 8, "float": 4, "double": 2}
    usual = [d for d in found if d["PIECE_A"] == d["PIECE_B"] == vector[d["T"]]]
    others = [d for d in found if d not in usual][::5]
    return list(zip(itertools.cycle(ARCHITECTURES), usual + others, strict=False))


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
            if used.spilled or used.registers > registers or used.shared > shared:
                over.append(f"{name} for {architecture}, {defines}: {used}")
    assert not over, "\n".join(over)


def test_budgets_are_for_kernels_that_exist():
    names = {
        name
        for stem in STEMS
        for case in forms(stem)
        for name in resources(stem, *case)  # from the cache by now
    }
    assert set(BUDGETS) <= names
