"""`minitl predict` and `evaluate`: streams, formats, views, unknowns, bad files, attacks."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
from minitl import models
from minitl.cli import main
from minitl.data.dataset import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.data.views import ViewLoader, Views
from minitl.errors import UserError

CLASSES = ["dark", "light", "other"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with w.h5 and data/<class>/<n>.png, 12 pictures of random sizes."""
    folder = tmp_path_factory.mktemp("predict")
    model = models.cifar_resnet20(num_classes=3, width=4, seed=1)
    model.class_names = CLASSES
    model.preprocessing = {**model.preprocessing, "resize": 36, "crop": 32}
    minitl.save_model(model, folder / "w.h5")
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 256, (*random.integers(40, 60, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    return folder


def predict(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["predict", "w.h5", "data", *map(str, words)]) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict]:
    out = predict(capsys, "--format", "jsonl", *words)
    return [json.loads(line) for line in out.splitlines()]


def test_formats_agree_and_paths_are_as_given(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    lines = rows(capsys)
    assert [row["image"] for row in lines] == [
        f"data/{name}/{i}.png" for name in CLASSES for i in range(4)
    ]
    assert all(sum(share for _, share in row["top"]) == pytest.approx(1, abs=1e-5) for row in lines)
    assert json.loads(predict(capsys, "--json")) == lines
    table = list(csv.DictReader(predict(capsys, "--format", "csv", "--top", 2).splitlines()))
    assert [row["class"] for row in table] == [row["class"] for row in lines]
    assert [float(row["top2_probability"]) for row in table] == [r["top"][1][1] for r in lines]
    table = list(csv.reader(predict(capsys, "--format", "csv", "--top", 10).splitlines()))
    assert {len(row) for row in table} == {3 + 2 * len(CLASSES)}
    first = predict(capsys).splitlines()[0]
    assert first.startswith(f"data/dark/0.png: {lines[0]['class']} ") and str(place) not in first


def test_a_file_appears_whole_and_is_not_replaced_unasked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    out = tmp_path / "p.jsonl"
    assert predict(capsys, "--format", "jsonl", "--out", out) == ""
    assert len(out.read_text().splitlines()) == 12
    assert main(["predict", "w.h5", "data", "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["predict", "w.h5", "data", "--out", str(tmp_path / "nowhere" / "p.csv")]) == 1
    error = capsys.readouterr().err
    assert "there is no folder" in error and "nowhere/p.csv" in error and ".tmp" not in error
    before = out.read_bytes()
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert main(["predict", "w.h5", "data", str(bad), "--out", str(out), "--overwrite"]) == 1
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_unknown_is_what_the_network_is_not_sure_of(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    lines = rows(capsys)
    middle = sorted(row["probability"] for row in lines)[6]
    asked = rows(capsys, "--unknown-below", middle)
    for row, before in zip(asked, lines, strict=True):
        unknown = before["probability"] < middle - 1e-6
        if abs(before["probability"] - middle) > 1e-6:
            assert row["class"] == ("unknown" if unknown else before["class"])
        assert row["top"] == before["top"]
    assert any(row["class"] == "unknown" for row in asked)
    with pytest.raises(SystemExit):
        main(["predict", "w.h5", "data", "--unknown-below", "50"])


def test_views_are_averaged(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    model = minitl.load_model(place / "w.h5").eval()
    p = Preprocessing.from_dict(model.preprocessing)
    picture = Image.open(place / "data/dark/0.png")
    middle = p.evaluation_crop(picture)
    mirrored = np.stack([middle, middle[:, ::-1]])
    logits = model(minitl.tensor(p.normalise(mirrored))).numpy().astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    got = dict(rows(capsys, "--tta", "flip")[0]["top"])
    for name, share in zip(CLASSES, shares.mean(axis=0), strict=True):
        assert got[name] == pytest.approx(share, abs=1e-4)
    assert rows(capsys, "--tta", "flip,crops:5") != rows(capsys, "--tta", "crops:5")


def test_the_five_crops_are_torchvisions() -> None:
    p = Preprocessing(resize=8, crop=6, interpolation="nearest")
    picture = np.arange(8 * 11 * 3, dtype=np.uint8).reshape(8, 11, 3)
    top = [(1, 2), (0, 0), (0, 5), (2, 0), (2, 5)]  # five_crop's corners, then ours comes first
    crops = Views(crops=5)(p, picture)
    for crop, (y, x) in zip(crops, top, strict=True):
        np.testing.assert_array_equal(crop, picture[y : y + 6, x : x + 6])
    assert Views(5, flip=True).count == 10
    np.testing.assert_array_equal(Views(5, flip=True)(p, picture)[5], crops[0][:, ::-1])


@pytest.mark.parametrize("text", ["", "crops", "flip,flip", "crops:4"])
def test_other_views_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--tta"):
        Views.parse(text)
    with pytest.raises(UserError, match="margin"):
        Views(crops=5).check(Preprocessing(resize=32, crop=32))


def test_bad_pictures_end_the_command_or_are_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    good = rows(capsys)
    Path("data/dark/1b.png").write_text("no picture")
    assert main(["predict", "w.h5", "data"]) == 1
    assert "data/dark/1b.png" in capsys.readouterr().err
    assert rows(capsys, "--skip-bad") == good
    assert main(["evaluate", "w.h5", "data"]) == 1
    capsys.readouterr()
    assert main(["evaluate", "w.h5", "data", "--skip-bad", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 12 and list(figures["left_out"]) == ["dark/1b.png"]
    right = sum(row["class"] == row["image"].split("/")[1] for row in good)
    assert figures["accuracy"] == pytest.approx(right / 12)
    assert np.trace(figures["confusion"]) == right and "calibration" in figures
    for path in Path("data").rglob("*.png"):
        path.write_bytes(b"")
    for more in ((), ("--json",), ("--format", "csv"), ("--format", "jsonl", "--out", "p.jsonl")):
        assert main(["predict", "w.h5", "data", "--skip-bad", *more]) == 1
        output = capsys.readouterr()
        assert "none of the 13" in output.err and output.out == ""
    assert not Path("p.jsonl").exists()


def test_an_attack_leaves_fewer_right(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    command = ["evaluate", "w.h5", "data", "--json", "--attack", "pgd:30"]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["attack"]["accuracy"] < figures["accuracy"]
    assert figures["attack"]["epsilon"] == 30 and figures["attack"]["images"] == 12
    assert figures["attack"]["steps"] == 10
    for attack, reason in (("fgsm:900", "at most 255"), ("fgsm:0", "at most 255"), ("l2", "fgsm")):
        assert main(["evaluate", "w.h5", "data", "--attack", attack]) == 1
        error = capsys.readouterr().err
        assert f"--attack cannot be '{attack}'" in error and reason in error and "step" not in error


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_has_seen_enough_is_no_error(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "minitl", "predict", "w.h5", "data"]
    done = subprocess.run(
        command, cwd=place, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert "Broken pipe" not in done.stderr and "Traceback" not in done.stderr


def test_batches_of_views_keep_pictures_together(place: Path) -> None:
    paths = sorted((place / "data").rglob("*.png"))
    samples = [Sample(str(path), number) for number, path in enumerate(paths)]
    loader = ViewLoader(samples, Path(), Preprocessing(36, 32), Views(5, True), workers=2)
    batches = list(loader.epoch(0))
    assert [len(batch.indices) for batch in batches] == [3, 3, 3, 3]
    labels = np.concatenate([batch.labels for batch in batches])
    np.testing.assert_array_equal(labels, np.repeat(np.arange(12), 10))
    assert all(len(batch.images) == 10 * len(batch.indices) for batch in batches)
