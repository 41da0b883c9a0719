"""Tables for direct convolution: where rows start in memory, and how results are divided into tiles.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

All are made once for a shape and kept.
"""

import math
import threading
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitl.kernels.cpu.microkernel import LINE, OUTER_HEIGHT, ROWS_HEIGHT
from minitl.shapes import Padding2d

Pair = tuple[int, int]

SETS_IN_CACHE = 64  # of lines, in the nearest cache of every processor we know
LINES_IN_SET = 8  # where the system does not tell
PIXELS_IN_SET = 1024  # pictures are taken together until they have about so many pixels

# dw is divided into so many pieces of work, for any number of threads up to this; each costs copies.
TASKS = 12
LEAST_WORK = 1 << 25  # multiply-adds in one of them, or there are fewer, but four
TILES_IN_SLICE = 8  # tiles of filters at least, if they are divided
SUMS_IN_CACHE = 1 << 18  # floats

# Of gathers, each way: a ResNet-50 takes 1 MB for pictures of 224 pixels and 3 MB for 512, but there is no
# end of sizes.
BYTES_KEPT = 64 << 20


class Gather(NamedTuple):
    """Where the rows of a product come from and where its results go, for one set of pictures."""

    # int32 (taps + 1, pixels rounded up to whole tiles): where rows start, in floats from the set's start,
    # and in the last line where results go.
    table: np.ndarray
    pixels: int
    taps: np.ndarray  # int64: the taps' numbers in the weight


def _window_index(
    out: int, size: int, kernel: int, stride: int, dilation: int, before: int
) -> np.ndarray:
    """Return (kernel, out): which of `size` pixels each tap sees along one axis, -1 for padding."""
    index = np.arange(out) * stride + np.arange(kernel)[:, None] * dilation - before
    return np.where((index >= 0) & (index < size), index, -1)


def _seen_by(
    positions: np.ndarray, out: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the taps that see `positions` of one residue, and (taps, positions): from which output."""
    shifted = positions + before - np.arange(kernel)[:, None] * dilation
    taps = np.flatnonzero(shifted[:, 0] % stride == 0)
    index = shifted[taps] // stride
    return taps, np.where((index >= 0) & (index < out), index, -1)


def _offsets(
    rows: np.ndarray, columns: np.ndarray, pictures: int, shape: tuple[int, int, int], height: int
) -> np.ndarray:
    """Combine two axes into the int32 table (taps, pixels), filled up to whole tiles.

    rows: (R, U), columns: (S, V), -1 for padding. shape: height, width, channels of what is read.
    """
    h, w, c = shape
    n = np.arange(pictures)[:, None, None]
    i = rows[:, None, None, :, None]
    j = columns[None, :, None, None, :]
    offsets = np.where((i < 0) | (j < 0), -1, ((n * h + i) * w + j) * c)
    table = offsets.reshape(len(rows) * len(columns), -1).astype(np.int32)
    fill = -table.shape[1] % height
    return np.ascontiguousarray(np.pad(table, ((0, 0), (0, fill)), mode="edge"))


def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function returned, a gather or several, while all of it takes no more than BYTES_KEPT."""
    found: dict[tuple[Any, ...], Any] = {}  # the oldest first
    lock = threading.Lock()

    def size(gathers: Iterable[Any]) -> int:
        several = [gathers] if isinstance(gathers, Gather) else gathers
        return sum(gather.table.nbytes for gather in several)

    @wraps(make)
    def kept(*arguments: Any) -> Any:
        with lock:
            if arguments not in found:
                found[arguments] = make(*arguments)
                total = sum(map(size, found.values()))
                for oldest in list(found)[:-1]:
                    if total <= BYTES_KEPT:
                        break
                    total -= size(found.pop(oldest))
            return found[arguments]

    return kept


@_kept
def forward_gather(
    pictures: int,
    x_shape: tuple[int, int, int],
    y_shape: tuple[int, int, int],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    height: int,
) -> Gather:
    """Return where the taps of each output pixel read x, for so many pictures.

    x_shape, y_shape: height, width, channels. height: rows of a tile.
    """
    (h, w, _), (p, q, _) = x_shape, y_shape
    rows = _window_index(p, h, kernel[0], stride[0], dilation[0], padding.top)
    columns = _window_index(q, w, kernel[1], stride[1], dilation[1], padding.left)
    here = np.arange(p)[None], np.arange(q)[None]
    return Gather(
        np.concatenate(
            [
                _offsets(rows, columns, pictures, x_shape, height),
                _offsets(*here, pictures, y_shape, height),
            ]
        ),
        pictures * p * q,
        np.arange(kernel[0] * kernel[1]),
    )


@_kept
def dx_gathers(
    pictures: int,
    x_shape: tuple[int, int, int],
    y_shape: tuple[int, int, int],
    kernel: Pair,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    height: int,
) -> tuple[Gather, ...]:
    """Return one gather for each kind of input pixel that some tap sees."""
    (h, w, _), (p, q, _) = x_shape, y_shape
    gathers = []
    for first_row in range(min(stride[0], h)):
        i = np.arange(first_row, h, stride[0])
        r, rows = _seen_by(i, p, kernel[0], stride[0], dilation[0], padding.top)
        for first_column in range(min(stride[1], w)):
            j = np.arange(first_column, w, stride[1])
            s, columns = _seen_by(j, q, kernel[1], stride[1], dilation[1], padding.left)
            if len(r) and len(s):
                gathers.append(
                    Gather(
                        np.concatenate(
                            [
                                _offsets(rows, columns, pictures, y_shape, height),
                                _offsets(i[None], j[None], pictures, x_shape, height),
                            ]
                        ),
                        pictures * len(i) * len(j),
                        (r[:, None] * kernel[1] + s).reshape(-1),
                    )
                )
    return tuple(gathers)


def picture_sets(pictures: int, pixels: int) -> list[tuple[int, int, int]]:
    """Divide the batch into sets of equal size: (first picture, pictures in a set, number of sets).

    Small pictures are taken together, so that few tiles are partly empty, up to twice as many as that takes
    if the batch then divides evenly. What is left over makes a last, smaller set.
    """
    least = min(pictures, -(-PIXELS_IN_SET // pixels))
    size = next((s for s in range(least, 2 * least) if pictures % s == 0), least)
    sets, rest = divmod(pictures, size)
    whole = [(0, size, sets)]
    return [*whole, (pictures - rest, rest, 1)] if rest else whole


@lru_cache(maxsize=256)
def cover_by_panels(size: int, groups: int, lanes: int) -> np.ndarray:
    """Cover `groups` times `size` columns by panels, int64 (panels, 5).

    first column, vectors, columns that the panel before has covered already, group, columns before this
    panel in packed filters.
    """
    panels, packed = [], 0
    for group in range(groups):
        start = 0
        while start < size:
            vectors = 2 if size >= 2 * lanes and size - start > lanes else 1
            first = min(start, size - vectors * lanes)
            panels.append((group * size + first, vectors, start - first, group, packed))
            start = first + vectors * lanes
            packed += vectors * lanes
    return np.array(panels, np.int64)


@cache
def lines_in_set() -> int:
    """Return how many lines a set of the nearest data cache holds."""
    try:
        return int(
            Path("/sys/devices/system/cpu/cpu0/cache/index0/ways_of_associativity").read_text()
        )
    except (OSError, ValueError):
        return LINES_IN_SET


def rows_meet(step: int, depth: int, lanes: int) -> bool:
    """Say whether the rows of a tile, so many floats apart, crowd the same places of the nearest cache.

    At a step of 4096 bytes the same column of all rows goes to one set. Where that holds fewer lines than a
    tile has rows, it throws out what the next column needs again. Copied to rows that are a line longer,
    they spread.
    """
    crowded = step % (SETS_IN_CACHE * LINE) == 0 and lines_in_set() < ROWS_HEIGHT[lanes]
    return crowded and depth % lanes == 0


def share_blocks(blocks: int, sets: int) -> int:
    """Return about so many blocks of each set that all together are in fours.

    Two or four threads then have equal shares of them; few are left as they are.
    """
    unit = 4 // math.gcd(4, sets)
    return unit * round(blocks / unit) if blocks >= unit else blocks


@lru_cache(maxsize=64)
def copied_places(rows: int, row: int, lanes: int) -> np.ndarray:
    """Return where copied rows start and, below, where the vectors in them do: int32 (2, most of both)."""
    places = np.arange(max(rows, row // lanes))
    return np.stack([places * row, places * lanes]).astype(np.int32)


@lru_cache(maxsize=32)
def zeros_of(size: int) -> np.ndarray:
    """Return zeros that are only read: a row outside the picture, or no bias."""
    return np.zeros(size, np.float32)


@lru_cache(maxsize=32)
def ones_of(size: int) -> np.ndarray:
    """Return ones that are only read: filters that keep their scale."""
    return np.ones(size, np.float32)


@lru_cache(maxsize=256)
def cover_by_tiles(kg: int, lanes: int) -> np.ndarray:
    """Cover `kg` columns of dy by tiles, int32 (3, tiles).

    first column, columns that the tile before has covered already, first of the `lanes` columns to copy.
    """
    height = OUTER_HEIGHT[lanes]
    starts = np.arange(0, kg, height)
    firsts = np.minimum(starts, kg - height)
    return np.stack([firsts, starts - firsts, np.minimum(firsts, kg - lanes)]).astype(np.int32)


@lru_cache(maxsize=256)
def cover_by_vectors(run: int, lanes: int) -> np.ndarray:
    """Return the first columns of the vectors that cover a row of x, the last one moved back, int32."""
    return np.maximum(np.minimum(np.arange(0, run, lanes), run - lanes), 0).astype(np.int32)


def joined_row(run: int, lanes: int) -> int:
    """Return the floats from pixel to pixel where taps of `run` floats in all are copied side by side.

    Whole vectors are copied, which may run over the end; an odd number of lines spreads pixels over the
    cache.
    """
    return (-(-(run + lanes) // LINE) | 1) * LINE


@lru_cache(maxsize=256)
def divide_dw(
    pixels: int, blocks: int, c: int, k: int, taps: int, pairs: int, tiles: int, size: int
) -> tuple[int, int, int]:
    """Divide dw among tasks: (chunks of the pixels, slices of the units, slices of the tiles).

    blocks: of pixels; chunks are not smaller. A unit is one of the `pairs` of vectors of x under a tap;
    tiles are of filters. size: of dw. Every slice of the units copies all of dy, every slice of the tiles
    all of x, and every chunk has sums of its own, which are written and then added. Of all divisions, the
    one that moves the fewest floats is taken.
    """
    # In fours, so that two or four threads have equal shares.
    tasks = min(TASKS, 4 * max(1, -(-pixels * size // (4 * LEAST_WORK))))

    def moved(division: tuple[int, int, int]) -> float:
        chunks, unit_slices, tile_slices = division
        slices = unit_slices * tile_slices
        floats = pixels * (tile_slices * taps * c + unit_slices * k) + 2 * chunks * size
        if size > slices * SUMS_IN_CACHE:
            floats += blocks * size // 2
        return floats * tasks / min(tasks, chunks * slices)

    return min(
        (
            (min(blocks, -(-tasks // (unit_slices * tile_slices))), unit_slices, tile_slices)
            for unit_slices in range(1, min(taps * pairs, tasks) + 1)
            for tile_slices in range(1, max(1, min(tiles // TILES_IN_SLICE, tasks)) + 1)
        ),
        key=moved,
    )
