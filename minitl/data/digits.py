"""Real handwritten digits as a folder of pictures, without a download.

scikit-learn carries 1,797 scanned digits of 43 people (UCI's "Optical Recognition of Handwritten
Digits"): 8 x 8 pixels with 17 shades. Enough to see a network learn, and for the tests to train on
something that is not made up.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from minitl.errors import UserError

SIDE = 32


def digit_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits as 32 x 32 gray pictures, (1797, 32, 32) uint8, and their labels, int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    size = SIDE, SIDE
    large = [Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR) for picture in small]
    return np.stack([np.asarray(picture) for picture in large]), digits.target.astype(np.int64)


def write_digits(folder: str | Path, labels_per_class: int | None = None, seed: int = 0) -> Path:
    """Write the digits as 32 x 32 gray PNGs and return the folder.

    labels_per_class: None writes FOLDER/<digit>/NNNN.png, all of them. A number writes a task with few
        labels: that many of each digit, drawn with `seed`, under FOLDER/train, as many again under
        FOLDER/val, the rest under FOLDER/test.

    A folder that holds exactly these files already is left as it is. The folder appears all at once,
    when every picture is written. Raises UserError where it exists with other contents.
    """
    folder = Path(folder)
    pictures, labels = digit_pictures()
    names = _names(labels, labels_per_class, seed)
    if folder.is_dir() and any(folder.iterdir()):
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        if there == set(names):
            return folder
        raise UserError(
            f"{folder} exists and holds something other than these digits; "
            "give a new folder, or remove it"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a new folder")

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, picture in zip(names, pictures, strict=True):
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        if folder.exists():
            folder.rmdir()  # empty; Windows does not rename over it
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _names(labels: np.ndarray, labels_per_class: int | None, seed: int) -> list[str]:
    """Return each digit's path inside the folder; NNNN is its number in scikit-learn's array."""
    if labels_per_class is None:
        return [f"{label}/{number:04}.png" for number, label in enumerate(labels)]
    smallest = int(np.bincount(labels).min())
    if not 1 <= labels_per_class < smallest / 2:
        raise UserError(
            f"labels_per_class must be from 1 to {(smallest - 1) // 2}, "
            f"so that some are left for validation and test; got {labels_per_class}"
        )
    rng = np.random.Generator(np.random.Philox(seed))
    part = ["test"] * len(labels)
    for label in range(10):
        drawn = rng.permutation(np.flatnonzero(labels == label)).tolist()
        for number in drawn[:labels_per_class]:
            part[number] = "train"
        for number in drawn[labels_per_class : 2 * labels_per_class]:
            part[number] = "val"
    return [f"{part[number]}/{label}/{number:04}.png" for number, label in enumerate(labels)]


__all__ = ["digit_pictures", "write_digits"]
