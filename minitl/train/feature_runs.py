"""Features as a file of their own: made by `minitl features`, trained on by `minitl finetune --features`.

The file (see feature_file.py) holds a row for each picture of a folder, its label, path and part. What it
says of itself, `about`, names the network, where it was cut, the digest of all weights before the cut,
the preprocessing, the weights file and the folder. A run on it is a run with these layers frozen and
without augmentation, and gives the same result; the pictures need not be there. Where they are, they must be
those that the rows are of: the report shows them beside what was learned.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitl import models
from minitl.convert.locate import find_weights
from minitl.data.dataset import Dataset, Sample
from minitl.data.parts import PARTS
from minitl.data.preprocessing import Preprocessing
from minitl.data.stamps import Stamp, stamps
from minitl.device import dtype_of
from minitl.errors import UserError
from minitl.feature_file import KEY_BYTES, FeatureFile, write
from minitl.models import Classifier
from minitl.text import listed
from minitl.train.computing import prepare_device
from minitl.train.console import Progress, say
from minitl.train.contradictions import refuse_brought
from minitl.train.feature_cache import FeatureCache, describe, file_digests, weights_digest
from minitl.train.features import Features, megabytes
from minitl.train.forward import evaluation_loader
from minitl.train.prepared_pictures import load_with_preprocessing
from minitl.train.recipes import RECIPES


def extract(
    dataset: Dataset,
    weights: str,
    out: Path,
    *,
    cut: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> None:
    """Write the features of a dataset's pictures to a file.

    weights: a file, run folder or name. cut: the stage behind which features are taken, None for the last.

    Raises UserError for weights, a cut, a picture or a place to write that is not good.
    """
    where = prepare_device(device, precision, threads)
    path = find_weights(weights, say)
    model = load_with_preprocessing(path).eval().to(where)
    stages = _stages_up_to(model, cut)
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    parts = {part: getattr(dataset, part) for part in PARTS}
    samples = [sample for part in parts.values() for sample in part]
    loader = evaluation_loader(model, samples, dataset, workers, where)
    numbers = {"device": where.kind, "precision": precision, "conv": "auto"}
    about = describe(model, stages, preprocessing, numbers) | {
        "weights_file": str(path.absolute()),
        "data": str(dataset.root.absolute()),
    }
    # Before the digests: a file that changes in between then looks changed, not the other way round.
    files = stamps(dataset.root, (sample.path for sample in samples))
    unread = Stamp(-1, -1)  # not there; the digest is about to say so
    stamped = [files.get(sample.path, unread) for sample in samples]
    columns: dict[str, np.ndarray | list[str]] = {
        "labels": np.array([sample.label for sample in samples], "<i8"),
        "paths": [sample.path for sample in samples],
        "parts": [part for part, inside in parts.items() for _ in inside],
        "sizes": np.array([stamp.size for stamp in stamped], "<i8"),
        "times": np.array([stamp.time for stamp in stamped], "<i8"),
        "class_names": dataset.classes,
    }
    keys = np.frombuffer(b"".join(file_digests(dataset.root, samples, workers)), np.uint8)
    with where.computing(precision), Progress("features", len(samples)) as progress:
        features = Features(model, stages, loader, "features", where, dtype_of(precision))
        shape = features.row_shape()
        rows = features.rows(progress.update)
        write(out, about, keys.reshape(-1, 32), shape, rows, columns)
    size = megabytes(out.stat().st_size)
    say(f"{out}: {len(samples)} pictures, {shape} behind {about['cut']} of {model.arch}, {size}")


def _stages_up_to(model: Classifier, cut: str | None) -> int:
    """Return how many stages lie before a cut: behind this stage, or the last one of this part."""
    names = [stage.name for stage in model.stages()]
    if cut is None:
        return len(names)
    inside = [n for n, name in enumerate(names, 1) if name == cut or name.startswith(f"{cut}.")]
    if not inside:
        raise UserError(f"--cut {cut}: {model.arch} can be cut behind {', '.join(names)}")
    return inside[-1]


def settings_from_features(file: FeatureFile, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run on a file of features, of those that were given.

    Raises UserError for settings that cannot work on features.
    """
    refuse_brought(given, "--features")
    recipe = given.get("recipe")
    if recipe in RECIPES and RECIPES[recipe].get("freeze") != ("backbone",):
        raise UserError(
            f"--recipe {recipe} trains all layers, and --features brings what frozen ones gave; choose "
            "frozen-mlp, or give single options"
        )
    file.column("paths")
    kinds = {"data": str, "weights_file": str, "preprocessing": dict}
    for name, kind in kinds.items():
        if not isinstance(file.about.get(name), kind):
            raise UserError(f"{file.path} is damaged (it does not say its {name}); make it again")
    given = {"weights": file.about.get("weights_file")} | given
    model = models.load_model(find_weights(given["weights"], say))
    count = check_weights(file, model, given["weights"])
    names = [name for name, _ in model.named_parameters()]
    modules = [name for stage in model.stages()[:count] for name in stage.modules]
    frozen = tuple(m for m in modules if any(name.startswith(f"{m}.") for name in names))
    pictures = all((Path(file.about["data"]) / path).is_file() for path in file.column("paths"))
    return (
        {"report": pictures}
        | given
        | {
            "data": file.about["data"],
            "features": str(file.path.absolute()),
            "freeze": ("backbone",) if count == len(model.stages()) else frozen,
            "augment": False,
            "preprocessing": file.about["preprocessing"],
        }
    )


def check_weights(file: FeatureFile, model: Classifier, weights: Path | str) -> int:
    """Return behind how many of the model's stages a file's features are.

    Raises UserError where they are of other weights.
    """
    names = [stage.name for stage in model.stages()]
    cut = file.about.get("cut")
    count = names.index(cut) + 1 if cut in names else 0
    if not count or weights_digest(model, count) != file.about.get("weights"):
        raise UserError(
            f"{file.path} holds features of other weights than {weights}; give --weights "
            f"{file.about.get('weights_file')}, or make the features again"
        )
    return count


def dataset_from_features(file: FeatureFile) -> Dataset:
    """Return the pictures that a file's rows stand for; a part that is lacking is empty.

    Raises UserError for a file whose columns do not agree, or without training or validation part.
    """
    classes, paths, parts = (file.column(name) for name in ("class_names", "paths", "parts"))
    labels = np.asarray(file.column("labels"))
    by_part: dict[str, list[Sample]] = {part: [] for part in PARTS}
    fits = len(paths) == len(parts) == len(labels) == len(file) and len(set(paths)) == len(paths)
    if (
        not fits
        or not set(parts) <= set(PARTS)
        or not 0 <= labels.min() <= labels.max() < len(classes)
    ):
        raise UserError(f"{file.path} is damaged (its columns do not agree); make it again")
    for path, part, label in zip(paths, parts, labels, strict=True):
        by_part[part].append(Sample(path, int(label)))
    for part in ("train", "val"):
        if not by_part[part]:
            raise UserError(f"{file.path} has no {part} part; make it of a folder that has one")
    root = Path(file.about["data"])
    return Dataset(root, list(classes), by_part["train"], by_part["val"], by_part["test"])


def changed_pictures(file: FeatureFile) -> list[str]:
    """Return which pictures are there and are not those that a file's rows are of.

    Pictures with another date but the same size are read: the keys are their digests.
    """
    root, paths = Path(file.about["data"]), file.column("paths")
    now = stamps(root, paths)
    then = _stamps(file)
    suspects = [
        row for row, path in enumerate(paths) if path in now and now[path] != then.get(path)
    ]
    if suspects:
        why = f"have another size or date than in {file.path}" if then else "may have changed since"
        say(f"  {len(suspects)} of {len(paths)} pictures {why}; comparing their contents")
    digests = file_digests(root, [Sample(paths[row], 0) for row in suspects], 1)
    return [
        paths[row]
        for row, digest in zip(suspects, digests, strict=True)
        if digest != file.keys[row].tobytes()
    ]


def _stamps(file: FeatureFile) -> dict[str, Stamp]:
    """Return what the pictures' files were like; nothing where the file does not say it."""
    try:
        sizes, times = (np.asarray(file.column(name)).tolist() for name in ("sizes", "times"))
    except UserError:  # of an earlier release
        return {}
    return dict(zip(file.column("paths"), map(Stamp, sizes, times), strict=True))


def require_same_pictures(file: FeatureFile) -> None:
    """Raise UserError where a file's rows are of other pictures than there are now."""
    changed = changed_pictures(file)
    if changed:
        raise UserError(
            f"{file.path} holds features of other pictures than {file.about['data']} has now: "
            f"{listed(changed)}; make the features again with minitl features"
        )


class FeatureRows(FeatureCache):
    """A file of features in the place of a cache: rows are found by path, and nothing is computed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = FeatureFile(path)
        super().__init__(file.path.parent / "none", file.about)
        self.file = file
        self._rows = {path: row for row, path in enumerate(file.column("paths"))}

    def keys_of(self, root: Path, samples: Sequence[Sample], workers: int) -> list[bytes]:
        """Return a key for each sample; UserError for one that the file does not have."""
        lacking = [sample.path for sample in samples if sample.path not in self._rows]
        if lacking:
            raise UserError(f"{self.file.path} has no features of {lacking[0]}; make it again")
        return [self._rows[sample.path].to_bytes(KEY_BYTES) for sample in samples]

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Return nothing: all rows are there."""
        return np.empty(0, np.int64)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of keys (n, 32) as float32 (n, ...)."""
        return self.file.rows(np.array([int.from_bytes(key.tobytes()) for key in keys]))


__all__ = [
    "FeatureRows",
    "changed_pictures",
    "check_weights",
    "dataset_from_features",
    "extract",
    "require_same_pictures",
    "settings_from_features",
]
