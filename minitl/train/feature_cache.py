"""Features of frozen layers, computed once and kept on disk for later epochs and later runs.

The cache is a folder with one folder for each thing that computes features: the frozen layers' names and
weights, what decodes pictures, the preprocessing, the kind of numbers, the kernels' sources, and the release
of minitl. All this goes into the folder's name, so features of other weights or another preprocessing are
never found. Inside, a row is found by its key, made of the picture file's content; a file that changes has
another key. Nothing is looked up by name or date.

Folders hold files that appear whole and never change (see feature_file.py), so any number of processes
may use the cache at once. Two that compute the same at the same time both add a file; one of them is read.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitl.backend import kernel_sources, to_host
from minitl.data.dataset import Sample
from minitl.data.decode import decoder
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.feature_file import FeatureFile, write
from minitl.files import user_folder
from minitl.models import Classifier
from minitl.train.config import AUTO, OFF, Config
from minitl.train.console import say

FILE_BYTES = 256 << 20  # of a file, about: what an interruption can cost
LEFTOVER_SECONDS = 24 * 3600  # an unfinished file of this age is nobody's any more
OF_HEAD = ("num_classes", "head", "tasks")  # options that say nothing of what lies before the head


def cache_folder() -> Path:
    """Return where features are kept: in the folder $MINITL_CACHE, else in the user's cache folder."""
    return user_folder() / "features"


def open_cache(config: Config, model: Classifier, cut: int) -> "FeatureCache | None":
    """Return the cache for a network's first `cut` stages that the settings ask for, if they do."""
    if not cut or config.feature_cache == OFF:
        return None
    folder = cache_folder() if config.feature_cache == AUTO else Path(config.feature_cache)
    kind = config.device.split(":")[0]
    numbers = {"device": kind, "precision": config.precision, "conv": config.conv}
    numbers["kernels"] = kernel_sources(kind)
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    return FeatureCache(folder, describe(model, cut, preprocessing, numbers))


def describe(
    model: Classifier, cut: int, preprocessing: Preprocessing, numbers: dict[str, str]
) -> dict[str, Any]:
    """Return all that the features of a network's first `cut` stages depend on, beside the pictures.

    numbers: how they are computed: device, precision, algorithm, kernels.
    """
    stages = model.stages()[:cut]
    return {
        "arch": model.arch,
        "cut": stages[-1].name,
        "weights": weights_digest(model, cut),
        "decoder": decoder(),
        "preprocessing": preprocessing.to_dict(),
        "numbers": numbers,
        "minitl": version("minitl"),
    }


def weights_digest(model: Classifier, cut: int) -> str:
    """Return the SHA-256 of all weights and statistics in the first `cut` stages, and of their options."""
    stages = model.stages()[:cut]
    prefixes = tuple(f"{name}." for stage in stages for name in stage.modules)
    options = {k: v for k, v in model.arch_options.items() if k not in OF_HEAD}
    digest = hashlib.sha256(json.dumps([model.arch, options, stages[-1].name]).encode())
    for name, array in model.state_dict().items():
        if name.startswith(prefixes):
            array = np.ascontiguousarray(to_host(array))
            digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


class FeatureCache:
    """The rows of one description in a cache folder.

    Raises UserError where the folder cannot be made.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.about = about
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = folder / name
        self._files: list[FeatureFile] = []
        self._places: dict[bytes, tuple[int, int]] = {}  # key: number of the file, row in it
        self._seen: set[Path] = set()
        self._look()

    def keys_of(self, root: Path, samples: Sequence[Sample], workers: int) -> list[bytes]:
        """Return what stands for each sample: the SHA-256 of its file."""
        return file_digests(root, samples, workers)

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Return the indices of keys (N, 32) that have no row, each different key once, ascending."""
        wanted: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key.tobytes() not in self._places:
                wanted.setdefault(key.tobytes(), index)
        return np.array(sorted(wanted.values()), np.int64)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of keys (n, 32) as float32 (n, ...); KeyError for one that is missing."""
        places = np.array([self._places[key.tobytes()] for key in keys], np.int64)
        shape = self._files[places[0, 0]].shape
        found = np.empty((len(keys), *shape), np.float32)
        for number in np.unique(places[:, 0]):
            here = places[:, 0] == number
            found[here] = self._files[number].rows(places[here, 1])
        return found

    def add(self, keys: np.ndarray, shape: tuple[int, ...], batches: Iterator[np.ndarray]) -> None:
        """Store rows that come in batches, in the order of the keys (N, 32).

        Raises UserError where the disk is full; files that were complete by then stay. Also where another
        process has deleted them since.
        """
        rows = max(1, FILE_BYTES // _row_bytes(shape))
        rest = Rebatched(batches)
        for start in range(0, len(keys), rows):
            part = keys[start : start + rows]
            self._make_folder()  # each time: whoever clears the cache removes empty folders
            path = self.folder / f"{secrets.token_hex(8)}.h5"
            write(path, self.about, part, shape, rest.take(len(part)))
        self._look()
        if len(self.missing(keys)):
            raise UserError(
                f"features just written to {self.folder} are gone; is the cache being cleared? Start again "
                "after that"
            )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {self.folder} for features ({error.strerror}); choose another "
                "with --feature-cache DIR, or do without: --no-feature-cache"
            ) from None

    def room(self, rows: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the bytes that so many rows take, and those that are free."""
        existing = self.folder
        while not existing.exists():
            existing = existing.parent
        return rows * _row_bytes(shape), shutil.disk_usage(existing).free

    def _look(self) -> None:
        """Take note of the files that have been added."""
        for path in sorted(self.folder.glob("*.h5")):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                file = FeatureFile(path)
            except UserError as error:
                say(f"  not used: {error}")
                continue
            if file.about != self.about or (self._files and file.shape != self._files[0].shape):
                say(f"  not used: {path} is not what its folder's name says")
                continue
            number = len(self._files)
            self._files.append(file)
            for row, key in enumerate(file.keys):
                self._places.setdefault(key.tobytes(), (number, row))


class Rebatched:
    """Hands out a stream of rows in pieces of a given length, each as an iterator of batches."""

    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self._batches = batches
        self._rest: np.ndarray | None = None

    def take(self, count: int) -> Iterator[np.ndarray]:
        """Yield the next `count` rows."""
        while count:
            batch = next(self._batches) if self._rest is None else self._rest
            self._rest = batch[count:] if len(batch) > count else None
            yield batch[:count]
            count -= min(count, len(batch))


def _row_bytes(shape: Sequence[int]) -> int:
    return int(4 * np.prod(shape, dtype=np.int64))


def file_digests(root: Path, samples: Sequence[Sample], workers: int) -> list[bytes]:
    """Return the SHA-256 of each sample's file."""

    def digest(sample: Sample) -> bytes:
        with (root / sample.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor(workers, thread_name_prefix="minitl-digest") as executor:
        return list(executor.map(digest, samples))


class Kept(NamedTuple):
    """One folder of the cache, as `minitl cache --list` shows it."""

    folder: Path
    about: dict[str, Any]
    pictures: int
    bytes: int
    used: float


def kept(folder: Path) -> list[Kept]:
    """Return what a cache folder holds, the latest first."""
    found = []
    for inner in sorted(_folders(folder)):
        about: dict[str, Any] = {}
        pictures = 0
        for path in inner.glob("*.h5"):
            try:
                file = FeatureFile(path)
            except UserError:
                continue
            about, pictures = file.about, pictures + len(file)
        stats = [found for _, found in _files(inner)]
        size, used = sum(s.st_size for s in stats), max((s.st_mtime for s in stats), default=0.0)
        found.append(Kept(inner, about, pictures, size, used))
    return sorted(found, key=lambda one: -one.used)


def clear(folder: Path, tell: Callable[[str], object]) -> int:
    """Delete everything that a cache folder holds and nothing else; return how many bytes that were.

    What another process is writing stays.
    """
    freed = 0
    young = time.time() - LEFTOVER_SECONDS
    for one in kept(folder):
        for path, stat in _files(one.folder):
            # Whole files, and what a killed process left behind.
            if path.suffix == ".h5" or (path.suffix == ".tmp" and stat.st_mtime < young):
                path.unlink(missing_ok=True)
                freed += stat.st_size
        with contextlib.suppress(FileNotFoundError):  # another process clears as well
            if not any(one.folder.iterdir()):
                one.folder.rmdir()
            else:
                tell(f"{one.folder} holds files of others, or unfinished ones, which stay")
    return freed


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files in a folder; not those that another process deletes meanwhile."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found.append((path, path.stat()))
    return found


def _folders(folder: Path) -> list[Path]:
    """Return the cache's own folders, which have names of 32 hexadecimal digits."""
    if not folder.is_dir():
        return []
    digits = set("0123456789abcdef")
    return [
        inner
        for inner in folder.iterdir()
        if inner.is_dir() and len(inner.name) == 32 and set(inner.name) <= digits
    ]


__all__ = [
    "FeatureCache",
    "Kept",
    "Rebatched",
    "cache_folder",
    "clear",
    "describe",
    "file_digests",
    "kept",
    "open_cache",
    "weights_digest",
]
