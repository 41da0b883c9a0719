"""Devices by name: "cpu", "cuda" (the first GPU), "cuda:1"; and what keeps a GPU from being used."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from minitl.backend import BFLOAT16, Array, is_on_gpu, kernel_module, to_gpu, to_host
from minitl.errors import UserError

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Device:
    """Where arrays live and kernels run. Made by `get_device`, which checks that it is usable.

    kind: "cpu" or "cuda". number: which GPU.
    """

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.number}"

    @property
    def kernels(self) -> ModuleType:
        """The kernel module."""
        return kernel_module(self.kind)

    def array(self, array: Array) -> Array:
        """Return an array on this device: itself if it is there, else a copy."""
        if self.kind == "cpu":
            return to_host(array)
        with cupy().cuda.Device(self.number):
            return cupy().asarray(array, order="C") if is_on_gpu(array) else to_gpu(array)

    @contextlib.contextmanager
    def computing(self, precision: str = "float32") -> Iterator[None]:
        """Compute on this device within the block: on a GPU, on a stream of its own.

        precision: how it multiplies meanwhile, "float32", "tf32" or "bf16". With "bf16" it is the inputs
        that decide: give pictures in bfloat16, and everything flows in it.

        What was queued before is finished when the block begins, and what is queued in it when it ends
        without an error. Raises UserError as `check_precision`.
        """
        check_precision(self, precision)
        if self.kind == "cpu":
            yield
            return
        before = self.kernels.set_precision("tf32" if precision == "tf32" else "float32")
        try:
            with cupy().cuda.Device(self.number) as device:
                device.synchronize()
                stream = cupy().cuda.Stream(non_blocking=True)
                with stream:
                    yield
                    stream.synchronize()
        finally:
            self.kernels.set_precision(before)


def cupy() -> Any:
    """Return the module cupy; UserError, naming the extra to install, where it is missing."""
    return importlib.import_module("minitl.kernels.cuda.runtime").cupy()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory does not suffice, whoever found out.

    CuPy's pools have an error of their own. The run time and the driver, which want memory for the code of
    kernels, their stacks and graphs, have names for it, and each library another class.
    """
    names = "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"
    own = isinstance(error, cupy().cuda.memory.OutOfMemoryError)
    return own or any(name in str(error) for name in names)


CPU = Device("cpu")


def parse_device(name: str) -> Device:
    """Read the name of a device, without asking whether there is one. Raises UserError for another name."""
    if name == "cpu":
        return CPU
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise UserError(f"there is no device {name!r}; choose cpu, cuda or cuda:N with N from 0")
    return Device("cuda", int(match[1] or 0))


def get_device(name: str | Device) -> Device:
    """Return the device of this name, after checking that it can be used.

    A GPU becomes the one that this thread's further arrays are made on.

    Raises UserError for another name, without CuPy, a driver or a card of that number, and for a card
    that is too old.
    """
    device = parse_device(name) if isinstance(name, str) else name
    if device.kind == "cuda":
        count = gpu_count()
        if device.number >= count:
            there = "is 1 GPU, cuda:0" if count == 1 else f"are {count}, up to cuda:{count - 1}"
            raise UserError(
                f"there is no {device}: there {there}; choose one that is there, or cpu"
            )
        architecture(device.number)
        cupy().cuda.Device(device.number).use()
    return device


def gpu_count() -> int:
    """Return the number of GPUs; UserError where there is none or CuPy or the driver is missing."""
    runtime = cupy().cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise UserError(_no_driver(runtime, str(error))) from None
    if not count:
        raise UserError("no cuda device: there is no GPU that CUDA can use; use --device cpu")
    return count


def _no_driver(runtime: Any, message: str) -> str:
    """Say what a failing CUDA run time means, in words."""
    try:
        driver = int(runtime.driverGetVersion())
    except runtime.CUDARuntimeError:
        driver = 0
    if "NoDevice" in message:
        return (
            "there is no GPU that CUDA can use (or CUDA_VISIBLE_DEVICES hides it); use --device cpu"
        )
    if not driver:
        return "there is no NVIDIA driver on this machine; install one to use a GPU, or use --device cpu"
    if "InsufficientDriver" in message:
        return (
            "no cuda device: the NVIDIA driver is too old; it supports CUDA "
            f"{version(driver)}, and CuPy was built for CUDA {version(runtime.runtimeGetVersion())}; "
            "update the driver, or install 'minitl[cuda12]' instead of 'minitl[cuda13]'"
        )
    return (
        f"no cuda device: CUDA does not start ({message}); see minitl doctor, or use --device cpu"
    )


def version(number: int) -> str:
    """Return how people write a version number of CUDA: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def capability(number: int) -> tuple[int, int]:
    """Return the compute capability of a GPU, such as (9, 0)."""
    digits = str(cupy().cuda.Device(number).compute_capability)
    return int(digits[:-1]), int(digits[-1])


def architecture(number: int) -> str:
    """Return what kernels are compiled for on this GPU, such as "sm_90a"; UserError if it is too old."""
    compiler: Any = importlib.import_module("minitl.kernels.cuda.compiler")
    return str(compiler.architecture(capability(number)))


def check_precision(device: Device, precision: str) -> None:
    """Raise UserError for an unknown precision, and on the CPU for all but float32."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision cannot be {precision}; choose one of {', '.join(PRECISIONS)}")
    if device.kind == "cpu" and precision != "float32":
        raise UserError(
            f"--precision {precision} needs a GPU: give --device cuda as well, or leave it out (float32)"
        )


def dtype_of(precision: str) -> np.dtype:
    """Return the kind of numbers that a network is given with a precision: bfloat16 or float32."""
    return BFLOAT16 if precision == "bf16" else np.dtype(np.float32)


__all__ = [
    "CPU",
    "PRECISIONS",
    "Device",
    "architecture",
    "capability",
    "check_precision",
    "cupy",
    "dtype_of",
    "get_device",
    "gpu_count",
    "is_out_of_memory",
    "parse_device",
    "version",
]
