"""A finished run, or any weights file, on further pictures."""

from pathlib import Path
from typing import Any

from minitl import models
from minitl.convert.pull import find_weights
from minitl.data.folder import Sample, list_pictures
from minitl.data.labels import find_dataset
from minitl.data.loader import Loader
from minitl.data.preprocessing import Preprocessing
from minitl.device import check_precision, get_device
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.train.config import Config
from minitl.train.console import Progress, announce_compilation
from minitl.train.forward import EVALUATION_BATCH, Forward, softmax
from minitl.train.metrics import classification_metrics


def load(run_or_weights: Path) -> Classifier:
    """Load the best weights of a run folder, a weights file, or a name of the catalogue.

    Raises UserError for weights that cannot be read or fetched, that do not say how pictures are prepared
    for them, or that say something else than the settings of their run.
    """
    path = find_weights(run_or_weights)
    model = models.load_model(path)
    if not model.preprocessing:
        raise UserError(
            f"{path} does not say how pictures are prepared for it; convert it again with minitl convert"
        )
    settings = run_or_weights / "config.toml"
    if run_or_weights.is_dir() and settings.is_file():
        check_preprocessing(Config.load(settings).preprocessing, model, path, settings)
    if model.class_names is None:
        model.class_names = [str(number) for number in range(model.num_classes)]
    return model


def check_preprocessing(
    asked: dict[str, Any] | None, model: Classifier, weights: Path | str, what: Path | str
) -> None:
    """Raise UserError where `what` asks for another preprocessing than the model's; None asks for nothing."""
    if asked is None:
        return
    wanted, own = Preprocessing.from_dict(asked), Preprocessing.from_dict(model.preprocessing)
    different = [
        f"{name} {value!r} instead of {getattr(own, name)!r}"
        for name, value in vars(wanted).items()
        if value != getattr(own, name)
    ]
    if different:
        raise UserError(
            f"{what} ask for another preprocessing than {weights} was made with: "
            f"{', '.join(different)}; take [preprocessing] out of the settings to use the weights' own"
        )


def evaluate(
    run_or_weights: Path,
    data: Path,
    part: str | None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    labels: str | None = None,
    label_from_name: str | None = None,
) -> dict[str, Any]:
    """Compare a model's predictions with the labels of an image folder.

    Folders are matched with the model's classes by name, never by position. part: "train", "val",
    "test" or "all"; None takes test, else val. A folder without parts is all "test". workers decode
    pictures; threads compute (None: one for each core). device, precision: as for `finetune`.
    labels, label_from_name: as for `find_dataset`.

    Returns the metrics with "part" and "classes" added. Raises UserError for folders that are
    unknown to the model or a part that is not there.
    """
    model = load(run_or_weights)
    assert model.class_names is not None
    dataset = find_dataset(
        data, labels=labels, label_from_name=label_from_name, classes=model.class_names
    )
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    if part is None:
        part = "test" if dataset.test else "val"
    samples = [s for p in parts.values() for s in p] if part == "all" else parts[part]
    if not samples:
        raise UserError(f"{data} has no {part} part; use --part all")
    logits, truth = _predict(
        model, samples, data, f"evaluating {part}", workers, threads, device, precision
    )
    return {"part": part, **classification_metrics(logits, truth, model.class_names)}


def predict(
    run_or_weights: Path,
    images: list[Path],
    top: int = 3,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> list[dict[str, Any]]:
    """Return for each picture {"image", "class", "probability", "top": [[class, probability], ...]}.

    Raises UserError naming the first picture that cannot be read.
    """
    model = load(run_or_weights)
    assert model.class_names is not None
    samples = [Sample(str(path.absolute()), 0) for path in list_pictures(images)]
    logits, _ = _predict(model, samples, Path(), "predicting", workers, threads, device, precision)
    results = []
    for sample, row in zip(samples, softmax(logits), strict=True):
        order = (-row).argsort(kind="stable")[:top]
        best = [[model.class_names[i], round(float(row[i]), 6)] for i in order]
        results.append(
            {"image": sample.path, "class": best[0][0], "probability": best[0][1], "top": best}
        )
    return results


def _predict(
    model: Classifier,
    samples: list[Sample],
    root: Path,
    label: str,
    workers: int,
    threads: int | None,
    device: str,
    precision: str,
) -> tuple[Any, Any]:
    where = get_device(device)
    check_precision(where, precision)
    where.kernels.set_threads(threads)
    announce_compilation(where)
    loader = Loader(
        samples,
        root,
        Preprocessing.from_dict(model.preprocessing),
        EVALUATION_BATCH,
        workers=workers,
        normalise=where.kind == "cpu",
    )
    with Progress(label, len(samples)) as progress, where.computing(precision):
        forward = Forward(model.to(where), loader, 0, label, where, precision)
        return forward.logits(progress.update)
