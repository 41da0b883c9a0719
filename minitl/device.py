"""Devices by name: "cpu", "cuda" (the first GPU), "cuda:1"; and what keeps a GPU from being used."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minitl.backend import Array, kernel_module, to_host
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
            return cupy().asarray(array)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute on this device within the block: on a GPU, on a stream of its own.

        What is queued there is finished when the block ends without an error.
        """
        if self.kind == "cpu":
            yield
            return
        with cupy().cuda.Device(self.number):
            stream = cupy().cuda.Stream(non_blocking=True)
            with stream:
                yield
                stream.synchronize()


def cupy() -> Any:
    """Return the module cupy; UserError, naming the extra to install, where it is missing."""
    return importlib.import_module("minitl.kernels.cuda.runtime").cupy()


CPU = Device("cpu")


def get_device(name: str | Device) -> Device:
    """Return the device of this name, after checking that it can be used.

    Raises UserError for another name, without CuPy, a driver or a card of that number, and for a card
    that is too old.
    """
    if isinstance(name, Device):
        return name
    if name == "cpu":
        return CPU
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"there is no device {name!r}; choose cpu, cuda or cuda:N with N from 0")
    number = int(match[1] or 0)
    count = gpu_count()
    if number >= count:
        there = (
            "is 1 GPU, cuda:0" if count == 1 else f"are {count} GPUs, cuda:0 to cuda:{count - 1}"
        )
        raise UserError(f"there is no {name}: there {there}; choose one of these, or cpu")
    architecture(number)
    return Device("cuda", number)


def gpu_count() -> int:
    """Return the number of GPUs; UserError where there is none or CuPy or the driver is missing."""
    runtime = cupy().cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise UserError(_no_driver(runtime, str(error))) from None
    if not count:
        raise UserError("there is no GPU that CUDA can use; use --device cpu")
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
            f"the NVIDIA driver is too old: it supports CUDA {version(driver)}, CuPy was built for "
            f"CUDA {version(runtime.runtimeGetVersion())}; update the driver or install 'minitl[cuda12]'"
        )
    return f"CUDA does not start: {message}; use --device cpu, or see minitl doctor"


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


def set_precision(device: Device, precision: str) -> None:
    """Say how a device multiplies from now on: "float32", "tf32" or "bf16".

    With "bf16" it is the inputs that decide: give pictures in bfloat16, and everything flows in it.
    Raises UserError for an unknown word, and on the CPU for all but float32.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision cannot be {precision}; choose one of {', '.join(PRECISIONS)}")
    if device.kind == "cpu" and precision != "float32":
        raise UserError(
            f"--precision {precision} needs a GPU; on the CPU leave it out (float32), or give --device cuda"
        )
    device.kernels.set_precision("tf32" if precision == "tf32" else "float32")


__all__ = [
    "CPU",
    "PRECISIONS",
    "Device",
    "architecture",
    "capability",
    "cupy",
    "get_device",
    "gpu_count",
    "set_precision",
    "version",
]
