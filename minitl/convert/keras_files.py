"""Read the files of Keras without Keras and without running anything in them.

Three layouts, told apart by what is in them:

    legacy HDF5        the root, or /model_weights, has the attribute layer_names; the group of each layer
                       has weight_names, the paths of its arrays. A full model has the attribute
                       model_config at the root.
    Keras 3 weights    layers/conv2d_1/vars/0, ...: groups are named after the class of the layer and
                       counted; newer releases note the layer's name in the attribute `name` of `vars`.
    Keras 3 model      a zip archive of config.json, metadata.json and model.weights.h5

What lies where is found out by keras_survey.py in a process of its own; the numbers are then taken from
the file's bytes.
"""

import io
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitl.convert import zip_archives
from minitl.errors import WeightsFileError
from minitl.text import one_line, shown

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SURVEY = Path(__file__).with_name("keras_survey.py")
SURVEY_SECONDS = 60
MAX_CONFIG = 16 << 20
MAX_MEMBERS = 1000

_ZIP_WEIGHTS = "model.weights.h5"
_ZIP_CONFIG = "config.json"

# What an array is to its layer, at the end of its name: conv1/kernel:0, dense/bias, conv1_W_1:0 (Keras 1).
_ROLE = re.compile(
    r"(?:^|[/_])(kernel|bias|gamma|beta|moving_mean|moving_variance|running_mean|running_std|W|b)"
    r"(?:_\d+)?(?::\d+)?$",
    re.ASCII,
)
_MODERN = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # a variance, whatever Keras 1 called it
}
_ITEM = re.compile(r"(?:(?P<path>.+)/)?vars/(?P<number>\d{1,4})", re.ASCII)


@dataclass(frozen=True)
class Stored:
    """An array of the file: where, of which type (None: no plain number) and shape."""

    path: str
    dtype: str | None
    shape: tuple[int, ...]
    offset: int | None


@dataclass
class KerasLayer:
    """The weights of one layer.

    name: the layer's, or "" where the file does not tell. path: its group in a Keras 3 file, else "".
    arrays: in Keras' order. roles: kernel, bias, gamma, beta, moving_mean, moving_variance or "" for
    each, known in legacy files only. inner: what the arrays' own names call the layer: a model of one
    layer is listed by its own name.
    """

    name: str
    path: str
    arrays: list[Stored] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    inner: str = ""


@dataclass
class KerasFile:
    """What a file of Keras holds.

    config: the description of the network, or None in a file of weights alone. version: of Keras, or "".
    layers: those with weights, in the file's order. order: the names of all layers, with or without
    weights, as far as the file lists them. beside: arrays that belong to no layer.
    """

    path: Path
    config: dict[str, Any] | None
    version: str
    layers: list[KerasLayer]
    order: list[str]
    beside: list[str]
    _data: bytes

    def array(self, stored: Stored) -> np.ndarray:
        """Return the numbers of an array as float32. Raises WeightsFileError where they are none."""
        if stored.dtype not in ("<f2", "<f4", "<f8") or stored.offset is None:
            raise WeightsFileError(
                f"{self.path}: {shown(stored.path)} does not hold floating-point numbers of 16 to 64 bits; "
                "save the model in float32"
            )
        count = math.prod(stored.shape)
        array = np.frombuffer(self._data, stored.dtype, count, stored.offset).reshape(stored.shape)
        with np.errstate(over="ignore"):  # an infinity is reported next
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise WeightsFileError(
                f"{self.path}: {shown(stored.path)} holds NaN or infinities; its training had diverged"
            )
        return array


def is_keras(data: bytes) -> bool:
    """Return whether a file's bytes are HDF5 or a Keras 3 model, going by their contents."""
    if data.startswith(HDF5_MAGIC):
        return True
    if not data.startswith(zip_archives.MAGIC):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
    except zip_archives.DAMAGE:
        return False
    return _ZIP_CONFIG in names and any(name.startswith("model.weights.") for name in names)


def read_keras(path: str | os.PathLike[str], data: bytes) -> KerasFile:
    """Read a file of Keras, of any layout.

    data: the file's bytes. Raises WeightsFileError, in one line, for whatever is wrong with it.
    """
    path = Path(path)
    config_text = None
    version = ""
    if data.startswith(zip_archives.MAGIC):
        config_text, version, data = _unzipped(path, data)
    survey = _surveyed(path, data)
    attributes: dict[str, dict[str, Any]] = survey["attributes"]
    arrays = {entry["path"]: _stored(entry) for entry in survey["datasets"]}
    root = attributes[""]
    if config_text is None and isinstance(root.get("model_config"), str):
        config_text = root["model_config"]
    config = None if config_text is None else _config(path, config_text)
    bases = [b for b in ("", "model_weights") if _has_list(attributes.get(b, {}), "layer_names")]
    if len(bases) > 1:
        raise WeightsFileError(
            f"{path} lists its layers twice, at / and at /model_weights; delete one"
        )
    if bases:
        layers, order = _legacy_layers(path, bases[0], attributes, arrays)
        version = version or str(attributes[bases[0]].get("keras_version", ""))
    else:
        layers, order = _vars_layers(path, attributes, arrays), []
    if not layers:
        raise WeightsFileError(
            f"{path} is an HDF5 file without weights of Keras in it; give a file made by Keras' "
            "model.save or model.save_weights"
        )
    used = {stored.path for layer in layers for stored in layer.arrays}
    _check_room(path, [arrays[name] for name in used], len(data))
    beside = [name for name in arrays if name not in used]
    return KerasFile(path, config, version, layers, order, beside, data)


# ---------------------------------------------------------------------------- containers


def _unzipped(path: Path, data: bytes) -> tuple[str, str, bytes]:
    """Return config.json, the version of Keras and model.weights.h5 of a Keras 3 model."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
                raise WeightsFileError(
                    f"{path} has too many members, or two of one name; save it anew"
                )
            if _ZIP_WEIGHTS not in names:
                raise WeightsFileError(
                    f"{path} is a model of Keras without {_ZIP_WEIGHTS}: weights split into several files, "
                    "or not in HDF5, are not supported; save it anew with model.save('model.keras')"
                )
            config = _member(archive, _ZIP_CONFIG, MAX_CONFIG, path).decode()
            # Weights hardly compress. Keras does not try; others may have.
            weights = _member(archive, _ZIP_WEIGHTS, 8 * len(data) + (1 << 20), path)
            version = ""
            if "metadata.json" in names:
                metadata = _json(_member(archive, "metadata.json", MAX_CONFIG, path).decode())
                version = str(metadata.get("keras_version", ""))[:40]
    except WeightsFileError:
        raise
    except (*zip_archives.DAMAGE, RecursionError) as error:
        raise WeightsFileError(
            f"{path} is damaged ({one_line(error, 160)}); get it anew"
        ) from error
    return config, version, weights


def _member(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    with archive.open(name) as member:
        content = member.read(limit + 1)
    if len(content) > limit:
        raise WeightsFileError(
            f"{path}: {name} unpacks to more than {limit:,} bytes; refused as a zip bomb"
        )
    return content


def _surveyed(path: Path, data: bytes) -> dict[str, Any]:
    """Run keras_survey.py on the bytes of an HDF5 file."""
    if not data.startswith(HDF5_MAGIC):
        raise WeightsFileError(f"{path} is damaged: its weights are no HDF5 file; get it anew")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(SURVEY)],
            input=data,
            capture_output=True,
            timeout=SURVEY_SECONDS,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WeightsFileError(
            f"{path} is damaged: reading it did not end within {SURVEY_SECONDS} seconds; get it anew"
        ) from None
    except OSError as error:
        raise WeightsFileError(
            f"cannot read {path}: cannot start {sys.executable} ({error})"
        ) from error
    if done.returncode:
        if b"ModuleNotFoundError" in done.stderr:
            raise WeightsFileError(f"cannot read {path}: {_last_line(done.stderr)}; install h5py")
        raise WeightsFileError(f"{path} is damaged: the HDF5 library broke off on it; get it anew")
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise WeightsFileError(f"{path} {shown(result['error'])}; {result['advice']}")
    return result


def _last_line(output: bytes) -> str:
    return shown((output.decode(errors="replace").strip().splitlines() or [""])[-1])


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        if len(text) > MAX_CONFIG:
            raise ValueError(f"more than {MAX_CONFIG} characters")
        return _json(text)
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(
            f"{path} has a damaged model configuration ({one_line(error, 160)}); get it anew"
        ) from error


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


# ---------------------------------------------------------------------------- arrays


def _stored(entry: Mapping[str, Any]) -> Stored:
    return Stored(entry["path"], entry["dtype"], tuple(entry["shape"]), entry["offset"])


def _check_room(path: Path, arrays: Iterable[Stored], size: int) -> None:
    """Check that the arrays lie within the file, and are not more than it can hold."""
    total = 0
    for stored in arrays:
        if stored.dtype is None:
            continue
        nbytes = math.prod(stored.shape) * np.dtype(stored.dtype).itemsize
        total += nbytes
        if stored.offset is None and nbytes:
            raise WeightsFileError(
                f"{path}: {shown(stored.path)} has the shape {stored.shape} but was never written; "
                "save the model anew"
            )
        if (stored.offset or 0) + nbytes > size or total > size:
            raise WeightsFileError(
                f"{path}: {shown(stored.path)} claims the shape {stored.shape}, more than the file holds; "
                "the file is cut off or damaged: get it anew"
            )


def _has_list(attributes: Mapping[str, Any], name: str) -> bool:
    return name in attributes or f"{name}0" in attributes


def _list(path: Path, attributes: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Return a list of texts, put together from its parts."""
    parts = [attributes[name]] if name in attributes else []
    while f"{name}{len(parts)}" in attributes and name not in attributes:
        parts.append(attributes[f"{name}{len(parts)}"])
    if not parts or not all(isinstance(part, list) for part in parts):
        raise WeightsFileError(f"{path}: {shown(where)} has no list {name}; get the file anew")
    return [text for part in parts for text in part]


def _legacy_layers(
    path: Path,
    base: str,
    attributes: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, Stored],
) -> tuple[list[KerasLayer], list[str]]:
    """Return the layers with weights, those of nested models on their own, and all names in order."""
    order = _list(path, attributes[base], "layer_names", base or "/")
    if len(set(order)) < len(order):
        twice = next(name for name in order if order.count(name) > 1)
        raise WeightsFileError(f"{path} lists the layer {shown(twice)} twice; save the model anew")
    layers: dict[str, KerasLayer] = {}
    for group in order:
        place = f"{base}/{group}" if base else group
        names = _list(path, attributes.get(place, {}), "weight_names", place)
        roles = [_role(name) for name in names]
        nested = len(set(roles)) < len(roles)
        for name, role in zip(names, roles, strict=True):
            stored = arrays.get(f"{place}/{name}")
            if stored is None:
                raise WeightsFileError(
                    f"{path} lists {shown(f'{place}/{name}')} but does not hold it"
                )
            owner = _owner(name, role) if nested else group
            layer = layers.setdefault(owner, KerasLayer(owner, "", inner=_owner(name, role)))
            if role in layer.roles:
                raise WeightsFileError(
                    f"{path} holds two candidates for the {role or 'weight'} of layer {shown(owner)}: "
                    f"{shown(name)} is the second; two layers of nested models share a name: rename one"
                )
            layer.arrays.append(stored)
            layer.roles.append(role)
    return list(layers.values()), order


def _role(name: str) -> str:
    found = _ROLE.search(name)
    return _MODERN.get(found[1], found[1]) if found else ""


def _owner(name: str, role: str) -> str:
    """Return the layer that an array of a nested model belongs to: resnet/conv1/kernel:0 is conv1's."""
    parent, slash, last = name.rpartition("/")
    if slash:
        return parent.rpartition("/")[2]
    found = _ROLE.search(last)
    return last[: found.start()] if role and found else last


def _vars_layers(
    path: Path, attributes: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, Stored]
) -> list[KerasLayer]:
    """Return the layers of the Keras 3 layout; of some, as dropout, the arrays are counters."""
    found: dict[str, dict[int, Stored]] = {}
    for name, stored in arrays.items():
        item = _ITEM.fullmatch(name)
        group = item["path"] if item else None
        if item and group and "optimizer" not in group.split("/")[0]:
            found.setdefault(group, {})[int(item["number"])] = stored
    layers = []
    for group, numbered in found.items():
        if sorted(numbered) != list(range(len(numbered))):
            raise WeightsFileError(
                f"{path}: arrays of {shown(group)} are missing; get the file anew"
            )
        name = attributes.get(f"{group}/vars", {}).get("name", "")
        if not group.endswith("seed_generator"):
            layer = KerasLayer(str(name), group, [numbered[i] for i in range(len(numbered))])
            layer.roles = [""] * len(numbered)
            layers.append(layer)
    return layers


__all__ = ["KerasFile", "KerasLayer", "Stored", "is_keras", "read_keras"]
