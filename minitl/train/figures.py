"""Figures of a judgement, whether of classes or of several tasks: for the history of a run and in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitl.data.dataset import Dataset
from minitl.tasks import Task
from minitl.text import printable
from minitl.train.console import percent
from minitl.train.metrics import classification_metrics
from minitl.train.task_metrics import answers, task_metrics

# What an epoch's line says of a task.
OF_KIND = {
    "classes": ("accuracy", "macro_f1"),
    "labels": ("map", "macro_f1"),
    "number": ("mae", "r2"),
}
_WORDS = {"accuracy": "accuracy", "macro_f1": "macro F1", "map": "mAP", "mae": "MAE", "r2": "R2"}
_SHARES = ("accuracy", "macro_f1", "map")


def metrics_of(dataset: Dataset, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Judge a network's outputs (N, K) by labels (N,), or by targets where there are several tasks."""
    if dataset.tasks:
        return task_metrics(answers(dataset.tasks, outputs), labels, dataset.tasks)
    return classification_metrics(outputs, labels, dataset.classes)


def main_figure(metrics: Mapping[str, Any]) -> str:
    """Return the name of what decides which epoch is best."""
    return "score" if "score" in metrics else "accuracy"


def best_of(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the line of the best epoch: by its main figure in validation; of equals, the lowest loss."""
    name = f"val_{'score' if 'val_score' in history[0] else 'accuracy'}"
    return max(history, key=lambda row: (row[name], -row["val_loss"]))


def loss_of_guessing(dataset: Dataset) -> float:
    """Return the training loss of a network that knows nothing: it calls all answers equally likely."""
    kinds = {"labels": math.log(2), "number": 1.0}  # a number's loss counts in variances
    if not dataset.tasks:
        return math.log(len(dataset.classes))
    return sum(t.weight * kinds.get(t.kind, math.log(max(t.outputs, 2))) for t in dataset.tasks)


def columns(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Return the columns of metrics.csv."""
    own = ["train_accuracy", "val_loss", "val_accuracy", "val_macro_f1"]
    if tasks:
        of_tasks = (f"val_{task.name}_{name}" for task in tasks for name in OF_KIND[task.kind])
        own = ["val_loss", "val_score", *of_tasks]
    return ("epoch", "lr", "train_loss", *own, "images_per_second", "seconds")


def history_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what the history keeps of a validation; NaN where something cannot be said."""
    if "tasks" not in metrics:
        return {f"val_{name}": metrics[name] for name in ("loss", "accuracy", "macro_f1")}
    row = {f"val_{name}": metrics[name] for name in ("loss", "score")}
    for task, figures in metrics["tasks"].items():
        for name in OF_KIND[figures["kind"]]:
            value = figures.get(name)
            row[f"val_{task}_{name}"] = math.nan if value is None else value
    return row


def metrics_in_words(metrics: Mapping[str, Any]) -> str:
    """Return the figures that matter: "accuracy 93.5 %, macro F1 93.4 %", or those of each task."""
    if "tasks" not in metrics:
        return f"accuracy {percent(metrics['accuracy'])}, macro F1 {percent(metrics['macro_f1'])}"
    tasks = "; ".join(
        f"{printable(name)} {task_in_words(one, one['kind'])}"
        for name, one in metrics["tasks"].items()
    )
    return f"score {percent(metrics['score'])}: {tasks}"


def task_in_words(figures: Mapping[str, Any], kind: str) -> str:
    """Return the figures that matter of one task."""
    said = [
        f"{_WORDS[name]} {_written(name, value)}"
        for name in OF_KIND[kind]
        if (value := figures.get(name)) is not None and not math.isnan(value)
    ]
    return ", ".join(said) or "unknown"


def main_in_words(figures: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name and the value of what a task's score is made of; None where it cannot be said."""
    name = {"classes": "accuracy", "labels": "map", "number": "r2"}[figures["kind"]]
    value = figures.get(name)
    return None if value is None else (_WORDS[name], _written(name, value))


def _written(name: str, value: float) -> str:
    return percent(value) if name in _SHARES else format(value, ".3g")


def tasks_in_words(row: Mapping[str, float], tasks: Sequence[Task]) -> str:
    """Return score and each task's first figure of an epoch's line."""
    said = []
    for task in tasks:
        name = OF_KIND[task.kind][0]
        figures = {name: row[f"val_{task.name}_{name}"]}
        said.append(f"{printable(task.name)} {task_in_words(figures, task.kind)}")
    return f"score {percent(row['val_score'])} ({', '.join(said)})"


def per_class(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return a table of a task's classes or labels: the header, and a row for each; none of a number."""
    rows = figures.get("per_class") or figures.get("per_label") or {}
    names = {"images": "images", "precision": "precision", "recall": "recall", "f1": "F1"}
    if "per_label" in figures:
        names["average_precision"] = "average precision"
    header = ["label" if "per_label" in figures else "class", *(f"{n:>6}" for n in names.values())]
    return header, [[name, *(_cell(row[key]) for key in names)] for name, row in rows.items()]


def _cell(value: float | None) -> str:
    if value is None:
        return "unknown"
    return str(value) if isinstance(value, int) else percent(value)


__all__ = [
    "OF_KIND",
    "best_of",
    "columns",
    "history_figures",
    "loss_of_guessing",
    "main_figure",
    "main_in_words",
    "metrics_in_words",
    "metrics_of",
    "per_class",
    "task_in_words",
    "tasks_in_words",
]
