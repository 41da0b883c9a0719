"""Predictions for pictures without labels, one after the other as they are ready."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minitl.data.dataset import Sample
from minitl.data.preprocessing import Preprocessing
from minitl.data.scanner import list_pictures
from minitl.data.views import ViewLoader, Views
from minitl.train.batches import decoding_threads
from minitl.train.computing import prepare_device
from minitl.train.evaluate import check_options, load
from minitl.train.task_metrics import THRESHOLD
from minitl.train.task_predictions import UNKNOWN, prediction
from minitl.train.view_probabilities import probabilities


def predictions(
    run_or_weights: Path,
    images: list[Path],
    top: int = 3,
    *,
    views: Views | None = None,
    unknown_below: float | None = None,
    threshold: float | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    on_bad: Callable[[str, str], object] = lambda image, reason: None,
    on_batch: Callable[[int], object] = lambda pictures: None,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Iterator[dict[str, Any]]:
    """Yield for each picture {"image", "class", "probability", "top": [[class, probability], ...]}.

    Of a model with several tasks {"image", "tasks"}, the latter as `prediction` gives it.

    images: files, and folders of them; "image" is the path as it was given. top: classes in "top". views:
    probabilities are the mean over these. unknown_below: where the best class has less, "class" is
    "unknown"; "top" still names the classes. threshold: probability from which on a label is predicted,
    0.5. skip_bad: leave out pictures that cannot be read, and call `on_bad` with path and reason of each.
    follow_links: as for `scan`. on_batch: called with the number of pictures done, after each few.

    Raises UserError for a path that is not there, for options that mean nothing to the model, and without
    skip_bad naming the first bad picture.
    """
    model = load(run_or_weights)
    assert model.class_names is not None
    check_options(model, threshold=threshold, unknown_below=unknown_below)
    samples = [Sample(str(path), 0) for path in list_pictures(images, follow_links)]
    where = prepare_device(device, precision, threads)
    loader = ViewLoader(
        samples,
        Path(),
        Preprocessing.from_dict(model.preprocessing),
        views,
        skip_bad=skip_bad,
        workers=decoding_threads(device) if workers is None else workers,
        normalise=where.kind == "cpu",
    )
    threshold = THRESHOLD if threshold is None else threshold
    done = 0
    for rows in probabilities(model.to(where), loader, where, precision):
        for index, row in enumerate(rows, start=done):
            if index in loader.bad:
                on_bad(samples[index].path, loader.bad[index])
                continue
            if model.tasks:
                said = prediction(
                    model.tasks, row, top=top, threshold=threshold, unknown_below=unknown_below
                )
                yield {"image": samples[index].path, "tasks": said}
                continue
            order = (-row).argsort(kind="stable")[:top]
            best = [[model.class_names[i], round(float(row[i]), 6)] for i in order]
            unknown = unknown_below is not None and row[order[0]] < unknown_below
            yield {
                "image": samples[index].path,
                "class": UNKNOWN if unknown else best[0][0],
                "probability": best[0][1],
                "top": best,
            }
        done += len(rows)
        on_batch(len(rows))


def predict(run_or_weights: Path, images: list[Path], top: int = 3, **options: Any) -> list[dict]:
    """Return what `predictions` yields, all at once."""
    return list(predictions(run_or_weights, images, top, **options))


__all__ = ["UNKNOWN", "predict", "predictions"]
