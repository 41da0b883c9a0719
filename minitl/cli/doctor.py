"""`minitl doctor`: can this machine's GPU be used?"""

import argparse
from typing import Any


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="check the GPU: what is missing, and whether it computes what the CPU does",
        description="Check the GPU: what is missing, and whether every kernel computes what the CPU does. "
        "Exit status 0 only if the GPU works.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--device", metavar="NAME", default="cuda", help="cuda (default), or cuda:N"
    )
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.doctor import examine

    examine(options.device, print)
