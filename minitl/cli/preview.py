"""`minitl preview`: a contact sheet of what the network will see in training."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import (
    add_follow_links,
    add_labels,
    add_overwrite,
    count,
    refuse_to_replace,
)
from minitl.cli.settings import add_augmentation, add_recipe, add_tasks


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "preview",
        help="show what the network will see of your pictures",
        description="Draw a sheet of training pictures, varied exactly as minitl finetune will vary them "
        "with the same options and seed: a row for each picture, a column for each epoch. With --mixup or "
        "--cutmix a column shows the first pictures of its epoch.",
        usage="minitl preview DATA [--weights FILE.h5|NAME] [options of finetune] [--out FILE.png]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to show")
    what.add_argument("data", nargs="?", metavar="DATA", help="the image folder")
    what.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        help="the network to prepare pictures for: a file or a name (224 x 224 pixels, as most)",
    )
    what.add_argument(
        "--arch", metavar="NAME", help="without --weights: the network's architecture"
    )
    what.add_argument("--config", metavar="FILE.toml", help="settings of a run to show instead")
    what.add_argument(
        "--out",
        default=Path("preview.png"),
        type=Path,
        metavar="FILE.png",
        help="the sheet (preview.png)",
    )
    add_overwrite(what)
    add_recipe(what)
    what.add_argument("--pictures", type=count, default=8, metavar="N", help="rows (8)")
    what.add_argument("--columns", type=count, default=6, metavar="N", help="epochs to show (6)")
    what.add_argument("--seed", type=int, metavar="N", help="as for finetune (0)")
    what.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="as for finetune: with --mixup and --cutmix it decides what meets what (16)",
    )
    what.add_argument(
        "--val-fraction", type=float, metavar="X", help="as for finetune, if DATA has no val (0.2)"
    )
    what.add_argument(
        "--test-fraction", type=float, metavar="X", help="as for finetune, if DATA has no test (0)"
    )
    add_labels(what)
    add_follow_links(what)
    add_tasks(command)
    add_augmentation(command)
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.config import make_config
    from minitl.train.preview import preview

    given = {k: v for k, v in vars(options).items() if k not in ("run", "debug")}
    out, pictures, columns = (given.pop(name) for name in ("out", "pictures", "columns"))
    refuse_to_replace(out, given.pop("overwrite"))
    file = given.pop("config", None)
    preview(make_config(file and Path(file), given), out, pictures, columns)
