"""Arguments that several commands have."""

import argparse
from typing import Any


def add_threads(command: Any) -> None:
    """Add --threads."""
    command.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="threads that compute (default: all cores); results do not depend on it",
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


def add_labels(command: Any) -> None:
    """Add --labels and --label-from-name."""
    command.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="a table with the columns path,label and perhaps part (default: class folders say the labels)",
    )
    command.add_argument(
        "--label-from-name",
        metavar="REGEX",
        help="a pattern on paths with a group (?P<label>...) and perhaps (?P<part>...)",
    )


def count(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
