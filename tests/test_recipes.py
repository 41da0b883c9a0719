"""Recipes: each as one command on real handwritten digits, with the settings that it promises."""

import csv
import json
import shutil
import tomllib

import numpy as np
import pytest

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.data.digits import write_digits
from minitl.errors import UserError
from minitl.train.config import Config, make_config
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


@pytest.fixture(scope="module")
def few(digits, tmp_path_factory):
    """A handful: the digits 0 and 1, 5 of each to train on and 5 to be judged on."""
    folder = tmp_path_factory.mktemp("few")
    for part in ("train", "val"):
        for label in "01":
            (folder / part / label).mkdir(parents=True)
            for picture in sorted((digits / part / label).iterdir())[:5]:
                shutil.copy(picture, folder / part / label)
    return folder


def finetune(tmp_path, data, recipe, *options, weights=STROKES):
    out = tmp_path / "run"
    command = ["finetune", data, "--weights", weights, "--out", out, "--recipe", recipe]
    settings = ("--no-report", "--seed", 1, *options)
    assert main([str(part) for part in (*command, *settings)]) == 0
    config = tomllib.loads((out / "config.toml").read_text())
    return json.loads((out / "summary.json").read_text()), config, hdf5.read(out / "best.h5")


def losses(tmp_path):
    """Return the training loss of each epoch."""
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    return [float(row["train_loss"]) for row in rows]


def save_small(model, path, side):
    """Save a network that is shown pictures of so many pixels a side."""
    model.preprocessing = model.preprocessing | {"resize": side, "crop": side}
    minitl.save_model(model, path)
    return path


def test_all_layers(tmp_path, digits):
    options = ("--epochs", 8, "--batch-size", 5, "--no-augment")
    summary, config, best = finetune(tmp_path, digits, "all-layers", *options)
    assert (config["optimizer"], config["momentum"], config["lr"]) == ("sgd", 0.9, 0.001)
    assert summary["test"]["accuracy"] > 0.5
    before = hdf5.read(STROKES).state
    assert all((best.state[n] != a).any() for n, a in before.items() if n.endswith("conv1.weight"))


@pytest.mark.slow
def test_all_layers_of_a_resnet50(tmp_path, few):
    """From random weights: what its bottlenecks have learned elsewhere is not at hand here."""
    weights = save_small(models.resnet50(num_classes=5, seed=1), tmp_path / "resnet50.h5", 64)
    options = ("--epochs", 1, "--batch-size", 5, "--no-augment")
    summary, config, best = finetune(tmp_path, few, "all-layers", *options, weights=weights)
    assert summary["model"] == "resnet50" and np.isfinite(summary["val"]["loss"])
    assert (config["optimizer"], config["momentum"], config["lr"]) == ("sgd", 0.9, 0.001)
    before = hdf5.read(weights).state
    filters = [name for name in before if "conv" in name]
    assert len(filters) == 49
    assert all((best.state[name] != before[name]).any() for name in filters)


def test_frozen_mlp(tmp_path, digits):
    summary, config, best = finetune(tmp_path, digits, "frozen-mlp", "--epochs", 6, "--no-flip")
    assert (config["optimizer"], config["lr"]) == ("adam", 1e-4)
    assert (config["shear"], config["zoom"]) == (10.0, 0.2)
    assert best.arch_options["head"] == [1024]
    before = hdf5.read(STROKES).state
    heads = [n for n in before if n.startswith("linear.")]
    assert all(best.state[n].tobytes() == a.tobytes() for n, a in before.items() if n not in heads)
    assert summary["test"]["accuracy"] > 0.5


def test_adamw_steps_with_labels_from_file_names(tmp_path, digits, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in digits.rglob("*.png"):
        part, label, name = picture.relative_to(digits).parts
        shutil.copy(picture, flat / f"{part}_digit{label}_{name}")
    pattern = "^(?P<part>[a-z]+)_digit(?P<label>[0-9])_"
    options = ("--epochs", 5, "--step-epochs", 3, "--no-flip", "--lr", 0.002)
    options += ("--label-from-name", pattern)
    summary, config, _ = finetune(tmp_path, flat, "adamw-steps", *options)
    assert summary["train_images"] == 100 and summary["test"]["images"] == 300
    assert (config["optimizer"], config["schedule"], config["patience"]) == ("adamw", "step", 5)
    assert (config["step_epochs"], config["dropout"], config["lr"]) == (3, 0.3, 0.002)
    assert summary["before"]["part"] == "test"
    assert summary["before"]["accuracy"] < 0.3
    assert summary["test"]["accuracy"] > summary["before"]["accuracy"] + 0.3
    assert "before and after" in capsys.readouterr().out
    folder = tmp_path / "run"
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert json.loads((folder / "summary.json").read_text())["before"] == summary["before"]


@pytest.mark.slow
def test_frozen_vgg(tmp_path, few):
    """With the layers of a VGG-16, from random weights; 1024 would take 0.3 GB to save."""
    model = models.create("vgg16", num_classes=4, seed=3, hidden=4)
    weights = save_small(model, tmp_path / "vgg.h5", 64)
    options = ("--head", "flat:32", "--epochs", 2)
    _, config, best = finetune(tmp_path, few, "frozen-vgg", *options, weights=weights)
    assert (config["optimizer"], config["lr"], config["augment"]) == ("adam", 1e-4, False)
    assert best.arch_options == {"hidden": 0, "head": [32]}
    assert best.state["classifier.0.weight"].shape == (32, 25088)
    before = hdf5.read(weights).state
    trunk = [n for n in before if n.startswith("features.")]
    assert len(trunk) == 26
    assert all(best.state[n].tobytes() == before[n].tobytes() for n in trunk)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_a_head_on_a_file_of_features(tmp_path, digits):
    file, out = tmp_path / "features.h5", tmp_path / "run"
    assert main(["features", str(digits), "--weights", str(STROKES), "--out", str(file)]) == 0
    command = ["finetune", "--features", file, "--out", out, "--epochs", 10, "--no-report"]
    assert main([str(part) for part in command]) == 0
    assert json.loads((out / "summary.json").read_text())["test"]["accuracy"] > 0.5


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


def test_what_is_given_overrides_an_earlier_run_s_settings(tmp_path):
    """And what belonged to the settings that it replaces goes with them."""
    file = tmp_path / "config.toml"
    common = {"data": "d", "weights": "w.h5", "epochs": 4}
    sgd = {"nesterov": True, "momentum": 0.8, "lr": 0.05, "lr_for": ("head=0.1",)}
    Config(**common, **sgd, weight_decay=0.1, schedule="step", step_epochs=2, gamma=0.5).save(file)
    same = make_config(file, {"optimizer": "sgd", "dropout": 0.1})
    assert (same.nesterov, same.momentum, same.lr, same.lr_for) == (*sgd.values(),)
    adam = make_config(file, {"optimizer": "adam"})
    assert (adam.nesterov, adam.momentum, adam.lr, adam.lr_for) == (False, 0.9, None, ())
    assert (adam.weight_decay, adam.gamma, adam.epochs) == (None, 0.5, 4)
    cosine = make_config(file, {"schedule": "cosine"})
    assert (cosine.gamma, cosine.step_epochs, cosine.lr) == (None, 7, 0.05)
    Config(**common, augment=False, freeze=("layer1",), freeze_until="layer2").save(file)
    assert make_config(file, {"rotation": 5.0}).augment
    gradual = make_config(file, {"unfreeze_schedule": ("head:0",)})
    assert (gradual.freeze, gradual.freeze_until) == (("none",), None)


def test_settings_that_exclude_those_of_an_earlier_run_replace_them(tmp_path):
    file = tmp_path / "config.toml"
    common = {"data": "d", "weights": "w.h5"}

    def with_options(earlier, **given):
        Config(**common, **earlier).save(file)
        return make_config(file, given)

    gradual = {"unfreeze_schedule": ("head:0",)}
    assert with_options(gradual, freeze=("backbone",)).unfreeze_schedule == ()
    assert with_options(gradual, freeze_until="layer2").unfreeze_schedule == ()
    table = {"labels": "l.csv", "task": ("a=number",), "task_weight": ("a=2",)}
    named = with_options(table, label_from_name="(?P<label>.)")
    assert (named.labels, named.task, named.task_weight) == (None, (), ())
    assert with_options({"label_from_name": "x"}, labels="l.csv").label_from_name is None
    views = {"cached_views": 2, "freeze": ("backbone",)}
    for given in ({"feature_cache": "off"}, {"augment": False}, {"mixup": 0.2}, {"cutmix": 1.0}):
        assert with_options(views, **given).cached_views == 0
    assert with_options(views, adversarial="pgd:2").cached_views == 0
    assert with_options(views, feature_cache="dir").cached_views == 2
    assert with_options({"mixup": 0.2, "freeze": ("backbone",)}, cached_views=2).mixup == 0
    on_features = {"features": "f.h5", "freeze": ("backbone",), "augment": False}
    mixed = {"mixup": 0.2, "cutmix": 1.0}
    for earlier in (gradual, table, views, mixed, {"adversarial": "pgd:2"}, {"from_scratch": True}):
        config = with_options(earlier, **on_features)
        usual = Config(**common, **on_features)
        assert all(getattr(config, name) == getattr(usual, name) for name in earlier)


def test_recipes_name_settings_that_there_are():
    for name, recipe in RECIPES.items():
        config = make_config(None, {"data": "d", "weights": "w.h5", "recipe": name})
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
