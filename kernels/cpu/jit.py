"""How CPU kernels are compiled: once, cached on disk, never stale, never unsafe in its arithmetic."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba.core import event

from minitl.backend import kernel_sources

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
            return compiler(
                parallel=parallel,
                nogil=True,
                cache=True,
                fastmath={"contract"},
                error_model="numpy",
                no_cfunc_wrapper=True,  # nothing calls kernels from C; a tenth of the time to compile
            )(function)
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
