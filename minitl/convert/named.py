"""Weights that lie in a file by the names of their network: PyTorch's checkpoints and safetensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitl.convert.names import to_our_names
from minitl.convert.recognise import Network, recognise
from minitl.convert.safetensors_files import read_safetensors
from minitl.convert.source import Request, Source, StoredArray
from minitl.convert.state import find_state
from minitl.convert.torch_files import read_torch
from minitl.errors import WeightsFileError
from minitl.text import one_line


def from_torch(path: Path, data: bytes, request: Request) -> Source:
    """Read a file of torch.save."""
    file = read_torch(path, data)

    def stored(record: Any) -> StoredArray:
        return StoredArray(record.shape, record.dtype, lambda: file.array(record))

    return _source(file.content, path, request, stored)


def from_safetensors(path: Path, data: bytes, request: Request) -> Source:
    """Read a safetensors file; one that minitl exported says itself what it is."""
    arrays, texts = read_safetensors(path, data)
    own = _own_words(texts, path)
    if own and request.arch in (None, own["arch"]):
        options = own["arch_options"] | dict(request.arch_options)
        request = Request(own["arch"], options, request.entry)
    source = _source(arrays, path, request, lambda array: array)
    if own:
        source.notes.append("exported by minitl: network and preprocessing are as the file says")
        source.preprocessing = own["preprocessing"] or None
        source.preprocessing_from = "as the file says"
        source.class_names = own["class_names"]
        source.license = own["license"]
    return source


def _own_words(texts: Mapping[str, str], path: Path) -> dict[str, Any] | None:
    """Return what an exported file says about itself, in the terms of weights/README.md."""
    from minitl import hdf5

    described = ("arch_options", "preprocessing", "class_names")
    if not texts.keys() >= {"arch", "license", *described}:
        return None
    own: dict[str, Any] = {"arch": texts["arch"], "license": texts["license"]}
    try:
        own |= {name: json.loads(texts[name]) for name in described}
        hdf5.attributes(hdf5.WeightsFile(state={}, **own))  # what a weights file can say
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsFileError(
            f"{path} describes itself in broken words ({one_line(error)}); export it again"
        ) from None
    return own


def _source(
    content: Any, path: Path, request: Request, stored: Callable[[Any], StoredArray]
) -> Source:
    found = find_state(content, str(path), request.entry)
    arrays = {name: stored(tensor) for name, tensor in found.tensors.items()}
    arrays, family = to_our_names(arrays, str(path))
    network = _network(arrays, path, request)
    notes = []
    if found.entry:
        notes.append(f"weights found under {found.entry!r}")
    if found.prefix:
        notes.append(f"prefix {found.prefix!r} taken away")
    if found.beside:
        more = ", ..." if len(found.beside) > 8 else ""
        notes.append(f"beside the weights, not used: {', '.join(found.beside[:8])}{more}")
    if family:
        notes.append(f"names are those of {family}; translated")
    if request.arch is None:
        notes.append(f"recognised as {network.arch} by names and shapes")
    notes += [
        f"assumed: {text} (otherwise --arch-option {option}=...)"
        for option, text in network.assumed.items()
        if option not in request.arch_options
    ]
    return Source(network.arch, dict(network.options), arrays, found.ignored, notes)


def _network(arrays: Mapping[str, StoredArray], path: Path, request: Request) -> Network:
    """Return the network asked for, or else the one recognised.

    What the user said goes before what is seen; but options that are seen are taken for the network that
    the user named, too.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    asked = dict(request.arch_options)
    try:
        seen = recognise(shapes, str(path))
    except WeightsFileError:
        if request.arch is None:
            raise
        return Network(request.arch, asked)
    if request.arch not in (None, seen.arch):
        return Network(request.arch or "", asked)
    return Network(seen.arch, seen.options | asked, {} if request.arch else seen.assumed)


__all__ = ["from_safetensors", "from_torch"]
