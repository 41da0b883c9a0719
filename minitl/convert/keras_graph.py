"""The network that a configuration of Keras describes, as a graph of the operations minitl knows.

The graph says what is computed and nothing else: nested models are flattened, activations are nodes of
their own, zero padding is part of what it pads, "same" is numbers, and what has no effect on a
prediction (dropout, random augmentation, the last softmax) is left out. So the same network gives the
same graph, however it was written down.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitl.errors import WeightsFileError
from minitl.shapes import Padding2d, same_padding, window_output_size
from minitl.text import shown

MAX_LAYERS = 5000
MAX_NESTING = 8
MAX_SIDE = 1024
MAX_WIDTH = 1 << 20

Shape = tuple[int, ...]
Config = Mapping[str, Any]


class UnknownNetworkError(WeightsFileError):
    """A network that cannot be expressed; the message says which layer and why."""


@dataclass(eq=False)
class Node:
    """One operation.

    op: input, conv, bn, relu, add, concat, maxpool, avgpool, gap, flatten, dropout, linear.
    attrs: what decides the result beside inputs and weights. shape: of the result, without the batch.
    weights: whose parameters are used, "" for none: a layer of Keras (`group`: its place in a Keras 3
    file) or a module of minitl. options: other facts: eps of a bn, units, whether padding was "same".
    """

    op: str
    attrs: tuple[Any, ...]
    inputs: tuple["Node", ...]
    shape: Shape
    weights: str = ""
    group: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Affine:
    """What a network does to its input first: x * scale + offset for each of three channels, after it has
    reversed the order of the channels if `reverse`.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    reverse: bool


@dataclass
class Graph:
    """A network: its input and output nodes, and what to know beside them.

    open_size: whether it takes pictures of any size. inside: what it does to its input first, which is no
    part of the graph; None for nothing. notes: for the reader.
    """

    input: Node
    output: Node
    open_size: bool = False
    inside: Affine | None = None
    notes: list[str] = field(default_factory=list)


def nodes_of(output: Node) -> list[Node]:
    """Return all nodes that a node depends on, and itself, inputs first."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [(output, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(before, False) for before in reversed(node.inputs)]
    return order


def signatures(output: Node) -> dict[int, str]:
    """Return for each node (by id) a text that is the same for the same computation."""
    found: dict[int, str] = {}
    for node in nodes_of(output):
        parts = [found[id(before)] for before in node.inputs]
        if node.op == "add":
            parts.sort()
        text = repr((node.op, node.attrs, parts))
        found[id(node)] = hashlib.sha256(text.encode()).hexdigest()
    return found


def same_network(ours: Node, theirs: Node) -> list[tuple[Node, Node]] | None:
    """Return pairs of corresponding nodes, or None where the two graphs compute different things."""
    our_signs, their_signs = signatures(ours), signatures(theirs)
    pairs: dict[int, tuple[Node, Node]] = {}
    partner: dict[int, int] = {}
    stack = [(ours, theirs)]
    while stack:
        a, b = stack.pop()
        if our_signs[id(a)] != their_signs[id(b)]:
            return None
        if id(a) in pairs:
            if pairs[id(a)][1] is not b:
                return None
            continue
        if partner.setdefault(id(b), id(a)) != id(a):
            return None
        pairs[id(a)] = (a, b)
        left, right = list(a.inputs), list(b.inputs)
        if a.op == "add":
            left.sort(key=lambda node: our_signs[id(node)])
            right.sort(key=lambda node: their_signs[id(node)])
        stack += zip(left, right, strict=True)
    return list(pairs.values())


# ---------------------------------------------------------------------------- reading a configuration


def read_graph(config: Config, what: str, size: int) -> Graph:
    """Return the network of a `model_config` or `config.json`.

    what: the file, for errors. size: height and width of the input where the configuration leaves them
    open. Raises UnknownNetworkError for what minitl does not understand, naming the layer.
    """
    reader = _Reader(what, size)
    try:
        return reader.network(config)
    except UnknownNetworkError:
        raise
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError),
        *(RecursionError, ArithmeticError),
    ) as error:
        text = shown(" ".join(str(error).split())[:120])
        raise UnknownNetworkError(
            f"{what} has a damaged model configuration at layer {shown(reader.at)} "
            f"({type(error).__name__}: {text}); get it anew"
        ) from error


# Layers that do nothing to a prediction.
_PASSIVE = {
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "RandomBrightness", "RandomContrast", "RandomCrop", "RandomFlip", "RandomGaussianBlur",
    "RandomHeight", "RandomHue", "RandomRotation", "RandomSaturation", "RandomShear",
    "RandomTranslation", "RandomWidth", "RandomZoom", "SpatialDropout2D",
}  # fmt: skip
_MODELS = ("Sequential", "Functional", "Model")
_ARITHMETIC = (
    *("GetItem", "Stack", "Add", "Subtract", "Multiply", "Divide", "TrueDivide"),
    *("TFOpLambda", "SlicingOpLambda"),
)
_CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")


class _Reader:
    def __init__(self, what: str, size: int) -> None:
        self.what, self.size = what, size
        self.at = "(the whole)"
        self.notes: list[str] = []
        self.input: Node | None = None
        self.open_size = False
        self.inside: Affine | None = None
        self.count = 0

    def refuse(self, problem: str) -> UnknownNetworkError:
        return UnknownNetworkError(f"{self.what}: layer {shown(self.at)} {problem}")

    def network(self, config: Config) -> Graph:
        if config.get("class_name") not in _MODELS:
            raise UnknownNetworkError(
                f"{self.what} holds a {shown(str(config.get('class_name')))}, not a Sequential or "
                "Functional model; a network that is defined by code cannot be read from its file"
            )
        output = self.model(config, None, "", 0)
        if output is None or self.input is None:
            raise UnknownNetworkError(f"{self.what} describes a network without layers")
        if output.op == "softmax":
            output = output.inputs[0]
        for node in nodes_of(output):
            if node.op in ("softmax", "pad", "channel"):
                raise UnknownNetworkError(
                    f"{self.what}: a {node.op} in the middle is not supported"
                )
        return Graph(self.input, output, self.open_size, self.inside, self.notes)

    # -------------------------------------------------------------------- models in models

    def model(self, config: Config, x: Node | None, place: str, depth: int) -> Node | None:
        """Add a model's layers behind `x` (None: the outermost) and return its output."""
        if depth > MAX_NESTING:
            raise self.refuse(f"is nested deeper than {MAX_NESTING} models")
        inner = config["config"]
        layers = inner if isinstance(inner, list) else inner["layers"]  # a list before Keras 2.2.3
        groups = _groups(layers, f"{place}layers")
        if config["class_name"] == "Sequential":
            brings = ("InputLayer", *_MODELS)  # what brings an input of its own
            if x is None and not (layers and layers[0]["class_name"] in brings):
                x = self.start(_input_shape(inner, layers))
            for layer, group in zip(layers, groups, strict=True):
                x = self.layer(layer, [] if x is None else [x], group, depth)
            return x
        return self.functional(inner, layers, groups, x, depth)

    def functional(
        self,
        inner: Config,
        layers: Sequence[Config],
        groups: Sequence[str],
        x: Node | None,
        depth: int,
    ) -> Node:
        done: dict[str, Node] = {}
        inputs = _references(inner["input_layers"])
        outputs = _references(inner["output_layers"])
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnknownNetworkError(
                f"{self.what} has {len(inputs)} inputs and {len(outputs)} outputs; minitl's have one each"
            )
        for layer, group in zip(layers, groups, strict=True):
            name = layer.get("name") or layer["config"]["name"]
            self.at = str(name)
            if name == inputs[0] and x is not None:
                done[name] = x
                continue
            before = _inbound(layer)
            if len(before) > 1:
                raise self.refuse("is used more than once")
            sources = before[0] if before else []
            if unknown := [source for source in sources if source not in done]:
                raise self.refuse(f"takes {shown(unknown[0])}, which does not come before it")
            if name in done:
                raise self.refuse("has the name of another layer")
            done[name] = self.layer(layer, [done[source] for source in sources], group, depth)
        return done[outputs[0]]

    def start(self, shape: Sequence[Any]) -> Node:
        if len(shape) != 4:
            raise self.refuse(
                f"takes input of shape {tuple(shape)}, and not pictures (None, H, W, 3)"
            )
        self.open_size = None in shape[1:3]
        height, width = (self.size if v is None else v for v in shape[1:3])
        channels = shape[3]
        if not all(isinstance(v, int) and 1 <= v <= MAX_SIDE for v in (height, width)):
            raise self.refuse(
                f"takes pictures of {shown(str(shape))}; 1 to {MAX_SIDE} pixels a side are"
            )
        if channels != 3:
            raise self.refuse(f"takes {shown(str(channels))} channels; minitl's networks take 3")
        if self.input is not None:
            raise self.refuse("is a second input")
        self.input = Node("input", (), (), (height, width, channels))
        return self.input

    # -------------------------------------------------------------------- layers

    def layer(self, layer: Config, inputs: list[Node], group: str, depth: int) -> Node:
        kind, config = str(layer["class_name"]), layer["config"]
        self.count += 1
        if self.count > MAX_LAYERS:
            raise UnknownNetworkError(f"{self.what} describes more than {MAX_LAYERS} layers")
        if kind in _MODELS:
            if len(inputs) > 1:
                raise self.refuse("is a model with several inputs")
            result = self.model(layer, inputs[0] if inputs else None, f"{group}/", depth + 1)
            if result is None:
                raise self.refuse("is an empty model")
            return result
        self.at = str(config.get("name", kind))
        if kind == "InputLayer":
            return inputs[0] if inputs else self.start(_shape_of(config))
        if ">" in kind or not str(layer.get("module") or "keras").startswith("keras"):
            raise self.refuse(
                f"is a {shown(kind)}, a class of its author's own, which is never run"
            )
        if kind in _ARITHMETIC and (known := self.arithmetic(layer, inputs)) is not None:
            return known
        if kind in _CODE:
            raise self.refuse(
                f"is a {kind}: code, which is never run; replace it by a layer of Keras"
            )
        if not inputs:
            raise self.refuse("has no input")
        if config.get("data_format", "channels_last") not in ("channels_last", None):
            raise self.refuse("works on channels_first; save the model with channels_last")
        if kind in _PASSIVE:
            return self.passive(kind, config, inputs[0])
        make = _LAYERS.get(kind)
        if make is None:
            raise self.refuse(f"is a {shown(kind)}, which minitl does not know")
        node = make(self, config, inputs)
        if node.weights == self.at:
            node.group = group
        activation = config.get("activation") if kind != "Activation" else None
        return node if activation is None else self.activation(activation, node)

    def node(self, op: str, attrs: tuple[Any, ...], inputs: Sequence[Node], shape: Shape) -> Node:
        for before in inputs:
            if before.op == "softmax":
                raise self.refuse("comes after a softmax; only the last layer may have one")
        return Node(op, attrs, tuple(inputs), shape)

    def passive(self, kind: str, config: Config, x: Node) -> Node:
        if "Dropout" in kind:
            rate = float(config.get("rate", config.get("p", 0.5)))
            return Node("dropout", (), (x,), x.shape, options={"rate": rate})
        if kind.startswith("Random"):
            self.notes.append(f"layer {self.at} ({kind}) varies training pictures; left out")
            if kind in ("RandomCrop", "RandomHeight", "RandomWidth"):
                raise self.refuse(f"is a {kind}, which also changes the size of what is predicted")
        return x

    def activation(self, activation: Any, x: Node) -> Node:
        if isinstance(activation, Mapping) and activation.get("class_name") == "ReLU":
            return self.relu_layer(activation["config"], [x])
        if isinstance(activation, Mapping):
            # A function of Keras is written as its name, or as a function of that name.
            known = activation.get("class_name") == activation.get("registered_name") == "function"
            activation = activation["config"] if known else activation.get("class_name")
        name = str(activation).lower()
        if name == "linear":
            return x
        if name == "relu":
            return self.node("relu", (), (x,), x.shape)
        if name == "softmax" and len(x.shape) == 1:
            return self.node("softmax", (), (x,), x.shape)
        raise self.refuse(
            f"has the activation {shown(name)}; relu is supported, and softmax at the end"
        )

    def relu_layer(self, config: Config, inputs: list[Node]) -> Node:
        if (
            config.get("max_value") is not None
            or config.get("negative_slope")
            or config.get("threshold")
        ):
            raise self.refuse(
                "is a ReLU with an upper limit, slope or threshold; the plain one is supported"
            )
        return self.activation("relu", inputs[0])

    def conv(self, config: Config, inputs: list[Node]) -> Node:
        filters, groups = _count(config["filters"]), _count(config.get("groups", 1))
        kernel, stride = _pair(config["kernel_size"]), _pair(config["strides"])
        dilation = _pair(config.get("dilation_rate", 1))
        padding, x, same = self.padding(config, inputs[0], kernel, stride, dilation)
        shape = (*self.window(x, kernel, stride, padding, dilation), filters)
        if x.shape[2] % groups or filters % groups:
            raise self.refuse(f"has {groups} groups of {x.shape[2]} and {filters} channels")
        attrs = (filters, kernel, stride, tuple(padding), dilation, groups)
        node = self.node("conv", attrs, (x,), shape)
        node.weights = self.at
        node.options = {"bias": bool(config.get("use_bias", True)), "same": same}
        return node

    def pool(self, config: Config, inputs: list[Node], op: str) -> Node:
        kernel = _pair(config["pool_size"])
        stride = kernel if config.get("strides") is None else _pair(config["strides"])
        padding, x, same = self.padding(config, inputs[0], kernel, stride, (1, 1), op == "maxpool")
        shape = (*self.window(x, kernel, stride, padding, (1, 1)), x.shape[2])
        # TensorFlow's mean over a padded window is over its pixels alone; zero padding counts as pixels.
        attrs: tuple[Any, ...] = (kernel, stride, tuple(padding))
        if op == "avgpool":
            attrs += (not same and any(padding),)
        node = self.node(op, attrs, (x,), shape)
        node.options = {"same": same}
        return node

    def maxpool(self, config: Config, inputs: list[Node]) -> Node:
        return self.pool(config, inputs, "maxpool")

    def avgpool(self, config: Config, inputs: list[Node]) -> Node:
        return self.pool(config, inputs, "avgpool")

    def window(
        self, x: Node, kernel: Shape, stride: Shape, padding: Padding2d, dilation: Shape
    ) -> tuple[int, int]:
        rows, columns = zip(x.shape[:2], kernel, stride, dilation, strict=True)
        return (
            window_output_size(rows[0], padding.top, padding.bottom, rows[1], rows[2], rows[3]),
            window_output_size(
                columns[0], padding.left, padding.right, columns[1], columns[2], columns[3]
            ),
        )

    def padding(
        self,
        config: Config,
        x: Node,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        maximum: bool = False,
    ) -> tuple[Padding2d, Node, bool]:
        """Return padding in numbers, the node that is padded, and whether it was called "same"."""
        if len(x.shape) != 3:
            raise self.refuse(f"works on pictures, but gets {x.shape}")
        around = Padding2d(0, 0, 0, 0)
        if x.op == "pad":
            around, x = x.options["padding"], x.inputs[0]
            if maximum and x.op != "relu":
                # Zeros are not the largest only where nothing is below zero.
                x = Node("zeropad", tuple(around), (x,), _padded(x.shape, around))
                around = Padding2d(0, 0, 0, 0)
        mode = str(config.get("padding", config.get("border_mode", "valid"))).lower()
        if mode == "valid":
            return around, x, False
        if mode != "same":
            raise self.refuse(f"has the padding {shown(mode)}; valid and same are supported")
        if any(around):
            raise self.refuse("pads what is padded already")
        return same_padding(x.shape[0], x.shape[1], kernel, stride, dilation), x, True

    def zero_padding(self, config: Config, inputs: list[Node]) -> Node:
        (x,) = inputs
        value = config["padding"]
        both = (value, value) if isinstance(value, int) else value
        sides = [(v, v) if isinstance(v, int) else tuple(v) for v in both]
        padding = Padding2d(*(int(v) for side in sides for v in side))
        if x.op == "pad":
            padding = Padding2d(
                *(a + b for a, b in zip(padding, x.options["padding"], strict=True))
            )
            x = x.inputs[0]
        if not all(0 <= v <= 64 for v in padding):
            raise self.refuse(f"pads by {tuple(padding)}; 0 to 64 pixels are supported")
        node = self.node("pad", tuple(padding), (x,), _padded(x.shape, padding))
        node.options = {"padding": padding}
        return node

    def bn(self, config: Config, inputs: list[Node]) -> Node:
        (x,) = inputs
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if axis not in (-1, len(x.shape)):
            raise self.refuse(f"normalises over axis {shown(str(axis))}; the last one is supported")
        if config.get("mode"):
            raise self.refuse("is a batch normalisation of a mode that Keras no longer has")
        node = self.node("bn", (), (x,), x.shape)
        node.weights = self.at
        node.options = {
            "eps": float(config.get("epsilon", 1e-3)),
            "scale": bool(config.get("scale", True)),
            "center": bool(config.get("center", True)),
        }
        return node

    def dense(self, config: Config, inputs: list[Node]) -> Node:
        (x,) = inputs
        units = _count(config["units"] if "units" in config else config["output_dim"])
        if len(x.shape) != 1:
            raise self.refuse(
                "is a Dense layer on maps; put a Flatten or GlobalAveragePooling2D before it"
            )
        node = self.node("linear", (units,), (x,), (units,))
        node.weights = self.at
        node.options = {"bias": bool(config.get("use_bias", config.get("bias", True)))}
        return node

    def add(self, config: Config, inputs: list[Node]) -> Node:
        if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
            raise self.refuse("adds other than two maps of one shape")
        return self.node("add", (), inputs, inputs[0].shape)

    def concat(self, config: Config, inputs: list[Node]) -> Node:
        if config.get("axis", -1) not in (-1, 3) or len({x.shape[:-1] for x in inputs}) != 1:
            raise self.refuse("joins other than channels")
        channels = sum(x.shape[-1] for x in inputs)
        inputs = [y for x in inputs for y in (x.inputs if x.op == "concat" else (x,))]
        return self.node("concat", (), inputs, (*inputs[0].shape[:-1], channels))

    def gap(self, config: Config, inputs: list[Node]) -> Node:
        (x,) = inputs
        if len(x.shape) != 3 or config.get("keepdims"):
            raise self.refuse("averages other than maps into one row")
        return self.node("gap", (), (x,), x.shape[2:])

    def flatten(self, config: Config, inputs: list[Node]) -> Node:
        (x,) = inputs
        if len(x.shape) == 1:
            return x
        if x.op == "avgpool" and x.attrs[0] == x.inputs[0].shape[:2] and not any(x.attrs[2]):
            return self.node("gap", (), x.inputs, x.shape[2:])  # one mean of the whole map
        return self.node("flatten", (), (x,), (math.prod(x.shape),))

    # -------------------------------------------------------------------- what comes first

    def rescaling(self, config: Config, inputs: list[Node]) -> Node:
        return self.affine(_triple(config["scale"]), _triple(config.get("offset", 0.0)), inputs)

    def normalization(self, config: Config, inputs: list[Node]) -> Node:
        mean, variance = config.get("mean"), config.get("variance")
        if mean is None or variance is None:
            raise self.refuse(
                "is a Normalization with learned statistics; give it mean and variance"
            )
        std = [max(math.sqrt(v), 1e-7) for v in _triple(variance)]
        pairs = list(zip(_triple(mean), std, strict=True))
        return self.affine([1 / s for _, s in pairs], [-m / s for m, s in pairs], inputs)

    def affine(
        self, scale: list[float], offset: list[float], inputs: list[Node], reverse: bool = False
    ) -> Node:
        """Take x[reversed] * scale + offset as part of the preprocessing."""
        (x,) = inputs
        if x.op != "input" or not all(map(math.isfinite, (*scale, *offset))) or min(scale) <= 0:
            raise self.refuse(
                "scales maps; that is supported right behind the input, with a positive factor"
            )
        before = self.inside or Affine((1.0,) * 3, (0.0,) * 3, False)
        step = -1 if reverse else 1
        old_scale, old_offset = before.scale[::step], before.offset[::step]
        self.inside = Affine(
            tuple(a * b for a, b in zip(old_scale, scale, strict=True)),
            tuple(o * s + t for o, s, t in zip(old_offset, scale, offset, strict=True)),
            before.reverse != reverse,
        )
        return x

    def arithmetic(self, layer: Config, inputs: list[Node]) -> Node | None:
        """Understand an operation of `preprocess_input` that was applied to the input as a part of the
        network; None for any other.

        Keras 3: x[..., 2], x[..., 1] and x[..., 0] are stacked and a constant is added, or x is divided
        and a constant subtracted. TensorFlow's Keras 2: the same with functions of TensorFlow, by name.
        """
        kind, config, uses = layer["class_name"], layer["config"], layer["inbound_nodes"]
        if kind == "GetItem":
            ellipsis, channel = uses[0]["args"][1]
            if inputs[0].op == "input" and ellipsis.get("class_name") == "__ellipsis__":
                return Node("channel", (channel,), (inputs[0],), inputs[0].shape[:2])
        elif kind == "Stack" and config.get("axis") == -1:
            if [x.attrs for x in inputs] == [(2,), (1,), (0,)]:
                return self.affine([1.0] * 3, [0.0] * 3, [*inputs[0].inputs], reverse=True)
        elif kind in _OPERATORS and len(inputs) == 1 and isinstance(uses[0], Mapping):
            return self.operation(_OPERATORS[kind], uses[0]["args"][1], inputs)
        elif kind == "SlicingOpLambda":
            if config["function"] == "__operators__.getitem" and _reverses(uses[0][3]):
                return self.affine([1.0] * 3, [0.0] * 3, inputs, reverse=True)
        elif kind == "TFOpLambda" and config["function"] in _OPERATORS:
            values = uses[0][3]
            return self.operation(
                _OPERATORS[config["function"]], values.get("y", values.get("bias")), inputs
            )
        return None

    def operation(self, sign: str, value: Any, inputs: list[Node]) -> Node:
        if isinstance(value, Mapping):  # a constant of Keras 3
            value = value["config"]["value"]
        values = _triple(value)
        if sign in "+-":
            return self.affine([1.0] * 3, [v if sign == "+" else -v for v in values], inputs)
        return self.affine([v if sign == "*" else 1 / v for v in values], [0.0] * 3, inputs)


_OPERATORS = {
    "Add": "+",
    "Subtract": "-",
    "Multiply": "*",
    "Divide": "/",
    "TrueDivide": "/",
    "nn.bias_add": "+",
    "math.add": "+",
    "math.subtract": "-",
    "math.multiply": "*",
    "math.truediv": "/",
    "math.divide": "/",
}


def _reverses(values: Config) -> bool:
    """Return whether arguments of TensorFlow's getitem mean [..., ::-1]."""
    ellipsis, last = values["slice_spec"]["items"]
    ends: Sequence[Any] = [last[name] for name in ("start", "stop", "step")]
    return ellipsis["class_name"] == "__ellipsis__" and ends == [None, None, -1]


_LAYERS: dict[str, Callable[[_Reader, Config, list[Node]], Node]] = {
    "Activation": lambda reader, config, inputs: reader.activation(config["activation"], inputs[0]),
    "Add": _Reader.add,
    "AveragePooling2D": _Reader.avgpool,
    "BatchNormalization": _Reader.bn,
    "BatchNormalizationV1": _Reader.bn,
    "Concatenate": _Reader.concat,
    "Conv2D": _Reader.conv,
    "Dense": _Reader.dense,
    "Flatten": _Reader.flatten,
    "GlobalAveragePooling2D": _Reader.gap,
    "MaxPooling2D": _Reader.maxpool,
    "Normalization": _Reader.normalization,
    "ReLU": _Reader.relu_layer,
    "Rescaling": _Reader.rescaling,
    "Softmax": lambda reader, config, inputs: reader.activation("softmax", inputs[0]),
    "ZeroPadding2D": _Reader.zero_padding,
}


def _groups(layers: Sequence[Config], place: str) -> list[str]:
    """Return where a Keras 3 file keeps each layer: the class in snake case, counted."""
    counts: dict[str, int] = {}
    groups = []
    for layer in layers:
        name = re.sub(r"\W+", "", str(layer["class_name"]))
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        number = counts.get(name, 0)
        counts[name] = number + 1
        groups.append(f"{place}/{name}_{number}" if number else f"{place}/{name}")
    return groups


def _references(value: Any) -> list[str]:
    """Return the names in [["input_1", 0, 0], ...]; Keras 3 leaves the outer list out for one."""
    if value and isinstance(value[0], str):
        return [value[0]]
    return [str(reference[0]) for reference in value]


def _inbound(layer: Config) -> list[list[str]]:
    """Return for each use of a layer the names of its inputs.

    Keras 2: [[["conv1", 0, 0, {}], ...]]. Keras 3: [{"args": [tensor or list of tensors], ...}].
    """
    uses = []
    for use in layer.get("inbound_nodes", []):
        if use and isinstance(use[0] if isinstance(use, list) else None, str):
            uses.append([str(use[0])])  # a function of TensorFlow
        elif isinstance(use, Mapping):
            uses.append(_tensors([use["args"], list(use.get("kwargs", {}).values())]))
        else:
            uses.append([str(reference[0]) for reference in use])
    return uses


def _tensors(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for inner in value for name in _tensors(inner)]
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        return [str(value["config"]["keras_history"][0])]
    return []


def _input_shape(inner: Any, layers: Sequence[Config]) -> Sequence[Any]:
    """Return the input's shape of a Sequential model without an input layer."""
    first = _shape_of(layers[0]["config"]) if layers else ()
    if not first and isinstance(inner, Mapping):
        first = inner.get("build_input_shape") or ()
    return first


def _shape_of(config: Config) -> Sequence[Any]:
    shape: Sequence[Any] = config.get("batch_input_shape") or config.get("batch_shape") or ()
    return shape


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    if not all(isinstance(v, int) and 1 <= v <= 1024 for v in (rows, columns)):
        raise ValueError(f"{value!r} is no pair of sizes")
    return rows, columns


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= MAX_WIDTH:
        raise ValueError(f"{value!r} is no number from 1 to {MAX_WIDTH}")
    return value


def _triple(value: Any) -> list[float]:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        raise ValueError(f"{len(values)} values for 3 channels")
    return [float(v) for v in values]


def _padded(shape: Shape, padding: Padding2d) -> Shape:
    height, width, channels = shape
    return (
        height + padding.top + padding.bottom,
        width + padding.left + padding.right,
        channels,
    )


__all__ = [
    "Affine",
    "Graph",
    "Node",
    "UnknownNetworkError",
    "nodes_of",
    "read_graph",
    "same_network",
    "signatures",
]
