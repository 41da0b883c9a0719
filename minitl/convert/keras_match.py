"""Find the architecture of minitl that computes what a network of Keras computes.

A network of minitl runs once on an empty picture while its operations are recorded; they make a graph of
the same kind as keras_graph.py reads from a configuration. Equal graphs are equal networks: names play no
part, and a stride or a padding in another place is a difference.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitl import models
from minitl.convert.keras_graph import Node, nodes_of, same_network
from minitl.models import Classifier
from minitl.models.inception import InceptionV3
from minitl.models.resnet import ResNet
from minitl.models.resnet_v2 import ResNetV2
from minitl.models.vgg import VGG
from minitl.ops.adaptive_avgpool2d import AdaptiveAvgPool2d
from minitl.ops.add import Add
from minitl.ops.avgpool2d import AvgPool2d
from minitl.ops.batchnorm import BatchNorm
from minitl.ops.batchnorm_relu_maxpool import BatchNormReluMaxPool
from minitl.ops.concat import Concat
from minitl.ops.conv2d import Conv2d
from minitl.ops.conv2d_batchnorm import Conv2dBatchNorm
from minitl.ops.flatten import Flatten
from minitl.ops.global_avgpool2d import GlobalAvgPool2d
from minitl.ops.linear import Linear
from minitl.ops.maxpool2d import MaxPool2d
from minitl.ops.relu import Relu
from minitl.shapes import Padding2d, window_output_shape
from minitl.tensor import Op, Tensor, Use, no_grad, record_uses


@dataclass
class Match:
    """A network of minitl, and where its weights are.

    model: of zeros. output: what it computes, as a graph. layers: for each module with weights (by name) a
    node of Keras' graph that has them; a module without one has no weights in the file. mode: the preset
    of its preprocessing, where the architecture does not tell. assumed: what the file does not tell.
    """

    model: Classifier
    output: Node
    layers: dict[str, Node]
    mode: str | None = None
    assumed: str = ""


def find_architecture(
    output: Node, size: int, arch: str | None, options: Mapping[str, Any]
) -> Match | None:
    """Return the architecture that computes `output`, a dense layer over classes, or None.

    size: height and width of the input. arch: the only one to consider, None for all. options: of the
    architecture, those that are fixed beforehand.
    """
    output = without_dropout(output)
    wanted = _census(output)
    eps = {node.options["eps"] for node in nodes_of(output) if node.op == "bn"}
    for name in models.ARCHITECTURES if arch is None else [arch]:
        if name == "sequential" or (not options and _usual_census(name) != wanted):
            continue
        for model in _variants(name, options, output, eps):
            if _census_of(model) != wanted:
                break
            ours = trace(model, size)
            pairs = None if ours is None else same_network(ours, output)
            if ours is not None and pairs is not None and _same_eps(pairs):
                layers = {a.weights: b for a, b in pairs if a.weights and b.weights}
                return Match(model, ours, layers)
    return None


def _variants(
    name: str, options: Mapping[str, Any], output: Node, eps: set[float]
) -> Iterator[Classifier]:
    """Yield an architecture with each way in which implementations differ, Keras' first."""
    linears = [node for node in nodes_of(output) if node.op == "linear"]
    classes = output.shape[0]
    try:
        model = models.create(name, seed=None, num_classes=classes, **options)
    except (ValueError, TypeError):
        return
    choices: dict[str, tuple[Any, ...]] = {}
    if isinstance(model, ResNet):
        choices = {"stride_in_1x1": (True, False), "same_padding": (False, True)}
    elif isinstance(model, ResNetV2):
        choices = dict.fromkeys(("stride_last", "zero_pool", "conv_bias"), (True, False))
    elif isinstance(model, InceptionV3):
        choices = {"count_include_pad": (False, True)}
    elif isinstance(model, VGG) and len(linears) > 1:
        choices = {"hidden": (linears[0].shape[0],)}
    if choices and len(eps) == 1:
        choices["bn_eps"] = tuple(eps)
    choices = {key: values for key, values in choices.items() if key not in options}
    for values in itertools.product(*choices.values()):
        try:
            chosen = dict(zip(choices, values, strict=True))
            yield models.create(name, seed=None, num_classes=classes, **options, **chosen)
        except (ValueError, TypeError):
            continue


def _same_eps(pairs: list[tuple[Node, Node]]) -> bool:
    return all(
        math.isclose(ours.options["eps"], theirs.options["eps"], rel_tol=1e-6)
        for ours, theirs in pairs
        if ours.op == "bn"
    )


def _census(output: Node) -> Counter[tuple[int, ...]]:
    """Count the filters by shape, and the normalisations as ()."""
    found: list[tuple[int, ...]] = []
    for node in nodes_of(output):
        if node.op == "conv":
            k, kernel, _, _, _, groups = node.attrs
            found.append((k, node.inputs[0].shape[2] // groups, *kernel))
        elif node.op == "bn":
            found.append(())
    return Counter(found)


def _census_of(model: Classifier) -> Counter[tuple[int, ...]]:
    state = model.state_dict()
    found: list[tuple[int, ...]] = [array.shape for array in state.values() if array.ndim == 4]
    return Counter(found + [() for name in state if name.endswith(".running_mean")])


@functools.cache
def _usual_census(name: str) -> Counter[tuple[int, ...]]:
    """Return what an architecture has; none of the ways of `_variants` changes that."""
    return _census_of(models.create(name, seed=None))


def without_dropout(output: Node) -> Node:
    """Return the same graph without its dropout nodes."""
    new: dict[int, Node] = {}
    for node in nodes_of(output):
        inputs = tuple(new[id(before)] for before in node.inputs)
        if node.op == "dropout":
            new[id(node)] = inputs[0]
        else:
            new[id(node)] = Node(
                node.op, node.attrs, inputs, node.shape, node.weights, node.group, node.options
            )
    return new[id(output)]


# ---------------------------------------------------------------------------- what minitl computes


def trace(model: Classifier, size: int) -> Node | None:
    """Return the graph of a network of minitl on pictures of `size` pixels a side.

    None where the network does something that has no node, or does not take pictures of this size.
    """
    x = Tensor(np.zeros((1, size, size, 3), np.float32))
    try:
        with record_uses() as uses, no_grad():
            result = model.eval()(x)
    except ValueError:
        return None
    tracer = _Tracer(model, x)
    for use in uses:
        if use.op not in _TRANSLATIONS:
            return None
        tracer.nodes[id(use.result)] = _TRANSLATIONS[use.op](tracer, use)
    return tracer.nodes[id(result)]


class _Tracer:
    def __init__(self, model: Classifier, x: Tensor) -> None:
        self.nodes = {id(x): Node("input", (), (), tuple(x.shape[1:]))}
        self.names = {id(p): n.rpartition(".")[0] for n, p in model.named_parameters()}

    def of(self, value: Tensor | None) -> Node:
        assert value is not None
        return self.nodes[id(value)]

    def conv(self, x: Tensor | None, weight: Tensor | None, geometry: Mapping[str, Any]) -> Node:
        assert weight is not None
        before, padding = self.of(x), geometry["padding"]
        k, r, s, _ = weight.shape
        shape = _after(before, (r, s), geometry["stride"], padding, geometry["dilation"], k)
        if id(weight) not in self.names:
            # A constant filter: only that of 1x1 which frames a map with zeros is known.
            plain = (r, s) == (1, 1) and geometry["groups"] == k and bool(np.all(weight.data == 1))
            return Node("zeropad" if plain else "unknown", tuple(padding), (before,), shape)
        attrs = (
            k,
            (r, s),
            tuple(geometry["stride"]),
            tuple(padding),
            tuple(geometry["dilation"]),
            geometry["groups"],
        )
        return Node("conv", attrs, (before,), shape, self.names[id(weight)])

    def normalised(
        self, z: Node, weight: Tensor | None, residual: Tensor | None, options: Mapping[str, Any]
    ) -> Node:
        name = self.names[id(weight)]
        y = Node("bn", (), (z,), z.shape, name, options={"eps": options["eps"]})
        if residual is not None:
            y = Node("add", (), (y, self.of(residual)), y.shape)
        return Node("relu", (), (y,), y.shape) if options.get("relu", True) else y

    def pooled(self, op: str, x: Node, options: Mapping[str, Any]) -> Node:
        kernel, stride, padding = options["kernel"], options["stride"], options["padding"]
        attrs: tuple[Any, ...] = (tuple(kernel), tuple(stride), tuple(padding))
        if op == "avgpool":
            attrs += (options["count_include_pad"] and any(padding),)
        shape = _after(x, kernel, stride, padding, (1, 1), x.shape[2])
        return Node(op, attrs, (x,), shape)


def _after(
    x: Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding2d,
    dilation: tuple[int, int],
    channels: int,
) -> tuple[int, ...]:
    size = window_output_shape(x.shape[0], x.shape[1], kernel, stride, padding, dilation)
    return (*size, channels)


def _conv2d(tracer: _Tracer, use: Use) -> Node:
    return tracer.conv(use.inputs[0], use.inputs[1], use.options)


def _conv2d_batchnorm(tracer: _Tracer, use: Use) -> Node:
    x, weight, bn_weight, _, residual = use.inputs
    z = tracer.conv(x, weight, use.options["geometry"])
    return tracer.normalised(z, bn_weight, residual, use.options)


def _batchnorm(tracer: _Tracer, use: Use) -> Node:
    x, weight, _, residual = use.inputs
    return tracer.normalised(tracer.of(x), weight, residual, use.options)


def _batchnorm_relu_maxpool(tracer: _Tracer, use: Use) -> Node:
    x, weight, _ = use.inputs
    options = {"eps": use.options["eps"], "relu": True}
    y = tracer.normalised(tracer.of(x), weight, None, options)
    return tracer.pooled("maxpool", y, use.options["window"])


def _linear(tracer: _Tracer, use: Use) -> Node:
    x, weight, _ = use.inputs
    assert weight is not None
    units = weight.shape[0]
    return Node("linear", (units,), (tracer.of(x),), (units,), tracer.names[id(weight)])


def _adaptive(tracer: _Tracer, use: Use) -> Node:
    x = tracer.of(use.inputs[0])
    same = tuple(use.result.shape[1:]) == x.shape  # a map of the wanted size stays as it is
    return x if same else Node("unknown", (), (x,), tuple(use.result.shape[1:]))


def _simple(op: str) -> Callable[[_Tracer, Use], Node]:
    return lambda tracer, use: Node(
        op, (), tuple(map(tracer.of, use.inputs)), tuple(use.result.shape[1:])
    )


_TRANSLATIONS: dict[type[Op], Callable[[_Tracer, Use], Node]] = {
    AdaptiveAvgPool2d: _adaptive,
    Add: _simple("add"),
    AvgPool2d: lambda tracer, use: tracer.pooled("avgpool", tracer.of(use.inputs[0]), use.options),
    BatchNorm: _batchnorm,
    BatchNormReluMaxPool: _batchnorm_relu_maxpool,
    Concat: _simple("concat"),
    Conv2d: _conv2d,
    Conv2dBatchNorm: _conv2d_batchnorm,
    Flatten: _simple("flatten"),
    GlobalAvgPool2d: _simple("gap"),
    Linear: _linear,
    MaxPool2d: lambda tracer, use: tracer.pooled("maxpool", tracer.of(use.inputs[0]), use.options),
    Relu: _simple("relu"),
}

__all__ = ["Match", "find_architecture", "trace", "without_dropout"]
