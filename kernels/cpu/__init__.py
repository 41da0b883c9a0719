"""CPU kernels. The names and signatures here are the backend interface: every backend has the same."""

from minitl.kernels.cpu.conv2d import conv2d_db, conv2d_dw, conv2d_dx, conv2d_forward

__all__ = ["conv2d_db", "conv2d_dw", "conv2d_dx", "conv2d_forward"]
