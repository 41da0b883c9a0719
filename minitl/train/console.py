"""What a run shows: a live bar in a terminal, plain lines in a log file.

Results go to standard output, progress to standard error, so that results can be piped on.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from minitl.device import CPU, Device

LOG_SECONDS = 10.0  # between progress lines where there is no terminal


def say(text: str = "") -> None:
    """Print a line without breaking a live bar; what the terminal's encoding lacks is spelled out."""
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


# How long kernels have been compiled, and how long they had been when that was first asked.
_compiling: dict[Callable[[], float], float] = {}


def compiled_seconds() -> float:
    """Return how long this process has compiled kernels: time that says nothing of what comes after."""
    return sum(seconds() - before for seconds, before in _compiling.items())


def announce_compilation(device: Device = CPU, training: bool = False) -> None:
    """Say so if kernels have to be compiled, which makes the first steps slow; count how long that takes."""
    seconds = device.kernels.compile_seconds
    _compiling.setdefault(seconds, seconds())
    kind = "CPU" if device.kind == "cpu" else "CUDA"
    text = f"  compiling {kind} kernels for this machine: once, up to half a minute ..."
    device.kernels.on_first_compile(lambda: tqdm.write(text, file=sys.stderr), training)


class Progress:
    """Progress over a known number of images or other units, with figures such as the loss beside it.

    unit: short for one of them. Its speed, and so the time left, is without what compiling kernels took.
    """

    def __init__(
        self, label: str, total: int, stream: TextIO | None = None, unit: str = "img"
    ) -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._stream = stream or sys.stderr
        self._started = self._last_line = time.monotonic()
        self._compiled_before = self._compiled = compiled_seconds()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                desc=label,
                unit=f" {unit}",
                leave=False,
                file=self._stream,
                dynamic_ncols=True,
            )

    def update(self, further: int, figures: str = "") -> None:
        """Count further ones as done; `figures` is shown behind the bar."""
        self._done += further
        compiled_now, compiled_then = compiled_seconds(), self._compiled
        self._compiled = compiled_now
        if self._bar is not None:
            self._bar.last_print_t += (
                compiled_now - compiled_then
            )  # from where it measures its speed
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(further)
            return
        now = time.monotonic()
        if now - self._last_line >= LOG_SECONDS and self._done < self._total:
            self._last_line = now
            rate = self._done / (now - self._started - (compiled_now - self._compiled_before))
            left = (self._total - self._done) / rate
            unit = self._unit
            print(
                f"{self._label}: {self._done}/{self._total} {unit}  {figures}  {rate:.1f} {unit}/s  "
                f"{duration(left)} left",
                file=self._stream,
                flush=True,
            )

    def update_to(self, done: int) -> None:
        """Say how many are done in all."""
        self.update(done - self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Write a time as 8 s, 2:05 min or 1:02:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"
