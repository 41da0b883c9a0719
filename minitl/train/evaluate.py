"""A finished run, or any weights file, on further pictures."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from minitl import run_files
from minitl.convert.locate import find_weights
from minitl.data.dataset import Dataset, Sample, load_split
from minitl.data.labels import find_dataset
from minitl.data.parts import PARTS
from minitl.data.preprocessing import Preprocessing
from minitl.data.stamps import stamps
from minitl.data.task_table import task_dataset_for
from minitl.data.views import ViewLoader, Views
from minitl.errors import OtherClassesError, UserError
from minitl.models import Classifier
from minitl.train.attack import Attack
from minitl.train.computing import prepare_device
from minitl.train.config import Config
from minitl.train.console import Progress
from minitl.train.metrics import classification_metrics
from minitl.train.options import option
from minitl.train.prepared_pictures import check_preprocessing, load_with_preprocessing
from minitl.train.robustness import under_attack
from minitl.train.task_metrics import THRESHOLD, task_metrics
from minitl.train.view_probabilities import probabilities


def load(run_or_weights: Path) -> Classifier:
    """Load the best weights of a run folder, a weights file, or a name of the catalogue.

    Raises UserError for weights that cannot be read or fetched, that do not say how pictures are prepared
    for them, or that say something else than the settings of their run.
    """
    path = find_weights(run_or_weights)
    model = load_with_preprocessing(path)
    settings = run_or_weights / "config.toml"
    if run_or_weights.is_dir() and settings.is_file():
        check_preprocessing(Config.load(settings).preprocessing, model, path, settings)
    if model.class_names is None:
        model.class_names = _numbers(model)
    return model


def check_options(model: Classifier, **given: Any) -> None:
    """Raise UserError for an option with a value, by its name, that means nothing to the model."""
    kinds = [task.kind for task in model.tasks] or ["classes"]
    meant = {
        "threshold": ("labels", "several labels for a picture"),
        "unknown_below": ("classes", "one class for a picture"),
    }
    for name, (kind, words) in meant.items():
        if given.get(name) is not None and kind not in kinds:
            raise UserError(
                f"{option(name)} is for models with {words}, and this is none; leave it out"
            )
    if model.tasks and given.get("attack") is not None:
        raise UserError("--attack misleads about one class, and this model has tasks; leave it out")


def _class_dataset(
    model: Classifier,
    data: Path,
    labels: str | None,
    label_from_name: str | None,
    follow_links: bool,
) -> Dataset:
    names = model.class_names
    try:
        return find_dataset(
            data,
            labels=labels,
            label_from_name=label_from_name,
            classes=names,
            follow_links=follow_links,
        )
    except OtherClassesError as error:
        if names != _numbers(model):
            raise
        raise OtherClassesError(
            f"{error}. If these numbers stand for classes that the weights file does not name: convert it "
            "again with --class-names FILE, a name a line in the order of the network's outputs"
        ) from error


def _dataset(
    run_or_weights: Path,
    model: Classifier,
    data: Path,
    labels: str | None,
    label_from_name: str | None,
    follow_links: bool,
) -> tuple[Dataset, Dataset | None]:
    """Return the pictures to judge a model on, and the split of its run where these are its own pictures.

    Their parts are then those of the split; what is not in it keeps the part it has. Labels are then found
    as in the run, unless something else is given; of a run on features, the split alone has them.
    """
    run = run_or_weights if run_or_weights.is_dir() else run_or_weights.parent
    split = None
    if run_or_weights.exists() and run_files.is_run(run):
        config = Config.load(run / run_files.SETTINGS)
        split = _own_split(run / run_files.SPLIT, data, Path(config.data))
    if split is not None:
        follow_links = follow_links or config.follow_links
        if labels is None and label_from_name is None:
            if config.features is not None and split.classes == model.class_names:
                return split, split
            labels, label_from_name = config.labels, config.label_from_name
    if model.tasks:
        dataset = _task_dataset(model, data, labels, label_from_name)
    else:
        dataset = _class_dataset(model, data, labels, label_from_name, follow_links)
    return dataset if split is None else _parted_as(split, dataset), split


def _own_split(file: Path, data: Path, trained_on: Path) -> Dataset | None:
    """Return the split of a run if a folder holds its pictures: that folder, moved or copied, or None.

    Copied it is where every picture is there with the size that it had.
    """
    same = _same(trained_on, data)
    try:
        split = load_split(file, data, missing_ok=True)
    except UserError:
        if same:
            raise
        return None
    if same:
        return split
    now = stamps(data, split.stamps)
    copied = bool(split.stamps) and all(
        path in now and now[path].size == stamp.size for path, stamp in split.stamps.items()
    )
    return split if copied else None


def _parted_as(split: Dataset, dataset: Dataset) -> Dataset:
    """Return a dataset with each picture in the part that it has in the split, if it is there."""
    known = {sample.path: part for part in PARTS for sample in getattr(split, part)}
    found: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for part in PARTS:
        for sample in getattr(dataset, part):
            found[known.get(sample.path, part)].append(sample)
    return dataclasses.replace(dataset, train=found["train"], val=found["val"], test=found["test"])


def _outside(split: Dataset, dataset: Dataset) -> dict[str, int]:
    """Return how many pictures of which parts are not in the split."""
    known = {sample.path for part in PARTS for sample in getattr(split, part)}
    counts = {part: sum(s.path not in known for s in getattr(dataset, part)) for part in PARTS}
    return {part: count for part, count in counts.items() if count}


def _same(one: str | Path, other: str | Path) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _numbers(model: Classifier) -> list[str]:
    """Return what classes are called where nobody has named them."""
    return [str(number) for number in range(model.num_classes)]


def _task_dataset(
    model: Classifier, data: Path, labels: str | None, label_from_name: str | None
) -> Dataset:
    names = ", ".join(task.name for task in model.tasks)
    if labels is None or label_from_name is not None:
        raise UserError(
            f"this model has the tasks {names}: give --labels FILE.csv with a column for each, and no "
            "--label-from-name"
        )
    return task_dataset_for(data, labels, model.tasks)


def evaluate(
    run_or_weights: Path,
    data: Path,
    part: str | None,
    *,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    labels: str | None = None,
    label_from_name: str | None = None,
    views: Views | None = None,
    skip_bad: bool = False,
    attack: Attack | None = None,
    threshold: float | None = None,
    follow_links: bool = False,
) -> dict[str, Any]:
    """Compare a model's predictions with the labels of an image folder.

    Folders are matched with the model's classes by name, never by position. part: "train", "val",
    "test" or "all"; None takes test, else val. A folder without parts is all "test", but for the one that
    the run was trained on (or a copy of it): there the parts are those of the run, and so are labels unless
    they are given; what is not in the run's split (new, or left out as unreadable) keeps its part, and does
    not decide which part None takes. Of a run on features, the pictures are those of its split alone.
    workers decode pictures; threads compute (None: one for each core). device, precision: as for `finetune`.
    labels, label_from_name, follow_links: as for `find_dataset`.
    views: judge the mean over several views of each picture. skip_bad: leave out unreadable pictures.

    threshold: probability from which on a label is predicted, in a model with several of them (0.5).
    attack: judge changed pictures as well, see `under_attack`.

    Returns the metrics, with "part", "own_split" (whether the parts are the run's own), "outside_split" (how
    many pictures of which part are not in that), "left_out" (path -> reason) and perhaps "attack" added.
    Raises UserError for folders that are unknown to the model or a part that is not there.
    """
    model = load(run_or_weights)
    assert model.class_names is not None
    check_options(model, threshold=threshold, attack=attack)
    dataset, split = _dataset(run_or_weights, model, data, labels, label_from_name, follow_links)
    if part is None:
        part = "test" if (split or dataset).test else "val"
    chosen = PARTS if part == "all" else (part,)
    samples = [sample for one in chosen for sample in getattr(dataset, one)]
    if not samples:
        whose = f"{run_or_weights}, which was trained on {data}," if split else data
        other = "val" if split and part != "val" else "all"
        raise UserError(f"{whose} has no {part} part; use --part {other}")
    where = prepare_device(device, precision, threads)
    loader = ViewLoader(
        samples,
        data,
        Preprocessing.from_dict(model.preprocessing),
        views,
        skip_bad=skip_bad,
        workers=workers,
        normalise=where.kind == "cpu",
    )
    rows = []
    with Progress(f"evaluating {part}", len(samples)) as progress:
        for row in probabilities(model.to(where), loader, where, precision):
            rows.append(row)
            progress.update(len(row))
    kept = [i for i in range(len(samples)) if i not in loader.bad]
    if not kept:
        raise UserError(f"none of the {len(samples)} pictures of {data} could be read")
    truth = np.array([samples[i].label for i in kept], np.int64)
    said = np.concatenate(rows)[kept]
    if dataset.targets is not None:
        threshold = THRESHOLD if threshold is None else threshold
        metrics = task_metrics(said, dataset.targets[truth], model.tasks, threshold)
    else:
        # The logarithm of probabilities is as good as the logits they came from: softmax gives them back.
        logits = np.log(np.maximum(said, np.finfo(np.float32).tiny))
        metrics = classification_metrics(logits, truth, model.class_names)
    figures = {
        "part": part,
        "own_split": split is not None,
        "outside_split": {} if split is None else _outside(split, dataset),
        "left_out": {samples[i].path: reason for i, reason in sorted(loader.bad.items())},
        **metrics,
    }
    if attack is not None:
        good = [samples[i] for i in kept]
        with Progress(f"attacking {part}", len(good)) as progress:
            figures["attack"] = under_attack(
                model,
                good,
                data,
                attack,
                workers=workers,
                device=where,
                precision=precision,
                progress=progress.update,
            )
    return figures
