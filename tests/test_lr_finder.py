"""`minitl lr-find`: the ramp, the suggestion, and weights that stay as they are."""

import math
import shutil

import numpy as np
import pytest
from PIL import Image

from minitl.cli import main
from minitl.train import lr_finder, plots
from minitl.train.config import Config
from minitl.train.lr_finder import judge_ramp, smoothed
from minitl.train.step import TrainingStep
from tests.test_finetune import expect_error, pictures, weights

__all__ = ["pictures", "weights"]  # fixtures


@pytest.fixture
def find(tmp_path, pictures, weights):
    def start(*more):
        out = tmp_path / "lr.png"
        command = ["lr-find", pictures, "--weights", weights, "--out", out, "--batch-size", 6]
        return main([str(part) for part in (*command, *more)]), out

    return start


def test_a_ramp_on_pictures(find, weights, tmp_path, capsys, monkeypatch):
    ramps = []
    original = lr_finder.judge_ramp
    monkeypatch.setattr(lr_finder, "judge_ramp", lambda *a: ramps.append(original(*a)) or ramps[-1])
    before = weights.read_bytes()
    for more in ((), ("--workers", "3", "--overwrite")):
        code, out = find("--steps", 60, "--optimizer", "adam", *more)
        assert code == 0
    assert weights.read_bytes() == before
    drawing = out.read_bytes()
    capsys.readouterr()
    expect_error(capsys, find("--steps", 60)[0], out, "exists", "--overwrite")
    assert out.read_bytes() == drawing
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
    assert Image.open(out).format == "PNG"
    first, second = ramps
    assert first == second
    assert first.rates[0] == 1e-6
    assert len(first.losses) <= 60
    assert np.diff(np.log(first.rates)) == pytest.approx(math.log(1e7) / 59)
    assert first.smooth[-1] > 2 * min(first.smooth)  # it went on until it exploded
    assert 1e-5 < first.suggestion < 1


def test_a_place_that_cannot_be_written_is_named_before_the_work(find, capsys, tmp_path):
    assert find("--out", tmp_path / "none" / "lr.png")[0] == 1
    said = capsys.readouterr()
    assert "no folder" in said.err and "make it" in said.err
    assert said.out == ""


def loss_at(rate):
    """Half of the fall is done at 0.01, where it is steepest as well."""
    return 3 / (1 + (rate / 0.01) ** 2) + (rate / 2) ** 3


def test_the_suggestion_is_where_half_of_the_fall_is_done():
    rates = np.geomspace(1e-5, 10, 200).tolist()
    ramp = judge_ramp(rates, [loss_at(rate) for rate in rates])
    assert 0.01 <= ramp.suggestion < 0.03  # smoothing looks back and so comes later
    at, half = rates.index(ramp.suggestion), 3 - ramp.fall / 2
    assert ramp.smooth[at] == pytest.approx(half, abs=0.1) and ramp.smooth[at + 1] < half
    assert ramp.suggestion < rates[int(np.argmin(ramp.smooth))]


@pytest.mark.parametrize("seed", range(8))
def test_chance_at_the_beginning_does_not_move_the_suggestion(seed):
    """Batches that differ, and a first one that is worse or better than all others."""
    rates = np.geomspace(1e-6, 10, 100).tolist()
    noise = np.random.default_rng(seed).normal(0, 0.4, 100)
    noise[:2] = (-2, 2)[seed % 2]
    ramp = judge_ramp(rates, [loss_at(rate) + n for rate, n in zip(rates, noise, strict=True)])
    assert 0.005 < ramp.suggestion < 0.06


def test_without_a_clear_fall_there_is_no_suggestion(find, capsys):
    rates = np.geomspace(1e-6, 10, 100).tolist()
    found = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.3, 100)
        losses = [2.3 + max(0, rate - 0.1) + n for rate, n in zip(rates, noise, strict=True)]
        found.append(judge_ramp(rates, losses).suggestion)
    assert found.count(None) >= 35
    code, out = find("--steps", 20, "--highest", 1e-4)  # nothing is learned there
    assert code == 0 and Image.open(out).format == "PNG"
    said = capsys.readouterr().out
    assert "no clear rate" in said and "--steps 60" in said and "--lr" not in said


def test_parts_keep_their_proportion_to_the_rate(find, monkeypatch, pictures, weights, tmp_path):
    settings = {
        "data": str(pictures),
        "weights": str(weights),
        "lr": 0.01,
        "lr_for": ("head=0.05",),
    }
    Config(**settings, batch_size=6, augment=False).save(tmp_path / "c.toml")
    seen = []
    original = TrainingStep.__call__

    def watched(self, inputs):
        groups = self._optimizer.param_groups
        seen.append(sorted({group["lr"] * self._optimizer.lr_factor for group in groups}))
        return original(self, inputs)

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    command = ["lr-find", "--config", tmp_path / "c.toml", "--out", tmp_path / "lr.png"]
    options = ["--steps", 12, "--lowest", 1e-4, "--highest", 1e-2]
    assert main([str(word) for word in (*command, *options)]) == 0
    rates = np.geomspace(1e-4, 1e-2, 12)
    np.testing.assert_allclose(seen, np.stack([rates, 5 * rates], axis=1))


def test_the_rates_are_written_as_numbers(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_png", lambda figure: figures.append(figure) or b"")
    plots.learning_rates([1e-4, 1e-3, 1e-2], [3.0, 2.0, 9.0], [3.0, 2.5, 6.0], 1e-3)
    figures[0].canvas.draw()
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert {"1e-04", "1e-03", "1e-02"} <= set(labels)


def test_smoothing_does_not_favour_the_first_value():
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert smoothed([0.0, 1.0])[1] == pytest.approx(0.1 / 0.19)


def test_frozen_layers_and_mixing(find):
    options = ("--steps", 12, "--highest", 1e-3)
    assert find(*options, "--freeze", "backbone", "--no-augment")[0] == 0
    assert find(*options, "--mixup", 0.2, "--overwrite")[0] == 0
    assert find(*options, "--recipe", "frozen-mlp", "--overwrite")[0] == 0


def seen_steps(monkeypatch, look):
    """Return a list that gets what `look` says of each step's optimizer and inputs."""
    seen = []
    original = TrainingStep.__call__

    def watched(self, inputs):
        seen.append(look(self._optimizer, inputs))
        return original(self, inputs)

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    return seen


def test_unreadable_pictures_are_named_or_left_out(find, pictures, capsys, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "red" / "0.png").write_bytes(b"no picture")
    command = ["lr-find", data, "--arch", "cifar_resnet20", "--batch-size", 6, "--steps", 10]
    command = [str(word) for word in (*command, "--out", tmp_path / "lr.png")]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "red/0.png" in said.out and "--skip-bad" in said.err
    assert main([*command, "--skip-bad"]) == 0
    assert "red/0.png" in capsys.readouterr().out


def test_pictures_are_attacked(find, monkeypatch):
    options = ("--steps", 10, "--highest", 1e-5, "--no-augment")
    seen = seen_steps(monkeypatch, lambda optimizer, inputs: inputs.x.copy())
    assert find(*options)[0] == 0
    assert find(*options, "--adversarial", "fgsm:8", "--overwrite")[0] == 0
    assert len(seen) == 20
    for plain, changed in zip(seen[:10], seen[10:], strict=True):
        assert 0 < np.abs(plain - changed).max() < 8 / 255 / 0.2


def test_a_schedule_of_unfreezing_is_as_in_epoch_0(find, monkeypatch):
    def training(optimizer, inputs):
        return sum(p.requires_grad for group in optimizer.param_groups for p in group["params"])

    seen = seen_steps(monkeypatch, training)
    options = ("--steps", 10, "--highest", 1e-5)
    assert find(*options, "--unfreeze-schedule", "head:0,layer3:12")[0] == 0
    assert set(seen) == {2}  # weight and bias of the head


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "3"], ["10 steps", "3 steps"]),
        (["--lowest", "1", "--highest", "0.1"], ["lowest"]),
        (["--lowest", "1e30", "--highest", "1e35"], ["exploded", "--lowest"]),
        (["--optimizer", "lion"], ["--optimizer"]),
    ],
)
def test_bad_options(find, capsys, arguments, words):
    code, out = find(*arguments)
    expect_error(capsys, code, *words)
    assert not out.exists()
