"""`minitl doctor-data`: what is wrong with a folder of pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_follow_links, add_labels, count
from minitl.cli.settings import add_tasks
from minitl.errors import UserError

SHOWN = 3  # pictures named for each finding


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "doctor-data",
        help="look for broken, copied, mislabelled and missing pictures",
        description="Look at every picture of DATA. Exit status 1 if something would make a result a lie.",
    )
    command.set_defaults(run=run)
    command.add_argument("data", metavar="DATA", type=Path, help="as for finetune")
    add_labels(command)
    add_follow_links(command)
    add_tasks(command)
    command.add_argument(
        "--size", type=count, default=224, metavar="N", help="side of the network's input (224)"
    )
    command.add_argument(
        "--workers", type=count, default=2, metavar="N", help="decoding threads (2)"
    )
    command.add_argument("--all", action="store_true", help="name every picture, not the first few")
    command.add_argument("--json", action="store_true", help="print everything as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.data.doctor import diagnose
    from minitl.data.labels import find_dataset
    from minitl.tasks import parse
    from minitl.text import printable
    from minitl.train.console import Progress

    dataset = find_dataset(
        options.data,
        labels=options.labels,
        label_from_name=options.label_from_name,
        follow_links=options.follow_links,
        tasks=parse(options.task or (), options.task_weight or ()),
    )
    total = len(dataset.train) + len(dataset.val) + len(dataset.test)
    with Progress("looking at pictures", total) as progress:
        diagnosis = diagnose(
            dataset, input_side=options.size, workers=options.workers, progress=progress.update
        )
    if options.json:
        print(json.dumps(diagnosis.to_dict(), indent=2, ensure_ascii=False))
    else:
        for line in _table(diagnosis.classes, diagnosis.counts):
            print(printable(line))
        for note in dataset.notes:
            print(f"note     {printable(note)}")
        for finding in diagnosis.findings:
            shown = finding.pictures if options.all else finding.pictures[:SHOWN]
            more = len(finding.pictures) - len(shown)
            print(f"{finding.severity:8} {printable(finding.message)}")
            if shown:
                print(
                    f"           {printable(', '.join(shown))}{f' and {more} more' if more else ''}"
                )
        if not diagnosis.findings:
            print(f"{total} pictures, nothing found")
    if not diagnosis.healthy:
        errors = sum(finding.severity == "error" for finding in diagnosis.findings)
        raise UserError(f"{options.data}: {errors} error(s) to repair before training")


def _table(classes: list[str], counts: dict[str, list[int]]) -> list[str]:
    width = max(len(name) for name in [*classes, "class"])
    lines = [f"{'class':{width}}" + "".join(f"{part:>8}" for part in counts)]
    for number, name in enumerate(classes):
        lines.append(f"{name:{width}}" + "".join(f"{row[number]:8}" for row in counts.values()))
    return lines
