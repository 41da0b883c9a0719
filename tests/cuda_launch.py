"""For tests of the CUDA launchers: NumPy arrays in place of CuPy's, and kernels run by the checker.

Every launch is done twice, with the threads in two orders, and must give the same bits.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from minitl.kernels.cuda import runtime
from tests.cuda_on_cpu import host_module

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
    """Let the launchers run on NumPy arrays."""

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
