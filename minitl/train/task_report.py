"""What report.html says of several tasks: a section for each, with its figures and where it fails worst."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitl.data.dataset import Dataset, Sample
from minitl.data.targets import value_in_words
from minitl.models import Classifier
from minitl.tasks import Task, output_slices, target_slices
from minitl.train import plots
from minitl.train.console import percent
from minitl.train.figures import main_in_words, per_class, task_in_words
from minitl.train.pictures import data_uri, seen_and_mapped
from minitl.train.task_metrics import answers

SHOWN = 8  # pictures of each task


def tiles(metrics: Mapping[str, Any], part: str) -> list[tuple[str, str]]:
    """Return the figures at the head of the page: name and value."""
    found = [(f"score on {part}", percent(metrics["score"]))]
    for name, figures in metrics["tasks"].items():
        said = main_in_words(figures)
        if said is not None:
            found.append((f"{name}: {said[0]}", said[1]))
    return found


def sections(
    samples: Sequence[Sample],
    outputs: np.ndarray,
    metrics: Mapping[str, Any],
    model: Classifier,
    dataset: Dataset,
) -> list[dict[str, Any]]:
    """Return a section for each task. outputs: (N, outputs of all tasks), of the samples."""
    assert dataset.targets is not None
    said = answers(dataset.tasks, outputs)
    targets = dataset.targets[[sample.label for sample in samples]]
    found = []
    for task, own, columns in zip(
        dataset.tasks, output_slices(dataset.tasks), target_slices(dataset.tasks), strict=True
    ):
        figures = metrics["tasks"][task.name]
        known = np.flatnonzero(~np.isnan(targets[:, columns.start]))
        header, rows = per_class(figures)
        section: dict[str, Any] = {
            "name": task.name,
            "words": f"{task_in_words(figures, task.kind)} on {len(known)} pictures",
            "header": header,
            "rows": rows,
            "plots": _plots(task, figures, said[known, own], targets[known, columns]),
        }
        mistakes = _mistakes(task, said[:, own], targets[:, columns], known)[:SHOWN]
        shown = seen_and_mapped(
            model,
            dataset.root,
            [samples[row].path for row, _ in mistakes],
            np.array([own.start + output for _, output in mistakes], int),
        )
        captions = [
            _caption(task, said[row, own], targets[row, columns], output)
            for row, output in mistakes
        ]
        cards = [card | caption for card, caption in zip(shown, captions, strict=True)]
        section["groups"] = [{"title": "Furthest from the truth", "pictures": cards}]
        found.append(section)
    return found


def _plots(
    task: Task, figures: Mapping[str, Any], said: np.ndarray, true: np.ndarray
) -> list[tuple[str, str]]:
    """Return pictures and what they show."""
    if not len(said):
        return []
    if task.kind == "classes":
        matrix = plots.confusion(figures["confusion"], task.classes)
        text = "Confusion matrix: rows are true classes, columns predicted ones"
        return [(data_uri(matrix), text)]
    if task.kind == "number":
        return [(data_uri(plots.numbers(true[:, 0], said[:, 0])), "Predicted against true numbers")]
    return []


def _mistakes(
    task: Task, said: np.ndarray, targets: np.ndarray, known: np.ndarray
) -> list[tuple[int, int]]:
    """Return where a task is wrong, the worst first: the picture, and the output that is."""
    found: list[tuple[float, int, int]] = []
    for row in known.tolist():
        if task.kind == "classes":
            taken = int(said[row].argmax())
            if taken != targets[row, 0]:
                found.append((float(said[row, taken]), row, taken))
        elif task.kind == "labels":
            off = np.abs(said[row] - targets[row])
            worst = int(off.argmax())
            if off[worst] > 0.5:
                found.append((float(off[worst]), row, worst))
        else:
            found.append((float(abs(said[row, 0] - targets[row, 0])), row, 0))
    found.sort(key=lambda mistake: (-mistake[0], mistake[1]))
    return [(row, output) for _, row, output in found]


def _caption(task: Task, said: np.ndarray, target: np.ndarray, output: int) -> dict[str, Any]:
    caption = {"true": value_in_words(task, target), "correct": False}
    if task.kind == "number":
        return caption | {"predicted": f"{said[0]:.4g}", "probability": ""}
    return caption | {"predicted": task.classes[output], "probability": percent(said[output])}


__all__ = ["sections", "tiles"]
