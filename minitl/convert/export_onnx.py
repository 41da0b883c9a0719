"""Write a network as an ONNX graph.

The network runs once on an empty picture while its operations are recorded, and each becomes one or two
ONNX nodes. So there is one translation for each operation, whatever the architecture.

Pictures are N, C, H, W in the graph, as ONNX demands; here they are N, H, W, C. So filters are transposed and
channels are axis 1, and nothing else changes: `ops.flatten` has the order of C, H, W already.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models.classifier import Classifier
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
from minitl.tensor import Op, Tensor, Use, no_grad, record_uses

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8  # that of the first onnx release with this opset


def onnx_file(model: Classifier, metadata: Mapping[str, str], what: str) -> bytes:
    """Return the bytes of an ONNX file: input (batch, 3, crop, crop), output logits (batch, classes).

    model: left in evaluation mode. metadata: stored with the graph. what: the model's file, for errors.

    Raises UserError where the library is not installed, the preprocessing (and so the size of the input)
    is unknown, or an operation has no translation.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("--to onnx needs the library onnx: pip install 'minitl[onnx]'") from None

    if not model.preprocessing:
        raise UserError(
            f"{what} does not say how pictures are prepared for it, so the size of the input is unknown"
        )
    size = Preprocessing.from_dict(model.preprocessing).crop
    x = Tensor(np.zeros((1, size, size, 3), np.float32))
    with record_uses() as uses, no_grad():
        logits = model.eval()(x)
    graph = _Graph(model, x)
    for use in uses:
        if use.op not in _TRANSLATIONS:
            raise UserError(f"{what}: ONNX export does not know the operation {use.op.__name__}")
        graph.names[id(use.result)] = _TRANSLATIONS[use.op](graph, use)
    helper = onnx.helper
    graph.nodes.append(helper.make_node("Identity", [graph.name(logits)], ["logits"]))
    kind = onnx.TensorProto.FLOAT
    network = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model.arch,
            [helper.make_tensor_value_info("input", kind, ["batch", 3, size, size])],
            [helper.make_tensor_value_info("logits", kind, ["batch", model.num_classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="minitl",
    )
    helper.set_model_props(network, dict(metadata))
    onnx.checker.check_model(network)
    content: bytes = network.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Nodes and constants so far, and the names of the values."""

    def __init__(self, model: Classifier, x: Tensor) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names = {id(x): "input"}
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._parameters |= {id(buffer): name for name, buffer in model.named_buffers()}

    def name(self, value: Tensor | None) -> str:
        """Return the name of a tensor; one that nothing computed becomes a constant."""
        if value is None:
            return ""  # ONNX's way to leave an input out
        if id(value) not in self.names:
            self.names[id(value)] = self.constant(value.data, self._parameters.get(id(value)))
        return self.names[id(value)]

    def buffer(self, array: np.ndarray) -> str:
        """Return the name of a running statistic, as a constant."""
        if id(array) not in self.names:
            self.names[id(array)] = self.constant(array, self._parameters.get(id(array)))
        return self.names[id(array)]

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """Add a constant, filters as (out, in, height, width); return its name."""
        import onnx

        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        name = name or f"constant_{len(self.constants)}"
        array = np.asarray(array, np.float32, order="C")
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; return its name."""
        import onnx

        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        )
        return output


def _conv2d(graph: _Graph, use: Use) -> str:
    return _convolved(graph, use.inputs, use.options)


def _convolved(graph: _Graph, inputs: Sequence[Tensor | None], geometry: Mapping[str, Any]) -> str:
    return graph.node(
        "Conv",
        *map(graph.name, inputs),
        strides=geometry["stride"],
        pads=_pads(geometry),
        dilations=geometry["dilation"],
        group=geometry["groups"],
    )


def _pads(options: Mapping[str, Any]) -> tuple[int, int, int, int]:
    padding = options["padding"]
    return padding.top, padding.left, padding.bottom, padding.right


def _conv2d_batchnorm(graph: _Graph, use: Use) -> str:
    x, weight, bn_weight, bn_bias, residual = use.inputs
    z = _convolved(graph, (x, weight), use.options["geometry"])
    y = _normalised(graph, z, bn_weight, bn_bias, use.options)
    return _finished(graph, y, residual, use.options["relu"])


def _batchnorm(graph: _Graph, use: Use) -> str:
    x, weight, bias, residual = use.inputs
    y = _normalised(graph, graph.name(x), weight, bias, use.options)
    return _finished(graph, y, residual, use.options["relu"])


def _finished(graph: _Graph, y: str, residual: Tensor | None, relu: bool) -> str:
    if residual is not None:
        y = graph.node("Add", y, graph.name(residual))
    return graph.node("Relu", y) if relu else y


def _normalised(
    graph: _Graph, x: str, weight: Tensor | None, bias: Tensor | None, options: Mapping[str, Any]
) -> str:
    return graph.node(
        "BatchNormalization",
        x,
        graph.name(weight),
        graph.name(bias),
        graph.buffer(options["running_mean"]),
        graph.buffer(options["running_var"]),
        epsilon=options["eps"],
    )


def _batchnorm_relu_maxpool(graph: _Graph, use: Use) -> str:
    x, weight, bias = use.inputs
    y = graph.node("Relu", _normalised(graph, graph.name(x), weight, bias, use.options))
    return graph.node("MaxPool", y, **_window(use.options["window"]))


def _window(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kernel_shape": options["kernel"],
        "strides": options["stride"],
        "pads": _pads(options),
    }


def _maxpool2d(graph: _Graph, use: Use) -> str:
    return graph.node("MaxPool", graph.name(use.inputs[0]), **_window(use.options))


def _avgpool2d(graph: _Graph, use: Use) -> str:
    return graph.node(
        "AveragePool",
        graph.name(use.inputs[0]),
        count_include_pad=int(use.options["count_include_pad"]),
        **_window(use.options),
    )


def _adaptive_avgpool2d(graph: _Graph, use: Use) -> str:
    """Average rows, then columns, each as a product with a matrix of shares: Y = A X B."""
    (x,) = use.inputs
    assert x is not None
    rows, columns = (
        _shares(size, count) for size, count in zip(x.shape[1:3], use.options["size"], strict=True)
    )
    y = graph.node("MatMul", graph.constant(rows), graph.name(x))
    return graph.node("MatMul", y, graph.constant(columns.T))


def _shares(size: int, count: int) -> np.ndarray:
    """Return (count, size): how much each of `size` pixels counts in each window."""
    shares = np.zeros((count, size), np.float32)
    for number in range(count):
        start, stop = number * size // count, math.ceil((number + 1) * size / count)
        shares[number, start:stop] = 1 / (stop - start)
    return shares


def _global_avgpool2d(graph: _Graph, use: Use) -> str:
    y = graph.node("GlobalAveragePool", graph.name(use.inputs[0]))
    return graph.node("Flatten", y, axis=1)


def _flatten(graph: _Graph, use: Use) -> str:
    return graph.node("Flatten", graph.name(use.inputs[0]), axis=1)


def _linear(graph: _Graph, use: Use) -> str:
    return graph.node("Gemm", *map(graph.name, use.inputs), transB=1)


def _relu(graph: _Graph, use: Use) -> str:
    return graph.node("Relu", graph.name(use.inputs[0]))


def _add(graph: _Graph, use: Use) -> str:
    return graph.node("Add", *map(graph.name, use.inputs))


def _concat(graph: _Graph, use: Use) -> str:
    return graph.node("Concat", *map(graph.name, use.inputs), axis=1)


_TRANSLATIONS: dict[type[Op], Callable[[_Graph, Use], str]] = {
    AdaptiveAvgPool2d: _adaptive_avgpool2d,
    Add: _add,
    AvgPool2d: _avgpool2d,
    BatchNorm: _batchnorm,
    BatchNormReluMaxPool: _batchnorm_relu_maxpool,
    Concat: _concat,
    Conv2d: _conv2d,
    Conv2dBatchNorm: _conv2d_batchnorm,
    Flatten: _flatten,
    GlobalAvgPool2d: _global_avgpool2d,
    Linear: _linear,
    MaxPool2d: _maxpool2d,
    Relu: _relu,
}

__all__ = ["IR_VERSION", "OPSET", "onnx_file"]
