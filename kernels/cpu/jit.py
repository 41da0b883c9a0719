"""How CPU kernels are compiled: once, cached on disk, never stale, never unsafe in its arithmetic."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

import numba
import platformdirs
from numba.core import event

from minitl.backend import kernel_sources

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

config: Any = (
    numba.config
)  # its settings come into being at run time, which type checkers cannot see

# OpenMP starts a parallel loop in about 2 us. Numba's own order would prefer TBB.
if config.THREADING_LAYER_PRIORITY == ["tbb", "omp", "workqueue"]:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


EVERY_WIDTH = bool(os.environ.get("MINITL_EVERY_WIDTH"))  # see microkernel.py


@cache
def cache_folder() -> Path:
    """Return where compiled kernels are kept: one folder for each state of the kernel sources.

    Numba's own cache looks only at the file of the function it compiles; an edited helper in another
    file would go unnoticed.
    """
    state = f"{numba.__version__} {EVERY_WIDTH} {kernel_sources('cpu')}"
    digest = hashlib.sha256(state.encode())
    return platformdirs.user_cache_path("minitl") / f"kernels-cpu-{digest.hexdigest()[:16]}"


def most_threads() -> int:
    """Return a number above every `get_thread_id`, for memory that each thread has a part of."""
    return int(config.NUMBA_NUM_THREADS)


# Seconds to wait for another process to compile a kernel, which takes it some seconds: should it have been
# stopped, this one compiles as well.
PATIENCE = 120.0
_locked: set[Path] = set()  # by this process; kernels made by one function have one name


class _SharedCache:
    """Numba's cache on disk; but of several processes that need a kernel one compiles it, and others wait.

    A kernel is locked before those that it calls, by every process: no two wait for each other.
    """

    def __init__(self, dispatcher: Any) -> None:
        function = dispatcher.py_func
        self._dispatcher, self._disk = dispatcher, dispatcher._cache
        # Beside what it locks: Numba keeps apart what was compiled of copies of the sources elsewhere.
        name = f"{function.__module__}.{function.__qualname__}.lock"
        self._file = Path(self._disk.cache_path) / name
        self._lock: IO[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what else Numba asks its cache for."""
        return getattr(self._disk, name)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel if it is on disk; None if not, and no other process compiles it meanwhile."""
        found = self._disk.load_overload(sig, target_context)
        if found is None and self._lock is None:  # it is held still where compiling was interrupted
            self._acquire()
            found = self._disk.load_overload(sig, target_context)
        if found is not None:
            self._release()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Put the kernel on disk, for others to find."""
        try:
            self._disk.save_overload(sig, data)
        finally:
            self._release()

    def _acquire(self) -> None:
        """Lock the kernel, unless files cannot be locked here or nobody gives it back."""
        if fcntl is None or self._file in _locked:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock = self._file.open("ab")
            if not _try_to_lock(lock):
                # For whoever measures or announces compiling: that is what is waited for.
                with event.trigger_event("numba:compile", data={"dispatcher": self._dispatcher}):
                    end = time.monotonic() + PATIENCE
                    while not _try_to_lock(lock):
                        if time.monotonic() > end:
                            return
                        time.sleep(0.05)
        except OSError:
            return
        self._lock = lock
        _locked.add(self._file)

    def _release(self) -> None:
        if self._lock is not None:
            # Closing alone would leave it to a process that was forked meanwhile.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None
            _locked.discard(self._file)


def _try_to_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # by another process; any other OSError: not on this disk
        return False
    return True


def kernel(*, parallel: bool = False) -> Callable[[Callable], Any]:
    """Compile a function on its first call, without the GIL, and keep the machine code on disk.

    `contract` lets a*b+c become one fused instruction; sums are never reordered, so a result does not
    depend on how a compiler felt about a loop.
    """

    def decorate(function: Callable) -> Any:
        # Numba reads CACHE_DIR when it decorates; other users of Numba keep their own setting.
        before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
        try:
            compiler: Any = numba.njit  # its types do not know all of its options
            dispatcher = compiler(
                parallel=parallel,
                nogil=True,
                cache=True,
                fastmath={"contract"},
                error_model="numpy",
                no_cfunc_wrapper=True,  # nothing calls kernels from C; a tenth of the time to compile
            )(function)
            dispatcher._cache = _SharedCache(dispatcher)
            return dispatcher
        finally:
            config.CACHE_DIR = before

    return decorate


class _Stopwatch(event.Listener):
    """Adds up how long our kernels are compiled; one compiles those that it calls, which count once."""

    def __init__(self) -> None:
        self.seconds, self._under_way, self._started = 0.0, 0, 0.0

    def on_start(self, compilation: Any) -> None:
        if _is_ours(compilation):
            if not self._under_way:
                self._started = time.perf_counter()
            self._under_way += 1

    def on_end(self, compilation: Any) -> None:
        if _is_ours(compilation):
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.perf_counter() - self._started


def _is_ours(compilation: Any) -> bool:
    name: str = compilation.data["dispatcher"].py_func.__module__
    return name.startswith("minitl.")


def _listen(listener: event.Listener) -> None:
    register: Any = event.register  # it carries no types
    register("numba:compile", listener)


_stopwatch = _Stopwatch()
_listen(_stopwatch)


def compile_seconds() -> float:
    """Return how long this process has compiled kernels so far, those that are read from disk left out."""
    return _stopwatch.seconds


class _Announcer(event.Listener):
    """Says once that kernels are compiled, and begins to compile backward beside them."""

    def __init__(self) -> None:
        self.announce: Callable[[], None] | None = None
        self.training = False
        self.beside: subprocess.Popen[bytes] | None = None  # kept, for its end to be noticed

    def on_start(self, compilation: Any) -> None:
        if self.announce is None or not _is_ours(compilation):
            return
        announce, self.announce = self.announce, None
        announce()
        if self.training:
            from minitl.kernels.cpu import compile_backward

            self.beside = compile_backward.start()

    def on_end(self, compilation: Any) -> None:
        pass


_announcer = _Announcer()
_listen(_announcer)


def on_first_compile(announce: Callable[[], None], training: bool = False) -> None:
    """Call `announce` once, as soon as a kernel has to be compiled because no cache holds it.

    An earlier call that nothing had to be compiled for is forgotten: what it would announce is over.

    training: whether backward will be needed; that is then compiled at the same time in another process.
    """
    _announcer.announce, _announcer.training = announce, training
