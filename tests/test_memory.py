"""Reused memory: handed out again when free, and never while somebody still looks at it."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from minitl.kernels.cpu import memory

LARGE = (3, memory.SMALLEST // 4)  # float32: three times the smallest size that is kept


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.release()
    yield
    memory.release()


def address(array):
    return array.__array_interface__["data"][0]


def test_freed_memory_is_handed_out_again_for_the_same_number_of_bytes():
    a = memory.empty(LARGE, np.float32)
    place = address(a)
    del a
    b = memory.empty((LARGE[1], LARGE[0]), np.float32)
    assert address(b) == place
    del b
    assert address(memory.empty((LARGE[0], LARGE[1] // 2), np.float64)) == place


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


def test_release_forgets_what_is_free():
    del_me = memory.empty(LARGE, np.float32)
    del del_me
    assert memory._free
    memory.release()
    assert not memory._free


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


def test_arrays_that_live_until_the_end_make_no_noise():
    code = (
        "from minitl.kernels.cpu import memory\n"
        "a = memory.empty((1 << 20,), 'f4'); memory.keep = a[3:]; print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("done", "")
