"""What a weights file holds, and how it differs from another."""

from pathlib import Path
from typing import Any

import numpy as np

from minitl import hdf5

_FIELDS = ("arch", "arch_options", "class_names", "preprocessing", "source", "license")


def describe(path: Path, keys: bool = False) -> dict[str, Any]:
    """Return what a weights file says of itself, ready for JSON; `keys` adds its arrays.

    Raises WeightsFileError for a file that is not good.
    """
    contents = hdf5.read(path)
    parameters = sum(a.size for name, a in contents.state.items() if ".running_" not in name)
    found: dict[str, Any] = {
        "file": str(path),
        "arch": contents.arch,
        "arch_options": contents.arch_options,
        "parameters": parameters,
        "class_names": contents.class_names,
        "preprocessing": contents.preprocessing,
        "source": contents.source,
        "source_sha256": contents.source_sha256,
        "license": contents.license,
        "digest": contents.digest,
        "golden": contents.golden is not None,
        "checkpoint_epoch": None if contents.progress is None else contents.progress.get("epoch"),
        "appended_bytes": contents.appended,
    }
    if keys:
        found["arrays"] = {name: list(array.shape) for name, array in contents.state.items()}
    return found


def compare(path: Path, other: Path) -> dict[str, Any]:
    """Return how two weights files differ, ready for JSON.

    attributes: name -> [here, there] where they differ. only_here, only_there: names of arrays.
    misshapen: name -> [shape here, shape there]. equal: number of arrays that are equal to the bit.
    different: name -> largest absolute difference, and that as a share of the largest value here
    (None where one of them is NaN or infinite).

    Raises WeightsFileError for a file that is not good.
    """
    here, there = hdf5.read(path), hdf5.read(other)
    attributes = {
        name: [getattr(here, name), getattr(there, name)]
        for name in _FIELDS
        if getattr(here, name) != getattr(there, name)
    }
    common = [name for name in here.state if name in there.state]
    shapes = {name: [here.state[name].shape, there.state[name].shape] for name in common}
    alike = [name for name in common if shapes[name][0] == shapes[name][1]]
    different = {
        name: _difference(here.state[name], there.state[name])
        for name in alike
        if here.state[name].tobytes() != there.state[name].tobytes()
    }
    return {
        "files": [str(path), str(other)],
        "attributes": attributes,
        "only_here": [name for name in here.state if name not in there.state],
        "only_there": [name for name in there.state if name not in here.state],
        "misshapen": {
            name: [list(shape) for shape in both]
            for name, both in shapes.items()
            if both[0] != both[1]
        },
        "equal": len(alike) - len(different),
        "different": different,
    }


def _difference(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    with np.errstate(all="ignore"):
        largest = float(np.abs(a.astype(np.float64) - b).max())
        scale = float(np.abs(a).max())
    finite = np.isfinite(largest)
    return {
        "max_abs": largest if finite else None,
        "relative": largest / scale if finite and scale > 0 else None,
    }


__all__ = ["compare", "describe"]
