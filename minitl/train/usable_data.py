"""The pictures that a run may use: what there is, what cannot be read, and what a quick look finds."""

import dataclasses
import sys

from minitl.data.dataset import Dataset
from minitl.data.decode import check_images
from minitl.data.doctor import COLOURS, quick_findings
from minitl.errors import UserError
from minitl.tasks import output_slices
from minitl.text import coloured, listed, printable
from minitl.train.config import Config
from minitl.train.console import Progress, say


def say_data(dataset: Dataset) -> None:
    """Say how many pictures of what there are, and what was noted."""
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts = ", ".join(f"{len(samples)} {part}" for part, samples in parts.items() if samples)
    what = f"{len(dataset.tasks)} tasks" if dataset.tasks else f"{len(dataset.classes)} classes"
    say(f"{dataset.root}: {what}, {counts} pictures")
    if dataset.tasks:
        for task in dataset.tasks:
            say(f"  {task.name}: {printable(task.in_words())}")
    else:
        names = ", ".join(dataset.classes[:10])
        say(f"  classes: {printable(names)}{', ...' if len(dataset.classes) > 10 else ''}")
    for note in dataset.notes:
        say(f"  {printable(note)}")


def without_bad_images(dataset: Dataset, config: Config) -> Dataset:
    """Decode every picture once, so that a broken one is named now and not in the middle of the run."""
    samples = [*dataset.train, *dataset.val, *dataset.test]
    with Progress("checking pictures", len(samples)) as progress:
        bad = check_images(
            samples, dataset.root, config.workers + 1, lambda done, total: progress.update_to(done)
        )
    if not bad:
        return dataset
    say(f"{len(bad)} of {len(samples)} pictures cannot be read:")
    for path, reason in bad:
        say(printable(f"  {path}: {reason}"))
    if not config.skip_bad:
        raise UserError(
            f"{len(bad)} unreadable pictures (listed above); repair them or go on with --skip-bad"
        )
    paths = {path for path, _ in bad}
    train, val, test = (
        [sample for sample in part if sample.path not in paths]
        for part in (dataset.train, dataset.val, dataset.test)
    )
    good = dataclasses.replace(dataset, train=train, val=val, test=test)
    for part in ("train", "val"):
        if not getattr(good, part):
            raise UserError(f"{dataset.root} has no readable picture left for {part}; repair some")
    _require_all_left(dataset, good)
    return good


def _require_all_left(dataset: Dataset, good: Dataset) -> None:
    """Raise UserError where a class lost all that it could be learned from, or a task all it is judged by."""
    counts = zip(dataset.classes, dataset.counts("train"), good.counts("train"), strict=True)
    lost = [name for name, before, after in counts if before and not after]
    if lost:
        raise UserError(
            f"{dataset.root} has no readable training picture left of {listed(lost)}; repair some, or take "
            "that class out"
        )
    there, left = dataset.counts("val"), good.counts("val")
    for task, own in zip(dataset.tasks, output_slices(dataset.tasks), strict=True):
        if any(there[own]) and not any(left[own]):
            raise UserError(
                f"{dataset.root} has no readable validation picture left of which {task.name} is known; "
                "repair some"
            )


def with_findings(dataset: Dataset) -> Dataset:
    """Say what a quick look finds, and keep it among the notes."""
    notes = list(dataset.notes)
    for finding in quick_findings(dataset):
        shown = ", ".join(finding.pictures[:3]) + (", ..." if len(finding.pictures) > 3 else "")
        notes.append(f"{finding.message}{f' ({shown})' if shown else ''}")
        word = coloured(finding.severity, COLOURS[finding.severity], sys.stdout)
        say(f"  {word}: {printable(notes[-1])}")
    return dataclasses.replace(dataset, notes=notes)
