"""What a network with several tasks says of one picture, in words and as columns of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitl.data.targets import NONE, SEPARATOR
from minitl.tasks import Task, output_slices
from minitl.train.console import percent
from minitl.train.task_metrics import THRESHOLD

UNKNOWN = "unknown"


def prediction(
    tasks: Sequence[Task],
    said: np.ndarray,
    *,
    top: int = 3,
    threshold: float = THRESHOLD,
    unknown_below: float | None = None,
) -> dict[str, Any]:
    """Return for each task by name

        classes    {"class", "probability", "top": [[class, probability], ...]}
        labels     {"labels": [...], "probabilities": {label: probability}}
        number     {"value"}

    said: (outputs of all tasks,), as `answers` gives it. For the rest see `predictions`.
    """
    return {
        task.name: _of_task(task, said[own], top, threshold, unknown_below)
        for task, own in zip(tasks, output_slices(tasks), strict=True)
    }


def _of_task(
    task: Task, said: np.ndarray, top: int, threshold: float, unknown_below: float | None
) -> dict[str, Any]:
    if task.kind == "number":
        return {"value": float(f"{said[0]:.6g}")}
    shares = {name: round(float(share), 6) for name, share in zip(task.classes, said, strict=True)}
    if task.kind == "labels":
        # By what is not rounded: as in the figures of an evaluation.
        there = [name for name, share in zip(task.classes, said, strict=True) if share >= threshold]
        return {"labels": there, "probabilities": shares}
    order = (-said).argsort(kind="stable")[:top]
    best = [[task.classes[i], shares[task.classes[i]]] for i in order]
    unknown = unknown_below is not None and said[order[0]] < unknown_below
    return {"class": UNKNOWN if unknown else best[0][0], "probability": best[0][1], "top": best}


def as_columns(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return a prediction as columns, (name, cell); labels are written as a table of labels has them.

    A task may be called what another one's probability is: then two columns have one name.
    """
    cells: list[tuple[str, Any]] = [("image", result["image"])]
    for name, said in result["tasks"].items():
        if "value" in said:
            cells.append((name, said["value"]))
        elif "labels" in said:
            cells.append((name, SEPARATOR.join(said["labels"]) or NONE))
            cells += [(f"{name}: {label}", share) for label, share in said["probabilities"].items()]
        else:
            cells += [(name, said["class"]), (f"{name}_probability", said["probability"])]
    return cells


def in_words(said: Mapping[str, Any]) -> str:
    """Return one task's prediction as "cat 98.1 %", "red 92.0 %, round 77.0 %" or "3.5"."""
    if "value" in said:
        return f"{said['value']:g}"
    if "labels" in said:
        found = [f"{name} {percent(said['probabilities'][name])}" for name in said["labels"]]
        return ", ".join(found) or NONE
    return f"{said['class']} {percent(said['probability'])}"


__all__ = ["UNKNOWN", "as_columns", "in_words", "prediction"]
