"""Reused memory: handed out again when free, and never while somebody still looks at it."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl.kernels.cpu import memory

LARGE = (3, memory.SMALLEST // 4)  # float32: three times the smallest size that is kept


@pytest.fixture(autouse=True)
def arena(monkeypatch):
    """Give each test an arena of its own."""
    arena = memory._Arena()
    monkeypatch.setattr(memory, "_arena", arena)
    return arena


def address(array):
    return array.__array_interface__["data"][0]


def test_freed_memory_is_handed_out_again_for_any_size():
    a = memory.empty(LARGE, np.float32)
    place = address(a)
    del a
    for shape, dtype in (
        (LARGE, np.float32),
        ((LARGE[0], LARGE[1] // 2), np.float64),
        ((memory.SMALLEST,), np.uint8),
        ((2 * LARGE[1],), np.float32),
    ):
        b = memory.empty(shape, dtype)
        assert address(b) == place
        del b


def test_neighbours_that_are_free_become_one_piece(arena):
    arrays = [memory.empty(LARGE, np.float32) for _ in range(4)]
    place = address(arrays[0])
    for i in (1, 3, 0, 2):
        arrays[i] = None
    assert address(memory.empty((4 * LARGE[0], LARGE[1]), np.float32)) == place
    arena.release()
    assert arena.held() == 0


def test_the_smallest_piece_that_is_large_enough_is_taken():
    sizes = (6, 9, 3)
    arrays, walls = [], []
    for size in sizes:
        arrays.append(memory.empty((size, LARGE[1]), np.float32))
        walls.append(memory.empty(LARGE, np.float32))
    places = {size: address(a) for size, a in zip(sizes, arrays, strict=True)}
    del arrays
    assert address(memory.empty((5, LARGE[1]), np.float32)) == places[6]
    assert address(memory.empty((3, LARGE[1]), np.float32)) == places[3]
    assert address(memory.empty((7, LARGE[1]), np.float32)) == places[9]


def test_a_view_keeps_the_memory_from_being_handed_out():
    a = memory.empty(LARGE, np.float32)
    a[...] = 7
    row = a[1]
    del a
    b = memory.zeros(LARGE, np.float32)
    assert not np.shares_memory(row, b)
    assert (row == 7).all()


def test_arrays_are_ordinary():
    a = memory.empty(LARGE, np.float32)
    assert type(a) is np.ndarray
    assert a.flags.c_contiguous
    assert a.flags.writeable
    assert a.flags.aligned
    assert (a.shape, a.dtype) == (LARGE, np.float32)
    assert not memory.zeros(LARGE, np.float64).any()
    assert memory.empty((0, 3), np.float32).shape == (0, 3)
    assert memory.empty((), np.float64).shape == ()
    for size in (memory.LINE, memory.SMALLEST - 1, memory.SMALLEST + 1):
        assert address(memory.empty((size,), np.uint8)) % memory.LINE == 0


def test_release_gives_back_what_is_free_and_nothing_else(arena):
    kept = memory.empty(LARGE, np.float32)
    kept[...] = 5
    large = memory.empty((memory.REGION + 1,), np.uint8)
    del large
    assert arena.held() > 2 * memory.REGION
    memory.release()
    assert arena.held() == memory.REGION
    assert (kept == 5).all()
    del kept
    memory.release()
    assert arena.held() == 0
    assert not (arena._free or arena._ends or arena._by_size or arena._used)


def test_what_was_not_needed_for_a_while_is_given_back(arena):
    many = [memory.empty((memory.REGION,), np.uint8) for _ in range(6)]
    small = memory.empty(LARGE, np.float32)
    del many
    for _ in range(2 * memory.WINDOW):
        memory.empty(LARGE, np.float32)
    assert arena.held() == memory.REGION
    assert small.shape == LARGE


def test_what_is_needed_in_every_step_stays(arena):
    for _ in range(3):
        many = [memory.empty((memory.REGION,), np.uint8) for _ in range(6)]
        del many
        held = arena.held()
        for _ in range(memory.WINDOW // 2):
            memory.empty(LARGE, np.float32)
        assert arena.held() == held


def test_many_batch_sizes_need_the_memory_of_the_largest(arena):
    def step(batch):
        maps = [memory.empty((batch, 56, 56, c), np.float32) for c in (64, 128, 256, 64, 128)]
        while maps:
            gradient = memory.empty(maps[-1].shape, np.float32)
            del gradient
            maps.pop()

    for batch in range(6, 40):
        step(batch)
    risen = arena.held()
    arena.release()
    step(40)
    held = arena.held()
    for batch in range(39, 5, -1):
        step(batch)
    assert arena.held() == held
    assert risen <= 2 * held


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 9)), max_size=60))
def test_pieces_never_overlap_and_nothing_is_lost(requests):
    arena = memory._Arena()
    live = []
    for pages, choice in requests:
        size = pages * (memory.REGION >> 6)
        live.append((arena.take(size), size))
        if choice < 5 and live:
            arena.returned.append(live.pop(choice % len(live)))
        ends = sorted((a, a + s) for a, s in live)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    arena.returned.extend(live)
    arena.release()
    assert (arena.held(), arena._used) == (0, 0)
    assert not (arena._free or arena._ends or arena._by_size)


def test_threads_never_get_the_same_memory():
    faults = []

    def work(k):
        for _ in range(200):
            a = memory.empty(LARGE, np.float32)
            a[:, ::4096] = k
            b = memory.empty(LARGE, np.float32)
            b[:, ::4096] = -1
            if not (a[:, ::4096] == k).all():
                faults.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_failed_request_leaves_the_arena_whole(arena):
    with pytest.raises(MemoryError):
        memory.empty((1 << 60,), np.uint8)
    assert memory.empty(LARGE, np.float32).shape == LARGE
    arena.release()
    assert arena.held() == 0


def test_arrays_that_live_until_the_end_make_no_noise():
    code = (
        "from minitl.kernels.cpu import memory\n"
        "a = memory.empty((1 << 20,), 'f4'); memory.keep = a[3:]; print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("done", "")


# After one warm step: page faults of each of three more, and the growth of resident memory over steps
# of many different batch sizes below the largest.
STEPS = """
import resource, sys
import numpy as np
import minitl
from minitl import models, ops, optim
from minitl.kernels.cpu import memory

def usage():
    return resource.getrusage(resource.RUSAGE_SELF)

model = models.resnet18(num_classes=10)
optimizer = optim.SGD(model.parameters(), 0.01, 0.9)

def step(batch):
    images = np.zeros((batch, 96, 96, 3), np.float32)
    loss = ops.softmax_cross_entropy(model(minitl.tensor(images)), np.arange(batch) % 10)
    loss.backward(); optimizer.step(); optimizer.zero_grad()

step(8)
step(8)
before = usage().ru_minflt
for _ in range(3):
    step(8)
print((usage().ru_minflt - before) // 3)
before = usage().ru_maxrss
for batch in range(7, 1, -1):
    step(batch)
print(usage().ru_maxrss - before)
print(memory._arena.held(), memory._arena._peak)
"""


def test_steps_after_the_first_take_no_new_memory():
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    faults, growth, held, needed = map(int, done.stdout.split())
    assert faults < 500  # of 4 kB; the activations alone would be some 20,000
    assert held <= 1.25 * needed + memory.REGION
    assert growth < 30_000  # kB; a batch less by one, kept apart, would be some 10,000 each time
