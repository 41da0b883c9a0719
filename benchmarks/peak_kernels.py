"""Loops that do nothing but what they measure."""

from typing import Any

import numba
from llvmlite import ir
from numba import prange

from minitl.kernels.cpu.jit import kernel
from minitl.kernels.cpu.microkernel import F32, Emitter, host_lanes, make_intrinsic

SUMS = 12  # of vectors under way; two units times four cycles need at least eight
LANES = host_lanes() or 8
FLOPS_PER_STEP = 2 * SUMS * LANES


def threads() -> int:
    """Return how many threads Numba uses."""
    return numba.get_num_threads()


def _write_multiply_add(emit: Emitter, steps: ir.Value, target: ir.Value) -> None:
    """Multiply-add `steps` times on each of the sums; store their total, so that none is left out."""
    factor = emit.broadcast(emit.load(target, F32))

    def step(sums: list[ir.Value]) -> list[ir.Value]:
        return [emit.multiply_add(total, factor, factor) for total in sums]

    sums = emit.repeat_unrolled(steps, [emit.constant(i) for i in range(SUMS)], step)
    total = sums[0]
    for other in sums[1:]:
        total = emit.builder.fadd(total, other)
    emit.store(total, target)


_multiply_add = make_intrinsic({(8,): _write_multiply_add, (16,): _write_multiply_add})


@kernel()
def _multiply_add_thread(lanes: Any, steps: Any, address: Any) -> None:
    _multiply_add((lanes, steps, address))


@kernel(parallel=True)
def _multiply_add_threads(sums: Any, lanes: Any, steps: Any, count: Any) -> None:
    for thread in prange(count):
        sums[thread * 64] = 0.5
        _multiply_add_thread(lanes, steps, sums[thread * 64 :].ctypes.data)


def multiply_add(sums: Any, steps: int, count: int) -> None:
    """Run FLOPS_PER_STEP * steps operations in each of `count` threads; sums: 64 floats for each."""
    _multiply_add_threads(sums, LANES, steps, count)


@kernel(parallel=True)
def _copy_range(source: Any, target: Any, chunks: Any) -> None:
    for chunk in prange(chunks):
        first, last = source.size * chunk // chunks, source.size * (chunk + 1) // chunks
        target[first:last] = source[first:last]


def copy(source: Any, target: Any) -> None:
    """Copy an array on all threads."""
    _copy_range(source, target, 64)
