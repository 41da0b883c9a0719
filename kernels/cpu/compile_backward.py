"""Compile in a process of its own what backward needs, while another compiles what forward needs.

    python -m minitl.kernels.cpu.compile_backward

On a machine that has compiled nothing yet, a first training step waits for all kernels, most of that time for
Numba, which compiles one at a time in a process. Two processes halve the wait: `start` begins this one
beside a training, and what it compiles the training later finds on disk. Whatever goes wrong here costs
time there, and nothing else.
"""

import subprocess
import sys

import numpy as np

from minitl.kernels import cpu
from minitl.kernels.cpu.jit import most_threads
from minitl.shapes import padding2d

PICTURES = 32  # so many that 3x3 with stride 1 goes by Winograd's algorithm, and a sum by threads


def start() -> "subprocess.Popen[bytes] | None":
    """Begin compiling in another process; return it, or None where there is no core for it."""
    if most_threads() < 2:
        return None
    nothing = subprocess.DEVNULL
    command = [
        sys.executable,
        "-P",
        "-m",
        __name__,
    ]  # -P: not what a user has in the present folder
    try:
        return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    except OSError:
        return None


def main() -> None:
    """Call the kernels on a few small arrays; those first that the backward of a ResNet needs last.

    So a training that is through with forward goes on from the other end, and they meet.
    """
    channels = np.ones(16)
    pixels = np.ones((PICTURES, 8, 8, 16), np.float32)
    few = np.ones((PICTURES, 16, 16, 3), np.float32)
    in_training = pixels, channels, channels, channels
    flat = np.ones(16, np.float32)
    cpu.sgd_step(flat, flat, flat, 0.1, 0.9, 0.0, False, True)
    cpu.conv2d_dw(pixels, few, (16, 7, 7, 3), (2, 2), padding2d(3), (1, 1), 1)
    for size, stride in ((1, 2), (1, 1), (3, 2), (3, 1)):
        dy = np.ones((PICTURES, 8 // stride, 8 // stride, 16), np.float32)
        weight = np.ones((16, size, size, 16), np.float32)
        geometry = (stride, stride), padding2d(size // 2), (1, 1), 1
        cpu.conv2d_dw(dy, pixels, weight.shape, *geometry)
        cpu.conv2d_dx(dy, weight, pixels.shape, *geometry)
    window = (3, 3), (2, 2), padding2d(1)
    pooled, index, _ = cpu.batchnorm_relu_maxpool_forward(pixels, channels, channels, *window)
    cpu.batchnorm_relu_maxpool_dx(pooled, index, pixels.shape, *in_training, *window)
    cpu.add_forward(pixels, pixels)
    for y, keep_dz in ((None, False), (pixels, True), (pixels, False)):
        cpu.batchnorm_reduce(pixels, y, pixels, channels, channels, keep_dz)
        cpu.batchnorm_dx(pixels, y, *in_training)


if __name__ == "__main__":
    main()
