"""`minitl evaluate`: judge a run or a weights file on labelled pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_device, add_labels, add_threads, count


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="judge a run or a weights file on an image folder"
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        type=Path,
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument("data", metavar="DATA", type=Path)
    command.add_argument(
        "--part", choices=("train", "val", "test", "all"), help="default: test, else val"
    )
    command.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="threads that decode pictures (1; with a GPU one for each core)",
    )
    add_labels(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.batches import decoding_threads
    from minitl.train.console import percent, printable
    from minitl.train.evaluate import evaluate

    figures = evaluate(
        options.model,
        options.data,
        options.part,
        options.workers or decoding_threads(options.device),
        options.threads,
        options.device,
        options.precision,
        options.labels,
        options.label_from_name,
    )
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    width = max(len(printable(name)) for name in [*figures["per_class"], "class"])
    print(f"{'class':{width}}  images  precision  recall      F1")
    for name, row in figures["per_class"].items():
        print(
            f"{printable(name):{width}}  {row['images']:6d}  {percent(row['precision']):>9}  "
            f"{percent(row['recall']):>6}  {percent(row['f1']):>6}"
        )
    top5 = f", top-5 {percent(figures['top5'])}" if "top5" in figures else ""
    print(
        f"{figures['part']}: {figures['images']} pictures, accuracy {percent(figures['accuracy'])}{top5}, "
        f"macro F1 {percent(figures['macro_f1'])}, loss {figures['loss']:.4f}"
    )
