"""Features on disk: what the frozen part of a network computed for pictures, as HDF5.

    attributes     format "minitl features", format_version "1", about (JSON)
    features       (N, ...) float32: a row for each picture, (F,) behind a whole trunk, else (H, W, C)
    keys           (N, 32) uint8: which picture a row is of, the SHA-256 of its file (for a varied view:
                   of that and of what varies it)
    checksums      (N,) uint32: the CRC-32 of each row's bytes
    labels         (N,) int64: class numbers                        } in files made for people
    paths, parts   (N,) UTF-8: relative to DATA; train, val, test   } by `minitl features`
    sizes, times   (N,) int64: what the picture's file was like     }
    class_names    (C,) UTF-8                                       }

`about` names the network, where it was cut, the SHA-256 of the weights before the cut, the preprocessing.
All but the features has HDF5's own checksum too. Features lie in one piece, so that reading a batch
touches that batch's bytes alone, however large the file. They are written in pieces too: memory holds a
batch, never all of them. Files appear whole or not at all and are never changed afterwards.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minitl.errors import UserError
from minitl.files import replaced_atomically
from minitl.text import one_line

FORMAT, FORMAT_VERSION = "minitl features", "1"
KEY_BYTES = 32
_NUMBERS = ("labels", "sizes", "times")  # the columns that are no texts
# What h5py raises on a damaged file, depending on the byte that is wrong.
_DAMAGE = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, MemoryError)


def write(
    path: str | os.PathLike[str],
    about: Mapping[str, Any],
    keys: np.ndarray,
    shape: tuple[int, ...],
    batches: Iterable[np.ndarray],
    columns: Mapping[str, np.ndarray | Sequence[str]] | None = None,
) -> None:
    """Write a file of features, whole or not at all.

    about: JSON values. keys: (N, 32) uint8. shape: of a row. batches: float32 arrays (n, *shape), N rows
    in all, in the order of the keys. columns: labels, paths and what else is said of each row.

    Raises UserError where the system refuses, ValueError where there are not N rows.
    """
    with replaced_atomically(path) as temporary:
        # HDF5 1.10's own format: its internal records carry checksums.
        with h5py.File(temporary, "x", libver=("v110", "v110")) as file:
            for name, text in _texts(about).items():
                kind = h5py.string_dtype("utf-8", max(1, len(text)))
                file.attrs.create(name, np.array(text, kind), dtype=kind)
            for name, values in (columns or {}).items():
                file.create_dataset(name, data=_as_stored(values), fletcher32=True)
            file.create_dataset("keys", data=keys, fletcher32=True)
            features = file.create_dataset("features", (len(keys), *shape), "<f4")
            checksums = np.zeros(len(keys), "<u4")
            done = 0
            for batch in batches:
                batch = np.ascontiguousarray(batch, "<f4")
                if done + len(batch) > len(keys):
                    raise ValueError(f"more than {len(keys)} rows of features")
                features[done : done + len(batch)] = batch
                checksums[done : done + len(batch)] = [zlib.crc32(row) for row in batch]
                done += len(batch)
            if done != len(keys):
                raise ValueError(f"{done} rows of features for {len(keys)} keys")
            file.create_dataset("checksums", data=checksums, fletcher32=True)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())


def _texts(about: Mapping[str, Any]) -> dict[str, bytes]:
    texts = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": json.dumps(about)}
    return {name: text.encode() for name, text in texts.items()}


def _as_stored(values: np.ndarray | Sequence[str]) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    encoded = [text.encode("utf-8", "surrogateescape") for text in values]
    size = max((len(text) for text in encoded), default=1)
    return np.array(encoded, h5py.string_dtype("utf-8", max(size, 1)))


class FeatureFile:
    """A file of features, open for reading.

    about: what it says of itself. keys: (N, 32) uint8. shape: of a row.

    Raises UserError for a file that is none, is damaged or claims more than it holds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist; make it with minitl features")
        try:
            with h5py.File(self.path, "r", locking="best-effort") as file:
                if file.attrs.get("format") != FORMAT.encode():
                    raise UserError(f"{path} is no file of features; make one with minitl features")
                version = _text(file, "format_version")
                if version != FORMAT_VERSION:
                    raise UserError(
                        f"{path} has version {version[:20]!r} of the features format; this release reads "
                        f"version {FORMAT_VERSION}"
                    )
                self.about: dict[str, Any] = json.loads(_text(file, "about"))
                self.keys = self._small(file, "keys", "|u1", (KEY_BYTES,))
                self._checksums = self._small(file, "checksums", "<u4", ())
                self._features = self._mapped(_dataset(file, "features"))
        except UserError:
            raise
        except _DAMAGE as error:
            raise self._damaged(one_line(error)) from error
        if not isinstance(self.about, dict) or not (
            len(self.keys) == len(self._checksums) == len(self._features) > 0
        ):
            raise UserError(f"{path} is damaged (its parts do not agree); make it again")
        self.shape: tuple[int, ...] = self._features.shape[1:]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return rows as float32 (n, *shape); UserError where the disk gave back something else."""
        rows: np.ndarray = self._features[indices]
        found = np.array([zlib.crc32(row) for row in rows], np.uint32)
        if not np.array_equal(found, self._checksums[indices]):
            raise UserError(
                f"{self.path} is damaged: features have not the checksum they were written with; remove "
                "the file, or empty the cache with minitl cache --clear, and start again"
            )
        return rows

    def column(self, name: str) -> np.ndarray | list[str]:
        """Return labels, sizes or times, (N,) int64; or paths, parts or class_names, (N,) or (C,) texts.

        Raises UserError for a file without, or whose column is not that.
        """
        try:
            with h5py.File(self.path, "r", locking="best-effort") as file:
                if name not in file:
                    raise UserError(
                        f"{self.path} has no {name}; it was not made by minitl features, make one"
                    )
                values = self._small(file, name, "<i8" if name in _NUMBERS else "S", ())
        except UserError:
            raise
        except _DAMAGE as error:
            raise self._damaged(one_line(error)) from error
        if name != "class_names" and len(values) != len(self):
            raise self._damaged(f"{name} has {len(values)} entries for {len(self)} rows")
        if name in _NUMBERS:
            return values
        return [value.decode("utf-8", "surrogateescape") for value in values]

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is damaged ({reason}); make it again")

    def _small(self, file: h5py.File, name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of rows of this shape. kind: its type, or "S" for texts of any fixed length."""
        dataset = _dataset(file, name)
        fits = dataset.dtype.kind == "S" if kind == "S" else dataset.dtype == np.dtype(kind)
        if not fits or len(dataset.shape) != 1 + len(shape) or dataset.shape[1:] != shape:
            raise ValueError(f"{name} has shape {dataset.shape}, {dataset.dtype}")
        if math.prod(dataset.shape) * dataset.dtype.itemsize > self.path.stat().st_size:
            raise ValueError(f"{name} claims more than the file holds")
        return np.asarray(dataset[()])

    def _mapped(self, dataset: Any) -> np.ndarray:
        """Return the features as memory that the system reads from the file where it is asked for."""
        offset = dataset.id.get_offset()
        size = math.prod(dataset.shape) * 4
        if dataset.dtype != np.dtype("<f4") or offset is None or dataset.external:
            raise ValueError("features are not float32 in one piece")
        if offset + size > self.path.stat().st_size:
            raise ValueError("features are cut off")
        return np.memmap(self.path, "<f4", "r", offset, dataset.shape)


def _text(file: h5py.File, name: str) -> str:
    """Return a text of fixed length that the file has as an attribute."""
    value = file.attrs[name]
    if not isinstance(value, bytes):  # bytes(number) would be so many zeros
        raise ValueError(f"{name} is no text")
    return value.decode()


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ValueError(f"{name} is no array")
    return found


__all__ = ["KEY_BYTES", "FeatureFile", "write"]
