"""How long each part of a run takes, for its report."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from minitl.train.console import compiled_seconds

COMPILING = "compiling kernels"


class Clock:
    """Adds up seconds by the name of what was done; a resumed run goes on from the sums so far.

    What compiling kernels took, on whatever occasion, has its own name.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add what the block takes, also where it fails."""
        started, before = time.perf_counter(), compiled_seconds()
        try:
            yield
        finally:
            compiled = compiled_seconds() - before
            self.add(name, time.perf_counter() - started - compiled)
            if compiled:
                self.add(COMPILING, compiled)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


__all__ = ["Clock"]
