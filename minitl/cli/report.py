"""`minitl report`: write a run's report again."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_device, add_threads, add_workers


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="write the report of a run again, or of one that was stopped",
        description="Judge the best weights of a run again and write report.html, curves.png, confusion.png "
        "and classes.json into its folder. The run's pictures must still be there.",
    )
    command.set_defaults(run=run)
    command.add_argument("folder", metavar="RUN", type=Path, help="the run folder")
    add_workers(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.batches import decoding_threads
    from minitl.train.evidence import report

    page = report(
        options.folder,
        workers=options.workers or decoding_threads(options.device),
        threads=options.threads,
        device=options.device,
        precision=options.precision,
    )
    print(page)
