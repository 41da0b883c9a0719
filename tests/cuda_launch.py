"""For tests of the CUDA launchers: they are given NumPy arrays and compute on them,

on the CPU    by the checker; every launch is done twice, with the threads in two orders, and must give the
              same bits
on the GPU    where there is one: the arrays are copied there and back

    cuda = Launchers(module)
    device = each_device()      # a fixture; every test of the file then runs on all devices that there are

Tests that make device arrays themselves take `gpu = each_gpu()`: the fake of CuPy, or CuPy.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from minitl.kernels.cuda import runtime
from tests.cuda_on_cpu import fake_cupy, host_module

FOLDER = Path(runtime.__file__).parent
needs_checker = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)

ORDERS = ({"order": 1}, {"order": 2, "seed": 5})


@functools.cache
def host(stem, defines):
    return host_module.HostModule(
        FOLDER / f"{stem}.cu", "check", tuple(f"{name}={value}" for name, value in defines)
    )


class BothOrders:
    """A module whose kernels are run in every order."""

    def __init__(self, module):
        self.module = module

    def get_function(self, name):
        kernel = self.module.get_function(name)

        def launch(grid, block, args, shared_mem=0):
            arrays = [a for a in args if isinstance(a, np.ndarray)]
            before = [a.copy() for a in arrays]
            results = set()
            for order in ORDERS:
                for array, values in zip(arrays, before, strict=True):
                    array[...] = values
                kernel(grid, block, args, shared_mem=shared_mem, **order)
                results.add(b"".join(a.tobytes() for a in arrays))
            assert len(results) == 1, f"{name} depends on the order of threads"

        return launch


@contextmanager
def on_host() -> Iterator[None]:
    """Let the launchers run on NumPy arrays, by the checker."""

    def load_module(stem, defines):
        return BothOrders(host(stem, tuple(sorted(defines.items()))))

    def empty(shape, dtype):
        """Return memory full of NaNs, so that an element that is left out is noticed."""
        array = np.empty(shape, dtype)
        array.view(np.uint8 if shape else dtype)[...] = 0xFF
        return array

    numpy = SimpleNamespace(empty=empty, zeros=np.zeros, ascontiguousarray=np.ascontiguousarray)
    with mock.patch.multiple(runtime, load_module=load_module, cupy=lambda: numpy):
        yield


def _there_is_a_gpu() -> bool:
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:  # no CuPy, no driver, no card
        return False


DEVICES = [
    pytest.param("checker", marks=needs_checker),
    *(["gpu"] if _there_is_a_gpu() else []),
]
_devices = ["checker"]


def each_device() -> Any:
    """Return a fixture that runs every test of a file on every device."""

    @pytest.fixture(autouse=True, params=DEVICES)
    def device(request):
        _devices.append(request.param)
        with on_host() if request.param == "checker" else nullcontext():
            yield
        _devices.pop()

    return device


def each_gpu() -> Any:
    """Return a fixture: the fake of tests/cuda_on_cpu, and where there is a GPU the real CuPy as well.

    Of the fake's record of launches and of waiting the real one has nothing.
    """

    @pytest.fixture(params=DEVICES)
    def gpu(request):
        if request.param == "checker":
            with fake_cupy.install() as machine:
                yield machine
        else:
            import cupy

            yield SimpleNamespace(cupy=cupy, launches=[], synchronisations=[])

    return gpu


@contextmanager
def launched() -> Iterator[dict[tuple[str, str, frozenset], int]]:
    """Yield a dictionary that fills with what is launched in the block.

    Keys are (file's stem, kernel, its macros), values the bytes of shared memory that were asked for last.
    """
    found: dict[tuple[str, str, frozenset], int] = {}
    launch = runtime.launch

    def record(stem: str, name: str, *args: Any, shared_mem: int = 0, **defines: Any) -> None:
        found[stem, name, frozenset(defines.items())] = shared_mem
        launch(stem, name, *args, shared_mem=shared_mem, **defines)

    with mock.patch.object(runtime, "launch", record):
        yield found


class Launchers:
    """The functions of a module, for NumPy arrays, on the device of the running test."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        return partial(_on_gpu, function) if _devices[-1] == "gpu" else function


def _on_gpu(function: Any, *args: Any, **options: Any) -> Any:
    import cupy

    copies: list[tuple[np.ndarray, Any]] = []

    def there(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(there(v) for v in value) if type(value) in (list, tuple) else value
        if not isinstance(value, np.ndarray):
            return value
        # An array that is not aligned here shall not be so there.
        skip = value.ctypes.data % 16 // value.itemsize
        memory = cupy.empty(value.size + skip, value.dtype)
        copy = memory[skip:].reshape(value.shape)
        copy.set(value)  # `copy[...] = ` would compile kernels of CuPy's
        copies.append((value, copy))
        return copy

    def back(value: Any) -> Any:
        for host, copy in copies:
            if value is copy:
                return host
        if isinstance(value, list | tuple):
            return type(value)(back(v) for v in value)
        return cupy.asnumpy(value) if isinstance(value, cupy.ndarray) else value

    results = function(*map(there, args), **options)
    for host, copy in copies:
        host[...] = cupy.asnumpy(copy)  # some are written
    return back(results)


# ---- bfloat16 on NumPy: 16 bits in uint16 ----


def bf16(x: np.ndarray) -> np.ndarray:
    """Return x rounded to the nearest bfloat16, ties to even, as uint16."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(x: np.ndarray) -> np.ndarray:
    """Return an array of any activation type as float64."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def of_type(x: np.ndarray, ctype: str) -> np.ndarray:
    """Return x as an activation of this type: float, double or bf16."""
    return (
        bf16(x) if ctype == "bf16" else x.astype({"float": np.float32, "double": np.float64}[ctype])
    )


# Half the distance between neighbours, as a share of the value: one rounding of the result.
ROUNDING = {"float": 2.0**-24, "bf16": 2.0**-8, "double": 2.0**-53}
