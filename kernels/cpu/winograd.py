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

What is multiplied must come from near caches. Where all transformed filters stay there, a thread takes a
block of tiles through all steps; where they are too many, one panel of filters stays and tiles pass by.
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, prange  # type: ignore[attr-defined]

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.conv2d_direct import LONGEST_SUM
from minitl.kernels.cpu.conv2d_tables import cover_by_panels, ones_of, zeros_of
from minitl.kernels.cpu.jit import kernel, most_threads
from minitl.kernels.cpu.microkernel import (
    LINE,
    OUTER_HEIGHT,
    ROWS_FAR,
    ROWS_HEIGHT,
    add_outer_products,
    ask_for,
    multiply_rows,
    transpose_square,
)
from minitl.kernels.cpu.winograd_transforms import (
    transform_dw,
    transform_dy,
    transform_filters,
    transform_pixels,
    transform_results,
)
from minitl.shapes import Padding2d

FLOATS_IN_BLOCK = 3 << 16  # transformed tiles that one thread keeps in its cache
FILTERS_IN_CACHE = 1 << 20  # floats of transformed filters up to which tiles are taken by blocks
TILES_BY_COLUMNS = 264  # tiles that pass by one panel of filters, where there are more of them
TILES_IN_SUM = 64  # dw: at least so many tiles between additions to memory,
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
    lanes, m, x, top, left, rows, columns, first, count, target, step, patch
):
    """Transform tiles [first, first + count) of pictures x (N, H, W, C) to target[point][tile][C].

    Tiles of m + 2 pixels squared lie m apart, from (-top, -left) on. target: an address; step: floats from
    point to point. patch: room for a tile.
    """
    _, h, w, channels = x.shape
    points = m + 2
    for tile in range(count):
        picture = (first + tile) // (rows * columns)
        place = first + tile - picture * rows * columns
        row = place // columns
        i, j = row * m - top, (place - row * columns) * m - left
        source, row_step = np.int64(patch.ctypes.data), points * channels
        if i >= 0 and j >= 0 and i + points <= h and j + points <= w:
            source = np.int64(x.ctypes.data) + 4 * (((picture * h + i) * w + j) * channels)
            row_step = w * channels
        else:
            _copy_tile(x[picture], h, w, channels, i, j, points, patch)
        into = target + 4 * tile * channels
        transform_pixels(
            (lanes, m, source, row_step, channels, into, points * step, step, channels)
        )


@kernel()
def _ask_for_tiles(lanes, pictures, m, rows, columns, first, end):  # type: ignore[no-untyped-def]
    """Ask for the m x m pixels that each of the tiles [first, end) has for itself.

    Their transform would otherwise wait for memory, which is idle while products are summed.
    """
    n, height, width, channels = pictures.shape
    for tile in range(first, min(end, n * rows * columns)):
        picture = tile // (rows * columns)
        place = tile - picture * rows * columns
        row = place // columns
        i, j = row * m, (place - row * columns) * m
        lines = (min(m, width - j) * channels + LINE - 1) // LINE
        for a in range(i, min(i + m, height)):
            start = ((picture * height + a) * width + j) * channels
            ask_for(lanes, pictures.ctypes.data + 4 * start, lines)


@kernel()
def _transform_dy_tiles(  # type: ignore[no-untyped-def]
    lanes, m, dy, rows, columns, first, count, target, step, patch
):
    """Transform tiles [first, first + count) of dy, m x m pixels each, to target[point][tile][K]."""
    _, p, q, k = dy.shape
    for tile in range(count):
        picture = (first + tile) // (rows * columns)
        place = first + tile - picture * rows * columns
        row = place // columns
        i, j = row * m, (place - row * columns) * m
        source, row_step = np.int64(patch.ctypes.data), m * k
        if i + m <= p and j + m <= q:
            source = np.int64(dy.ctypes.data) + 4 * (((picture * p + i) * q + j) * k)
            row_step = q * k
        else:
            _copy_tile(dy[picture], p, q, k, i, j, m, patch)
        into = target + 4 * tile * k
        transform_dy((lanes, m, source, row_step, k, into, (m + 2) * step, step, k))


@kernel()
def _finish_tiles(  # type: ignore[no-untyped-def]
    lanes,
    m,
    source,
    step,
    shift,
    residual,
    adds,
    relu,
    y,
    rows,
    columns,
    first,
    count,
    begin,
    width,
    pitch,
    patch,
):
    """Transform products source[point][tile][width] of tiles [first, first + count) to pixels of y.

    They are the channels [begin, begin + width) of y. pitch: floats from tile to tile. adds: whether to add
    the residual.
    """
    _, p, q, k = y.shape
    points = m + 2
    plus = np.int64(shift.ctypes.data) + 4 * begin
    to_y, to_residual = np.int64(y.ctypes.data), np.int64(residual.ctypes.data)
    to_patch = np.int64(patch.ctypes.data)
    for tile in range(count):
        picture = (first + tile) // (rows * columns)
        place = first + tile - picture * rows * columns
        row = place // columns
        i, j = row * m, (place - row * columns) * m
        offset = 4 * (((picture * p + i) * q + j) * k + begin)
        height, breadth = min(m, p - i), min(m, q - j)
        whole = height == m and breadth == m
        into, row_step, pixel_step, other = to_y + offset, q * k, k, to_residual + offset
        if not whole:
            into, row_step, pixel_step = to_patch, m * width, width
            other = to_patch + 4 * m * m * width  # not in place: vectors may overlap
            for a in range(height if adds else 0):
                for b in range(breadth):
                    for c in range(width):
                        before = residual[picture, i + a, j + b, begin + c]
                        patch[(m * m + a * m + b) * width + c] = before
        transform_results(
            (
                lanes,
                m,
                source + 4 * tile * pitch,
                points * step,
                step,
                into,
                row_step,
                pixel_step,
                width,
                plus,
                other if adds else 0,
                relu,
            )
        )
        if not whole:
            for a in range(height):
                for b in range(breadth):
                    for c in range(width):
                        y[picture, i + a, j + b, begin + c] = patch[(a * m + b) * width + c]


@kernel()
def _multiply_tiles(  # type: ignore[no-untyped-def]
    lanes,
    height,
    point,
    source,
    step,
    channels,
    depth,
    filters,
    filter_step,
    panels,
    zeros,
    table,
    count,
    target,
    target_step,
):
    """Multiply one point of `count` tiles, rows of channels, by the transformed filters.

    Sums are taken over `depth` channels at a time. zeros, table: addresses.
    """
    k = panels[-1, 0] + panels[-1, 1] * lanes
    for panel in range(len(panels)):
        vectors = panels[panel, 1]
        from_filters = filters + 4 * (point * filter_step + panels[panel, 4] * channels)
        for c in range(0, channels, depth):
            for tile in range(0, count, height):
                multiply_rows(
                    lanes,
                    vectors,
                    source + 4 * (point * step + tile * channels + c),
                    zeros,
                    table,
                    2 * height,
                    np.int64(1),
                    min(depth, channels - c),
                    from_filters + 4 * c * vectors * lanes,
                    zeros,
                    target + 4 * (point * target_step + tile * k + panels[panel, 0]),
                    table + 8 * height,
                    c,
                    np.int64(0),
                    np.int64(0),
                    np.int64(0),
                )


@kernel()
def _transform_panel(  # type: ignore[no-untyped-def]
    lanes, m, weight, scale, turned, begin, width, first, depth, packed, filters, step
):
    """Transform the filters of columns [begin, begin + width) of y and channels [first, first + depth) of x.

    From weight (K, 9, C), where columns are filters and each is multiplied by its scale; `turned`: where
    columns are channels, and each filter is rotated by half a turn. To filters[point][depth][width].
    packed: room for the filters in the order (9, depth, width). There are `lanes` channels at least.
    """
    k_step = 9 * weight.shape[2]
    if turned:
        tap_step, next_channel = -weight.shape[2], k_step
        source = np.int64(weight.ctypes.data) + 4 * (first * k_step - 8 * tap_step + begin)
    else:
        tap_step, next_channel = depth * width, width
        source = np.int64(packed.ctypes.data)
        for tap in range(9):
            for j in range(0, width, lanes):
                for start in range(0, depth, lanes):
                    d = min(start, depth - lanes)
                    transpose_square(
                        lanes,
                        weight[begin + j, tap].ctypes.data + 4 * (first + d),
                        k_step,
                        scale.ctypes.data + 4 * (begin + j),
                        packed.ctypes.data + 4 * ((tap * depth + d) * width + j),
                        width,
                    )
    for d in range(depth):
        transform_filters(
            (
                lanes,
                m,
                source + 4 * d * next_channel,
                3 * tap_step,
                tap_step,
                filters + 4 * d * width,
                (m + 2) * step,
                step,
                width,
            )
        )


@kernel(parallel=True)
def _transform_weight(lanes, m, weight, scale, turned, panels, depth, packs, filters, step):  # type: ignore[no-untyped-def]
    """Transform a weight to filters[point] (panels; depth, columns); see `_transform_panel`."""
    pieces = max(1, depth // 32)
    for task in prange(len(panels) * pieces):
        panel = task // pieces
        first = (task - panel * pieces) * depth // pieces
        end = (task - panel * pieces + 1) * depth // pieces
        width = panels[panel, 1] * lanes
        _transform_panel(
            lanes,
            m,
            weight,
            scale,
            turned,
            panels[panel, 0],
            width,
            first,
            end - first,
            packs[get_thread_id()],
            np.int64(filters.ctypes.data) + 4 * (panels[panel, 4] * depth + first * width),
            step,
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
    depth,
    block,
    room,
    patches,
):
    """Take blocks of tiles through all three steps, each by one thread whose cache holds the filters."""
    no_bias, table = np.int64(zeros.ctypes.data), np.int64(tables.ctypes.data)
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
        _transform_tiles(lanes, m, x, top, left, rows, columns, first, count, source, step, patch)
        for point in range(points):
            _multiply_tiles(
                lanes,
                height,
                np.int64(point),
                source,
                step,
                channels,
                depth,
                np.int64(filters.ctypes.data),
                filter_step,
                panels,
                no_bias,
                table,
                count,
                target,
                target_step,
            )
            begin, end = first + point * block // points, first + (point + 1) * block // points
            _ask_for_tiles(lanes, y, m, rows, columns, begin, end)
            _ask_for_tiles(lanes, x, m, rows, columns, begin + block, end + block)
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
            np.int64(0),
            k,
            k,
            patch,
        )


@kernel(parallel=True)
def _forward_by_columns(  # type: ignore[no-untyped-def]
    lanes,
    height,
    m,
    x,
    top,
    left,
    weight,
    scale,
    turned,
    panels,
    zeros,
    tables,
    shift,
    residual,
    adds,
    relu,
    y,
    depth,
    block,
    room,
    packs,
    scratch,
    patches,
):
    """Transform a large block of tiles, then take panel after panel of filters through all three steps.

    For many filters: transformed they are four times as large as the weight, but those of one panel are used
    where they were made, in the cache of one thread, and never go to memory.
    """
    no_bias, table = np.int64(zeros.ctypes.data), np.int64(tables.ctypes.data)
    n, p, q, _ = y.shape
    rows, columns = (p + m - 1) // m, (q + m - 1) // m
    channels = x.shape[3]
    points = (m + 2) * (m + 2)
    tiles = n * rows * columns
    step = block * channels + PAD
    pitch = 2 * lanes  # of products; a panel may be narrower
    source = np.int64(room.ctypes.data)
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        for task in prange((count + 3) // 4):
            _transform_tiles(
                lanes,
                m,
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
        for panel in prange(len(panels)):
            thread = get_thread_id()
            begin, width = panels[panel, 0], panels[panel, 1] * lanes
            filter_step, target_step = depth * width + PAD, block * pitch + PAD
            filters = np.int64(scratch[thread].ctypes.data)
            target = filters + 4 * points * filter_step
            for c in range(0, channels, depth):
                some = min(depth, channels - c)
                _transform_panel(
                    lanes,
                    m,
                    weight,
                    scale,
                    turned,
                    begin,
                    width,
                    c,
                    some,
                    packs[thread],
                    filters,
                    filter_step,
                )
                for point in range(points):
                    for tile in range(0, count, height):
                        multiply_rows(
                            lanes,
                            panels[panel, 1],
                            source + 4 * (point * step + tile * channels + c),
                            no_bias,
                            table,
                            2 * height,
                            np.int64(1),
                            some,
                            filters + 4 * point * filter_step,
                            no_bias,
                            target + 4 * (point * target_step + tile * pitch),
                            table + 8 * height,
                            c,
                            np.int64(0),
                            np.int64(0),
                            np.int64(ROWS_FAR),
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
                begin,
                width,
                pitch,
                patches[thread],
            )


@kernel(parallel=True)
def _sum_tiles(  # type: ignore[no-untyped-def]
    lanes, height, m, dy, x, top, left, panels, starts, zeros, block, room, patches, sums
):
    """Write to sums[point][panel, tile of K] the products of transformed dy and x over all tiles."""
    n, p, q, k = dy.shape
    rows, columns = (p + m - 1) // m, (q + m - 1) // m
    channels = x.shape[3]
    points = (m + 2) * (m + 2)
    tiles = n * rows * columns
    step, dy_step = block * channels + PAD, block * k + PAD
    pixels = np.int64(room.ctypes.data)
    from_dy = pixels + 4 * points * step
    nothing = np.int64(zeros.ctypes.data)
    for first in range(0, tiles, block):
        count = min(block, tiles - first)
        for task in prange((count + 3) // 4):
            begin, some = first + 4 * task, min(4, count - 4 * task)
            patch = patches[get_thread_id()]
            _transform_tiles(
                lanes,
                m,
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
            _transform_dy_tiles(
                lanes,
                m,
                dy,
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
                        total if first else nothing,
                        total,
                        np.int64(0),
                    )
            begin = first + block + point * block // points
            end = first + block + (point + 1) * block // points
            _ask_for_tiles(lanes, x, m, rows, columns, begin, end)
            _ask_for_tiles(lanes, dy, m, rows, columns, begin, end)


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
def _tile_tables(height: int, channels: int, width: int) -> np.ndarray:
    """Return where rows of two tiles of `multiply_rows` start, and where their results go."""
    rows = np.arange(2 * height)[None]
    return np.concatenate([rows * channels, rows * width]).astype(np.int32)


def _room(points: int, block: int, channels: int, k: int, parts: int) -> np.ndarray:
    """Return memory for the transformed tiles of `parts` blocks, and what the last tile may overrun."""
    return memory.empty((parts, points * (block * (channels + k) + 2 * PAD)), np.float32)


def _patches(m: int, channels: int) -> np.ndarray:
    """Return memory for one tile for each thread."""
    return memory.empty((most_threads(), (m + 2) ** 2 * channels), np.float32)


def _convolve(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray | None,
    turned: bool,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    y_shape: tuple[int, ...],
    top: int,
    left: int,
    m: int,
    lanes: int,
) -> np.ndarray:
    """Return y; the filters are weight (K, 9, C), or, `turned`, its rotated and transposed ones."""
    n, p, q, k = y_shape
    channels = x.shape[3]
    zeros = zeros_of(max(channels, k))
    height = ROWS_HEIGHT[lanes]
    points = (m + 2) ** 2
    tiles = n * -(-p // m) * -(-q // m)
    whole = -(-tiles // height) * height
    pieces = -(-channels // LONGEST_SUM)
    depth = -(-channels // pieces)
    panels = cover_by_panels(k, 1, lanes)
    columns = int(panels[:, 1].sum()) * lanes
    y = memory.empty(y_shape, x.dtype)
    filters_from = (weight, ones_of(k) if scale is None else scale, turned, panels)
    packs = memory.empty((most_threads(), 9 * depth * 2 * lanes), x.dtype)
    epilogue = (
        zeros if shift is None else shift,
        y if residual is None else residual,
        residual is not None,
        relu,
        y,
        depth,
    )
    patches = _patches(m, max(channels, k))
    size = points * channels * columns
    if size > FILTERS_IN_CACHE:
        block = min(whole, TILES_BY_COLUMNS // height * height)
        _forward_by_columns(
            lanes,
            height,
            m,
            x,
            top,
            left,
            *filters_from,
            zeros,
            _tile_tables(height, channels, 2 * lanes),
            *epilogue,
            block,
            memory.empty((points * (block * channels + PAD),), x.dtype),
            packs,
            _room(points, 2 * lanes, depth, block, most_threads()),
            patches,
        )
        return y
    filter_step = channels * columns + PAD
    filters = memory.empty((points * filter_step,), x.dtype)
    _transform_weight(lanes, m, *filters_from, channels, packs, filters, filter_step)
    block = height * max(1, FLOATS_IN_BLOCK // (points * height * (channels + k)))
    block = min(block, whole)
    _forward_by_blocks(
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
        *epilogue,
        block,
        _room(points, block, channels, k, most_threads()),
        patches,
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
    p, q = h + padding.top + padding.bottom - 2, w + padding.left + padding.right - 2
    y_shape, top, left = (n, p, q, k), padding.top, padding.left
    filters = weight.reshape(k, 9, c)
    return _convolve(x, filters, scale, False, shift, residual, relu, y_shape, top, left, m, lanes)


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
    filters = weight.reshape(k, 9, c)
    top, left = 2 - padding.top, 2 - padding.left
    return _convolve(dy, filters, None, True, None, None, False, x_shape, top, left, m, lanes)


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
    sums = memory.empty((points, size + PAD), x.dtype)
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
        zeros_of(height * 2 * lanes),
        block,
        _room(points, block, c, k, 1),
        _patches(m, max(c, k)),
        sums,
    )
    dw = memory.empty(weight_shape, x.dtype)
    _finish_dw(lanes, height, m, sums, panels, starts, dw)
    return dw
