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


def count(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
