"""The GPU's own time for a call, without Python's: calls are recorded in a CUDA graph and replayed.

Each contender gets calls on several sets of arrays, together larger than the card's cache, so that a call
never finds its input where the one before left it. Replays are timed by events and taken by turns.
"""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Calls = Sequence[Callable[[], Any]]
Replay = Callable[[], float]

CALLS = 4  # at least, in a graph


def sets_needed(bytes_of_a_call: float, cache_bytes: float) -> int:
    """Return how many sets of arrays keep a call from finding its own data in the cache."""
    return max(1, min(32, 1 + int(2 * cache_bytes / max(bytes_of_a_call, 1))))


def record_minitl(calls: Calls) -> Replay:
    """Record calls of our launchers; return what replays them and says the milliseconds of one."""
    import cupy

    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    calls = [*calls] * -(-CALLS // len(calls))
    with stream, cupy.cuda.using_allocator(pool.malloc):
        results = [call() for call in calls]  # compiles, and fills the pool: recording cannot
        stream.synchronize()
        del results
        stream.begin_capture()
        try:
            results = [call() for call in calls]
        except BaseException:
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        graph = stream.end_capture()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()

    def replay() -> float:
        kept = results, pool  # the graph works on their memory
        with stream:
            start.record(stream)
            graph.launch(stream)
            end.record(stream)
        end.synchronize()
        del kept
        return float(cupy.cuda.get_elapsed_time(start, end)) / len(calls)

    return replay


def record_torch(calls: Calls) -> Replay:
    """Record PyTorch's calls in the same way."""
    import torch

    calls = [*calls] * -(-CALLS // len(calls))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # the first measures cuDNN's algorithms
            for call in calls:
                call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = [call() for call in calls]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        kept = results
        with torch.cuda.stream(stream):
            start.record(stream)
            graph.replay()
            end.record(stream)
        end.synchronize()
        del kept
        return float(start.elapsed_time(end)) / len(calls)

    return replay


def by_turns(replays: Mapping[str, Replay], rounds: int = 9) -> dict[str, float]:
    """Return the median milliseconds of each, taken by turns."""
    for replay in replays.values():
        replay()
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, replay in replays.items():
            times[name].append(replay())
    return {name: statistics.median(values) for name, values in times.items()}
