"""`minitl finetune`: train a pretrained network on a folder of labelled pictures."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.settings import (
    add_features,
    add_settings,
    add_source,
    config_of,
    given_in,
)
from minitl.errors import UserError

RESUMABLE = ("threads", "workers", "device")  # what may change without changing the result


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "finetune",
        help="train a pretrained network on a folder of labelled pictures",
        description="Train a pretrained network on DATA/<class>/* or DATA/{train,val[,test]}/<class>/*. "
        "In parentheses: what holds if an option is not given.",
        usage="minitl finetune DATA --weights FILE.h5|NAME [--recipe NAME] [--out RUN] [options]\n"
        "       minitl finetune --resume RUN [--accept-changed] [--threads N] [--workers N] [--device D]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to do")
    add_source(what)
    add_features(what)
    what.add_argument("--demo", action="store_true", help="built-in example: handwritten digits")
    what.add_argument(
        "--resume",
        metavar="RUN",
        help="continue a run where it was last saved, to the same result, perhaps with other --threads, "
        "--workers or another GPU",
    )
    what.add_argument(
        "--accept-changed",
        action="store_true",
        help="with --resume: go on although pictures have another size or date than when the run began",
    )
    what.add_argument("--out", metavar="RUN", help="run folder (default: runs/<name of DATA>)")
    what.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")
    add_settings(command)
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.demo import RUNS_INSIDE, demo
    from minitl.train.finetune import finetune, resume
    from minitl.train.run_folder import prepare_folder

    given = given_in(options)
    accept_changed = given.pop("accept_changed", False)
    if "resume" in given:
        folder = Path(given.pop("resume"))
        if given.keys() - set(RESUMABLE):
            allowed = ", ".join(f"--{name}" for name in RESUMABLE)
            raise UserError(
                f"--resume {folder} takes no options but {allowed}: a run continues with its own settings"
            )
        resume(folder, accept_changed=accept_changed, **given)
        return
    if accept_changed:
        raise UserError(
            "--accept-changed is about the pictures of a run; give --resume RUN as well"
        )
    out, overwrite = given.pop("out", None), given.pop("overwrite", False)
    if given.pop("demo", False):
        if "config" in given:
            raise UserError("--demo brings its own settings; leave --config out")
        demo(prepare_folder(out, "demo", overwrite, RUNS_INSIDE), **given)
        return
    config = config_of(given, options.command)
    name = Path(config.data).resolve().name
    finetune(config, prepare_folder(out, name, overwrite))
