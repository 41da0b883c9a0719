"""Time by turns: A B C A B C ..., so that whatever else the machine does falls on all alike."""

import gc
import time
from collections.abc import Callable, Mapping

# OpenMP threads keep a core busy for some 15 ms after their last work, in case more comes. Each contender
# has such threads of its own, so the others' must fall asleep before it is timed.
PAUSE = 0.025
SAMPLE = 0.005  # seconds that one sample lasts at least


def by_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    samples: int = 11,
    least_samples: int = 5,
    budget: float = 4.0,
    pause: float = PAUSE,
) -> dict[str, list[float]]:
    """Return seconds per call, `samples` of each contender, taken by turns.

    Each sample is a pause, calls that are not timed, and as many calls as last SAMPLE seconds. After
    `budget` seconds, `least_samples` are enough.
    """
    repeats = {}
    for name, function in contenders.items():
        function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, round(SAMPLE / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in range(samples):
            if number >= least_samples and time.perf_counter() - began > budget:
                break
            for name, function in contenders.items():
                time.sleep(pause)
                function()  # wakes its threads, and brings its data into the caches
                count = repeats[name]
                start = time.perf_counter()
                for _ in range(count):
                    function()
                times[name].append((time.perf_counter() - start) / count)
    finally:
        if collects:
            gc.enable()
    return times
