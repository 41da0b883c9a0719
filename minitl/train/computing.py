"""Where a command computes: the checks and settings before its first kernel."""

from minitl.device import Device, check_precision, get_device
from minitl.train.console import announce_compilation


def prepare_device(
    name: str | Device, precision: str, threads: int | None, *, training: bool = False
) -> Device:
    """Return the device of this name, ready: kernels announce compilation and use so many threads.

    threads: None for one on each core. training: whether backward is to be compiled beside the rest.
    Raises UserError for a device or precision that cannot be used.
    """
    device = get_device(name)
    check_precision(device, precision)
    device.kernels.set_threads(threads)
    announce_compilation(device, training)
    return device


__all__ = ["prepare_device"]
