"""Convolutions beside cuDNN, and memory-bound kernels beside a copy; each verified before it is timed.

    python -m benchmarks.gpu.kernels FILE.jsonl SECONDS

A line is written for each result as it comes, so that what was measured is kept whatever happens.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.gpu import arrays
from benchmarks.gpu.arrays import nchw, nhwc, random, to_minitl, to_torch
from benchmarks.gpu.timing import by_turns, record_minitl, record_torch, sets_needed
from benchmarks.shapes import NETWORKS, Layer
from minitl.device import dtype_of, get_device
from minitl.kernels import cuda
from minitl.kernels.cuda import warpgroups
from minitl.shapes import padding2d

Row = dict[str, Any]
Tensors = tuple[torch.Tensor, ...]

BATCH = 64
PRECISIONS = ("bf16", "tf32", "float32")
# Largest error as a share of the largest result: what rounding operands or results costs, and some more.
FLOORS = {"float32": 2e-6, "tf32": 1e-3, "bf16": 5e-3}
CACHE_BYTES = 64 << 20  # more than the second-level cache of an H200, 60 MB
aten = torch.ops.aten


@dataclass
class Case:
    """One operation: what it is called with, ours and PyTorch's (None: no rival), and the right results.

    inputs: makes a set of tensors from a seed. ours takes them as our arrays. reference takes them in
    float64. flops, bytes: of one call, each array once.
    """

    op: str
    shape: str
    precision: str
    inputs: Callable[[int], Tensors]
    ours: Callable[..., Any]
    reference: Callable[..., Tensors]
    rival: Callable[..., Any] | None
    flops: float
    bytes: float
    uses: int = 1
    bound: float = 0.0  # allowed in any case, for sums of many numbers that cancel
    # Results are compared by their own order; this brings ours into the reference's.
    results: Callable[[Any], Tensors] = lambda result: (to_torch(result),)


def convolutions(network: str = "resnet50", batch: int = BATCH) -> Iterator[Case]:
    """Yield forward, dx and dw of every convolution of a network in every precision."""
    for layer, uses in NETWORKS[network].items():
        if layer.op == "conv2d":
            for precision in PRECISIONS:
                yield from _directions(layer, batch, precision, uses)


def _directions(layer: Layer, batch: int, precision: str, uses: int) -> Iterator[Case]:
    n, h, c, k, r = batch, layer.size, layer.channels, layer.filters, layer.kernel
    p = (h + 2 * layer.padding - r) // layer.stride + 1
    geometry: Any = ((layer.stride,) * 2, padding2d(layer.padding), (1, 1), 1)
    x_shape, w_shape, y_shape = (n, h, h, c), (k, r, r, c), (n, p, p, k)
    step: Any = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], False, [0, 0], 1)
    size = arrays.TYPES[precision].itemsize
    elements = [int(np.prod(s)) for s in (x_shape, w_shape, y_shape)]
    common: dict[str, Any] = {
        "shape": layer.label,
        "precision": precision,
        "flops": 2.0 * elements[2] * r * r * c,
        "bytes": size * (elements[0] + elements[2]) + 4.0 * elements[1],
        "uses": uses,
    }

    def weight(seed: int) -> torch.Tensor:
        """Return float32 numbers which the precision holds: our weights are float32 in any case."""
        return random(*w_shape, precision=precision, seed=seed, scale=(r * r * c) ** -0.5).float()

    def backward(wanted: tuple[bool, bool], dy: torch.Tensor, x: Any, w: Any) -> torch.Tensor:
        found = aten.convolution_backward(
            nchw(dy), nchw(x), nchw(w).to(x.dtype), None, *step, [*wanted, False]
        )
        return nhwc(found[0] if wanted[0] else found[1])

    make = partial(random, precision=precision)
    yield Case(
        "conv2d_forward",
        inputs=lambda seed: (make(*x_shape, seed=seed), weight(seed + 1)),
        ours=lambda x, w: cuda.conv2d_forward(x, w, None, *geometry),
        rival=lambda x, w: nhwc(aten.convolution(nchw(x), nchw(w), None, *step)),
        reference=lambda x, w: (nhwc(aten.convolution(nchw(x), nchw(w), None, *step)),),
        **common,
    )
    if not layer.first:
        yield Case(
            "conv2d_dx",
            inputs=lambda seed: (make(*y_shape, seed=seed), weight(seed + 1)),
            ours=lambda dy, w: cuda.conv2d_dx(dy, w, x_shape, *geometry),
            rival=lambda dy, w: backward((True, False), dy, _like(dy, x_shape), w),
            reference=lambda dy, w: (backward((True, False), dy, _like(dy, x_shape), w),),
            **common,
        )
    yield Case(
        "conv2d_dw",
        inputs=lambda seed: (make(*y_shape, seed=seed), make(*x_shape, seed=seed + 1)),
        ours=lambda dy, x: cuda.conv2d_dw(dy, x, w_shape, *geometry),
        rival=lambda dy, x: backward((False, True), dy, x, _like(dy, w_shape)),
        reference=lambda dy, x: (backward((False, True), dy, x, _like(dy, w_shape)),),
        **common,
    )


def _like(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of this shape of which only the shape matters."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def memory_bound(batch: int = BATCH, side: int = 56, channels: int = 256) -> Iterator[Case]:
    """Yield kernels whose time is that of reading and writing their arrays once: sizes are of ResNet-50."""
    for precision in ("bf16", "float32"):
        yield from _passes((batch, side, side, channels), precision)
        yield from _pooling((batch, 2 * side, 2 * side, channels // 4), precision)
        yield _loss_case(64 * batch, 1000, precision)
        yield _image_case(batch, 4 * side, precision)
    parameters = 25_557_032 if channels == 256 else 999
    yield from (_sgd_case(parameters), _adam_case(parameters))


def _passes(shape: tuple[int, ...], precision: str) -> Iterator[Case]:
    once = float(np.prod(shape)) * arrays.TYPES[precision].itemsize
    channels = shape[-1]

    def inputs(maps: int, vectors: int) -> Callable[[int], Tensors]:
        """Return what makes so many activations and float64 vectors, all of these positive."""
        return lambda seed: (
            *(random(*shape, precision=precision, seed=seed + i) for i in range(maps)),
            *(random(channels, seed=seed + 50 + i).abs().double() for i in range(vectors)),
        )

    def pair(found: Any) -> Tensors:
        return to_torch(found[0]), to_torch(found[1])

    def case(op: str, passes: int, **options: Any) -> Case:
        label = f"{channels} {shape[1]}px"
        return Case(op, label, precision, flops=0.0, rival=None, bytes=passes * once, **options)

    yield case(
        "add_forward",
        3,
        inputs=inputs(2, 0),
        ours=cuda.add_forward,
        reference=lambda x, y: (x + y,),
    )
    yield case(
        "batchnorm_statistics",
        1,
        inputs=inputs(1, 0),
        ours=cuda.batchnorm_statistics,
        results=pair,
        reference=lambda x: (x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)),
        bound=1e-5,
    )
    yield case(
        "batchnorm_apply",
        3,
        inputs=inputs(2, 2),
        ours=lambda x, y, a, b: cuda.batchnorm_apply(x, a, b, y, True),
        reference=lambda x, y, a, b: (F.relu(x * a + b + y),),
    )
    yield case(
        "batchnorm_apply, no residual",
        2,
        inputs=inputs(1, 2),
        ours=lambda x, a, b: cuda.batchnorm_apply(x, a, b, None, True),
        reference=lambda x, a, b: (F.relu(x * a + b),),
    )
    yield case(
        "batchnorm_reduce",
        3,
        inputs=inputs(3, 2),
        ours=lambda dy, y, x, m, s: cuda.batchnorm_reduce(dy, y, x, m, s, False),
        results=pair,
        reference=_reduce,
        bound=1e-5,
    )
    yield case(
        "batchnorm_dx",
        4,
        inputs=inputs(3, 3),
        ours=cuda.batchnorm_dx,
        reference=lambda dy, y, x, a, b, c: (torch.where(y > 0, dy, 0) * a + x * b + c,),
    )
    yield case(
        "global_avgpool2d_forward",
        1,
        inputs=inputs(1, 0),
        ours=cuda.global_avgpool2d_forward,
        reference=lambda x: (x.mean((1, 2)),),
        bound=1e-5,
    )


WINDOW: Any = ((3, 3), (2, 2), padding2d(1))  # of the pooling behind the first convolution


def _pooling(shape: tuple[int, ...], precision: str) -> Iterator[Case]:
    """Yield max pooling of 3x3 with stride 2, alone and with the normalisation and ReLU before it."""
    n, h, w, c = shape
    if h % 2 or w % 2:
        raise ValueError(f"maps of {h} x {w}: give even numbers")
    half = (n, h // 2, w // 2, c)
    size = arrays.TYPES[precision].itemsize
    whole, quarter = float(np.prod(shape)) * size, float(np.prod(half)) * size
    index = float(np.prod(half))  # a byte for each window
    make = partial(random, precision=precision)

    def vectors(seed: int, count: int) -> Tensors:
        return tuple(random(c, seed=seed + 50 + i).abs().double() for i in range(count))

    def pool(x: torch.Tensor) -> torch.Tensor:
        return nhwc(F.max_pool2d(nchw(x), 3, 2, 1))

    def case(op: str, moved: float, **options: Any) -> Case:
        label = f"{c} {h}px"
        return Case(op, label, precision, flops=0.0, rival=None, bytes=moved, **options)

    yield case(
        "maxpool2d_forward",
        whole + quarter + index,
        inputs=lambda seed: (make(*shape, seed=seed),),
        ours=lambda x: cuda.maxpool2d_forward(x, *WINDOW),
        results=lambda found: (to_torch(found[0]),),
        reference=lambda x: (pool(x),),
    )
    yield case(
        "maxpool2d_dx",
        quarter + index + whole,
        inputs=lambda seed: (make(*half, seed=seed), _places(half, seed)),
        ours=lambda dy, index: cuda.maxpool2d_dx(dy, index, shape, *WINDOW),
        reference=lambda dy, index: (_to_their_pixels(dy, index, shape),),
    )
    yield case(
        "batchnorm_relu_maxpool_forward",
        whole + 2 * quarter + index,
        inputs=lambda seed: (make(*shape, seed=seed), *vectors(seed, 2)),
        ours=lambda x, a, b: cuda.batchnorm_relu_maxpool_forward(x, a, b, *WINDOW),
        results=lambda found: (to_torch(found[0]),),
        reference=lambda x, a, b: (F.relu(pool(x * a + b)),),
    )
    yield case(
        "batchnorm_relu_maxpool_dx",
        quarter + index + 2 * whole,
        inputs=lambda seed: (
            *(make(*half, seed=seed), _places(half, seed), make(*shape, seed=seed + 1)),
            *vectors(seed, 3),
        ),
        ours=lambda dy, index, x, a, b, c: cuda.batchnorm_relu_maxpool_dx(
            dy, index, shape, x, a, b, c, *WINDOW
        ),
        reference=lambda dy, index, x, a, b, c: (
            _to_their_pixels(dy, index, shape) * a + x * b + c,
        ),
    )


def _places(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return places in windows of 3x3, (N, P, Q, C) uint8, none of them in the padding."""
    generator = torch.Generator(arrays.device()).manual_seed(seed)
    inside = torch.tensor([4, 5, 7, 8], dtype=torch.uint8, device=arrays.device())
    return inside[torch.randint(4, shape, generator=generator, device=arrays.device())]


def _to_their_pixels(
    dy: torch.Tensor, places: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the map in which each window's dy is added to the pixel at its place in the window."""
    n, h, w, c = shape
    rows = torch.arange(dy.shape[1], device=dy.device).view(1, -1, 1, 1) * 2 - 1
    columns = torch.arange(dy.shape[2], device=dy.device).view(1, 1, -1, 1) * 2 - 1
    place = places.long()
    pixel = (rows + place // 3) * w + (columns + place % 3)
    dx = torch.zeros(n, h * w, c, dtype=dy.dtype, device=dy.device)
    return dx.scatter_add_(1, pixel.view(n, -1, c), dy.reshape(n, -1, c)).view(shape)


def _loss_case(rows: int, classes: int, precision: str) -> Case:
    size = arrays.TYPES[precision].itemsize
    return Case(
        "softmax_cross_entropy_forward",
        f"{rows} x {classes}",
        precision,
        inputs=lambda seed: (
            random(rows, classes, precision=precision, seed=seed),
            torch.arange(rows, device=arrays.device()) * 7 % classes,
        ),
        ours=lambda logits, labels: cuda.softmax_cross_entropy_forward(logits, labels, None, 0.0),
        results=lambda found: (to_torch(found[0]), to_torch(found[1])),
        reference=lambda logits, labels: (
            F.cross_entropy(logits, labels.long()),
            (logits.softmax(1) - F.one_hot(labels.long(), classes)) / rows,
        ),
        rival=None,
        flops=0.0,
        bytes=2.0 * rows * classes * size,
        bound=1e-5,
    )


def _image_case(pictures: int, side: int, precision: str) -> Case:
    """Bytes to normalised pictures, with the usual figures of ImageNet."""
    numbers = pictures * side * side * 3
    mean, std, scale = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255

    def inputs(seed: int) -> Tensors:
        generator = torch.Generator(arrays.device()).manual_seed(seed)
        shape = (pictures, side, side, 3)
        return (
            torch.randint(
                256, shape, dtype=torch.uint8, generator=generator, device=arrays.device()
            ),
        )

    def reference(images: torch.Tensor) -> Tensors:
        line = [torch.tensor(v, dtype=images.dtype, device=images.device) for v in (mean, std)]
        return ((images * scale - line[0]) / line[1],)

    dtype = dtype_of(precision)
    return Case(
        "normalize_images",
        f"{pictures} x {side}px",
        precision,
        inputs=inputs,
        ours=lambda images: cuda.normalize_images(
            images, mean, std, scale, None, None, None, side, dtype
        ),
        reference=reference,
        rival=None,
        flops=0.0,
        bytes=float(numbers) * (1 + arrays.TYPES[precision].itemsize),
    )


def _adam_case(parameters: int) -> Case:
    def adam(parameter: Any, gradient: Any, m: Any, v: Any) -> tuple[Any, ...]:
        cuda.adam_step(parameter, gradient, m, v, 2, 1e-3, 0.9, 0.999, 1e-8, 0.0, False)
        return parameter, m, v

    def reference(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> Tensors:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
        return p - 1e-3 * step, m, v

    return Case(
        "adam_step",
        f"{parameters / 1e6:.1f}M parameters",
        "float32",
        inputs=lambda seed: (
            *(random(parameters, seed=seed + i) for i in range(3)),
            random(parameters, seed=seed + 3).abs(),
        ),
        ours=adam,
        results=lambda found: tuple(to_torch(array) for array in found),
        reference=reference,
        rival=None,
        flops=0.0,
        bytes=28.0 * parameters,
    )


def _sgd_case(parameters: int) -> Case:
    return Case(
        "sgd_step",
        f"{parameters / 1e6:.1f}M parameters",
        "float32",
        inputs=lambda seed: tuple(random(parameters, seed=seed + i) for i in range(3)),
        ours=_sgd,
        results=lambda found: (to_torch(found[0]), to_torch(found[1])),
        reference=_sgd_reference,
        rival=None,
        flops=0.0,
        bytes=20.0 * parameters,
    )


def _reduce(
    dy: torch.Tensor, y: torch.Tensor, x: torch.Tensor, m: torch.Tensor, s: torch.Tensor
) -> Tensors:
    dz = torch.where(y > 0, dy, 0)
    return dz.sum((0, 1, 2)), (dz * ((x - m) * s)).sum((0, 1, 2))


def _sgd(parameter: Any, gradient: Any, velocity: Any) -> tuple[Any, Any]:
    cuda.sgd_step(parameter, gradient, velocity, 1e-3, 0.9, 1e-4, False, False)
    return parameter, velocity


def _sgd_reference(p: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> Tensors:
    velocity = 0.9 * v + g + 1e-4 * p
    return p - 1e-3 * velocity, velocity


def error(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference as a share of the largest number expected; infinity for NaN."""
    worst = 0.0
    for result, exact in zip(found, expected, strict=True):
        if result.shape != exact.shape:
            return float("inf")
        difference = (result.double() - exact.to(result.device)).abs().max()
        share = float(difference / exact.abs().max().clamp_min(1e-30))
        worst = max(worst, share if share == share else float("inf"))
    return worst


def measure(case: Case, *, rounds: int = 9, timed: bool = True) -> Row:
    """Verify a case; if it is right, time it. Times are in ms."""
    row: Row = {"op": case.op, "shape": case.shape, "precision": case.precision, "uses": case.uses}
    inputs = case.inputs(0)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):  # searching takes longer
        expected = tuple(t.detach() for t in case.reference(*(t.double() for t in inputs)))
    cuda.set_precision("tf32" if case.precision == "tf32" else "float32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        case.precision == "tf32"
    )
    rival_error = 0.0
    if case.rival is not None:
        rival_error = error((case.rival(*_for_torch(case, inputs)),), expected)
    ours = [to_minitl(t) for t in inputs]
    row["error"] = error(case.results(case.ours(*ours)), expected)
    row["bound"] = max(FLOORS[case.precision], case.bound, 2 * rival_error)
    row["verified"] = row["error"] <= row["bound"]
    del expected
    if not (row["verified"] and timed):
        return row
    seeds = range(sets_needed(case.bytes, CACHE_BYTES))
    sets = [inputs, *(case.inputs(1000 * seed) for seed in seeds[1:])]
    mine = [[to_minitl(t) for t in one] for one in sets]
    replays = {"minitl": record_minitl([partial(case.ours, *one) for one in mine])}
    if case.rival is not None:
        theirs = [_for_torch(case, one) for one in sets]
        replays["torch"] = record_torch([partial(case.rival, *one) for one in theirs])
    if case.op.startswith("conv2d") and case.precision == "bf16" and warpgroups.usable():
        with warpgroups.decided(False):  # what they are worth
            replays["single warps"] = record_minitl([partial(case.ours, *one) for one in mine])
    times = by_turns(replays, rounds)
    ms = times["minitl"]
    row |= {"ms": ms, "tflops": case.flops / ms / 1e9, "gbytes": case.bytes / ms / 1e6}
    if "torch" in times:
        row |= {"rival_ms": times["torch"], "ratio": times["torch"] / ms}
    if "single warps" in times:
        row["by_single_warps"] = times["single warps"] / ms
    return row


def _for_torch(case: Case, inputs: Tensors) -> Tensors:
    """PyTorch gets its weights in the precision it computes in: it need not cast them."""
    return tuple(t.to(arrays.TYPES[case.precision]) for t in inputs)


def peaks() -> dict[str, float]:
    """Return what PyTorch reaches here: TFLOP/s of matrix products and GB/s of a copy."""
    found = {}
    for precision in PRECISIONS:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (random(8192, 8192, precision=precision, seed=i) for i in range(2))
        ms = by_turns({"": record_torch([partial(torch.mm, a, b)])})[""]
        found[f"{precision}_tflops"] = 2 * 8192**3 / ms / 1e9
    source = random(1 << 28)
    target = torch.empty_like(source)
    ms = by_turns({"": record_torch([lambda: target.copy_(source)])})[""]
    found["copy_gbytes"] = 2 * source.nbytes / ms / 1e6
    return found


def in_order() -> list[Case]:
    """Return all cases, what matters most first: convolutions on tensor cores, then passes over memory."""
    products = list(convolutions())
    on_tensor_cores = [
        case for kind in ("bf16", "tf32") for case in products if case.precision == kind
    ]
    exact = [case for case in products if case.precision == "float32"]
    return [*on_tensor_cores, *memory_bound(), *exact]


def main() -> None:
    """Measure until everything is done or the time is up."""
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    deadline = time.monotonic() + seconds
    torch.backends.cudnn.benchmark = True
    # cuBLAS and cuDNN may round sums of bfloat16 products on the way; ours never does.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    with path.open("w") as file, torch.no_grad():

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)

        write({"peaks": peaks()})
        with get_device("cuda").computing():
            for case in in_order():
                if time.monotonic() > deadline:
                    write({"unfinished": f"no time left for {case.op} {case.shape} and further"})
                    break
                try:
                    write(measure(case))
                except Exception as problem:  # the others are still worth knowing
                    text = f"{type(problem).__name__}: {problem}"[:400]
                    row = {"op": case.op, "shape": case.shape, "precision": case.precision}
                    write(row | {"verified": False, "problem": text})
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
