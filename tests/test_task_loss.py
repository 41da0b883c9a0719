"""The loss of several tasks: what is known counts, and nothing else; and `take`, which picks it out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import nn, ops, optim
from minitl.device import CPU
from minitl.tasks import Task
from minitl.tensor import Tensor
from minitl.train.batches import Inputs
from minitl.train.mixing import mix
from minitl.train.step import TrainingStep
from minitl.train.task_loss import TaskLoss
from tests.gradcheck import check_gradients
from tests.reference.task_loss import task_loss

TASKS = (
    Task("kind", "classes", ("cat", "dog", "cow")),
    Task("tags", "labels", ("red", "round"), weight=0.5),
    Task("one", "labels", ("alone",)),
    Task("age", "number", mean=30.0, std=12.0, weight=2.0),
)
OUTPUTS = 7
DESCRIBED = [(task.kind, task.outputs, task.mean, task.std, task.weight) for task in TASKS]


def known(n, unknown, seed=0):
    """Return targets of n pictures; a share of the answers is not known, but one of each picture is."""
    random = np.random.default_rng(seed)
    targets = np.column_stack(
        [random.integers(0, 3, n), random.integers(0, 2, (n, 3)), random.normal(30, 12, n)]
    ).astype(np.float64)
    for columns in (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 5)):
        targets[random.random(n) < unknown, columns] = np.nan
    targets[np.isnan(targets).all(axis=1), 4] = 25
    return targets


def outputs_of(n, scale=1.0, seed=1):
    return np.random.default_rng(seed).normal(size=(n, OUTPUTS)) * scale


@given(
    st.sampled_from([1, 2, 3, 13]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 1.0, 100.0]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([np.float32, np.float64]),
)
def test_the_loss_is_that_of_the_reference(n, unknown, scale, smoothing, dtype):
    outputs, targets = outputs_of(n, scale).astype(dtype), known(n, unknown)
    loss = TaskLoss(TASKS, smoothing)
    loss.begin(targets)
    value = loss(Tensor(outputs), targets).item()
    exact = task_loss(outputs, targets, DESCRIBED, smoothing)
    assert value == pytest.approx(exact, rel=64 * float(np.finfo(dtype).eps))


@given(st.sampled_from([1, 2, 5, 9]), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 3))
def test_gradients_match_differences(n, unknown, seed):
    targets = known(n, unknown, seed)
    loss = TaskLoss(TASKS, 0.1)
    loss.begin(targets)
    check_gradients(lambda x: loss(x, targets), outputs_of(n, 2.0, seed))


def test_nothing_flows_back_from_what_is_not_known():
    targets = known(6, 0.5)
    outputs = Tensor(outputs_of(6), requires_grad=True)
    loss = TaskLoss(TASKS)
    loss.begin(targets)
    loss(outputs, targets).backward()
    unknown = np.isnan(targets[:, [0, 0, 0, 1, 1, 3, 4]])
    assert unknown.any()
    assert (outputs.grad[unknown] == 0).all() and (outputs.grad[~unknown] != 0).all()


def test_pytorch_computes_the_same():
    """With its `ignore_index`, and means over what is selected."""
    targets, outputs = known(12, 0.3), outputs_of(12)
    loss = TaskLoss(TASKS)
    loss.begin(targets)
    ours = Tensor(outputs, requires_grad=True)
    value = loss(ours, targets)
    value.backward()
    theirs, t = torch.tensor(outputs, requires_grad=True), torch.tensor(targets)
    functional = torch.nn.functional
    classes = torch.nan_to_num(t[:, 0], nan=-100).long()
    total = functional.cross_entropy(theirs[:, :3], classes, ignore_index=-100)
    for own, columns, weight in (([3, 4], [1, 2], 0.5), ([5], [3], 1.0)):
        there = ~torch.isnan(t[:, columns[0]])
        total = total + weight * functional.binary_cross_entropy_with_logits(
            theirs[:, own][there], t[:, columns][there]
        )
    there = ~torch.isnan(t[:, 4])
    total = total + 2 * functional.mse_loss(theirs[there, 6] / 3, (t[there, 4] - 30) / 12)
    total.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-10, atol=1e-15)


class Dense(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(12, OUTPUTS, rng=np.random.default_rng(0))

    def forward(self, x):
        return self.fc(ops.flatten(x))


def train(micro_batch=None, mixup=0.0):
    """Take three steps; return the weights and the losses."""
    model = Dense()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = TrainingStep(model, model, optimizer, CPU, tasks=TASKS, micro_batch=micro_batch)
    for number in range(3):
        x = np.random.default_rng(number).normal(size=(11, 2, 2, 3)).astype(np.float32)
        targets = known(11, 0.4, number)
        inputs = Inputs(x, targets, targets)
        if mixup:
            inputs = mix(inputs, mixup, 0.0, seed=0, epoch=0, batch=number)
        step(inputs)
    return model.fc.weight.data, [result.loss for result in step.results()]


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_parts_of_a_batch_add_up_whatever_is_known_in_each(size, mixup):
    weight, losses = train(mixup=mixup)
    parts_weight, parts_losses = train(size, mixup)
    np.testing.assert_allclose(parts_weight, weight, rtol=1e-4, atol=1e-6)
    assert parts_losses == pytest.approx(losses, rel=1e-5)


def test_mixed_pictures_learn_from_what_is_known_of_both():
    """mixup's loss is the shares' mean of the losses with the one and the other's answers."""
    x = np.random.default_rng(0).normal(size=(6, 2, 2, 3)).astype(np.float32)
    targets = known(6, 0.4)
    inputs = mix(Inputs(x, targets, targets), 1.0, 0.0, seed=0, epoch=0, batch=0)
    model = Dense()
    step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=0.1), CPU, tasks=TASKS)
    outputs = model(Tensor(inputs.x)).numpy()
    step(inputs)
    own, other = (task_loss(outputs, rows, DESCRIBED) for rows in (targets, targets[::-1]))
    share = inputs.mixed.share
    assert step.results()[0].loss == pytest.approx(share * own + (1 - share) * other, rel=1e-5)


@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000), st.sampled_from(["float32", "float64"])
)  # fmt: skip
def test_take_is_indexing(n, k, seed, dtype):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, k)).astype(dtype)
    rows = random.permutation(n)[: random.integers(1, n + 1)]
    start = int(random.integers(0, k))
    columns = slice(start, int(random.integers(start + 1, k + 1)))
    taken = ops.take(Tensor(x), rows, columns)
    np.testing.assert_array_equal(taken.numpy(), x[rows][:, columns])
    assert taken.dtype == x.dtype and taken.data.flags.c_contiguous
    if dtype == "float64":
        check_gradients(lambda t: ops.take(t, rows, columns), x)


@pytest.mark.parametrize(
    "rows, columns, word",
    [
        ([0, 3], slice(0, 1), "rows"),
        ([-1], slice(0, 1), "rows"),
        ([1, 1], slice(0, 1), "rows"),
        ([], slice(0, 1), "rows"),
        ([0.5], slice(0, 1), "rows"),
        ([0], slice(0, 3), "columns"),
        ([0], slice(1, 1), "columns"),
        ([0], slice(0, 2, 2), "columns"),
    ],
)
def test_take_refuses_what_is_not_there(rows, columns, word):
    with pytest.raises(ValueError, match=f"take needs .*{word}"):
        ops.take(Tensor(np.zeros((3, 2))), np.array(rows), columns)


def test_take_needs_a_table():
    with pytest.raises(ValueError, match="table"):
        ops.take(Tensor(np.zeros((3, 2, 1))), np.array([0]), slice(0, 1))
