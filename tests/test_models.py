"""Whole networks against PyTorch with the same weights: names, logits, gradients, statistics."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

import minitl
from minitl import init, models, nn, ops
from minitl.data.preprocessing import Preprocessing
from minitl.kernels import cpu
from minitl.ops.batchnorm import BatchNorm
from minitl.ops.conv2d import Conv2d
from minitl.ops.conv2d_batchnorm import Conv2dBatchNorm
from minitl.tensor import record_uses
from tests import reference_models

CIFAR = [("cifar_resnet20", "A"), ("cifar_resnet20", "B"), ("cifar_resnet56", "A")]


def pair_of_networks(arch, dtype=np.float64, reference=None, **options):
    """Make ours and PyTorch's with the same weights; `reference`: its options, where they differ."""
    theirs = reference_models.randomise(reference_models.make(arch, **(reference or options)))
    ours = models.create(arch, seed=None, **options).astype(dtype)
    ours.load_state_dict(
        {k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    )
    return ours, theirs.to(torch.float64 if dtype == np.float64 else torch.float32)


def pictures(n, size, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((n, size, size, 3)).astype(dtype)


# Architectures whose names are minitl's own, or timm's by translation.
OWN_NAMES = ("sequential", "resnetv2_50", "resnetv2_101", "resnetv2_152")


@pytest.mark.parametrize("arch", [a for a in models.ARCHITECTURES if a not in OWN_NAMES])
def test_names_and_shapes_are_those_of_the_original(arch):
    options = {"shortcut": "B"} if "cifar" in arch else {}
    with torch.device("meta"):
        theirs = reference_models.make(arch, **options)
    ours = models.create(arch, seed=None, **options)
    expected = {k: tuple(v.shape) for k, v in theirs.state_dict().items() if "num_batches" not in k}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_logits_and_gradients_of_imagenet_networks(arch):
    check_training_step(arch, size=64, num_classes=7)


@pytest.mark.parametrize(("arch", "shortcut"), CIFAR)
def test_logits_and_gradients_of_cifar_networks(arch, shortcut):
    check_training_step(arch, size=32, shortcut=shortcut)


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("resnet18d", 64, {}),
        ("resnet26", 64, {"stride_in_1x1": True, "average_down": True, "bn_eps": 1e-3}),
        ("vgg11_bn", 32, {"hidden": 12, "dropout": 0.0}),
        ("vgg13", 32, {"hidden": 12, "dropout": 0.0}),
        ("inception_v3", 75, {"dropout": 0.0}),
        ("mlperf_resnet8", 32, {}),
        (
            "resnetv2_50",
            64,
            {"stride_last": True, "zero_pool": True, "conv_bias": True, "bn_eps": 1.001e-5}
            | {"reference": {"num_classes": 7, "keras": True}},
        ),
    ],
)
def test_logits_and_gradients_of_other_networks(arch, size, options):
    check_training_step(arch, size, num_classes=7, **options)


def test_the_second_head_of_inception():
    """On its map of 17x17 alone: pictures of 299 pixels take long."""
    theirs = reference_models.randomise(
        reference_models.make("inception_v3", num_classes=5, auxiliary=True)
    ).double()
    ours = models.create("inception_v3", num_classes=5, seed=None, auxiliary=True)
    ours.load_state_dict(
        {k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    )
    middle = np.random.default_rng(0).standard_normal((2, 17, 17, 768))
    with torch.no_grad():
        expected = theirs.AuxLogits(torch.from_numpy(middle.transpose(0, 3, 1, 2).copy()))
    assert_close(
        ours.astype(np.float64).AuxLogits(minitl.tensor(middle)).numpy(),
        expected.numpy(),
        1e-9,
        "logits",
    )


def test_a_second_head_trains_by_its_share_of_the_loss():
    """Logits and their loss are the first head's; what lies before both learns from both."""
    from minitl import optim
    from minitl.device import CPU
    from minitl.train.batches import Inputs
    from minitl.train.step import TrainingStep

    class TwoHeads(models.Classifier):
        second_head_weight = 0.4

        def __init__(self):
            super().__init__("two", {}, {})
            self.trunk = nn.Linear(4, 3, rng=np.random.default_rng(0))
            self.fc = nn.Linear(3, 2, rng=np.random.default_rng(1))
            self.second = nn.Linear(3, 2, rng=np.random.default_rng(2))

        def features(self, x):
            return self.trunk(x)

        def outputs(self, x):
            return self.fc(self.trunk(x)), self.second(self.trunk(x))

    x, labels = pictures(1, 4, np.float32)[0, :, :, 0], np.array([0, 1, 1, 0])
    after = {}
    for weight in (0.0, 0.4):
        model = TwoHeads()
        model.second_head_weight = weight
        before = {name: array.copy() for name, array in model.state_dict().items()}
        step = TrainingStep(model, model, optim.SGD(model.parameters(), lr=1.0), CPU)
        step(Inputs(x, labels, labels))
        after[weight] = {n: before[n] - a for n, a in model.state_dict().items()}
        assert 0 <= step.results()[0].correct <= 4
    assert np.array_equal(after[0.0]["fc.weight"], after[0.4]["fc.weight"])
    assert not after[0.0]["second.weight"].any()

    alone = TwoHeads()  # the second head by itself, with the whole of its loss
    ops.softmax_cross_entropy(alone.outputs(minitl.tensor(x))[1], labels).backward()
    np.testing.assert_allclose(
        after[0.4]["second.weight"], 0.4 * alone.second.weight.grad, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        after[0.4]["trunk.weight"] - after[0.0]["trunk.weight"],
        0.4 * alone.trunk.weight.grad,
        rtol=1e-4,
        atol=1e-6,
    )


def check_training_step(arch, size, **options):
    ours, theirs = pair_of_networks(arch, **options)
    x = pictures(3, size)
    labels = np.array([1, 0, 5])

    logits = ours(minitl.tensor(x))
    loss = ops.softmax_cross_entropy(logits, labels)
    loss.backward()

    x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    expected = theirs(x_torch)
    expected_loss = torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels))
    expected_loss.backward()

    assert_close(logits.numpy(), expected.detach().numpy(), 1e-9, "logits")
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-10)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        ours_grad = gradients.pop(name)
        if ours_grad.ndim == 4:
            ours_grad = ours_grad.transpose(0, 3, 1, 2)
        assert_close(ours_grad, parameter.grad.numpy(), 1e-8, name)
    assert not gradients
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        if "running" in name:
            assert_close(state[name], value.numpy(), 1e-9, name)


def assert_close(actual, expected, relative, name):
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max()
    # The gradient of a bias ahead of a batch normalisation is 0; of that, rounding is all there is.
    rounding = 1e-13 if name.endswith(".bias") else 0
    assert error <= relative * np.abs(expected).max() + rounding, f"{name}: off by {error}"


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_float32_logits_in_evaluation(arch):
    """Our float32 is at most twice as far from float64 as PyTorch's own float32, plus a floor."""
    ours, theirs = pair_of_networks(arch, np.float32)
    x = pictures(2, 96, np.float32)
    x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with minitl.no_grad(), torch.no_grad():
        logits = ours.eval()(minitl.tensor(x)).numpy()
        torch32 = theirs.eval()(x_torch).numpy()
        exact = theirs.double()(x_torch.double()).numpy()
    scale = np.abs(exact).max()
    assert np.abs(logits - exact).max() <= 2 * np.abs(torch32 - exact).max() + 1e-5 * scale


@cache
def step_of_pytorch(arch, size, dtype):
    """Return our network with the same weights, and PyTorch's logits and gradients in our layout.

    Biases hold nearly all that enters a ReLU above zero: a number that rounding carries across zero would
    change gradients by more than everything that is measured here.
    """
    options = {"shortcut": "B"} if "cifar" in arch else {}
    ours, theirs = pair_of_networks(arch, dtype, **options)
    for name, array in ours.named_parameters():
        if ".bn" in f".{name}" and name.endswith("bias"):
            array.data += 4
            theirs.get_parameter(name).data += 4
    logits = theirs(torch.from_numpy(pictures(3, size, dtype).transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    turned = {n: g.transpose(0, 2, 3, 1) if g.ndim == 4 else g for n, g in gradients.items()}
    return ours, {"logits": logits.detach().numpy(), **turned}


# What a training step in float32 may be off by, beside twice PyTorch's own error, in parts of the largest
# logit or of the largest gradient of each parameter.
STEP_BOUND = {"exact": 5e-5, "f2": 1e-4, "f4": 2e-4, "auto": 2e-4}


@pytest.mark.parametrize("setting", STEP_BOUND)
@pytest.mark.parametrize(("arch", "size"), [("resnet18", 64), ("cifar_resnet20", 32)])
def test_float32_training_step_by_every_algorithm(arch, size, setting):
    _, exact = step_of_pytorch(arch, size, np.float64)
    ours, theirs = step_of_pytorch(arch, size, np.float32)
    ours = copy.deepcopy(ours)
    before = cpu.set_conv_algorithm(setting)
    try:
        logits = ours(minitl.tensor(pictures(3, size, np.float32)))
        ops.softmax_cross_entropy(logits, np.arange(3)).backward()
    finally:
        cpu.set_conv_algorithm(before)
    results = {"logits": logits.numpy(), **{n: p.grad for n, p in ours.named_parameters()}}
    for name, expected in exact.items():
        allowed = 2 * np.abs(theirs[name] - expected).max()
        allowed += STEP_BOUND[setting] * np.abs(expected).max()
        assert np.abs(results[name] - expected).max() <= allowed, name


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("resnet18", 32, {}),
        ("resnet50", 32, {}),
        ("resnet18d", 32, {}),
        ("cifar_resnet20", 16, {"width": 4, "shortcut": "B"}),
    ],
)
def test_normalisations_with_fixed_statistics_are_part_of_their_convolutions(arch, size, options):
    model = models.create(arch, num_classes=2, seed=None, **options).eval()
    x = minitl.tensor(np.zeros((1, size, size, 3), np.float32))
    with minitl.no_grad(), record_uses() as uses:
        model(x)
    alone = [use for use in uses if use.op in (BatchNorm, Conv2d)]
    # The first convolution of an ImageNet network: its normalisation is one pass with the max pooling.
    assert len(alone) <= (0 if arch.startswith("cifar") else 1)
    assert sum(use.op is Conv2dBatchNorm for use in uses) > 15


def test_initial_weights_are_he_normal_and_seeded():
    first, same, other = (models.resnet18(seed=seed) for seed in (0, 0, 1))
    weight = first.layer3.state_dict()["1.conv2.weight"]
    assert np.array_equal(weight, same.layer3.state_dict()["1.conv2.weight"])
    assert not np.array_equal(weight, other.layer3.state_dict()["1.conv2.weight"])
    assert weight.std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean()) < 1e-3


@pytest.mark.parametrize("shape", [(64, 128), (32, 3, 3, 16)])
def test_xavier_uniform_fills_its_bound_and_is_seeded(shape):
    taps = np.prod(shape[1:-1], dtype=int)
    bound = (6 / (taps * (shape[0] + shape[-1]))) ** 0.5
    weight = init.xavier_uniform(shape, np.random.default_rng(3))
    assert weight.shape == shape
    assert weight.dtype == np.float32
    assert 0.99 * bound < weight.max() <= bound * 1.000001
    assert -bound * 1.000001 <= weight.min() < -0.99 * bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert np.array_equal(weight, init.xavier_uniform(shape, np.random.default_rng(3)))


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_the_usual_preprocessing_is_valid(arch):
    values = models.create(arch, seed=None).preprocessing
    assert Preprocessing.from_dict(values).to_dict() == values


def test_unknown_architecture_and_option_are_named():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        models.create("resnet19")
    with pytest.raises(ValueError, match="shortcut"):
        models.create("resnet18", shortcut="A")
    with pytest.raises(ValueError, match="'C'"):
        models.create("cifar_resnet20", shortcut="C")
