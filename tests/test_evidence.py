"""What a run leaves for people: written at the end, made again from the folder alone, never in the way."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
from minitl import models
from minitl.cli import main
from minitl.train.clock import Clock

FILES = {"report.html", "curves.png", "confusion.png", "classes.json"}


def write_pictures(folder: Path) -> Path:
    """Draw light and dark noise; one file of training lies in validation too."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for number, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (32, 32, 3)) + 150 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")
    shutil.copy(folder / "train/dark/0.png", folder / "val/dark/copy.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    place = tmp_path_factory.mktemp("evidence")
    model = models.cifar_resnet20(num_classes=5, width=4, seed=1)
    minitl.save_model(model, place / "w.h5")
    command = ["finetune", write_pictures(place / "data"), "--weights", place / "w.h5"]
    options = ["--out", place / "run", "--epochs", 2, "--batch-size", 6, "--lr", 0.05]
    options += ["--compare-before"]
    assert main([str(word) for word in (*command, *options)]) == 0
    return place / "run"


def test_a_run_leaves_its_evidence(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= FILES
    assert json.loads((run / "classes.json").read_text()) == ["dark", "light"]
    for name in ("curves.png", "confusion.png"):
        assert Image.open(io.BytesIO((run / name).read_bytes())).format == "PNG"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "fine-tuned from w.h5 on data" in page
    assert "the same file is in train and val" in page and "val/dark/copy.png" in page
    for part in ("checking the pictures", "training", "waiting for decoded pictures", "judging"):
        assert part in page
    summary = json.loads((run / "summary.json").read_text())
    assert "Before and after training, on validation" in page
    for figures in (summary["before"], summary["val"]):
        assert f"<td>{figures['loss']:.4f}</td>" in page
    timing = summary["timing"]
    waiting = "of training, validation and features: waiting for decoded pictures"
    assert timing["training"] > timing[waiting] >= 0
    assert list(timing)[-1] == waiting
    assert "features of the frozen backbone" not in timing


def test_the_report_is_made_again_from_the_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    before = {name: (again / name).read_bytes() for name in FILES}
    for name in FILES:
        (again / name).unlink()
    assert main(["report", str(again)]) == 0
    assert capsys.readouterr().out.strip() == str(again / "report.html")
    assert {name: (again / name).read_bytes() for name in FILES} == before
    (again / "summary.json").unlink()  # as after a run that was stopped
    assert main(["report", str(again)]) == 0
    assert "waiting for decoded" not in (again / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["best.h5", "split.json"])
def test_a_folder_without_a_run_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    (again / missing).unlink()
    assert main(["report", str(again)]) == 1
    error = capsys.readouterr().err
    assert missing in error and str(again) in error and error.count("\n") == 1


def test_the_clock_adds_up_and_goes_on() -> None:
    clock = Clock({"training": 5.0})
    clock.add("training", 2.0)
    with pytest.raises(KeyError), clock.measure("reading"):
        raise KeyError
    assert clock.seconds["training"] == 7.0 and 0 <= clock.seconds["reading"] < 1
