"""`minitl lr-find`: the ramp, the suggestion, and weights that stay as they are."""

import math

import numpy as np
import pytest
from PIL import Image

from minitl.cli import main
from minitl.train import lr_finder, plots
from minitl.train.lr_finder import judge_ramp, smoothed
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
    for more in ((), ("--workers", "3")):
        code, out = find("--steps", 60, "--optimizer", "adam", *more)
        assert code == 0
    assert weights.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
    assert Image.open(out).format == "PNG"
    first, second = ramps
    assert first == second
    assert first.rates[0] == 1e-6
    assert len(first.losses) <= 60
    assert np.diff(np.log(first.rates)) == pytest.approx(math.log(1e7) / 59)
    assert first.smooth[-1] > 2 * min(first.smooth)  # it went on until it exploded
    assert 1e-5 < first.suggestion < 1
    assert f"--lr {first.suggestion:.1g}" in capsys.readouterr().out


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    rates = np.geomspace(1e-5, 10, 200).tolist()
    losses = [3 / (1 + (rate / 0.01) ** 2) + (rate / 2) ** 3 for rate in rates]
    ramp = judge_ramp(rates, losses)
    # Of 3 / (1 + u**2) in log u: at u = 1; smoothing looks back and so comes later.
    assert 0.01 <= ramp.suggestion < 0.03
    assert ramp.suggestion < rates[int(np.argmin(ramp.smooth))]


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
    assert find(*options, "--mixup", 0.2)[0] == 0


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
