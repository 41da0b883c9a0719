"""`minitl finetune`: train a pretrained network on a folder of labelled pictures."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.settings import (
    add_augmentation,
    add_batches,
    add_computing,
    add_course,
    add_model,
    add_optimizer,
    add_pictures,
    add_rate,
    add_recipe,
    add_tasks,
)
from minitl.errors import UserError

RESUMABLE = ("threads", "workers", "device")  # what may change without changing the result


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "finetune",
        help="train a pretrained network on a folder of labelled pictures",
        description="Train a pretrained network on DATA/<class>/* or DATA/{train,val[,test]}/<class>/*. "
        "In brackets: what holds if an option is not given.",
        usage="minitl finetune DATA --weights FILE.h5|NAME [--recipe NAME] [--out RUN] [options]\n"
        "       minitl finetune --resume RUN [--accept-changed] [--threads N] [--workers N] [--device D]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to do")
    what.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    what.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        help="pretrained weights: a file (see minitl convert) or a name (see minitl pull --list)",
    )
    what.add_argument(
        "--from-scratch",
        action="store_true",
        help="start the network of --weights from random weights: what did transfer buy?",
    )
    what.add_argument(
        "--arch", metavar="NAME", help="without --weights: the network to train from scratch"
    )
    what.add_argument(
        "--features",
        metavar="FILE.h5",
        help="in place of DATA: train what follows on a file of minitl features",
    )
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
    add_recipe(what)
    what.add_argument(
        "--config", metavar="FILE.toml", help="settings of an earlier run to start from"
    )
    what.add_argument("--out", metavar="RUN", help="run folder (default: runs/<name of DATA>)")
    what.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")
    what.add_argument(
        "--compare-before",
        action="store_true",
        help="judge the network before training too, on the test part if there is one (default: not)",
    )
    what.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="no report.html and plots at the end",
    )

    add_model(command)
    add_optimizer(command)
    add_rate(command)
    add_course(command)
    add_batches(command)
    add_augmentation(command)
    add_pictures(command)
    add_tasks(command)
    add_computing(command)
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.config import make_config
    from minitl.train.demo import demo
    from minitl.train.finetune import finetune, resume
    from minitl.train.run_folder import prepare_folder

    given = {k: v for k, v in vars(options).items() if k not in ("run", "debug")}
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
    config_file = given.pop("config", None)
    out, overwrite = given.pop("out", None), given.pop("overwrite", False)
    if given.pop("demo", False):
        if config_file:
            raise UserError("--demo brings its own settings; leave --config out")
        demo(prepare_folder(out, "demo", overwrite, ("finetuned", "scratch")), **given)
        return
    if "features" in given:
        from minitl.feature_file import FeatureFile
        from minitl.train.feature_runs import settings_from_features

        given = settings_from_features(FeatureFile(given["features"]), given)
    config = make_config(config_file and Path(config_file), given)
    name = Path(config.data).resolve().name
    finetune(config, prepare_folder(out, name, overwrite))
