"""As much of CuPy as the project uses, on the CPU; kernels run by way of host_module.py.

    with install() as gpu:
        x = gpu.cupy.asarray(host)      # or minitl's own .to("cuda"): `import cupy` gives the fake as well
        ...
        assert gpu.synchronisations == []

What CuPy refuses is refused: host arrays where device arrays belong, a silent conversion to NumPy,
synchronising or copying from ordinary memory while a graph is captured. What CuPy would compute with
kernels of its own (arithmetic, comparisons, casts, but also fills with anything but zero, `copy()`, and
copies of arrays whose first axis has one element) is refused as well: results are to come from ours, and
nothing is to wait for CuPy's compiler. Only arrays that are not in C order may be copied by it.
Unknown names raise AttributeError. Memory is reused as CuPy's pool reuses it, and is full of NaNs when it
is handed out.

A captured graph holds launches, copies and fills with the arguments they had, on the memory they had,
and does them when it is launched; capturing does nothing else. With `late=True` streams work behind the
caller's back, as late as they may: what nobody waited for is not there yet.

With `strict=False` NumPy's arrays are computed by the CUDA kernels too, for tests written for the CPU.
"""

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from tests.cuda_on_cpu.host_module import ALIGNMENT, KERNELS, HostModule, device_offset

UNIT = 512  # CuPy's pool hands out multiples of this many bytes


class CUDARuntimeError(RuntimeError):
    """What the CUDA run time reports."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        so_far = f" (allocated so far: {total:,} bytes)." if total != -1 else ""
        if limit:
            so_far = f" (allocated so far: {total:,} bytes, limit set to: {limit:,} bytes)."
        super().__init__(f"Out of memory allocating {size:,} bytes{so_far}")


@dataclass
class Gpu:
    """The pretended machine: its settings, its state, and a record for tests to look at."""

    mode: str = "check"
    strict: bool = True
    late: bool = False
    order: int = 0
    seed: int = 0
    async_late: int = 1
    memory: int = 1 << 33
    count: int = 1
    compute_capability: str = "90"
    cupy: Any = None
    allocated: int = 0
    synchronisations: list[str] = field(default_factory=list)
    launches: list[tuple[str, tuple, tuple]] = field(default_factory=list)  # name, grid, block
    streams: list["Stream"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.modules: dict[tuple, HostModule] = {}
        self.null = Stream._make_null(self)
        self._of_thread = threading.local()
        self.lock = threading.RLock()
        self.pool = MemoryPool()
        self.allocator: Callable[[int], MemoryPointer] = self.pool.malloc
        self.pinned_pool = PinnedMemoryPool()

    @property
    def current(self) -> list["Stream"]:
        """The streams that the current thread has entered, the innermost last."""
        if not hasattr(self._of_thread, "streams"):
            self._of_thread.streams = [self.null]
        return self._of_thread.streams

    def issue(self, work: Callable[[], None], *arrays: Any, stream: "Stream | None" = None) -> None:
        """Do `work`, which uses these arrays, on a stream: now, later, or in each launch of a graph."""
        with self.lock:
            (stream or self.current[-1])._issue(work, [a._memory for a in arrays if _is_device(a)])

    def synchronise(self, what: str, *streams: "Stream") -> None:
        """Record that the host waits, and let the streams finish."""
        if any(s.is_capturing() for s in streams):
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} during a capture")
        with self.lock:
            self.synchronisations.append(what)
            for stream in streams:
                stream._finish()


_gpus: list[Gpu] = []


def _gpu() -> Gpu:
    if not _gpus:
        raise CUDARuntimeError("the fake CuPy is used outside of `with install()`")
    return _gpus[-1]


# ------------------------------------------------------------------------------------------- memory


class _Block:
    """A piece of device memory."""

    stream = 0  # that it belongs to, in a pool

    def __init__(self, size: int) -> None:
        raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)  # NaN for whoever does not wait
        start = -raw.ctypes.data % ALIGNMENT
        # Not a view of `raw` to the eye: offsets in it are offsets in a device allocation.
        self.bytes = np.frombuffer(memoryview(raw)[start : start + size], np.uint8)
        self.size, self.returned = size, False


class Memory:
    """Memory straight from the driver."""

    def __init__(self, size: int) -> None:
        if _gpu().allocated + size > _gpu().memory:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        _gpu().allocated += size
        self._block = _Block(size)


class MemoryPointer:
    """An allocation; if it is a pool's, its memory goes back there when nobody holds it any more.

    As in CuPy it does not hold the pool: with that all its memory goes back to the driver, used or not.
    """

    _pool: "Callable[[], MemoryPool | None]" = staticmethod(lambda: None)

    def __init__(self, mem: Memory, offset: int) -> None:
        assert offset == 0
        self._block = mem._block

    @property
    def ptr(self) -> int:
        return self._block.bytes.ctypes.data

    def copy_from_device_async(
        self, src: "MemoryPointer", size: int, stream: "Stream | None" = None
    ) -> None:
        into, source = self._bytes(size), src._bytes(size)  # a graph must not keep their memory
        with _gpu().lock:
            (stream or _gpu().current[-1])._issue(
                lambda: np.copyto(into, source), [self._owner(), src._owner()]
            )

    def _bytes(self, size: int) -> np.ndarray:
        return self._block.bytes[:size]

    def _owner(self) -> "MemoryPointer":
        return self

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool._free(self._block)


class _Place(MemoryPointer):
    """Where an array begins in an allocation."""

    def __init__(self, array: np.ndarray, memory: MemoryPointer) -> None:
        self._array, self._memory, self._block = array, memory, memory._block

    @property
    def ptr(self) -> int:
        return self._array.ctypes.data

    def _bytes(self, size: int) -> np.ndarray:
        start = self.ptr - self._block.bytes.ctypes.data
        return self._block.bytes[start : start + size]

    def _owner(self) -> MemoryPointer:
        return self._memory


class MemoryPool:
    """Keeps freed blocks for the next allocation of their size on their stream, until free_all_blocks.

    Nobody waits until the work on a freed block is done: what comes next on its stream comes later.
    """

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._from_driver = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._unused: dict[tuple[int, int], list[_Block]] = {}  # by stream and size
        self._total, self._used, self._limit = 0, 0, 0
        self._blocks: set[_Block] = set()
        self._gpu = _gpu() if allocator else None  # of the usual pool all ends together

    def __del__(self) -> None:
        for block in self._blocks:
            block.returned = True
        if self._gpu is not None:
            self._gpu.allocated -= self._total

    def malloc(self, size: int) -> MemoryPointer:
        size = max(UNIT, -(-size // UNIT) * UNIT)
        stream = _gpu().current[-1].ptr
        if not self._unused.get((stream, size)):
            self._grow(stream, size)
        self._used += size
        pointer = object.__new__(MemoryPointer)
        pointer._block, pointer._pool = self._unused[stream, size].pop(), weakref.ref(self)
        return pointer

    def _grow(self, stream: int, size: int) -> None:
        """Get a block from the driver; if it or the limit refuses, after giving back whatever is unused."""
        if self._limit and self._total + size > self._limit:
            self.free_all_blocks()
            if self._total + size > self._limit:
                raise OutOfMemoryError(size, self._total, self._limit)
        try:
            pointer = self._from_driver(size)
        except CUDARuntimeError:
            self.free_all_blocks()
            try:
                pointer = self._from_driver(size)
            except CUDARuntimeError:
                raise OutOfMemoryError(size, self._total, self._limit) from None
        pointer._block.stream = stream
        self._blocks.add(pointer._block)
        self._unused.setdefault((stream, size), []).append(pointer._block)
        self._total += size

    def _free(self, block: _Block) -> None:
        self._used -= block.size
        self._unused.setdefault((block.stream, block.size), []).append(block)

    def free_all_blocks(self, stream: Any = None) -> None:
        for blocks in self._unused.values():
            for block in blocks:
                block.returned = True
                self._blocks.remove(block)
                self._total -= block.size
                _gpu().allocated -= block.size
        self._unused.clear()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size if size is not None else int((fraction or 0) * _gpu().memory)

    def get_limit(self) -> int:
        return self._limit

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def n_free_blocks(self) -> int:
        return sum(len(blocks) for blocks in self._unused.values())


class PinnedMemoryPointer(bytearray):
    """Host memory that a GPU may copy from and to by itself."""


class PinnedMemoryPool:
    """Pinned memory; nothing of it is kept here."""

    def malloc(self, size: int) -> PinnedMemoryPointer:
        return PinnedMemoryPointer(size)

    def free_all_blocks(self) -> None:
        pass

    def n_free_blocks(self) -> int:
        return 0


def _is_pinned(array: np.ndarray) -> bool:
    owner: Any = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, PinnedMemoryPointer)


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    return _gpu().pinned_pool.malloc(size)


def get_default_memory_pool() -> MemoryPool:
    return _gpu().pool


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return _gpu().pinned_pool


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    _gpu().allocator = allocator or _gpu().pool.malloc


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = _gpu().allocator
    set_allocator(allocator)
    try:
        yield
    finally:
        set_allocator(before)


# ------------------------------------------------------------------------------------------- arrays


def _refuse(*_: Any, **__: Any) -> Any:
    raise TypeError(
        "this would be computed by CuPy's own kernels; the project's arrays are computed by ours"
    )


class ndarray:
    """A device array: what is in it can only be copied, or given to kernels."""

    _array: np.ndarray
    _memory: MemoryPointer

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("make device arrays with empty, zeros or asarray")

    def _view(self, array: np.ndarray) -> "ndarray":
        return _wrap(array, self._memory)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    @property
    def itemsize(self) -> int:
        return self._array.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self._array.strides

    @property
    def flags(self) -> Any:
        return self._array.flags

    @property
    def data(self) -> MemoryPointer:
        return _Place(self._array, self._memory)

    @property
    def device(self) -> "Device":
        return Device(0)

    @property
    def T(self) -> "ndarray":
        return self._view(self._array.T)

    def __len__(self) -> int:
        return len(self._array)

    def __repr__(self) -> str:
        return f"device array of shape {self.shape}, {self.dtype}"

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> "ndarray":
        view = self._array.reshape(*shape)
        if not np.shares_memory(view, self._array) and self.size:
            _refuse()
        return self._view(view)

    def ravel(self, order: str = "C") -> "ndarray":
        return self.reshape(-1)

    def transpose(self, *axes: Any) -> "ndarray":
        return self._view(self._array.transpose(*axes))

    def view(self, dtype: Any = None, type: Any = None) -> "ndarray":
        return self._view(self._array.view(dtype) if dtype is not None else self._array.view())

    def __getitem__(self, key: Any) -> "ndarray":
        for part in key if isinstance(key, tuple) else (key,):
            if not isinstance(part, int | slice | type(None) | type(Ellipsis)):
                _refuse()
        view = self._array[key]
        if not isinstance(view, np.ndarray):  # NumPy makes a number of it, CuPy a view
            view = self._array[(*(key if isinstance(key, tuple) else (key,)), ...)]
        return self._view(view)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")  # CuPy's words
        target = self[key]
        if isinstance(value, ndarray):
            into, source = target._array, value._array  # a graph must not keep their memory
            np.broadcast_to(source, target.shape)
            # CuPy drops leading axes of one element, and then these are two shapes for it.
            first = next((i for i, n in enumerate(value.shape) if n != 1), value.ndim)
            in_order = target.flags.c_contiguous and value.flags.c_contiguous
            if value.dtype != target.dtype or (in_order and value.shape[first:] != target.shape):
                _refuse()

            def copy() -> None:
                into[...] = source

            _gpu().issue(copy, target, value)
        else:
            target.fill(value)

    def fill(self, value: Any) -> None:
        array, value = self._array, self.dtype.type(value)
        if value != 0 or not self.flags.c_contiguous:
            _refuse()
        _gpu().issue(lambda: array.fill(value), self)

    def copy(self, order: str = "C") -> "ndarray":
        return _refuse()  # type: ignore[no-any-return]

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        stream = stream or _gpu().current[-1]
        if stream.is_capturing():
            raise RuntimeError(  # CuPy's words
                "the current stream is capturing, so D2H transfers are disallowed"
            )
        out = np.empty(self.shape, self.dtype) if out is None else out
        array = self._array
        _gpu().issue(lambda: np.copyto(out, array, casting="no"), self, stream=stream)
        if blocking:
            _gpu().synchronise("ndarray.get", stream)
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if type(arr) is not np.ndarray or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"set() needs a NumPy array of shape {self.shape}, {self.dtype}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        _copy_from_host(self, arr, stream or _gpu().current[-1])

    def item(self) -> Any:
        return self.get().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(  # CuPy's words
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    __array_ufunc__ = __array_function__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def _wrap(array: np.ndarray, memory: MemoryPointer) -> ndarray:
    wrapped = object.__new__(ndarray)
    wrapped._array, wrapped._memory = array, memory
    return wrapped


def _is_device(array: Any) -> bool:
    return isinstance(array, ndarray)


def _copy_from_host(target: ndarray, source: np.ndarray, stream: "Stream") -> None:
    if stream.is_capturing():
        raise RuntimeError(  # CuPy's words
            "the current stream is capturing, so H2D transfers are disallowed"
        )
    if not _is_pinned(source):
        source = source.copy()  # it goes to pinned memory at once
    array = target._array
    _gpu().issue(lambda: np.copyto(array, source, casting="no"), target, stream=stream)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not _gpu().strict:
        return np.frombuffer(np.full(nbytes, 0xFF, np.uint8), dtype).reshape(shape)
    memory = _gpu().allocator(nbytes)
    block = memory._block.bytes
    new = _wrap(block[:nbytes].view(dtype).reshape(shape), memory)
    _gpu().issue(
        lambda: block.fill(0xFF), new
    )  # in the stream's order: work on it may be under way
    return new


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    new = empty(shape, dtype)
    new.fill(0)
    return new


def empty_like(prototype: Any, dtype: Any = None) -> Any:
    return empty(prototype.shape, dtype or prototype.dtype)


def zeros_like(a: Any, dtype: Any = None) -> Any:
    return zeros(a.shape, dtype or a.dtype)


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> Any:
    if not _gpu().strict:
        return np.asarray(a, dtype)
    if isinstance(a, ndarray):
        if dtype is not None and np.dtype(dtype) != a.dtype:
            _refuse()
        return ascontiguousarray(a) if order == "C" else a
    source = np.asarray(a, dtype)
    if not source.ndim:
        new = empty((), source.dtype)
        new.fill(source)
        return new
    if order is None and source.flags.fnc:  # CuPy keeps the order of columns before rows
        return asarray(source.T).T
    source = np.ascontiguousarray(source)
    new = empty(source.shape, source.dtype)
    stream = _gpu().current[-1]
    # CuPy hands pinned sources to the copy engine as they are; here as there they must not change yet.
    _copy_from_host(new, source, stream)
    if blocking:
        _gpu().synchronise("asarray", stream)
    return new


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    return np.asarray(a, order="C")


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    if isinstance(a, np.ndarray):
        return np.ascontiguousarray(a, dtype)
    if dtype is not None and np.dtype(dtype) != a.dtype:
        _refuse()
    if a.flags.c_contiguous:
        return a
    new = empty(a.shape, a.dtype)
    new[...] = a
    return new


# --------------------------------------------------------------------------- streams, events, graphs


class Graph:
    """What was captured. It does not keep the memory that it works on."""

    def __init__(self, work: list[tuple[Callable[[], None], list[_Block]]]) -> None:
        self._work = work

    def launch(self, stream: Any = None) -> None:
        def replay() -> None:
            for work, blocks in self._work:
                if any(block.returned for block in blocks):
                    raise CUDARuntimeError(
                        "cudaErrorIllegalAddress: a graph uses memory that was given back to the driver"
                    )
                work()

        _gpu().issue(replay, stream=stream)


class Stream:
    """A queue of work. As in CUDA, only what goes through one, or through events, is in order."""

    null: "Stream"

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self.is_non_blocking = non_blocking
        self._queue: list[Callable[[], None]] = []
        self._issued = self._finished = 0
        self._captured: list[tuple[Callable[[], None], list[_Block]]] | None = None
        self.ptr = id(self)
        if not null:
            _gpu().streams.append(self)

    @staticmethod
    def _make_null(gpu: Gpu) -> "Stream":
        stream = Stream(null=True)
        stream.ptr = 0
        gpu.streams.append(stream)
        return stream

    def _issue(self, work: Callable[[], None], memories: Sequence[MemoryPointer]) -> None:
        gpu = _gpu()
        if self._captured is not None:
            self._captured.append((work, [memory._block for memory in memories]))
            return
        if any(memory._block.returned for memory in memories):
            raise CUDARuntimeError(
                "cudaErrorIllegalAddress: an array's memory was given back to the driver with its pool"
            )
        self._wait_for_others()
        self._issued += 1
        self._queue.append(work)
        if not gpu.late:
            self._finish()

    def _wait_for_others(self) -> None:
        """The null stream and blocking ones wait for each other."""
        if self.is_non_blocking:
            return
        gpu = _gpu()
        for other in gpu.streams:
            if other is self or other.is_non_blocking or (self.ptr and other.ptr):
                continue
            if other.is_capturing():
                raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: capture a non-blocking one")
            other._finish()

    def _finish(self, upto: int | None = None) -> None:
        upto = self._issued if upto is None else upto
        while self._queue and self._finished < upto:
            self._finished += 1
            self._queue.pop(0)()

    def synchronize(self) -> None:
        _gpu().synchronise("Stream.synchronize", self)

    @property
    def done(self) -> bool:
        return not self._queue

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        stream, position = event._stream, event._position
        if stream is None:
            return
        if self.is_capturing() and stream is not self:
            raise CUDARuntimeError("cudaErrorStreamCaptureIsolation: an event from outside")
        if stream is not self:
            self._issue(lambda: stream._finish(position), [])

    def begin_capture(self, mode: int | None = None) -> None:
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is being captured already")
        self._captured = []

    def end_capture(self) -> Graph:
        if self._captured is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not being captured")
        graph, self._captured = Graph(self._captured), None
        return graph

    def is_capturing(self) -> bool:
        return self._captured is not None

    def use(self) -> "Stream":
        _gpu().current[-1] = self
        return self

    def __enter__(self) -> "Stream":
        _gpu().current.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _gpu().current.pop()


class Event:
    """A place in a stream."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self._stream: Stream | None = None
        self._position = 0
        self._time = 0.0
        self._captured = False

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or _gpu().current[-1]
        self._captured = self._stream.is_capturing()
        self._position = self._stream._issued
        self._time = time.perf_counter()

    def _refuse_captured(self) -> None:
        if self._captured:  # it is a place in a graph, not in a stream
            raise CUDARuntimeError("cudaErrorCapturedEvent: operation not permitted on an event")

    @property
    def done(self) -> bool:
        self._refuse_captured()
        return self._stream is None or self._stream._finished >= self._position

    def synchronize(self) -> None:
        self._refuse_captured()
        _gpu().synchronise("Event.synchronize")
        if self._stream is not None:
            with _gpu().lock:
                self._stream._finish(self._position)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    if not (start_event.done and end_event.done):
        raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return 1e3 * (end_event._time - start_event._time)


def get_current_stream(device_id: int = -1) -> Stream:
    return _gpu().current[-1]


# ------------------------------------------------------------------------------ devices, the run time


class Device:
    """A GPU by its number."""

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)
        if not 0 <= self.id < _gpu().count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    @property
    def compute_capability(self) -> str:
        return _gpu().compute_capability

    def use(self) -> "Device":
        return self

    def synchronize(self) -> None:
        _gpu().synchronise("Device.synchronize", *_gpu().streams)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def getDeviceCount() -> int:
    if not _gpu().count:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return _gpu().count


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


def getDeviceProperties(device: int) -> dict[str, Any]:
    return {"name": b"pretended GPU", "totalGlobalMem": _gpu().memory, "multiProcessorCount": 132}


# ------------------------------------------------------------------------------------------ launching


class _Kernel:
    """As CuPy's RawKernel."""

    def __init__(self, module: HostModule, name: str) -> None:
        self._host = module.get_function(name)
        self.name = name

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._host.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self._host.max_dynamic_shared_size_bytes = size

    def __call__(
        self, grid: tuple, block: tuple, args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        gpu = _gpu()
        for i, arg in enumerate(args):
            if isinstance(arg, np.ndarray) and gpu.strict:
                raise TypeError(f"{self.name}: argument {i} is a host array")
        host = [arg._array if isinstance(arg, ndarray) else arg for arg in args]
        if not gpu.strict:
            # NumPy computes numbers, where CuPy has arrays without axes.
            for i, parameter in enumerate(self._host.parameters):
                if "p" in parameter and isinstance(host[i], np.floating):
                    host[i] = np.asarray(host[i])
        options = {"order": gpu.order, "seed": gpu.seed, "async_late": gpu.async_late}

        def work() -> None:
            gpu.launches.append((self.name, grid, block))
            self._host(grid, block, host, shared_mem, **options)

        gpu.issue(work, *args)


class _Module:
    def __init__(self, module: HostModule) -> None:
        self._module = module

    def get_function(self, name: str) -> _Kernel:
        return _Kernel(self._module, name)


def load_module(stem: str, defines: dict[str, Any]) -> _Module:
    """In place of minitl.kernels.cuda.runtime.load_module."""
    gpu = _gpu()
    flags = tuple(f"{name}={value}" for name, value in sorted(defines.items()))
    if (stem, flags) not in gpu.modules:
        gpu.modules[stem, flags] = HostModule(KERNELS / f"{stem}.cu", gpu.mode, flags)
    return _Module(gpu.modules[stem, flags])


def launch_numba(name: str, grid: tuple, block: tuple, args: Sequence[Any]) -> None:
    """In place of minitl.kernels.cuda.runtime.launch_numba: one thread after another, as plain Python.

    Enough for kernels whose threads have nothing to do with each other.
    """
    from minitl.kernels.cuda import avgpool_kernels

    gpu = _gpu()
    host = [arg._array if isinstance(arg, ndarray) else arg for arg in args]
    place = SimpleNamespace(blockDim=_index(block), gridDim=_index(grid))
    function = getattr(avgpool_kernels, name).py_func
    kernel = FunctionType(function.__code__, function.__globals__ | {"cuda": place})

    def work() -> None:
        gpu.launches.append((name, grid, block))
        for place.blockIdx in _indices(grid):
            for place.threadIdx in _indices(block):
                kernel(*host)

    gpu.issue(work, *args)


def _index(sizes: tuple) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip("xyz", sizes, strict=False)))


def _indices(sizes: tuple) -> Iterator[SimpleNamespace]:
    return (_index(at[::-1]) for at in np.ndindex(sizes[::-1]))  # x runs fastest


def address(x: Any) -> int:
    """In place of minitl.kernels.cuda.runtime.address, where host arrays pass for device arrays."""
    return x.data.ptr if isinstance(x, ndarray) else device_offset(x)


# ----------------------------------------------------------------------------------------- installing

NAMES: dict[str, dict[str, Any]] = {
    "cupy": {
        f.__name__: f
        for f in (
            ndarray, empty, zeros, empty_like, zeros_like, asarray, asnumpy, ascontiguousarray,
            get_default_memory_pool, get_default_pinned_memory_pool,
        )
    },
    "cupy.cuda": {
        f.__name__: f
        for f in (
            Stream, Event, Graph, Device, MemoryPool, MemoryPointer, PinnedMemoryPool,
            PinnedMemoryPointer, alloc_pinned_memory, set_allocator, using_allocator,
            get_elapsed_time, get_current_stream,
        )
    },
    "cupy.cuda.memory": {
        f.__name__: f for f in (OutOfMemoryError, Memory, MemoryPool, MemoryPointer)
    },
    "cupy.cuda.runtime": {
        f.__name__: f
        for f in (
            CUDARuntimeError, getDeviceCount, driverGetVersion, runtimeGetVersion,
            getDeviceProperties,
        )
    },
}  # fmt: skip


def _namespaces() -> dict[str, ModuleType]:
    modules = {}
    for name, members in NAMES.items():
        modules[name] = ModuleType(name, "The fake of tests/cuda_on_cpu.")
        vars(modules[name]).update(members)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, modules[name])
    return modules


@contextlib.contextmanager
def _imported(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Put these modules in place, and only these: others that are imported meanwhile must stay."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def install(**settings: Any) -> Iterator[Gpu]:
    """Put the fake in place of CuPy, and the CPU in place of a GPU; settings: the first fields of Gpu."""
    from minitl import backend
    from minitl.kernels import cuda
    from minitl.kernels.cuda import runtime, warpgroups

    modules = _namespaces()
    gpu = Gpu(cupy=modules["cupy"], **settings)
    Stream.null = gpu.null
    _gpus.append(gpu)
    try:
        with (
            _imported(modules),
            mock.patch.object(warpgroups, "verdict", lambda device: warpgroups.PASSED),
            mock.patch.multiple(
                runtime, load_module=load_module, launch_numba=launch_numba, address=address
            ),
            contextlib.nullcontext()
            if gpu.strict
            else mock.patch.object(backend, "kernel_module", lambda device: cuda),
        ):
            yield gpu
    finally:
        _gpus.remove(gpu)
