"""Adversarial training: on changed pictures, repeatable, refused where there are no pictures to change."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.errors import UserError
from minitl.train.attack import Attack
from minitl.train.config import Config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adversarial")
    random = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 150, (32, 32, 3)) + 100 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / name / f"{i}.png")
    minitl.save_model(models.cifar_resnet20(num_classes=2, width=4, seed=1), folder / "w.h5")
    return folder


def train(place: Path, out: Path, *words: object) -> dict[str, np.ndarray]:
    command = ["finetune", place / "data", "--weights", place / "w.h5", "--out", out, "--no-report"]
    options = ["--epochs", 1, "--batch-size", 5, "--lr", 0.05]
    assert main([str(word) for word in (*command, *options, *words)]) == 0
    return dict(hdf5.read(out / "last.h5").state)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_it_trains_on_other_pictures_and_repeats_to_the_bit(place: Path, tmp_path: Path) -> None:
    attacked = train(place, tmp_path / "a", "--adversarial", "fgsm:4")
    assert same(attacked, train(place, tmp_path / "b", "--adversarial", "fgsm:4"))
    assert not same(attacked, train(place, tmp_path / "c"))


def test_what_parse_reads() -> None:
    assert Attack.parse("pgd:4", seed=3) == Attack("pgd", 4.0, steps=7, seed=3)
    for text in ("pgd:", "cw:2", "fgsm:0", "pgd:x"):
        with pytest.raises(UserError, match="--adversarial"):
            Attack.parse(text)


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": ("backbone",), "augment": False},
        {"freeze": ("backbone",), "cached_views": 2},
        {"features": "f.h5", "augment": False},
        {"adversarial": "no:2"},
    ],
)
def test_senseless_combinations_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="--adversarial"):
        Config("data", "w.h5", **({"adversarial": "fgsm:2"} | settings))
