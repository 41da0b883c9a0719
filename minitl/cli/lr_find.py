"""`minitl lr-find`: which learning rate to begin with."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_overwrite, count, refuse_to_replace
from minitl.cli.settings import (
    add_augmentation,
    add_batches,
    add_computing,
    add_model,
    add_optimizer,
    add_pictures,
    add_recipe,
    add_tasks,
)


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "lr-find",
        help="find a learning rate for your pictures",
        description="Take some steps as minitl finetune would with the same options, at a learning rate "
        "that rises from far too small to far too large; draw the loss and suggest a rate. The weights "
        "stay as they are.",
        usage="minitl lr-find DATA --weights FILE.h5|NAME [options of finetune] [--out FILE.png]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to do")
    what.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    what.add_argument("--weights", metavar="FILE.h5|NAME", help="pretrained weights")
    what.add_argument(
        "--from-scratch", action="store_true", help="only the network of --weights, not its weights"
    )
    what.add_argument("--arch", metavar="NAME", help="without --weights: the network")
    what.add_argument("--config", metavar="FILE.toml", help="settings of a run to start from")
    add_recipe(what)
    what.add_argument(
        "--out", default=Path("lr.png"), type=Path, metavar="FILE.png", help="the drawing (lr.png)"
    )
    add_overwrite(what)
    what.add_argument("--steps", type=count, default=100, metavar="N", help="at most (100)")
    what.add_argument(
        "--lowest", type=float, default=1e-6, metavar="X", help="the first rate (1e-6)"
    )
    what.add_argument("--highest", type=float, default=10, metavar="X", help="the last one (10)")
    add_model(command)
    add_optimizer(command)
    add_batches(command)
    add_augmentation(command)
    add_pictures(command)
    add_tasks(command)
    add_computing(command)
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.config import make_config
    from minitl.train.lr_finder import find_lr

    given = {k: v for k, v in vars(options).items() if k not in ("run", "debug")}
    out, *ramp = (given.pop(name) for name in ("out", "steps", "lowest", "highest"))
    refuse_to_replace(out, given.pop("overwrite"))
    file = given.pop("config", None)
    find_lr(make_config(file and Path(file), given), out, *ramp)
