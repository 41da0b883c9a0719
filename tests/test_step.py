"""One training step: whole batches and batches in parts, on the CPU."""

import numpy as np
import pytest

from minitl import models, nn, ops, optim
from minitl.backend import kernel_module
from minitl.device import CPU
from minitl.tensor import Tensor
from minitl.train.batches import Inputs
from minitl.train.mixing import mix
from minitl.train.step import TrainingStep


@pytest.fixture(autouse=True)
def exact():
    before = kernel_module("cpu").set_conv_algorithm("exact")
    yield
    kernel_module("cpu").set_conv_algorithm(before)


def batch(n, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, n)
    return Inputs(random.normal(size=(n, 8, 8, 3)).astype(np.float32), labels, labels)


def network(frozen_statistics=True):
    model = models.create("cifar_resnet20", num_classes=5, seed=1, width=4, shortcut="B")
    if frozen_statistics:
        for _, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.frozen = True
    return model


def train(batches, micro_batch=None, class_weights=None, **options):
    model = network(**options)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    how = {"label_smoothing": 0.1, "micro_batch": micro_batch, "class_weights": class_weights}
    step = TrainingStep(model, model, optimizer, CPU, **how)
    for inputs in batches:
        assert step(inputs) is None
    return model.state_dict(), step.results()


def test_a_step_is_forward_loss_backward_and_update():
    inputs, model = batch(6), network(frozen_statistics=False)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    logits = model(Tensor(inputs.x))
    loss = ops.softmax_cross_entropy(logits, inputs.labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    state, results = train([inputs], frozen_statistics=False)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(state[name], array, name)
    right = int((logits.data.argmax(1) == inputs.labels).sum())
    assert results == [(loss.item(), right, 6)]


@pytest.mark.parametrize("of", ["one class each", "weighted classes", "weighted mixtures"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_parts_add_up_to_the_whole_batch(size, of):
    """7 pictures in parts of unequal sizes; the statistics are fixed, so only rounding differs."""
    batches = [batch(7, seed) for seed in range(3)]
    weights = None if of == "one class each" else np.array([0.2, 3, 1, 0.5, 2], np.float32)
    if of == "weighted mixtures":
        batches = [mix(one, 0.4, 0.4, seed=0, epoch=0, batch=n) for n, one in enumerate(batches)]
    whole, whole_results = train(batches, class_weights=weights)
    parts, part_results = train(batches, micro_batch=size, class_weights=weights)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=2e-6, err_msg=name)
    for one, other in zip(whole_results, part_results, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other[1:] == one[1:]


def test_parts_are_as_equal_as_can_be():
    """So none of them is a single picture, which has no batch statistics in a small map."""
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(192, 5, rng=np.random.default_rng(0))

        def forward(self, x):
            seen.append(x.shape[0])
            return self.fc(ops.flatten(x))

    model = Watched()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for n, micro_batch in ((25, 8), (7, 3), (4, 4), (4, 9), (5, 4)):
        TrainingStep(model, model, optimizer, CPU, micro_batch=micro_batch)(batch(n))
    assert seen == [6, 6, 6, 7, 2, 2, 3, 4, 4, 2, 3]
