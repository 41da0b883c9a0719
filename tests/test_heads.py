"""Heads of several dense layers: in networks, in weights files, in runs."""

import json

import numpy as np
import pytest

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.errors import UserError
from minitl.tensor import Tensor
from minitl.train.heads import parse_head, replace_head
from tests.test_finetune import expect_error, pictures, run, weights

__all__ = ["pictures", "run", "weights"]  # fixtures


def small():
    return models.create("cifar_resnet20", num_classes=5, seed=1, width=4, shortcut="B")


def test_a_head_of_several_layers_computes_them_in_turn():
    model = small()
    model.replace_head(3, seed=2, hidden=(7, 6))
    names = [name for name in model.state_dict() if name.startswith("linear")]
    assert names == [f"linear.{n}.{what}" for n in (0, 2, 4) for what in ("weight", "bias")]
    assert (model.num_classes, model.last_name) == (3, "linear.4")
    assert model.arch_options["head"] == [7, 6]
    features = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    state, expected = model.state_dict(), features.astype(np.float64)
    for number in (0, 2, 4):
        expected = expected @ state[f"linear.{number}.weight"].T + state[f"linear.{number}.bias"]
        expected = np.maximum(expected, 0) if number < 4 else expected
    np.testing.assert_allclose(model.head(Tensor(features)).data, expected, rtol=1e-4, atol=1e-5)
    assert set(model.backbone_parameters()) == set(small().backbone_parameters())
    model.replace_head(4)
    assert "head" not in model.arch_options
    assert model.state_dict()["linear.weight"].shape == (4, 16)


@pytest.mark.parametrize(
    "arch", ["cifar_resnet20", "vgg11", "vgg11 flat", "sequential", "inception_v3"]
)
def test_weights_files_hold_such_heads(tmp_path, arch):
    layers = [
        {"type": "conv", "channels": 4, "kernel": 3, "stride": 2},
        {"type": "global_avgpool"},
        {"type": "dense", "units": 5},
    ]
    options = {
        "sequential": {"layers": layers},
        "vgg11": {"hidden": 16},
        "vgg11 flat": {"hidden": 4},
    }
    name = arch.split()[0]
    model = models.create(name, num_classes=5, seed=1, **options.get(arch, {}))
    if "flat" in arch:
        model.flatten_before_head()
    model.replace_head(3, seed=2, hidden=[8])
    model.drop_before_head(0.5)
    minitl.save_model(model, tmp_path / "w.h5")
    again = models.load_model(tmp_path / "w.h5")
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(np.array_equal(array, again.state_dict()[n]) for n, array in state.items())
    assert again.arch_options == model.arch_options
    assert again.num_classes == 3
    if name != "inception_v3":
        x = Tensor(np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32))
        assert np.array_equal(model.eval()(x).data, again.eval()(x).data)


def test_a_vgg_without_its_dense_layers():
    model = models.create("vgg11", num_classes=5, seed=1, hidden=8)
    trunk = {n: a.copy() for n, a in model.state_dict().items() if n.startswith("features")}
    replace_head(model, "flat:6", 3, seed=4)
    shapes = {n: a.shape for n, a in model.state_dict().items() if n.startswith("classifier")}
    assert shapes == {
        "classifier.0.weight": (6, 25088),
        "classifier.0.bias": (6,),
        "classifier.2.weight": (3, 6),
        "classifier.2.bias": (3,),
    }
    assert all(np.array_equal(model.state_dict()[n], a) for n, a in trunk.items())
    assert model.features(Tensor(np.ones((1, 32, 32, 3), np.float32))).shape == (1, 25088)
    with pytest.raises(UserError, match="only VGG"):
        replace_head(small(), "flat:6", 3, seed=4)


def test_a_linear_head_that_is_new_stays():
    model, same = small(), small()
    replace_head(model, "linear", 5, seed=9, fresh=True)
    assert np.array_equal(model.head.weight.data, same.head.weight.data)
    replace_head(model, "linear", 5, seed=9)
    assert not np.array_equal(model.head.weight.data, same.head.weight.data)


@pytest.mark.parametrize("options", [(), ("--freeze", "backbone", "--no-augment")])
def test_a_run_with_such_a_head(run, pictures, capsys, options):
    head = ("--head", "mlp:16,8", "--dropout", 0.1, "--optimizer", "adam", "--lr", 0.005)
    code, folder = run(*head, *options, "--epochs", 8)
    assert code == 0
    best = hdf5.read(folder / "best.h5")
    assert best.arch_options["head"] == [16, 8]
    assert best.state["linear.4.weight"].shape == (3, 8)
    assert main(["finetune", "--resume", str(folder)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(pictures), "--part", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 24
    # and on with it: another head in its place
    assert run("--weights", folder / "best.h5", "--epochs", 1, out="next")[0] == 0
    assert hdf5.read(folder.parent / "next" / "best.h5").state["linear.weight"].shape == (3, 16)


def test_from_scratch_with_such_a_head(run, tmp_path):
    assert run("--from-scratch", "--head", "mlp:8", "--epochs", 1)[0] == 0
    assert hdf5.read(tmp_path / "run" / "best.h5").arch_options["head"] == [8]


@pytest.mark.parametrize(
    "text", ["mlp", "mlp:", "mlp:0", "mlp:8,", "linear:8", "flat", "mlp:8,8,8,8,8,8,8,8,8", "dense"]
)
def test_what_is_no_head(text):
    with pytest.raises(UserError, match="--head cannot be"):
        parse_head(text)


@pytest.mark.parametrize("head", [[0], ["8"], 8, [True], [8] * 9, [70000], None, 0, False, ""])
def test_files_with_heads_that_cannot_be(head):
    with pytest.raises(ValueError, match="head"):
        models.create("cifar_resnet20", seed=None, head=head)


def test_bad_options(run, capsys):
    expect_error(capsys, run("--head", "flat:8")[0], "--head flat:8", "cifar_resnet20", "mlp")
