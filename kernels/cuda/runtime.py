"""What the launchers share: CuPy, memory from its pool, compiled modules, and the launch itself.

Everything happens on CuPy's current stream and nothing waits for it, so that a training step can be
captured in a CUDA graph.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minitl.backend import BFLOAT16
from minitl.errors import UserError
from minitl.kernels.cuda import compiler

Array = Any  # a CuPy array
Defines = dict[str, Any]  # macros of a kernel's source

NULL = np.uintp(0)  # in place of an array that a kernel does without
STATIC_LIMIT = 48 << 10  # bytes of shared memory that a kernel gets without asking
CTYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", BFLOAT16: "bf16"}


def cupy() -> Any:
    """Return the module cupy; UserError where it is not installed."""
    try:
        import cupy as module
    except ImportError as error:
        raise UserError(
            "computing on a GPU needs CuPy, which is not installed: "
            "pip install 'minitl[cuda13]' (or cuda12, to fit the driver)"
        ) from error
    return module


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an uninitialised array on the current device, from CuPy's memory pool."""
    return cupy().empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array of zeros on the current device, from CuPy's memory pool."""
    return cupy().zeros(shape, dtype)


def contiguous(x: Array) -> Array:
    """Return x in C order: itself, or a copy."""
    return x if x.flags.c_contiguous else cupy().ascontiguousarray(x)


def address(x: Array) -> int:
    """Return where x lies on the device."""
    return int(x.data.ptr)


def release_memory() -> None:
    """Give memory in which nothing is in use any more back to the driver."""
    cupy().get_default_memory_pool().free_all_blocks()
    cupy().get_default_pinned_memory_pool().free_all_blocks()


def ctype(dtype: DTypeLike) -> str:
    """Return the kernels' name of an activation type: float, double or bf16 (which is held as uint16).

    Raises TypeError for any other.
    """
    try:
        return CTYPES[np.dtype(dtype)]
    except KeyError:
        raise TypeError(
            "the CUDA kernels compute on float32, float64 and bfloat16 (held as uint16); "
            f"got {np.dtype(dtype)}"
        ) from None


def real(dtype: DTypeLike) -> np.dtype:
    """Return what arithmetic on such activations is done in: float64 for float64, else float32."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def blocks(work: int, per_block: int, most: int = 1 << 16) -> int:
    """Return how many blocks to start for so much work, of which a block does `per_block` at a time."""
    return max(1, min(most, -(-work // per_block)))


def tile(channels: int, dtype: DTypeLike, threads: int = 256) -> tuple[int, int, int]:
    """Return how to lay threads over rows of channels: along channels, along rows; blocks side by side.

    Each thread takes 16 bytes where the channels divide into such pieces, and else one channel. Up to a
    warp lies along the channels, the next rows follow.
    """
    width = 16 // np.dtype(dtype).itemsize
    pieces = channels // width if channels % width == 0 else channels
    across = min(32, 1 << (pieces - 1).bit_length())
    return across, threads // across, -(-pieces // across)


def number_or_array(value: Any, dtype: DTypeLike, name: str) -> tuple[Any, Any]:
    """Return (number, pointer) for kernels that read `value` from the device if it is an array there.

    Raises TypeError for an array that is not one element of `dtype`.
    """
    if isinstance(value, int | float | np.generic):
        return value, NULL
    if value.size != 1 or value.dtype != dtype:
        raise TypeError(
            f"{name} on the device must be one {np.dtype(dtype)}; got {value.size} of {value.dtype}"
        )
    return 0, value


class _Module:
    """The kernels of one compiled file, each looked up once."""

    def __init__(self, path: Path) -> None:
        self.get_function = cache(cupy().RawModule(path=str(path)).get_function)


@cache
def _load(device: int, stem: str, defines: tuple[tuple[str, object], ...]) -> _Module:
    capability = cupy().cuda.Device(device).compute_capability  # "90", "120"
    architecture = compiler.architecture((int(capability[:-1]), int(capability[-1])))
    return _Module(compiler.cubin_path(stem, architecture, dict(defines)))


def load_module(stem: str, defines: Defines) -> Any:
    """Return `stem`.cu, compiled with these macros for the current device and loaded on it.

    Its `get_function(name)` returns a kernel, called as kernel(grid, block, args, shared_mem=bytes).
    """
    return _load(cupy().cuda.Device().id, stem, tuple(sorted(defines.items())))


def launch(
    stem: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: tuple[Any, ...],
    *,
    shared_mem: int = 0,
    **defines: Any,
) -> None:
    """Start the kernel `name` of `stem`.cu on the current stream.

    args: CuPy arrays and NumPy numbers of the parameters' exact types; a Python number would be passed
        with a size of its own. defines: the macros that the file is compiled with.

    Raises ValueError for an array whose elements lie apart: a kernel is told where it begins and no more.
    """
    for array in args:
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{name} takes arrays whose elements lie one after another in C order, and one of shape "
                f"{array.shape} has them elsewhere; give cupy.ascontiguousarray(...)"
            )
    kernel = load_module(stem, defines).get_function(name)
    if shared_mem > STATIC_LIMIT:
        kernel.max_dynamic_shared_size_bytes = shared_mem
    kernel(grid, block, args, shared_mem=shared_mem)


def launch_numba(
    name: str, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]
) -> None:
    """Start the kernel `name` of avgpool_kernels.py, which Numba compiles, on CuPy's current stream.

    Numba takes the CUDA context that is current, anew in each call: that of CuPy's current device, whichever
    that is. The first call compiles and loads the kernel; a step is recorded only after it has run as code.
    Under Numba's simulator the arrays are NumPy's, and there are no streams.
    """
    try:
        import numba.cuda
    except ImportError as error:
        raise UserError(
            "average pooling on a GPU needs numba-cuda, which is not installed: "
            "pip install 'minitl[cuda13]' (or cuda12, to fit the driver)"
        ) from error
    from minitl.kernels.cuda import avgpool_kernels

    kernel = getattr(avgpool_kernels, name)
    cuda: Any = numba.cuda
    config: Any = numba.config  # its settings come into being at run time
    if config.ENABLE_CUDASIM:
        kernel[grid, block](*args)
        return
    pointer = cupy().cuda.get_current_stream().ptr
    stream = cuda.external_stream(pointer) if pointer else cuda.default_stream()
    # Left to itself Numba would wait for the stream that an array comes from; it is the same one.
    views = [a if isinstance(a, np.generic) else cuda.as_cuda_array(a, sync=False) for a in args]
    with warnings.catch_warnings():  # small pictures do not fill a GPU; nobody can help that
        warnings.filterwarnings("ignore", "Grid size .* under-utilization")
        configured = kernel[grid, block, stream]
    configured(*views)
