"""What is known of pictures in several tasks: rows of targets, see minitl/tasks.py.

targets: (N, columns of all tasks) float64; NaN where something is not known
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitl.tasks import Task, target_slices
from minitl.text import shown

SEPARATOR = "|"  # between labels
NONE = "-"  # in place of labels: it is known that there are none


def known_counts(tasks: Sequence[Task], targets: np.ndarray) -> list[int]:
    """Return for each output of the network how many pictures have that class, label, or a number."""
    counts: list[int] = []
    for task, columns in zip(tasks, target_slices(tasks), strict=True):
        own = targets[:, columns]
        if task.kind == "classes":
            counts += [int((own == number).sum()) for number in range(task.outputs)]
        elif task.kind == "labels":
            counts += (own == 1).sum(axis=0).tolist()
        else:
            counts.append(int((~np.isnan(own)).sum()))
    return counts


def in_words(tasks: Sequence[Task], row: np.ndarray) -> str:
    """Return what is known of a picture: "kind cat; tags red|round; age 3.5"."""
    words = []
    for task, columns in zip(tasks, target_slices(tasks), strict=True):
        own = row[columns]
        if not np.isnan(own[0]):
            words.append(f"{task.name} {value_in_words(task, own)}")
    return "; ".join(words)


def value_in_words(task: Task, own: np.ndarray) -> str:
    """Return what a table would say in this task's cell. own: the task's columns, known."""
    if task.kind == "classes":
        return task.classes[int(own[0])]
    if task.kind == "labels":
        names = [name for name, there in zip(task.classes, own, strict=True) if there]
        return SEPARATOR.join(names) or NONE
    return f"{own[0]:.6g}"


def to_lists(targets: np.ndarray) -> list[list[float | None]]:
    """Return rows as JSON can hold them."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in targets]


def _as_float(value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number beyond float64, which fits no task
        return math.inf if value > 0 else -math.inf


def from_lists(tasks: Sequence[Task], rows: Sequence[Any], names: Sequence[str]) -> np.ndarray:
    """Return the targets that `to_lists` gave. names: of the pictures that the rows are of.

    Raises ValueError, naming picture and value, for a row that does not fit the tasks.
    """
    width = sum(task.columns for task in tasks)
    for row, name in zip(rows, names, strict=True):
        fits = isinstance(row, list) and len(row) == width
        if not fits or not all(isinstance(value, float | int | None) for value in row):
            raise ValueError(
                f"the row of targets of {name!r} must be {width} numbers or nulls, not {shown(repr(row))}"
            )
    given = [[_as_float(value) for value in row] for row in rows]
    targets = np.array(given, np.float64).reshape(-1, width)
    for task, columns in zip(tasks, target_slices(tasks), strict=True):
        own = targets[:, columns]
        known = ~np.isnan(own)
        if task.kind == "number":
            wrong, fitting = np.isinf(own), "a finite number"
        else:
            most = task.outputs - 1 if task.kind == "classes" else 1
            wrong = known & ~((own >= 0) & (own <= most) & (own == own.round()))
            fitting = f"a whole number from 0 to {most}"
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{own[row, column]:g}, a target of {names[row]!r}, is out of range: the task {task.name!r} "
                f"takes {fitting}"
            )
        in_part = known.any(axis=1) & ~known.all(axis=1)
        if in_part.any():
            row = int(in_part.argmax())
            raise ValueError(
                f"{rows[row][columns]}, the targets of {names[row]!r} for the task {task.name!r}, are known "
                "in part; it takes all of them or none"
            )
    nothing = np.isnan(targets).all(axis=1)
    if nothing.any():
        name = names[int(nothing.argmax())]
        raise ValueError(f"nothing is known of {name!r}: all its targets are null")
    return targets


__all__ = [
    "NONE",
    "SEPARATOR",
    "from_lists",
    "in_words",
    "known_counts",
    "to_lists",
    "value_in_words",
]
