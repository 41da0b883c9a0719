"""`minitl preview`: a contact sheet of what the network will see in training."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_overwrite, count, refuse_to_replace
from minitl.cli.settings import (
    SETTINGS,
    add_augmentation,
    add_batches,
    add_features,
    add_pictures,
    add_settings,
    add_source,
    add_tasks,
    config_of,
    given_in,
)

VISIBLE = (add_batches, add_augmentation, add_pictures, add_tasks)


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "preview",
        help="show what the network will see of your pictures",
        description="Draw a sheet of training pictures, varied exactly as minitl finetune will vary them "
        "with the same options and seed: a row for each picture, a column for each epoch. With --mixup or "
        "--cutmix a column shows the first pictures of its epoch. Without --weights and --arch, pictures are "
        "prepared as most networks want them, 224 x 224 pixels.",
        epilog="All other settings of minitl finetune are accepted too, so that its options can be reused as "
        "they are. Adversarial changes are not drawn.",
        usage="minitl preview DATA [--weights FILE.h5|NAME] [options of finetune] [--out FILE.png]",
        argument_default=argparse.SUPPRESS,
    )
    command.set_defaults(run=run, debug=False)
    what = command.add_argument_group("what to show")
    add_source(what)
    add_features(what)
    what.add_argument(
        "--out",
        default=Path("preview.png"),
        type=Path,
        metavar="FILE.png",
        help="the sheet (preview.png)",
    )
    add_overwrite(what)
    what.add_argument(
        "--pictures", type=count, default=8, metavar="N", help="rows: pictures to show (8)"
    )
    what.add_argument(
        "--columns", type=count, default=6, metavar="N", help="columns: epochs to show (6)"
    )
    add_settings(command, idle=[add for add in SETTINGS if add not in VISIBLE])
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.preview import preview

    given = given_in(options)
    out, pictures, columns = (given.pop(name) for name in ("out", "pictures", "columns"))
    refuse_to_replace(out, given.pop("overwrite"))
    preview(config_of(given, options.command), out, pictures, columns)
