"""Bring weights over from other programs: PyTorch, safetensors and Keras to the HDF5 weights file.

    from minitl.convert import convert

    print(convert("resnet18.pth", "resnet18.h5"))

Neither those programs nor trust is needed: see pickles.py and safetensors_files.py.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitl.convert.keras_files import is_keras
from minitl.convert.named import from_safetensors, from_torch
from minitl.convert.report import ConversionError, Report, match
from minitl.convert.safetensors_files import is_safetensors
from minitl.convert.source import Request, Source, StoredArray
from minitl.convert.state import PREFIXES, find_state
from minitl.convert.torch_files import TorchFile, read_bytes, read_torch
from minitl.errors import UserError, WeightsFileError
from minitl.tasks import output_names
from minitl.text import shown

if TYPE_CHECKING:
    from minitl.models import Classifier

_FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Reader:
    """One format: whether a file's bytes are of it, and how it is read."""

    format: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path, bytes, Request], Source]


def _from_keras(path: Path, data: bytes, request: Request) -> Source:
    from minitl.convert.keras import from_keras  # needs the networks

    return from_keras(path, data, request)


# The first that recognises a file reads it; what nobody recognises is explained by the last.
READERS = (
    Reader("safetensors", is_safetensors, from_safetensors),
    Reader("Keras", is_keras, _from_keras),
    Reader("PyTorch", lambda data: True, from_torch),
)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: str | Mapping[str, Any] | None = None,
    source: str | None = None,
    license: str | None = None,
    entry: str | None = None,
    new_head: int | None = None,
    drop_unexpected: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Report:
    """Convert somebody's weights to a weights file; return what became of each name.

    src: a file of torch.save with a state dict in it, a safetensors file, or a model or weights of Keras;
        which one is told from its contents. dst: the weights file to write.
    arch, arch_options: the network, as for `minitl.models.create`; None to recognise it by its weights,
        and options given then go before what was recognised. The number of classes is read off the weights,
        unless the options say tasks.
    class_names: name of each output; tasks name theirs.
    preprocessing: the fields that differ from what the file says, or else from what is usual for the network;
        or the name of one of `presets.PRESETS`.
    source, license: recorded; the source is the file's name if None.
    entry: the checkpoint's key that holds the weights, as "model_ema"; None to look for it.
    new_head: leave the file's head out, if it has one, and put a random one for so many classes.
    drop_unexpected: leave out what the network has no place for, instead of refusing.
    overwrite: replace `dst` if it exists. dry_run: do all but write.

    Raises ConversionError, with all names that do not fit, and UserError for whatever else is wrong.
    """
    # h5py and the networks only now: `minitl convert --help` needs neither.
    from minitl import hdf5
    from minitl.convert.golden import make_golden

    src, dst = Path(src), Path(dst)
    if dst.exists() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst} is the file to be converted; choose another name for the result")
    if dst.exists() and not overwrite:
        raise UserError(f"{dst} exists; choose another name, or replace it with --overwrite")
    data = read_bytes(src)
    found = read_source(src, data, Request(arch, arch_options or {}, entry, preprocessing))
    model = _network(found, new_head, "--arch" if arch else str(src), len(data))
    report = _matched(model, found, src, new_head, drop_unexpected)
    names = found.class_names if class_names is None and new_head is None else class_names
    if model.tasks:
        names = _names_of_tasks(model, class_names)
    if names is not None:
        _check_class_names(names, model.num_classes, src)
    report.preprocessing, report.preprocessing_from = _preprocessing(preprocessing, found, model)
    state = _weights(src, found.arrays, report)
    own = model.state_dict()
    state |= {name: own[name] for name in report.reinitialised}
    report.arch, report.arch_options, report.target = model.arch, model.arch_options, str(dst)
    report.classes = (
        f"{model.num_classes}: {', '.join(names) if names is not None else _unnamed(model)}"
    )
    if dry_run:
        return report
    contents = hdf5.WeightsFile(
        arch=model.arch,
        arch_options=model.arch_options,
        state=state,
        class_names=None if names is None else list(names),
        preprocessing=report.preprocessing,
        source=src.name if source is None else source,
        source_sha256=hashlib.sha256(data).hexdigest(),
        license=(found.license or "") if license is None else license,
    )
    contents.golden = make_golden(contents, str(src))
    hdf5.write(dst, contents)
    report.written = True
    return report


def read_source(path: Path, data: bytes, request: Request) -> Source:
    """Return the weights in a file of any known format; WeightsFileError says what is wrong with it."""
    reader = next(reader for reader in READERS if reader.recognises(data))
    return reader.read(path, data, request)


def _unnamed(model: "Classifier") -> str:
    """Say how classes get names. A thousand of them are not certain to be ImageNet's, nor in its order."""
    usual = ", if they are ImageNet's: --class-names imagenet" if model.num_classes == 1000 else ""
    return f"not named; --class-names FILE names them{usual}"


def _names_of_tasks(model: "Classifier", asked: Sequence[str] | None) -> list[str]:
    """Return the names that the tasks give the outputs; UserError where others were asked for."""
    names = output_names(model.tasks)
    if asked is not None and list(asked) != names:
        raise UserError(
            f"class names were given, but tasks name the outputs of {model.arch} themselves: "
            f"{shown(', '.join(names))}; leave --class-names out"
        )
    return names


def _check_class_names(names: Sequence[str], num_classes: int, src: Path) -> None:
    """Raise UserError for names that are too few, too many, or do not tell the classes apart."""
    if len(names) != num_classes:
        raise UserError(
            f"{len(names)} class names were given, but {src} distinguishes {num_classes} classes"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        listed = ", ".join(map(shown, twice[:5]))
        raise UserError(
            f"several classes have the name {listed}{more}; folders of pictures are matched with classes by "
            "name: make each unique"
        )


def _network(found: Source, new_head: int | None, what: str, size: int) -> "Classifier":
    """Make the network with a head as wide as the file's (of `size` bytes), or as asked for.

    Tasks say the number of outputs themselves: their head stays, unless another is asked for.
    """
    from minitl.models.saving import empty_model

    model = empty_model(found.arch, found.arch_options, what)
    if new_head is not None:
        if not 1 <= new_head <= 1_000_000:
            raise UserError(f"--new-head {new_head}: give the number of classes, at least 1")
        model.replace_head(new_head)
        return model
    if model.tasks:
        return model
    hidden = model.arch_options.get("head", ())
    head = found.arrays.get(f"{model.last_name}.weight")
    rows = head.shape[0] if head is not None and len(head.shape) == 2 else 0
    # A head of more numbers than the file has bytes is a lie; it is not made, and found misshapen.
    if 0 < rows * (hidden[-1] if hidden else model.head.weight.shape[1]) <= size:
        model.replace_head(rows, hidden=hidden)
    return model


def _matched(
    model: "Classifier", found: Source, src: Path, new_head: int | None, drop_unexpected: bool
) -> Report:
    """Compare the network's names and shapes with the file's; ConversionError where they differ."""
    expected = {name: array.shape for name, array in model.state_dict().items()}
    shapes = {name: array.shape for name, array in found.arrays.items()}
    report = match(expected, shapes, f"{src.name} as {model.arch}")
    report.ignored, report.notes = dict(found.ignored), list(found.notes)
    heads = tuple(f"{head}." for head in model.heads)
    if new_head is not None:
        report.reinitialised = [name for name in expected if name.startswith(heads)]
        report.ignored |= {
            name: "a new head takes its place" for name in shapes if name.startswith(heads)
        }
        report.matched = [name for name in report.matched if not name.startswith(heads)]
        report.missing = [name for name in report.missing if not name.startswith(heads)]
        report.unexpected = [name for name in report.unexpected if not name.startswith(heads)]
        for name in report.reinitialised:
            report.misshapen.pop(name, None)
    if drop_unexpected:
        report.ignored |= dict.fromkeys(report.unexpected, "no place for it in the network")
        report.unexpected = []
    report.notes += _rivals(shapes, expected)
    if not report.complete:
        raise ConversionError(f"{src} does not fit {model.arch}: {_misfit(report, heads)}", report)
    return report


def _misfit(report: Report, heads: tuple[str, ...]) -> str:
    """Say in a line what does not fit, and what to do."""
    kinds = ("missing", "unexpected", "misshapen")
    counts = {kind: len(getattr(report, kind)) for kind in kinds}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if report.missing and all(name.startswith(heads) for name in report.missing):
        return f"{found}; the file has no head; --new-head N puts one for N classes"
    if report.unexpected and not report.missing and not report.misshapen:
        return f"{found}; --drop-unexpected goes on without"
    return f"{found}; if it is another network, say which with --arch NAME"


def _rivals(names: Collection[str], expected: Collection[str]) -> list[str]:
    """Say which names mean the same weights as another one, if a prefix is taken away."""
    return [
        f"two candidates for {plain}: {plain} and {name}"
        for name in names
        for prefix in PREFIXES
        if (plain := name.removeprefix(prefix)) != name and plain in names and plain in expected
    ]


def _preprocessing(
    asked: str | Mapping[str, Any] | None, found: Source, model: "Classifier"
) -> tuple[dict[str, Any], str]:
    """Return the preprocessing to write, and in words where it came from."""
    from minitl.convert.presets import preset
    from minitl.data.preprocessing import Preprocessing

    values, origin = model.preprocessing, f"usual for {model.arch}; the file does not say"
    if found.preprocessing is not None:
        values, origin = found.preprocessing, found.preprocessing_from
    if isinstance(asked, str):
        meaning, fields = preset(asked)
        values, origin = values | fields, f"{asked} ({meaning}), as you said"
    elif asked:
        values = values | dict(asked)
        rest = origin or f"usual for {model.arch}"
        origin = (
            "as you said" if values == asked else f"{', '.join(asked)} as you said, else {rest}"
        )
    return Preprocessing.from_dict(values).to_dict(), origin


def _weights(src: Path, arrays: Mapping[str, StoredArray], report: Report) -> dict[str, np.ndarray]:
    """Return the matched arrays as float32."""
    state = {}
    rounded = 0
    for name in report.matched:
        stored = arrays[name]
        if stored.dtype not in _FLOATS:
            raise WeightsFileError(
                f"{src}: {name} is {stored.dtype}; quantised and complex networks are not supported"
            )
        array = stored.read()
        rounded += stored.dtype == "float64"
        with np.errstate(over="ignore"):  # an infinity is reported below
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise WeightsFileError(
                f"{src}: {name} holds NaN or infinities (as float32); its training had diverged"
            )
        if name.endswith(".running_var") and array.size and array.min() < 0:
            raise WeightsFileError(
                f"{src}: {name} holds a negative variance; the file is damaged: get it anew"
            )
        state[name] = array
    if rounded:
        report.notes.append(f"{rounded} arrays rounded from float64 to float32")
    return state


__all__ = [
    "READERS",
    "ConversionError",
    "Reader",
    "Report",
    "Request",
    "Source",
    "StoredArray",
    "TorchFile",
    "convert",
    "find_state",
    "match",
    "read_source",
    "read_torch",
]
