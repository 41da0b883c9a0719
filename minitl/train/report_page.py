"""report.html: what a run did and how good its result is, in one file that opens without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitl.data.dataset import Dataset, Sample
from minitl.data.parts import PARTS
from minitl.models import Classifier
from minitl.train import plots
from minitl.train.console import duration, percent
from minitl.train.metrics import softmax
from minitl.train.pictures import data_uri, seen_and_mapped
from minitl.train.task_report import sections, tiles

SHOWN = 8  # pictures in each group
PART_NAMES = {"val": "validation"}


@dataclass(frozen=True)
class Judged:
    """The final model's predictions for one part of the data.

    samples: N pictures. logits: (N, K). metrics: what `metrics_of` says of them.
    """

    part: str
    samples: list[Sample]
    logits: np.ndarray
    metrics: Mapping[str, Any]


def render(
    *,
    title: str,
    lead: str,
    model: Classifier,
    dataset: Dataset,
    history: Sequence[dict[str, float]],
    judged: Sequence[Judged],
    curves: bytes,
    confusions: Sequence[bytes],
    seconds: Mapping[str, float],
    config: str,
    before: Mapping[str, Any] | None = None,
) -> str:
    """Return the report as HTML; everything it shows is inside.

    title, lead: the heading and the line below. model: the final one, for the class-activation maps.
    history: a row for each epoch. curves: its drawing, as PNG. confusions: a PNG for each of `judged`; none
    where there are several tasks. seconds: what took how long. config: the text of config.toml.
    before: how good the network was before training, on the part that it names.
    """
    from jinja2 import Environment

    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True).from_string(source)
    last = judged[-1].metrics
    figures = [
        *(tiles(last, _part_name(judged[-1])) if dataset.tasks else _tiles(judged[-1])),
        ("pictures trained on", f"{len(dataset.train):,}"),
        ("training time", duration(sum(row["seconds"] for row in history))),
    ]
    parts = [part for part in PARTS if getattr(dataset, part)]
    counts = [dataset.counts(part) for part in parts]
    return template.render(
        title=title,
        lead=lead,
        figures=figures,
        before=None if before is None else _before_and_after(before, judged),
        curves=data_uri(curves),
        parts=[_tasks_of_part(one, model, dataset) for one in judged]
        if dataset.tasks
        else [_part(*pair, model, dataset) for pair in zip(judged, confusions, strict=True)],
        data={
            "parts": parts,
            "rows": [[name, *(c[i] for c in counts)] for i, name in enumerate(dataset.classes)],
            "notes": dataset.notes,
        },
        time=[
            (name, duration(value) if value >= 10 else f"{value:.1f} s")
            for name, value in seconds.items()
        ],
        config=config,
    )


def _before_and_after(before: Mapping[str, Any], judged: Sequence[Judged]) -> dict[str, Any]:
    """Return what training changed: the part that was judged, and a row for each figure."""
    (after,) = (one for one in judged if one.part == before["part"])
    names = {"score": "score", "accuracy": "accuracy", "macro_f1": "macro F1"}
    rows = [
        (words, percent(before[name]), percent(after.metrics[name]), f"{100 * change:+.1f} points")
        for name, words in names.items()
        if name in before
        for change in [after.metrics[name] - before[name]]
    ]
    was, is_now = before["loss"], after.metrics["loss"]
    rows.append(("loss", f"{was:.4f}", f"{is_now:.4f}", f"{is_now - was:+.4f}"))
    return {"part": _part_name(after), "rows": rows}


def _tiles(judged: Judged) -> list[tuple[str, str]]:
    metrics = judged.metrics
    return [
        (f"accuracy on {_part_name(judged)}", percent(metrics["accuracy"])),
        ("macro F1", percent(metrics["macro_f1"])),
        *([("among the best 5", percent(metrics["top5"]))] if "top5" in metrics else []),
    ]


def _part_name(judged: Judged) -> str:
    return PART_NAMES.get(judged.part, judged.part)


def _heading(judged: Judged) -> dict[str, Any]:
    return {"name": _part_name(judged), "images": f"{judged.metrics['images']:,}"}


def _tasks_of_part(judged: Judged, model: Classifier, dataset: Dataset) -> dict[str, Any]:
    found = sections(judged.samples, judged.logits, judged.metrics, model, dataset)
    return _heading(judged) | {"tasks": found}


def _part(judged: Judged, confusion: bytes, model: Classifier, dataset: Dataset) -> dict[str, Any]:
    metrics = judged.metrics
    return _heading(judged) | {
        "confusion": data_uri(confusion),
        "reliability": data_uri(plots.reliability(metrics["calibration"])),
        "calibration_error": percent(metrics["calibration"]["expected_error"]),
        "classes": [
            {"name": name, "images": row["images"]}
            | {key: percent(row[key]) for key in ("precision", "recall", "f1")}
            for name, row in metrics["per_class"].items()
        ],
        "groups": [
            {"title": title, "pictures": _pictures(judged, chosen, model, dataset)}
            for title, chosen in _groups(judged)
        ],
    }


def _groups(judged: Judged) -> list[tuple[str, np.ndarray]]:
    """Choose the pictures to show: indices into the samples."""
    probabilities = softmax(judged.logits)
    labels = np.array([sample.label for sample in judged.samples])
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    indices = np.arange(len(labels))
    by_confidence = np.argsort(-sure, kind="stable")
    return [
        ("Wrong, and most sure of it", by_confidence[~right[by_confidence]][:SHOWN]),
        ("Right, but least sure", by_confidence[::-1][right[by_confidence[::-1]]][:SHOWN]),
        ("Right and most sure, one of each class", _surest(indices, labels, sure, right)[:SHOWN]),
    ]


def _surest(
    indices: np.ndarray, labels: np.ndarray, sure: np.ndarray, right: np.ndarray
) -> np.ndarray:
    chosen = []
    for label in np.unique(labels):
        own = indices[(labels == label) & right]
        if len(own):
            chosen.append(own[sure[own].argmax()])
    return np.array(chosen, int)


def _pictures(
    judged: Judged, chosen: np.ndarray, model: Classifier, dataset: Dataset
) -> list[dict[str, Any]]:
    probabilities = softmax(judged.logits)[chosen]
    predicted = probabilities.argmax(axis=1)
    samples = [judged.samples[i] for i in chosen]
    shown = seen_and_mapped(model, dataset.root, [sample.path for sample in samples], predicted)
    return [
        {
            **card,
            "true": dataset.classes[sample.label],
            "predicted": dataset.classes[label],
            "probability": percent(float(row[label])),
            "correct": label == sample.label,
        }
        for card, sample, label, row in zip(shown, samples, predicted, probabilities, strict=True)
    ]


__all__ = ["Judged", "render"]
