"""What a run leaves for people to judge it by.

report.html      everything on one page, which opens without a network
curves.png       loss and accuracy over the epochs
confusion.png    which classes are taken for which, on the test part if there is one, else on validation;
                 of several tasks they are in the report
classes.json     the classes' names in the order of the network's outputs
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitl import hdf5, models, run_files
from minitl.data.dataset import Dataset
from minitl.device import Device
from minitl.errors import UserError
from minitl.files import write_atomically, write_json
from minitl.models import Classifier
from minitl.train import plots
from minitl.train.computing import prepare_device
from minitl.train.config import Config
from minitl.train.console import Progress
from minitl.train.feature_cache import FeatureCache
from minitl.train.figures import best_of, metrics_of
from minitl.train.forward import Forward, evaluation_loader
from minitl.train.prepared_pictures import check_preprocessing
from minitl.train.report_page import Judged, render
from minitl.train.source import dataset_of_run


def judge(
    model: Classifier,
    dataset: Dataset,
    workers: int,
    device: Device,
    precision: str,
    cut: int = 0,
    cache: FeatureCache | None = None,
    validation: Judged | None = None,
) -> list[Judged]:
    """Return the model's predictions for validation, and for the test part where there is one.

    cut, cache: as for `Forward`. validation: what the model is known to say there; it is not asked again.
    The model is on the device, and `Device.computing` around the call.
    """
    judged = [] if validation is None else [validation]
    for part, samples in (("val", dataset.val), ("test", dataset.test)):
        if not samples or (part == "val" and validation is not None):
            continue
        loader = evaluation_loader(model, samples, dataset, workers, device)
        label = f"{part}, best epoch"
        forward = Forward(model, loader, cut, label, device, precision, cache)
        with Progress(label, len(samples)) as progress:
            logits, labels = forward.logits(progress.update)
        judged.append(Judged(part, list(samples), logits, metrics_of(dataset, logits, labels)))
    return judged


def write_evidence(
    folder: Path,
    dataset: Dataset,
    history: Sequence[dict[str, float]],
    judged: Sequence[Judged],
    seconds: Mapping[str, float],
    before: Mapping[str, Any] | None = None,
) -> None:
    """Write report, plots and class names into a run folder that holds config.toml and best.h5.

    before: how good the network was before training, if that was judged.

    Raises UserError for a picture that can no longer be read. Activation maps are computed on the CPU.
    """
    model = models.load_model(folder / run_files.BEST)
    config = Config.load(folder / run_files.SETTINGS)
    best = best_of(history)
    # Drawing takes longer than all else here: what the page shows is what lies beside it.
    curves = plots.curves(history)
    matrices = [] if dataset.tasks else [one.metrics["confusion"] for one in judged]
    confusions = [plots.confusion(matrix, dataset.classes) for matrix in matrices]
    html = render(
        title=folder.resolve().name,
        lead=f"{model.arch}, {_origin(config)}; judged by the weights of epoch {best['epoch']:.0f} of "
        f"{len(history)}, the best on validation",
        model=model,
        dataset=dataset,
        history=history,
        judged=judged,
        curves=curves,
        confusions=confusions,
        seconds=seconds,
        config=(folder / run_files.SETTINGS).read_text(encoding="utf-8"),
        before=before,
    )
    write_json(folder / run_files.CLASSES, dataset.classes)
    write_atomically(folder / run_files.CURVES, curves)
    if confusions:
        write_atomically(folder / run_files.CONFUSION, confusions[-1])
    write_atomically(folder / run_files.REPORT, html.encode("utf-8", "backslashreplace"))


def _origin(config: Config) -> str:
    data = Path(config.data).name
    if config.weights is None or config.from_scratch:
        return f"trained from scratch on {data}"
    return f"fine-tuned from {Path(config.weights).name} on {data}"


def report(
    folder: Path,
    *,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Path:
    """Make the report of a run again, from its folder and its pictures; return the page.

    Raises UserError for a folder that holds no run with a finished epoch, and for pictures that are gone.
    """
    for name in (run_files.SETTINGS, run_files.SPLIT, run_files.LAST, run_files.BEST):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not the folder of a run with a finished epoch: {name} is missing"
            )
    config = Config.load(folder / run_files.SETTINGS)
    dataset = dataset_of_run(folder, config)
    progress = hdf5.read(folder / run_files.LAST).progress
    if progress is None:
        raise UserError(f"{folder / run_files.LAST} holds weights only, no history of a run")
    where = prepare_device(device, precision, threads)
    model = models.load_model(folder / run_files.BEST)
    check_preprocessing(
        config.preprocessing, model, folder / run_files.BEST, folder / run_files.SETTINGS
    )
    with where.computing(precision):
        judged = judge(model.to(where), dataset, workers, where, precision)
    history, before = progress["history"], progress.get("before")
    write_evidence(folder, dataset, history, judged, _seconds(folder), before)
    return folder / run_files.REPORT


def _seconds(folder: Path) -> dict[str, Any]:
    """Return what took how long, as the finished run noted it."""
    try:
        noted = json.loads((folder / run_files.SUMMARY).read_text(encoding="utf-8"))["timing"]
        return {str(name): float(value) for name, value in noted.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}  # a run that was stopped early has no summary, and an older one no times


__all__ = ["judge", "report", "write_evidence"]
