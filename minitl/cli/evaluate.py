"""`minitl evaluate`: judge a run or a weights file on labelled pictures."""

import argparse
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
    add_threshold,
    add_workers,
    make_attack,
)

CONFUSIONS = 3


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="judge a run or a weights file on labelled pictures",
        description="Judge a run or a weights file on labelled pictures. Where DATA is what the run was "
        "trained on, its parts are those of the run, and the default judges what it did not train on.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        type=Path,
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument(
        "data", metavar="DATA", type=Path, help="the image folder, as for finetune"
    )
    command.add_argument(
        "--part",
        choices=("train", "val", "test", "all"),
        help="part of DATA to judge (default: test, else val)",
    )
    add_workers(command)
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out unreadable pictures (default: stop)"
    )
    command.add_argument(
        "--tta", metavar="VIEWS", help="average over views of each picture, as in minitl predict"
    )
    add_threshold(command)
    add_attack(command)
    add_labels(command)
    add_follow_links(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.data.views import Views
    from minitl.text import printable
    from minitl.train.batches import decoding_threads
    from minitl.train.console import percent
    from minitl.train.evaluate import evaluate

    figures = evaluate(
        options.model,
        options.data,
        options.part,
        workers=options.workers or decoding_threads(options.device),
        threads=options.threads,
        device=options.device,
        precision=options.precision,
        labels=options.labels,
        label_from_name=options.label_from_name,
        views=options.tta and Views.parse(options.tta),
        skip_bad=options.skip_bad,
        attack=make_attack(options),
        threshold=options.threshold,
        follow_links=options.follow_links,
    )
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    if figures["own_split"]:
        print(_about_split(options.model, figures["part"], figures["outside_split"]))
    if "tasks" in figures:
        _show_tasks(figures)
        return
    width = max(len(printable(name)) for name in [*figures["per_class"], "class"])
    print(f"{'class':{width}}  images  precision  recall      F1")
    for name, row in figures["per_class"].items():
        print(
            f"{printable(name):{width}}  {row['images']:6d}  {percent(row['precision']):>9}  "
            f"{percent(row['recall']):>6}  {percent(row['f1']):>6}"
        )
    best = "".join(
        f", top-{k} {percent(figures[f'top{k}'])}" for k in (3, 5) if f"top{k}" in figures
    )
    print(
        f"{figures['part']}: {figures['images']} pictures, accuracy {percent(figures['accuracy'])}{best}, "
        f"macro F1 {percent(figures['macro_f1'])}, loss {figures['loss']:.4f}, "
        f"calibration error {percent(figures['calibration']['expected_error'])}"
    )
    confused = _confusions(figures["confusion"], list(figures["per_class"]))
    if confused:
        print(printable(f"most often taken for another: {', '.join(confused)}"))
    if "attack" in figures:
        attack = figures["attack"]
        print(
            f"under {attack['kind'].upper()} with changes up to {attack['epsilon']:g} of 255: "
            f"accuracy {percent(attack['accuracy'])}"
        )
    for path, reason in figures["left_out"].items():
        print(printable(f"left out {path}: {reason}"), file=sys.stderr)


def _about_split(run: Path, part: str, outside: dict[str, int]) -> str:
    """Say that the pictures are the run's own, and what that makes of the figures.

    outside: how many pictures of which part are not in its split.
    """
    bias = {
        "train": "on which it was trained",
        "val": "by which its best epoch was chosen",
        "test": "which it has not seen in training",
        "all": "most of which it was trained on",
    }
    which = "all of it" if part == "all" else f"the {part} part"
    said = f"{run} was trained on these pictures: by its own split this is {which}, {bias[part]}"
    if not outside:
        return said
    counts = ", ".join(f"{count} in {name}" for name, count in outside.items())
    return f"{said}\nnot in that split, as they are new or were unreadable: {counts} (see --part)"


def _show_tasks(figures: dict[str, Any]) -> None:
    from minitl.text import printable
    from minitl.train.figures import metrics_in_words, per_class

    for name, task in figures["tasks"].items():
        header, rows = per_class(task)
        if rows:
            width = max(len(printable(row[0])) for row in [header, *rows])
            header[0] = f"{header[0]:{width}}"
            print(printable(f"{name}, {task['kind']}:"))
            for row in [header, *rows]:
                cells = (f"{c:>{len(h)}}" for h, c in zip(header[1:], row[1:], strict=True))
                print(f"  {printable(row[0]):{width}}  {'  '.join(cells)}")
    print(f"{figures['part']}: {figures['images']} pictures, {metrics_in_words(figures)}")
    for path, reason in figures["left_out"].items():
        print(printable(f"left out {path}: {reason}"), file=sys.stderr)


def _confusions(matrix: list[list[int]], classes: list[str]) -> list[str]:
    """Name the most frequent mistakes."""
    wrong = [
        (count, true, taken)
        for true, row in enumerate(matrix)
        for taken, count in enumerate(row)
        if count and taken != true
    ]
    wrong.sort(key=lambda mistake: -mistake[0])
    return [f"{classes[true]} for {classes[taken]} ({n})" for n, true, taken in wrong[:CONFUSIONS]]
