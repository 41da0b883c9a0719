"""Attacks: inside their box, along the gradient, stronger with more steps, and without traces."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minitl import models, ops, optim, tensor
from minitl.data.dataset import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.train.attack import Attack
from minitl.train.robustness import under_attack

P = Preprocessing(16, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def make(n: int = 6, seed: int = 0) -> tuple[models.Classifier, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    model = models.create("cifar_resnet20", num_classes=3, seed=1, width=4)
    images = P.normalise(random.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))
    return model, images, random.integers(0, 3, n)


def levels(images: np.ndarray) -> np.ndarray:
    return (images * np.array(P.std) + np.array(P.mean)) / P.scale


def loss(model: models.Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    return ops.softmax_cross_entropy(model.eval()(tensor(images)), labels).item()


@settings(max_examples=10)
@given(st.sampled_from(["fgsm", "pgd"]), st.floats(0.1, 300).map(lambda e: min(e, 255)))
def test_changes_stay_within_epsilon_and_within_pictures(kind: str, epsilon: float) -> None:
    model, images, labels = make(2)
    moved = Attack(kind, epsilon, steps=3)(model, images, labels, P)
    assert moved.dtype == np.float32 and moved.shape == images.shape
    assert np.abs(levels(moved) - levels(images)).max() <= epsilon + 1e-2
    assert levels(moved).min() >= -1e-2 and levels(moved).max() <= 255 + 1e-2
    assert (moved != images).any()


def test_fgsm_is_one_step_along_the_sign_by_pytorch() -> None:
    random = np.random.default_rng(0)
    _, images, labels = make(4)
    # A linear network, so that PyTorch's gradient is the same without its ResNet.
    weight = random.standard_normal((3, 16 * 16 * 3)).astype(np.float32) / 30

    class Linear(models.Classifier):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return ops.linear(ops.flatten(x), tensor(weight))

    linear = Linear("linear", {}, {})
    moved = Attack("fgsm", 1.0)(linear, images, labels, P)
    x = torch.tensor(images, requires_grad=True)
    logits = x.permute(0, 3, 1, 2).flatten(1) @ torch.tensor(weight).T
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    expected = levels(images) + np.sign(x.grad.numpy())
    np.testing.assert_allclose(levels(moved), expected.clip(0, 255), atol=1e-2)


def test_pgd_beats_fgsm_and_more_room_beats_less() -> None:
    model, images, labels = make(8)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        ops.softmax_cross_entropy(model.train()(tensor(images)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    losses = {
        attack: loss(model, attack(model, images, labels, P), labels)
        for attack in (Attack("fgsm", 4), Attack("pgd", 4, steps=6), Attack("pgd", 8, steps=6))
    }
    assert loss(model, images, labels) < min(losses.values())
    fgsm, pgd, pgd8 = losses.values()
    assert fgsm < pgd < pgd8


def test_the_model_is_left_as_it_was() -> None:
    model, images, labels = make()
    model.train().freeze("layer1")
    before = {name: array.copy() for name, array in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    first = Attack("pgd")(model, images, labels, P)
    np.testing.assert_array_equal(first, Attack("pgd")(model, images, labels, P))
    assert model.training and {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)


@pytest.mark.parametrize("wrong", [{"kind": "cw"}, {"epsilon": 0}, {"epsilon": 256}, {"steps": 0}])
def test_senseless_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"no attack|must be"):
        Attack(**wrong)


class Swap(Attack):
    """Makes a dark picture of a bright one, and the other way round."""

    def __call__(self, model, images, labels, preprocessing, at_once=None):
        return (1 - levels(images) / 255 - P.mean).astype(np.float32) / np.float32(P.std)


def test_a_picture_counts_only_if_it_was_right_before_too(tmp_path) -> None:
    layers = [{"type": "global_avgpool"}, {"type": "dense", "units": 2}]
    model = models.create("sequential", input=[16, 16], layers=layers)
    model.preprocessing = P.to_dict()
    model.head.weight.data[...], model.head.bias.data[...] = [[-1] * 3, [1] * 3], 0
    for name, level in ("dark", 10), ("bright", 250):
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    samples = [Sample("dark.png", 0), Sample("bright.png", 1), Sample("dark.png", 1)]
    found = under_attack(model, samples, tmp_path, Swap())
    assert (found["images"], found["accuracy"]) == (3, 0)  # the third is right once it is swapped
    gentle = under_attack(model, samples, tmp_path, Attack("fgsm", 1))
    assert gentle["accuracy"] == pytest.approx(2 / 3)
