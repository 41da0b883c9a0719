"""Take weights from minitl to other programs: PyTorch, safetensors, ONNX.

    from minitl.convert.export import export

    export("runs/cats/best.h5", "cats.onnx")

PyTorch files and safetensors hold a state dict that loads with `strict=True` into torchvision's or timm's
network of that name. ONNX holds the network itself.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minitl.convert.export_torch import torch_file
from minitl.convert.names import TIMM_RESNET_V2, TIMM_VGG, to_their_names
from minitl.errors import UserError
from minitl.files import write_atomically
from minitl.tasks import output_slices

if TYPE_CHECKING:
    from minitl.hdf5 import WeightsFile
    from minitl.models import Classifier

FORMATS = {"torch": (".pth", ".pt"), "safetensors": (".safetensors",), "onnx": (".onnx",)}
NAMES = ("torchvision", "timm")


def export(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    names: str = "torchvision",
    overwrite: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> str:
    """Write the weights file `src` in another program's format to `dst`; return the format.

    to: "torch", "safetensors" or "onnx"; None goes by the ending of `dst`.
    names: whose names a state dict gets where they differ, "torchvision" or "timm".
    overwrite: replace `dst` if it exists. say: told what to beware of, if anything.

    Raises UserError for weights that do not fit their architecture, an unknown format, a library that is
    not installed, or where `dst` cannot be written.
    """
    from minitl import hdf5
    from minitl.models.saving import from_weights_file

    src, dst = Path(src), Path(dst)
    to = _format(dst, to)
    if names not in NAMES:
        raise UserError(f"--names {names}: the choice is {' or '.join(NAMES)}")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst} is the file to be exported; choose another name for the result")
    if dst.exists() and not overwrite:
        raise UserError(f"{dst} exists; choose another name, or replace it with --overwrite")
    contents = hdf5.read(src)
    model = from_weights_file(contents, str(src))
    if to == "onnx":
        from minitl.convert.export_onnx import onnx_file

        content = onnx_file(model, metadata(contents), str(src))
    else:
        state = model.state_dict()
        if names == "timm":
            state = _timm_names(state, model.arch)
        state = _with_counters(state)
        content = torch_file(state) if to == "torch" else _safetensors_file(state, contents)
    write_atomically(dst, content)
    if to != "onnx" and (caveat := _caveat(model)):
        say(caveat)
    if model.tasks:
        say(_meanings(model))
    return to


def _format(dst: Path, to: str | None) -> str:
    if to is None:
        for name, endings in FORMATS.items():
            if dst.suffix.lower() in endings:
                return name
        raise UserError(
            f"{dst}: the ending does not say which format; add --to {', --to '.join(FORMATS)}"
        )
    if to not in FORMATS:
        raise UserError(f"--to {to}: the formats are {', '.join(FORMATS)}")
    return to


def _timm_names(state: Mapping[str, np.ndarray], arch: str) -> dict[str, np.ndarray]:
    """Return the state as timm's network of this architecture has it; most have torchvision's names."""
    family = next((f for f in (TIMM_VGG, TIMM_RESNET_V2) if arch.startswith(f.archs)), None)
    if family is None:
        return dict(state)
    return to_their_names(state, family)


# Options of which the networks of PyTorch's libraries know nothing: their results would be others.
_OWN_OPTIONS = (
    "stride_in_1x1",
    "same_padding",
    "bn_eps",
    "count_include_pad",
    "stride_last",
    "zero_pool",
)


def _caveat(model: "Classifier") -> str:
    """Return what makes the network of that name compute something else elsewhere, "" if nothing."""
    if hidden := model.arch_options.get("head"):
        layers = " and ".join(f"{model.head_name}.{2 * i}" for i in range(len(hidden) + 1))
        return (
            f"beware: the head of this network is a Sequential, with dense layers {layers} and ReLU between "
            f"them; give torchvision's or timm's {model.arch} such a {model.head_name} before it loads these "
            "weights, or export to ONNX, which holds the network"
        )
    own = {n: v for n, v in model.arch_options.items() if n in _OWN_OPTIONS}
    if not own:
        return ""
    options = ", ".join(f"{name}={json.dumps(value)}" for name, value in own.items())
    return (
        f"beware: torchvision's or timm's {model.arch} may load these weights, but they need {options}, "
        "which it does not have as it is; change it so, or export to ONNX, which holds the network"
    )


def _meanings(model: "Classifier") -> str:
    """Return what the outputs mean, of which other programs know nothing."""
    told = []
    for task, own in zip(model.tasks, output_slices(model.tasks), strict=True):
        what = {
            "classes": "softmax over these",
            "labels": "sigmoid of each",
            "number": f"times {task.unit:.6g} plus {task.mean:.6g}",
        }[task.kind]
        told.append(f"{own.start}-{own.stop - 1} {task.name} ({what})")
    return f"the outputs are, as numbers of several tasks: {'; '.join(told)}"


def metadata(contents: "WeightsFile") -> dict[str, str]:
    """Return what else a weights file says, as the texts of its attributes (weights/README.md)."""
    from minitl import hdf5

    texts = hdf5.attributes(contents)
    return {name: text for name, text in texts.items() if not name.startswith("format")}


def _with_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the state in order of modules, with the counter that PyTorch's normalisations have."""
    modules: dict[str, list[str]] = {}
    for name in state:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    complete: dict[str, np.ndarray] = {}
    for module, names in modules.items():
        complete |= {name: np.ascontiguousarray(state[name]) for name in names}
        if f"{module}.running_var" in state:
            complete[f"{module}.num_batches_tracked"] = np.array(0, np.int64)
    return complete


def _safetensors_file(state: Mapping[str, np.ndarray], contents: "WeightsFile") -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise UserError(
            "--to safetensors needs the library safetensors: pip install safetensors"
        ) from None
    content: bytes = save(dict(state), {"format": "pt"} | metadata(contents))
    return content


__all__ = ["FORMATS", "NAMES", "export", "metadata"]
