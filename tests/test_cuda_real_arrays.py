"""The launchers on CuPy's own arrays: their views, flags, types and addresses are not the fake's.

That needs no driver. An array may lie anywhere, here in the host's memory, and the kernels run on the CPU.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
pytest.importorskip("cupy", minversion="14")
import cupy

from minitl.backend import narrow
from minitl.kernels import cuda
from minitl.kernels.cuda import runtime, warpgroups
from minitl.shapes import padding2d
from tests.cuda_launch import FOLDER, needs_checker
from tests.cuda_on_cpu import host_module
from tests.cuda_on_cpu.fake_cupy import install
from tests.test_cuda_launchers import CALLS, WA, WB, A, X, Y, each

ALIGNMENT = 512  # of CuPy's pool
GEOMETRY = (1, 1), padding2d(1), (1, 1), 1
WEIGHT = np.random.default_rng(0).standard_normal((8, 3, 3, 8)).astype(np.float32)
ROWS = X.reshape(-1, 8)
PRODUCTS = [
    ("conv2d_forward", (X, WEIGHT, A, *GEOMETRY)),
    ("conv2d_forward", (narrow(X), WEIGHT, None, *GEOMETRY)),
    ("conv2d_forward", (X[..., :3].copy(), WEIGHT[..., :3].copy(), None, *GEOMETRY)),
    ("conv2d_statistics_forward", (X, WEIGHT, *GEOMETRY)),
    ("conv2d_scale_shift_forward", (narrow(X), WEIGHT, WA, WB, narrow(Y), True, *GEOMETRY)),
    ("conv2d_dx", (Y, WEIGHT, X.shape, *GEOMETRY)),
    ("conv2d_dw", (Y, X, WEIGHT.shape, *GEOMETRY)),
    ("conv2d_dw", (narrow(Y), narrow(X), WEIGHT.shape, *GEOMETRY)),
    ("conv2d_db", (Y,)),
    ("linear_forward", (ROWS, WEIGHT[:, 0, 0].copy(), A)),
    ("linear_dx", (ROWS, WEIGHT[:, 0, 0].copy())),
    ("linear_dw", (ROWS, ROWS)),
    ("linear_db", (ROWS,)),
]


def allocate(size: int) -> Any:
    """Return memory of the host as CuPy's pool would that of a GPU."""
    raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    memory = cupy.cuda.UnownedMemory(raw.ctypes.data + start, size, raw, 0)
    return cupy.cuda.MemoryPointer(memory, 0)


def memory_of(array: Any) -> np.ndarray:
    """Return what a C-contiguous array of CuPy's holds, as NumPy's view of it."""
    assert array.flags.c_contiguous
    content = (ctypes.c_char * array.nbytes).from_address(array.data.ptr)
    return np.frombuffer(content, array.dtype).reshape(array.shape)


def there(host: np.ndarray) -> Any:
    array = cupy.empty(host.shape, host.dtype)
    memory_of(array)[...] = host
    return array


class Module:
    """Kernels that run on the CPU, called with CuPy's arrays."""

    def __init__(self, stem: str, defines: dict[str, Any]) -> None:
        flags = tuple(f"{name}={value}" for name, value in sorted(defines.items()))
        self._module = host_module.HostModule(FOLDER / f"{stem}.cu", "check", flags)

    def get_function(self, name: str) -> Any:
        kernel = self._module.get_function(name)

        def launch(grid: tuple, block: tuple, args: tuple, shared_mem: int = 0) -> None:
            host = [memory_of(a) if isinstance(a, cupy.ndarray) else a for a in args]
            kernel(grid, block, host, shared_mem)

        return launch


@contextmanager
def on_host_memory() -> Iterator[None]:
    with (
        cupy.cuda.using_allocator(allocate),
        mock.patch.object(runtime, "load_module", Module),
        mock.patch.object(warpgroups, "usable", lambda: True),  # there is no card to ask
    ):
        yield


@needs_checker
@pytest.mark.parametrize(("name", "args"), [*CALLS, *PRODUCTS])
def test_launchers_do_with_cupys_arrays_what_they_do_with_the_fakes(name: str, args: tuple) -> None:
    function, outcomes = getattr(cuda, name), ([], [])
    with on_host_memory():
        given = each(args, there)
        result = function(*given)
        each((result, given), lambda x: outcomes[0].append(memory_of(x).copy()))
    with install() as gpu:
        given = each(args, lambda x: gpu.cupy.asarray(np.atleast_1d(x)).reshape(x.shape))
        result = function(*given)
        each((result, given), lambda x: outcomes[1].append(gpu.cupy.asnumpy(x)))
    for real, fake in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(real, fake)


VIEWS = {
    "rows": lambda a: a[1:3],
    "a row": lambda a: a[1],
    "an element": lambda a: a[1, 2, 1, 3],
    "none": lambda a: a[0:0],
    "one": lambda a: a[:1].reshape(1, 1, 6, 8),
    "every other": lambda a: a[..., ::2],
    "transposed": lambda a: a.transpose(0, 3, 1, 2),
    "flat": lambda a: a.reshape(-1)[5:6].reshape(()),
    "a number among bytes": lambda a: a.reshape(-1).view(np.uint8)[8:16].view(np.int64),
    "bits": lambda a: a.view(np.int32),
    "T": lambda a: a.T,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_those_of_the_fake_and_of_numpy(name: str) -> None:
    host = np.arange(4 * 3 * 2 * 8, dtype=np.float32).reshape(4, 3, 2, 8)
    view = VIEWS[name]
    with on_host_memory():
        array = there(host)
        real = view(array)
        offset = real.data.ptr - array.data.ptr
    with install() as gpu:
        array = gpu.cupy.asarray(host)
        fake = view(array)
        assert offset == fake.data.ptr - array.data.ptr
    for other in (fake, np.asarray(view(host))):
        assert (real.shape, real.dtype, real.size) == (other.shape, other.dtype, other.size)
        assert real.strides == other.strides
        assert real.flags.c_contiguous == other.flags.c_contiguous
