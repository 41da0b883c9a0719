"""Published weights on real pictures. These files are not part of the project: licences differ.

Where ../shared/data is missing the tests are skipped; what they check is covered on data of our own
in the other tests.
"""

import csv
import dataclasses
import json
import lzma
import shutil
from pathlib import Path

import pytest

from minitl import hdf5
from minitl.cli import main
from minitl.convert import convert
from minitl.train.predict import predict

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real weights and pictures at {DATA}"),
]


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """ImageNet weights in torch's zip format, converted."""
    folder = tmp_path_factory.mktemp("resnet18")
    packed = DATA / "weights" / "imagenet_resnet18_ktb_dense.pth.xz"
    (folder / "resnet18.pth").write_bytes(lzma.decompress(packed.read_bytes()))
    report = convert(folder / "resnet18.pth", folder / "resnet18.h5")
    assert report.complete and report.arch == "resnet18"
    return folder / "resnet18.h5"


def test_resnet20_of_another_project_keeps_its_accuracy(tmp_path, capsys):
    test = DATA / "images" / "cifar10" / "test"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(sorted(folder.name for folder in test.iterdir())))
    source = DATA / "weights" / "cifar_resnet20_akamaster.th"
    target = tmp_path / "resnet20.h5"
    command = ["convert", source, target, "--class-names", names]
    assert main([str(part) for part in command]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(target), str(test), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 500
    assert abs(figures["accuracy"] * 500 - 455) <= 1


def test_resnet18_knows_imagenet(resnet18):
    folder = DATA / "images" / "imagenet_samples"
    with (folder / "labels.csv").open() as file:
        labels = {row["file"]: row["class_index"] for row in csv.DictReader(file)}
    results = predict(resnet18, [folder / name for name in labels], top=5)
    expected = list(labels.values())
    top1 = sum(r["class"] == label for r, label in zip(results, expected, strict=True))
    top5 = sum(label in dict(r["top"]) for r, label in zip(results, expected, strict=True))
    assert abs(top1 - 76) <= 1
    assert abs(top5 - 92) <= 1


@pytest.mark.slow
def test_finetuning_a_frozen_resnet18_on_sign_digits(resnet18, tmp_path):
    data = DATA / "images" / "signdigits"
    options = ["--freeze", "backbone", "--no-augment", "--lr", "0.01", "--epochs", "20"]
    summary = finetune(tmp_path, data, "--weights", resnet18, *options, "--no-report")
    assert summary["train_images"] == 400
    assert summary["val"]["accuracy"] >= 0.90


# ------------------------------------------------------ the recipes, on photographs at 64 pixels


def finetune(tmp_path, *options):
    command = ["finetune", *options, "--out", tmp_path / "run"]
    assert main([str(part) for part in command]) == 0
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.fixture(scope="module")
def small(resnet18, tmp_path_factory):
    """The same weights, for pictures of 64 pixels: a tenth of the time."""
    file = hdf5.read(resnet18)
    path = tmp_path_factory.mktemp("small") / "resnet18.h5"
    preprocessing = file.preprocessing | {"resize": 64, "crop": 64}
    hdf5.write(path, dataclasses.replace(file, preprocessing=preprocessing, golden=None))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options", "accuracy"),
    [
        ("all-layers", ["--epochs", 2], 0.7),
        ("frozen-mlp", ["--epochs", 5, "--lr", 0.001], 0.5),
    ],
)
def test_recipes_on_sign_digits(small, tmp_path, recipe, options, accuracy):
    data = DATA / "images" / "signdigits"
    how = ("--weights", small, "--recipe", recipe, "--no-flip", "--no-report")
    assert finetune(tmp_path, data, *how, *options)["val"]["accuracy"] > accuracy


@pytest.mark.slow
def test_adamw_steps_with_labels_from_file_names(small, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for picture in (DATA / "images" / "signdigits" / "train").rglob("*.JPG"):
        shutil.copy(picture, flat / f"sign{picture.parent.name}_{picture.name}")
    how = ("--weights", small, "--recipe", "adamw-steps", "--no-flip", "--no-report")
    labels = ("--label-from-name", "sign(?P<label>[0-9])_", "--test-fraction", 0.2)
    summary = finetune(tmp_path, flat, *how, *labels, "--epochs", 2, "--step-epochs", 1)
    assert summary["test"]["images"] == 80
    assert summary["test"]["accuracy"] > summary["before"]["accuracy"] + 0.3


@pytest.mark.slow
def test_all_layers_on_blood_cells(small, tmp_path):
    """Classes of 12 to 124 pictures: better than to say the most frequent one each time."""
    data = DATA / "images" / "bccd_wbc"
    how = ("--weights", small, "--recipe", "all-layers", "--vertical-flip", "--no-report")
    summary = finetune(tmp_path, data, *how, "--epochs", 2)
    assert summary["val"]["accuracy"] > 0.62


def test_a_head_on_features_of_sign_digits(small, tmp_path):
    file = tmp_path / "features.h5"
    data = DATA / "images" / "signdigits"
    assert main(["features", str(data), "--weights", str(small), "--out", str(file)]) == 0
    summary = finetune(tmp_path, "--features", file, "--epochs", 15, "--no-report")
    assert summary["val"]["accuracy"] > 0.6
