"""Modules: names, modes, freezing, loading."""

import gc
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
import torch

import minitl
from minitl import models, nn, ops, optim
from minitl.kernels.cpu import memory
from minitl.tensor import Op


def small_model():
    return models.cifar_resnet20(num_classes=4, width=8, shortcut="B", seed=3)


def batch(n=6, size=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, size, size, 3), dtype=np.float32)
    return minitl.tensor(x), rng.integers(0, 4, n)


def train(model, steps=3):
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    model.train()
    for step in range(steps):
        x, labels = batch(seed=step)
        ops.softmax_cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def copy_of(state):
    return {name: array.copy() for name, array in state.items()}


def changed(model, before):
    return {name for name, a in model.state_dict().items() if a.tobytes() != before[name].tobytes()}


def test_training_changes_everything_that_is_not_frozen():
    model = small_model()
    before = copy_of(model.state_dict())
    train(model)
    assert changed(model, before) == set(before)


def test_frozen_parameters_and_statistics_keep_every_bit():
    model = small_model()
    frozen = model.freeze("conv1", "bn1", "layer1", "layer2.0")
    before = copy_of(model.state_dict())
    train(model)
    still = set(before) - changed(model, before)
    prefixes = ("conv1.", "bn1.", "layer1.", "layer2.0.")
    assert still == {name for name in before if name.startswith(prefixes)}
    assert set(frozen) == {name for name in still if "running" not in name}


def test_unfreeze_trains_again():
    model = small_model()
    model.freeze()
    model.unfreeze("layer3", "linear")
    before = copy_of(model.state_dict())
    train(model)
    assert changed(model, before) == {n for n in before if n.startswith(("layer3.", "linear."))}


def test_freezing_only_the_weights_of_a_batchnorm_leaves_its_statistics_running():
    model = small_model()
    model.freeze("bn1.weight")
    before = copy_of(model.state_dict())
    train(model, steps=1)
    assert "bn1.weight" not in changed(model, before)
    assert {"bn1.bias", "bn1.running_mean"} <= changed(model, before)


def test_shell_patterns_and_unknown_names():
    model = small_model()
    assert model.freeze("layer?.0.conv1.*") == [f"layer{i}.0.conv1.weight" for i in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"'layer9'.*conv1, bn1, layer1"):
        model.freeze("layer1", "layer9")
    assert model.layer1.state_dict() and all(p.requires_grad for p in model.bn1.parameters())


def test_a_frozen_trunk_keeps_no_activations(monkeypatch):
    model = small_model()
    model.freeze("conv1", "bn1", "layer1", "layer2", "layer3")
    model.train()
    results = []
    original = Op.apply.__func__

    def spy(cls, *inputs, **options):
        result = original(cls, *inputs, **options)
        results.append((cls.__name__, weakref.ref(result.data)))
        return result

    monkeypatch.setattr(Op, "apply", classmethod(spy))
    x, labels = batch()
    loss = ops.softmax_cross_entropy(model(x), labels)
    gc.collect()
    alive = [name for name, data in results if data() is not None]
    # The features are the input of the head's gradient; of the rest only the results at the end live.
    assert "Conv2d" not in alive and not any("Norm" in name for name in alive)
    loss.backward()
    assert model.linear.weight.grad is not None
    assert model.conv1.weight.grad is None


def test_a_frozen_trunk_gives_what_evaluation_gives():
    model = small_model()
    x, _ = batch()
    train(model, steps=1)
    with minitl.no_grad():
        expected = model.eval()(x).numpy()
        model.freeze()
        assert np.array_equal(model.train()(x).numpy(), expected)


def test_state_dict_round_trip_in_torch_layout():
    first, second = (
        small_model(),
        models.cifar_resnet20(num_classes=4, width=8, shortcut="B", seed=9),
    )
    state = copy_of(first.state_dict())
    assert state["conv1.weight"].shape == (8, 3, 3, 3)
    assert state["layer2.0.conv1.weight"].shape == (16, 8, 3, 3)
    second.load_state_dict(state)
    assert not changed(second, state)
    x, _ = batch()
    assert np.array_equal(first.eval()(x).numpy(), second.eval()(x).numpy())


def test_loading_lists_all_problems_and_changes_nothing():
    model = small_model()
    before = copy_of(model.state_dict())
    state = copy_of(before)
    del state["bn1.weight"]
    state["extra"] = np.zeros(3)
    state["linear.bias"] = np.zeros(5, np.float32)
    state["conv1.weight"] += 1
    with pytest.raises(
        ValueError, match=r"missing: bn1.weight; unexpected: extra; wrong shape: lin"
    ):
        model.load_state_dict(state)
    assert not changed(model, before)


def torch_state():
    names = {"0": torch.nn.Conv2d(3, 4, 3), "1": torch.nn.BatchNorm2d(4)}
    return torch.nn.Sequential(*names.values()).state_dict()


def test_a_state_dict_of_pytorch_loads_as_it_is():
    state = torch_state()
    assert "1.num_batches_tracked" in state
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert model.load_state_dict(state) == ([], [])
    for name, value in model.state_dict().items():
        assert np.array_equal(value, state[name].numpy())
    with pytest.raises(ValueError, match=r"unexpected: num_batches$"):
        model.load_state_dict(state | {"num_batches": torch.zeros(())})


def test_loading_that_is_not_strict_says_what_it_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before, state = copy_of(model.state_dict()), torch_state()
    del state["0.bias"]
    state["head.weight"] = torch.zeros(3)
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == ["0.bias"] and found.unexpected_keys == ["head.weight"]
    assert changed(model, before) == {"0.weight"}
    with pytest.raises(ValueError, match=r"wrong shape: 0.weight \(2,\) instead of"):
        model.load_state_dict({"0.weight": np.zeros(2)}, strict=False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4, requires_grad=True), r"\.detach\(\)\.cpu\(\)"),
        (torch.zeros(4, dtype=torch.bfloat16), r"\.float\(\)"),
        (minitl.tensor(np.zeros(4, np.float32)), r"write x\.numpy\(\)"),
        (list("abcd"), "a list of <U1"),
    ],
)
def test_values_that_are_no_arrays_are_refused_and_change_nothing(value, words):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = copy_of(model.state_dict())
    with pytest.raises(TypeError, match=f"1.running_var: .*{words}"):
        model.load_state_dict(torch_state() | {"1.running_var": value})
    assert not changed(model, before)


def test_a_model_is_of_float32_or_float64():
    model = nn.Linear(3, 2)
    assert model.astype("float64").weight.dtype == np.float64
    with pytest.raises(TypeError, match="float32 or float64, not float16"):
        model.astype(np.float16)


def test_modes_reach_every_module():
    model = small_model()
    model.eval()
    assert not any(module.training for _, module in model.named_modules())
    model.train()
    assert all(module.training for _, module in model.named_modules())


def test_replacing_the_head():
    model = small_model()
    model.class_names = list("abcd")
    model.replace_head(7, seed=1)
    assert model.num_classes == 7
    assert model.class_names is None
    assert model(batch()[0]).shape == (6, 7)


@pytest.mark.parametrize(
    ("channels", "groups"), [((0, 4), 1), ((4, 0), 1), ((5, 4), 2), ((4, 5), 2), ((4, 4), 0)]
)
def test_convolutions_that_cannot_be(channels, groups):
    with pytest.raises(ValueError, match=f"from {channels[0]} to {channels[1]}.*{groups} groups"):
        nn.Conv2d(*channels, 3, groups=groups)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (3, -1)])
def test_dense_layers_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="needs inputs and outputs"):
        nn.Linear(*sizes)
    if sizes[1] < 1:
        with pytest.raises(ValueError, match="needs inputs and outputs"):
            models.resnet18(num_classes=sizes[1])


@pytest.mark.parametrize("make", [partial(nn.Conv2d, 3, 6, 3), partial(nn.Linear, 12, 5)])
def test_layers_begin_at_random_unless_a_seed_or_zeros_are_asked_for(make):
    def weight(**options):
        return make(**options).weight.numpy()

    first, second = weight(), weight()
    assert 0.05 < first.std() < 1 and not np.array_equal(first, second)
    seeded = [weight(rng=np.random.default_rng(4)) for _ in "ab"]
    assert np.array_equal(*seeded) and not np.array_equal(first, seeded[0])
    zeros = make(rng="zeros")
    assert not any(p.numpy().any() for p in zeros.parameters())
    for wrong in ("zero", 1.5):
        with pytest.raises(TypeError, match=str(wrong)):
            make(rng=wrong)


def test_dense_layers_without_a_seed_learn():
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    x = minitl.tensor(np.random.default_rng(0).standard_normal((8, 10), dtype=np.float32))
    ops.softmax_cross_entropy(model(x), np.arange(8) % 2).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_a_network_to_be_filled_from_a_file_draws_nothing(arch, monkeypatch):
    """No layer of it forgets to ask for zeros: that would cost seconds, and other bits in each run."""

    def drawn(*seeds):
        raise AssertionError("drawn")

    monkeypatch.setattr(np.random, "default_rng", drawn)
    options = {"auxiliary": True} if arch == "inception_v3" else {}
    model = models.create(arch, seed=None, num_classes=3, **options)
    model.replace_head(4, seed=None, hidden=[5])
    if arch.startswith("vgg"):
        model.flatten_before_head()
    if arch.startswith("resnetv2"):
        models.create(arch, seed=None, conv_bias=True)


def test_a_weight_of_two_layers_is_one_parameter():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    getattr(model, "1").weight = getattr(model, "0").weight
    assert len(model.parameters()) == 3
    assert [name for name in model.state_dict() if "weight" in name] == ["0.weight", "1.weight"]
    optim.SGD(model.parameters(), lr=0.1)


def test_sequential_names_and_runs_in_order():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.ReLU(), nn.Linear(4, 2, bias=False, rng=rng))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight"]
    x = rng.standard_normal((5, 3)).astype(np.float32)
    hidden = np.maximum(x @ model.state_dict()["0.weight"].T + model.state_dict()["0.bias"], 0)
    expected = hidden @ model.state_dict()["2.weight"].T
    np.testing.assert_allclose(model(minitl.tensor(x)).numpy(), expected, rtol=1e-5)


def test_dropout_layer_draws_new_masks_in_training_only():
    layer = nn.Dropout(0.5, seed=1)
    x = minitl.tensor(np.ones((4, 50), np.float32))
    first, second = layer(x).numpy(), layer(x).numpy()
    assert not np.array_equal(first, second)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=r"1\.5"):
        nn.Dropout(1.5)


def test_two_attributes_of_one_name_are_refused():
    model = nn.Module()
    model.train_, model.train__ = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match="train_ and train__ of Module would both be named 'train'"
    ):
        model.state_dict()


def test_dropout_layers_without_a_seed_differ():
    a, b = nn.Dropout(0.5), nn.Dropout(0.5)
    x = minitl.tensor(np.ones((4, 512), np.float32))
    assert not np.array_equal(a(x).numpy(), b(x).numpy())


def test_each_dropout_of_a_network_has_masks_of_its_own_and_the_same_in_each_run():
    def seeds(model):
        return [m.seed for _, m in model.named_modules() if isinstance(m, nn.Dropout)]

    dense, drop = {"type": "dense", "units": 4}, {"type": "dropout"}
    layers = [{"type": "flatten"}, drop, dense, drop, dense, {**drop, "seed": 7}, dense]
    model = models.create("sequential", input=[4, 4], layers=layers)
    assert seeds(model) == [0, 1, 7]
    assert model.arch_options["layers"] == layers
    model.drop_before_head(0.5)
    assert seeds(model) == [0, 1, 7, 3]

    model = models.create("inception_v3", num_classes=3, seed=None)
    assert seeds(model) == [0]
    model.drop_before_head(0.5)
    assert seeds(model) == [0, 1]
    model = models.create("resnet18", num_classes=3, seed=None)
    model.drop_before_head(0.5)
    assert seeds(model) == [0]


def test_every_layer_describes_its_result():
    rng = np.random.default_rng(0)
    x = minitl.tensor(rng.standard_normal((2, 8, 8, 3), dtype=np.float32))
    assert nn.MaxPool2d(3, 2, 1)(x).shape == (2, 4, 4, 3)
    assert nn.AvgPool2d(2)(x).shape == (2, 4, 4, 3)
    assert nn.GlobalAvgPool2d()(x).shape == (2, 3)
    assert nn.Flatten()(x).shape == (2, 192)
    assert nn.Identity()(x) is x
    assert nn.Conv2d(3, 6, (1, 3), padding=(0, 1), groups=3, rng=rng)(x).shape == (2, 8, 8, 6)
    assert nn.BatchNorm2d(3)(x).shape == x.shape


def test_a_frozen_trunk_takes_a_fraction_of_the_memory():
    """What is alive between forward and backward, measured: a trunk that trains keeps activations."""
    x = minitl.tensor(np.zeros((8, 64, 64, 3), np.float32))

    def alive_after_forward(model):
        logits = model(x)  # compiles, and makes what is made once
        del logits
        memory.release()
        tracemalloc.start()
        logits = model(x)
        memory.release()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert logits.requires_grad
        return held

    model = models.resnet18(num_classes=10)
    trained = alive_after_forward(model.train())
    model.freeze("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    frozen = alive_after_forward(model.train())
    assert trained > 8 * 2**20  # activations of 8 pictures
    assert frozen < trained / 20
