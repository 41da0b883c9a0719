"""Recipes: each as one command on real handwritten digits, with the settings that it promises."""

import json
import tomllib

import pytest

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.data.digits import write_digits
from minitl.errors import UserError
from minitl.train.config import make_config
from minitl.train.recipes import BELONGING, RECIPES, settings_of
from minitl.weights import STROKES
from tests.test_finetune import expect_error, pictures, run, weights

__all__ = ["pictures", "run", "weights"]  # fixtures


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Handwritten digits as pictures: 10 of each to train on, 30 of each to be tested on."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, labels_per_class=10)
    for label in (folder / "test").iterdir():
        for picture in sorted(label.iterdir())[30:]:
            picture.unlink()
    return folder


def finetune(tmp_path, digits, recipe, *options):
    out = tmp_path / "run"
    command = ["finetune", digits, "--weights", STROKES, "--out", out, "--recipe", recipe]
    settings = ("--no-report", "--seed", 1, *options)
    assert main([str(part) for part in (*command, *settings)]) == 0
    config = tomllib.loads((out / "config.toml").read_text())
    return json.loads((out / "summary.json").read_text()), config, hdf5.read(out / "best.h5")


def test_all_layers(tmp_path, digits):
    options = ("--epochs", 8, "--batch-size", 5, "--no-augment")
    summary, config, best = finetune(tmp_path, digits, "all-layers", *options)
    assert (config["optimizer"], config["momentum"], config["lr"]) == ("sgd", 0.9, 0.001)
    assert summary["test"]["accuracy"] > 0.5
    before = hdf5.read(STROKES).state
    assert all((best.state[n] != a).any() for n, a in before.items() if n.endswith("conv1.weight"))


def test_frozen_mlp(tmp_path, digits):
    summary, config, best = finetune(tmp_path, digits, "frozen-mlp", "--epochs", 6, "--no-flip")
    assert (config["optimizer"], config["lr"]) == ("adam", 1e-4)
    assert (config["shear"], config["zoom"]) == (10.0, 0.2)
    assert best.arch_options["head"] == [1024]
    before = hdf5.read(STROKES).state
    heads = [n for n in before if n.startswith("linear.")]
    assert all(best.state[n].tobytes() == a.tobytes() for n, a in before.items() if n not in heads)
    assert summary["test"]["accuracy"] > 0.5


def test_adamw_steps(tmp_path, digits, capsys):
    options = ("--epochs", 5, "--step-epochs", 3, "--no-flip", "--lr", 0.002)
    summary, config, _ = finetune(tmp_path, digits, "adamw-steps", *options)
    assert (config["optimizer"], config["schedule"], config["patience"]) == ("adamw", "step", 5)
    assert (config["step_epochs"], config["dropout"], config["lr"]) == (3, 0.3, 0.002)
    assert summary["before"]["part"] == "test"
    assert summary["before"]["accuracy"] < 0.3
    assert summary["test"]["accuracy"] > summary["before"]["accuracy"] + 0.3
    assert "before and after" in capsys.readouterr().out
    folder = tmp_path / "run"
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert json.loads((folder / "summary.json").read_text())["before"] == summary["before"]


def test_frozen_vgg(run, tmp_path):
    """With the network of a VGG and 3 kinds of noise; 1024 would take 0.3 GB to save."""
    model = models.create("vgg11", num_classes=4, seed=3, hidden=4)
    model.preprocessing = model.preprocessing | {"resize": 32, "crop": 32}
    minitl.save_model(model, tmp_path / "vgg.h5")
    options = ("--weights", tmp_path / "vgg.h5", "--recipe", "frozen-vgg", "--lr", 1e-4)
    code, folder = run(*options, "--head", "flat:32", "--epochs", 4)
    assert code == 0
    best = hdf5.read(folder / "best.h5")
    assert best.arch_options == {"hidden": 0, "head": [32]}
    assert best.state["classifier.0.weight"].shape == (32, 25088)
    before = hdf5.read(tmp_path / "vgg.h5").state
    trunk = [n for n in before if n.startswith("features.")]
    assert all(best.state[n].tobytes() == before[n].tobytes() for n in trunk)
    rows = (folder / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert losses[-1] < losses[0]


def test_what_is_given_overrides_a_recipe():
    common = {"data": "d", "arch": "resnet18", "recipe": "adamw-steps"}
    config = make_config(None, common | {"epochs": 3, "schedule": "cosine", "dropout": 0.0})
    assert (config.epochs, config.schedule, config.dropout) == (3, "cosine", 0.0)
    assert (config.optimizer, config.lr, config.gamma, config.step_epochs) == (
        *("adamw", 3e-4, None),
        7,
    )
    sgd = make_config(None, common | {"optimizer": "sgd"})
    assert (sgd.lr, sgd.weight_decay) == (None, None)  # what is usual for sgd
    varied = settings_of("frozen-vgg", {"rotation": 5.0})
    assert "augment" not in varied and varied["head"] == "flat:1024"
    assert "shear" not in settings_of("frozen-mlp", {"augment": False})


def test_recipes_name_settings_that_there_are():
    for name, recipe in RECIPES.items():
        config = make_config(None, {"data": "d", "arch": "resnet18", "recipe": name})
        assert all(getattr(config, option) == value for option, value in recipe.items())
    everything = vars(make_config(None, {"data": "d", "arch": "resnet18"}))
    assert BELONGING.keys() <= everything.keys()
    assert {other for others in BELONGING.values() for other in others} <= everything.keys()


def test_bad_options(run, capsys, tmp_path):
    expect_error(capsys, run("--recipe", "best")[0], "--recipe", "best", "frozen-mlp")
    expect_error(capsys, run("--recipe", "all-layers", "--config", "c.toml")[0], "--recipe")
    expect_error(capsys, run("--recipe", "frozen-vgg")[0], "flat:1024", "cifar_resnet20")
    with pytest.raises(UserError, match="choose one of"):
        settings_of("", {})
