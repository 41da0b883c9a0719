"""`minitl predict`: classify pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from minitl.cli.arguments import add_device, add_threads, count


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser("predict", help="classify pictures")
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_WEIGHTS",
        type=Path,
        help="a run folder, a weights file or a name (minitl pull --list)",
    )
    command.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    command.add_argument(
        "--top", type=count, default=3, metavar="N", help="classes shown for each (3)"
    )
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    command.add_argument("--json", action="store_true", help="print a JSON list")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.train.batches import decoding_threads
    from minitl.train.console import percent, printable
    from minitl.train.evaluate import predict

    results = predict(
        options.model,
        options.images,
        options.top,
        workers=decoding_threads(options.device),
        threads=options.threads,
        device=options.device,
        precision=options.precision,
    )
    if options.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return
    for result in results:
        best = ", ".join(f"{name} {percent(probability)}" for name, probability in result["top"])
        print(printable(f"{result['image']}: {best}"))
