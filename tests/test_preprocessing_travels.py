"""Preprocessing, origin and licence go with the weights; a run that asks for others is refused."""

import shutil
import tomllib

import numpy as np
import pytest
import tomli_w
from PIL import Image

from minitl import hdf5, models, save_model
from minitl.cli import main
from minitl.convert import locate
from minitl.convert.golden import self_test

PREPROCESSING = {
    "resize": 36,
    "crop": 32,
    "interpolation": "bicubic",
    "channel_order": "BGR",
    "scale": 1.0,
    "mean": [103.939, 116.779, 123.68],
    "std": [1.0, 1.0, 1.0],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "greys"
    for level, name in ((60, "dark"), (190, "light")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            picture = np.full((40, 40, 3), level + number, np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = models.create("cifar_resnet20", num_classes=5, width=4, seed=1)
    model.preprocessing = dict(PREPROCESSING)
    path = tmp_path_factory.mktemp("weights") / "w.h5"
    save_model(model, path, source="a forest", source_sha256="ab" * 32, license="CC BY-NC 4.0")
    return path


@pytest.fixture(scope="module")
def finished(data, weights, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert finetune(data, "--weights", weights, "--out", folder) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def finetune(*arguments):
    small = ["--epochs", 1, "--batch-size", 4, "--no-augment", "--threads", 1, "--no-report"]
    return main([str(argument) for argument in ("finetune", *arguments, *small)])


def change_settings(run, **values):
    path = run / "config.toml"
    settings = tomllib.loads(path.read_text())
    settings["preprocessing"] |= values
    path.write_text(tomli_w.dumps(settings))


def test_a_run_keeps_preprocessing_origin_and_licence(finished, data):
    assert tomllib.loads((finished / "config.toml").read_text())["preprocessing"] == PREPROCESSING
    best, last = (hdf5.read(finished / name) for name in ("best.h5", "last.h5"))
    for contents in (best, last):
        assert contents.preprocessing == PREPROCESSING
        assert contents.license == "CC BY-NC 4.0"
        assert contents.source_sha256 == "ab" * 32
    assert last.source == "a forest"  # what a resumed run goes on from
    assert best.source == f"minitl finetune {data}, from a forest"
    assert self_test(best, "best.h5").passed


def test_from_scratch_nothing_is_owed_to_anybody(data, weights, tmp_path):
    assert finetune(data, "--weights", weights, "--from-scratch", "--out", tmp_path / "run") == 0
    best = hdf5.read(tmp_path / "run" / "best.h5")
    assert best.preprocessing == PREPROCESSING
    assert (best.license, best.source_sha256) == ("", "")
    assert best.source == f"minitl finetune {data}, from scratch"


def test_other_preprocessing_than_the_weights_is_refused(run, data, tmp_path, capsys):
    change_settings(run, resize=40, channel_order="RGB")
    config = run / "config.toml"
    assert finetune("--config", config, "--out", tmp_path / "new") == 1
    error = capsys.readouterr().err
    assert "resize 40 instead of 36, channel_order 'RGB' instead of 'BGR'" in error
    assert "w.h5" in error and not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["resume", "evaluate", "predict"])
def test_a_run_and_its_weights_must_agree(run, data, capsys, command):
    change_settings(run, interpolation="bilinear")
    commands = {
        "resume": ["finetune", "--resume", run],
        "evaluate": ["evaluate", run, data, "--part", "all"],
        "predict": ["predict", run, data / "dark" / "0.png"],
    }
    assert main([str(argument) for argument in commands[command]]) == 1
    error = capsys.readouterr().err
    assert "interpolation 'bilinear' instead of 'bicubic'" in error
    assert str(run) in error


def test_settings_that_are_no_preprocessing_are_refused(run, data, tmp_path, capsys):
    change_settings(run, crop="all of it")
    assert finetune("--config", run / "config.toml", "--out", tmp_path / "new") == 1
    assert "crop must be" in capsys.readouterr().err


def test_a_network_from_scratch_takes_the_settings(data, run, tmp_path):
    """`--config` repeats a run without pretrained weights, preprocessing included."""
    change_settings(run, crop=24)
    settings = tomllib.loads((run / "config.toml").read_text())
    del settings["weights"]
    settings["arch"] = "cifar_resnet20"
    (run / "config.toml").write_text(tomli_w.dumps(settings))
    assert finetune("--config", run / "config.toml", "--out", tmp_path / "new") == 0
    assert hdf5.read(tmp_path / "new" / "best.h5").preprocessing == PREPROCESSING | {"crop": 24}


def test_exported_weights_say_it_too(finished, tmp_path):
    target = tmp_path / "m.safetensors"
    assert main(["export", str(finished), str(target)]) == 0
    assert main(["convert", str(target), str(tmp_path / "m.h5")]) == 0
    before, after = hdf5.read(finished / "best.h5"), hdf5.read(tmp_path / "m.h5")
    assert after.preprocessing == PREPROCESSING
    assert (after.class_names, after.license) == (["dark", "light"], "CC BY-NC 4.0")
    assert np.array_equal(after.golden.logits, before.golden.logits)


def test_weights_by_name(data, weights, tmp_path, monkeypatch, capsys):
    """A name of the catalogue does where a file does, and is what config.toml remembers."""
    asked = []

    def pull(name, **_):
        asked.append(name)
        return weights

    monkeypatch.setattr(locate, "pull", pull)
    folder = tmp_path / "run"
    assert finetune(data, "--weights", "resnet18.torchvision_v1", "--out", folder) == 0
    settings = tomllib.loads((folder / "config.toml").read_text())
    assert settings["weights"] == "resnet18.torchvision_v1"
    assert main(["predict", "resnet18.torchvision_v1", str(data / "dark" / "0.png")]) == 0
    assert main(["inspect", "resnet18.torchvision_v1"]) == 0
    assert main(["export", "resnet18.torchvision_v1", str(tmp_path / "m.pth")]) == 0
    assert "prepare pictures with" in capsys.readouterr().out
    assert asked == ["resnet18.torchvision_v1"] * 4


@pytest.mark.parametrize(
    "command",
    [
        ("finetune", "DATA", "--weights", "W", "--out", "OUT"),
        ("preview", "DATA", "--weights", "W", "--out", "OUT"),
        ("evaluate", "W", "DATA"),
        ("predict", "W", "DATA"),
        ("serve", "W"),
        ("features", "DATA", "--weights", "W", "--out", "OUT"),
        ("doctor-data", "DATA", "--weights", "W"),
    ],
    ids=lambda command: command[0],
)
def test_weights_that_do_not_say_it_are_refused_in_the_same_words(
    command, data, weights, tmp_path, capsys
):
    contents = hdf5.read(weights)
    contents.preprocessing, contents.golden = {}, None
    hdf5.write(tmp_path / "w.h5", contents)
    words = {"DATA": data, "W": tmp_path / "w.h5", "OUT": tmp_path / "out"}
    assert main([str(words.get(word, word)) for word in command]) == 1
    assert capsys.readouterr().err == (
        f"minitl: {tmp_path / 'w.h5'} does not say how pictures are prepared for it; convert it again with "
        "minitl convert, which records the preprocessing\n"
    )
    assert not (tmp_path / "out").exists()
