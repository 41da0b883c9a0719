"""Direct convolution in float32: products of tiles, without ever writing out the windows.

x: N, H, W, C      weight: K, R, S, C/groups      y: N, P, Q, K

In NHWC the channels under one tap (r, s) of the kernel lie side by side, so for each output pixel y is a
sum over taps of a row of x times a matrix of the filters. A table holds, for each tap and pixel, where
that row starts, or -1 where the tap looks at padding; the microkernel reads from a row of zeros then. The
table alone knows about stride, dilation and padding, so one loop serves all of them:

    forward   y[pixel]  = sum over taps of  x[table(tap, pixel)] @ w[tap]        rows of C, to columns of K
    dx        x[pixel] += sum over taps of dy[table(tap, pixel)] @ w[tap]^T      rows of K, to columns of C
    dw        w[tap]    = sum over pixels of dy[pixel]^T x[table(tap, pixel)]    the same table as forward

With a stride, dx falls into stride * stride kinds of pixels, each seen by its own taps; each kind is a
convolution of its own, and no multiplication is wasted. A kind that no tap sees (1x1 with stride) is zero.

Columns are taken in panels of two vectors. The last panel is moved back to end with the row, so that it
computes some columns twice and needs no masks; likewise the last tile of pixels is filled up with copies
of the last pixel. What has fewer columns than one vector is padded with zeros first, and groups are
merged until each has a vector's worth of channels.

Every sum is divided and ordered by the problem's size alone: results do not depend on the number of
threads.
"""

import numpy as np
from numba import get_thread_id, prange  # type: ignore[attr-defined]

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.conv2d_pack import (
    merge_count,
    merge_groups,
    narrow,
    own_channels,
    pack_dx,
    pack_forward,
    pad_axis,
    pad_picture,
    rows_as_one_tap,
)
from minitl.kernels.cpu.conv2d_tables import (
    TASKS,
    Gather,
    copied_places,
    cover_by_panels,
    cover_by_tiles,
    cover_by_vectors,
    divide_dw,
    dx_gathers,
    forward_gather,
    joined_row,
    ones_of,
    picture_sets,
    rows_meet,
    share_blocks,
    zeros_of,
)
from minitl.kernels.cpu.jit import kernel, most_threads
from minitl.kernels.cpu.microkernel import (
    LINE,
    LINES_ASKED,
    OUTER_HEIGHT,
    RESULTS_FAR,
    ROWS_FAR,
    ROWS_HEIGHT,
    UNROLL,
    add_outer_products,
    gather_rows,
    multiply_rows,
)
from minitl.shapes import Padding2d, window_output_shape

Pair = tuple[int, int]

TILES_IN_BLOCK = 4  # tiles of pixels that one panel of filters is used for before the next,
MORE_TILES_IN_BLOCK = 8  # where the panels together outgrow a core's cache:
FILTERS_IN_CACHE = 1 << 19  # floats
FLOATS_IN_COPY = 1 << 16  # of rows that are copied to be used
LONGEST_SUM = 288  # products summed in registers before they are added to memory
PIXELS_IN_SUM = 128  # dw: the same, in pixels, about
PIXELS_TOGETHER = 16  # dw: pixels for which taps are copied side by side, in the nearest cache
VECTORS_IN_COPY = 32  # dw: vectors of a row of x that are copied at a time


@kernel()
def _first_panel(panels, part, parts):  # type: ignore[no-untyped-def]
    """Return the first panel of a part.

    Panels that share columns stay together: sums grow in memory, where two threads must not meet.
    """
    first = part * len(panels) // parts
    while first < len(panels) and panels[first, 2] > 0:
        first += 1
    return first


@kernel()
def _multiply_block(  # type: ignore[no-untyped-def]
    lanes,
    height,
    x,
    zeros,
    sources,
    step,
    taps,
    depth,
    packed,
    panels,
    start,
    y,
    results,
    residual,
    relu,
    count,
    first_panel,
    end_panel,
    near,
):
    """Compute `count` pixels of one set of pictures, in the columns of some panels.

    x, y, residual: addresses of the set; no residual: 0. sources: address of where the rows under the first
    tap start, those under the next one `step` entries on; results: of where results go. near: whether
    the rows are in a near cache already.
    """
    # One piece of the sum at a time: some whole taps, or a part of one.
    some_taps = max(1, LONGEST_SUM // depth)
    pieces = (depth + LONGEST_SUM - 1) // LONGEST_SUM
    some_depth = (depth + pieces - 1) // pieces
    for panel in range(first_panel, end_panel):
        column, vectors, from_x = panels[panel, 0], panels[panel, 1], panels[panel, 3] * depth
        filters = packed.ctypes.data + 4 * panels[panel, 4] * taps * depth
        for tap in range(0, taps, some_taps):
            for k in range(0, depth, some_depth):
                last = tap + some_taps >= taps and k + some_depth >= depth
                other = residual + 4 * column if last and residual != 0 else np.int64(0)
                far = RESULTS_FAR if tap + k == 0 else 0
                if panel == first_panel and not near:
                    far |= ROWS_FAR
                for pixel in range(0, count, height):
                    multiply_rows(
                        lanes,
                        vectors,
                        x + 4 * (from_x + k),
                        np.int64(zeros.ctypes.data),
                        sources + 4 * (tap * step + pixel),
                        step,
                        min(some_taps, taps - tap),
                        min(some_depth, depth - k),
                        filters + 4 * (tap * depth + k) * vectors * lanes,
                        start.ctypes.data + 4 * column,
                        y + 4 * column,
                        results + 4 * pixel,
                        tap + k,
                        other,
                        np.int64(relu and last),
                        far,
                    )


@kernel(parallel=True)
def _multiply_gathered(  # type: ignore[no-untyped-def]
    lanes,
    height,
    x,
    x_step,
    zeros,
    gather,
    depth,
    packed,
    panels,
    start,
    y,
    y_step,
    residual,
    relu,
    sets,
    blocks,
    parts,
    room,
    places,
):
    """Compute y at all pixels: the sum over taps of rows of x times packed filters, plus start.

    residual: address of an array like y that is added, or 0. relu: whether to cut off what is below zero.
    x_step, y_step: floats from one set of pictures to the next. blocks, parts: tasks that the tiles of a set
    and the panels are divided among. room: memory for a block's rows for each thread, where they are copied
    first; else no threads. places: see `copied_places`.
    """
    taps, pixels = len(gather) - 1, gather.shape[1]
    tiles = pixels // height
    for task in prange(sets * blocks * parts):
        part = task // (sets * blocks)
        picture_set = task % (sets * blocks) // blocks
        block = task % blocks
        begin = block * tiles // blocks * height
        count = (block + 1) * tiles // blocks * height - begin
        rows = x.ctypes.data + 4 * picture_set * x_step
        sources = gather.ctypes.data + 4 * begin
        step, in_row, terms = pixels, taps, depth
        if len(room):  # all that a pixel sees, side by side, is one row
            copied = (
                np.int64(room.ctypes.data) + 4 * get_thread_id() * room.shape[1] * room.shape[2]
            )
            for tap in range(taps):
                gather_rows(
                    lanes,
                    rows,
                    np.int64(zeros.ctypes.data),
                    sources + 4 * tap * pixels,
                    count,
                    places.ctypes.data + 4 * places.shape[1],
                    depth // lanes,
                    copied + 4 * tap * depth,
                    room.shape[2],
                    lanes,
                )
            rows, sources = copied, np.int64(places.ctypes.data)
            step, in_row, terms = 0, 1, taps * depth
        _multiply_block(
            lanes,
            height,
            rows,
            zeros,
            sources,
            step,
            in_row,
            terms,
            packed,
            panels,
            start,
            y.ctypes.data + 4 * picture_set * y_step,
            gather.ctypes.data + 4 * (taps * pixels + begin),
            residual + 4 * picture_set * y_step if residual != 0 else np.int64(0),
            relu,
            count,
            _first_panel(panels, part, parts),
            _first_panel(panels, part + 1, parts),
            len(room) > 0,
        )


@kernel()
def _list_lines(source, gather, tap, begin, end, first, end_column, far, thread, count):  # type: ignore[no-untyped-def]
    """Append to far[thread] the addresses of the cache lines that hold columns of the pixels' rows."""
    for p in range(begin, end):
        row = source + 4 * np.int64(gather[tap, p])
        for column in range(first, end_column, LINE):
            far[thread, np.uint64(count)] = row + 4 * column
            count += 1
    return count


@kernel(parallel=True)
def _sum_outer_products(  # type: ignore[no-untyped-def]
    lanes,
    height,
    dy,
    dy_step,
    x,
    x_step,
    zeros,
    gather,
    pixels,
    run,
    row,
    columns,
    tiles,
    sets,
    block,
    unit_slices,
    tile_slices,
    sums,
    fresh,
    room,
    far,
):
    """Add to sums[chunk, group, tap, pair, tile] the products of dy and x over the chunk's pixels.

    fresh: nothing has been written to the sums yet, and every chunk has pixels.

    gather: the table of x, and below it where dy's pixels start. run: floats from group to group in x.
    columns: first columns of the vectors of x, int32; pair: two of them. tiles: int32 (3, tiles), see
    `cover_by_tiles`. room, far: memory for each thread. A unit is a tap and a pair; a task has a chunk of the
    pixels, and slices of the units and of the tiles.

    With one tap in the sums and several in the table, these are copied side by side and `run` counts the
    floats of all; their copies then lie row by row, `row` floats apart, where otherwise the first vector of
    all pixels is followed by the second of all.
    """
    chunks, groups, taps, pairs, in_group, tile_size = sums.shape
    joined = (len(gather) - 1) // taps
    line = gather.shape[1]
    blocks = (pixels + block - 1) // block
    kg = dy.shape[3] // groups
    vector = (block + 1) * lanes  # one more, against steps of a power of two
    row_step, vector_step, together = lanes, vector, block
    if joined > 1:
        row_step, vector_step, together = row, lanes, PIXELS_TOGETHER
    units = taps * pairs
    for task in prange(chunks * unit_slices * tile_slices):
        chunk = task // (unit_slices * tile_slices)
        unit_part = task // tile_slices % unit_slices
        begin_unit = unit_part * units // unit_slices
        end_unit = (unit_part + 1) * units // unit_slices
        tile_part = task % tile_slices
        begin_tile = tile_part * in_group // tile_slices
        end_tile = (tile_part + 1) * in_group // tile_slices
        thread = get_thread_id()
        copied_x = room.ctypes.data + 4 * thread * room.shape[1]
        copied_dy = copied_x + 4 * VECTORS_IN_COPY * vector
        from_x = copied_x
        end_piece = (chunk + 1) * sets * blocks // chunks
        first_piece = chunk * sets * blocks // chunks
        for piece in range(first_piece, end_piece):
            # While this piece is summed, the next one is fetched.
            asked, asking = far.ctypes.data + 8 * thread * far.shape[1], 0
            if piece + 1 < end_piece:
                next_set = (piece + 1) // blocks
                begin = (piece + 1 - next_set * blocks) * block
                end = min(begin + block, pixels)
                begin_tap = begin_unit // pairs
                end_tap = (end_unit - 1) // pairs + 1 if joined == 1 else begin_tap
                for tap in range(begin_tap - 1, end_tap):
                    if tap < begin_tap:  # dy
                        source, row = dy.ctypes.data + 4 * next_set * dy_step, taps * joined
                        first, last = tiles[2, begin_tile], tiles[2, end_tile - 1]
                    else:
                        source, row = x.ctypes.data + 4 * next_set * x_step, tap
                        end_pair = min(end_unit - tap * pairs, pairs)
                        first = columns[2 * max(begin_unit - tap * pairs, 0)]
                        last = columns[min(2 * end_pair, len(columns)) - 1] + (groups - 1) * run
                    asking = _list_lines(
                        source, gather, row, begin, end, first, last + lanes, far, thread, asking
                    )
            picture_set = piece // blocks
            begin = (piece - picture_set * blocks) * block
            count = min(block, pixels - begin)
            x_set = x.ctypes.data + 4 * picture_set * x_step
            dy_set = dy.ctypes.data + 4 * picture_set * dy_step
            for group in range(groups):
                gather_rows(
                    lanes,
                    dy_set + 4 * group * kg,
                    np.int64(0),
                    gather.ctypes.data + 4 * (taps * joined * line + begin),
                    count,
                    tiles.ctypes.data + 4 * (2 * in_group + begin_tile),
                    end_tile - begin_tile,
                    copied_dy,
                    lanes,
                    vector,
                )
                copied = 0  # pairs of columns that have been copied and not yet used
                for unit in range(begin_unit, end_unit):
                    tap, pair = unit // pairs, unit % pairs
                    first = 2 * pair
                    if copied == 0:
                        copied = min(VECTORS_IN_COPY // 2, pairs - pair, end_unit - unit)
                        from_x = copied_x
                        vectors = min(2 * copied, len(columns) - first)
                        if joined > 1:
                            vectors = (run // joined + lanes - 1) // lanes
                        for pixel in range(0, count, together):
                            for part in range(joined):
                                gather_rows(
                                    lanes,
                                    x_set + 4 * group * run,
                                    np.int64(zeros.ctypes.data),
                                    gather.ctypes.data + 4 * ((tap + part) * line + begin + pixel),
                                    min(together, count - pixel),
                                    columns.ctypes.data + 4 * first,
                                    vectors,
                                    copied_x + 4 * (pixel * row_step + part * (run // joined)),
                                    row_step,
                                    vector_step,
                                )
                    place = ((chunk * groups + group) * units + unit) * in_group
                    for tile in range(begin_tile, end_tile):
                        in_row = tiles[0, tile] - tiles[2, tile]
                        asking -= LINES_ASKED * (count // UNROLL)
                        total = sums.ctypes.data + 4 * (place + tile) * tile_size
                        begins = fresh and piece == first_piece
                        add_outer_products(
                            lanes,
                            min(2, len(columns) - first),
                            copied_dy + 4 * ((tile - begin_tile) * vector + in_row),
                            lanes,
                            from_x,
                            row_step,
                            vector_step,
                            count,
                            np.int64(zeros.ctypes.data) if begins else total,
                            total,
                            asked if asking >= 0 else np.int64(0),
                        )
                        asked += 8 * LINES_ASKED * (count // UNROLL)
                    copied -= 1
                    from_x += 4 * 2 * vector_step


@kernel(parallel=True)
def _combine_sums(lanes, height, sums, run, columns, tiles, dw):  # type: ignore[no-untyped-def]
    """Write dw (K, taps * C/groups): the chunks' sums, added in float64 and in order."""
    chunks, groups, taps, pairs, in_group = sums.shape[:5]
    kg = dw.shape[0] // groups
    for task in prange(groups * in_group):
        group = task // in_group
        tile = task - group * in_group
        total = np.empty(lanes, np.float64)
        for tap in range(taps):
            for pair in range(pairs):
                vectors = min(2, len(columns) - 2 * pair)
                for q in range(tiles[1, tile] * vectors, height * vectors):
                    i = q // vectors
                    column = columns[2 * pair + q - i * vectors]
                    for chunk in range(chunks):
                        for j in range(np.uint64(lanes)):
                            number = sums[chunk, group, tap, pair, tile, np.uint64(q * lanes) + j]
                            total[j] = number if chunk == 0 else total[j] + number
                    row = group * kg + tiles[0, tile] + i
                    for j in range(np.uint64(min(lanes, run - column))):
                        dw[row, np.uint64(tap * run + column) + j] = total[j]


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    lanes: int,
) -> np.ndarray:
    """Return y = [relu](conv(x, weight) * scale + shift [+ residual]), shape (N, P, Q, K)."""
    n, h, w, c = x.shape
    k, r, s, cg = weight.shape
    if k < lanes:
        merged = pad_axis(merge_groups(weight, groups, groups), 0, lanes)
        if scale is not None:
            scale = pad_axis(scale, 0, lanes)
        if shift is not None:
            shift = pad_axis(shift, 0, lanes)
        y = conv2d_forward(
            x, merged, scale, shift, None, False, stride, padding, dilation, 1, lanes
        )
        return _finish(narrow(y, k), residual, relu)
    p, q = window_output_shape(h, w, (r, s), stride, padding, dilation)
    merge = merge_count(groups, k // groups, cg, lanes)
    weight, groups = merge_groups(weight, groups, merge), groups // merge
    y = memory.empty((n, p, q, k), x.dtype)
    depth = weight.shape[3]
    if rows_as_one_tap(c, (r, s), dilation, groups, lanes):
        x = pad_picture(x, padding, 0)
        padding, s, depth = Padding2d(0, 0, 0, 0), 1, s * c
        h, w = x.shape[1:3]

    panels = cover_by_panels(k // groups, groups, lanes)
    filters = weight.reshape(k, -1)
    packed = memory.empty((filters.shape[1] * int(panels[:, 1].sum()) * lanes,), x.dtype)
    pack_forward(filters, ones_of(k) if scale is None else scale, lanes, panels, packed)
    start = zeros_of(k) if shift is None else shift
    height = ROWS_HEIGHT[lanes]
    for first, pictures, sets in picture_sets(n, p * q):
        gather = forward_gather(
            pictures, (h, w, c), (p, q, k), (r, s), stride, padding, dilation, height
        )
        _multiply(
            lanes,
            x[first:],
            depth,
            gather,
            packed,
            panels,
            start,
            y[first:],
            None if residual is None else residual[first:],
            relu,
            pictures,
            sets,
            groups == 1 and rows_meet(stride[1] * c, depth, lanes),
        )
    return y


@kernel(parallel=True)
def _clear(numbers):  # type: ignore[no-untyped-def]
    """Write zeros, by all threads: one alone takes longer than the products of a 1x1 with stride."""
    for part in prange(TASKS):
        numbers[part * len(numbers) // TASKS : (part + 1) * len(numbers) // TASKS] = 0


def _finish(y: np.ndarray, residual: np.ndarray | None, relu: bool) -> np.ndarray:
    """Return y [+ residual], cut off below zero if `relu`, in place."""
    if residual is not None:
        y += residual
    if relu:
        np.maximum(y, 0, out=y)
    return y


def _multiply(
    lanes: int,
    x: np.ndarray,
    depth: int,
    gather: Gather,
    packed: np.ndarray,
    panels: np.ndarray,
    start: np.ndarray,
    y: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    pictures: int,
    sets: int,
    copies: bool,
) -> None:
    height = ROWS_HEIGHT[lanes]
    some_tiles = TILES_IN_BLOCK if packed.size < FILTERS_IN_CACHE else MORE_TILES_IN_BLOCK
    taps, tiles = len(gather.table) - 1, gather.table.shape[1] // height
    row = taps * depth + LINE
    if copies:
        some_tiles = min(some_tiles, max(1, FLOATS_IN_COPY // (height * row)))
    blocks = share_blocks(-(-tiles // some_tiles), sets)
    rows = -(-tiles // blocks) * height
    _multiply_gathered(
        lanes,
        height,
        x,
        pictures * x[0].size,
        zeros_of(depth),
        gather.table,
        depth,
        packed,
        panels,
        start,
        y,
        pictures * y[0].size,
        0 if residual is None else residual.ctypes.data,
        relu,
        sets,
        blocks,
        min(len(panels), -(-TASKS // (sets * blocks))),
        memory.empty((most_threads() if copies else 0, rows, row), np.float32),
        copied_places(rows if copies else 0, row, lanes),
    )


def conv2d_dx(
    dy: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    lanes: int,
) -> np.ndarray:
    """Return the gradient of x, shape (N, H, W, C)."""
    n, h, w, c = x_shape
    k, r, s, cg = weight.shape
    if c < lanes:
        merged = pad_axis(merge_groups(weight, groups, groups), 3, lanes)
        dx = conv2d_dx(dy, merged, (n, h, w, lanes), stride, padding, dilation, 1, lanes)
        return narrow(dx, c)
    merge = merge_count(groups, k // groups, cg, lanes)
    weight, groups = merge_groups(weight, groups, merge), groups // merge
    p, q = dy.shape[1:3]
    dx = memory.empty((n, h, w, c), dy.dtype)
    panels = cover_by_panels(c // groups, groups, lanes)
    columns = int(panels[:, 1].sum()) * lanes
    filters = weight.reshape(k, r * s, -1)
    height = ROWS_HEIGHT[lanes]
    zeros = zeros_of(c)
    sizes = (h, w, c), (p, q, k), (r, s), stride, padding, dilation, height
    packed_filters = []
    for gather in dx_gathers(1, *sizes):
        packed = memory.empty((len(gather.taps) * (k // groups) * columns,), dy.dtype)
        pack_dx(filters, gather.taps, groups, lanes, panels, packed)
        packed_filters.append(packed)
    if len(packed_filters) < stride[0] * stride[1]:
        _clear(dx.reshape(-1))
    for first, pictures, sets in picture_sets(n, h * w // (stride[0] * stride[1]) or 1):
        for gather, packed in zip(dx_gathers(pictures, *sizes), packed_filters, strict=True):
            _multiply(
                lanes,
                dy[first:],
                k // groups,
                gather,
                packed,
                panels,
                zeros,
                dx[first:],
                None,
                False,
                pictures,
                sets,
                groups == 1 and rows_meet(k, k, lanes),
            )
    return dx


def conv2d_dw(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding2d,
    dilation: Pair,
    groups: int,
    lanes: int,
) -> np.ndarray:
    """Return the gradient of the weight, shape (K, R, S, C/groups)."""
    k, r, s, cg = weight_shape
    if k < lanes:
        dy = pad_axis(dy, 3, lanes)
        wide = conv2d_dw(dy, x, (lanes, r, s, x.shape[3]), stride, padding, dilation, 1, lanes)
        return own_channels(wide[:k], groups, groups)
    merge = merge_count(groups, k // groups, cg, lanes)
    if merge > 1:
        wide_shape = k, r, s, merge * cg
        wide = conv2d_dw(dy, x, wide_shape, stride, padding, dilation, groups // merge, lanes)
        return own_channels(wide, groups, merge)

    n, p, q = dy.shape[:3]
    kernel, joined, run = (r, s), 1, cg
    if rows_as_one_tap(cg, (r, s), dilation, groups, lanes):
        x = pad_picture(x, padding, lanes)
        padding, kernel, run = Padding2d(0, 0, 0, 0), (r, 1), s * cg
        joined = r if joined_row(r * run, lanes) <= VECTORS_IN_COPY * lanes else 1
    elif cg < lanes:
        x = pad_axis(x, 3, lanes)
    taps, run = kernel[0] * kernel[1] // joined, joined * run
    h, w, c = x.shape[1:]
    height = OUTER_HEIGHT[lanes]
    columns = (
        cover_by_vectors(run, lanes) if joined == 1 else np.arange(0, run, lanes, dtype=np.int32)
    )
    tiles = cover_by_tiles(k // groups, lanes)
    divided = picture_sets(n, p * q)
    in_set = divided[0][1] * p * q
    block = UNROLL * -(-in_set // (UNROLL * max(1, round(in_set / PIXELS_IN_SUM))))
    in_group = tiles.shape[1]
    pairs = -(-len(columns) // 2)
    chunks, unit_slices, tile_slices = divide_dw(
        n * p * q,
        divided[0][2] * -(-in_set // block),
        max(c, run),
        k,
        taps,
        pairs if joined == 1 else 1,
        in_group,
        k * r * s * cg,
    )
    sums = memory.empty((chunks, groups, taps, pairs, in_group, height * 2 * lanes), dy.dtype)
    copied = VECTORS_IN_COPY + -(-in_group // tile_slices)  # vectors for each pixel
    room = memory.empty((most_threads(), (block + 1) * copied * lanes), dy.dtype)
    if joined > 1:
        room.fill(
            0
        )  # what no tap is copied to is multiplied as well, and subnormal numbers are slow
    slice_taps = min(taps, -(-taps // unit_slices) + 1)
    lines = k // LINE + 2 + slice_taps * (max(c, run) // LINE + 2)  # of dy, and of x for each tap
    far = memory.empty((most_threads(), block * lines), np.int64)
    for first, pictures, sets in divided:
        gather = forward_gather(
            pictures, (h, w, c), (p, q, k), kernel, stride, padding, dilation, ROWS_HEIGHT[lanes]
        )
        _sum_outer_products(
            lanes,
            height,
            dy[first:],
            pictures * p * q * k,
            x[first:],
            pictures * h * w * c,
            zeros_of(max(c, height * 2 * lanes)),
            gather.table,
            gather.pixels,
            run,
            joined_row(run, lanes),
            columns,
            tiles,
            sets,
            block,
            unit_slices,
            tile_slices,
            sums,
            first == 0,
            room,
            far,
        )
    dw = memory.empty((k, r, s, cg), dy.dtype)
    _combine_sums(lanes, height, sums, run, columns, tiles, dw.reshape(k, -1))
    return dw
