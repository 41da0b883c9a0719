"""`minitl doctor-data`: what is wrong with a folder of pictures."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitl.cli.arguments import add_follow_links, add_labels, add_workers, count
from minitl.cli.settings import add_tasks
from minitl.errors import UserError

if TYPE_CHECKING:
    from minitl.data.dataset import Dataset
    from minitl.data.doctor import Diagnosis
    from minitl.data.parts import Problem

SHOWN = 3  # pictures named for each finding


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "doctor-data",
        help="look for broken, copied, mislabelled and missing pictures",
        description="Look at every picture of DATA. Exit status 1 if something would make results invalid "
        "(unreadable files, train/val leaks, conflicting labels).",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "data", metavar="DATA", type=Path, help="the image folder, as for finetune"
    )
    add_labels(command)
    add_follow_links(command)
    add_tasks(command)
    side = command.add_mutually_exclusive_group()
    side.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        help="the network to train, as for finetune: it says how large pictures should be",
    )
    side.add_argument(
        "--size",
        type=count,
        metavar="N",
        help="side of the network's input, without --weights (224)",
    )
    command.add_argument(
        "--val-fraction",
        type=float,
        default=0.2,
        metavar="X",
        help="share kept for validation if DATA has no val, as for finetune (0.2)",
    )
    command.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="X",
        help="share set aside for test if DATA has no test part (0)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the split (0)"
    )
    add_workers(command, usual="one for each core")
    command.add_argument("--all", action="store_true", help="name every picture, not the first few")
    command.add_argument("--json", action="store_true", help="print everything as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.data.doctor import Diagnosis, diagnose, layout_findings
    from minitl.data.loader import usable_cores
    from minitl.data.parts import Problem
    from minitl.train.console import Progress

    problems: list[Problem] = []
    try:
        side = options.size or _side(options.weights)
        dataset = _dataset(options, problems)
    except UserError as error:
        if options.json:  # whoever reads JSON finds the reason there as well
            found = layout_findings([*problems, Problem("layout", str(error))])
            print(json.dumps(Diagnosis(str(options.data), [], {}, found).to_dict(), indent=2))
        raise
    total = len(dataset.train) + len(dataset.val) + len(dataset.test)
    with Progress("looking at pictures", total) as progress:
        diagnosis = diagnose(
            dataset,
            problems=problems,
            input_side=side,
            workers=options.workers or usable_cores(),
            progress=progress.update,
        )
    if options.json:
        # ASCII: a terminal or pipe of any encoding takes it, and names that are no text come back.
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        _show(diagnosis, total, options.all)
    if not diagnosis.healthy:
        errors = sum(finding.severity == "error" for finding in diagnosis.findings)
        raise UserError(f"{options.data}: {errors} error(s) to repair before training")


def _dataset(options: argparse.Namespace, problems: "list[Problem]") -> "Dataset":
    from minitl.data.labels import find_dataset
    from minitl.tasks import parse

    if options.seed < 0:
        raise UserError(f"--seed cannot be {options.seed}; give 0 or a positive number")
    return find_dataset(
        options.data,
        labels=options.labels,
        label_from_name=options.label_from_name,
        follow_links=options.follow_links,
        tasks=parse(options.task or (), options.task_weight or ()),
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        seed=options.seed,
        problems=problems,
    )


def _side(weights: str | None) -> int | None:
    """Return the side of the pictures that a network is shown, None without one."""
    from minitl.convert.locate import find_weights
    from minitl.data.preprocessing import Preprocessing
    from minitl.train.prepared_pictures import load_with_preprocessing

    if weights is None:
        return None
    model = load_with_preprocessing(find_weights(weights))
    return Preprocessing.from_dict(model.preprocessing).crop


def _show(diagnosis: "Diagnosis", total: int, everything: bool) -> None:
    from minitl.data.doctor import COLOURS
    from minitl.text import coloured, printable

    for line in _table([printable(name) for name in diagnosis.classes], diagnosis.counts):
        print(line)
    for note in diagnosis.notes:
        print(f"{coloured('note    ', COLOURS['note'], sys.stdout)} {printable(note)}")
    for finding in diagnosis.findings:
        shown = finding.pictures if everything else finding.pictures[:SHOWN]
        more = len(finding.pictures) - len(shown)
        word = coloured(f"{finding.severity:8}", COLOURS[finding.severity], sys.stdout)
        print(f"{word} {printable(finding.message)}")
        if shown:
            print(f"           {printable(', '.join(shown))}{f' and {more} more' if more else ''}")
    if not diagnosis.findings:
        print(f"{total} pictures, nothing found")


def _table(classes: list[str], counts: dict[str, list[int]]) -> list[str]:
    if not classes:
        return []
    width = max(len(name) for name in [*classes, "class"])
    lines = [f"{'class':{width}}" + "".join(f"{part:>8}" for part in counts)]
    for number, name in enumerate(classes):
        lines.append(f"{name:{width}}" + "".join(f"{row[number]:8}" for row in counts.values()))
    return lines
