"""`minitl lr-find`: which learning rate to begin with."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_overwrite, count, refuse_to_replace
from minitl.cli.settings import (
    add_course,
    add_features,
    add_schedule,
    add_settings,
    add_source,
    config_of,
    given_in,
)


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "lr-find",
        help="find a learning rate for your pictures",
        description="Take some steps as minitl finetune would with the same options, at a learning rate "
        "that rises from far too small to far too large; draw the loss and suggest a rate. The weights "
        "stay as they are. Where parts have learning rates of their own, they keep their ratio to --lr.",
        epilog="The schedule and the course of training (--epochs and the like) are accepted too, so that "
        "options of minitl finetune can be reused as they are; they have no influence here.",
        usage="minitl lr-find DATA --weights FILE.h5|NAME [options of finetune] [--out FILE.png]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to do")
    add_source(what)
    add_features(what)
    what.add_argument(
        "--out", default=Path("lr.png"), type=Path, metavar="FILE.png", help="the drawing (lr.png)"
    )
    add_overwrite(what)
    what.add_argument("--steps", type=count, default=100, metavar="N", help="steps, at most (100)")
    what.add_argument(
        "--lowest", type=float, default=1e-6, metavar="X", help="first learning rate (1e-6)"
    )
    what.add_argument(
        "--highest", type=float, default=10, metavar="X", help="last learning rate (10)"
    )
    add_settings(command, idle=(add_schedule, add_course))
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.lr_finder import find_lr

    given = given_in(options)
    out, *ramp = (given.pop(name) for name in ("out", "steps", "lowest", "highest"))
    refuse_to_replace(out, given.pop("overwrite"))
    find_lr(config_of(given, options.command), out, *ramp)
