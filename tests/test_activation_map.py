"""Grad-CAM: equal to the class activation map where that is defined, and to finite differences."""

import numpy as np
import pytest

from minitl import models, nn, ops, tensor
from minitl.tensor import Tensor
from minitl.train.activation_map import activation_maps


def images(n: int, side: int, seed: int = 0) -> Tensor:
    return tensor(np.random.default_rng(seed).standard_normal((n, side, side, 3), np.float32))


def make_resnet() -> models.Classifier:
    model = models.create("cifar_resnet20", num_classes=4, seed=1, width=8)
    random = np.random.default_rng(3)
    for _, buffer in model.named_buffers():
        buffer += random.uniform(0, 0.3, buffer.shape).astype(np.float32)
    return model


def test_it_is_the_class_activation_map_behind_a_global_average() -> None:
    model, x, classes = make_resnet(), images(3, 32), np.array([2, 0, 3])
    found = activation_maps(model, x, classes)
    assert found.shape == (3, 8, 8) and found.dtype == np.float32

    kept: list[np.ndarray] = []
    pool = ops.global_avgpool2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "global_avgpool2d", lambda x: (kept.append(x.numpy()), pool(x))[1])
        model.eval()(x)
    (features,) = kept
    expected = np.einsum("nhwc,nc->nhw", features, model.head.weight.numpy()[classes]).clip(0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Deep(nn.Module):
    """A head that is no global average: pooling, a flattened hidden layer, a ReLU."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.conv = nn.Conv2d(3, 5, 3, padding=1, rng=rng)
        self.hidden = nn.Linear(5 * 9, 7, rng=rng)
        self.last = nn.Linear(7, 3, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.maxpool2d(ops.relu(self.conv(x)), 2)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        return self.last(ops.relu(self.hidden(ops.flatten(x))))


def test_a_deep_head_by_finite_differences() -> None:
    model, x, classes = Deep(), images(2, 6), np.array([1, 2])
    found = activation_maps(model, x, classes)  # type: ignore[arg-type]
    features = ops.maxpool2d(ops.relu(model.conv(x)), 2).numpy().astype(np.float64)
    model.astype(np.float64)
    gradient = np.zeros_like(features)
    for place in np.ndindex(features.shape):
        moved = features.copy()
        moved[place] += 1e-5
        up = model.head(tensor(moved)).numpy()
        moved[place] -= 2e-5
        down = model.head(tensor(moved)).numpy()
        n = place[0]
        gradient[place] = (up - down)[n, classes[n]] / 2e-5
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    expected = (weights * features).sum(axis=3).clip(0)
    expected /= np.where(expected.max(axis=(1, 2)) > 0, expected.max(axis=(1, 2)), 1)[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = make_resnet().train()
    model.freeze()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    activation_maps(model, images(1, 32), np.array([0]))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)


def test_nothing_speaks_for_a_class_with_zero_weights() -> None:
    model = make_resnet()
    model.head.weight.data[1] = 0
    assert not activation_maps(model, images(1, 32), np.array([1])).any()


def test_a_network_without_maps_is_asked_about_the_picture_itself() -> None:
    layers = [{"type": "flatten"}, {"type": "dense", "units": 3}]
    model = models.create("sequential", input=[4, 4], layers=layers)
    x, classes = images(2, 4), np.array([2, 1])
    found = activation_maps(model, x, classes)
    weight = model.head.weight.numpy()[classes].reshape(2, 3, 16).mean(axis=2)  # of C, H, W
    expected = np.einsum("nhwc,nc->nhw", x.numpy(), weight).clip(0)
    np.testing.assert_allclose(
        found, expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5
    )
