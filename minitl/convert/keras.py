"""From a file of Keras to the state of a network of minitl.

What differs between the two, and what is done about it:

    filters        (height, width, in, out) there, (out, in, height, width) here: transposed
    dense weights  (in, out) there: transposed. Behind a flattening `in` runs over row, column, channel
                   there and over channel, row, column here: rearranged, also what lies in between
    biases         a convolution without bias here: the bias b is folded into the normalisation that
                   follows, for (x + b) - mean = x - (mean - b)
    normalisation  without scale or shift there: ones and zeros
    strides, padding, epsilon    options of the architecture, see keras_match.py
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitl import models
from minitl.convert.keras_files import KerasFile, KerasLayer, read_keras
from minitl.convert.keras_graph import Graph, Node, UnknownNetworkError, nodes_of, read_graph
from minitl.convert.keras_match import Match, find_architecture, trace
from minitl.convert.keras_names import APPLICATIONS, layers_of
from minitl.convert.keras_preprocessing import mode_of, preprocessing_of
from minitl.convert.source import Request, Source, StoredArray
from minitl.errors import UserError, WeightsFileError
from minitl.models import Classifier
from minitl.models.saving import empty_model
from minitl.models.vgg import VGG
from minitl.text import shown

_OPEN_SIZE = 224  # pixels to look at a network with, where it takes pictures of any size
_SMALL = 96  # pixels that every application takes


def from_keras(path: Path, data: bytes, request: Request) -> Source:
    """Read a model or weights of Keras.

    Raises WeightsFileError, in one line, for a file that is damaged or lacks weights that it lists, and
    UserError for a network that minitl does not have, or where the user has to say more.
    """
    return source_of(read_keras(path, data), request)


def source_of(file: KerasFile, request: Request) -> Source:
    """Return what a file that is read becomes; errors as `from_keras`."""
    arch, options = request.arch, dict(request.arch_options)
    if arch is not None and arch not in models.ARCHITECTURES:
        known = ", ".join(models.ARCHITECTURES)
        raise UserError(f"unknown architecture {arch!r}; known are: {known}")
    graph = None
    if file.config is None:
        match = _by_names(file, arch, options)
    else:
        graph = read_graph(file.config, str(file.path), _OPEN_SIZE)
        match = _by_structure(file, graph, arch, options)
    arrays, notes = _arrays(file, match)
    notes += [f"assumed: {match.assumed}"] if match.assumed else []
    side = None if graph is None or graph.open_size else graph.input.shape[0]
    head = arrays.get(f"{match.model.head_name}.weight")
    preprocessing, origin = preprocessing_of(
        match.model,
        side,
        None if graph is None else graph.inside,
        match.mode or mode_of(match.model),
        head.shape[0] if head is not None and head.shape else None,
        request.preprocessing,
        str(file.path),
    )
    return Source(
        match.model.arch,
        match.model.arch_options,
        arrays,
        _ignored(file),
        _notes(file, graph) + notes,
        preprocessing,
        origin,
    )


# ---------------------------------------------------------------------------- the architecture


def _by_structure(
    file: KerasFile, graph: Graph, arch: str | None, options: dict[str, Any]
) -> Match:
    """Find what the configuration describes. Raises UserError if it is nothing minitl has."""
    height, width, _ = graph.input.shape
    if height != width:
        raise UnknownNetworkError(
            f"{file.path} takes pictures of {height} x {width} pixels; minitl prepares square ones"
        )
    _check_size(file, graph)
    if arch is not None and options:
        empty_model(arch, options, "--arch-option")  # which says what is wrong with them
    output = _with_head(graph.output)
    match = None
    if arch != "sequential":
        match = find_architecture(output, height, arch, options)
    if match is None and arch in (None, "sequential"):
        match = _sequential(output, height, str(file.path))
    if match is not None:
        return match
    if arch is not None and (other := find_architecture(output, height, None, {})):
        raise UserError(
            f"{file.path} is no {arch} {options or ''} but a {other.model.arch} "
            f"{other.model.arch_options or ''}; leave --arch out"
        )
    kinds = [node.op for node in nodes_of(output)]
    raise UserError(
        f"{file.path} holds a network that minitl has no architecture for ({kinds.count('conv')} "
        f"convolutions, {kinds.count('linear')} dense layers{_example(output)}); it has chains of "
        "layers, ResNets, VGG, Inception v3 as Keras' applications build them, and MLPerf's ResNet-8"
    )


def _check_size(file: KerasFile, graph: Graph) -> None:
    """Refuse a description of more parameters than the file holds: no memory is asked for on its word."""
    described = 0
    for node in nodes_of(graph.output):
        if node.op == "conv":
            k, kernel, _, _, _, groups = node.attrs
            described += k * (node.inputs[0].shape[2] // groups) * math.prod(kernel)
        elif node.op == "linear":
            described += node.attrs[0] * node.inputs[0].shape[0]
    held = sum(math.prod(stored.shape) for layer in file.layers for stored in layer.arrays)
    if described > held:
        raise WeightsFileError(
            f"{file.path} describes a network of {described:,} parameters but holds {held:,}; get it anew"
        )


def _example(output: Node) -> str:
    """Say where a network is no chain."""
    joined = [node for node in nodes_of(output) if len(node.inputs) > 1]
    return f", {len(joined)} places where branches meet" if joined else ""


def _with_head(output: Node) -> Node:
    """Return the network with a head, which has no weights yet if the file has none."""
    if output.op == "linear":
        return output
    if len(output.shape) == 3:
        output = Node("gap", (), (output,), output.shape[2:])
    return Node("linear", (1000,), (output,), (1000,), options={"bias": True})


def _sequential(output: Node, size: int, what: str) -> Match | None:
    """Describe a chain of layers as the architecture `sequential`; None if it is no chain.

    what: the file, for errors. Raises UnknownNetworkError for a chain of what `sequential` does not have.
    """
    chain: list[Node] = []
    node = output
    while node.op != "input":
        if len(node.inputs) != 1:
            return None
        chain.append(node)
        node = node.inputs[0]
    chain.reverse()
    layers = [_description(node) for node in chain]
    try:
        model = models.create("sequential", seed=None, input=[size, size], layers=layers)
    except ValueError as error:
        raise UnknownNetworkError(f"{what} cannot be made as a chain of layers: {error}") from error
    here: dict[str, Node] = {}
    for i, theirs in enumerate(chain):  # the same graph with our names
        named = str(i) if theirs.op in _ORDER else ""
        node = Node(theirs.op, theirs.attrs, (node,), theirs.shape, named)
        if theirs.weights:
            here[named] = theirs
    # The first layers of Keras' VGG, whose preprocessing is known, under a head of the user's.
    names = [node.weights for node in chain if node.op == "conv"]
    vgg = len(names) > 7 and all(re.fullmatch(r"block\d_conv\d", name) for name in names)
    return Match(model, node, here, "caffe" if vgg else None)


def _description(node: Node) -> dict[str, Any]:
    """Return a node as `models.sequential` describes layers."""
    if node.op == "linear":
        return {"type": "dense", "units": node.attrs[0], "bias": node.options["bias"]}
    if node.op == "bn":
        return {"type": "batchnorm", "eps": node.options["eps"]}
    if node.op == "dropout":
        return {"type": "dropout", "p": node.options["rate"]}
    if node.op == "conv":
        channels, kernel, stride, padding, dilation, groups = node.attrs
        bias = node.options["bias"]
        layer = {"type": "conv", "channels": channels, "groups": groups, "bias": bias}
        if dilation != (1, 1):
            layer["dilation"] = list(dilation)  # which `sequential` does not have, and says so
    elif node.op in ("maxpool", "avgpool"):
        kernel, stride, padding = node.attrs[:3]
        layer = {"type": node.op}
        if node.op == "avgpool":
            layer["count_include_pad"] = not node.options["same"]
    else:
        return {"type": {"gap": "global_avgpool"}.get(node.op, node.op)}
    around: Any = "same" if node.options["same"] else [list(padding[:2]), list(padding[2:])]
    return layer | {"kernel": list(kernel), "stride": list(stride), "padding": around}


def _by_names(file: KerasFile, arch: str | None, options: dict[str, Any]) -> Match:
    """Find one of Keras' applications by the names and shapes of the layers."""
    layers = {layer.name: layer for layer in file.layers}
    if "" in layers or len(layers) < len(file.layers):
        raise UserError(
            f"{file.path} holds weights without names of layers; save the whole model, as model.keras"
        )
    for application in APPLICATIONS:
        if arch not in (None, application.arch) or application.known_by not in ("", *layers):
            continue
        model = empty_model(
            application.arch, application.options | options, f"{file.path} as {application.arch}"
        )
        found = layers_of(application, model, layers)
        if found is None or not _shapes_fit(model, found, layers):
            continue
        # What is looked for in the graph does not depend on the size, but for VGG's flattening.
        output = trace(model, model.preprocessing["crop"] if isinstance(model, VGG) else _SMALL)
        assert output is not None
        flags = {"scale": application.bn_scale, "center": True}
        nodes = {
            module: Node("", (), (), (), name, layers[name].path, flags)
            for module, name in found.items()
        }
        match = Match(model, output, nodes, assumed=application.assumed)
        whole = {name.rpartition(".")[0] for name in model.state_dict()} - {model.head_name}
        return match if whole <= found.keys() else _trunk(match)
    some = ", ".join(shown(name) for name in list(layers)[:3])
    raise UserError(
        f"{file.path} holds weights alone ({len(layers)} layers: {some}, ...), which "
        f"{'do not fit ' + arch if arch else 'are of no application of Keras that minitl knows'}; save the "
        "whole model with model.save('model.keras')"
    )


def _trunk(match: Match) -> Match:
    """Return a VGG without its three dense layers as a chain: the average over the map, then a head."""
    nodes = nodes_of(match.output)
    last = max(i for i, node in enumerate(nodes) if node.op == "maxpool")
    for node in nodes:
        layer = match.layers.get(node.weights)
        node.weights, node.group = (layer.weights, layer.group) if layer else ("", "")
        node.options = {"same": False, "bias": True}
    crop = match.model.preprocessing["crop"]
    chain = _sequential(_with_head(nodes[last]), crop, match.model.arch)
    assert chain is not None
    chain.model.preprocessing = match.model.preprocessing
    return chain


def _shapes_fit(
    model: Classifier, found: Mapping[str, str], layers: Mapping[str, KerasLayer]
) -> bool:
    """Return whether the filters of all convolutions have the network's shapes."""
    state = model.state_dict()
    for module, name in found.items():
        ours = state[f"{module}.weight"].shape
        theirs = {stored.shape for stored in layers[name].arrays}
        if len(ours) == 4 and (*ours[2:], ours[1], ours[0]) not in theirs:
            # Filters in Theano's order: let them through, to be explained as misshapen.
            return ours in theirs
    return True


# ---------------------------------------------------------------------------- the weights


def _arrays(file: KerasFile, match: Match) -> tuple[dict[str, StoredArray], list[str]]:
    """Return the arrays by their names here, those that have no place by the layer's, and notes."""
    by_name = {layer.inner: layer for layer in file.layers if layer.inner}
    by_name |= {layer.name: layer for layer in file.layers if layer.name}
    by_place = {_place(layer.path): layer for layer in file.layers if layer.path}
    ours = {node.weights: node for node in nodes_of(match.output) if node.weights}
    expected = {name: array.shape for name, array in match.model.state_dict().items()}
    found: dict[str, np.ndarray] = {}
    biases: dict[str, np.ndarray] = {}
    used: set[int] = set()
    for module, theirs in match.layers.items():
        layer = by_place.get(_place(theirs.group)) if theirs.group else None
        if layer is None or layer.name not in ("", theirs.weights):
            layer = by_name.get(theirs.weights)
        if layer is None:
            continue  # reported as missing
        used.add(id(layer))
        arrays = _translated(_roles(file, layer, ours[module], theirs), ours[module])
        if "bias" in arrays and f"{module}.bias" not in expected:
            biases[module] = arrays.pop("bias")
        elif "bias" not in arrays and f"{module}.bias" in expected:
            arrays["bias"] = np.zeros(expected[f"{module}.bias"], np.float32)
        found |= {f"{module}.{name}": array for name, array in arrays.items()}
    _fold(biases, match.output, found, str(file.path))
    stored = {name: _in_memory(array) for name, array in found.items()}
    for layer in file.layers:
        if id(layer) not in used:
            stored[layer.name or layer.path] = StoredArray((), "unused", lambda: np.zeros(()))
    notes = []
    rounded = sum(a.dtype == "<f8" for x in file.layers if id(x) in used for a in x.arrays)
    if rounded:
        notes.append(f"{rounded} arrays rounded from float64 to float32")
    if biases:
        notes.append(f"{len(biases)} biases folded into the normalisation behind them")
    if any(
        array.ndim == 4 and array.shape != expected[name] and array.shape == expected[name][::-1]
        for name, array in found.items()
    ):
        notes.append("filters in Theano's order of axes: take the file for TensorFlow")
    return stored, notes


def _in_memory(array: np.ndarray) -> StoredArray:
    return StoredArray(array.shape, "float32", lambda: array)


def _place(path: str) -> str:
    """Return the place of a layer in a Keras 3 file; its first releases had another name for it."""
    return path.replace("\\", "/").replace("_layer_checkpoint_dependencies", "layers")


_ORDER = {
    "conv": ("kernel", "bias"),
    "linear": ("kernel", "bias"),
    "bn": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def _roles(file: KerasFile, layer: KerasLayer, ours: Node, theirs: Node) -> dict[str, np.ndarray]:
    """Return the arrays of a layer by what they are to it."""
    roles = _ORDER[ours.op]
    if not any(layer.roles):
        if ours.op == "bn":
            there = {"gamma": theirs.options["scale"], "beta": theirs.options["center"]}
            roles = tuple(role for role in roles if there.get(role, True))
        elif len(layer.arrays) == 1:
            roles = roles[:1]
    elif set(layer.roles) <= set(roles):
        roles = tuple(layer.roles)
    required = roles[:1] if ours.op != "bn" else ("moving_mean", "moving_variance")
    if len(roles) != len(layer.arrays) or not set(required) <= set(roles):
        raise WeightsFileError(
            f"{file.path}: layer {shown(layer.name or layer.path)} has {len(layer.arrays)} arrays where "
            f"{' and '.join(roles)} are expected; save the model anew"
        )
    return {role: file.array(stored) for role, stored in zip(roles, layer.arrays, strict=True)}


def _translated(arrays: dict[str, np.ndarray], ours: Node) -> dict[str, np.ndarray]:
    """Return a layer's arrays by their names here and in the order here."""
    flat = _flattened(ours)
    if ours.op == "bn":
        mean, var = arrays["moving_mean"], arrays["moving_variance"]
        full = {
            "weight": arrays.get("gamma", np.ones_like(mean)),
            "bias": arrays.get("beta", np.zeros_like(mean)),
            "running_mean": mean,
            "running_var": var,
        }
        return {name: _reordered(array, flat, 0) for name, array in full.items()}
    kernel = arrays["kernel"]
    if ours.op == "linear":
        weight = _reordered(kernel, flat, 0).T if kernel.ndim == 2 else kernel
    else:
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
    full = {"weight": np.ascontiguousarray(weight)}
    return full | ({"bias": arrays["bias"]} if "bias" in arrays else {})


def _flattened(node: Node) -> tuple[int, ...] | None:
    """Return the shape of the map that was flattened into what a node takes; None if none was."""
    before = node.inputs[0]
    while before.op in ("relu", "bn", "dropout"):
        before = before.inputs[0]
    return before.inputs[0].shape if before.op == "flatten" else None


def _reordered(array: np.ndarray, shape: tuple[int, ...] | None, axis: int) -> np.ndarray:
    """Bring features of a flattened map from row, column, channel to channel, row, column."""
    if shape is None or array.shape[axis] != math.prod(shape):
        return array
    order = np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1).reshape(-1)
    return np.take(array, order, axis)


def _fold(
    biases: Mapping[str, np.ndarray], output: Node, found: dict[str, np.ndarray], what: str
) -> None:
    """Take biases that have no place into the running means behind them."""
    consumers: dict[int, list[Node]] = {}
    nodes = {}
    for node in nodes_of(output):
        nodes[node.weights] = node
        for before in node.inputs:
            consumers.setdefault(id(before), []).append(node)
    for module, bias in biases.items():
        after = consumers.get(id(nodes[module]), [])
        if len(after) != 1 or after[0].op != "bn":
            raise WeightsFileError(f"{what}: the bias of {module} has no normalisation behind it")
        name = f"{after[0].weights}.running_mean"
        if name in found and found[name].shape == bias.shape:
            folded = found[name].astype(np.float64) - bias
            found[name] = folded.astype(np.float32)


# ---------------------------------------------------------------------------- what to say


def _ignored(file: KerasFile) -> dict[str, str]:
    return {
        name: "the optimiser's" if "optimizer" in name.split("/")[0] else "belongs to no layer"
        for name in file.beside
    }


def _notes(file: KerasFile, graph: Graph | None) -> list[str]:
    notes = [f"saved by Keras {shown(file.version)}"] if file.version else []
    if graph is None:
        return [*notes, "weights alone: the network is taken from the names of the layers"]
    return notes + graph.notes


__all__ = ["from_keras"]
