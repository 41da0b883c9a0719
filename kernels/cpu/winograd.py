"""3x3 convolution with stride 1 by Winograd's algorithm, in float32, with fewer multiplications.

A tile of m x m results needs (m + 2)^2 pixels. Directly it takes 9 m^2 multiplications for each pair of
channels, here one for each pixel of the tile:

    F(2x2): 16 instead of 36, 2.25 times fewer       F(4x4): 36 instead of 144, 4 times fewer

In one dimension, a filter g of 3 and pixels d of m + 2 are values of polynomials' product at m + 2 points
0, 1, -1 (2, -2) and infinity (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308):

    y = A^T [(G g) * (B^T d)],      in two dimensions       Y = A^T [(G g G^T) * (B^T d B)] A

`*` multiplies element by element; summed over input channels it becomes, for each of the (m + 2)^2 points,
one matrix product of [tiles, C] and [C, K]. The gradients follow from the same identity:

    dx: the same algorithm on dy with the filters rotated by half a turn and C, K exchanged
    dw: with L the loss, dL = <dY, A^T [dU * V] A> = <A dY A^T * V, dU>, U = G g G^T, so
        dg = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G

Accuracy. F(2x2) is as exact as direct convolution. The transforms of F(4x4) have entries up to 8 and cost
about one decimal digit: 3e-6 of the results' spread, root mean square, where direct sums have 3e-7. See
conv2d.py for the bounds. A NaN or an infinity in x reaches every result of the tiles that it is part of.
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, prange  # type: ignore[attr-defined]

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.conv2d_direct import LONGEST_SUM
from minitl.kernels.cpu.conv2d_pack import pack_dx, pack_forward
from minitl.kernels.cpu.conv2d_tables import cover_by_panels, ones_of, zeros_of
from minitl.kernels.cpu.jit import kernel, most_threads
from minitl.kernels.cpu.microkernel import (
    OUTER_HEIGHT,
    ROWS_HEIGHT,
    add_outer_products,
    multiply_rows,
)
from minitl.kernels.cpu.winograd_transforms import (
    transform_dw,
    transform_dy,
    transform_filters,
    transform_pixels,
    transform_results,
)
from minitl.shapes import Padding2d

FLOATS_IN_BLOCK = 1 << 18  # transformed tiles that one thread keeps in its cache
FILTERS_IN_CACHE = 1 << 20  # floats of transformed filters that stay in the cache between blocks
TILES_IN_PHASE = 288  # tiles taken through each step together, where filters fill more than that
TILES_IN_SUM = 128  # dw: at least so many tiles between additions to memory,
FLOATS_IN_SUM = 1 << 18  # dw: or as many as have so many floats when transformed
PAD = 16  # floats between points, against steps of a power of two


@kernel()
def _copy_tile(source, h, w, channels, top, left, size, target):  # type: ignore[no-untyped-def]
    """Copy size x size pixels of a picture to `target`, zeros where they are outside."""
    for i in range(size):
        for j in range(size):
            inside = 0 <= top + i < h and 0 <= left + j < w
            for c in range(channels):
                target[(i * size + j) * channels + c] = (
                    source[top + i, left + j, c] if inside else np.float32(0)
                )


@kernel()
def _transform_tiles(  # type: ignore[no-untyped-def]
    lanes, m, size, x, top, left, rows, columns, first, count, target, step, patch
):
    """Transform tiles [first, first + count) of pictures x (N, H, W, C) to target[point][tile][C].

    Tiles of pixels, of size m + 2, from (-top, -left) on, m apart; or of dy, of size m, side by side. target:
    an address; step: floats from point to point. patch: room for a tile.
    """
    _, h, w, channels = x.shape
    points = m + 2
    for tile in range(count):
        picture = (first + tile) // (rows * columns)
        place = first + tile - picture * rows * columns
        row = place // columns
        i, j = row * m - top, (place - row * columns) * m - left
        if i >= 0 and j >= 0 and i + size <= h and j + size <= w:
            source = x.ctypes.data + 4 * (((picture * h + i) * w + j) * channels)
            row_step = w * channels
        else:
            _copy_tile(x[picture], h, w, channels, i, j, size, patch)
            source, row_step = np.int64(patch.ctypes.data), size * channels
        into = target + 4 * tile * channels
        if size == m:
            transform_dy(
                (lanes, m, source, row_step, channels, into, points * step, step, channels)
            )
        else:
            transform_pixels(
                (lanes, m, source, row_step, channels, into, points * step, step, channels)
            )


@kernel()
def _finish_tiles(  # type: ignore[no-untyped-def]
    lanes, m, source, step, shift, residual, adds, relu, y, rows, columns, first, count, patch
):
    """Transform products source[point][tile][K] of tiles [first, first + count) to pixels of y.

    adds: whether to add the residual.
    """
    _, p, q, k = y.shape
    points = m + 2
    plus = shift.ctypes.data
    for tile in range(count):
        picture = (first + tile) // (rows * columns)
        place = first + tile - picture * rows * columns
        row = place // columns
        i, j = row * m, (place - row * columns) * m
        start = source + 4 * tile * k
        if i + m <= p and j + m <= q:
            place = 4 * (((picture * p + i) * q + j) * k)
            into = y.ctypes.data + place
            other = residual.ctypes.data + place if adds else 0
            transform_results(
                (lanes, m, start, points * step, step, into, q * k, k, k, plus, other, relu)
            )
        else:
            into = patch.ctypes.data
            transform_results((lanes, m, start, points * step, step, into, m * k, k, k, plus, 0, 0))
            for a in range(min(m, p - i)):
                for b in range(min(m, q - j)):
                    pixel, other = y[picture, i + a, j + b], residual[picture, i + a, j + b]
                    for c in range(k):
                        value = patch[(a * m + b) * k + c]
                        value += other[c] if adds else np.float32(0)
                        pixel[c] = np.float32(0) if relu and value < 0 else value


@kernel()
def _multiply_tiles(  # type: ignore[no-untyped-def]
    lanes,
    height,
    point,
    source,
    step,
    channels,
    filters,
    filter_step,
    panels,
    zeros,
    tables,
    count,
    target,
    target_step,
):
    """Multiply one point of `count` tiles, rows of channels, by the transformed filters."""
    pixels = tables.shape[1]
    table, no_bias = np.int64(tables.ctypes.data), np.int64(zeros.ctypes.data)
    k = panels[-1, 0] + panels[-1, 1] * lanes
    pieces = (channels + LONGEST_SUM - 1) // LONGEST_SUM
    depth = (channels + pieces - 1) // pieces
    for panel in range(len(panels)):
        vectors = panels[panel, 1]
        from_filters = filters + 4 * (point * filter_step + panels[panel, 4] * channels)
        for c in range(0, channels, depth):
            for tile in range(0, count, height):
                multiply_rows(
                    lanes,
                    vectors,
                    source + 4 * (point * step + tile * channels + c),
                    no_bias,
                    table,
                    pixels,
                    np.int64(1),
                    min(depth, channels - c),
                    from_filters + 4 * c * vectors * lanes,
                    no_bias,
                    target + 4 * (point * target_step + tile * k + panels[panel, 0]),
                    table + 4 * pixels,
                    c,
                    np.int64(0),
                    np.int64(0),
                    np.int64(0),
                )


@kernel(parallel=True)
def _transform_filters(lanes, m, packed, depth, panels, filters, step):  # type: ignore[no-untyped-def]
    """Transform packed filters (panels; 9, depth, columns) to filters[point] (panels; depth, columns)."""
    points = m + 2
    pieces = (depth + 31) // 32
    for task in prange(len(panels) * pieces):
        panel = task // pieces
        begin = (task - panel * pieces) * 32
        width = panels[panel, 1] * lanes
        source = packed.ctypes.data + 4 * panels[panel, 4] * 9 * depth
        target = filters.ctypes.data + 4 * panels[panel, 4] * depth
        for c in range(begin, min(begin + 32, depth)):
            transform_filters(
                (
                    lanes,
                    m,
                    source + 4 * c * width,
                    3 * depth * width,
                    depth * width,
                    target + 4 * c * width,
                    points * step,
                    step,
                    width,
                )
            )


@kernel(parallel=True)
def _forward_by_blocks(  # type: ignore[no-untyped-def]
    lanes,
    height,
    m,
    x,
    top,
    left,
    filters,
    filter_step,
    panels,
    zeros,
    tables,
    shift,
    residual,
    adds,
    relu,
    y,
    block,
    room,
    patches,
):
    """Take blocks of tiles through all three steps, each by one thread whose cache holds the filters."""
    n, p, q, k = y.shape
    rows, columns = (p + m - 1) // m, (q + m - 1) // m
    channels = x.shape[3]
    points = (m + 2) * (m + 2)
    tiles = n * rows * columns
    step, target_step = block * channels + PAD, block * k + PAD
    for task in prange((tiles + block - 1) // block):
        thread = get_thread_id()
        source = np.int64(room[thread].ctypes.data)
        target = source + 4 * points * step
        patch = patches[thread]
        first = task * block
        count = min(block, tiles - first)
        _transform_tiles(
            lanes, m, m + 2, x, top, left, rows, columns, first, count, source, step, patch
        )
        for point in range(points):
            _multiply_tiles(
                lanes,
                height,
                np.int64(point),
                source,
                step,
                channels,
                np.int64(filters.ctypes.data),
                filter_step,
                panels,
                zeros,
                tables,
                count,
                target,
                target_step,
            )
        _finish_tiles(
            lanes,
            m,
            target,
            target_step,
            shift,
            residual,
            adds,
            relu,
            y,
            rows,
            columns,
            first,
            count,
            patch,
        )


@kernel(parallel=True)
def _forward_by_points(  # type: ignore[no-untyped-def]
    lanes,
    height,
    m,
    x,
    top,
    left,
    filters,
    filter_step,
    panels,
    zeros,
    tables,
    shift,
    residual,
    adds,
    relu,
    y,
    block,
    room,
    patches,
):
    """Take large blocks of tiles through one step after the other, all threads together.

    For many filters: those of one point are read once for a block, by one thread.
    """
    n, p, q, k = y.shape
    rows, columns = (p + m - 1) // m, (q + m - 1) // m
    channels = x.shape[3]
    points = (m + 2) * (m + 2)
    tiles = n * rows * columns
    step, target_step = block * channels + PAD, block * k + PAD
    source = np.int64(room.ctypes.data)
    target = source + 4 * points * step
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        for task in prange((count + 3) // 4):
            _transform_tiles(
                lanes,
                m,
                m + 2,
                x,
                top,
                left,
                rows,
                columns,
                first + 4 * task,
                min(4, count - 4 * task),
                source + 16 * task * channels,
                step,
                patches[get_thread_id()],
            )
        for point in prange(points):
            _multiply_tiles(
                lanes,
                height,
                np.int64(point),
                source,
                step,
                channels,
                np.int64(filters.ctypes.data),
                filter_step,
                panels,
                zeros,
                tables,
                count,
                target,
                target_step,
            )
        for task in prange((count + 3) // 4):
            _finish_tiles(
                lanes,
                m,
                target + 16 * task * k,
                target_step,
                shift,
                residual,
                adds,
                relu,
                y,
                rows,
                columns,
                first + 4 * task,
                min(4, count - 4 * task),
                patches[get_thread_id()],
            )


@kernel(parallel=True)
def _sum_tiles(  # type: ignore[no-untyped-def]
    lanes, height, m, dy, x, top, left, panels, starts, block, room, patches, sums
):
    """Add to sums[point][panel, tile of K] the products of transformed dy and x over all tiles."""
    n, p, q, k = dy.shape
    rows, columns = (p + m - 1) // m, (q + m - 1) // m
    channels = x.shape[3]
    points = (m + 2) * (m + 2)
    tiles = n * rows * columns
    step, dy_step = block * channels + PAD, block * k + PAD
    pixels = np.int64(room.ctypes.data)
    from_dy = pixels + 4 * points * step
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        for task in prange((count + 3) // 4):
            begin, some = first + 4 * task, min(4, count - 4 * task)
            patch = patches[get_thread_id()]
            _transform_tiles(
                lanes,
                m,
                m + 2,
                x,
                top,
                left,
                rows,
                columns,
                begin,
                some,
                pixels + 16 * task * channels,
                step,
                patch,
            )
            _transform_tiles(
                lanes,
                m,
                m,
                dy,
                np.int64(0),
                np.int64(0),
                rows,
                columns,
                begin,
                some,
                from_dy + 16 * task * k,
                dy_step,
                patch,
            )
        for point in prange(points):
            from_sums = np.int64(sums[point].ctypes.data)
            for panel in range(len(panels)):
                for tile in range(len(starts)):
                    total = from_sums + 4 * ((panel * len(starts) + tile) * 2 * height * lanes)
                    add_outer_products(
                        lanes,
                        panels[panel, 1],
                        from_dy + 4 * (point * dy_step + starts[tile]),
                        k,
                        pixels + 4 * (point * step + panels[panel, 0]),
                        channels,
                        lanes,
                        count,
                        total,
                        total,
                        np.int64(0),
                    )


@kernel(parallel=True)
def _finish_dw(lanes, height, m, sums, panels, starts, dw):  # type: ignore[no-untyped-def]
    """Transform sums to dw (K, 3, 3, C)."""
    channels = dw.shape[3]
    points = m + 2
    step = sums.shape[1]
    for tile in prange(len(starts)):
        # The last tile was moved back; its rows that the tile before has as well are left to that.
        skip = tile * height - starts[tile]
        for panel in range(len(panels)):
            width = panels[panel, 1] * lanes
            for i in range(skip, height):
                source = sums.ctypes.data + 4 * (
                    (panel * len(starts) + tile) * 2 * height * lanes + i * width
                )
                target = dw[starts[tile] + i].ctypes.data + 4 * panels[panel, 0]
                transform_dw(
                    (
                        lanes,
                        m,
                        source,
                        points * step,
                        step,
                        target,
                        3 * channels,
                        channels,
                        width,
                    )
                )


# ---- The three functions


@lru_cache(maxsize=64)
def _tile_tables(height: int, channels: int, k: int) -> np.ndarray:
    rows = np.arange(height)[None]
    return np.concatenate([rows * channels, rows * k]).astype(np.int32)


def _room(points: int, block: int, channels: int, k: int, parts: int) -> np.ndarray:
    """Return memory for the transformed tiles of `parts` blocks, and what the last tile may overrun."""
    return memory.empty((parts, points * (block * (channels + k) + 2 * PAD)), np.float32)


def _patches(m: int, channels: int) -> np.ndarray:
    """Return memory for one tile for each thread."""
    return memory.empty((most_threads(), (m + 2) ** 2 * channels), np.float32)


def _convolve(
    x: np.ndarray,
    packed: np.ndarray,
    panels: np.ndarray,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    y_shape: tuple[int, ...],
    top: int,
    left: int,
    m: int,
    lanes: int,
) -> np.ndarray:
    zeros = zeros_of(max(x.shape[3], y_shape[3]))
    channels, k = x.shape[3], y_shape[3]
    n, p, q, _ = y_shape
    height = ROWS_HEIGHT[lanes]
    points = (m + 2) ** 2
    tiles = n * -(-p // m) * -(-q // m)
    filter_step = packed.size // 9 + PAD
    filters = memory.empty((points * filter_step,), x.dtype)
    _transform_filters(lanes, m, packed, channels, panels, filters, filter_step)
    y = memory.empty(y_shape, x.dtype)
    whole = -(-tiles // height) * height
    if filters.size <= FILTERS_IN_CACHE:
        block = height * max(1, FLOATS_IN_BLOCK // (points * height * (channels + k)))
        forward, parts = _forward_by_blocks, most_threads()
    else:
        block = height * max(1, TILES_IN_PHASE // height)
        forward, parts = _forward_by_points, 1
    block = min(block, whole)
    forward(
        lanes,
        height,
        m,
        x,
        top,
        left,
        filters,
        filter_step,
        panels,
        zeros,
        _tile_tables(height, channels, k),
        zeros if shift is None else shift,
        y if residual is None else residual,
        residual is not None,
        relu,
        y,
        block,
        _room(points, block, channels, k, parts),
        _patches(m, max(channels, k)),
    )
    return y


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    padding: Padding2d,
    m: int,
    lanes: int,
) -> np.ndarray:
    """Return y = [relu](conv(x, weight) * scale + shift [+ residual]), shape (N, P, Q, K), by F(m x m).

    C and K must be at least `lanes`.
    """
    n, h, w, c = x.shape
    k = len(weight)
    panels = cover_by_panels(k, 1, lanes)
    packed = memory.empty((9 * c * int(panels[:, 1].sum()) * lanes,), x.dtype)
    factors = ones_of(k) if scale is None else scale
    pack_forward(weight.reshape(k, -1), factors, lanes, panels, packed)
    p, q = h + padding.top + padding.bottom - 2, w + padding.left + padding.right - 2
    y_shape, top, left = (n, p, q, k), padding.top, padding.left
    return _convolve(x, packed, panels, shift, residual, relu, y_shape, top, left, m, lanes)


def conv2d_dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    padding: Padding2d,
    m: int,
    lanes: int,
) -> np.ndarray:
    """Return the gradient of x: dy convolved with the filters rotated, padded by what `padding` left of 2."""
    k, c = len(weight), x_shape[3]
    panels = cover_by_panels(c, 1, lanes)
    packed = memory.empty((9 * k * int(panels[:, 1].sum()) * lanes,), dy.dtype)
    pack_dx(weight.reshape(k, 9, c), np.arange(8, -1, -1), 1, lanes, panels, packed)
    top, left = 2 - padding.top, 2 - padding.left
    return _convolve(dy, packed, panels, None, None, False, x_shape, top, left, m, lanes)


def conv2d_dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    padding: Padding2d,
    m: int,
    lanes: int,
) -> np.ndarray:
    """Return the gradient of the weight, shape (K, 3, 3, C), by F(m x m)."""
    n, p, q, k = dy.shape
    c = x.shape[3]
    points = (m + 2) ** 2
    height = OUTER_HEIGHT[lanes]
    panels = cover_by_panels(c, 1, lanes)
    starts = np.minimum(np.arange(0, k, height), k - height)
    block = max(TILES_IN_SUM, FLOATS_IN_SUM // (points * (c + k)))
    block = min(block, n * -(-p // m) * -(-q // m))
    size = len(panels) * len(starts) * height * 2 * lanes
    sums = memory.zeros((points, size + PAD), x.dtype)
    _sum_tiles(
        lanes,
        height,
        m,
        dy,
        x,
        padding.top,
        padding.left,
        panels,
        starts,
        block,
        _room(points, block, c, k, 1),
        _patches(m, max(c, k)),
        sums,
    )
    dw = memory.empty(weight_shape, x.dtype)
    _finish_dw(lanes, height, m, sums, panels, starts, dw)
    return dw
