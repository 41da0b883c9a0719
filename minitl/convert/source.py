"""What a reader of some format hands to the conversion: weights by minitl's names, and of which network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Request:
    """What the user said about the file.

    arch, arch_options: the network; None to recognise it. entry: the key that holds the weights, None to
    look for it. preprocessing: how pictures are prepared, a name of `presets.PRESETS` or some fields;
    None for what the file says.
    """

    arch: str | None = None
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    entry: str | None = None
    preprocessing: str | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, not yet read.

    dtype: float32, float16, bfloat16, float64, or something that cannot be a weight. read: returns the
    numbers in that shape (bfloat16 as float32), or raises WeightsFileError.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def reshaped(self, shape: tuple[int, ...]) -> "StoredArray":
        """Return the same numbers in another shape of as many."""
        return StoredArray(shape, self.dtype, lambda: self.read().reshape(shape))


@dataclass
class Source:
    """The weights in a file.

    arch, arch_options: as `models.create` takes them. arrays: by the network's names, filters as
    (out, in, height, width). ignored: names that play no part, with the reason. notes: lines for the
    reader: what was recognised, assumed, changed. preprocessing, class_names, license: None where the file
    does not say; preprocessing_from says in words where the preprocessing came from.
    """

    arch: str
    arch_options: dict[str, Any]
    arrays: dict[str, StoredArray]
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] | None = None
    preprocessing_from: str = ""
    class_names: list[str] | None = None
    license: str | None = None


__all__ = ["Request", "Source", "StoredArray"]
