"""What machine this is and what it can do at most: multiply-adds and copies, both measured."""

import ctypes
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("numpy", "numba", "llvmlite", "torch", "cupy-cuda13x", "cupy-cuda12x")


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, versions and the state of the checkout."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _cpu_name() -> str:
    """Return what /proc/cpuinfo calls the processor, with family, model and the widest vectors."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = found.get("flags", "").split()
    vectors = next((v for v in ("avx512f", "avx2") if v in flags), "no AVX2")
    name = found.get("model name", platform.processor() or platform.machine())
    return (
        f"{name}, family {found.get('cpu family', '?')} model {found.get('model', '?')}, {vectors}"
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the short name of the commit, with a plus sign if files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def measure_peaks(*, quick: bool = False) -> dict[str, float]:
    """Return the best that simple loops reach here, on all cores.

    gflops: float32 multiply-adds on registers, two operations each. gbytes: bytes read and written while
    copying arrays of 64 MB, the size of the larger activations. Arrays that fit into a nearer cache can
    do better than that.
    """
    from benchmarks import peak_kernels

    rounds = 5 if quick else 15
    threads = peak_kernels.threads()
    steps = 1 << 20
    flops = steps * peak_kernels.FLOPS_PER_STEP * threads
    sums = np.empty(threads * 64, np.float32)
    fma = _best(lambda: peak_kernels.multiply_add(sums, steps, threads), rounds)

    source = np.ones(1 << 24, np.float32)
    target = np.ones_like(source)
    copy = _best(lambda: peak_kernels.copy(source, target), rounds)
    return {"gflops": flops / fma / 1e9, "gbytes": 2 * source.nbytes / copy / 1e9}


def _best(function: Any, rounds: int) -> float:
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def roof(flops: float, bytes_moved: float, peaks: dict[str, float]) -> float:
    """Return the least time in ms that a machine with these peaks needs."""
    return max(flops / peaks["gflops"], bytes_moved / peaks["gbytes"]) / 1e6


def median(values: Sequence[float]) -> float:
    """Return the median, NaN for no values."""
    return statistics.median(values) if values else math.nan


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a share of the median."""
    low, high = np.percentile(values, [25, 75])
    return float((high - low) / median(values))


# What PyTorch's users do about page faults: the C library keeps large blocks instead of giving them back to
# the system. It reads this variable when a process starts.
TUNED_MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
    ":glibc.malloc.top_pad=67108864"
}


def malloc_is_tuned() -> bool:
    """Whether this process was started with `TUNED_MALLOC`."""
    return os.environ.get("GLIBC_TUNABLES") == TUNED_MALLOC["GLIBC_TUNABLES"]


def is_glibc() -> bool:
    """Whether the C library is the one that understands `TUNED_MALLOC`."""
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
