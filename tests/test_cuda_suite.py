"""The tests of operations, layers, optimizers and networks once more, computed by the CUDA backend.

Launchers and kernels are the real ones; the kernels run on the CPU (see cuda_on_cpu/plugin.py, which also
lists what is left out). Two processes share the files.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_on_cpu import host_module

pytest.importorskip("cuda.bindings.nvrtc")
pytestmark = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)

ROOT = Path(__file__).parent.parent
SHARES = (
    ("conv2d", "conv2d_batchnorm", "losses", "optim", "pool", "tensor"),
    ("models", "nn", "linear", "elementwise", "batchnorm", "batchnorm_relu_maxpool"),
)


def start(names):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_on_cpu.plugin"),
            *("-p", "no:cacheprovider", *(f"tests/test_{name}.py" for name in names)),
        ],
        cwd=ROOT,
        env=os.environ | {"HYPOTHESIS_PROFILE": "brief", "NUMBA_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_cuda_backend_passes_the_tests_of_the_cpu():
    processes = [start(names) for names in SHARES]
    outputs = [process.communicate()[0] for process in processes]
    failed = [
        output
        for process, output in zip(processes, outputs, strict=True)
        if process.returncode or " passed" not in output
    ]
    assert not failed, "\n".join(failed)
