"""Did transfer help: the words follow the figures, the distance is what its formula says, pages are whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
import minitl.data.preprocessing
from minitl import models, nn
from minitl.cli import main
from minitl.data.dataset import Sample
from minitl.errors import InterruptedRunError, UserError
from minitl.train import transfer
from minitl.train.config import Config
from minitl.train.shift import distance, domain_shift
from minitl.train.transfer import (
    Interval,
    fully_or_frozen,
    gain_in_words,
    interval,
    too_short,
    transfer_report,
)


def write_noise(folder: Path, count: int, low: int, high: int, seed: int) -> list[Sample]:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = random.integers(low, high, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [Sample(f"{i}.png", 0) for i in range(count)]


def test_intervals_are_students() -> None:
    found = interval([0.5, 0.6, 0.7])
    half = 4.302653 * 0.1 / np.sqrt(3)  # the table's t for 2 degrees of freedom
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - half) and found.high == pytest.approx(0.6 + half)
    assert interval([0.5]) == Interval(0.5, None, None)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.1, 0.12, 0.11], "helped"),
        ([-0.1, -0.12, -0.11], "HURT"),
        ([-0.1, 0.12, 0.0], "no clear"),
        ([0.3], "luck"),
    ],
)
def test_words_follow_the_interval(values: list[float], word: str) -> None:
    words = gain_in_words("Fine-tuned", interval(values))
    assert word in words and f"{100 * np.mean(values):+.1f} points" in words


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.1, 0.12, 0.11], "all layers is better"),
        ([-0.1, -0.12, -0.11], "the head alone is better"),
        ([-0.1, 0.12, 0.0], "neither"),
        ([-0.3], "the head alone did better"),
        ([0.0], "neither did better"),
    ],
)
def test_fine_tuned_beside_frozen(values: list[float], word: str) -> None:
    words = fully_or_frozen(interval(values))
    assert word in words and f"{100 * np.mean(values):+.1f} points" in words


def test_a_training_from_scratch_that_got_nowhere_is_called_so() -> None:
    def words(scratch: float) -> list[str]:
        return too_short({"accuracy": {"scratch": {"mean": scratch}}, "most_frequent": 0.4}, 3)

    (sentence,) = words(0.42)
    assert "40.0 %" in sentence and "3 epochs" in sentence and "--epochs" in sentence
    assert not words(0.6)


def test_the_distance_by_hand() -> None:
    stored = np.array([0.0, 1.0, 2.0]), np.array([1.0, 4.0, 9.0])
    assert distance(stored, stored, 0.0) == 0
    seen = np.array([3.0, 1.0, 2.0]), np.array([25.0, 9.0, 9.0])  # 5, 0.5 and 0 away
    assert distance(stored, seen, 0.0) == pytest.approx(0.5)
    ten = np.concatenate([stored[0], stored[0]]) * 10, np.concatenate([stored[1], stored[1]]) * 100
    seen_ten = np.concatenate([seen[0], seen[0]]) * 10, np.concatenate([seen[1], seen[1]]) * 100
    assert distance(ten, seen_ten, 0.0) == pytest.approx(0.5)  # no matter the scale
    dead = np.zeros(1), np.zeros(1)  # a channel that said nothing in pretraining
    assert distance(dead, (np.array([3.0]), np.zeros(1)), 1.0) == 3


def test_other_pictures_are_farther_than_those_of_pretraining(tmp_path: Path) -> None:
    model = models.cifar_resnet20(num_classes=2, width=4, seed=1)
    same = write_noise(tmp_path / "same", 40, 0, 128, seed=0)
    again = write_noise(tmp_path / "again", 40, 0, 128, seed=1)
    other = write_noise(tmp_path / "other", 40, 100, 256, seed=2)
    images = np.stack([np.asarray(Image.open(tmp_path / "same" / s.path)) for s in same])
    p = minitl.data.preprocessing.Preprocessing.from_dict(model.preprocessing)
    norms = [m for _, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of these pictures, all at once
    with minitl.no_grad():
        model.train()(minitl.tensor(p.normalise(images)))
    for norm in norms:
        norm.momentum = 0.1
    model.freeze("layer1")
    before = {name: array.copy() for name, array in model.state_dict().items()}
    states = [(norm.frozen, norm.training, norm.momentum) for norm in norms]

    near = domain_shift(model, again, tmp_path / "again")
    far = domain_shift(model, other, tmp_path / "other")
    assert near is not None and far is not None
    assert near.distance < 2 * near.floor < far.distance
    assert next(iter(far.layers)) == "bn1" and len(far.layers) == len(norms)
    assert [(norm.frozen, norm.training, norm.momentum) for norm in norms] == states
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], name)
    assert domain_shift(model, other[:3], tmp_path / "other") is None


def test_without_statistics_nothing_is_made_up(tmp_path: Path) -> None:
    samples = write_noise(tmp_path / "d", 5, 0, 256, seed=0)
    layers = [{"type": "global_avgpool"}, {"type": "dense", "units": 2}]
    model = models.create("sequential", layers=layers, input=[32, 32])
    assert domain_shift(model, samples, tmp_path / "d") is None


def test_an_interruption_says_how_to_make_the_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: Config, folder: Path) -> None:
        raise InterruptedRunError(f"continue with: minitl finetune --resume {folder}")

    monkeypatch.setattr(transfer, "finetune", interrupted)
    with pytest.raises(InterruptedRunError) as error:
        transfer_report(Config(data="d", weights="w.h5"), tmp_path)
    assert f"{tmp_path / 'scratch' / 'seed-0'};" in str(error.value)
    assert f"--out {tmp_path} --overwrite" in str(error.value)
    assert "--resume" not in str(error.value)


def test_weights_of_a_run_that_a_report_replaces_are_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "finetuned" / "seed-1" / "best.h5"
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    monkeypatch.setattr(transfer, "finetune", lambda *others: pytest.fail("it trains"))
    with pytest.raises(UserError, match="copy the weights"):
        transfer_report(Config(data="d", weights=str(weights)), tmp_path)


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("train", 6), ("val", 3)):
        write_noise(tmp_path / "data" / part / "dark", count, 0, 100, seed=count)
        write_noise(tmp_path / "data" / part / "light", count, 150, 256, seed=count + 1)
    minitl.save_model(models.cifar_resnet20(num_classes=5, width=4), tmp_path / "w.h5")
    out = tmp_path / "out"
    command = ["transfer-report", tmp_path / "data", "--weights", tmp_path / "w.h5", "--out", out]
    options = ["--epochs", 1, "--seeds", 2, "--batch-size", 6, "--attack", "fgsm", "--json"]
    assert main([str(word) for word in (*command, *options)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "transfer.json").read_text())
    assert set(figures["accuracy"]) == {"scratch", "frozen", "finetuned"}
    assert figures["part"] == "val" and figures["seeds"] == 2 and len(figures["words"]) >= 3
    assert figures["most_frequent"] == 0.5 and figures["images"] == 6
    for way, row in figures["accuracy"].items():
        assert len(row["seeds"]) == 2 and row["mean"] == pytest.approx(np.mean(row["seeds"]))
        assert figures["attack"][way]["mean"] <= row["mean"]
    page = (out / "transfer.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 2 and "http" not in page
    assert (out / "scratch/seed-1/best.h5").is_file()
    assert main([str(word) for word in (*command, *options)]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_labels_may_come_from_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_noise(tmp_path / "data" / "x", 6, 0, 100, seed=1)
    write_noise(tmp_path / "data" / "y", 6, 150, 256, seed=2)
    for path in sorted((tmp_path / "data").rglob("*.png")):
        path.rename(tmp_path / "data" / f"{path.parent.name}_{path.name}")
    minitl.save_model(models.cifar_resnet20(num_classes=5, width=4), tmp_path / "w.h5")
    command = ["transfer-report", tmp_path / "data", "--weights", tmp_path / "w.h5"]
    short = ["--epochs", 1, "--seeds", 1, "--batch-size", 6, "--out", tmp_path / "out"]
    labels = ["--label-from-name", "(?P<label>[xy])_"]
    assert main([str(word) for word in (*command, *short, *labels)]) == 0
    split = json.loads((tmp_path / "out/scratch/seed-0/split.json").read_text())
    assert split["classes"] == ["x", "y"]
    rows = [f"{path.name},{path.name[0]}\n" for path in (tmp_path / "data").glob("*.png")]
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(rows) + "gone.png,x\n")
    capsys.readouterr()
    short[-1] = tmp_path / "other"
    table = ["--labels", tmp_path / "l.csv"]
    assert main([str(word) for word in (*command, *short, *table)]) == 1
    assert "l.csv, line 14" in capsys.readouterr().err
