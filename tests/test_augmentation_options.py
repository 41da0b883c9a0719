"""Options for varying pictures: they reach the loader, and `minitl preview` shows the same pictures."""

import numpy as np
import pytest
from PIL import Image

from minitl import hdf5
from minitl.cli import main
from minitl.data.augment import Augmentation
from minitl.data.folder import scan
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.data.preview import CAPTION, MARGIN, contact_sheet
from minitl.train import run as run_module
from minitl.train.config import Config
from minitl.train.preview import NARROWEST
from tests.test_finetune import expect_error, pictures, run, weights

__all__ = ["pictures", "run", "weights"]  # fixtures

OPTIONS = {
    ("--crop-scale", "0.5,0.9"): {"scale": (0.5, 0.9)},
    ("--no-flip",): {"flip": 0.0},
    ("--vertical-flip",): {"vertical_flip": 0.5},
    ("--rotation", "15"): {"rotation": 15.0},
    ("--shear", "10"): {"shear": 10.0},
    ("--zoom", "0.2"): {"zoom": 0.2},
    ("--color-jitter", "0.3"): {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    ("--color-jitter", "0.1,0.2,0.3,0.05"): {
        "brightness": 0.1,
        "contrast": 0.2,
        "saturation": 0.3,
        "hue": 0.05,
    },
    ("--erase", "0.5"): {"erase": 0.5},
    ("--policy", "2,9"): {"policy": (2, 9)},
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_each_option_reaches_the_pictures(tmp_path, pictures, weights, options):
    out = tmp_path / "sheet.png"
    command = ["preview", pictures, "--weights", weights, "--out", out, "--seed", 4]
    assert main([str(part) for part in (*command, "--pictures", 5, "--columns", 3, *options)]) == 0
    dataset = scan(pictures, seed=4)
    preprocessing = Preprocessing.from_dict(hdf5.read(weights).preprocessing)
    sheets = []
    for augment in (Augmentation(**OPTIONS[options]), Augmentation()):
        loader = Loader(dataset.train, pictures, preprocessing, 16, seed=4, augment=augment)
        sheets.append(np.asarray(contact_sheet(dataset, loader, pictures=5, epochs=3)))
    shown = np.asarray(Image.open(out))
    assert np.array_equal(shown, sheets[0])
    assert not np.array_equal(shown, sheets[1])


def test_a_run_sees_what_the_preview_shows(run, tmp_path, pictures, monkeypatch):
    seen = {}
    original = Loader.crop

    def crop(self, index, epoch):
        picture = original(self, index, epoch)
        if self.augment is not None:
            seen[index, epoch] = picture.copy()
        return picture

    monkeypatch.setattr(Loader, "crop", crop)
    options = ("--rotation", 20, "--erase", 0.5, "--policy", "1,5", "--seed", 3)
    code, folder = run(*options)
    assert code == 0
    trained, seen = dict(seen), seen
    seen.clear()
    sheet = tmp_path / "sheet.png"
    config = folder / "config.toml"
    assert main(["preview", "--config", str(config), "--out", str(sheet), "--columns", "2"]) == 0
    assert len(seen) == 16
    assert all(np.array_equal(picture, trained[key]) for key, picture in seen.items())


def test_settings_travel_through_the_file(tmp_path):
    config = Config(
        data="d", weights=None, arch="resnet18", crop_scale=(0.5, 1.0), policy=(2, 9), zoom=0.1
    )
    config.save(tmp_path / "c.toml")
    assert Config.load(tmp_path / "c.toml") == config
    assert Config(data="d", weights="w.h5", augment=False).augmentation() is None
    assert Config(data="d", weights="w.h5").augmentation() == Augmentation()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zoom", "2"], ["--zoom", "0.9"]),
        (["--erase", "2"], ["--erase", "probability"]),
        (["--crop-scale", "0.9,0.5"], ["--crop-scale", "rising"]),
        (["--policy", "2,90"], ["--policy", "30"]),
        (["--color-jitter", "0.1,0.1,0.1,0.6"], ["--color-jitter", "hue", "0.5"]),
        (["--rotation", "5", "--no-augment"], ["--rotation", "--no-augment"]),
        (["--vertical-flip", "--no-augment"], ["--vertical-flip", "--no-augment"]),
    ],
)
def test_bad_options(run, capsys, arguments, words):
    code, folder = run(*arguments)
    expect_error(capsys, code, *words)
    assert not folder.exists()


@pytest.mark.parametrize("value", ["1,2,3", "a", "0.1,0.2", ""])
def test_words_that_are_no_strengths(run, capsys, value):
    with pytest.raises(SystemExit):
        run("--color-jitter", value)
    assert "--color-jitter" in capsys.readouterr().err


def test_a_preview_prepares_pictures_as_usual_where_no_network_is_named(tmp_path, pictures, capsys):
    out = ["--out", str(tmp_path / "s.png"), "--pictures", "2", "--columns", "3"]
    expect_error(capsys, main(["preview", str(pictures), "--arch", "resnet5", *out]), "resnet5")
    assert not (tmp_path / "s.png").exists()
    assert main(["preview", str(pictures), "--arch", "resnet18", *out]) == 0
    named = (tmp_path / "s.png").read_bytes()
    assert "224 x 224" not in capsys.readouterr().out
    expect_error(capsys, main(["preview", str(pictures), *out]), "s.png exists", "--overwrite")
    assert main(["preview", str(pictures), *out, "--overwrite"]) == 0
    assert "224 x 224 pixels" in capsys.readouterr().out
    assert (tmp_path / "s.png").read_bytes() == named
    assert main(["preview", str(pictures), *out, "--overwrite", "--recipe", "frozen-mlp"]) == 0
    assert (tmp_path / "s.png").read_bytes() != named  # the recipe shears and zooms


@pytest.mark.parametrize("options", [("--mixup", 0.4), ("--cutmix", 1)], ids=["mixup", "cutmix"])
def test_a_run_mixes_as_the_preview_shows(run, tmp_path, pictures, weights, monkeypatch, options):
    trained = {}
    original = run_module.mix

    def watched(inputs, *how, epoch, batch, **where):
        mixed = original(inputs, *how, epoch=epoch, batch=batch, **where)
        if batch == 0:
            trained[epoch] = mixed
        return mixed

    monkeypatch.setattr(run_module, "mix", watched)
    code, folder = run(*options, "--seed", 3)
    assert code == 0
    sheets = []
    for more in (
        ("--config", folder / "config.toml"),
        (pictures, "--weights", weights, *options, "--seed", 3, "--batch-size", 6),
    ):
        out = tmp_path / f"{len(sheets)}.png"
        command = ("preview", *more, "--out", out, "--columns", 3, "--pictures", 4)
        assert main([str(word) for word in command]) == 0
        sheets.append(np.asarray(Image.open(out)))
    assert np.array_equal(*sheets)
    preprocessing = Preprocessing.from_dict(hdf5.read(weights).preprocessing)
    scale, mean, std = (np.array(getattr(preprocessing, n)) for n in ("scale", "mean", "std"))
    side = preprocessing.crop
    assert sheets[0].shape[1] == MARGIN + 3 * (NARROWEST + MARGIN)
    for epoch in range(3):
        for row in range(4):
            top = CAPTION + MARGIN + row * (side + MARGIN + CAPTION)
            left = MARGIN + epoch * (NARROWEST + MARGIN)
            shown = sheets[0][top : top + side, left : left + side].astype(float)
            seen = (trained[epoch].x[row] * std + mean) / scale
            np.testing.assert_allclose(shown, seen, atol=0.51)
