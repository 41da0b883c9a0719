"""`python -m benchmarks kernels`: each operation on each shape, verified, then timed beside PyTorch."""

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import machine
from benchmarks.cases import Maker, operations
from benchmarks.shapes import NETWORKS, Layer, distinct
from benchmarks.timing import by_turns
from benchmarks.verify import verify

Row = dict[str, Any]

DIRECTIONS = ("forward", "frozen", "dx", "dw", "db", "step")

# Layers for --quick: one of each class.
QUICK = (
    "conv2d_* 7x7 3-64 224px /2",
    "conv2d_* 3x3 64-64 56px",
    "conv2d_* 3x3 128-256 28px /2",
    "conv2d_* 3x3 512-512 7px",
    "conv2d_* 1x1 64-256 56px",
    "conv2d_* 1x1 1024-256 14px",
    "conv2d_* 1x1 512-1024 28px /2",
    "batchnorm_relu_maxpool_* 3x3 64 112px /2",
    "batchnorm_add_relu_* 256 56px",
    "batchnorm_relu_* 256 14px",
    "maxpool2d_* 2x2 128 112px /2",
    "global_avgpool2d_* 2048 7px",
    "linear_* 2048-1000",
    "softmax_cross_entropy_*",
    "sgd_step 11.7M parameters",
    "adam_step 11.7M parameters",
)


def select(
    patterns: tuple[str, ...], networks: dict[str, Any] = NETWORKS
) -> Iterator[tuple[Maker, Layer, dict[str, int]]]:
    """Yield (operation, layer, uses) for what matches one of the patterns.

    A pattern fits "OPERATION SHAPE" or the name of a network, whole, with the usual wildcards.
    """
    uses = distinct(networks)
    kinds = list(dict.fromkeys(layer.op for layer in uses))
    found = [(maker, layer) for layer in uses for maker in operations(layer)]

    def place(pair: tuple[Maker, Layer]) -> tuple[int, int]:
        return kinds.index(pair[1].op), DIRECTIONS.index(pair[0].op.rsplit("_", 1)[1])

    for maker, layer in sorted(found, key=place):
        names = f"{maker.op} {layer.label}", maker.op, *uses[layer]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns):
            yield maker, layer, uses[layer]


def measure(maker: Maker, layer: Layer, batch: int, peaks: dict[str, float], **timing: Any) -> Row:
    """Verify one operation on one shape; if it is right, time it. Times are in ms."""
    row: Row = {"op": maker.op, "shape": layer.label}
    with torch.no_grad():
        case = maker.make(layer, batch)
        check = verify(case)
        row |= {
            "algorithm": case.algorithm,
            "error": check.error,
            "rival_error": check.rival_error,
            "bound": check.bound,
            "verified": check.passed,
            "flops": case.flops,
            "bytes": case.bytes,
        }
        if not check.passed:
            return row
        times = by_turns({"minitl": case.ours} | case.rivals, **timing)
    ours = times.pop("minitl")
    best = min(times, key=lambda name: machine.median(times[name]))
    ms, rival_ms = 1e3 * machine.median(ours), 1e3 * machine.median(times[best])
    row |= {
        "ms": ms,
        "spread": machine.spread(ours),
        "gflops": case.flops / ms / 1e6,
        "share_of_peak": machine.roof(case.flops, case.bytes, peaks) / ms,
        "rival": best,
        "rival_ms": rival_ms,
        "rival_spread": machine.spread(times[best]),
        "ratio": rival_ms / ms,
        "rivals_ms": {name: 1e3 * machine.median(values) for name, values in times.items()},
    }
    return row


def run(
    patterns: tuple[str, ...],
    batch: int,
    peaks: dict[str, float],
    show: Callable[[Row], None],
    networks: dict[str, Any] = NETWORKS,
    **timing: Any,
) -> list[Row]:
    """Measure all that matches, calling `show` with each row; return the rows."""
    rows = []
    for maker, layer, uses in select(patterns, networks):
        row = measure(maker, layer, batch, peaks, **timing)
        row["uses"] = uses
        show(row)
        rows.append(row)
    return rows


def totals(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return for each "NETWORK OPERATION" the sum in ms over the measured layers that use it."""
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        if "ms" not in row:
            continue
        for network, count in row["uses"].items():
            entry = sums.setdefault(f"{network} {row['op']}", {"ms": 0.0, "rival_ms": 0.0})
            entry["ms"] += count * row["ms"]
            entry["rival_ms"] += count * row["rival_ms"]
    return sums
