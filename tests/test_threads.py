"""The number of threads changes the time and nothing else."""

import json
import os
import subprocess
import sys

import numba
import pytest

from minitl.cli import main
from minitl.kernels import cpu
from minitl.train.config import Config, make_config

# Two training steps of a ResNet-18, its dense layer wide enough for several matrix products, digested.
STEPS = """
import hashlib, json, sys
import numpy as np
import minitl
from minitl import models, ops, optim
from minitl.kernels import cpu

def digest(count, setting, loss_name, optimizer):
    assert cpu.set_threads(count) == count
    cpu.set_conv_algorithm(setting)
    random = np.random.default_rng(0)
    images = random.standard_normal((6, 72, 72, 3), dtype=np.float32)
    model = models.resnet18(num_classes=1100, seed=0)
    step = optimizer(model.parameters(), weight_decay=1e-3)
    bits = hashlib.sha256()
    for _ in range(2):
        logits = model(minitl.tensor(images))
        if loss_name == "softmax":
            loss = ops.softmax_cross_entropy(logits, np.arange(6), label_smoothing=0.1)
        else:
            targets = random.integers(0, 2, logits.shape).astype(np.float32)
            loss = getattr(ops, loss_name)(logits, targets)
            random = np.random.default_rng(0)
        loss.backward()
        bits.update(loss.data.tobytes())
        for p in model.parameters():
            bits.update(p.grad.tobytes())
        step.step()
        step.zero_grad()
    for value in model.state_dict().values():
        bits.update(np.ascontiguousarray(value).tobytes())
    return bits.hexdigest()

sgd = lambda p, weight_decay: optim.SGD(p, 0.01, 0.9, weight_decay, nesterov=True)
cases = [("auto", "softmax", sgd), ("f4", "sigmoid_binary_cross_entropy", optim.Adam),
         ("f2", "mean_squared_error", optim.AdamW), ("exact", "softmax", sgd)]
print(json.dumps([[digest(count, *case) for count in (1, 2, 4)] for case in cases]))
"""


def test_a_training_step_has_the_same_bits_for_one_two_and_four_threads():
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        env=os.environ | {"NUMBA_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digests = json.loads(done.stdout)
    for one, two, four in digests:
        assert one == two == four
    assert len({row[0] for row in digests}) == len(digests)  # the digest sees what is computed


@pytest.fixture
def all_threads():
    yield
    cpu.set_threads(None)


def test_set_threads(all_threads):
    cores = numba.config.NUMBA_NUM_THREADS
    assert cpu.set_threads(1) == numba.get_num_threads() == 1
    assert cpu.set_threads(None) == numba.get_num_threads() == cores
    assert cpu.set_threads(cores + 100) == cores
    with pytest.raises(ValueError, match="0 threads"):
        cpu.set_threads(0)


def test_the_option_is_checked_and_kept(capsys, tmp_path):
    for command in (["finetune", "x"], ["evaluate", "x", "y"], ["predict", "x", "y"]):
        for value in ("0", "-1", "two"):
            with pytest.raises(SystemExit):
                main([*command, f"--threads={value}"])
            assert "not a number of at least 1" in capsys.readouterr().err
    config = make_config(None, {"data": "d", "threads": 3})
    config.save(tmp_path / "config.toml")
    assert Config.load(tmp_path / "config.toml").threads == 3
    make_config(None, {"data": "d"}).save(tmp_path / "config.toml")
    assert Config.load(tmp_path / "config.toml").threads is None
