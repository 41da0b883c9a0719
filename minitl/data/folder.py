"""A folder of pictures as a dataset: which file has which label, and which part it belongs to.

Two layouts are understood:

    DATA/<class>/...                       one folder per class; the split is made here
    DATA/{train,val[,test]}/<class>/...    the folders say which part a picture belongs to; other names
                                           that people give these parts: see parts.py

Classes are sorted by name, so that a label means the same on every machine. Whatever the layout, a
sample's path is relative to DATA and written with forward slashes, so that a saved split can travel.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from minitl.data.parts import PARTS, Problem, object_to, part_of
from minitl.data.stamps import Stamp, stamps
from minitl.data.targets import from_lists, in_words, known_counts, to_lists
from minitl.errors import OtherClassesError, UserError
from minitl.files import write_json
from minitl.tasks import Task, from_dicts, output_names
from minitl.text import listed

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
})
# fmt: on
# Left behind by unpackers and disk stations, full of things that look like pictures.
JUNK = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"})
RUNS = "runs"  # the usual folder of runs, in the present one
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


def scan(
    path: str | Path,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
    problems: list[Problem] | None = None,
) -> Dataset:
    """Find the pictures of a dataset folder, their labels and parts.

    val_fraction, seed: the share of each class that is set aside for validation, and which pictures
        these are. Used where the folders do not name a validation part. Every class keeps at least one
        picture for training and, where it has two, at least one for validation. The draw depends on
        the seed and the file names alone. test_fraction: the same for a test part, which 0 leaves out.
    classes: for evaluating a model: the names that its outputs stand for, in their order. Folders are
        matched with them by name, nothing is drawn, and DATA/<class>/* is all `test`. A class without
        pictures then needs an empty folder, to say that this is meant.
    follow_links: take along what links that lead out of the folder point to.
    problems: a list that takes what stands against training, in place of an error: the data doctor looks
        at the rest all the same.

    Hidden files and folders are left out, folders inside a class are followed, links only where they
    stay inside DATA, unless the others are wanted too. Raises UserError for a folder that is not such a
    dataset.
    """
    root = Path(path)
    _require_folder(root)
    _require_fractions(val_fraction, test_fraction)
    scanner = _Scanner(root, follow_links)
    parts = _part_folders(scanner, problems)
    if parts and "train" not in parts and classes is None:
        message = (
            f"{root} has {listed(folder.name + '/' for folder in parts.values())} but no train/; "
            "add it, or give the folder of one part for evaluation"
        )
        object_to(problems, "no-train", message)
    found = {
        part: _by_class(scanner, folder, classes, problems)
        for part, folder in (parts or {"": root}).items()
    }
    if classes is None:
        names = sorted(set().union(*found.values()))
        for part, by_class in found.items():
            folder = parts.get(part, root)
            _require_classes(folder, by_class, names, "which other parts have", problems)
        if not parts:
            _require_no_parts(root, found[""], problems)
        if len(names) == 1:
            message = _only_one_class(scanner, parts.get("train", root), names[0])
            object_to(problems, "one-class", message)
    else:
        names = [normal_form(name) for name in classes]
        for part, by_class in found.items():
            _require_classes(parts.get(part, root), by_class, names, "which the model knows", None)

    if not parts:
        found = {"train" if classes is None else "test": found[""]}
    drawn: tuple[str, ...] = ()
    if classes is None and "train" in found:
        drawn = draw_parts(found, val_fraction, test_fraction, seed)
    train, val, test = (_samples(found.get(part, {}), names) for part in PARTS)
    if train and "val" in drawn and val_fraction and not val:
        message = f"{root} leaves no picture for validation: no class has more than one to share; add some"
        object_to(problems, "no-validation", message)
    if not drawn:
        return Dataset(root, names, train, val, test, notes=scanner.notes())
    notes = scanner.notes()
    return Dataset(root, names, train, val, test, seed, val_fraction, notes, drawn=drawn)


def from_labels(
    root: str | Path,
    labels: Mapping[str, str],
    parts: Mapping[str, str] | None = None,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    problems: list[Problem] | None = None,
) -> Dataset:
    """Make a dataset of class names that come from elsewhere: a table, or a pattern on file names.

    labels: class name of each picture, keyed by the path relative to `root`. parts: "train", "val" or
    "test", for those of which it is known; the others are split as by `scan`, unless there are parts of
    that name already. classes, problems: as for `scan`; with classes, what has no part is `test`.
    """
    root = Path(root)
    _require_folder(root)
    _require_fractions(val_fraction, test_fraction)
    open_part = "train" if classes is None else "test"
    found: dict[str, dict[str, dict[str, str]]] = {open_part: {}}
    for path, name in labels.items():
        relative = _safe_relative(path, "the labels")
        if not (root / relative).is_file():
            raise UserError(f"the labels name {path!r}, and there is no such file in {root}")
        part = found.setdefault((parts or {}).get(path, open_part), {})
        part.setdefault(normal_form(name), {})[relative] = relative
    names = (
        sorted({name for part in found.values() for name in part})
        if classes is None
        else [normal_form(name) for name in classes]
    )
    if len(names) < 2:
        found_names = f"{len(names)} class(es) ({listed(names)})"
        message = f"the labels of {root} name {found_names}; at least two are needed"
        object_to(problems, "one-class", message)
    drawn = draw_parts(found, val_fraction, test_fraction, seed) if classes is None else ()
    train, val, test = (_samples(found.get(part, {}), names) for part in PARTS)
    if classes is None:
        _require_training(root, names, train, val, problems)
    said = [*notes, *notes_on_draw(drawn, (parts or {}).values(), seed)]
    if not drawn:
        return Dataset(root, names, train, val, test, notes=said)
    return Dataset(root, names, train, val, test, seed, val_fraction, said, drawn=drawn)


def list_inside(root: str | Path, follow_links: bool = False) -> tuple[list[str], list[str]]:
    """Return all pictures in a folder and below, and notes on what was left out.

    They are relative to it with forward slashes, sorted. follow_links: as for `scan`.
    """
    scanner = _Scanner(Path(root), follow_links)
    return scanner.pictures(Path(root)), scanner.notes_on_entries()


def list_pictures(
    paths: str | Path | Iterable[str | Path], follow_links: bool = False
) -> list[Path]:
    """Return the pictures that files and folders stand for, without labels: for prediction.

    A file is taken as it is, whatever its name; a folder gives every picture inside it, sorted.
    follow_links: as for `scan`. Raises UserError for a path that does not exist and for a folder without
    pictures.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    pictures: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            scanner = _Scanner(path, follow_links)
            inside = scanner.pictures(path)
            if not inside:
                raise UserError(f"{path} holds no pictures{scanner.excuse()}")
            pictures += (path / name for name in inside)
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"{path} does not exist; give picture files or folders of them")
    return pictures


def load_split(path: str | Path, root: str | Path, *, missing_ok: bool = False) -> Dataset:
    """Read what `Dataset.save_split` wrote, for the pictures under `root`.

    Raises UserError where the file is not a split, names a path outside of `root`, lists a picture
    twice, or, unless missing_ok, names pictures that are gone.
    """
    path, root = Path(path), Path(root)
    _require_folder(root)
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
        return {_safe_relative(name, str(path)): Stamp.parse(text) for name, text in files.items()}
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
        samples += [Sample(_safe_relative(file, str(path)), label) for file in by_class[name]]
    return samples


def _parts_with_targets(
    path: Path, content: Any
) -> tuple[tuple[Task, ...], np.ndarray, list[list[Sample]]]:
    """Return the tasks, the targets and the parts of a split with several tasks."""
    samples: list[list[Sample]] = []
    rows: list[Any] = []
    try:
        tasks = from_dicts(content.get("tasks"))
        for part in PARTS:
            known = content.get(part)
            if not isinstance(known, dict):
                raise ValueError(f"{part!r} does not map paths to targets")
            names = [_safe_relative(file, str(path)) for file in known]
            samples.append([Sample(name, len(rows) + n) for n, name in enumerate(names)])
            rows += known.values()
        return tasks, from_lists(tasks, rows), samples
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _safe_relative(path: str, source: str) -> str:
    """Return the path with forward slashes; one that leaves the dataset's folder is an error."""
    relative = PurePosixPath(path.replace("\\", "/") if os.sep == "\\" else path)
    if relative.is_absolute() or Path(path).drive or ".." in relative.parts:
        raise UserError(f"{source} names {path!r}, which is not a path inside the dataset's folder")
    return str(relative)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that has begun: with its settings and its split."""
    return all((folder / name).is_file() for name in ("config.toml", "split.json"))


def _is_of_runs(folder: Path) -> bool:
    """Whether a folder is that of a run, or the usual folder of runs, one of which may be about to begin."""
    if folder.name == RUNS:
        try:
            runs = [path for path in folder.iterdir() if path.name not in JUNK]
        except OSError:
            return False
        return bool(runs) and all(is_run(path) or _is_empty(path) for path in runs)
    return is_run(folder)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


class _Scanner:
    """Walks a dataset's folder and counts what it passes by."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = root
        self.real_root = Path(os.path.realpath(root))
        self.follow_links = follow_links
        self.other_files = 0
        self.other_suffixes: set[str] = set()
        self.useless_links = 0
        self.outward_links = 0
        self.runs = 0
        self.unlabelled: list[Path] = []

    def another(self) -> "_Scanner":
        """Return one for a look ahead, so that nothing is counted twice."""
        return _Scanner(self.root, self.follow_links)

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the visible folders and the picture files in a folder, sorted by name."""
        folders, files = [], []
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            raise UserError(f"no permission to read the folder {folder}; change it") from None
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in JUNK:
                continue
            if entry.is_symlink() and not self._may_follow(path):
                continue
            if entry.is_dir():
                if _is_of_runs(path):  # `minitl finetune .` writes them among the classes
                    self.runs += 1
                else:
                    folders.append(path)
            elif path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                self.other_files += 1
                self.other_suffixes.add(path.suffix.lower() or entry.name)
        return sorted(folders), sorted(files)

    def _may_follow(self, link: Path) -> bool:
        """Whether a link exists, does not lead back above itself and stays inside the root, if it must."""
        target = Path(os.path.realpath(link))
        here = Path(os.path.realpath(link.parent))
        above = here.is_relative_to(target) or self.real_root.is_relative_to(target)
        if above or not target.exists():
            self.useless_links += 1
            return False
        if not self.follow_links and not target.is_relative_to(self.real_root):
            self.outward_links += 1
            return False
        return True

    def pictures(self, folder: Path) -> list[str]:
        """Return the pictures in a folder and below, relative to it, sorted."""
        found: list[str] = []
        waiting, seen = [folder], {os.path.realpath(folder)}
        while waiting:
            folders, files = self.entries(waiting.pop())
            found += (file.relative_to(folder).as_posix() for file in files)
            for inner in folders:
                real = os.path.realpath(inner)
                if real not in seen:  # two links to the same folder, or to each other
                    seen.add(real)
                    waiting.append(inner)
        return sorted(found)

    def notes(self) -> list[str]:
        """Say what was left out."""
        notes = [
            f"left out {folder}: its pictures are not in class folders"
            for folder in self.unlabelled
        ]
        if self.other_files:
            kinds = listed(sorted(self.other_suffixes))
            notes.append(f"left out {self.other_files} files that are not pictures ({kinds})")
        return notes + self.notes_on_entries()

    def notes_on_entries(self) -> list[str]:
        """Say which runs and links were left out, and how these are taken along where that makes sense."""
        notes = []
        if self.runs:
            notes.append(f"left out {self.runs} folders of runs")
        if self.outward_links:
            notes.append(
                f"left out {self.outward_links} links that lead out of {self.root}; --follow-links takes "
                "along what they point to"
            )
        if self.useless_links:
            notes.append(
                f"left out {self.useless_links} links that are broken or lead back into a folder above them"
            )
        return notes

    def excuse(self) -> str:
        """The notes as the end of an error message."""
        return "".join(f"; {note}" for note in self.notes())


def _require_folder(root: Path) -> None:
    if not root.exists():
        raise UserError(f"{root} does not exist; give the folder that holds one folder per class")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds one folder per class")


def _part_folders(scanner: _Scanner, problems: list[Problem] | None) -> dict[str, Path]:
    """Return the folders of the parts, or nothing if the folders are the classes themselves.

    A class may be called "train" (beside "bus" and "car"), and a folder of pictures to predict often
    lies as test/ beside train/. So a part is a folder with such a name that holds folders, where
    nothing else with pictures lies beside the parts.
    """
    look = scanner.another()
    folders, _ = look.entries(scanner.root)
    named = [folder for folder in folders if part_of(folder.name)]
    flat = [folder for folder in named if look.entries(folder)[1]]
    nested = [folder for folder in named if folder not in flat and look.entries(folder)[0]]
    others = [folder for folder in folders if folder not in named and look.pictures(folder)]
    if not nested or (others and len(nested) == 1):
        return {}
    if others:
        message = (
            f"{scanner.root} has {listed(f.name + '/' for f in nested)} and beside them pictures in "
            f"{listed(f.name + '/' for f in others)}; move these elsewhere, or keep class folders alone"
        )
        object_to(problems, "beside-parts", message)
    for folder in flat:
        if part_of(folder.name) != "test":
            message = (
                f"{folder} holds pictures but {nested[0].name}/ holds class folders; "
                "sort the pictures into class folders as well"
            )
            object_to(problems, "unsorted", message)
        scanner.unlabelled.append(folder)
    parts: dict[str, Path] = {}
    for folder in nested:
        part = part_of(folder.name)
        if part not in parts:
            parts[part] = folder
            continue
        message = (
            f"{parts[part]} and {folder.name}/ beside it mean the same part, {part}; keep one of them, or "
            "rename the one that is another part"
        )
        object_to(problems, "same-part", message)
    return parts


def _by_class(
    scanner: _Scanner,
    folder: Path,
    expected: Sequence[str] | None,
    problems: list[Problem] | None,
) -> dict[str, dict[str, str]]:
    """Return class name -> {path inside the class folder: path relative to the root}."""
    folders, loose = scanner.entries(folder)
    if not folders:
        what = "holds pictures but no class folders" if loose else "is empty"
        if not loose and scanner.notes():
            what = "holds no class folders"
        message = (
            f"{folder} {what}{scanner.excuse()}; make one folder per class and put its pictures inside"
            + ("; or take the labels from a table (--labels) or from the names" if loose else "")
            + (" of files (--label-from-name)" if loose else "")
        )
        object_to(problems, "no-classes", message)
    by_class: dict[str, dict[str, str]] = {}
    for class_folder in folders:
        name = normal_form(class_folder.name)
        if name in by_class:
            message = (
                f"{folder} has two folders named {name!r} in different Unicode forms; merge them"
            )
            object_to(problems, "two-forms", message)
            continue
        inside = scanner.pictures(class_folder)
        if not inside and expected is None:
            message = (
                f"the class {name!r} has no pictures in {class_folder}{scanner.excuse()}; "
                "add some, or remove the folder"
            )
            object_to(problems, "empty-class", message)
        prefix = class_folder.relative_to(scanner.root).as_posix()
        by_class[name] = {path: f"{prefix}/{path}" for path in inside}
    if expected is not None and not any(by_class.values()):
        raise UserError(f"{folder} holds no pictures{scanner.excuse()}")
    if loose and folders:
        scanner.other_files += len(loose)
        scanner.other_suffixes.add(f"pictures beside the class folders in {folder.name}/")
    return by_class


def _require_no_parts(
    root: Path, by_class: Mapping[str, Mapping[str, str]], problems: list[Problem] | None
) -> None:
    """Object to class folders that all hold the same folders: then these are the classes, and those parts.

    The pictures of a class may well lie in folders, but hardly for each class in several of the same names.
    Where one bears the name of a part, the others may lack some.
    """
    inner = [{path.partition("/")[0] for path in paths} for paths in by_class.values()]
    loose = any("/" not in path for paths in by_class.values() for path in paths)
    if loose or len(inner) < 2 or min(map(len, inner)) < 2:
        return
    shared = set[str]().union(*inner)
    equal = all(names == shared for names in inner)
    if not equal and not (shared in inner and any(map(part_of, by_class))):
        return
    if all(map(part_of, shared)):
        advice = (
            "if these are classes, each with its parts, say so with "
            "--label-from-name '^(?P<label>[^/]+)/(?P<part>[^/]+)/'"
        )
    else:
        advice = (
            "if they are the parts of the data, name them train, val and test; if they are the classes, say "
            "so with --label-from-name '^(?P<label>[^/]+)/'"
        )
    message = (
        f"{root} has {listed(f'{name}/' for name in by_class)} with the same folders in each "
        f"({listed(sorted(shared))}): {advice}"
    )
    object_to(problems, "parts-as-classes", message)


def _require_classes(
    folder: Path,
    found: Iterable[str],
    names: list[str],
    which: str,
    problems: list[Problem] | None,
) -> None:
    missing = sorted(set(names) - set(found))
    unknown = sorted(set(found) - set(names))
    if not missing and not unknown:
        return
    differences = []
    if missing:
        differences.append(f"lacks the class folders {listed(missing)}, {which}")
    if unknown:
        differences.append(f"has the folders {listed(unknown)}, which are none of {listed(names)}")
    message = (
        f"{folder} {' and '.join(differences)}; every class needs its folder, by the same name "
        "(it may be empty when a model is evaluated)"
    )
    if problems is None:
        raise OtherClassesError(message)
    object_to(problems, "classes-differ", message)


def _only_one_class(scanner: _Scanner, folder: Path, name: str) -> str:
    message = f"{folder} has only one class, {name!r}; at least two are needed"
    inner, _ = scanner.another().entries(folder / name) if (folder / name).is_dir() else ([], [])
    if len(inner) > 1:
        return f"{message}. If its {len(inner)} folders are the classes, give {folder / name}"
    return message


def _require_fractions(val: float, test: float) -> None:
    if not 0 <= val < 1:
        raise UserError(f"the validation fraction must be from 0 to below 1; got {val}")
    if not 0 <= test < 1 or val + test >= 1:
        raise UserError(
            f"the test fraction must be from 0, and below 1 together with the validation's; got {test}"
        )


def _require_training(
    root: Path,
    names: list[str],
    train: list[Sample],
    val: list[Sample],
    problems: list[Problem] | None,
) -> None:
    """Object where the given parts leave a class nothing to learn from, or nothing to judge."""
    lacking = sorted(set(range(len(names))) - {sample.label for sample in train})
    if lacking:
        message = (
            f"the labels of {root} leave no training picture for {listed(names[i] for i in lacking)}; "
            "every class needs one"
        )
        object_to(problems, "empty-class", message)
    if not val:
        message = f"the labels of {root} leave no picture for validation; say which, or more"
        object_to(problems, "no-validation", message)


def draw_parts(
    found: dict[str, dict[str, dict[str, str]]], val: float, test: float, seed: int
) -> tuple[str, ...]:
    """Take parts that are not there out of the training pictures; return which were drawn.

    Both come from the same order of a class's pictures, test before validation.
    """
    drawn: tuple[str, ...] = ()
    if test and "test" not in found:
        found["train"], found["test"] = _stratified(found["train"], test, seed)
        val, drawn = val / (1 - test), ("test",)
    if "val" not in found:
        found["train"], found["val"] = _stratified(found["train"], val, seed)
        drawn = (*drawn, "val")
    return drawn


def notes_on_draw(drawn: Sequence[str], said: Collection[str], seed: int) -> list[str]:
    """Say so where a part was drawn although labels say of pictures that they are for training."""
    if not drawn or "train" not in said:
        return []
    parts = " or ".join(sorted(drawn, reverse=True))
    return [f"no picture is said to be {parts}: drawn out of those of train (seed {seed})"]


def _stratified(
    by_class: Mapping[str, Mapping[str, str]], fraction: float, seed: int
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Split every class into training and validation.

    A picture's place in the draw is a hash of seed, class and path, not its turn in a shuffle: so
    neither the order of the file system nor other classes matter, and a picture that is added later
    hardly moves any other from one side to the other.
    """
    train: dict[str, dict[str, str]] = {}
    val: dict[str, dict[str, str]] = {}
    for name, paths in by_class.items():
        drawn = sorted(paths, key=lambda path: _hash(seed, name, path))
        count = round(len(drawn) * fraction)
        if fraction > 0:
            count = min(max(count, 1), len(drawn) - 1)
        val[name] = {path: paths[path] for path in drawn[:count]}
        train[name] = {path: paths[path] for path in drawn[count:]}
    return train, val


def _hash(seed: int, name: str, path: str) -> bytes:
    return hashlib.sha256(
        f"{seed}/{name}/{normal_form(path)}".encode("utf-8", "surrogateescape")
    ).digest()


def _samples(by_class: Mapping[str, Mapping[str, str]], names: list[str]) -> list[Sample]:
    return [
        Sample(path, label)
        for label, name in enumerate(names)
        for path in sorted(by_class.get(name, {}).values())
    ]


def normal_form(name: str) -> str:
    """One form for accented letters: macOS may hand back another than was written."""
    return unicodedata.normalize("NFC", name)


__all__ = [
    "RUNS",
    "SUFFIXES",
    "Dataset",
    "Sample",
    "draw_parts",
    "from_labels",
    "is_run",
    "list_inside",
    "list_pictures",
    "load_split",
    "normal_form",
    "notes_on_draw",
    "scan",
]
