"""What all commands have in common: what they say of arguments that they do not take, and of files."""

import argparse
import shutil

import pytest

from minitl import cli
from minitl.cli import main
from minitl.data.loader import usable_cores
from minitl.train import evidence
from minitl.train.attack import JUDGING_STEPS, TRAINING_STEPS
from tests.test_finetune import expect_error, pictures, weights

__all__ = ["pictures", "weights"]  # fixtures

COMMANDS = cli.parsers()[1]


def refused(capsys, *arguments):
    """Return what a command says that ends with the status of a wrong command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["finetune", "data", "--learning-rate", "0.1"], "--lr"),
        (["finetune", "data", "--bs=8"], "--batch-size"),
        (["finetune", "data", "--epocsh", "3"], "--epochs"),
        (["preview", "data", "--model", "w.h5"], "--weights"),
        (["predict", "run", "data", "--num-workers", "3"], "--workers"),
        (["evaluate", "run", "data", "--epsilon", "3"], "--attack"),
    ],
)
def test_an_unknown_option_is_named_by_its_command_with_what_may_be_meant(capsys, arguments, meant):
    command, unknown = arguments[0], next(word for word in arguments if word.startswith("-"))
    said = refused(capsys, *arguments)
    assert said.startswith(f"minitl {command}: no option {unknown.partition('=')[0]}; ")
    assert said.endswith(f"did you mean {meant}?\n")


def test_where_nothing_is_like_it_the_help_is_named(capsys):
    assert "minitl cache --help" in refused(capsys, "cache", "--learning-rate", "0.1")
    assert "finetune: cannot do anything with b" in refused(capsys, "finetune", "a", "b")


def test_other_names_lead_to_options_that_there_are():
    known = {option for command in COMMANDS.values() for option in command.options()}
    assert set(cli.OTHER_NAMES.values()) <= known
    assert not set(cli.OTHER_NAMES) & known


@pytest.mark.parametrize("name", ["lr-find", "preview"])
def test_the_settings_of_training_are_those_of_finetune(name):
    about_runs = {"--resume", "--accept-changed", "--demo"}
    assert COMMANDS["finetune"].options().keys() - COMMANDS[name].options().keys() <= about_runs


def test_options_of_finetune_can_be_reused_as_they_are(tmp_path, pictures, weights, capsys):
    settings = [
        "--epochs",
        3,
        "--batch-size",
        6,
        "--lr",
        0.01,
        "--lr-for",
        "head=0.05",
        "--ema",
        0.9,
    ]
    settings += [
        "--layer-decay",
        0.8,
        "--schedule",
        "step",
        "--step-epochs",
        2,
        "--sampler",
        "balanced",
    ]
    settings += ["--save-every", "1m", "--no-report", "--compare-before", "--workers", 2]
    for command, *own in (["lr-find", "--steps", 10, "--highest", 1e-4], ["preview"]):
        out = tmp_path / f"{command}.png"
        arguments = [command, pictures, "--weights", weights, *settings, *own, "--out", out]
        assert main([str(word) for word in arguments]) == 0, capsys.readouterr().err
        assert out.is_file()


@pytest.mark.parametrize(("name", "idle"), [("lr-find", "--epochs"), ("preview", "--momentum")])
def test_the_help_leaves_out_what_has_no_influence(name, idle):
    shown = COMMANDS[name].format_help()
    assert f"  {idle} " not in shown and "  --batch-size N" in shown
    assert f"  {idle} " in COMMANDS["finetune"].format_help()


def test_a_preview_of_kept_variations_ends_where_they_repeat(tmp_path, pictures, weights, capsys):
    command = [
        "preview",
        pictures,
        "--weights",
        weights,
        "--freeze",
        "backbone",
        "--cached-views",
        2,
    ]
    assert main([str(word) for word in (*command, "--out", tmp_path / "p.png")]) == 0
    assert "in 2 epochs" in capsys.readouterr().out


def test_a_preview_leaves_out_what_the_run_leaves_out(tmp_path, capsys, pictures):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "red" / "0.png").write_bytes(b"no picture")
    command = ["preview", str(data), "--arch", "cifar_resnet20", "--out", str(tmp_path / "p.png")]
    assert main([*command, "--skip-bad"]) == 0
    assert "red/0.png" in capsys.readouterr().out


def test_a_preview_takes_features_as_the_run_does(tmp_path, capsys, pictures, weights):
    file, out = tmp_path / "f.h5", tmp_path / "p.png"
    command = ["features", str(pictures), "--weights", str(weights), "--out", str(file)]
    assert main(command) == 0
    assert main(["preview", "--features", str(file), "--out", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize("name", ["finetune", "lr-find", "preview"])
def test_the_command_that_lacks_its_pictures_is_named(capsys, name):
    expect_error(capsys, main([name]), f"minitl {name} DATA")


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if "--workers" in c.options()])
def test_how_many_threads_decode_is_said_by_the_device(name):
    (action,) = {a for a in COMMANDS[name]._actions if "--workers" in a.option_strings}
    assert action.default in (None, argparse.SUPPRESS)
    assert name == "preview" or "one for each core" in action.help


def test_a_gpu_is_fed_by_as_many_threads_as_there_are_cores(monkeypatch):
    seen = []
    monkeypatch.setattr(evidence, "report", lambda folder, *, workers, **rest: seen.append(workers))
    for more in ((), ("--device", "cuda"), ("--device", "cuda", "--workers", "3")):
        assert main(["report", "run", *more]) == 0
    assert seen == [1, usable_cores(), 3]


@pytest.mark.parametrize(
    ("name", "option", "steps"),
    [
        ("evaluate", "--attack", JUDGING_STEPS),
        ("transfer-report", "--attack", JUDGING_STEPS),
        ("finetune", "--adversarial", TRAINING_STEPS),
    ],
)
def test_an_attack_is_spelled_in_one_way_and_its_steps_are_said(name, option, steps):
    (action,) = {a for a in COMMANDS[name]._actions if option in a.option_strings}
    assert action.metavar == "KIND:X" and f"({steps} steps" in action.help


def test_the_option_is_named_whose_file_is_not_there(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"")
    command = [
        "convert",
        tmp_path / "a.pth",
        tmp_path / "b.h5",
        "--class-names",
        tmp_path / "none.txt",
    ]
    code = main([str(word) for word in command])
    expect_error(
        capsys, code, f"--class-names {tmp_path / 'none.txt'}: No such file", "check that path"
    )


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (["inspect", "w.h5"], "out of memory; end other programs"),
        (["predict", "w.h5", "a.png"], "fewer --workers"),
        (["preview", "data"], "fewer --pictures"),
        (["finetune", "data"], "a smaller --micro-batch or --batch-size"),
        (["finetune", "--resume", "run"], "out of memory; try fewer --workers"),
    ],
)
def test_advice_about_memory_names_options_that_the_command_has(
    monkeypatch, capsys, command, advice
):
    def out_of_memory(options):
        raise MemoryError

    parsers = cli.parsers()
    parsers[1][command[0]].set_defaults(run=out_of_memory)
    monkeypatch.setattr(cli, "parsers", lambda: parsers)
    expect_error(capsys, main(command), advice)
    for word in advice.split():
        assert not word.startswith("--") or word in COMMANDS[command[0]].options()
