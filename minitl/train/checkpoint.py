"""When a run's state is written, and what of an epoch under way belongs to it."""

import dataclasses
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from minitl.errors import UserError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclasses.dataclass
class Partial:
    """An epoch that is under way: what its steps said so far.

    Losses are kept one by one, so that their mean is the same to the bit whether or not the epoch was
    interrupted. seconds: how long it took so far.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    correct: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of finished steps."""
        return len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as numbers and lists."""
        return dataclasses.asdict(self)


class SavingTimer:
    """Says after which steps to save: every N steps ("200"), or when some time has passed ("5m", "30s")."""

    def __init__(self, every: str) -> None:
        self._steps, self._seconds = parse_interval(every)
        self._saved = time.monotonic()

    def due(self, steps: int) -> bool:
        """Whether to save after so many steps of the epoch; whoever is told so does it."""
        if self._steps is not None:
            return steps % self._steps == 0
        if time.monotonic() - self._saved < self._seconds:
            return False
        self._saved = time.monotonic()
        return True


class Writer:
    """Does what a run has to write, one job after another.

    beside: in a thread of its own, while a GPU takes the next steps: with few pictures, an epoch may be over
        before digests and disks are. On the CPU the thread would only take a core from the steps.
    """

    def __init__(self, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "minitl-writer") if beside else None
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Do the job, or begin it as soon as the one before is done; raise what that one raised."""
        self.finish()
        if self._thread is None:
            job()
        else:
            self._job = self._thread.submit(job)

    def finish(self) -> None:
        """Wait until all is written; raise what writing it raised."""
        if self._job is not None:
            error = (
                self._job.exception()
            )  # where this is interrupted, the job is still there to wait for
            self._job = None
            if error is not None:
                raise error


def parse_interval(text: str) -> tuple[int | None, float]:
    """Return (steps, 0) for "200" and (None, seconds) for "5m"; UserError for what is neither."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]) or (not match[2] and "." in match[1]):
        raise UserError(
            f"--save-every cannot be {text}; give a number of steps such as 200, or a time such as 5m or 30s"
        )
    if match[2]:
        return None, float(match[1]) * _UNITS[match[2]]
    return int(match[1]), 0.0


__all__ = ["Partial", "SavingTimer", "Writer", "parse_interval"]
