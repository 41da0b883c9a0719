"""Several tasks from one table: a column for each, beside path and perhaps part.

    path,part,kind,tags,age
    0001.png,train,cat,striped|young,0.5
    0002.png,val,dog,-,
    0003.png,,cat,,12

A column of classes holds one name, a column of labels any number of them with | between, a column of
numbers a number. An empty cell says that this is not known: the picture then counts in the other tasks
alone. That a picture has none of the labels is known too, and is written as -.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitl.data.dataset import Dataset, Sample
from minitl.data.drawing import draw_parts, notes_on_draw
from minitl.data.parts import PARTS
from minitl.data.table import read_table
from minitl.data.targets import NONE, SEPARATOR
from minitl.errors import UserError
from minitl.tasks import Task, Wanted, output_names, target_slices
from minitl.text import listed, normal_form

# Names of one class or of labels; a number; None where it is not known.
Answer = tuple[str, ...] | float | None


class _Picture(NamedTuple):
    """A line of the table: the answers in the tasks' order, and where it stands."""

    path: str
    part: str
    answers: list[Answer]
    place: str


def task_dataset(
    data: str | Path,
    table: str | Path,
    wanted: Sequence[Wanted],
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Return the dataset of a table with a column for each task, to train on.

    Pictures without part are drawn into one as by `scan`, in shares of the first task's classes; what would
    leave a class or label without training picture goes back there.

    Raises UserError, with file, line and column, for whatever is wrong with the table.
    """
    root, table = Path(data), Path(table)
    pictures, notes = _read(table, root, wanted)
    tasks = [_named(one, number, pictures, table) for number, one in enumerate(wanted)]
    targets = np.stack([_row(tasks, picture) for picture in pictures])
    numbers = {picture.path: number for number, picture in enumerate(pictures)}
    found: dict[str, dict[str, dict[str, str]]] = {"train": {}}
    for picture in pictures:
        stratum = _stratum(wanted, picture)
        found.setdefault(picture.part or "train", {}).setdefault(stratum, {})[picture.path] = (
            picture.path
        )
    drawn = draw_parts(found, val_fraction, test_fraction, seed)
    notes = notes + notes_on_draw(drawn, {picture.part for picture in pictures}, seed)
    rows = {
        part: sorted(numbers[p] for paths in f.values() for p in paths) for part, f in found.items()
    }
    _give_back(_shows(tasks, targets), rows, pictures)
    tasks = _judgeable(tasks, targets, rows, pictures, table)
    train, val, test = (_samples(pictures, rows.get(part, [])) for part in PARTS)
    dataset = Dataset(root, output_names(tasks), train, val, test, notes=notes)
    dataset = dataclasses.replace(dataset, tasks=tuple(tasks), targets=targets)
    if not drawn:
        return dataset
    return dataclasses.replace(dataset, seed=seed, val_fraction=val_fraction, drawn=drawn)


def task_dataset_for(data: str | Path, table: str | Path, tasks: Sequence[Task]) -> Dataset:
    """Return the dataset of a table with a column for each task that a model has, to judge it by.

    What has no part is `test`. Raises UserError as `task_dataset`, and for a class that the model does not
    know.
    """
    root, table = Path(data), Path(table)
    pictures, notes = _read(table, root, [Wanted(task.name, task.kind) for task in tasks])
    targets = np.stack([_row(tasks, picture) for picture in pictures])
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number, picture in enumerate(pictures):
        rows[picture.part or "test"].append(number)
    train, val, test = (_samples(pictures, rows[part]) for part in PARTS)
    dataset = Dataset(root, output_names(tasks), train, val, test, notes=notes)
    return dataclasses.replace(dataset, tasks=tuple(tasks), targets=targets)


def _read(table: Path, root: Path, wanted: Sequence[Wanted]) -> tuple[list[_Picture], list[str]]:
    """Return the pictures of which something is known, and notes on the others and on the header."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the one that the pictures' paths start from")
    names = [one.name for one in wanted]
    pictures, unknown = [], []
    columns = {name: (name,) for name in names}
    rows, notes = read_table(table, root, columns, f"path,part,{','.join(names)}")
    for row in rows:
        answers = [
            _answer(row.cells[one.name], one.kind, f"{row.place}, column {one.name}")
            for one in wanted
        ]
        if all(answer is None for answer in answers):
            unknown.append(row.path)
        else:
            pictures.append(_Picture(row.path, row.part, answers, row.place))
    if not pictures:
        raise UserError(
            f"{table} says nothing in the columns {', '.join(names)}; fill some cells in"
        )
    if unknown:
        left_out = f"left out {len(unknown)} pictures of which nothing is known ({listed(unknown)})"
        notes = [*notes, left_out]
    return pictures, notes


def _answer(text: str, kind: str, where: str) -> Answer:
    """Read a cell; `where` names it in errors."""
    if not text:
        return None
    if kind == "number":
        return _number(text, where)
    text = normal_form(text)
    if kind == "classes":
        return (text,)
    if text == NONE:
        return ()
    names = tuple(name.strip() for name in text.split(SEPARATOR))
    if "" in names or NONE in names:
        raise UserError(
            f"{where}: {text!r} has a label without a name; write a{SEPARATOR}b, {NONE} alone for none of "
            "them, or nothing where it is not known"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{where}: {text!r} names a label twice; take one out")
    return names


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = "; write a point, not a comma" if "," in text else ""
        raise UserError(
            f"{where}: {text!r} is no number{hint}; correct it, or leave it empty where it is not known"
        )
    return number


def _named(wanted: Wanted, number: int, pictures: Sequence[_Picture], table: Path) -> Task:
    """Return the task with the classes that its column names; those of a number follow from the parts."""
    answers = [picture.answers[number] for picture in pictures]
    names = sorted({name for answer in answers if isinstance(answer, tuple) for name in answer})
    least = {"classes": 2, "labels": 1, "number": 0}[wanted.kind]
    if all(answer is None for answer in answers):
        raise UserError(
            f"{table}, column {wanted.name}: nothing is filled in; leave this --task out"
        )
    if len(names) < least:
        raise UserError(
            f"{table}, column {wanted.name}: {len(names)} different {wanted.kind} ({listed(names)}), and at "
            f"least {least} are needed"
        )
    return Task(wanted.name, wanted.kind, tuple(names), weight=wanted.weight)


def _row(tasks: Sequence[Task], picture: _Picture) -> np.ndarray:
    """Return what is known of a picture; UserError for a class that a task does not have."""
    row = np.full(sum(task.columns for task in tasks), np.nan)
    for task, columns, answer in zip(tasks, target_slices(tasks), picture.answers, strict=True):
        if isinstance(answer, float):
            row[columns] = answer
        elif answer is not None:
            unknown = [name for name in answer if name not in task.classes]
            if unknown:
                raise UserError(
                    f"{picture.place}, column {task.name}: the model knows no {unknown[0]!r}, only "
                    f"{listed(task.classes)}"
                )
            places = [task.classes.index(name) for name in answer]
            if task.kind == "classes":
                row[columns] = places[0]
            else:
                row[columns] = 0
                row[[columns.start + place for place in places]] = 1
    return row


def _stratum(wanted: Sequence[Wanted], picture: _Picture) -> str:
    """Return the class by which a picture is drawn into a part: of the first task that has classes."""
    for one, answer in zip(wanted, picture.answers, strict=True):
        if one.kind == "classes":
            return answer[0] if isinstance(answer, tuple) else ""
    return ""


def _shows(tasks: Sequence[Task], targets: np.ndarray) -> np.ndarray:
    """Return which picture shows which class or label, or has a number: (N, outputs) bool."""
    shown = []
    for task, columns in zip(tasks, target_slices(tasks), strict=True):
        own = targets[:, columns]
        if task.kind == "classes":
            shown.append(own == np.arange(task.outputs))
        else:
            shown.append(own == 1 if task.kind == "labels" else ~np.isnan(own))
    return np.concatenate(shown, axis=1)


def _give_back(shows: np.ndarray, rows: dict[str, list[int]], pictures: Sequence[_Picture]) -> None:
    """Move drawn pictures to training, one for each class or label that has no picture there."""
    for output in range(shows.shape[1]):
        if not shows[rows["train"], output].any():
            for part in ("val", "test"):
                own = [n for n in rows.get(part, []) if shows[n, output] and not pictures[n].part]
                if own:
                    moved = min(own, key=lambda n: pictures[n].path)  # whatever the table's order
                    rows[part].remove(moved)
                    rows["train"].append(moved)
                    break


def _judgeable(
    tasks: Sequence[Task],
    targets: np.ndarray,
    rows: dict[str, list[int]],
    pictures: Sequence[_Picture],
    table: Path,
) -> list[Task]:
    """Return the tasks with the mean and deviation of their training numbers.

    Raises UserError for what training or validation lacks.
    """
    shows = _shows(tasks, targets)
    lacking = shows[rows["train"]].sum(axis=0) == 0
    done, first = [], 0
    for task, columns in zip(tasks, target_slices(tasks), strict=True):
        known = np.isfinite(targets[:, columns.start])
        for part, of in (("train", "training"), ("val", "validation")):
            if not known[rows.get(part, [])].any():
                raise UserError(
                    f"{table}, column {task.name}: nothing is known of any {of} picture; fill some in, or "
                    "leave this --task out"
                )
        for number, name in enumerate(task.classes):
            if lacking[first + number]:
                row = int(np.flatnonzero(shows[:, first + number])[0])
                raise UserError(
                    f"{pictures[row].place}, column {task.name}: no training picture has {name!r}; every one "
                    "needs a picture to learn from"
                )
        first += task.outputs
        done.append(_standardised(task, targets[rows["train"], columns.start], table))
    return done


def _standardised(task: Task, values: np.ndarray, table: Path) -> Task:
    if task.kind != "number":
        return task
    values = values[~np.isnan(values)]
    mean, std = float(values.mean()), float(values.std())
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise UserError(
            f"{table}, column {task.name}: the numbers of the training pictures are all the same, or too "
            "large"
        )
    return dataclasses.replace(task, mean=mean, std=std)


def _samples(pictures: Sequence[_Picture], rows: Sequence[int]) -> list[Sample]:
    return sorted(Sample(pictures[row].path, row) for row in rows)


__all__ = ["task_dataset", "task_dataset_for"]
