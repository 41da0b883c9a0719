"""Several tasks on a GPU, by the fake of CuPy: the loss is computed on the CPU, and all else follows."""

import numpy as np
import pytest

from minitl import ops, optim
from minitl.backend import kernel_module
from minitl.device import CPU, get_device
from minitl.errors import UserError
from minitl.tasks import Task
from minitl.tensor import Tensor
from minitl.train.batches import Inputs
from minitl.train.config import Config
from minitl.train.step import TrainingStep
from tests.cuda_launch import needs_checker
from tests.cuda_on_cpu.fake_cupy import install
from tests.test_cuda_training import Small

TASKS = (
    Task("kind", "classes", ("a", "b", "c")),
    Task("tag", "labels", ("x",)),
    Task("age", "number", mean=2.0, std=3.0, weight=0.5),
)


@pytest.fixture(autouse=True)
def exact():
    before = kernel_module("cpu").set_conv_algorithm("exact")
    yield
    kernel_module("cpu").set_conv_algorithm(before)


def batch(device, seed, n=4):
    """Return pictures of which about a third of the answers is not known, another number in each batch."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 8, 8, 3)).astype(np.float32)
    targets = np.column_stack(
        [random.integers(0, 3, n), random.integers(0, 2, n), random.normal(size=n)]
    ).astype(np.float64)
    targets[random.random(targets.shape) < 0.3] = np.nan
    targets[np.isnan(targets).all(axis=1), 2] = 1
    return Inputs(device.array(x), device.array(targets), targets)


def train(device, **options):
    model = Small().to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = TrainingStep(model, model, optimizer, device, tasks=TASKS, **options)
    with device.computing():
        for number in range(5):  # more than run as code before a step is recorded
            step(batch(device, number))
        return [result.loss for result in step.results()], model.state_dict()


@needs_checker
@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}], ids=["whole", "in parts"])
def test_steps_are_those_of_the_cpu(options):
    losses, state = train(CPU, **options)
    with install(mode="fast", late=True):
        ours, our_state = train(get_device("cuda"), **options)
    assert ours == pytest.approx(losses, rel=1e-5)
    for name, value in state.items():
        np.testing.assert_allclose(our_state[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@needs_checker
def test_take_wants_its_table_on_the_cpu():
    with install(mode="fast"):
        x = Tensor(get_device("cuda").array(np.ones((2, 3), np.float32)))
        with pytest.raises(TypeError, match="to_host"):
            ops.take(x, np.array([0]), slice(0, 1))
        np.testing.assert_array_equal(ops.to_host(x).data, np.ones((2, 3)))


def test_on_the_cpu_nothing_is_copied():
    x = Tensor(np.ones((2, 3), np.float32))
    assert ops.to_host(x) is x


def test_mixed_pictures_are_refused():
    given = {"data": "d", "weights": "w", "labels": "t.csv", "task": ("a=labels",)}
    with pytest.raises(UserError, match="--mixup on a GPU"):
        Config(**given, device="cuda", mixup=0.2)
    Config(**given, device="cuda")
