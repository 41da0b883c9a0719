"""A run that is killed and resumed ends as one that was never interrupted: weights, metrics, summary."""

import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from minitl import hdf5
from minitl.cli import main
from minitl.errors import UserError
from minitl.train import finetune, run_state
from minitl.train.checkpoint import SavingTimer, Writer, parse_interval
from minitl.train.step import TrainingStep
from tests.test_finetune import (
    expect_error,
    interrupt_in_epoch,
    pictures,
    write_pictures,
    write_weights,
)

__all__ = ["pictures"]  # a fixture

SMALL = ("--epochs", 3, "--batch-size", 4, "--save-every", 2, "--no-report")
EVERYTHING = (
    *("--optimizer", "adamw", "--lr", 0.003, "--layer-decay", 0.8, "--clip-norm", 1),
    *("--schedule", "plateau", "--plateau-patience", 0, "--warmup-steps", 3),
    *("--ema", 0.9, "--dropout", 0.3, "--mixup", 0.3, "--cutmix", 0.3),
    *("--unfreeze-schedule", "head:0,layer3:1", "--sampler", "balanced"),
    *("--rotation", 20, "--policy", "1,5", "--workers", 2, "--patience", 2),
)
CLOCKS = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.h5", shortcut="B")


def command(data, weights, folder, options):
    return [str(a) for a in ("finetune", data, "--weights", weights, "--out", folder, *options)]


def outcome(folder):
    """Return all that a run ends with, but for what the clock says."""
    last, best = (hdf5.read(folder / file) for file in ("last.h5", "best.h5"))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "last": {name: array.tobytes() for name, array in last.state.items()},
        "optimizer": {name: np.asarray(v).tobytes() for name, v in last.optimizer.items()},
        "best": {name: array.tobytes() for name, array in best.state.items()},
        "metrics": [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows],
        "summary": {k: v for k, v in summary.items() if k not in ("seconds", "timing")},
    }


class Killed(BaseException):
    """What the end of the process looks like from inside: nothing catches it, nothing is tidied."""


def resumed_after(monkeypatch, arguments, folder, step, *more):
    """Run, kill before the given step (from 0), resume to the end with more options."""
    done = 0
    original = TrainingStep.__call__

    def killing(self, inputs):
        nonlocal done
        if done == step:
            raise Killed
        done += 1
        return original(self, inputs)

    monkeypatch.setattr(TrainingStep, "__call__", killing)
    monkeypatch.setattr(finetune, "put_back", lambda folder: None)
    with pytest.raises(Killed):
        main(arguments)
    monkeypatch.undo()
    assert main(["finetune", "--resume", str(folder), *more]) == 0


@pytest.mark.parametrize(
    "options",
    [
        (),
        EVERYTHING,
        ("--freeze", "backbone", "--no-augment"),
        pytest.param(
            (
                "--freeze-until",
                "layer3",
                "--no-augment",
                "--micro-batch",
                3,
                "--class-weights",
                "none",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--schedule", "one-cycle", "--nesterov", "--seed", 3), marks=pytest.mark.slow
        ),
        ("--adversarial", "pgd:4"),
    ],
    ids=["plain", "everything", "kept features", "frozen front", "one-cycle", "adversarial"],
)
def test_killed_before_any_step(monkeypatch, tmp_path, pictures, weights, options):
    options = (*SMALL, *options)
    assert main(command(pictures, weights, tmp_path / "whole", options)) == 0
    whole = outcome(tmp_path / "whole")
    step = random.Random(len(options)).randrange(15)
    folder = tmp_path / "part"
    arguments = command(pictures, weights, folder, options)
    more = ("--threads", "1", "--workers", "3") if len(options) % 2 else ()
    resumed_after(monkeypatch, arguments, folder, step, *more)
    assert outcome(folder) == whole, f"killed before step {step}"


KILLER = """
import os, signal, sys
from minitl import files
from minitl.cli import main
from minitl.train.step import TrainingStep

def killing(original, at, done=[0]):
    def call(*arguments):
        if done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        return original(*arguments)
    return call

kind, at, *arguments = sys.argv[1:]
if kind == "step":
    TrainingStep.__call__ = killing(TrainingStep.__call__, int(at))
else:  # in the middle of writing a file: it has its bytes, but not its name
    files.os.fsync = killing(os.fsync, 2 * int(at))  # twice for each: the file, its folder
sys.exit(main(arguments))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
def test_sigkill_again_and_again(tmp_path, pictures, weights):
    """One run killed in its first steps, between two savings, and while it writes."""
    options = (*SMALL, *EVERYTHING)
    assert main(command(pictures, weights, tmp_path / "whole", options)) == 0
    folder = tmp_path / "killed"
    arguments = command(pictures, weights, folder, options)
    for kind, at in (("step", 1), ("step", 5), ("write", 3)):
        process = [sys.executable, "-c", KILLER, kind, str(at), *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(process, capture_output=True, env=environment, check=False)
        assert done.returncode == -9, done.stderr.decode()
        arguments = ["finetune", "--resume", str(folder)]
    assert list(folder.glob(".*.tmp"))  # the last one left a file half-written
    assert main(arguments) == 0
    assert not list(folder.glob(".*.tmp"))
    assert outcome(folder) == outcome(tmp_path / "whole")


def test_a_run_killed_after_its_state_was_written_still_gets_its_metrics(
    monkeypatch, tmp_path, pictures, weights
):
    folder = tmp_path / "run"

    original = run_state._write_metrics

    def killed(folder, metrics):
        if metrics.count(b"\n") == 4:  # the third epoch's
            raise Killed
        original(folder, metrics)

    monkeypatch.setattr(run_state, "_write_metrics", killed)
    with pytest.raises(Killed):
        main(command(pictures, weights, folder, SMALL))
    monkeypatch.undo()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4


def test_an_interrupt_within_the_first_epoch_keeps_what_was_saved(
    monkeypatch, tmp_path, weights, capsys
):
    data = write_pictures(tmp_path / "data", per_class=8)
    folder = tmp_path / "run"
    original = TrainingStep.__call__
    done = []

    def interrupted(self, inputs):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, inputs)

    monkeypatch.setattr(TrainingStep, "__call__", interrupted)
    assert main(command(data, weights, folder, SMALL)) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert hdf5.read(folder / "last.h5").progress["partial"]["images"] == 8
    assert main(["finetune", "--resume", str(folder)]) == 0


def test_other_pictures_than_the_run_began_with_are_not_taken_silently(
    monkeypatch, tmp_path, weights, capsys
):
    data, folder = write_pictures(tmp_path / "data"), tmp_path / "run"
    assert main(command(data, weights, tmp_path / "whole", SMALL)) == 0
    original = TrainingStep.__call__
    done = []

    def interrupted(self, inputs):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, inputs)

    monkeypatch.setattr(TrainingStep, "__call__", interrupted)
    assert main(command(data, weights, folder, SMALL)) == 130
    monkeypatch.undo()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("red/1.png", "blue/2.png"):  # as a copy of the folder would have them
        os.utime(data / name, ns=(0, 0))
    resumed = ["finetune", "--resume", str(folder)]
    capsys.readouterr()
    expect_error(capsys, main(resumed), "2 of 24", "red/1.png", "blue/2.png", "--accept-changed")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main([*resumed, "--accept-changed"]) == 0
    assert "2 pictures were no longer the same" in capsys.readouterr().out
    assert outcome(folder) == outcome(tmp_path / "whole")
    assert "red/1.png" in json.loads((folder / "split.json").read_text())["notes"][-1]
    assert main(resumed) == 0  # accepted for good
    expect_error(capsys, main(["finetune", "--accept-changed", str(data)]), "--resume")
    (data / "red/1.png").write_bytes((data / "red/2.png").read_bytes())
    expect_error(capsys, main(resumed), "1 of 24", "red/1.png")


def test_when_to_save(monkeypatch):
    assert parse_interval("200") == (200, 0)
    assert parse_interval("1.5m") == (None, 90)
    assert parse_interval("2h") == (None, 7200)
    for text in ("", "0", "5 minutes", "-3", "1.5", "0s"):
        with pytest.raises(UserError, match="--save-every"):
            parse_interval(text)
    timer = SavingTimer("3")
    assert [timer.due(step) for step in range(1, 7)] == [False, False, True] * 2
    clock = [0.0]
    monkeypatch.setattr("minitl.train.checkpoint.time.monotonic", lambda: clock[0])
    timer = SavingTimer("10s")
    due = []
    for clock[0] in (4.0, 9.0, 11.0, 15.0, 21.0, 22.0):
        due.append(timer.due(1))
    assert due == [False, False, True, False, True, False]


@pytest.mark.parametrize("beside", [False, True])
def test_jobs_of_writing_run_in_order_and_their_errors_arrive(beside):
    writer, done = Writer(beside), []
    writer.start(lambda: time.sleep(0.05) or done.append(1))
    assert bool(done) != beside
    writer.start(lambda: done.append(2))
    writer.finish()
    assert done == [1, 2]

    def fails():
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        writer.start(fails)
        writer.start(lambda: done.append(3))
    assert done == [1, 2]
    writer.finish()  # said once


def test_a_run_from_before_these_settings_is_resumed(monkeypatch, tmp_path, pictures, weights):
    """Its config.toml and last.h5 hold less than today's; everything trained with weight decay then."""
    options = ("--epochs", 3, "--batch-size", 4, "--no-report", "--decay-norms", "--lr", 0.01)
    assert main(command(pictures, weights, tmp_path / "whole", options)) == 0
    folder = tmp_path / "old"
    resumed = command(pictures, weights, folder, options)
    interrupt_in_epoch(monkeypatch, 2)
    assert main(resumed) == 130
    monkeypatch.undo()
    config = tomllib.loads((folder / "config.toml").read_text())
    then = "data weights from_scratch epochs batch_size lr momentum nesterov weight_decay schedule"
    then += " warmup_steps label_smoothing freeze augment flip val_fraction seed workers skip_bad"
    then += " device precision conv preprocessing"
    kept = {name: config[name] for name in then.split()} | {"report": False}
    (folder / "config.toml").write_text(tomli_w.dumps(kept))
    last = hdf5.read(folder / "last.h5")
    progress = {name: last.progress[name] for name in ("epoch", "history", "dropout")}
    hdf5.write(folder / "last.h5", dataclasses.replace(last, progress=progress))
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert outcome(folder) == outcome(tmp_path / "whole")
