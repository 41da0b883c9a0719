"""From an array to the module of kernels that computes on it.

Operations never name a device: `kernels_for(x)` hands back `minitl.kernels.cpu` for a NumPy array and
`minitl.kernels.cuda` for a CuPy array. A further backend is a module with the same functions and
signatures and a few more lines here. Kernel modules are imported on first use, and CuPy only where
somebody asks for a GPU, so that `import minitl` stays quick.
"""

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a NumPy or a CuPy array

# CuPy has no bfloat16, so an array of it is carried as its 16 bits. Only the CUDA backend computes in it.
BFLOAT16 = np.dtype(np.uint16)


@cache
def kernel_module(device: str) -> ModuleType:
    """Return the kernel module of a kind of device, "cpu" or "cuda"; for its settings."""
    return importlib.import_module(f"minitl.kernels.{device}")


@cache
def kernel_sources(device: str) -> str:
    """Return the SHA-256 of all files that a kind of device's kernels are made of."""
    spec = importlib.util.find_spec(f"minitl.kernels.{device}")
    assert spec is not None and spec.origin is not None
    digest = hashlib.sha256()
    for source in sorted(Path(spec.origin).parent.iterdir()):
        if source.suffix in (".py", ".cu", ".cuh"):
            digest.update(f"{source.name}\n".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def is_on_gpu(array: Array) -> bool:
    """Whether this is a CuPy array."""
    cupy = sys.modules.get("cupy")  # nobody can have made one without importing it
    return cupy is not None and isinstance(array, cupy.ndarray)


def kernels_for(array: Array) -> ModuleType:
    """Return the kernel module for the device that `array` lives on.

    Raises TypeError for anything but an array of a known device.
    """
    if is_on_gpu(array):
        return kernel_module("cuda")
    if isinstance(array, np.ndarray):
        return kernel_module("cpu")
    raise TypeError(
        f"no kernels for {type(array).__module__}.{type(array).__name__}; give a NumPy or CuPy array"
    )


def array_module(array: Array) -> ModuleType:
    """Return numpy or cupy: what makes further arrays on the device of `array`."""
    return sys.modules["cupy"] if is_on_gpu(array) else np


def to_host(array: Array) -> np.ndarray:
    """Return the array as NumPy's: itself, or a copy of what is on the GPU once that is computed."""
    if is_on_gpu(array):
        copy: np.ndarray = sys.modules["cupy"].asnumpy(array)
        return copy
    return array  # type: ignore[no-any-return]


def to_gpu(array: np.ndarray) -> Array:
    """Return a copy of the host's array on the current GPU, in C order."""
    # Without axes CuPy would not copy it, but compile and launch a kernel that fills; and of its own it
    # would keep the order of columns before rows, which kernels do not know.
    there = sys.modules["cupy"].asarray(np.atleast_1d(array), order="C")
    return there.reshape(array.shape)


def like(array: Array, given: Array) -> Array:
    """Return an array of the host on the device of `array`; one that is there already as it is."""
    return given if not is_on_gpu(array) or is_on_gpu(given) else to_gpu(given)


def assign(target: Array, source: Array) -> None:
    """Copy an array into another of its shape and type, on one device; nobody waits for it.

    On a GPU `target[...] = source` would often be a kernel that CuPy compiles first, for which it needs a
    compiler and headers: whenever the first axis has a single element. Here it is one for arrays that are
    not in C order alone.
    """
    if not is_on_gpu(target):
        target[...] = source
        return
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ValueError(
            f"cannot copy {source.dtype} {source.shape} into {target.dtype} {target.shape}"
        )
    if target.flags.c_contiguous and source.flags.c_contiguous:
        target.data.copy_from_device_async(source.data, target.nbytes)
    else:
        target[...] = source


def copied(array: Array) -> Array:
    """Return a copy in C order, made as by `assign`; CuPy's own `copy` always is a kernel."""
    new = array_module(array).empty(array.shape, array.dtype)
    assign(new, array)
    return new


def real(dtype: np.dtype) -> np.dtype:
    """Return what parameters and losses are held in beside such activations: float32 for bfloat16."""
    return np.dtype(np.float32) if dtype == BFLOAT16 else dtype


def dtype_name(dtype: np.dtype) -> str:
    """Return the name of a tensor's element type."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype)


def widen(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers, given as their bits, as float32 (exactly: these are its upper half)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(array: np.ndarray) -> np.ndarray:
    """Return float32 numbers as bfloat16, rounded to nearest (of two equally near, the even one), as bits.

    A NaN may become an infinity.
    """
    bits = np.asarray(array, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(BFLOAT16)
