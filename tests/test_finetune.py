"""`minitl finetune`, `evaluate` and `predict` on small pictures, from the command line inwards."""

import contextlib
import csv
import dataclasses
import errno
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minitl
from minitl import hdf5, models
from minitl.cli import main
from minitl.data.dataset import load_split
from minitl.models.saving import to_weights_file
from minitl.run_files import ASIDE
from minitl.train.config import Config
from minitl.train.run_folder import claimed, prepare_folder, put_back, set_aside
from tests.interrupts import listen_to_ctrl_c

CLASSES = ("blue", "green", "red")


def write_pictures(folder, per_class=8, seed=0):
    """Draw a folder of noisy red, green and blue squares: easy to tell apart."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[..., channel] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def write_weights(path, **options):
    """Write a small network with a head for other classes."""
    minitl.save_model(models.cifar_resnet20(num_classes=5, width=4, seed=1, **options), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.h5", shortcut="B")


# Drawing takes longer than these trainings; test_evidence.py is about reports.
DEFAULTS = ("--epochs", 3, "--batch-size", 6, "--lr", 0.02, "--no-report")


@pytest.fixture
def run(tmp_path, pictures, weights):
    """Run `minitl finetune` with small settings and more arguments; return (exit code, folder)."""

    def start(*more, out="run", data=pictures):
        folder = tmp_path / out
        arguments = ["finetune", data, "--weights", weights, "--out", folder]
        return main([str(a) for a in (*arguments, *DEFAULTS, *more)]), folder

    return start


@pytest.fixture(scope="module")
def learned(tmp_path_factory, pictures, weights):
    """Return the folder of a run that has learned its pictures, and what it said. It is only to be read."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    arguments = ["finetune", pictures, "--weights", weights, "--out", folder]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([str(a) for a in (*arguments, *DEFAULTS, "--no-augment", "--epochs", 10)])
    assert code == 0
    return folder, said.getvalue()


def test_a_run_learns_and_leaves_its_files(learned, pictures):
    folder, text = learned
    assert "3 classes, 18 train, 6 val pictures" in text
    assert "head for 5 classes is replaced" in text
    files = {path.name for path in folder.iterdir()}
    expected = {"best.h5", "config.toml", "last.h5", "metrics.csv", "split.json", "summary.json"}
    assert files == expected
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"] == "cifar_resnet20"
    assert summary["device"] == "cpu"
    assert summary["classes"] == list(CLASSES)
    assert summary["epochs"] == 10
    assert summary["train_images"] == 18
    assert summary["val"]["accuracy"] >= 0.8
    assert 0.8 <= summary["val"]["macro_f1"] <= 1
    assert set(summary["val"]["per_class"]) == set(CLASSES)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 11)]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert summary["best_epoch"] == int(best["epoch"])
    assert float(best["val_accuracy"]) == pytest.approx(summary["val"]["accuracy"], abs=1e-5)
    assert hdf5.read(folder / "best.h5").class_names == list(CLASSES)
    assert tomllib.loads((folder / "config.toml").read_text())["data"] == str(pictures)


def test_same_seed_same_bits_whatever_the_number_of_workers_and_threads(run):
    _, first = run(out="a")
    _, second = run("--workers", 3, "--threads", 1, out="b")
    _, other = run("--seed", 1, out="c")
    digests = [hdf5.read(folder / "last.h5").state for folder in (first, second, other)]
    assert all(np.array_equal(digests[0][name], digests[1][name]) for name in digests[0])
    assert not np.array_equal(digests[0]["linear.weight"], digests[2]["linear.weight"])


def test_config_repeats_a_run(run, tmp_path):
    _, first = run(out="a")
    assert (
        main(["finetune", "--config", str(first / "config.toml"), "--out", str(tmp_path / "b")])
        == 0
    )
    a, b = (hdf5.read(tmp_path / out / "best.h5").state for out in "ab")
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("network", ["residual", "with dropout"])
def test_resume_after_a_lost_epoch_gives_the_same_weights(run, monkeypatch, tmp_path, network):
    if network == "with dropout":
        layers = [
            {"type": "conv", "channels": 4, "kernel": 3, "stride": 2},
            {"type": "relu"},
            {"type": "global_avgpool"},
            {"type": "dropout"},
            {"type": "dense", "units": 5},
        ]
        minitl.save_model(models.create("sequential", layers=layers), tmp_path / "dropout.h5")
        run = functools.partial(run, "--weights", tmp_path / "dropout.h5")
    _, whole = run(out="whole")
    interrupt_in_epoch(monkeypatch, 2)
    code, folder = run(out="part")
    assert code != 0
    assert hdf5.read(folder / "last.h5").progress["epoch"] == 2
    monkeypatch.undo()
    assert main(["finetune", "--resume", str(folder)]) == 0
    a, b = (hdf5.read(f / "last.h5") for f in (whole, folder))
    assert all(np.array_equal(a.state[name], b.state[name]) for name in a.state)
    clock = {"seconds": 0, "images_per_second": 0}
    histories = [[row | clock for row in file.progress["history"]] for file in (a, b)]
    assert histories[0] == histories[1]


def test_freezing_the_backbone_trains_the_head_alone(run, weights):
    code, folder = run("--freeze", "backbone")
    assert code == 0
    before, after = hdf5.read(weights).state, hdf5.read(folder / "best.h5").state
    for name, array in before.items():
        if not name.startswith("linear."):
            assert array.tobytes() == after[name].tobytes(), name
    assert after["linear.weight"].shape == (3, 16)


def test_from_scratch_takes_the_network_but_not_its_weights(run, weights):
    code, folder = run("--from-scratch", "--epochs", 1, "--lr", 1e-6)
    assert code == 0
    before, after = hdf5.read(weights), hdf5.read(folder / "best.h5")
    assert after.arch_options == before.arch_options
    assert after.preprocessing == before.preprocessing
    name = "layer1.0.conv1.weight"
    assert np.abs(after.state[name] - before.state[name]).max() > 0.01


def test_the_learning_rate_follows_what_trains(tmp_path, pictures, weights):
    for freeze, lr in (("backbone", 0.01), ("layer1", 0.001)):
        out = tmp_path / freeze
        command = ["finetune", pictures, "--weights", weights, "--out", out, "--freeze", freeze]
        command += ["--no-report"]
        assert main([str(part) for part in (*command, "--epochs", 1)]) == 0
        assert tomllib.loads((out / "config.toml").read_text())["lr"] == lr


def test_a_rest_of_one_picture_is_left_out_where_it_would_have_no_statistics(run, monkeypatch):
    from minitl.train import run as run_module

    left_out = []

    class Spy(run_module.Loader):
        def __init__(self, samples, *rest, drop_last=False, **options):
            left_out.append((len(samples), drop_last))
            super().__init__(samples, *rest, drop_last=drop_last, **options)

    monkeypatch.setattr(run_module, "Loader", Spy)
    frozen = ("--freeze", "backbone", "--no-augment", "--no-feature-cache")
    for size, options in (17, ()), (16, ()), (18, ()), (1, ()), (17, frozen):
        assert run("--epochs", 1, "--overwrite", "--batch-size", size, *options)[0] == 0
    assert left_out == [(18, True), *[(18, False)] * 4]


def test_freezing_by_pattern(run, weights):
    code, folder = run("--freeze", "conv1,bn1,layer?.0.*")
    assert code == 0
    before, after = hdf5.read(weights).state, hdf5.read(folder / "last.h5").state
    same = {n for n in before if before[n].tobytes() == after[n].tobytes()}
    prefixes = ("conv1.", "bn1.", "layer1.0.", "layer2.0.", "layer3.0.")
    assert same == {n for n in before if n.startswith(prefixes)}


def test_evaluate_and_predict(learned, pictures, capsys):
    folder, _ = learned
    assert main(["evaluate", str(folder), str(pictures), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["part"], figures["images"], figures["own_split"]) == ("val", 6, True)
    assert figures["accuracy"] >= 0.8

    files = [str(pictures / name / "0.png") for name in CLASSES]
    assert main(["predict", str(folder), *files, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [r["class"] for r in results] == list(CLASSES)
    assert sum(p for _, p in results[0]["top"]) == pytest.approx(1, abs=1e-4)
    assert main(["predict", str(folder / "best.h5"), files[0], "--threads", "1"]) == 0
    assert "blue" in capsys.readouterr().out


def test_a_run_is_not_judged_on_what_it_was_trained_on_unasked(run, pictures, capsys, tmp_path):
    _, folder = run("--epochs", 1, "--test-fraction", 0.2)
    split = json.loads((folder / "split.json").read_text())
    sizes = {part: sum(map(len, split[part].values())) for part in ("train", "val", "test")}
    assert sizes["train"] > sizes["test"] > 0

    def judged(model, data, *more):
        capsys.readouterr()
        assert main(["evaluate", str(model), str(data), "--json", *map(str, more)]) == 0
        figures = json.loads(capsys.readouterr().out)
        return figures["part"], figures["images"], figures["own_split"]

    assert judged(folder, pictures) == ("test", sizes["test"], True)
    assert judged(folder / "best.h5", pictures / ".." / pictures.name) == (
        *("test", sizes["test"]),
        True,
    )
    assert judged(folder, pictures, "--part", "train") == ("train", sizes["train"], True)
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert judged(folder, copy) == ("test", sizes["test"], True)
    assert judged(folder, write_pictures(tmp_path / "others", seed=5)) == ("test", 24, False)
    _, other = run("--epochs", 1, data=copy, out="other")
    assert judged(other, copy) == ("val", 6, True)
    (copy / "red" / "0.png").unlink()
    for name in "xy":
        shutil.copy(copy / "red" / "1.png", copy / "red" / f"{name}.png")
    assert judged(other, copy) == ("val", 6, True)
    assert judged(other, copy, "--part", "test") == ("test", 2, True)  # what it has not seen
    assert judged(other, copy, "--part", "all") == ("all", 25, True)
    assert main(["evaluate", str(other), str(copy)]) == 0
    assert "not in that split" in (said := capsys.readouterr().out) and "2 in test" in said
    assert main(["evaluate", str(folder), str(pictures)]) == 0
    said = capsys.readouterr().out
    assert f"{folder} was trained on these pictures" in said and "not seen in training" in said
    _, without = run("--epochs", 1, out="without")
    capsys.readouterr()
    code = main(["evaluate", str(without), str(pictures), "--part", "test"])
    expect_error(capsys, code, "no test part", "--part val")


@pytest.mark.parametrize(
    "options", [(), ("--label-from-name", "^(?P<label>[a-z]+)/")], ids=["folders", "names"]
)
def test_runs_among_the_pictures_are_no_class(options, tmp_path, weights, monkeypatch, capsys):
    data = write_pictures(tmp_path / "data", per_class=4)
    monkeypatch.chdir(data)
    command = ["finetune", ".", "--weights", weights, "--epochs", "1", "--no-report", *options]
    for name in ("data", "data-2"):
        assert main([str(a) for a in command]) == 0
        split = json.loads((data / "runs" / name / "split.json").read_text())
        assert sorted(split["classes"]) == sorted(CLASSES)
    said = capsys.readouterr().out
    if not options:
        assert "left out 1 folders of runs" in said
        (data / "later").mkdir()
        expect_error(capsys, main([str(a) for a in command]), "'later' has no pictures")


@pytest.mark.parametrize("out", ["run", "sets/run", "train/run", "."])
def test_a_run_folder_among_the_classes_is_refused(out, tmp_path, weights, capsys):
    data = write_pictures(tmp_path / "data" / "train", per_class=4)
    data = data.parent if out.startswith("train") else data
    command = ["finetune", data, "--weights", weights, "--epochs", 1, "--no-report"]
    command += ["--out", data / out]
    words = ("is not empty",) if out == "." else (data / out, "among the class folders", "--out")
    expect_error(capsys, main([str(a) for a in command]), *words)
    assert not list(data.rglob("run"))
    inside = data.parent / "elsewhere" if out == "." else data / "runs" / "a"
    assert main([str(a) for a in (*command, "--out", inside)]) == 0


def test_a_settings_file_may_name_places_from_where_the_user_stands(
    tmp_path, weights, monkeypatch, capsys
):
    write_pictures(tmp_path / "data", per_class=4)
    (tmp_path / "my.toml").write_text(
        f'data = "data"\nweights = "{weights}"\nepochs = 1\nreport = false\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--config", "my.toml", "--out", "run"]) == 0
    assert Config.load(tmp_path / "run" / "config.toml").data == str(tmp_path / "data")
    monkeypatch.chdir("/")
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 0


def test_weights_take_the_place_of_an_architecture(run, tmp_path, pictures, weights, capsys):
    command = ["finetune", pictures, "--arch", "mlperf_resnet8", "--epochs", 1, "--no-report"]
    assert main([str(a) for a in (*command, "--out", tmp_path / "first")]) == 0
    before = Config.load(tmp_path / "first" / "config.toml")
    command = ["--config", tmp_path / "first" / "config.toml", "--weights", weights]
    assert main([str(a) for a in ("finetune", *command, "--out", tmp_path / "second")]) == 0
    after = Config.load(tmp_path / "second" / "config.toml")
    assert after.arch != before.arch
    assert after.preprocessing == models.load_model(weights).preprocessing != before.preprocessing


def test_evaluation_matches_folders_by_name(learned, capsys, tmp_path):
    folder, _ = learned
    other = write_pictures(tmp_path / "other", per_class=4, seed=5)
    (other / "red").rename(other / "zinnober")
    assert main(["evaluate", str(folder), str(other)]) == 1
    message = capsys.readouterr().err
    assert "zinnober" in message
    assert "red" in message
    assert "--class-names" not in message


def test_weights_that_do_not_name_their_classes_say_how_to_name_them(weights, pictures, capsys):
    code = main(["evaluate", str(weights), str(pictures)])
    expect_error(capsys, code, "0, 1, 2, 3, 4", "blue", "convert it again with --class-names")
    assert main(["evaluate", str(weights), str(pictures / "none")]) == 1
    assert "--class-names" not in capsys.readouterr().err


def test_a_test_part_is_judged_at_the_end(run, tmp_path, capsys):
    data = tmp_path / "parts"
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        write_pictures(data / part, per_class=count, seed=count)
    code, folder = run(data=data)
    assert code == 0
    assert json.loads((folder / "summary.json").read_text())["test"]["images"] == 9


def test_a_fraction_of_a_part_that_is_there_is_refused(run, tmp_path, weights, capsys):
    data = tmp_path / "parts"
    for part, count in (("train", 6), ("val", 2)):
        write_pictures(data / part, per_class=count, seed=count)
    expect_error(capsys, run("--val-fraction", 0.3, data=data)[0], "--val-fraction", "val part")
    options = ("--val-fraction", 0.3, "--test-fraction", 0.2)
    expect_error(capsys, run(*options, data=data)[0], "--val-fraction", data)
    command = ["features", data, "--weights", weights, "--out", tmp_path / "f.h5"]
    code = main([str(word) for word in (*command, "--val-fraction", 0.3)])
    expect_error(capsys, code, "--val-fraction")
    assert run("--epochs", 1, "--test-fraction", 0.2, data=data)[0] == 0
    write_pictures(data / "test", per_class=2)
    code, _ = run("--test-fraction", 0.2, data=data, out="two")
    expect_error(capsys, code, "--test-fraction", "test part")


# --------------------------------------------------------------------------- what can go wrong


def interrupt_in_epoch(monkeypatch, number):
    """Let trainings be interrupted when they begin this epoch, until `monkeypatch.undo()`."""
    from minitl.train import finetune

    original = finetune._train_epoch

    def interrupted(run, *others):
        if run.epoch == number:
            raise KeyboardInterrupt
        return original(run, *others)

    monkeypatch.setattr(finetune, "_train_epoch", interrupted)


def expect_error(capsys, code, *words):
    """Check for exit code 1 and one line without a traceback that holds the words."""
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("minitl: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    for word in words:
        assert str(word) in error, error


def test_bad_data_folders(run, capsys, tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    expect_error(capsys, run(data=tmp_path / "empty")[0], tmp_path / "empty", "empty")
    expect_error(capsys, run(data=tmp_path / "missing")[0], tmp_path / "missing", "does not exist")
    one = tmp_path / "one"
    (one / "red").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(one / "red" / "a.png")
    expect_error(capsys, run(data=one)[0], one, "class")
    hollow = write_pictures(tmp_path / "hollow", per_class=2)
    (hollow / "yellow").mkdir()
    expect_error(capsys, run(data=hollow)[0], "yellow", "no pictures")


def test_one_picture_of_each_class_is_too_few(run, capsys, tmp_path):
    data = write_pictures(tmp_path / "data", per_class=1)
    expect_error(capsys, run(data=data)[0], data, "no picture for validation")


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX systems alone")
def test_names_that_are_no_text(tmp_path, weights, capsys):
    """A class and its pictures as an old system named them, and a word between two dollar signs."""
    data = write_pictures(tmp_path / "data")
    (data / "red").rename(data / os.fsdecode(b"rouge fonc\xe9"))
    (data / "blue").rename(data / r"$\nothing$")
    for folder in data.iterdir():
        for path in folder.iterdir():
            path.rename(folder / os.fsdecode(b"\xfc" + os.fsencode(path.name)))
    out = tmp_path / "run"
    command = ["finetune", data, "--weights", weights, "--out", out, "--epochs", 1]
    assert main([str(a) for a in command]) == 0
    assert r"rouge fonc\udce9" in capsys.readouterr().out
    split = load_split(out / "split.json", data)
    assert split.classes[2] == os.fsdecode(b"rouge fonc\xe9")
    assert len(split.train) == 18
    assert "rouge fonc" in (out / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", str(out), str(data)]) == 0
    other = data.rename(tmp_path / os.fsdecode(b"d\xe9"))
    command = ["finetune", other, "--weights", weights, "--out", tmp_path / "o"]
    capsys.readouterr()
    expect_error(capsys, main([str(a) for a in command]), r"d\udce9", "not UTF-8", "rename")
    assert not (tmp_path / "o").exists()


def test_a_run_that_cannot_begin_leaves_nothing(run, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("minitl.data.dataset.write_json", full)
    code, folder = run()
    expect_error(capsys, code, "no space")
    assert not folder.exists()


def test_bad_pictures_are_listed_before_training(run, capsys, tmp_path):
    data = write_pictures(tmp_path / "data")
    whole = (data / "red" / "0.png").read_bytes()
    (data / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (data / "green" / "1.png").write_text("not a picture")
    code, folder = run(data=data)
    captured = capsys.readouterr()
    assert code == 1
    assert "red/0.png" in captured.out
    assert "green/1.png" in captured.out
    assert "--skip-bad" in captured.err
    assert not folder.exists()
    last = write_pictures(tmp_path / "last", per_class=3)
    for number in range(3):
        (last / "green" / f"{number}.png").write_bytes(b"")
    for more in ((), ("--class-weights", "balanced")):
        code, folder = run("--skip-bad", *more, data=last)
        expect_error(capsys, code, "no readable training picture left of green", last)
        assert not folder.exists()
    code, folder = run("--skip-bad", data=data)
    assert code == 0
    assert json.loads((folder / "summary.json").read_text())["train_images"] <= 18


def test_what_was_left_out_of_training_does_not_stand_in_the_way_of_judging(run, capsys, tmp_path):
    data = write_pictures(tmp_path / "data")
    (data / "red" / "broken.png").write_bytes(b"none")
    _, folder = run("--epochs", 1, "--skip-bad", data=data)
    for more in [], ["--skip-bad"]:
        capsys.readouterr()
        assert main(["evaluate", str(folder), str(data), *more]) == 0
        said = capsys.readouterr().out
        assert "val: 6 pictures" in said and "1 in test" in said


def test_bad_weights(run, capsys, tmp_path, pictures, weights):
    def with_weights(path, *more):
        return main(
            [
                *("finetune", str(pictures), "--weights", str(path)),
                *("--out", str(tmp_path / "r"), *more),
            ]
        )

    text = tmp_path / "text.h5"
    text.write_text("this is no HDF5 file")
    expect_error(capsys, with_weights(text), text)
    expect_error(capsys, with_weights(tmp_path / "none.h5"), tmp_path / "none.h5")
    short = tmp_path / "short.h5"
    short.write_bytes(weights.read_bytes()[:-5000])
    expect_error(capsys, with_weights(short), short)
    altered = bytearray(weights.read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / "altered.h5").write_bytes(altered)
    expect_error(capsys, with_weights(tmp_path / "altered.h5"), "altered.h5")
    expect_error(capsys, with_weights(weights, "--arch", "resnet50"), "resnet50", weights)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--epochs", "0"], ["--epochs", "0"]),
        (["--device", "tpu"], ["tpu", "cpu", "cuda:N"]),
        (["--precision", "half"], ["half", "tf32", "bf16"]),
        (["--precision", "bf16"], ["bf16", "--device cuda"]),
        (["--micro-batch", "0"], ["--micro-batch"]),
        (["--freeze", "layer9"], ["layer9", "layer1"]),
        (["--freeze", "backbone,linear"], ["nothing to train"]),
        (["--freeze", "none,layer1"], ["none"]),
        (["--schedule", "square"], ["square", "cosine"]),
        (["--warmup-steps", "1000"], ["--warmup-steps", "1000"]),
        (["--demo"], ["--demo"]),
        (["--weights", "resnet18"], ["several sources", "resnet18.torchvision_v1"]),
        (["--resume", "x"], ["--resume"]),
    ],
)
def test_bad_options(run, capsys, arguments, words):
    code, folder = run(*arguments)
    expect_error(capsys, code, *words)
    assert not folder.exists()


@pytest.mark.parametrize(
    "line", ["epochs = 2.5", "epochs = true", 'epochs = "3"', "data = 5", 'freeze = "backbone"']
)
def test_settings_of_a_wrong_type_are_named(tmp_path, capsys, line):
    settings = {"data": '"pictures"', "arch": '"resnet18"'}
    name, value = line.split(" = ")
    file = tmp_path / "c.toml"
    file.write_text("".join(f"{k} = {v}\n" for k, v in (settings | {name: value}).items()))
    code = main(["finetune", "--config", str(file), "--out", str(tmp_path / "run")])
    expect_error(capsys, code, file, name)


def test_a_run_is_never_overwritten_unasked(run, capsys):
    _, folder = run("--epochs", 1)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "best.h5").read_bytes()
    capsys.readouterr()
    expect_error(capsys, run("--epochs", 1)[0], folder, "--overwrite")
    assert (folder / "best.h5").read_bytes() == before
    assert run("--epochs", 1, "--seed", 5, "--overwrite")[0] == 0
    assert (folder / "best.h5").read_bytes() != before
    assert (folder / "notes.txt").read_text() == "mine"


def test_overwriting_spares_the_earlier_run_until_the_new_one_can_start(run, capsys):
    _, folder = run("--epochs", 1)
    before = (folder / "best.h5").read_bytes()
    capsys.readouterr()
    code, _ = run("--overwrite", "--weights", "nowhere.h5")
    expect_error(capsys, code, "nowhere.h5")
    assert (folder / "best.h5").read_bytes() == before


def test_a_run_does_not_replace_the_weights_it_starts_from(run, capsys, tmp_path):
    """Killed before it has saved, it could not begin again without them."""
    _, folder = run("--epochs", 1)
    before = files_of(folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "link.h5").symlink_to(folder / "best.h5")
    links = (tmp_path / "link", tmp_path / "link.h5")
    for same in (folder, folder / "best.h5", folder / "last.h5", *links):
        capsys.readouterr()
        code, _ = run("--epochs", 1, "--overwrite", "--weights", same)
        expect_error(capsys, code, f"--weights {same}", "--out", "copy")
    assert files_of(folder) == before
    copy = shutil.copy(folder / "best.h5", folder / "mine.h5")  # no file of a run: it stays
    assert run("--epochs", 1, "--overwrite", "--weights", copy)[0] == 0


def test_nor_does_one_that_is_started_from_python(tmp_path, pictures):
    from minitl.train import finetune

    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "best.h5", "last.h5"):
        (folder / name).write_text(name)
    before = files_of(folder)
    config = Config(data=str(pictures), weights=str(folder / "best.h5"))
    with pytest.raises(minitl.errors.UserError, match="copy the weights"):
        finetune.finetune(config, folder)
    assert files_of(folder) == before


def test_the_weights_of_a_run_that_was_to_be_replaced_are_named(run, pictures, capsys):
    _, folder = run("--epochs", 1)
    set_aside(folder)  # and killed before it saved anything
    picture = next(pictures.rglob("*.png"))
    for weights in (folder, folder / "best.h5"):
        capsys.readouterr()
        code = main(["predict", str(weights), str(picture)])
        expect_error(capsys, code, folder / ASIDE / "best.h5", "earlier", "copy")
    capsys.readouterr()
    code = run("--overwrite", "--weights", folder / ASIDE / "best.h5")[0]
    expect_error(capsys, code, ASIDE, "--out", "copy")
    settings = Config.load(folder / ASIDE / "config.toml")
    dataclasses.replace(settings, weights=str(folder)).save(folder / "config.toml")
    expect_error(capsys, main(["finetune", "--resume", str(folder)]), folder / ASIDE / "best.h5")
    assert (folder / ASIDE / "best.h5").is_file()
    assert run("--epochs", 1, "--overwrite")[0] == 0
    assert main(["predict", str(folder), str(picture)]) == 0


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("end", ["diverges", "is interrupted"])
def test_a_run_that_saves_nothing_leaves_the_one_it_was_to_replace(run, capsys, monkeypatch, end):
    from minitl.train import finetune

    _, folder = run("--epochs", 1)
    before = files_of(folder)

    def interrupt(*others):
        raise KeyboardInterrupt

    if end == "diverges":
        assert run("--overwrite", "--lr", 1e20)[0] == 1
    else:
        monkeypatch.setattr(finetune, "_train_epoch", interrupt)
        assert run("--overwrite", "--seed", 7)[0] == 130
        assert "as it was before" in capsys.readouterr().err
        monkeypatch.undo()
    assert files_of(folder) == before
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    assert run("--overwrite", "--seed", 7, "--epochs", 1)[0] == 0
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    assert files_of(folder)["best.h5"] != before["best.h5"]


def test_a_replacement_that_was_killed_does_not_cost_the_earlier_run(tmp_path):
    """Whatever moment it was killed at: the earlier run comes back if the next one saves nothing either."""

    def write(folder, *names):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(f"{folder.name} {name}")

    folder, aside = tmp_path / "run", tmp_path / "run" / ASIDE
    write(folder, "config.toml", "best.h5", "last.h5", "mine.txt")
    earlier = files_of(folder)
    set_aside(folder)
    assert files_of(folder).keys() == {"mine.txt"}
    write(folder, "config.toml", "split.json", ".last.h5.12.tmp")  # and killed in the first epoch
    set_aside(folder)
    assert files_of(folder).keys() == {"mine.txt"}
    put_back(folder)
    assert files_of(folder) == earlier and not aside.exists()
    set_aside(folder)
    (aside / "last.h5").rename(folder / "last.h5")  # as if killed before it was moved
    set_aside(folder)
    put_back(folder)
    assert files_of(folder) == earlier and not aside.exists()
    set_aside(folder)
    write(
        folder, "config.toml", "last.h5"
    )  # the new run has saved, and was killed before tidying up
    new = files_of(folder)
    set_aside(folder)
    put_back(folder)
    assert files_of(folder) == new and not aside.exists()


@pytest.mark.skipif(os.name != "posix", reason="folders have no locks there")
def test_a_folder_that_another_process_writes_to_is_left_alone(run, capsys):
    _, folder = run("--epochs", 1)
    before = files_of(folder)
    capsys.readouterr()
    with claimed(folder):
        expect_error(capsys, run("--overwrite", "--seed", 7)[0], folder, "another process", "--out")
        expect_error(capsys, main(["finetune", "--resume", str(folder)]), "another process")
    assert files_of(folder) == before
    assert main(["finetune", "--resume", str(folder)]) == 0


def test_a_run_takes_its_folder_before_it_looks_at_its_pictures(
    run, pictures, tmp_path, monkeypatch
):
    """So that a second one that is started in that time takes another name."""
    from minitl.train import finetune

    second = []

    def look(config):
        second.append(prepare_folder(None, "mine", overwrite=False))
        raise minitl.errors.UserError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetune, "dataset_of", look)
    assert run(out="runs/mine")[0] == 1
    assert second == [Path("runs/mine-2")]
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_cannot_be_made_is_named(run, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    expect_error(capsys, run(out="file/run")[0], tmp_path / "file" / "run", "--out")


def test_a_run_folder_that_cannot_be_written_to_is_named_at_once(
    run, capsys, tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    expect_error(capsys, run()[0], "cannot write into", tmp_path / "run", "choose another --out")


def test_only_runs_are_overwritten(run, tmp_path, capsys):
    _, inner = run("--epochs", 1, out="runs/first")
    before = files_of(inner)
    capsys.readouterr()
    expect_error(capsys, run("--overwrite", out="runs")[0], "runs holds no run of minitl")
    others = tmp_path / "others"
    others.mkdir()
    (others / "config.toml").write_text('title = "mine"\n')
    (others / "summary.json").write_text("{}")
    expect_error(capsys, run("--overwrite", out="others")[0], "others holds no run of minitl")
    code, _ = run(out="others")
    error = capsys.readouterr().err
    assert code == 1 and "choose another --out" in error
    assert "--overwrite" not in error and "--resume" not in error
    assert files_of(others).keys() == {"config.toml", "summary.json"}
    assert files_of(inner) == before


def test_a_run_killed_in_its_first_epoch_is_named_as_one_to_resume(run, capsys, monkeypatch):
    from minitl.train import finetune

    class Terminated(BaseException):
        """As by SIGTERM: nothing is tidied up."""

    def kill(*others):
        raise Terminated

    monkeypatch.setattr(finetune, "_train_epoch", kill)
    monkeypatch.setattr(finetune, "put_back", lambda folder: None)
    with pytest.raises(Terminated):
        run("--epochs", 1)
    monkeypatch.undo()
    capsys.readouterr()
    code, folder = run("--epochs", 1)
    expect_error(capsys, code, "not empty", f"--resume {folder}", "--overwrite")
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert "beginning again" in capsys.readouterr().out


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_checkpoint(
    run, capsys, monkeypatch
):
    from minitl.train import finetune

    original = finetune._train_epoch

    def explode(run, *others):
        if run.epoch == 1:
            run.model.state_dict()["linear.bias"][...] = np.nan
        return original(run, *others)

    monkeypatch.setattr(finetune, "_train_epoch", explode)
    code, folder = run()
    expect_error(capsys, code, "loss", "nan", "--lr", "last.h5")
    assert hdf5.read(folder / "last.h5").progress["epoch"] == 1


def test_outputs_that_are_no_numbers_end_the_run_in_validation(run, capsys):
    """The loss of the last step is one, and the weights behind it are not: nobody has seen that yet."""
    code, folder = run("--epochs", 1, "--batch-size", 50, "--lr", 1e20)
    expect_error(capsys, code, "validation of epoch 1", "--lr", "1e+19")
    assert not folder.exists()


def test_a_loss_that_explodes_and_stays_a_number_is_mentioned(run, capsys):
    assert run("--lr", 1e3, "--freeze", "backbone")[0] == 0
    assert "times that of guessing" in capsys.readouterr().out
    assert run("--epochs", 1, out="calm")[0] == 0
    assert "guessing" not in capsys.readouterr().out


def test_weights_that_give_no_numbers_are_said(tmp_path, capsys, pictures):
    model = models.cifar_resnet20(num_classes=3, width=4, seed=1)
    model.class_names = list(CLASSES)
    model.linear.bias.data[1] = np.nan
    minitl.save_model(model, tmp_path / "w.h5")
    for command in ("evaluate", "predict"):
        code = main([command, str(tmp_path / "w.h5"), str(pictures)])
        expect_error(capsys, code, "not numbers", "diverged")


def test_a_full_disk_keeps_the_checkpoint(run, capsys, monkeypatch, tmp_path):
    from minitl import files

    def full_after_one_epoch(descriptor):
        if (tmp_path / "run" / "metrics.csv").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full_after_one_epoch)
    code, folder = run()
    expect_error(capsys, code, os.strerror(errno.ENOSPC), folder)
    assert hdf5.read(folder / "last.h5").progress["epoch"] == 1
    hdf5.read(folder / "best.h5")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ctrl_c_in_the_middle_of_an_epoch(pictures, weights, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "minitl", "finetune", pictures, "--weights", weights]
    options = ["--out", folder, "--epochs", "10000", "--batch-size", "6", "--lr", "0.001"]
    options += ["--no-report"]
    process = subprocess.Popen(
        [str(part) for part in (*command, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c if os.name == "posix" else None,
    )
    deadline = time.monotonic() + 120
    while not (folder / "last.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGINT)
    assert "--resume" in error
    assert "Traceback" not in error
    assert hdf5.read(folder / "last.h5").progress["epoch"] >= 1


def test_an_interrupt_before_anything_is_saved_leaves_the_folder_free(run, capsys, monkeypatch):
    from minitl.train import finetune

    def interrupt(*others):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_train_epoch", interrupt)
    code, folder = run()
    assert code == 130
    assert "nothing was saved" in capsys.readouterr().err
    assert not folder.exists()
    monkeypatch.undo()
    assert run("--epochs", 1)[0] == 0


def test_an_interrupt_while_the_best_epoch_is_judged(run, capsys, monkeypatch):
    from minitl.train import finetune

    def interrupt(*others):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_finish", interrupt)
    code, folder = run("--epochs", 1)
    assert code == 130
    error = capsys.readouterr().err
    assert "after the last epoch" in error and f"--resume {folder}" in error
    monkeypatch.undo()
    assert main(["finetune", "--resume", str(folder)]) == 0
    assert (folder / "summary.json").exists()


def test_a_run_is_resumed_from_any_folder(pictures, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    command = ["finetune", pictures.name, "--weights", weights, "--out", tmp_path / "run"]
    command += ["--no-report"]
    assert main([str(part) for part in (*command, "--epochs", 1)]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--resume", "run"]) == 0


def test_pictures_that_were_moved_are_asked_for(run, capsys, tmp_path):
    data = write_pictures(tmp_path / "data")
    _, folder = run("--epochs", 1, data=data)
    data.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    for command in ["finetune", "--resume"], ["report"]:
        code = main([*command, str(folder)])
        expect_error(capsys, code, data, "is not there", folder / "config.toml")
    settings = (folder / "config.toml").read_text().replace(str(data), str(tmp_path / "elsewhere"))
    (folder / "config.toml").write_text(settings)
    assert main(["finetune", "--resume", str(folder)]) == 0


def test_debug_shows_the_traceback(run):
    with pytest.raises(minitl.errors.UserError):
        run("--debug", "--lr", "-1")


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_demo_compares_with_training_from_scratch_though_an_earlier_one_was_interrupted(
    tmp_path, capsys, monkeypatch, number
):
    folder = tmp_path / "new" / "demo"
    command = ["finetune", "--demo", "--out", str(folder), "--epochs", "2", "--no-report"]
    interrupt_in_epoch(monkeypatch, number)
    assert main(command) == 130
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert f"--demo --out {folder} --overwrite" in said and "finetune --resume" not in said
    assert (tmp_path / "new").exists() == (number > 0)
    assert main([*command, "--overwrite"]) == 0
    transfer = json.loads((folder / "summary.json").read_text())["transfer"]
    assert transfer["pretrained_test_accuracy"] > transfer["scratch_test_accuracy"]
    assert "What transfer bought" in capsys.readouterr().out
    assert (folder / "finetuned" / "best.h5").exists()


def test_the_demo_takes_no_settings_file(tmp_path, capsys):
    code = main(["finetune", "--demo", "--config", "c.toml", "--out", str(tmp_path / "demo")])
    expect_error(capsys, code, "--demo", "settings")


@pytest.mark.parametrize(
    "option",
    [
        *(["--label-from-name", "(.*)_"], ["--labels", "l.csv"], ["--task", "a=number"]),
        *(
            ["--val-fraction", "0.3"],
            ["--test-fraction", "0.3"],
            ["--follow-links"],
            ["--skip-bad"],
        ),
        *(["--freeze", "backbone"], ["--freeze-until", "layer2"], ["--cached-views", "2"]),
        *(["--unfreeze-schedule", "head:0"], ["--no-feature-cache"], ["--features", "f.h5"]),
        *(["--recipe", "all-layers"], ["--from-scratch"]),
    ],
)
def test_the_demo_refuses_what_it_cannot_carry_out(tmp_path, capsys, option):
    code = main(["finetune", "--demo", "--out", str(tmp_path / "demo"), *option])
    expect_error(capsys, code, "--demo", f"leave {option[0]} out")
    assert not (tmp_path / "demo").exists()


def test_the_demo_takes_options_as_a_settings_file_does(tmp_path, capsys, monkeypatch):
    from minitl.train import demo

    configs = []
    judged = {"test": {"accuracy": 0.5, "images": 1}}
    monkeypatch.setattr(demo, "finetune", lambda config, folder: configs.append(config) or judged)
    monkeypatch.setattr(demo, "write_digits", lambda *a, **k: (tmp_path / "demo").mkdir())

    def start(*options):
        configs.clear()
        shutil.rmtree(tmp_path / "demo", ignore_errors=True)
        return main(["finetune", "--demo", "--out", str(tmp_path / "demo"), *options])

    assert start("--seed", "3") == 0
    assert [(c.from_scratch, c.augment, c.seed, c.nesterov) for c in configs] == [
        (False, False, 3, True),
        (True, False, 3, True),
    ]
    assert [c.lr for c in configs] == [demo.LR_PRETRAINED, demo.LR_FROM_SCRATCH]
    assert start("--rotation", "40", "--lr", "0.3", "--lr-for", "head=1") == 0
    assert [(c.augment, c.rotation, c.lr, c.lr_for) for c in configs] == [
        (True, 40, 0.3, ("head=1",))
    ] * 2
    assert start("--optimizer", "adamw") == 0  # the rates are of SGD
    assert [(c.lr, c.nesterov, c.weight_decay) for c in configs] == [(None, False, None)] * 2
    capsys.readouterr()
    expect_error(capsys, start("--no-augment", "--erase", "1"), "--erase", "no effect")
    assert not configs and not (tmp_path / "demo").exists()


def test_a_frozen_trunk_computes_the_features_of_every_picture(run, monkeypatch):
    """Also where the last batch of an epoch would hold a single picture: 18 in batches of 17."""
    from minitl.data.loader import Loader

    seen = {True: 0, False: 0}  # pictures, by whether the loader shuffles: training does
    original = Loader.pictures

    def pictures(self, *arguments):
        for batch in original(self, *arguments):
            seen[self.shuffle] += len(batch.indices)
            yield batch

    monkeypatch.setattr(Loader, "pictures", pictures)
    assert run("--freeze", "backbone", "--no-augment", "--batch-size", 17)[0] == 0
    assert seen[True] == 18


def test_kept_features_are_without_dropout(tmp_path, pictures):
    """A mask that is drawn once and kept would blind the head to the same features for good."""
    from minitl.data.folder import scan
    from minitl.data.loader import Loader
    from minitl.data.preprocessing import Preprocessing
    from minitl.train.forward import Forward

    layers = [
        {"type": "conv", "channels": 4, "kernel": 3},
        {"type": "global_avgpool"},
        {"type": "dropout", "p": 0.9},
        {"type": "dense", "units": 3},
    ]
    model = models.create("sequential", layers=layers, input=[32, 32])
    dataset = scan(pictures)
    loader = Loader(dataset.train, dataset.root, Preprocessing.from_dict(model.preprocessing), 5)
    forward = Forward(model.train(), loader, 3, "train")
    rows = np.concatenate([inputs.x for inputs in forward.inputs(0)])
    images = np.concatenate([batch.images for batch in loader.epoch(0)])
    assert model.training
    assert np.array_equal(rows, model.eval().features(minitl.tensor(images)).numpy())


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_run_without_its_best_weights_is_not_continued(run, capsys, monkeypatch, damage):
    interrupt_in_epoch(monkeypatch, 2)
    code, folder = run()
    assert code == 130
    monkeypatch.setattr(
        "minitl.train.finetune._train_epoch", lambda *others: pytest.fail("it trains")
    )
    if damage == "missing":
        (folder / "best.h5").unlink()
    else:
        (folder / "best.h5").write_bytes((folder / "best.h5").read_bytes()[:-5000])
    capsys.readouterr()
    expect_error(capsys, main(["finetune", "--resume", str(folder)]), folder / "best.h5")


def test_a_run_goes_on_with_other_threads_but_no_other_settings(run, capsys):
    _, folder = run("--epochs", 1)
    before = (folder / "config.toml").read_bytes()
    resume = ["finetune", "--resume", str(folder)]
    assert main([*resume, "--threads", "1", "--workers", "2"]) == 0
    assert (folder / "config.toml").read_bytes() == before
    capsys.readouterr()
    code = main([*resume, "--epochs", "3"])
    expect_error(capsys, code, "--resume", "--threads, --workers, --device")
    code = main([*resume, "--device", "cuda"])
    expect_error(capsys, code, "--device cuda", "began on cpu", "best.h5")
    expect_error(capsys, main([*resume, "--workers", "0"]), "--workers")


@pytest.mark.parametrize("change", [("\nlr = ", "\n# "), ('    "none"', '    "backbone"')])
def test_resuming_with_other_settings_than_the_checkpoint(run, capsys, change):
    _, folder = run("--epochs", 1)
    file = folder / "config.toml"
    file.write_text(file.read_text().replace(*change))
    capsys.readouterr()
    expect_error(capsys, main(["finetune", "--resume", str(folder)]), file)


def test_class_names_are_checked_and_cannot_command_a_terminal(tmp_path, capsys, pictures):
    model = models.cifar_resnet20(num_classes=3, width=4, seed=1)
    picture = str(next(pictures.rglob("*.png")))
    file = tmp_path / "w.h5"
    model.class_names = ["\x1b[31mred", "b", "c"]
    minitl.save_model(model, file)
    assert main(["predict", str(file), picture]) == 0
    assert "\x1b" not in capsys.readouterr().out
    model.class_names = ["a"]
    hdf5.write(file, to_weights_file(model))  # save_model refuses
    expect_error(capsys, main(["predict", str(file), picture]), file, "1 class names", "3 classes")
