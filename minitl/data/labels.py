"""Labels from elsewhere than folders: a table, or a pattern on the files' names.

A table is a CSV file with a header that has the columns path and label, and perhaps part (or other usual
names of these, such as file, class and split):

    path,label,part
    scans/0001.png,healthy,train
    "scans/0002, left.png",ill,val

Parts are train, val and test; a picture without part is drawn into one. What else is understood: see
table.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minitl.data.dataset import Dataset, Sample, require_folder, safe_relative
from minitl.data.drawing import draw_parts, notes_on_draw, require_fractions, samples_of
from minitl.data.folder import scan
from minitl.data.parts import PARTS, Problem, object_to
from minitl.data.scanner import list_inside
from minitl.data.table import LABEL, is_picture, part_named, read_table
from minitl.data.task_table import task_dataset
from minitl.errors import OtherClassesError, UserError
from minitl.tasks import Wanted
from minitl.text import listed, normal_form, shown


class Label(NamedTuple):
    """What is said of a picture: its class, its part ("" where that is open), and where it is said."""

    name: str
    part: str
    place: str


def find_dataset(
    data: str | Path,
    *,
    labels: str | Path | None = None,
    label_from_name: str | None = None,
    tasks: Sequence[Wanted] = (),
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    follow_links: bool = False,
    problems: list[Problem] | None = None,
) -> Dataset:
    """Return the dataset of a folder, with labels from its class folders unless something else is said.

    labels: a table. label_from_name: a pattern as for `labels_from_names`. tasks: columns of the table in
    place of the one label, see task_table.py. The rest is as for `scan`.

    Raises UserError for whatever is wrong with these, with file and line.
    """
    root = Path(data)
    draw = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    if labels is not None and label_from_name is not None:
        raise UserError("--labels and --label-from-name both say the labels; give one of them")
    if tasks:
        if labels is None:
            raise UserError("--task names columns of a table; give --labels FILE.csv")
        return task_dataset(root, labels, tasks, **draw, seed=seed)
    if labels is None and label_from_name is None:
        return scan(
            root,
            **draw,
            seed=seed,
            classes=classes,
            follow_links=follow_links,
            problems=problems,
        )
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that the pictures' paths start from")
    if labels is not None:
        said, notes = read_labels(Path(labels), root)
    else:
        assert label_from_name is not None
        said, notes = labels_from_names(root, label_from_name, follow_links)
    names = {path: label.name for path, label in said.items()}
    parts = {path: label.part for path, label in said.items() if label.part}
    if classes is not None:
        _require_known(said, classes)
    return from_labels(
        root, names, parts, **draw, seed=seed, classes=classes, notes=notes, problems=problems
    )


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
    require_folder(root)
    require_fractions(val_fraction, test_fraction)
    open_part = "train" if classes is None else "test"
    found: dict[str, dict[str, dict[str, str]]] = {open_part: {}}
    for path, name in labels.items():
        relative = safe_relative(path, "the labels")
        if not is_picture(root / relative):
            raise UserError(
                f"the labels name {shown(repr(path))}, and there is no such file in {root}"
            )
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
    train, val, test = (samples_of(found.get(part, {}), names) for part in PARTS)
    if classes is None:
        _require_training(root, names, train, val, problems)
    said = [*notes, *notes_on_draw(drawn, (parts or {}).values(), seed)]
    if not drawn:
        return Dataset(root, names, train, val, test, notes=said)
    return Dataset(root, names, train, val, test, seed, val_fraction, said, drawn=drawn)


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


def read_labels(table: Path, root: Path) -> tuple[dict[str, Label], list[str]]:
    """Read a table; return what it says by path, relative to `root` and with forward slashes, and notes.

    Raises UserError with file and line for a table that does not make sense: no header, a line without
    label, a path twice, a picture that is not there.
    """
    said: dict[str, Label] = {}
    rows, notes = read_table(table, root, {"label": LABEL}, "path,label or path,label,part")
    for row in rows:
        if not row.cells["label"]:
            raise UserError(f"{row.place}: no label; fill it in, or take the line out")
        said[row.path] = Label(row.cells["label"], row.part, row.place)
    return said, notes


def labels_from_names(
    root: Path, pattern: str, follow_links: bool = False
) -> tuple[dict[str, Label], list[str]]:
    """Return what a pattern finds in the pictures' paths, and notes on those that are left out.

    pattern: a regular expression, searched for in each path relative to `root` (forward slashes), with a
    group (?P<label>...) and perhaps (?P<part>...). follow_links: as for `scan`.

    Raises UserError for a pattern that is none, lacks the group or fits no picture.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--label-from-name {pattern!r} is no pattern: {error}") from None
    if "label" not in expression.groupindex:
        raise UserError(
            f"--label-from-name {pattern!r} has no group (?P<label>...); for cat_12.jpg write "
            "'(?P<label>[a-z]+)_[0-9]+'"
        )
    said: dict[str, Label] = {}
    others = []
    paths, notes = list_inside(root, follow_links)
    for path in paths:
        found = expression.search(path)
        name = found["label"] if found else None
        if not found or not name:
            others.append(path)
            continue
        part = found["part"] or "" if "part" in expression.groupindex else ""
        said[path] = Label(name, part_named(part, path), path)
    if not said:
        raise UserError(
            f"--label-from-name {pattern!r} fits none of the {len(others)} pictures in {root}"
            + (f", such as {others[0]}" if others else "")
            + "".join(f"; {note}" for note in notes)
        )
    if others:
        first = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        notes = [f"left out {len(others)} pictures that the pattern does not fit ({first})", *notes]
    return said, notes


def _require_known(said: Mapping[str, Label], classes: Sequence[str]) -> None:
    names = set(map(normal_form, classes))
    for label in said.values():
        if normal_form(label.name) not in names:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise OtherClassesError(
                f"{label.place}: the model knows no class {label.name!r}, only {known}"
            )


__all__ = ["Label", "find_dataset", "from_labels", "labels_from_names", "read_labels"]
