"""Whether matrix products of bfloat16 are left to warpgroups (wgmma): on cards of compute capability 9.0.

An instruction of four warps finds its operands by bit fields that tell how they lie in shared memory. Nobody
but the hardware can say that it reads these as the twin on the CPU does. So before the first product on a
machine a process of its own computes some by warpgroups and some by single warps (warpgroup_trial.py): an
error there, even one that leaves the GPU's context unusable, costs nothing but speed. A verdict is kept
beside the compiled kernels, by their sources, the card and its driver. A trial that came to none, perhaps
because other programs filled the card, is made again after a day.
"""

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from minitl.kernels.cuda import compiler, runtime

SECONDS = 300  # for a trial: it starts CuPy and compiles nine kernels
LATER = 24 * 3600  # seconds after which one that came to no end is made again
PASSED, DIFFER = "passed", "they differ in "


def capable(device: int) -> bool:
    """Return whether the card has these instructions."""
    return str(runtime.cupy().cuda.Device(device).compute_capability) == "90"


_decided: bool | None = None


@contextlib.contextmanager
def decided(used: bool) -> Iterator[None]:
    """Within the block use them on a card that has them, tried or not; or do without.

    For trials and comparisons.
    """
    global _decided
    before, _decided = _decided, used
    try:
        yield
    finally:
        _decided = before


def usable() -> bool:
    """Return whether the current device's products of bfloat16 are computed by warpgroups."""
    device = runtime.cupy().cuda.Device().id
    return capable(device) and (_passed(device) if _decided is None else _decided)


@cache
def _passed(device: int) -> bool:
    found = verdict(device)
    if found != PASSED:
        print(
            f"cuda:{device}: products by warpgroups are not used, those of single warps are, which are "
            f"right but slower: {found} (to try again, delete {_verdict_file(device)})",
            file=sys.stderr,
        )
    return found == PASSED


def verdict(device: int) -> str:
    """Return PASSED, or in words what went wrong with this card's warpgroups; try them if nobody has yet."""
    path = _verdict_file(device)
    if path.exists():
        known = path.read_text().strip()
        if _is_of_the_card(known) or time.time() - path.stat().st_mtime < LATER:
            return known
    found = _try(device)
    compiler.write(path, found.encode())
    return found


def _is_of_the_card(verdict: str) -> bool:
    """Return whether the trial ran to its end."""
    return verdict == PASSED or verdict.startswith(DIFFER)


def _verdict_file(device: int) -> Path:
    module = runtime.cupy().cuda.runtime
    card = module.getDeviceProperties(device)["name"], module.driverGetVersion()
    key = hashlib.sha256(f"{card} {compiler.version()} {compiler.sources_digest()}".encode())
    return compiler.cache_folder() / f"warpgroups-{key.hexdigest()[:24]}.txt"


def _try(device: int) -> str:
    """Run the trial in another process; return its verdict."""
    command = [sys.executable, "-m", "minitl.kernels.cuda.warpgroup_trial", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"their trial did not end within {SECONDS} seconds"
    except OSError as error:
        return f"their trial did not start: {error}"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else f"their trial ended with status {done.returncode}"
