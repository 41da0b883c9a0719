"""Average pooling on CUDA: run by Numba's simulator, and compiled to PTX."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba.cuda.simulator")
from tests.cuda_launch import ROUNDING, needs_checker, of_type, on_host, widened
from tests.reference import pool as reference

# x, kernel, stride, padding (top, bottom, left, right)
CASES = (
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((2, 4, 5, 3), (3, 3), (1, 1), (1, 1, 1, 1)),
    ((1, 5, 4, 2), (2, 3), (3, 2), (1, 0, 0, 2)),
    ((1, 2, 3, 33), (2, 2), (1, 2), (0, 1, 0, 1)),
)


def check(ctype):
    """Compare with the reference; in a process with the simulator."""
    from minitl.kernels.cuda import avgpool as cuda
    from minitl.shapes import padding2d

    for shape, kernel, stride, (top, bottom, left, right) in CASES:
        for whole in (False, True):
            rng = np.random.default_rng(0)
            x = of_type(rng.standard_normal(shape), ctype)
            window = kernel, stride, padding2d(((top, bottom), (left, right))), whole
            around = kernel, stride, (top, bottom, left, right)
            tolerance = {"rtol": 1.01 * ROUNDING[ctype], "atol": 16 * ROUNDING["float"]}
            y = cuda.avgpool2d_forward(x, *window)
            assert y.dtype == x.dtype
            expected = reference.avgpool2d_forward(widened(x), *around, whole)
            np.testing.assert_allclose(widened(y), expected, **tolerance)
            dx = cuda.avgpool2d_dx(y, shape, *window)
            expected = reference.avgpool2d_dx(widened(y), np.empty(shape), *around, whole)
            np.testing.assert_allclose(widened(dx), expected, **tolerance)


# x and the number of windows: fewer than pixels, more, as many, one; windows that overlap
ADAPTIVE = (
    ((2, 5, 7, 3), (3, 2)),
    ((1, 2, 3, 33), (5, 3)),
    ((1, 1, 1, 1), (1, 1)),
    ((1, 4, 4, 2), (1, 1)),
)


def check_adaptive(ctype):
    """Compare with means over the windows by PyTorch's definition, and dx by what each window hands on."""
    from minitl.kernels.cuda import avgpool as cuda

    for shape, (p, q) in ADAPTIVE:
        x = of_type(np.random.default_rng(0).standard_normal(shape), ctype)
        n, h, w, c = shape
        y, dx = np.zeros((n, p, q, c)), np.zeros(shape)
        found = cuda.adaptive_avgpool2d_forward(x, (p, q))
        found_dx = cuda.adaptive_avgpool2d_dx(found, shape)
        for i, j in np.ndindex(p, q):
            rows = slice(i * h // p, math.ceil((i + 1) * h / p))
            columns = slice(j * w // q, math.ceil((j + 1) * w / q))
            part = widened(x)[:, rows, columns]
            y[:, i, j] = part.mean(axis=(1, 2))
            share = widened(found)[:, i : i + 1, j : j + 1] / (part.shape[1] * part.shape[2])
            dx[:, rows, columns] += share
        tolerance = {"rtol": 1.01 * ROUNDING[ctype], "atol": 16 * ROUNDING["float"]}
        assert found.dtype == found_dx.dtype == x.dtype
        np.testing.assert_allclose(widened(found), y, **tolerance)
        np.testing.assert_allclose(widened(found_dx), dx, **tolerance)


def check_all():
    with on_host():
        for ctype in ("float", "bf16", "double"):
            check(ctype)
            check_adaptive(ctype)
    print("checked")


@needs_checker  # it casts bfloat16
def test_in_the_simulator():
    code = "from tests.test_cuda_avgpool import check_all; check_all()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "checked\n", done.stderr


@pytest.mark.parametrize(("bits", "capability"), [(32, (8, 0)), (32, (9, 0)), (64, (8, 0))])
@pytest.mark.parametrize(
    "name",
    ["avgpool2d_forward", "avgpool2d_dx", "adaptive_avgpool2d_forward", "adaptive_avgpool2d_dx"],
)
def test_compiles_and_computes_in_the_type_of_its_arrays(name, bits, capability):
    from numba import cuda, types

    from minitl.kernels.cuda import avgpool_kernels

    kernel = getattr(avgpool_kernels, name)
    array = {32: types.float32, 64: types.float64}[bits][:, :, :, ::1]
    arguments = (array, array)
    if not name.startswith("adaptive"):
        arguments += (*(types.int32,) * 6, types.boolean)
    ptx, _ = cuda.compile_ptx(kernel.py_func, arguments, cc=capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    assert f"add.f{bits}" in ptx or f"add.rn.f{bits}" in ptx
    assert (".f64" in ptx) == (bits == 64)
