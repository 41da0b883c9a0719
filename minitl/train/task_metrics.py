"""How good the predictions of several tasks are.

A task is judged on the pictures whose answer is known. `score` is one number for all, 0 to 1, by which a run
chooses its best epoch: the mean over the tasks of

    classes    accuracy
    labels     mean average precision: over the labels, of the area under precision against recall
    number     R2, the share of the variance that is explained, or 0 where that is negative
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitl.tasks import Task, output_slices, target_slices
from minitl.train.metrics import classification_metrics, softmax

THRESHOLD = 0.5  # probability from which on a label is predicted
TINY = 1e-30


def answers(tasks: Sequence[Task], outputs: np.ndarray) -> np.ndarray:
    """Turn a network's outputs into what it says: probabilities, and numbers in their own unit.

    outputs, result: (N, outputs of all tasks); the result is float64.
    """
    said = outputs.astype(np.float64)
    for task, own in zip(tasks, output_slices(tasks), strict=True):
        part = said[:, own]
        if task.kind == "classes":
            part[...] = softmax(part)
        elif task.kind == "labels":
            part[...] = 0.5 * (1 + np.tanh(0.5 * part))  # the sigmoid; exp(-x) overflows
        else:
            part[...] = part * task.unit + task.mean
    return said


def task_metrics(
    said: np.ndarray, targets: np.ndarray, tasks: Sequence[Task], threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Compare what a network says with what is known.

    said: (N, outputs of all tasks), as `answers` gives it. targets: (N, columns of all tasks), NaN where
    nothing is known. threshold: probability from which on a label is predicted.

    Returns images, loss, score, and tasks: for each name its kind, images (how many are known) and

        classes    what `classification_metrics` gives
        labels     loss, map (None without a known label), macro_f1, exact (share of pictures with exactly
                   the right labels), and per_label: images, precision, recall, f1, average_precision
        number     loss, mae, rmse, r2 (None where all numbers are the same)
    """
    judged = {}
    for task, own, columns in zip(tasks, output_slices(tasks), target_slices(tasks), strict=True):
        known = ~np.isnan(targets[:, columns.start])
        figures: dict[str, Any] = {"kind": task.kind, "images": int(known.sum())}
        if known.any():
            figures |= _figures(task, said[known, own], targets[known, columns], threshold)
        judged[task.name] = figures
    scores = [score for score in map(score_of, judged.values()) if score is not None]
    losses = [
        task.weight * figures["loss"]
        for task, figures in zip(tasks, judged.values(), strict=True)
        if "loss" in figures
    ]
    return {
        "images": len(targets),
        "loss": float(sum(losses)),
        "score": float(np.mean(scores)) if scores else 0.0,
        "tasks": judged,
    }


def score_of(figures: Mapping[str, Any]) -> float | None:
    """Return how good a task is from 0 to 1, None where that cannot be said."""
    if figures["kind"] == "number":
        r2 = figures.get("r2")
        return None if r2 is None else max(0.0, r2)
    return figures.get("accuracy" if figures["kind"] == "classes" else "map")


def _figures(task: Task, said: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, Any]:
    if task.kind == "classes":
        logits = np.log(np.maximum(said, TINY))  # softmax makes the probabilities of them again
        return classification_metrics(logits, targets[:, 0].astype(np.int64), list(task.classes))
    if task.kind == "labels":
        return _label_figures(task, said, targets == 1, threshold)
    return _number_figures(task, said[:, 0], targets[:, 0])


def _label_figures(
    task: Task, said: np.ndarray, there: np.ndarray, threshold: float
) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    found = said >= threshold
    scores = [
        precision_recall_fscore_support(
            there[:, n], found[:, n], labels=[True], average=None, zero_division=0
        )
        for n in range(len(task.classes))
    ]
    precision, recall, f1 = ([float(one[which][0]) for one in scores] for which in range(3))
    # Without a picture that has a label, or without one that lacks it, there is nothing to put in order.
    orderly = (there.sum(axis=0) > 0) & (there.sum(axis=0) < len(there))
    average = [
        float(average_precision_score(there[:, n], said[:, n])) if orderly[n] else None
        for n in range(len(task.classes))
    ]
    known = [value for value in average if value is not None]
    right = np.where(there, said, 1 - said)
    return {
        "loss": float(-np.log(np.maximum(right, TINY)).mean()),
        "threshold": threshold,
        "map": float(np.mean(known)) if known else None,
        "macro_f1": float(np.mean(f1)),
        "exact": float((found == there).all(axis=1).mean()),
        "per_label": {
            name: {
                "images": int(there[:, n].sum()),
                "precision": precision[n],
                "recall": recall[n],
                "f1": f1[n],
                "average_precision": average[n],
            }
            for n, name in enumerate(task.classes)
        },
    }


def _number_figures(task: Task, said: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    error = said - true
    spread = float(((true - true.mean()) ** 2).mean())
    squared = float((error**2).mean())
    return {
        "loss": squared / task.std**2,
        "mae": float(np.abs(error).mean()),
        "rmse": squared**0.5,
        "r2": 1 - squared / spread if spread > 0 else None,
    }


__all__ = ["THRESHOLD", "answers", "score_of", "task_metrics"]
