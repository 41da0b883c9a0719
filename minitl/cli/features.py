"""`minitl features`: what a network sees in pictures, as a file."""

import argparse
from pathlib import Path
from typing import Any

from minitl.cli.arguments import (
    add_device,
    add_follow_links,
    add_labels,
    add_overwrite,
    add_threads,
    add_workers,
    refuse_to_replace,
    seed,
)


def add(commands: Any) -> argparse.ArgumentParser:
    """Declare the command and its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "features",
        help="write what a network sees in pictures to a file",
        description="Write the features of all pictures in DATA to an HDF5 file: features, labels, paths, "
        "parts and class names. Train a head on them with minitl finetune --features.",
    )
    command.set_defaults(run=run)
    command.add_argument("data", metavar="DATA", type=Path, help="the image folder")
    command.add_argument(
        "--weights",
        metavar="FILE.h5|NAME",
        required=True,
        help="the network: a weights file, a run folder or a name (minitl pull --list)",
    )
    command.add_argument(
        "--out", metavar="FILE.h5", type=Path, required=True, help="the file to write"
    )
    command.add_argument(
        "--cut",
        metavar="PART",
        help="take what comes out of this part, such as layer3 (the last one before the head)",
    )
    add_overwrite(command)
    command.add_argument(
        "--val-fraction",
        type=float,
        default=0.2,
        metavar="X",
        help="share kept for validation if DATA has no val (0.2)",
    )
    command.add_argument(
        "--test-fraction",
        type=float,
        default=0.0,
        metavar="X",
        help="share set aside for test if DATA has no test part (0)",
    )
    add_labels(command)
    add_follow_links(command)
    command.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="random seed of the split (0)"
    )
    add_workers(command)
    add_threads(command)
    add_device(command, device="cpu", precision="float32")
    return command


def run(options: argparse.Namespace) -> None:
    """Carry the command out."""
    from minitl.data.labels import find_dataset
    from minitl.text import printable
    from minitl.train.batches import decoding_threads
    from minitl.train.feature_runs import extract
    from minitl.train.source import refuse_idle_fractions

    refuse_to_replace(options.out, options.overwrite)
    dataset = find_dataset(
        options.data,
        labels=options.labels,
        label_from_name=options.label_from_name,
        val_fraction=options.val_fraction,
        test_fraction=options.test_fraction,
        seed=options.seed,
        follow_links=options.follow_links,
    )
    refuse_idle_fractions(dataset, options.val_fraction, options.test_fraction)
    for note in dataset.notes:
        print(printable(note))
    extract(
        dataset,
        options.weights,
        options.out,
        cut=options.cut,
        workers=options.workers or decoding_threads(options.device),
        threads=options.threads,
        device=options.device,
        precision=options.precision,
    )
