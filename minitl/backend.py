"""From an array to the module of kernels that computes on it.

Operations never name a device: `kernels_for(x)` hands back `minitl.kernels.cpu` for a NumPy array.
A further backend is a module with the same functions and signatures and one more line here.
Kernel modules are imported on first use, so that `import minitl` stays quick.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a NumPy or a CuPy array

# CuPy has no bfloat16, so an array of it is carried as its 16 bits. Only the CUDA backend computes in it.
BFLOAT16 = np.dtype(np.uint16)


@cache
def kernel_module(device: str) -> ModuleType:
    """Return the kernel module of a device by its name, such as "cpu"; for its settings."""
    return importlib.import_module(f"minitl.kernels.{device}")


def kernels_for(array: Array) -> ModuleType:
    """Return the kernel module for the device that `array` lives on.

    Raises TypeError for anything but an array of a known device.
    """
    if isinstance(array, np.ndarray):
        return kernel_module("cpu")
    raise TypeError(
        f"no kernels for {type(array).__module__}.{type(array).__name__}; give a NumPy array"
    )
