"""How a convolution on the GPU is cut into blocks of threads; shapes, number types and precision.

Everything here is arithmetic on shapes: the same shape gives the same plan, and so the same bits, on every
card.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minitl.kernels.cuda import runtime
from minitl.kernels.cuda.runtime import Array
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]
Defines = dict[str, object]

WARP = 32
SLICE = 64  # bytes of each operand's row in a slice; twice that in those of warpgroups

# Blocks of threads that keep a card busy: about one for each multiprocessor (108 on an A100, 132 on an H100).
ENOUGH_BLOCKS = 128
# Slices that a split should have at least: a few more than it takes to fill the pipeline.
ENOUGH_SLICES = 8

PRECISIONS = ("float32", "tf32")
_precision = "float32"


def set_precision(name: str) -> str:
    """Say how float32 arrays are multiplied from now on; return what held before.

    "float32": exactly, on CUDA cores. "tf32": on tensor cores, operands rounded to 10 bits of fraction.
    bfloat16 arrays are multiplied on tensor cores in any case.
    """
    global _precision
    if name not in PRECISIONS:
        raise ValueError(f"no precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    before, _precision = _precision, name
    return before


class Geometry(NamedTuple):
    """What the kernels are told about a convolution, in their order of arguments."""

    n: int
    h: int
    w: int
    c: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    groups: int

    @classmethod
    def of(
        cls,
        x_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: Pair,
        padding: Padding2d,
        dilation: Pair,
        groups: int,
    ) -> "Geometry":
        """Return the geometry; ValueError if it is larger than the kernels can count."""
        (n, h, w, c), (k, r, s, _) = x_shape, weight_shape
        p, q = window_output_shape(h, w, (r, s), stride, padding, dilation)
        largest = max(n * h * w, n * p * q, math.prod(weight_shape))
        if largest > 2**31 - 2**16 or groups * stride[0] * stride[1] > 65535:
            raise ValueError(
                f"conv2d of x {x_shape} and weight {weight_shape} is too large for the GPU kernels, which "
                "count 2^31 pixels, 2^31 elements of a weight and 65535 groups; use smaller batches"
            )
        return cls(n, h, w, c, k, r, s, p, q, *stride, padding.top, padding.left, *dilation, groups)

    @property
    def cg(self) -> int:
        """Channels of a group."""
        return self.c // self.groups

    @property
    def kg(self) -> int:
        """Filters of a group."""
        return self.k // self.groups

    def arguments(self) -> Iterator[np.int32]:
        """Yield the numbers as kernels take them."""
        return map(np.int32, self)


class Format(NamedTuple):
    """The kernels' name of the operands' type, and whether float is rounded to tf32."""

    ctype: str
    tf32: bool = False

    @property
    def on_tensor_cores(self) -> bool:
        """Whether tensor cores multiply them."""
        return self.tf32 or self.ctype == "bf16"


FORMATS = Format("float"), Format("float", tf32=True), Format("bf16"), Format("double")


def format_of(dtype: np.dtype) -> Format:
    """Return how operands of this type are multiplied, in the precision that is set."""
    return Format(runtime.ctype(dtype), dtype == np.float32 and _precision == "tf32")


class Tile(NamedTuple):
    """Results of a block of threads (m x n) and of each of its warps."""

    m: int
    n: int
    warp_m: int
    warp_n: int

    @property
    def threads(self) -> int:
        """Threads in a block."""
        return WARP * (self.m // self.warp_m) * (self.n // self.warp_n)

    @property
    def by_warpgroup(self) -> bool:
        """Whether four warps multiply together: then each has 16 rows and all columns."""
        return self.warp_n == self.n and self.warp_m == 16

    @property
    def stages(self) -> int:
        """Slices of shared memory in flight."""
        return 3 if self.by_warpgroup else 4

    @property
    def shared_mem(self) -> int:
        """Bytes of shared memory for the slices in flight."""
        return self.stages * (self.m + self.n) * SLICE * (2 if self.by_warpgroup else 1)


class Plan(NamedTuple):
    """How a matrix product of rows x columns is cut."""

    tile: Tile
    splits: int

    def tiles(self, rows: int, columns: int) -> int:
        """Return how many tiles the results have."""
        return -(-rows // self.tile.m) * -(-columns // self.tile.n)


SMALL = Tile(64, 64, 32, 32)
# Largest first: the larger a block's tile, the fewer times operands come from memory, and the larger a
# warp's, the fewer times from shared memory.
TILES = (Tile(128, 128, 64, 64), Tile(128, 64, 64, 32), SMALL)
WARPGROUP_TILES = (Tile(128, 128, 16, 128), Tile(128, 64, 16, 64))
EXACT_TILES = (TILES[0], Tile(128, 64, 32, 32), SMALL)


def pieces_of(ctype: str) -> tuple[int, int]:
    """Return how many elements are copied to shared memory at once: 16 bytes' worth, or one."""
    return 16 // {"bf16": 2, "float": 4, "double": 8}[ctype], 1


def piece(channels: int, *arrays: Array) -> int:
    """Return how many elements of the arrays may be copied at once.

    channels: elements that lie in a row in each of them, from one jump to the next.
    """
    vector, one = pieces_of(runtime.ctype(arrays[0].dtype))
    whole = channels % vector == 0 and not any(runtime.address(a) % 16 for a in arrays)
    return vector if whole else one


def channels_for(g: Geometry, dtype: np.dtype) -> int:
    """Return how many channels of x to compute with; those that it does not have are zeros.

    On tensor cores a few more products cost less than copying the operands one element at a time, as three
    channels of a picture would have to be.
    """
    form = format_of(dtype)
    if g.groups > 1 or not form.on_tensor_cores:
        return g.c
    vector = pieces_of(form.ctype)[0]
    return -(-g.c // vector) * vector


def tiles_for(
    form: Format, pieces: tuple[int, int], dw: bool, warpgroups: bool
) -> tuple[Tile, ...]:
    """Return the tiles that the kernels are compiled for, those to be preferred first.

    warpgroups: whether they may multiply bfloat16, see warpgroups.py.

    Those that spill registers are left out. Many are taken by sums in double, by copies of single elements,
    and by exact sums, in dw most of all.
    """
    if form.ctype == "double" or min(pieces) == 1:
        return (SMALL,)
    if not form.on_tensor_cores:
        return EXACT_TILES[1:] if dw else EXACT_TILES
    return WARPGROUP_TILES + TILES if warpgroups and form.ctype == "bf16" else TILES


_forced: Plan | None = None


@contextlib.contextmanager
def forced(plan: Plan) -> Iterator[None]:
    """Within the block, take this tile and so many splits, whatever the sizes of a product are.

    For checks: without it, the large tiles are met by large products only. A tile that a kernel is not
    compiled for (see `tiles_for`) gives way to one of its size with other warps, or is left out, as are
    splits where there cannot be any.
    """
    global _forced
    before, _forced = _forced, plan
    choose.cache_clear()
    try:
        yield
    finally:
        _forced = before
        choose.cache_clear()


@lru_cache(maxsize=1024)
def choose(
    rows: int,
    columns: int,
    slices: int,
    copies: int,
    tiles: tuple[Tile, ...],
    dw: bool,
    split: bool,
) -> Plan:
    """Return the plan for `copies` products of rows x columns (one for each group and phase).

    slices: of the sums, each SLICE bytes deep. split: whether the sums may be split among blocks.
    dw: results are few and sums long; so splitting costs little and comes before smaller tiles, and two
    blocks for each multiprocessor, which is what fits, are worth it.
    """
    if _forced is not None:
        same = [t for t in tiles if t[:2] == _forced.tile[:2]]
        if same:
            tile = _forced.tile if _forced.tile in same else same[-1]
            # Forward and dx are split only with the last of the tiles, as below.
            return Plan(tile, _forced.splits if split and (dw or tile == tiles[-1]) else 1)
    fitting = [t for t in tiles if t.m < 2 * rows and t.n < 2 * columns] or [tiles[-1]]
    plans = [Plan(t, 1) for t in fitting]
    if dw:
        plan, wanted = plans[0], 2 * ENOUGH_BLOCKS
    else:
        wanted = ENOUGH_BLOCKS
        enough = (p for p in plans if p.tiles(rows, columns) * copies >= wanted)
        plan = next(enough, plans[-1])
    if not split:
        return plan
    splits = min(wanted // (plan.tiles(rows, columns) * copies), slices // ENOUGH_SLICES)
    return plan._replace(splits=max(1, splits))


def matrix_defines(form: Format, pieces: tuple[int, int], tile: Tile) -> Defines:
    """Return the macros of matmul.cuh."""
    return {
        "T": form.ctype,
        "TF32": int(form.tf32),
        "BM": tile.m,
        "BN": tile.n,
        "WM": tile.warp_m,
        "WN": tile.warp_n,
        "STAGES": tile.stages,
        "WGMMA": int(tile.by_warpgroup),
        "PIECE_A": pieces[0],
        "PIECE_B": pieces[1],
    }
