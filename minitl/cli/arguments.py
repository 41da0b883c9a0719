"""Arguments that several commands have."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitl.errors import UserError


def add_threads(command: Any) -> None:
    """Add --threads."""
    command.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="threads that compute (default: all cores); results do not depend on it",
    )


def add_workers(
    command: Any,
    kind: Callable[[str], int] | None = None,
    usual: str = "1 beside a CPU that computes, one for each core beside a GPU",
) -> None:
    """Add --workers, which is None or lacking unless given: then `decoding_threads` says how many.

    kind: reads the number; the default is `count`. usual: how many there are unless it is given.
    """
    command.add_argument(
        "--workers",
        type=kind or count,
        metavar="N",
        help=f"threads that decode pictures ({usual}); results do not depend on it",
    )


def add_device(command: Any, **defaults: Any) -> None:
    """Add --device and --precision, with defaults unless the command sets its own."""
    command.add_argument(
        "--device", metavar="NAME", help="cpu (default), cuda, or cuda:N for the GPU of number N"
    )
    command.add_argument(
        "--precision",
        metavar="NAME",
        help="float32 (default); on a GPU also tf32 or bf16, quicker and less exact",
    )
    if defaults:
        command.set_defaults(**defaults)


def add_overwrite(command: Any) -> None:
    """Add --overwrite, for a command with --out FILE; `refuse_to_replace` minds it."""
    command.add_argument(
        "--overwrite", action="store_true", default=False, help="replace a file of that name"
    )


def refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raise UserError where the file is there and nobody said that it may go, or where none can be.

    Before the work, which may take long.
    """
    from minitl.files import place_for

    if place_for(out).exists() and not overwrite:
        raise UserError(f"{out} exists; choose another --out, or replace it with --overwrite")


def add_labels(command: Any) -> None:
    """Add --labels and --label-from-name."""
    command.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="a table with the columns path,label and perhaps part, or usual names of these such as "
        "file,class,split (default: class folders say the labels)",
    )
    command.add_argument(
        "--label-from-name",
        metavar="REGEX",
        help="a regular expression that paths match, with a group (?P<label>...) and perhaps (?P<part>...)",
    )


def add_follow_links(command: Any) -> None:
    """Add --follow-links."""
    command.add_argument(
        "--follow-links",
        action="store_true",
        help="follow symbolic links that point outside DATA (default: leave them out)",
    )


def add_threshold(command: Any) -> None:
    """Add --threshold."""
    command.add_argument(
        "--threshold",
        type=share,
        metavar="X",
        help="probability above which a label counts as present, in multi-label tasks (0.5)",
    )


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def count(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """Read a number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or a positive number")
    return int(text)


def add_attack(command: Any) -> None:
    """Add --attack; `make_attack` reads it."""
    command.add_argument(
        "--attack",
        metavar="KIND:X",
        help="judge also with pictures that are changed to mislead the network, each value by at most X of "
        "255: pgd:2 (10 steps) or fgsm:4 (one); slow",
    )


def make_attack(options: argparse.Namespace) -> Any:
    """Return the Attack that is asked for, or None. Raises UserError for one that cannot be."""
    from minitl.train.attack import JUDGING_STEPS, Attack

    if options.attack is None:
        return None
    return Attack.parse(options.attack, option="--attack", steps=JUDGING_STEPS)
