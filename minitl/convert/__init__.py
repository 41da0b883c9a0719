"""Bring weights over from other programs: PyTorch checkpoints to the HDF5 weights file.

    from minitl.convert import convert

    print(convert("resnet18.pth", "resnet18.h5", arch="resnet18"))

Neither PyTorch nor trust is needed: see pickles.py.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitl.convert.pickles import TensorRecord
from minitl.convert.report import ConversionError, Report, match
from minitl.convert.state import find_state
from minitl.convert.torch_files import TorchFile, read_bytes, read_torch
from minitl.errors import UserError, WeightsFileError

if TYPE_CHECKING:
    from minitl.models import Classifier

_FLOATS = ("float32", "float16", "bfloat16", "float64")


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    arch: str,
    arch_options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    source: str | None = None,
    license: str | None = None,
    entry: str | None = None,
    drop_unexpected: bool = False,
    overwrite: bool = False,
) -> Report:
    """Convert a PyTorch checkpoint to a weights file; return what became of each name.

    src: a file of torch.save with a state dict in it. dst: the weights file to write.
    arch, arch_options: the network, as for `minitl.models.create`; the number of classes is read off the
        weights. class_names: name of each output. preprocessing: None for what is
        usual for the network.
    source, license: recorded; the source is the file's name if None.
    entry: the checkpoint's key that holds the weights, as "model_ema"; None to look for it.
    drop_unexpected: leave out what the network has no place for, instead of refusing.
    overwrite: replace `dst` if it exists.

    Raises ConversionError, with all names that do not fit, and UserError for whatever else is wrong.
    """
    # h5py and the networks only now: `minitl convert --help` needs neither.
    from minitl import hdf5

    src, dst = Path(src), Path(dst)
    if dst.exists() and not overwrite:
        raise UserError(f"{dst} exists; choose another name, or or replace it with --overwrite")
    data = read_bytes(src)
    file = read_torch(src, data)
    found = find_state(file.content, str(src), entry)
    model = _network(arch, arch_options or {}, found.tensors)
    expected = {name: array.shape for name, array in model.state_dict().items()}
    classes = model.num_classes
    shapes = {name: record.shape for name, record in found.tensors.items()}
    report = match(expected, shapes, f"{src.name} as {arch}")
    report.ignored = found.ignored
    report.notes = _notes(found.entry, found.prefix, found.beside)
    if drop_unexpected:
        report.ignored |= dict.fromkeys(report.unexpected, "no place for it in the network")
        report.unexpected = []
    if not report.complete:
        raise ConversionError(f"{src} does not fit {arch}:\n{report}", report)
    if class_names is not None and len(class_names) != classes:
        raise UserError(
            f"{len(class_names)} class names were given, but {src} distinguishes {classes} classes"
        )
    checked = model.preprocessing if preprocessing is None else _checked(preprocessing)
    state = _weights(file, found.tensors, report)
    hdf5.write(
        dst,
        hdf5.WeightsFile(
            arch=arch,
            arch_options=model.arch_options,
            state=state,
            class_names=None if class_names is None else list(class_names),
            preprocessing=checked,
            source=src.name if source is None else source,
            source_sha256=hashlib.sha256(data).hexdigest(),
            license=license or "",
        ),
    )
    return report


def _network(
    arch: str, options: Mapping[str, Any], tensors: Mapping[str, TensorRecord]
) -> "Classifier":
    """Make the network with a head as wide as the file's."""
    from minitl.models.saving import empty_model

    model = empty_model(arch, options, "--arch")
    head = tensors.get(f"{model.head_name}.weight")
    if head is not None and head.shape and head.shape[0] > 0:
        model.replace_head(head.shape[0])
    return model


def _notes(entry: str, prefix: str, beside: Sequence[str]) -> list[str]:
    notes = []
    if entry:
        notes.append(f"weights found under {entry!r}")
    if prefix:
        notes.append(f"prefix {prefix!r} taken away")
    if beside:
        more = ", ..." if len(beside) > 8 else ""
        notes.append(f"beside the weights, not used: {', '.join(beside[:8])}{more}")
    return notes


def _weights(
    file: TorchFile, tensors: Mapping[str, TensorRecord], report: Report
) -> dict[str, np.ndarray]:
    """Return the matched tensors as float32."""
    state = {}
    rounded = 0
    for name in report.matched:
        record = tensors[name]
        if record.dtype not in _FLOATS:
            raise WeightsFileError(
                f"{file.path}: {name} is {record.dtype}; quantised and complex networks are not supported"
            )
        array = file.array(record)
        rounded += record.dtype == "float64"
        with np.errstate(over="ignore"):  # an infinity is reported below
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise WeightsFileError(
                f"{file.path}: {name} holds NaN or infinities (as float32); its training had diverged"
            )
        state[name] = array
    if rounded:
        report.notes.append(f"{rounded} arrays rounded from float64 to float32")
    return state


def _checked(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    from minitl.data.preprocessing import Preprocessing

    return Preprocessing.from_dict(preprocessing).to_dict()


__all__ = [
    "ConversionError",
    "Report",
    "TorchFile",
    "convert",
    "find_state",
    "match",
    "read_torch",
]
