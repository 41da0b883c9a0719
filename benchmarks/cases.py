"""Every operation of a layer, ready to run: ours, PyTorch's, and PyTorch's in float64 as the reference.

All three work on the very same numbers. Arrays are ours, NHWC; PyTorch sees the same memory as
channels_last ("nhwc") and a copy of it in its own order ("nchw").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.shapes import Layer
from minitl.backend import kernels_for
from minitl.kernels.cpu import conv2d as conv2d_kernels
from minitl.kernels.cpu.microkernel import host_lanes
from minitl.shapes import Padding2d

Results = tuple[Any, ...]  # NumPy arrays or PyTorch tensors, in NHWC
Function = Callable[[], Results]

F32 = 4  # bytes
EPS = 1e-5
LR, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
aten = torch.ops.aten


@dataclass
class Case:
    """One operation on one shape.

    ours, rivals: return results in the order that `reference` has, which is computed in float64.
    flops: of the plain algorithm. bytes: what must be read and written once the caches hold nothing.
    bound: largest error allowed, as a share of the largest result; None: twice the best rival's.
    """

    ours: Function
    rivals: dict[str, Function]
    reference: Function
    flops: float
    bytes: float
    bound: float | None = None
    algorithm: str = ""


@dataclass
class Maker:
    """Makes the cases of one operation on request, because each holds large arrays."""

    op: str
    make: Callable[[Layer, int], Case] = field(repr=False)


def operations(layer: Layer) -> Iterator[Maker]:
    """Yield the operations of a layer in training: forward, then its gradients."""
    if layer.op == "conv2d":
        yield Maker("conv2d_forward", conv2d_forward)
        if not layer.first:
            yield Maker("conv2d_dx", conv2d_dx)
        yield Maker("conv2d_dw", conv2d_dw)
        if layer.bias:
            yield Maker("conv2d_db", conv2d_db)
    elif layer.op == "batchnorm_relu_maxpool":
        yield Maker("batchnorm_relu_maxpool_forward", batchnorm_relu_maxpool_forward)
        yield Maker("batchnorm_relu_maxpool_dx", batchnorm_relu_maxpool_dx)
    elif layer.op.startswith("batchnorm"):
        yield Maker(f"{layer.op}_forward", batchnorm_forward)
        yield Maker(f"{layer.op}_dx", batchnorm_dx)
        yield Maker(f"{layer.op}_frozen", batchnorm_frozen)
    elif layer.op == "linear":
        yield Maker("linear_forward", linear_forward)
        yield Maker("linear_dx", linear_dx)
        yield Maker("linear_dw", linear_dw)
    elif layer.op in ("sgd", "adam"):
        yield Maker(f"{layer.op}_step", sgd_step if layer.op == "sgd" else adam_step)
    else:
        forward, dx = BOTH_DIRECTIONS[layer.op]
        yield Maker(f"{layer.op}_forward", forward)
        yield Maker(f"{layer.op}_dx", dx)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return normal random numbers, float32."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values *= np.float32(scale)
    return values


def both_formats(array: np.ndarray) -> dict[str, torch.Tensor]:
    """Return pictures or filters as PyTorch tensors (N, C, H, W) in both memory formats."""
    nhwc = torch.from_numpy(array).permute(0, 3, 1, 2)
    return {"nchw": nhwc.contiguous(), "nhwc": nhwc}


def exact(array: np.ndarray) -> torch.Tensor:
    """Return the same numbers in float64, pictures and filters as (N, C, H, W)."""
    tensor = torch.from_numpy(array).double()
    return tensor.permute(0, 3, 1, 2).contiguous() if array.ndim == 4 else tensor


def to_nhwc(tensor: torch.Tensor) -> torch.Tensor:
    """View (N, C, H, W) as (N, H, W, C)."""
    return tensor.permute(0, 2, 3, 1)


# Convolution


def conv2d_setting() -> str:
    """Return the choice among convolution algorithms that is in force."""
    setting = conv2d_kernels.set_conv_algorithm("auto")
    conv2d_kernels.set_conv_algorithm(setting)
    return setting


class _Conv2d:
    """What the directions of a convolution share."""

    def __init__(self, layer: Layer, batch: int) -> None:
        s, c, k, r = layer.size, layer.channels, layer.filters, layer.kernel
        after = (s + 2 * layer.padding - r) // layer.stride + 1
        self.x_shape, self.w_shape = (batch, s, s, c), (k, r, r, c)
        self.y_shape = (batch, after, after, k)
        self.stride, self.padding = layer.stride, layer.padding
        self.geometry = (
            (layer.stride, layer.stride),
            Padding2d(*[layer.padding] * 4),
            (1, 1),
            1,
        )
        self.flops = 2 * batch * after**2 * k * c * r**2
        sizes = (np.prod(shape) for shape in (self.x_shape, self.w_shape, self.y_shape))
        self.bytes = float(F32 * sum(sizes))
        self.algorithm = conv2d_kernels.choose_algorithm(
            self.x_shape,
            self.w_shape,
            np.dtype(np.float32),
            *self.geometry,
            conv2d_setting(),
            host_lanes(),
        )

    def weight(self) -> np.ndarray:
        """Return filters that keep the size of activations (He et al. 2015)."""
        return random(*self.w_shape, seed=1, scale=(2 / np.prod(self.w_shape[1:])) ** 0.5)

    def case(self, ours: Function, rivals: dict[str, Function], reference: Function) -> Case:
        """Return the case of one direction."""
        # kernels/cpu/conv2d.py promises Winograd F(4x4) this much.
        bound = 1e-4 if self.algorithm == "winograd_f4" else None
        return Case(ours, rivals, reference, self.flops, self.bytes, bound, self.algorithm)

    def backward(self, x: Any, dy: Any, w: Any, which: int) -> torch.Tensor:
        """Run PyTorch's backward for dx (0) or dw (1) alone."""
        mask = [which == 0, which == 1, False]
        geometry = [self.stride] * 2, [self.padding] * 2, [1, 1], False, [0, 0], 1
        result: torch.Tensor = aten.convolution_backward(dy, x, w, None, *geometry, mask)[which]
        return result


def conv2d_forward(layer: Layer, batch: int) -> Case:
    """y = conv(x, weight) [+ bias]."""
    conv = _Conv2d(layer, batch)
    x, weight = random(*conv.x_shape), conv.weight()
    bias = random(layer.filters, seed=2) if layer.bias else None
    torch_bias = None if bias is None else torch.from_numpy(bias)
    xs, ws = both_formats(x), both_formats(weight)

    def rival(name: str) -> Function:
        return lambda: (
            to_nhwc(F.conv2d(xs[name], ws[name], torch_bias, conv.stride, conv.padding)),
        )

    def reference() -> Results:
        b = None if torch_bias is None else torch_bias.double()
        return (to_nhwc(F.conv2d(exact(x), exact(weight), b, conv.stride, conv.padding)),)

    return conv.case(
        lambda: (kernels_for(x).conv2d_forward(x, weight, bias, *conv.geometry),),
        {name: rival(name) for name in xs},
        reference,
    )


def conv2d_dx(layer: Layer, batch: int) -> Case:
    """Gradient of x."""
    conv = _Conv2d(layer, batch)
    x, dy, weight = np.empty(conv.x_shape, np.float32), random(*conv.y_shape), conv.weight()
    xs, dys, ws = both_formats(x), both_formats(dy), both_formats(weight)

    def rival(name: str) -> Function:
        return lambda: (to_nhwc(conv.backward(xs[name], dys[name], ws[name], 0)),)

    return conv.case(
        lambda: (kernels_for(dy).conv2d_dx(dy, weight, conv.x_shape, *conv.geometry),),
        {name: rival(name) for name in xs},
        lambda: (to_nhwc(conv.backward(exact(x), exact(dy), exact(weight), 0)),),
    )


def conv2d_dw(layer: Layer, batch: int) -> Case:
    """Gradient of the weight."""
    conv = _Conv2d(layer, batch)
    x, dy, weight = random(*conv.x_shape), random(*conv.y_shape, seed=1), conv.weight()
    xs, dys, ws = both_formats(x), both_formats(dy), both_formats(weight)

    def rival(name: str) -> Function:
        return lambda: (to_nhwc(conv.backward(xs[name], dys[name], ws[name], 1)),)

    return conv.case(
        lambda: (kernels_for(x).conv2d_dw(dy, x, conv.w_shape, *conv.geometry),),
        {name: rival(name) for name in xs},
        lambda: (to_nhwc(conv.backward(exact(x), exact(dy), exact(weight), 1)),),
    )


def conv2d_db(layer: Layer, batch: int) -> Case:
    """Gradient of the bias."""
    conv = _Conv2d(layer, batch)
    dy = random(*conv.y_shape)
    dys = both_formats(dy)
    return Case(
        lambda: (kernels_for(dy).conv2d_db(dy),),
        {name: lambda t=t: (t.sum((0, 2, 3)),) for name, t in dys.items()},  # type: ignore[misc]
        lambda: (exact(dy).sum((0, 2, 3)),),
        flops=dy.size,
        bytes=dy.nbytes,
    )


# Batch normalisation


class _BatchNorm:
    """What the directions of a batch normalisation share."""

    def __init__(self, layer: Layer, batch: int) -> None:
        c = layer.channels
        self.shape = (batch, layer.size, layer.size, c)
        self.relu = "relu" in layer.op
        self.adds = "add" in layer.op
        self.x = random(*self.shape)
        self.residual = random(*self.shape, seed=1) if self.adds else None
        self.weight, self.bias = 1 + random(c, seed=2, scale=0.1), random(c, seed=3, scale=0.1)
        self.elements = float(self.x.size)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and 1 / std of each channel by our kernel."""
        mean, var = kernels_for(self.x).batchnorm_statistics(self.x)
        return mean, 1 / np.sqrt(var + EPS)

    def apply(self, mean: np.ndarray, inv_std: np.ndarray) -> np.ndarray:
        """Return y by our kernel."""
        scale = self.weight * inv_std
        y: np.ndarray = kernels_for(self.x).batchnorm_apply(
            self.x, scale, self.bias - mean * scale, self.residual, self.relu
        )
        return y

    def forward(self, x: Any, residual: Any, training: bool) -> torch.Tensor:
        """Run what a residual block of torchvision runs, ReLU in place."""
        weight, bias = (torch.from_numpy(v).to(x.dtype) for v in (self.weight, self.bias))
        mean, var = torch.zeros_like(weight), torch.ones_like(weight)
        y = F.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS)
        if residual is not None:
            y.add_(residual)
        return to_nhwc(y.relu_() if self.relu else y)

    def forward_case(self, ours: Function, training: bool, reads: int) -> Case:
        """Return a case of the forward direction."""
        xs = both_formats(self.x)
        residuals = both_formats(self.residual) if self.residual is not None else {}
        exact_residual = None if self.residual is None else exact(self.residual)

        def rival(name: str) -> Function:
            return lambda: (self.forward(xs[name], residuals.get(name), training),)

        return Case(
            ours,
            {name: rival(name) for name in xs},
            lambda: (self.forward(exact(self.x), exact_residual, training),),
            flops=4 * self.elements,
            bytes=(reads + self.adds + 1) * F32 * self.elements,
        )


def batchnorm_forward(layer: Layer, batch: int) -> Case:
    """Statistics of the batch, then y in one pass."""
    bn = _BatchNorm(layer, batch)
    return bn.forward_case(lambda: (bn.apply(*bn.statistics()),), True, reads=2)


def batchnorm_frozen(layer: Layer, batch: int) -> Case:
    """Normalise with fixed statistics, as in evaluation and in frozen layers."""
    bn = _BatchNorm(layer, batch)
    c = layer.channels
    inv_std = np.full(c, 1 / np.sqrt(1 + EPS))
    return bn.forward_case(lambda: (bn.apply(np.zeros(c), inv_std),), False, reads=1)


def batchnorm_dx(layer: Layer, batch: int) -> Case:
    """Gradients of x, weight, bias and residual."""
    bn = _BatchNorm(layer, batch)
    dy = random(*bn.shape, seed=4)
    mean, inv_std = bn.statistics()
    y = bn.apply(mean, inv_std) if bn.relu else None
    k, pixels = kernels_for(dy), bn.x.size // layer.channels

    def ours() -> Results:
        scale = bn.weight * inv_std
        sum_dz, sum_dz_xhat, dz = k.batchnorm_reduce(dy, y, bn.x, mean, inv_std, keep_dz=bn.adds)
        b = -scale * inv_std * sum_dz_xhat / pixels
        c = -scale * sum_dz / pixels - b * mean
        g, mask = (dy, y) if dz is None else (dz, None)
        dx = k.batchnorm_dx(g, mask, bn.x, scale, b, c)
        return (dx, sum_dz_xhat, sum_dz, *([dz] if bn.adds else []))

    def backward(x: torch.Tensor, y: torch.Tensor | None, dy: torch.Tensor) -> Results:
        weight = torch.from_numpy(bn.weight).to(x.dtype)
        statistics = (torch.from_numpy(v).to(x.dtype) for v in (mean, inv_std))
        dz = dy if y is None else aten.threshold_backward(dy, y, 0)
        dx, dweight, dbias = aten.native_batch_norm_backward(
            dz, x, weight, None, None, *statistics, True, EPS, [True] * 3
        )
        return (to_nhwc(dx), dweight, dbias, *([to_nhwc(dz)] if bn.adds else []))

    xs, dys = both_formats(bn.x), both_formats(dy)
    ys = both_formats(y) if y is not None else {}

    def rival(name: str) -> Function:
        return lambda: backward(xs[name], ys.get(name), dys[name])

    # Two passes over dy and x, because dx needs the sums; with a residual, dz in place of dy and y.
    passes = 4 + (2 if bn.relu and not bn.adds else 0) + (2 if bn.adds else 0) + 1
    return Case(
        ours,
        {name: rival(name) for name in xs},
        lambda: backward(exact(bn.x), None if y is None else exact(y), exact(dy)),
        flops=8 * bn.elements,
        bytes=passes * F32 * bn.elements,
    )


# ReLU and pooling


def relu_forward(layer: Layer, batch: int) -> Case:
    """max(x, 0)."""
    x = random(batch, layer.size, layer.size, layer.channels)
    xs = both_formats(x)
    return Case(
        lambda: (kernels_for(x).relu_forward(x),),
        {name: lambda t=t: (to_nhwc(F.relu(t)),) for name, t in xs.items()},  # type: ignore[misc]
        lambda: (to_nhwc(F.relu(exact(x))),),
        flops=x.size,
        bytes=2 * x.nbytes,
    )


def relu_dx(layer: Layer, batch: int) -> Case:
    """Gradient of x: dy where y is above zero."""
    dy = random(batch, layer.size, layer.size, layer.channels)
    y = np.maximum(random(*dy.shape, seed=1), 0)
    ys, dys = both_formats(y), both_formats(dy)

    def rival(name: str) -> Function:
        return lambda: (to_nhwc(aten.threshold_backward(dys[name], ys[name], 0)),)

    return Case(
        lambda: (kernels_for(dy).relu_dx(dy, y),),
        {name: rival(name) for name in ys},
        lambda: (to_nhwc(aten.threshold_backward(exact(dy), exact(y), 0)),),
        flops=dy.size,
        bytes=3 * dy.nbytes,
    )


def _window(layer: Layer) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return kernel, stride and padding as our kernels and as PyTorch takes them."""
    kernel, stride, padding = layer.kernel, layer.stride, layer.padding
    ours = (kernel, kernel), (stride, stride), Padding2d(*[padding] * 4)
    return ours, ([kernel] * 2, [stride] * 2, [padding] * 2)


def maxpool2d_forward(layer: Layer, batch: int) -> Case:
    """Largest value of each window, and where it was."""
    x = random(batch, layer.size, layer.size, layer.channels)
    xs = both_formats(x)
    window, torch_window = _window(layer)

    def rival(t: torch.Tensor) -> Results:
        return (to_nhwc(aten.max_pool2d_with_indices(t, *torch_window)[0]),)

    results = x.size / layer.stride**2
    return Case(
        lambda: kernels_for(x).maxpool2d_forward(x, *window)[:1],
        {name: lambda t=t: rival(t) for name, t in xs.items()},  # type: ignore[misc]
        lambda: rival(exact(x)),
        flops=results * layer.kernel**2,
        bytes=x.nbytes + results * (F32 + 1),
    )


def maxpool2d_dx(layer: Layer, batch: int) -> Case:
    """Gradient of x: dy, to the chosen pixel of each window."""
    x = random(batch, layer.size, layer.size, layer.channels)
    window, torch_window = _window(layer)
    k = kernels_for(x)
    y, index = k.maxpool2d_forward(x, *window)
    dy = random(*y.shape, seed=1)

    def backward(x: torch.Tensor, dy: torch.Tensor) -> Function:
        indices = aten.max_pool2d_with_indices(x, *torch_window)[1]
        return lambda: (
            to_nhwc(
                aten.max_pool2d_with_indices_backward(dy, x, *torch_window, [1, 1], False, indices)
            ),
        )

    xs, dys = both_formats(x), both_formats(dy)
    return Case(
        lambda: (k.maxpool2d_dx(dy, index, x.shape, *window),),
        {name: backward(xs[name], dys[name]) for name in xs},
        lambda: backward(exact(x), exact(dy))(),
        flops=dy.size,
        bytes=x.nbytes + dy.size * (F32 + 1),
    )


def global_avgpool2d_forward(layer: Layer, batch: int) -> Case:
    """Mean of each channel of each picture."""
    x = random(batch, layer.size, layer.size, layer.channels)
    xs = both_formats(x)
    return Case(
        lambda: (kernels_for(x).global_avgpool2d_forward(x),),
        {name: lambda t=t: (t.mean((2, 3)),) for name, t in xs.items()},  # type: ignore[misc]
        lambda: (exact(x).mean((2, 3)),),
        flops=x.size,
        bytes=x.nbytes,
    )


def global_avgpool2d_dx(layer: Layer, batch: int) -> Case:
    """Gradient of x: dy / pixels, at each pixel."""
    dy, size = random(batch, layer.channels), layer.size
    shape = (batch, size, size, layer.channels)

    def backward(dy: torch.Tensor, format: torch.memory_format) -> Results:
        dx = dy[:, :, None, None].expand(-1, -1, size, size) / size**2
        return (to_nhwc(dx.contiguous(memory_format=format)),)

    tensor = torch.from_numpy(dy)
    formats = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    return Case(
        lambda: (kernels_for(dy).global_avgpool2d_dx(dy, shape),),
        {name: lambda f=f: backward(tensor, f) for name, f in formats.items()},  # type: ignore[misc]
        lambda: backward(tensor.double(), torch.contiguous_format),
        flops=float(np.prod(shape)),
        bytes=float(F32 * np.prod(shape)),
    )


# The stem


class _Stem:
    """What both directions of batch normalisation, ReLU and max pooling in one share."""

    def __init__(self, layer: Layer, batch: int) -> None:
        # Multiples of 1/64: pixels of a window are equal or far apart in every precision, so that float32
        # and float64 choose the same one.
        x = random(batch, layer.size, layer.size, layer.channels)
        self.x: np.ndarray = np.rint(x * 64) / np.float32(64)
        c = layer.channels
        self.weight, self.bias = 1 + random(c, seed=2, scale=0.1), random(c, seed=3, scale=0.1)
        self.window, self.torch_window = _window(layer)
        self.kernels = kernels_for(self.x)
        self.mean, var = self.kernels.batchnorm_statistics(self.x)
        self.inv_std = 1 / np.sqrt(var + EPS)
        self.scale = self.weight * self.inv_std
        self.pixels = self.x.size // c
        self.results = self.x.size // layer.stride**2

    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """Return y and the index by our kernel, with statistics already known."""
        found: tuple[np.ndarray, np.ndarray] = self.kernels.batchnorm_relu_maxpool_forward(
            self.x, self.scale, self.bias - self.mean * self.scale, *self.window
        )
        return found

    def normalise(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return relu(batchnorm(x)) and the weight, in PyTorch."""
        weight, bias = (torch.from_numpy(v).to(x.dtype) for v in (self.weight, self.bias))
        running = torch.zeros_like(weight), torch.ones_like(weight)
        return F.batch_norm(x, *running, weight, bias, True, 0.1, EPS).relu_(), weight


def batchnorm_relu_maxpool_forward(layer: Layer, batch: int) -> Case:
    """Statistics of the batch, then normalise, rectify and pool: the stem of a ResNet."""
    stem = _Stem(layer, batch)

    def ours() -> Results:
        stem.kernels.batchnorm_statistics(stem.x)  # the same numbers again
        return stem.pool()[:1]

    def rival(x: torch.Tensor) -> Results:
        z, _ = stem.normalise(x)
        return (to_nhwc(aten.max_pool2d_with_indices(z, *stem.torch_window)[0]),)

    xs = both_formats(stem.x)
    return Case(
        ours,
        {name: lambda t=t: rival(t) for name, t in xs.items()},  # type: ignore[misc]
        lambda: rival(exact(stem.x)),
        flops=4 * stem.x.size,
        bytes=2 * stem.x.nbytes + stem.results * (F32 + 1),
    )


def batchnorm_relu_maxpool_dx(layer: Layer, batch: int) -> Case:
    """Gradients of x, weight and bias."""
    stem = _Stem(layer, batch)
    y, index, chosen = stem.pool()
    dy = random(*y.shape, seed=4)

    def ours() -> Results:
        sum_dz, sum_dz_xhat, _ = stem.kernels.batchnorm_reduce(
            dy, y, chosen, stem.mean, stem.inv_std
        )
        b = -stem.scale * stem.inv_std * sum_dz_xhat / stem.pixels
        c = -stem.scale * sum_dz / stem.pixels - b * stem.mean
        dx = stem.kernels.batchnorm_relu_maxpool_dx(
            dy, index, stem.x.shape, stem.x, stem.scale, b, c, *stem.window
        )
        return dx, sum_dz_xhat, sum_dz

    def backward(x: torch.Tensor, dy: torch.Tensor) -> Function:
        z, weight = stem.normalise(x)
        indices = aten.max_pool2d_with_indices(z, *stem.torch_window)[1]
        statistics = [torch.from_numpy(v).to(x.dtype) for v in (stem.mean, stem.inv_std)]

        def run() -> Results:
            dz = aten.max_pool2d_with_indices_backward(
                dy, z, *stem.torch_window, [1, 1], False, indices
            )
            dz = aten.threshold_backward(dz, z, 0)
            dx, dweight, dbias = aten.native_batch_norm_backward(
                dz, x, weight, None, None, *statistics, True, EPS, [True] * 3
            )
            return to_nhwc(dx), dweight, dbias

        return run

    xs, dys = both_formats(stem.x), both_formats(dy)
    return Case(
        ours,
        {name: backward(xs[name], dys[name]) for name in xs},
        lambda: backward(exact(stem.x), exact(dy))(),
        flops=8 * stem.x.size,
        bytes=3 * stem.x.nbytes + 2 * stem.results * (F32 + 1),
    )


# Dense layers and the loss


def _linear(layer: Layer, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    i, o = layer.channels, layer.filters
    weight = random(o, i, seed=1, scale=i**-0.5)
    return random(batch, i), weight, random(o, seed=2), random(batch, o, seed=3)


def _linear_case(
    layer: Layer, batch: int, ours: Function, rival: Callable[..., Any], *arrays: np.ndarray
) -> Case:
    tensors = [torch.from_numpy(a) for a in arrays]
    return Case(
        ours,
        {"": lambda: (rival(*tensors),)},
        lambda: (rival(*(t.double() for t in tensors)),),
        flops=2 * batch * layer.channels * layer.filters,
        bytes=F32 * (layer.channels * layer.filters + batch * (layer.channels + layer.filters)),
    )


def linear_forward(layer: Layer, batch: int) -> Case:
    """y = x weight^T + bias."""
    x, weight, bias, _ = _linear(layer, batch)
    k = kernels_for(x)
    return _linear_case(
        layer, batch, lambda: (k.linear_forward(x, weight, bias),), F.linear, x, weight, bias
    )


def linear_dx(layer: Layer, batch: int) -> Case:
    """Gradient of x."""
    _, weight, _, dy = _linear(layer, batch)
    k = kernels_for(dy)
    return _linear_case(
        layer, batch, lambda: (k.linear_dx(dy, weight),), lambda dy, w: dy @ w, dy, weight
    )


def linear_dw(layer: Layer, batch: int) -> Case:
    """Gradient of the weight."""
    x, _, _, dy = _linear(layer, batch)
    k = kernels_for(x)
    return _linear_case(
        layer, batch, lambda: (k.linear_dw(dy, x),), lambda dy, x: dy.t() @ x, dy, x
    )


def softmax_cross_entropy_forward(layer: Layer, batch: int) -> Case:
    """Return the mean loss of a batch."""
    logits = random(batch, layer.channels)
    labels = np.arange(batch) % layer.channels
    tensor, torch_labels = torch.from_numpy(logits), torch.from_numpy(labels)
    return Case(
        lambda: (kernels_for(logits).softmax_cross_entropy_forward(logits, labels, None, 0.0)[0],),
        {"": lambda: (F.cross_entropy(tensor, torch_labels),)},
        lambda: (F.cross_entropy(tensor.double(), torch_labels),),
        flops=4 * logits.size,
        bytes=logits.nbytes,
    )


def softmax_cross_entropy_dx(layer: Layer, batch: int) -> Case:
    """Gradient of the logits."""
    logits = random(batch, layer.channels)
    labels = np.arange(batch) % layer.channels
    torch_labels = torch.from_numpy(labels)
    k, one = kernels_for(logits), np.asarray(1, np.float32)
    _, probabilities = k.softmax_cross_entropy_forward(logits, labels, None, 0.0)

    def backward(tensor: torch.Tensor) -> Function:
        with torch.enable_grad():
            tensor.requires_grad_()
            loss = F.cross_entropy(tensor, torch_labels)
        return lambda: torch.autograd.grad(loss, tensor, retain_graph=True)

    return Case(
        lambda: (k.softmax_cross_entropy_dx(one, probabilities, labels, None, 0.0),),
        {"": backward(torch.from_numpy(logits))},
        backward(torch.from_numpy(logits).double()),
        flops=2 * logits.size,
        bytes=2 * logits.nbytes,
    )


# Optimizers


def _optimizer_case(layer: Layer, passes: int, ours: Function, make: Callable[..., Any]) -> Case:
    """Return a case whose result is the parameters after its first step.

    PyTorch gets one tensor, which suits it best; where a network has many, it does less well.
    """
    size = layer.channels

    def step(kind: str, dtype: torch.dtype) -> Function:
        parameter = torch.from_numpy(random(size)).to(dtype).requires_grad_()
        parameter.grad = torch.from_numpy(random(size, seed=1)).to(dtype)
        optimizer = make([parameter], **({kind: True} if kind else {}))

        def run() -> Results:
            optimizer.step()
            return (parameter.detach(),)

        return run

    return Case(
        ours,
        {kind: step(kind, torch.float32) for kind in ("foreach", "fused")},
        step("", torch.float64),
        flops=passes * size,
        bytes=float(passes * F32 * size),
    )


def sgd_step(layer: Layer, batch: int) -> Case:
    """SGD with momentum and weight decay."""
    size = layer.channels
    parameter, gradient, velocity = random(size), random(size, seed=1), np.zeros(size, np.float32)
    k = kernels_for(parameter)

    def ours() -> Results:
        k.sgd_step(parameter, gradient, velocity, LR, MOMENTUM, DECAY, False, False)
        return (parameter,)

    def make(parameters: Any, **kind: Any) -> Any:
        return torch.optim.SGD(parameters, LR, MOMENTUM, weight_decay=DECAY, **kind)

    return _optimizer_case(layer, 5, ours, make)


def adam_step(layer: Layer, batch: int) -> Case:
    """Adam."""
    size = layer.channels
    parameter, gradient = random(size), random(size, seed=1)
    m, v = np.zeros(size, np.float32), np.zeros(size, np.float32)
    k, steps = kernels_for(parameter), iter(range(1, 1 << 30))

    def ours() -> Results:
        k.adam_step(parameter, gradient, m, v, next(steps), LR, 0.9, 0.999, 1e-8, DECAY, False)
        return (parameter,)

    def make(parameters: Any, **kind: Any) -> Any:
        return torch.optim.Adam(parameters, LR, weight_decay=DECAY, **kind)

    return _optimizer_case(layer, 7, ours, make)


BOTH_DIRECTIONS = {
    "relu": (relu_forward, relu_dx),
    "maxpool2d": (maxpool2d_forward, maxpool2d_dx),
    "global_avgpool2d": (global_avgpool2d_forward, global_avgpool2d_dx),
    "softmax_cross_entropy": (softmax_cross_entropy_forward, softmax_cross_entropy_dx),
}
