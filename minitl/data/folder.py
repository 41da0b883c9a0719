"""A folder of pictures as a dataset: which file has which label, and which part it belongs to.

Two layouts are understood:

    DATA/<class>/...                       one folder per class; the split is made here
    DATA/{train,val[,test]}/<class>/...    the folders say which part a picture belongs to; other names
                                           that people give these parts: see parts.py

Classes are sorted by name, so that a label means the same on every machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from minitl.data.dataset import Dataset, require_folder
from minitl.data.drawing import draw_parts, require_fractions, samples_of
from minitl.data.parts import PARTS, Problem, object_to, part_of
from minitl.data.scanner import Scanner
from minitl.errors import OtherClassesError, UserError
from minitl.text import listed, normal_form


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
    require_folder(root)
    require_fractions(val_fraction, test_fraction)
    scanner = Scanner(root, follow_links)
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
    train, val, test = (samples_of(found.get(part, {}), names) for part in PARTS)
    if train and "val" in drawn and val_fraction and not val:
        message = f"{root} leaves no picture for validation: no class has more than one to share; add some"
        object_to(problems, "no-validation", message)
    if not drawn:
        return Dataset(root, names, train, val, test, notes=scanner.notes())
    notes = scanner.notes()
    return Dataset(root, names, train, val, test, seed, val_fraction, notes, drawn=drawn)


def _part_folders(scanner: Scanner, problems: list[Problem] | None) -> dict[str, Path]:
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
    scanner: Scanner,
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


def _only_one_class(scanner: Scanner, folder: Path, name: str) -> str:
    message = f"{folder} has only one class, {name!r}; at least two are needed"
    inner, _ = scanner.another().entries(folder / name) if (folder / name).is_dir() else ([], [])
    if len(inner) > 1:
        return f"{message}. If its {len(inner)} folders are the classes, give {folder / name}"
    return message


__all__ = ["scan"]
