"""The losses against float64 and against PyTorch, at ordinary and at extreme values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitl import ops
from minitl.tensor import Tensor
from tests.gradcheck import check_gradients
from tests.reference import losses as reference

pytestmark = pytest.mark.filterwarnings("error")

functional = torch.nn.functional


def run(function, x, *arguments, **options):
    x = Tensor(x, requires_grad=True)
    loss = function(x, *arguments, **options)
    assert loss.shape == () and loss.dtype == x.dtype
    loss.backward()
    assert x.grad.dtype == x.dtype
    return loss.item(), x.grad


def run_torch(function, x, *arguments, **options):
    x = torch.tensor(x, requires_grad=True)
    loss = function(
        x,
        *(torch.as_tensor(a) for a in arguments),
        **{k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()},
    )
    loss.backward()
    return loss.item(), x.grad.numpy()


def assert_as_accurate(ours, theirs, exact):
    """Loss and gradient: at most twice PyTorch's error in the same precision, plus a few roundings."""
    eps = np.finfo(ours[1].dtype).eps
    for our, their, value in zip(ours, theirs, exact, strict=True):
        # What cancels in a gradient are probabilities, divided by the number of pictures.
        pictures = len(value) if np.ndim(value) else 1
        floor = 8 * eps * max(np.abs(value).max(), 1 / pictures)
        error, allowed = np.abs(our - value).max(), 2 * np.abs(their - value).max() + floor
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


shapes = st.tuples(st.sampled_from([1, 2, 5, 32]), st.sampled_from([1, 2, 3, 10, 100]))
dtypes = st.sampled_from([np.float32, np.float64])
scales = st.sampled_from([0.0, 1.0, 30.0, 1e4])


@given(shapes, dtypes, scales, st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_softmax_cross_entropy(shape, dtype, scale, label_smoothing, weighted):
    random = np.random.default_rng(0)
    n, k = shape
    logits = (random.normal(size=shape) * scale).astype(dtype)
    labels = random.integers(0, k, n)
    weights = random.uniform(0.1, 3, k).astype(dtype) if weighted else None
    exact = reference.softmax_cross_entropy(logits, labels, weights, label_smoothing)
    options = {"label_smoothing": label_smoothing}
    ours = run(ops.softmax_cross_entropy, logits, labels, class_weights=weights, **options)
    theirs = run_torch(functional.cross_entropy, logits, labels, weight=weights, **options)
    assert_as_accurate(ours, theirs, exact)


@given(shapes, dtypes, scales, st.booleans(), st.booleans())
def test_sigmoid_binary_cross_entropy(shape, dtype, scale, weighted, soft):
    random = np.random.default_rng(0)
    logits = (random.normal(size=shape) * scale).astype(dtype)
    targets = random.uniform(size=shape).astype(dtype)
    if not soft:
        targets = np.round(targets)
    weight = random.uniform(0.1, 3, shape[1]).astype(dtype) if weighted else None
    exact = reference.sigmoid_binary_cross_entropy(logits, targets, weight)
    ours = run(ops.sigmoid_binary_cross_entropy, logits, targets, pos_weight=weight)
    theirs = run_torch(
        functional.binary_cross_entropy_with_logits, logits, targets, pos_weight=weight
    )
    assert_as_accurate(ours, theirs, exact)


@given(st.sampled_from([(1,), (7,), (4, 1), (3, 5, 2, 2)]), dtypes, scales)
def test_mean_squared_error(shape, dtype, scale):
    random = np.random.default_rng(0)
    prediction = (random.normal(size=shape) * scale).astype(dtype)
    target = random.normal(size=shape).astype(dtype)
    ours = run(ops.mean_squared_error, prediction, target)
    theirs = run_torch(functional.mse_loss, prediction, target)
    assert_as_accurate(ours, theirs, reference.mean_squared_error(prediction, target))


def test_gradients_match_differences():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 3)) * 2
    labels, targets = np.array([0, 2, 1, 2]), random.uniform(size=(4, 3))
    weights = random.uniform(0.5, 2, 3)
    for options in (
        {},
        {"label_smoothing": 0.1},
        {"class_weights": weights},
        {"class_weights": weights, "label_smoothing": 0.3},
    ):
        check_gradients(
            lambda z, options=options: ops.softmax_cross_entropy(z, labels, **options), logits
        )
    for options in ({}, {"pos_weight": weights}):
        check_gradients(
            lambda z, options=options: ops.sigmoid_binary_cross_entropy(z, targets, **options),
            logits,
        )
    check_gradients(lambda p: ops.mean_squared_error(p, targets), logits)


def test_huge_and_infinite_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0], [-1e30, 0, 1e30], [-np.inf, 3, 3]], np.float32)
    loss, gradient = run(ops.softmax_cross_entropy, logits, np.array([0, 2, 1]))
    assert loss == pytest.approx(np.log(2) / 3)
    expected = np.array([[0, 0, 0], [0, 0, 0], [0, -0.5, 0.5]]) / 3
    np.testing.assert_allclose(gradient, expected, atol=1e-7)

    loss, gradient = run(ops.softmax_cross_entropy, logits[:1], np.array([1]))
    assert loss == 2e4
    np.testing.assert_array_equal(gradient, [[1, -1, 0]])

    logits, targets = np.array([1e4, -1e4, 1e4, -1e4]), np.array([1.0, 0, 0, 1])
    loss, gradient = run(ops.sigmoid_binary_cross_entropy, logits, targets)
    assert loss == 5e3
    np.testing.assert_array_equal(gradient, [0, 0, 0.25, -0.25])


def test_gradients_scale_with_the_gradient_of_the_loss():
    logits, labels = np.array([[1.0, 2, 3]], np.float32), np.array([1])
    _, once = run(ops.softmax_cross_entropy, logits, labels)
    x = Tensor(logits, requires_grad=True)
    ops.softmax_cross_entropy(x, labels).backward(np.array(2, np.float32))
    np.testing.assert_allclose(x.grad, 2 * once, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
def test_labels_of_every_integer_type(kind):
    logits = np.eye(3, dtype=np.float32)
    loss, _ = run(ops.softmax_cross_entropy, logits, np.arange(3).astype(kind))
    assert loss == pytest.approx(np.log(np.e + 2) - 1)


def test_bad_labels_are_named():
    logits = Tensor(np.zeros((4, 3), np.float32))
    cross_entropy = ops.softmax_cross_entropy
    with pytest.raises(ValueError, match=r"label 3 at index 2 is not in 0 \.\. 2: .* 3 classes$"):
        cross_entropy(logits, np.array([0, 1, 3, 2]))
    with pytest.raises(ValueError, match=r"label -1 at index 1 .*2 labels are out of range"):
        cross_entropy(logits, np.array([0, -1, 3, 2]))
    with pytest.raises(TypeError, match=r"integer array.*float64"):
        cross_entropy(logits, np.array([0.0, 1, 2, 2]))
    with pytest.raises(TypeError, match=r"integer array.*list"):
        cross_entropy(logits, [0, 1, 2, 2])
    with pytest.raises(TypeError, match=r"integer array.*bool"):
        cross_entropy(logits, np.array([True] * 4))
    with pytest.raises(ValueError, match=r"shape \(4,\).*got \(4, 1\)"):
        cross_entropy(logits, np.zeros((4, 1), int))
    with pytest.raises(ValueError, match=r"logits of shape \(N, K\); got \(4,\)"):
        cross_entropy(Tensor(np.zeros(4, np.float32)), np.zeros(4, int))


def test_pytorchs_tensors_are_labels_targets_and_weights():
    x, labels = np.eye(3, dtype=np.float32), np.array([0, 2, 1])
    weights = [1.0, 2.0, 3.0]
    for loss, target, options in (
        (ops.softmax_cross_entropy, labels, {"class_weights": np.array(weights)}),
        (ops.sigmoid_binary_cross_entropy, x, {"pos_weight": np.array(weights)}),
        (ops.mean_squared_error, x + 1, {}),
    ):
        expected = loss(Tensor(x), target, **options).item()
        for make in (torch.tensor, list):
            given = {name: make(weights) for name in options}
            assert loss(Tensor(x), torch.tensor(target), **given).item() == expected
        with pytest.raises(TypeError, match=r"Tensor of torch\..* cannot be read as an array"):
            loss(Tensor(x), torch.tensor(target).to("meta"))


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_positive_weights_are_checked(weight):
    logits, targets = Tensor(np.zeros((4, 3), np.float32)), np.ones((4, 3))
    with pytest.raises(ValueError, match=f"pos_weight must be finite.* 1 has {weight}"):
        ops.sigmoid_binary_cross_entropy(logits, targets, pos_weight=np.array([1, weight, 1]))
    with pytest.raises(ValueError, match=f"pos_weight must be finite.* got {weight}"):
        ops.sigmoid_binary_cross_entropy(logits, targets, pos_weight=weight)
    with pytest.raises(TypeError, match="pos_weight must be numbers; got a str"):
        ops.sigmoid_binary_cross_entropy(logits, targets, pos_weight="much")


def test_other_errors_say_what_is_wrong():
    logits, labels = Tensor(np.zeros((4, 3), np.float32)), np.array([0, 1, 1, 2])
    with pytest.raises(ValueError, match="label_smoothing must be"):
        ops.softmax_cross_entropy(logits, labels, label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"class_weights must have shape \(3,\)"):
        ops.softmax_cross_entropy(logits, labels, class_weights=np.ones(4))
    with pytest.raises(ValueError, match=r"class 1 has -1\.0"):
        ops.softmax_cross_entropy(logits, labels, class_weights=np.array([1.0, -1, 1]))
    for weights in (np.zeros(3), np.where(np.isin(np.arange(3), labels), 0.0, 1.0)):
        with pytest.raises(ValueError, match="nothing to take a mean of"):
            ops.softmax_cross_entropy(logits, labels, class_weights=weights)

    with pytest.raises(ValueError, match=r"targets must have shape \(4, 3\); got \(4,\)"):
        ops.sigmoid_binary_cross_entropy(logits, np.zeros(4))
    targets = np.zeros((4, 3))
    targets[1, 2] = 7
    with pytest.raises(ValueError, match=r"in 0 \.\. 1; got 7\.0 at \(1, 2\)"):
        ops.sigmoid_binary_cross_entropy(logits, targets)
    with pytest.raises(ValueError, match="pos_weight must have the shape"):
        ops.sigmoid_binary_cross_entropy(logits, np.zeros((4, 3)), pos_weight=np.ones(4))

    with pytest.raises(ValueError, match=r"target must have shape \(4, 3\); got \(3,\)"):
        ops.mean_squared_error(logits, np.zeros(3))
    with pytest.raises(TypeError, match="array of numbers; got Tensor"):
        ops.mean_squared_error(logits, logits)
    with pytest.raises(ValueError, match="empty"):
        ops.mean_squared_error(Tensor(np.zeros((0, 3), np.float32)), np.zeros((0, 3)))
