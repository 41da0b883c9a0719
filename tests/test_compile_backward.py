"""What a second process compiles is what a training's backward asks for, no less."""

import subprocess
import sys

from minitl.kernels.cpu import compile_backward, jit

# The kernels that a process has in memory, compiled there or read from the disk: those called from Python,
# which are the parallel ones. What these call is part of them.
LIST = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
import minitl
from minitl import models, ops, optim
from minitl.kernels import cpu
from minitl.kernels.cpu import compile_backward

def compiled():
    return {
        f"{name}.{attribute} {signature}"
        for name, module in list(sys.modules.items()) if name.startswith("minitl.kernels.cpu.")
        for attribute, value in vars(module).items()
        if isinstance(value, Dispatcher) and value.targetoptions.get("parallel")
        for signature in value.signatures
    }
"""
TRAINING = """
model = models.create("resnet50", num_classes=3, seed=0)
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), dtype=np.float32)
loss = ops.softmax_cross_entropy(model(minitl.tensor(images)), np.arange(2))
before = compiled()
loss.backward()
optimizer.step()
print("\\n".join(compiled() - before))
"""


def listed(code):
    done = subprocess.run(
        [sys.executable, "-c", LIST + code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


def test_it_compiles_all_that_backward_needs():
    needed = listed(TRAINING)
    assert any("conv2d_dw" in line or "_sum_tiles" in line for line in needed)
    lacking = needed - listed("compile_backward.main()\nprint('\\n'.join(compiled()))")
    assert not lacking


def test_it_begins_once_with_the_first_kernel_of_the_latest_training(monkeypatch):
    started, said = [], []
    monkeypatch.setattr(compile_backward, "start", lambda: started.append(1))
    dispatcher = jit.kernel()(lambda x: x)
    dispatcher.py_func.__module__ = "minitl.kernels.cpu.example"

    def compile_two():
        for _ in range(2):
            with jit.event.trigger_event("numba:compile", data={"dispatcher": dispatcher}):
                pass

    jit.on_first_compile(lambda: said.append(1), training=True)  # a run that finds its kernels
    jit.on_first_compile(lambda: said.append(2), training=True)
    compile_two()
    assert (said, started) == ([2], [1])
    jit.on_first_compile(lambda: said.append(3), training=False)
    compile_two()
    assert (said, started) == ([2, 3], [1])


def test_it_ends_by_itself_whatever_the_present_folder_holds(tmp_path, monkeypatch):
    (tmp_path / "minitl").mkdir()
    (tmp_path / "minitl" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    process = compile_backward.start()
    if process is not None:  # None on a single core
        assert process.wait(300) == 0


def test_a_machine_that_cannot_start_it_goes_on_without(monkeypatch):
    monkeypatch.setattr(compile_backward.sys, "executable", "/nowhere/python")
    assert compile_backward.start() is None
