"""Pictures with their labels, by part, and a split of them that is written down and read back.

A sample's path is relative to the dataset's root and written with forward slashes, so that a saved split
can travel.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from minitl.data.parts import PARTS
from minitl.data.stamps import Stamp, stamps
from minitl.data.targets import from_lists, in_words, known_counts, to_lists
from minitl.errors import UserError
from minitl.files import write_json
from minitl.tasks import Task, from_dicts, output_names
from minitl.text import listed

SPLIT_FORMAT = "minitl split"


class Sample(NamedTuple):
    """One picture: its path relative to the dataset's root (forward slashes) and its class number.

    In a dataset of several tasks `label` is the number of its row of targets.
    """

    path: str
    label: int


@dataclass(frozen=True)
class Dataset:
    """The pictures of a folder, by part.

    root: the folder that sample paths are relative to.
    classes: names; a label is an index into them.
    train, val, test: samples, ordered by class and path. Parts that are not there are empty.
    seed, val_fraction: how val was drawn; None where the folders say it. drawn: the parts that were.
    notes: what was seen, and what was left out, in sentences for the user.
    tasks, targets: where there are several tasks: what they are, and what is known of each picture, see
        targets.py; `classes` then names the network's outputs.
    stamps: of a saved split: what the files were like then, see stamps.py.
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample] = field(default_factory=list)
    seed: int | None = None
    val_fraction: float | None = None
    notes: list[str] = field(default_factory=list)
    tasks: tuple[Task, ...] = ()
    targets: np.ndarray | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict, compare=False)
    drawn: tuple[str, ...] = field(default=(), compare=False)

    def changed(self) -> list[str]:
        """Return which pictures are no longer the files that they were when the split was saved."""
        now = stamps(self.root, self.stamps)
        return [path for path, stamp in self.stamps.items() if now.get(path) != stamp]

    def counts(self, part: str) -> list[int]:
        """Return the number of pictures of each class in "train", "val" or "test".

        Of several tasks: those that have a class, label or number.
        """
        labels = np.array([sample.label for sample in getattr(self, part)], np.int64)
        if self.targets is not None:
            return known_counts(self.tasks, self.targets[labels])
        counts: list[int] = np.bincount(labels, minlength=len(self.classes)).tolist()
        return counts

    def label_of(self, sample: Sample) -> str:
        """Return a picture's class, or all that is known of it, in words."""
        if self.targets is not None:
            return in_words(self.tasks, self.targets[sample.label])
        return self.classes[sample.label]

    def save_split(self, path: str | Path) -> None:
        """Write which picture is in which part, as JSON; `load_split` reads it. Atomic."""
        if self.targets is not None:
            write_json(path, self._task_split(self.targets))
            return
        parts: dict[str, dict[str, list[str]]] = {}
        for part in PARTS:
            by_class = parts[part] = {name: [] for name in self.classes}
            for sample in getattr(self, part):
                by_class[self.classes[sample.label]].append(sample.path)
        content = {
            "format": SPLIT_FORMAT,
            "format_version": 1,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "classes": self.classes,
            "notes": self.notes,
            **parts,
            "files": self._files(),
        }
        write_json(path, content)

    def _files(self) -> dict[str, str]:
        """Return what the files are like now, as JSON can hold it in a line for each."""
        paths = [sample.path for sample in self.train + self.val + self.test]
        return {path: str(stamp) for path, stamp in stamps(self.root, paths).items()}

    def _task_split(self, targets: np.ndarray) -> dict[str, Any]:
        parts = {}
        for part in PARTS:
            samples = getattr(self, part)
            rows = to_lists(targets[[sample.label for sample in samples]])
            parts[part] = {sample.path: row for sample, row in zip(samples, rows, strict=True)}
        return {
            "format": SPLIT_FORMAT,
            "format_version": 2,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "tasks": [task.to_dict() for task in self.tasks],
            "notes": self.notes,
            **parts,
            "files": self._files(),
        }


def load_split(path: str | Path, root: str | Path, *, missing_ok: bool = False) -> Dataset:
    """Read what `Dataset.save_split` wrote, for the pictures under `root`.

    Raises UserError where the file is not a split, names a path outside of `root`, lists a picture
    twice, or, unless missing_ok, names pictures that are gone.
    """
    path, root = Path(path), Path(root)
    if not missing_ok:
        require_folder(root)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; a split is written when training starts") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a split: {error}") from error
    if not isinstance(content, dict) or content.get("format") != SPLIT_FORMAT:
        raise UserError(f"{path} is not a split written by minitl; give the split.json of a run")
    if content.get("format_version") not in (1, 2):
        raise UserError(
            f"{path} has version {content.get('format_version')} of the split format; "
            "this release reads versions 1 and 2"
        )
    tasks: tuple[Task, ...] = ()
    targets = None
    classes: Any = content.get("classes")
    if content["format_version"] == 2:
        tasks, targets, (train, val, test) = _parts_with_targets(path, content)
        classes = output_names(tasks)
    else:
        if not _strings(classes) or len(set(classes)) != len(classes):
            raise UserError(f"{path} is damaged: `classes` is not a list of different names")
        train, val, test = (_part_of_split(path, content, part, classes) for part in PARTS)
    everything = [sample.path for sample in train + val + test]
    if len(set(everything)) != len(everything):
        twice = next(name for name in everything if everything.count(name) > 1)
        raise UserError(f"{path} is damaged: it lists {twice!r} more than once")
    gone = [name for name in everything if not missing_ok and not (root / name).is_file()]
    if gone:
        raise UserError(
            f"{path} names {len(gone)} of {len(everything)} pictures that are not in {root}: "
            f"{listed(gone)}; put them back, or make a new split"
        )
    seed, fraction = content.get("seed"), content.get("val_fraction")
    if not isinstance(seed, int | None) or not isinstance(fraction, float | int | None):
        raise UserError(f"{path} is damaged: `seed` or `val_fraction` is not a number")
    notes = content.get("notes", [])
    if not _strings(notes):
        raise UserError(f"{path} is damaged: `notes` is not a list of sentences")
    files = _stamps_of_split(path, content)
    return Dataset(root, classes, train, val, test, seed, fraction, notes, tasks, targets, files)


def _stamps_of_split(path: Path, content: Any) -> dict[str, Stamp]:
    """Return what the files were like; nothing where an earlier release wrote the split."""
    try:
        files = content.get("files", {})
        return {safe_relative(name, str(path)): Stamp.parse(text) for name, text in files.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            f"{path} is damaged: `files` does not map paths to sizes and dates"
        ) from None


def _part_of_split(path: Path, content: Any, part: str, classes: list[str]) -> list[Sample]:
    by_class = content.get(part)
    if not isinstance(by_class, dict) or list(by_class) != classes:
        raise UserError(f"{path} is damaged: {part!r} does not list the classes in their order")
    samples = []
    for label, name in enumerate(classes):
        if not _strings(by_class[name]):
            raise UserError(f"{path} is damaged: {part!r}, class {name!r} is not a list of paths")
        samples += [Sample(safe_relative(file, str(path)), label) for file in by_class[name]]
    return samples


def _parts_with_targets(
    path: Path, content: Any
) -> tuple[tuple[Task, ...], np.ndarray, list[list[Sample]]]:
    """Return the tasks, the targets and the parts of a split with several tasks."""
    samples: list[list[Sample]] = []
    names: list[str] = []
    rows: list[Any] = []
    try:
        tasks = from_dicts(content.get("tasks"))
        for part in PARTS:
            known = content.get(part)
            if not isinstance(known, dict):
                raise ValueError(f"{part!r} does not map paths to targets")
            own = [safe_relative(file, str(path)) for file in known]
            samples.append([Sample(name, len(rows) + n) for n, name in enumerate(own)])
            names += own
            rows += known.values()
        return tasks, from_lists(tasks, rows, names), samples
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def safe_relative(path: str, source: str) -> str:
    """Return the path with forward slashes; one that leaves the dataset's folder is an error."""
    relative = PurePosixPath(path.replace("\\", "/") if os.sep == "\\" else path)
    if relative.is_absolute() or Path(path).drive or ".." in relative.parts:
        raise UserError(f"{source} names {path!r}, which is not a path inside the dataset's folder")
    return str(relative)


def require_folder(root: Path) -> None:
    """Raise UserError unless the root of a dataset is a folder."""
    if not root.exists():
        raise UserError(f"{root} does not exist; give the folder that holds one folder per class")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds one folder per class")


__all__ = ["Dataset", "Sample", "load_split", "require_folder", "safe_relative"]
