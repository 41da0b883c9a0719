"""`minitl transfer-report`: did pretraining help with these pictures?"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from minitl.cli.arguments import (
    add_attack,
    add_device,
    add_follow_links,
    add_labels,
    add_threads,
    add_workers,
    count,
    make_attack,
)
from minitl.errors import UserError

RATES = ("scratch", "frozen", "finetuned")


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "transfer-report",
        help="did transfer help? from scratch, frozen features and fine-tuned, side by side",
        description="Train the network of --weights three ways on DATA with the same number of epochs: from "
        "scratch, the head alone, and all of it; with several seeds. Writes transfer.html and "
        "transfer.json beside the runs.",
    )
    command.set_defaults(run=run)
    command.add_argument("data", metavar="DATA", help="as for finetune")
    command.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        required=True,
        help="pretrained weights, as for finetune",
    )
    command.add_argument(
        "--epochs", type=count, default=10, metavar="N", help="epochs of each run (10)"
    )
    command.add_argument("--seeds", type=count, default=3, metavar="N", help="runs of each way (3)")
    command.add_argument(
        "--batch-size", type=count, default=16, metavar="N", help="pictures in a step (16)"
    )
    for way, rate, words in (
        ("scratch", "0.05", "from scratch"),
        ("frozen", "0.01", "of the head alone"),
        ("finetuned", "0.001", "of all layers"),
    ):
        command.add_argument(
            f"--lr-{way}",
            type=float,
            metavar="X",
            help=f"learning rate of the runs {words} ({rate})",
        )
    for name, kind in (
        ("augment", "store_false"),
        ("flip", "store_false"),
        ("skip_bad", "store_true"),
    ):
        option = f"--{name.replace('_', '-')}" if kind == "store_true" else f"--no-{name}"
        command.add_argument(
            option, dest=name, action=kind, default=argparse.SUPPRESS, help="as for finetune"
        )
    add_labels(command)
    add_follow_links(command)
    add_workers(command)
    add_attack(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    command.add_argument(
        "--out", metavar="FOLDER", help="folder of the runs (default: runs/<name of DATA>-transfer)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the runs in FOLDER")
    command.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.text import printable
    from minitl.train.config import make_config
    from minitl.train.console import say
    from minitl.train.run_folder import prepare_folder
    from minitl.train.transfer import table, transfer_report

    rates = {way: getattr(options, f"lr_{way}") for way in RATES}
    rates = {way: rate for way, rate in rates.items() if rate is not None}
    for way, rate in rates.items():
        if not 0 < rate < float("inf"):
            raise UserError(f"--lr-{way} cannot be {rate}; give a positive number such as 0.01")
    names = (
        *("data", "weights", "epochs", "batch_size", "augment", "flip", "skip_bad"),
        *("workers", "threads", "device", "precision"),
        *("labels", "label_from_name", "follow_links"),
    )
    given = {name: getattr(options, name, None) for name in names}
    attack = make_attack(options)
    config = make_config(None, {k: v for k, v in given.items() if v is not None})
    name = f"{Path(config.data).resolve().name}-transfer"
    folder = prepare_folder(options.out, name, options.overwrite, ("*/seed-*",))
    # What the runs say goes to standard error where standard output is to be JSON alone.
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        figures = transfer_report(config, folder, options.seeds, rates, attack)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    say()
    for line in table(figures):
        say(printable(line))
    say(f"report: {folder / 'transfer.html'}")
