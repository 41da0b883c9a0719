"""From a GPU to the CPU in the middle of a computation, and back for the gradient.

x: any shape, on a GPU      result: the same numbers on the CPU, bfloat16 as float32
"""

import numpy as np

from minitl.backend import BFLOAT16, Array, is_on_gpu, like, narrow, widen
from minitl.backend import to_host as host_copy
from minitl.tensor import Op, Tensor


class ToHost(Op):
    """The identity."""

    saves = ("x",)

    def forward(self, x: Array) -> Array:
        """Compute y: wait for the GPU and copy."""
        self.x = x  # says the device and the numbers that its gradient has
        host = host_copy(x)
        return widen(host) if x.dtype == BFLOAT16 else host

    # y = x, so dx = dY, in the numbers of x.
    def backward(self, dy: np.ndarray) -> tuple[Array | None, ...]:
        """Compute dx."""
        return (like(self.x, narrow(dy) if self.x.dtype == BFLOAT16 else dy),)


def to_host(x: Tensor) -> Tensor:
    """Return a tensor on the CPU; what is computed from it there has gradients on x's device.

    x: any shape; one that is on the CPU already is returned as it is. Waits for the GPU, so it is for small
    results that are computed with in ways that no kernel has.
    """
    return ToHost.apply(x) if is_on_gpu(x.data) else x
