"""Starting: a quick import, and kernels that are compiled for one set of types only."""

import errno
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from minitl.kernels.cpu import jit

fcntl = pytest.importorskip("fcntl")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_minitl_takes_no_longer_than_importing_numpy():
    # Time of the processor: other programs do not count. Beside NumPy's: nor does a slow machine.
    clock = "from time import process_time as t; a = t(); import numpy; b = t()"
    code = f"{clock}; import minitl, minitl.models, minitl.optim; print([b - a, t() - b])"
    numpy, minitl = (min(seconds) for seconds in zip(*(run(code) for _ in range(5)), strict=True))
    assert minitl < numpy


COMPILED = """
import json, sys
import numpy as np
import minitl
from minitl import models, ops, optim
from numba.core.dispatcher import Dispatcher

model = models.create(ARCH, num_classes=5)
optimizer = optim.SGD(model.parameters(), 0.01, 0.9)
for batch, size in ((2, 64), (3, 96)):
    model.train()
    loss = ops.softmax_cross_entropy(
        model(minitl.tensor(np.ones((batch, size, size, 3), np.float32))), np.arange(batch)
    )
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    with minitl.no_grad():
        model.eval()(minitl.tensor(np.ones((batch, size, size, 3), np.float32)))

found = {}
for name, module in list(sys.modules.items()):
    if name.startswith("minitl.kernels."):
        for key, value in vars(module).items():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == name:
                found[f"{name}.{key}"] = len(value.overloads)
print(json.dumps(found))
"""


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_no_kernel_is_compiled_again_for_another_batch_or_size(arch):
    found = run(COMPILED.replace("ARCH", repr(arch)))
    assert sum(found.values()) > 10
    # Two at most: an index of a parallel loop is unsigned, that of another loop is not.
    assert {name: count for name, count in found.items() if count > 2} == {}


def double(x):
    return 2 * x


@pytest.fixture
def doubling(tmp_path, monkeypatch):
    """A kernel that no process has compiled yet, and the file that locks it, opened as by another process."""
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    kernel = jit.kernel()(double)
    with kernel._cache._file.open("ab") as file:
        yield kernel, file


def test_several_processes_compile_a_kernel_once(tmp_path):
    code = """
import sys
import numpy as np
from minitl.kernels.cpu.elementwise import _relu
x = np.array([-1, 2], np.float32)
sys.stdin.read(1)
_relu(x, np.float32(0), x)
assert x.tolist() == [0, 2]
print(sum(_relu.stats.cache_misses.values()))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    compiled = [int(process.communicate(timeout=300)[0]) for process in processes]
    assert sorted(compiled) == [0, 0, 1]


def test_a_lock_that_nobody_gives_back_costs_time_and_nothing_else(doubling, monkeypatch):
    kernel, file = doubling
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(jit, "PATIENCE", 0.3)
    start = time.monotonic()
    assert kernel(3.0) == 6
    assert time.monotonic() - start > 0.3


def test_a_disk_on_which_files_cannot_be_locked_costs_no_time(doubling, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(jit.fcntl, "flock", flock)
    monkeypatch.setattr(jit, "PATIENCE", math.inf)
    assert doubling[0](3) == 6


def test_a_lock_is_given_back_once_the_kernel_is_on_disk(doubling):
    kernel, file = doubling
    assert kernel(np.float32(3)) == 6
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list(kernel._cache._file.parent.glob("*.nbc"))


def test_who_waits_for_a_kernel_is_said_to_compile(doubling, monkeypatch):
    kernel, file = doubling
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(jit, "PATIENCE", 0.3)
    monkeypatch.setattr(jit, "_is_ours", lambda compilation: True)
    before = jit.compile_seconds()
    kernel(3)
    assert jit.compile_seconds() - before > 0.3
