"""Starting: a quick import, and kernels that are compiled for one set of types only."""

import json
import subprocess
import sys

import pytest


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_minitl_takes_less_than_half_a_second():
    # Time of the processor, Python's own start included: other programs do not count.
    code = "import minitl, minitl.models, minitl.optim, time; print(time.process_time())"
    assert min(run(code) for _ in range(3)) < 0.5


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
