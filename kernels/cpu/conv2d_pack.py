"""Arrays brought to the shapes that the convolution kernels take.

Filters are packed by panels of columns. Groups are merged until each has at least a vector of channels, and
where there are fewer channels in all, zeros are appended.

Inner loops count in unsigned numbers here and in conv2d_direct.py: with signed ones Numba looks whether an
index is negative and means the end of the array, and neighbours are then stored one by one.
"""

import numpy as np
from numba import prange

from minitl.kernels.cpu import memory
from minitl.kernels.cpu.jit import kernel
from minitl.kernels.cpu.microkernel import transpose_square
from minitl.shapes import Padding2d

Pair = tuple[int, int]


@kernel(parallel=True)
def _transpose_panels(weight, scale, lanes, panels, packed):  # type: ignore[no-untyped-def]
    depth = weight.shape[1]
    for panel in prange(len(panels)):
        width = panels[panel, 1] * lanes
        for j in range(0, width, lanes):
            row = panels[panel, 0] + j
            for start in range(0, depth, lanes):
                k = min(start, depth - lanes)
                transpose_square(
                    lanes,
                    weight.ctypes.data + 4 * (row * depth + k),
                    depth,
                    scale.ctypes.data + 4 * row,
                    packed.ctypes.data + 4 * (panels[panel, 4] * depth + k * width + j),
                    width,
                )


def pack_forward(
    weight: np.ndarray, scale: np.ndarray, lanes: int, panels: np.ndarray, packed: np.ndarray
) -> None:
    """Transpose filters (K, depth), each times its scale, to panels (depth, columns)."""
    depth = weight.shape[1]
    if depth >= lanes:
        _transpose_panels(weight, scale, lanes, panels, packed)
        return
    for first, vectors, _, _, before in panels:
        columns = slice(first, first + vectors * lanes)
        panel = packed[before * depth : (before + vectors * lanes) * depth]
        panel.reshape(depth, -1)[...] = (weight[columns] * scale[columns, None]).T


@kernel(parallel=True)
def pack_dx(weight, taps, groups, lanes, panels, packed):  # type: ignore[no-untyped-def]
    """Copy the chosen taps of filters (K, taps, C) to panels (taps, K, columns of C)."""
    kg = weight.shape[0] // groups
    cg = weight.shape[2]
    in_group = len(panels) // groups
    for task in prange((len(weight) + 7) // 8):
        for k in range(8 * task, min(8 * task + 8, len(weight))):
            group = k // kg
            for t in range(len(taps)):
                for panel in range(group * in_group, (group + 1) * in_group):
                    width = panels[panel, 1] * lanes
                    first = panels[panel, 0] - group * cg
                    place = (panels[panel, 4] * len(taps) + t * width) * kg + (
                        k - group * kg
                    ) * width
                    for j in range(np.uint64(width)):
                        packed[np.uint64(place) + j] = weight[k, taps[t], np.uint64(first) + j]


def merge_count(groups: int, kg: int, cg: int, lanes: int) -> int:
    """Return how many groups to treat as one, so that each has at least a vector of channels."""
    return next(
        m
        for m in range(1, groups + 1)
        if groups % m == 0 and (m == groups or m * min(kg, cg) >= lanes)
    )


def merge_groups(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """Return filters over `merged` groups each: every filter's own channels, and zeros for the others'."""
    if merged == 1:
        return weight
    k, r, s, cg = weight.shape
    wide = np.zeros((groups // merged, merged, k // groups, r, s, merged, cg), weight.dtype)
    for i in range(merged):
        wide[:, i, ..., i, :] = weight.reshape(groups // merged, merged, -1, r, s, cg)[:, i]
    return wide.reshape(k, r, s, merged * cg)


def pad_axis(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Return the array with zeros appended along one axis up to `size`."""
    shape = list(array.shape)
    old, shape[axis] = shape[axis], size
    wide = memory.zeros(tuple(shape), array.dtype)
    wide[(slice(None),) * (axis % array.ndim) + (slice(old),)] = array
    return wide


def narrow(array: np.ndarray, size: int) -> np.ndarray:
    """Return a copy of the first `size` channels."""
    narrow = memory.empty((*array.shape[:-1], size), array.dtype)
    narrow[...] = array[..., :size]
    return narrow


def rows_as_one_tap(channels: int, kernel: Pair, dilation: Pair, groups: int, lanes: int) -> bool:
    """Say whether, the channels being few, a row of the kernel counts as one tap of S * C channels."""
    return groups == 1 and channels < lanes and kernel[1] > 1 and dilation[1] == 1


def pad_picture(x: np.ndarray, padding: Padding2d, slack: int) -> np.ndarray:
    """Return x with its padding written out, and `slack` readable floats behind it."""
    n, h, w, c = x.shape
    shape = n, h + padding.top + padding.bottom, w + padding.left + padding.right, c
    size = int(np.prod(shape))
    flat = memory.empty((size + slack,), x.dtype)
    flat[size:] = 0
    padded = flat[:size].reshape(shape)
    if any(padding):
        inside = padded[:, padding.top : padding.top + h, padding.left : padding.left + w]
        padded[:, : padding.top] = 0
        padded[:, padding.top + h :] = 0
        padded[:, :, : padding.left] = 0
        padded[:, :, padding.left + w :] = 0
    else:
        inside = padded
    inside[...] = x
    return padded


def own_channels(wide: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """Undo `merge_groups`: from filters over `merged` groups each, keep every filter's own channels."""
    k, r, s, c = wide.shape
    own = memory.empty((k, r, s, c // merged), wide.dtype)
    from_wide = wide.reshape(groups // merged, merged, k // groups, r, s, merged, c // merged)
    to_own = own.reshape(groups // merged, merged, k // groups, r, s, c // merged)
    for i in range(merged):
        to_own[:, i] = from_wide[:, i, ..., i, :]
    return own
