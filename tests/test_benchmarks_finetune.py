"""The speed of whole runs: same pictures, same start, and figures that follow from the runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minitl
from benchmarks import finetune, report, rivals, torch_finetune
from minitl import models
from minitl.data.preprocessing import Preprocessing
from tests.test_finetune import write_pictures

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.h5"
    minitl.save_model(models.create("resnet18", num_classes=5, seed=1), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "train", per_class=2)
    write_pictures(root / "val", per_class=1, seed=1)
    return root


def test_both_start_from_the_same_network(weights, pictures, tmp_path):
    assert finetune.write_start(tmp_path / "s.pt", weights, pictures, 3) == "resnet18"
    network = rivals.ResNet(*rivals.NETWORKS["resnet18"], classes=3).eval()
    network.load_state_dict(torch.load(tmp_path / "s.pt"))
    model = minitl.load_model(weights).eval()
    model.replace_head(3, seed=3)
    x = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    assert np.allclose(theirs, model(minitl.tensor(x)).numpy(), rtol=1e-3, atol=1e-4)


def test_both_prepare_pictures_alike(pictures):
    dataset = torch_finetune.ImageFolder(pictures / "val", augment=False)
    assert dataset.classes == ["blue", "green", "red"]
    path, label = dataset.samples[2]
    found, given = dataset[2]
    assert given == label == 2
    image = torch_finetune.Image.open(path).convert("RGB")
    expected = Preprocessing().evaluation(image)
    assert np.allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    varied = torch_finetune.ImageFolder(pictures / "val", augment=True)
    assert varied[0][0].shape == (3, 224, 224)


def run(*more):
    command = [sys.executable, "-m", "benchmarks", "finetune", *map(str, more)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_whole_comparison(weights, pictures, tmp_path):
    options = ("--weights", weights, "--seeds", 1, "--epochs", 1, "--rivals", "usual")
    options += ("--torch-workers", 0, "--tasks", "frozen", "--json", tmp_path / "f.json")
    done = run(pictures, *options)
    assert done.returncode in (0, 1), done.stderr  # with three pictures either may be better
    assert "minitl beside the faster script" in done.stdout
    (group,) = json.loads((tmp_path / "f.json").read_text())["groups"]
    assert group["same_pictures"]
    assert group["runs"]["minitl"][0]["pictures"] == [6, 3]
    assert [c["name"] for c in group["contenders"]] == ["minitl", "PyTorch"]
    assert all(c["seconds"] > 0 and c["peak_mb"] > 50 for c in group["contenders"])


def test_what_cannot_be_compared_is_said(weights, pictures, tmp_path):
    small = tmp_path / "small.h5"
    minitl.save_model(models.cifar_resnet20(), small)
    for data, file, word in (
        (pictures / "train", weights, "no folder train and val"),
        (pictures, small, "no rival for cifar_resnet20"),
        (pictures, tmp_path / "none.h5", "does not exist"),
    ):
        assert word in finetune.problem_with(data, file)
    done = run(pictures, "--weights", weights, "--tasks", "half")
    assert done.returncode == 2
    assert "choose from full, frozen" in done.stderr


def test_figures():
    def one(seconds, accuracy):
        return {"seconds": seconds, "val_accuracy": accuracy, "peak_mb": 1.0, "pictures": [6, 3]}

    runs = {
        "minitl": [one(1, 0.8), one(3, 0.9)],
        "slow": [one(9, 0.1), one(9, 0.1)],
        "fast": [one(5, 0.86), one(7, 0.96)],
    }
    found = finetune.summary(runs)
    assert found["ratio"] == 3
    assert found["accuracy_behind"] == pytest.approx(0.06)
    assert found["accuracy_sd"] == pytest.approx(0.1 / 2**0.5)
    assert found["same_accuracy"]
    runs["fast"] = [one(5, 0.9), one(7, 1.0)]
    assert not finetune.summary(runs)["same_accuracy"]
    runs["fast"][0]["pictures"] = [5, 3]
    assert not finetune.summary(runs)["same_pictures"]


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (-0.038, "  accuracy: 3.8 points above the faster script (sd 2.1)\n"),
        (0.01, "  accuracy: 1.0 points below the faster script (sd 2.1)\n"),
        (0.06, "  accuracy WORSE: 6.0 points below the faster script (sd 2.1)\n"),
    ],
)
def test_accuracy_is_said_to_be_above_or_below(capsys, behind, words):
    group = {
        "task": {"frozen": True, "epochs": 1, "lr": 0.01},
        "seeds": 1,
        "contenders": [],
        "ratio": 2.0,
        "same_pictures": True,
        "accuracy_behind": behind,
        "accuracy_sd": 0.021,
        "same_accuracy": behind <= 0.021,
        "runs": {"minitl": [{"timing": {}}]},
    }
    report.show_finetune("resnet18", group)
    assert words in capsys.readouterr().out


def test_a_process_that_fails_is_named():
    with pytest.raises(finetune.Failed, match=r"minitl ended with 1: .*no such"):
        finetune.timed("minitl", [sys.executable, "-c", "raise SystemExit('no such thing')"])
