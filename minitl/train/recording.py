"""A training step, or a forward pass, as a CUDA graph: launched as one, instead of kernel by kernel.

The first steps of a shape run as code. They compile what is needed and fill a memory pool that belongs to
the step alone; the next one is run once more as code, but only recorded, with all its memory from that
pool, whose addresses the graph keeps. Inputs are copied to where the recorded step reads them, and
numbers that change (see minitl/changing_numbers.py) are written to device memory before each launch.

Both ways run the same kernels with the same values, so they give the same bits. Where a step cannot be
recorded, for lack of memory or whatever the driver objects to, it stays code; whoever takes steps says so
and tries again (`Recorder.stay_with_code`).
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minitl.backend import Array, assign, copied
from minitl.changing_numbers import held_in
from minitl.device import cupy, is_out_of_memory
from minitl.train.batches import pinned_like
from minitl.train.console import say

EAGER = 3  # steps before the recorded one
RING = 4  # steps whose numbers may be on their way to the device at once
PLACE = 8  # bytes for a number
MOST_PLACES = 4096
MOST_LETTERS = 200  # of an error's text that are shown
NO_MEMORY = "the GPU's memory does not hold a recorded step"

# What comes out of each part of a batch, such as (loss, logits)
Outputs = list[tuple[Array, ...]]
Inputs = tuple[Array, ...]
Compute = Callable[..., Outputs]


class Recorder:
    """Takes steps on a GPU: as code at first, then as a graph.

    compute: one whole step for these inputs: all that it launches, and nothing that waits.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._key: Hashable = None
        self._size = 0
        self._driver = _Driver()
        self._pool = cupy().cuda.MemoryPool(self._driver.allocate)
        self._limit = self._pool.get_limit()  # $CUPY_GPU_MEMORY_LIMIT
        self.forget()

    def forget(self, record_again: bool = True) -> None:
        """Drop the recorded step and give its memory back; start again, or stay with code."""
        if self._key is not None:  # a step may be under way on this memory
            cupy().cuda.get_current_stream().synchronize()
        self._eager_left = EAGER
        self._step: _Recorded | None = None
        self._pool.free_all_blocks()
        self._pool.set_limit(self._limit)
        self._driver.recording = False
        self.allowed = record_again

    def problem(self, error: Exception) -> str | None:
        """Say why `step` could not record, if that is what the error is about.

        The text is for `stay_with_code`, to be called when nobody holds the error any more: by its traceback
        it holds the arrays of the failed attempt.
        """
        if not self._driver.recording:
            return None
        if is_out_of_memory(error):
            return NO_MEMORY
        lines = str(error).strip().splitlines() or [""]
        return f"a step cannot be recorded ({type(error).__name__}: {lines[0][:MOST_LETTERS]})"

    def stay_with_code(self, problem: str) -> None:
        """Say what the problem is, and record no more."""
        say(f"  {problem}; steps are launched one by one")
        self.forget(record_again=False)

    @property
    def recorded(self) -> bool:
        """Whether there is a recorded step."""
        return self._step is not None

    def replays(self, key: Hashable) -> bool:
        """Whether a step with this key would be the recorded one."""
        return self._step is not None and key == self._key

    def step(self, key: Hashable, *inputs: Array) -> Outputs:
        """Take a step. key: all that tells two recordings apart. inputs: of one picture each row.

        The one that is recorded is that of the largest batch; others run as code. What comes out may lie in
        the recorder's own memory, which ends with it.
        """
        size = len(inputs[0])
        if size > self._size or (size == self._size and key != self._key):
            self.forget(self.allowed)
            self._key, self._size = key, size
        if key != self._key or not self.allowed:
            return self._run(inputs)
        if self._step is not None:
            return self._step.replay(inputs)
        if self._eager_left:
            self._eager_left -= 1
            with cupy().cuda.using_allocator(self._pool.malloc):
                outputs = self._run(inputs)
            self._shapes = [[(a.shape, a.dtype) for a in part] for part in outputs]
            return outputs
        self._driver.recording = True
        # At a limit the pool would give back what the graph already has addresses of.
        self._pool.set_limit(0)
        self._step = _Recorded(self._compute, inputs, self._pool, self._shapes)
        self._driver.recording = False
        return self._step.first

    def _run(self, inputs: Inputs) -> Outputs:
        with held_in(_Fresh()):
            return self._compute(*inputs)


class _Driver:
    """Where the pool gets memory from."""

    def __init__(self) -> None:
        self.recording = False

    def allocate(self, size: int) -> Any:
        """Return new memory.

        Where there is none, the pool gives back what is unused and asks again. While a step is recorded
        that must not be, as the graph has addresses of what the step used before; so it gets another error.
        What the usual pool keeps unused is asked for first: each pool knows only its own.
        """
        memory = cupy().cuda.memory
        try:
            return memory.MemoryPointer(memory.Memory(size), 0)
        except cupy().cuda.runtime.CUDARuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.recording:
                raise memory.OutOfMemoryError(size, -1) from error
        cupy().get_default_memory_pool().free_all_blocks()
        return memory.MemoryPointer(memory.Memory(size), 0)


class _Fresh:
    """Places for the numbers of a step that runs as code: new ones."""

    def place(self, find: Callable[[], Any], dtype: DTypeLike) -> Array:
        return cupy().asarray(np.array([find()], dtype))


class _Recorded:
    """One recorded step. It is taken for the first time when it is made: `first` is what came out."""

    def __init__(
        self, compute: Compute, inputs: Inputs, pool: Any, shapes: list[list[Any]]
    ) -> None:
        self._pool = pool  # the graph works on its memory
        self._shapes = shapes
        self._inputs = tuple(copied(array) for array in inputs)
        self._numbers = _Numbers()
        self.first = self._room()
        stream = cupy().cuda.get_current_stream()
        with (
            cupy().cuda.using_allocator(pool.malloc),
            held_in(self._numbers),
            _capture(stream) as captured,
        ):
            self._outputs = compute(*self._inputs)
        self._graph = captured[0]
        self._launch(self.first)

    def replay(self, inputs: Inputs) -> Outputs:
        """Take the step with other inputs and the numbers of now."""
        outputs = self._room()  # first, as it is all that can fail for lack of memory
        for read, given in zip(self._inputs, inputs, strict=True):
            assign(read, given)
        self._numbers.find_again()
        self._launch(outputs)
        return outputs

    def _room(self) -> Outputs:
        """Return arrays that outputs can be copied to, as the next launch overwrites them."""
        return [tuple(cupy().empty(*array) for array in part) for part in self._shapes]

    def _launch(self, outputs: Outputs) -> None:
        self._numbers.send()
        self._graph.launch(cupy().cuda.get_current_stream())
        for copies, arrays in zip(outputs, self._outputs, strict=True):
            for copy, array in zip(copies, arrays, strict=True):
                assign(copy, array)


@contextlib.contextmanager
def _capture(stream: Any) -> Iterator[list[Any]]:
    """Record what is launched in the block; the graph is the list's only element afterwards."""
    captured: list[Any] = []
    stream.begin_capture()
    try:
        yield captured
    except BaseException:
        with contextlib.suppress(Exception):
            stream.end_capture()
        raise
    captured.append(stream.end_capture())


class _Numbers:
    """Places for the numbers of a recorded step, written again before each launch."""

    def __init__(self) -> None:
        self._finders: list[tuple[Callable[[], Any], np.dtype]] = []
        self._device = cupy().zeros(MOST_PLACES * PLACE, np.uint8)
        self._host = np.zeros(MOST_PLACES * PLACE, np.uint8)
        self._ring = [pinned_like(self._host) for _ in range(RING)]
        self._sent: list[Any] = [None] * RING  # events: a part of the ring may be written again
        self._next = 0

    def place(self, find: Callable[[], Any], dtype: DTypeLike) -> Array:
        number = len(self._finders)
        if number == MOST_PLACES:
            raise RuntimeError(f"a step with more than {MOST_PLACES} changing numbers")
        self._finders.append((find, np.dtype(dtype)))
        self._write(number)
        return self._part(self._device, number)

    def find_again(self) -> None:
        """Find all numbers for the next step."""
        for number in range(len(self._finders)):
            self._write(number)

    def send(self) -> None:
        """Copy the numbers to the device, in the current stream's order."""
        stream = cupy().cuda.get_current_stream()
        if self._sent[self._next] is not None:
            self._sent[self._next].synchronize()
        size = len(self._finders) * PLACE
        pinned = self._ring[self._next][:size]
        pinned[:] = self._host[:size]
        self._device[:size].set(pinned, stream=stream)
        self._sent[self._next] = stream.record()
        self._next = (self._next + 1) % RING

    def _write(self, number: int) -> None:
        self._part(self._host, number)[0] = self._finders[number][0]()

    def _part(self, memory: Array, number: int) -> Array:
        dtype = self._finders[number][1]
        return memory[number * PLACE : number * PLACE + dtype.itemsize].view(dtype)


__all__ = ["NO_MEMORY", "Outputs", "Recorder"]
