"""The convolution algorithms of the CPU, each on its own, for both widths of vectors."""

import platform

import numba
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minitl.kernels.cpu import (
    conv2d,
    conv2d_direct,
    conv2d_portable,
    conv2d_tables,
    memory,
    microkernel,
    winograd,
)
from minitl.kernels.cpu import winograd_transforms as transforms
from minitl.shapes import Padding2d, window_output_shape

HOST = microkernel.host_lanes()
LANES = [lanes for lanes in microkernel.compiled_lanes() if lanes]
each_width = pytest.mark.parametrize("lanes", LANES)
pytestmark = pytest.mark.skipif(not LANES, reason="this machine uses the portable path alone")

# Largest error of F(m x m), in parts of the largest value the same sum has with all signs made positive:
# then every rounding on the way is counted, and nothing that cancels makes the yardstick short. Inputs
# without a common sign cancel to about 1/20 of it, which is where the 1e-4 of the largest result comes from.
BOUND = {2: 1e-6, 4: 5e-6}


def reference(x, weight, bias, dy, stride, padding, dilation, groups):
    """Return y, dx, dw in float64: products of matrices, one for each group, of the windows written out."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    (n, h, w, c), (k, r, s, cg), (p, q) = x.shape, weight.shape, dy.shape[1:3]
    top, bottom, left, right = padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    dpadded = np.zeros_like(padded)
    windows = np.empty((groups, n, p, q, r, s, cg))
    rows_of = groups, n * p * q, r * s * cg
    weight = weight.reshape(groups, k // groups, r * s * cg)
    dy = dy.reshape(n * p * q, groups, k // groups).transpose(1, 0, 2)
    back = (dy @ weight).reshape(windows.shape)
    for i in range(r):
        for j in range(s):
            rows = slice(i * dilation[0], i * dilation[0] + (p - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (q - 1) * stride[1] + 1, stride[1])
            pixels = padded[:, rows, columns].reshape(n, p, q, groups, cg)
            windows[:, :, :, :, i, j] = np.moveaxis(pixels, 3, 0)
            pixels = np.moveaxis(back[:, :, :, :, i, j], 0, 3)
            dpadded[:, rows, columns] += pixels.reshape(n, p, q, c)
    windows = windows.reshape(rows_of)
    y = (windows @ weight.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(n, p, q, k)
    dw = (dy.transpose(0, 2, 1) @ windows).reshape(k, r, s, cg)
    return y + (0 if bias is None else bias), dpadded[:, top : top + h, left : left + w], dw


def make(x_shape, weight_shape, geometry, kind="normal", seed=0):
    """Return x, weight, bias, dy.

    "normal". "integers". "mean": x + 1000. "large": x * 1e4. "tiny": x below the smallest normal number.
    "trained": x as a ReLU leaves it, channels of different scales, filters with a few large weights.
    """
    random = np.random.default_rng(seed)
    p, q = window_output_shape(*x_shape[1:3], weight_shape[1:3], *geometry[:3])
    shapes = x_shape, weight_shape, weight_shape[:1], (x_shape[0], p, q, weight_shape[0])
    if kind == "integers":
        return [random.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    x, *others = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    if kind == "mean":
        x += 1000
    if kind == "large":
        x *= 1e4
    if kind == "tiny":
        x *= 1e-39
    if kind == "trained":
        x = np.maximum(x, 0) * random.lognormal(0, 1, x.shape[3]).astype(np.float32)
        heavy = random.laplace(size=weight_shape) * random.lognormal(
            0, 1, (weight_shape[0], 1, 1, 1)
        )
        others[0] = heavy.astype(np.float32)
    return [x, *others]


def direct(arrays, geometry, lanes):
    """Return y, dx, dw by the direct algorithm."""
    x, weight, bias, dy = arrays
    return (
        conv2d_direct.conv2d_forward(x, weight, None, bias, None, False, *geometry, lanes),
        conv2d_direct.conv2d_dx(dy, weight, x.shape, *geometry, lanes),
        conv2d_direct.conv2d_dw(dy, x, weight.shape, *geometry, lanes),
    )


def by_winograd(arrays, padding, m, lanes):
    """Return y, dx, dw by F(m x m)."""
    x, weight, bias, dy = arrays
    return (
        winograd.conv2d_forward(x, weight, None, bias, None, False, padding, m, lanes),
        winograd.conv2d_dx(dy, weight, x.shape, padding, m, lanes),
        winograd.conv2d_dw(dy, x, weight.shape, padding, m, lanes),
    )


def by_entry(arrays, geometry):
    """Return y, dx, dw by the functions that everybody calls."""
    x, weight, bias, dy = arrays
    return (
        conv2d.conv2d_forward(x, weight, bias, *geometry),
        conv2d.conv2d_dx(dy, weight, x.shape, *geometry),
        conv2d.conv2d_dw(dy, x, weight.shape, *geometry),
    )


def check_equal(results, expected):
    for name, a, e in zip(("y", "dx", "dw"), results, expected, strict=True):
        assert a.dtype == np.float32, name
        assert a.flags.c_contiguous, name
        np.testing.assert_array_equal(a, e, err_msg=name)


# x, weight, stride, padding, dilation, groups
CASES = {
    "1x1": ((2, 7, 5, 33), (48, 1, 1, 33), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "1x1 of one pixel": ((5, 1, 1, 100), (10, 1, 1, 100), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "1x1 stride 2": ((3, 7, 8, 40), (20, 1, 1, 40), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    "3x3": ((2, 9, 8, 32), (32, 3, 3, 32), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "3x3 stride 2": ((2, 9, 8, 33), (17, 3, 3, 33), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "several sets of pictures": ((7, 33, 31, 5), (17, 3, 3, 5), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "stride over kernel": ((2, 9, 11, 40), (33, 2, 1, 40), (3, 2), (0, 1, 0, 1), (1, 1), 1),
    "last set of pictures is smaller": (
        (8, 20, 18, 7),
        (30, 1, 1, 7),
        (1, 1),
        (0, 0, 0, 0),
        (1, 1),
        1,
    ),
    "rows that meet in the cache": (
        (2, 9, 7, 512),
        (1024, 3, 2, 512),
        (2, 2),
        (1, 0, 1, 2),
        (2, 1),
        1,
    ),
    "rows that meet, 1x1": ((3, 5, 5, 1024), (40, 1, 1, 1024), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "kernel too large to copy": (
        (1, 12, 13, 15),
        (17, 11, 11, 15),
        (1, 1),
        (1, 2, 3, 2),
        (1, 1),
        1,
    ),
    "many channels": ((2, 5, 5, 600), (160, 1, 1, 600), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "stem": ((3, 15, 12, 3), (64, 7, 7, 3), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    "cifar stem": ((3, 8, 8, 3), (16, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "dilation": ((2, 11, 12, 5), (17, 3, 2, 5), (1, 3), (0, 1, 2, 1), (2, 2), 1),
    "stride over dilation": ((1, 13, 17, 17), (18, 3, 3, 17), (2, 3), (2, 3, 2, 3), (3, 2), 1),
    "groups": ((2, 6, 6, 64), (96, 3, 3, 32), (2, 1), (1, 0, 1, 0), (1, 1), 2),
    "narrow groups": ((2, 6, 6, 64), (32, 3, 3, 8), (2, 1), (1, 0, 1, 0), (1, 1), 8),
    "groups of few channels in all": ((2, 6, 6, 12), (6, 3, 3, 4), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    "depthwise": ((2, 6, 6, 32), (32, 3, 3, 1), (1, 1), (1, 1, 1, 1), (1, 1), 32),
    "one of everything": ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
}


@each_width
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_direct_sums_of_small_integers_are_exact(case, lanes):
    x, weight, stride, padding, dilation, groups = case
    geometry = stride, Padding2d(*padding), dilation, groups
    arrays = make(x, weight, geometry, "integers")
    check_equal(direct(arrays, geometry, lanes), reference(*arrays, *geometry))


@pytest.mark.skipif(not HOST or platform.machine() in ("arm64", "aarch64"), reason="needs AVX2")
@pytest.mark.parametrize(("features", "lanes"), [("+avx2,+fma", 8), ("+avx2,-avx512f", 0), ("", 0)])
def test_lanes_are_those_that_numba_compiles_for(features, lanes, monkeypatch):
    monkeypatch.setattr(microkernel.config, "CPU_FEATURES", features)
    assert microkernel.host_lanes.__wrapped__() == lanes


@each_width
@pytest.mark.parametrize("lines", [4, 16])
@pytest.mark.parametrize("name", ["rows that meet in the cache", "rows that meet, 1x1"])
def test_rows_that_meet_are_copied_where_the_cache_is_narrow(name, lines, lanes, monkeypatch):
    x, weight, stride, padding, dilation, groups = CASES[name]
    geometry = stride, Padding2d(*padding), dilation, groups
    monkeypatch.setattr(conv2d_tables, "lines_in_set", lambda: lines)
    assert conv2d_tables.rows_meet(1024, 512, lanes) == (lines == 4)
    assert not conv2d_tables.rows_meet(1040, 512, lanes)
    arrays = make(x, weight, geometry, "integers")
    check_equal(direct(arrays, geometry, lanes), reference(*arrays, *geometry))


EDGE = 1 << 16  # bytes

# Few channels, and rows of taps that are read as one: x, weight, stride, padding, groups.
ROWS_AS_ONE_TAP = {
    "joined": ((2, 20, 20, 3), (16, 7, 7, 3), 2, 3, 1),
    "patches": ((2, 32, 32, 3), (32, 16, 16, 3), 16, 0, 1),
    "12 channels": ((2, 14, 14, 12), (32, 7, 7, 12), 1, 3, 1),
    "8 channels": ((2, 14, 14, 8), (16, 9, 9, 8), 1, 4, 1),
    "one row": ((4, 12, 40, 3), (16, 1, 17, 3), 1, 0, 1),
    "groups": ((2, 8, 12, 12), (28, 1, 5, 3), 1, 0, 4),
}


@each_width
@pytest.mark.parametrize("case", ROWS_AS_ONE_TAP.values(), ids=ROWS_AS_ONE_TAP.keys())
def test_nothing_is_written_beside_an_array(case, lanes, monkeypatch):
    x_shape, weight_shape, stride, padding, groups = case
    geometry = (stride, stride), Padding2d(*[padding] * 4), (1, 1), groups
    guarded = []

    def empty(shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(size + 2 * EDGE + 64, 0xA5, np.uint8)
        start = EDGE + -(raw.ctypes.data + EDGE) % 64
        guarded.append((raw, start, size))
        return raw[start : start + size].view(dtype).reshape(shape)

    monkeypatch.setattr(memory, "empty", empty)
    arrays = make(x_shape, weight_shape, geometry, "integers")
    results = direct(arrays, geometry, lanes)
    assert len(guarded) > 3
    for raw, start, size in guarded:
        assert (raw[:start] == 0xA5).all() and (raw[start + size :] == 0xA5).all()
    monkeypatch.undo()
    check_equal(results, reference(*arrays, *geometry))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride"),
    [  # y, and dx, of many pictures at a time
        ((1500, 836, 836, 3), (16, 1, 1, 3), 836),
        ((1500, 400, 400, 16), (16, 1, 1, 16), 400),
    ],
)
def test_sets_of_pictures_beyond_32_bits_are_left_to_the_portable_path(
    x_shape, weight_shape, stride
):
    geometry = (stride, stride), Padding2d(0, 0, 0, 0), (1, 1), 1
    for lanes in LANES:
        found = conv2d.choose_algorithm(
            x_shape, weight_shape, np.dtype(np.float32), *geometry, "auto", lanes
        )
        assert found == "portable"


def test_gathers_of_many_sizes_are_not_all_kept(monkeypatch):
    monkeypatch.setattr(conv2d_tables, "BYTES_KEPT", 100_000)
    gather = conv2d_tables.forward_gather
    options = (3, 3), (1, 1), Padding2d(1, 1, 1, 1), (1, 1), 4
    first = gather(1, (20, 20, 4), (20, 20, 4), *options)
    assert gather(1, (20, 20, 4), (20, 20, 4), *options) is first
    for size in range(21, 31):
        last = gather(1, (size, size, 4), (size, size, 4), *options)
    assert gather(1, (30, 30, 4), (30, 30, 4), *options) is last
    again = gather(1, (20, 20, 4), (20, 20, 4), *options)
    assert again is not first
    np.testing.assert_array_equal(again.table, first.table)


@each_width
@pytest.mark.parametrize("division", [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("name", ["1x1", "3x3 stride 2", "groups", "stem"])
def test_dw_is_exact_however_it_is_divided(name, division, lanes, monkeypatch):
    x, weight, stride, padding, dilation, groups = CASES[name]
    geometry = stride, Padding2d(*padding), dilation, groups
    if name == "stem":  # its taps are copied side by side, which knows no slices of them
        division = division[0], 1, division[2]
    monkeypatch.setattr(conv2d_direct, "PIXELS_IN_SUM", 8)
    monkeypatch.setattr(conv2d_direct, "divide_dw", lambda *_: division)
    arrays = make(x, weight, geometry, "integers")
    x, _, _, dy = arrays
    dw = conv2d_direct.conv2d_dw(dy, x, weight, *geometry, lanes)
    np.testing.assert_array_equal(dw, reference(*arrays, *geometry)[2])


@given(
    pixels=st.integers(1, 10**6),
    blocks=st.integers(1, 5000),
    channels=st.sampled_from([16, 100, 2048]),
    filters=st.sampled_from([16, 100, 2048]),
    taps=st.integers(1, 49),
)
def test_dw_is_divided_into_tasks_that_all_have_work(pixels, blocks, channels, filters, taps):
    pairs, tiles = -(-channels // 32), -(-filters // 13)
    sizes = channels, filters, taps, pairs, tiles, channels * filters * taps
    chunks, unit_slices, tile_slices = conv2d_tables.divide_dw(pixels, blocks, *sizes)
    assert 1 <= chunks <= blocks
    assert 1 <= unit_slices <= taps * pairs
    assert 1 <= tile_slices <= max(1, tiles // conv2d_tables.TILES_IN_SLICE)
    assert chunks * unit_slices * tile_slices < 2 * conv2d_tables.TASKS


small = st.integers(1, 3)


@st.composite
def geometries(draw):
    """Return shapes of x and weight, and a geometry, with every awkwardness at once."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    cg, kg = (draw(st.sampled_from([1, 3, 5, 17, 33])) for _ in range(2))
    x = draw(small), draw(st.integers(1, 13)), draw(st.integers(1, 13)), groups * cg
    weight = groups * kg, draw(st.integers(1, 5)), draw(st.integers(1, 5)), cg
    padding = Padding2d(*(draw(st.integers(0, 3)) for _ in range(4)))
    stride, dilation = ((draw(small), draw(small)) for _ in range(2))
    extent = [d * (size - 1) + 1 for d, size in zip(dilation, weight[1:3], strict=True)]
    assume(x[1] + padding.top + padding.bottom >= extent[0])
    assume(x[2] + padding.left + padding.right >= extent[1])
    return x, weight, (stride, padding, dilation, groups)


@each_width
@given(geometries())
def test_direct_is_exact_for_every_geometry(lanes, shapes):
    x, weight, geometry = shapes
    arrays = make(x, weight, geometry, "integers")
    check_equal(direct(arrays, geometry, lanes), reference(*arrays, *geometry))


EPILOGUES = [(residual, relu) for residual in (False, True) for relu in (False, True)]
each_epilogue = pytest.mark.parametrize("with_residual, relu", EPILOGUES)


def make_epilogue(y, with_residual, kind="normal", seed=1):
    """Return scale, shift and residual; scales are powers of two for "integers", so all is exact."""
    random = np.random.default_rng(seed)
    if kind == "integers":
        scale = random.choice(np.array([-2, 0.5, 1, 4], np.float32), y[-1])
        shift, residual = (random.integers(-9, 10, n).astype(np.float32) for n in (y[-1], y))
    else:
        scale, shift, residual = (
            random.standard_normal(n).astype(np.float32) for n in (y[-1], y[-1], y)
        )
    return scale, shift, residual if with_residual else None


def finish(y, scale, shift, residual, relu):
    """Return what an epilogue makes of y, in float64."""
    y = y.astype(np.float64) * scale + shift + (0 if residual is None else residual)
    return np.maximum(y, 0) if relu else y


@each_width
@each_epilogue
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_direct_epilogue_is_exact(case, with_residual, relu, lanes):
    x_shape, weight_shape, stride, padding, dilation, groups = case
    geometry = stride, Padding2d(*padding), dilation, groups
    arrays = make(x_shape, weight_shape, geometry, "integers")
    x, weight, _, dy = arrays
    plain = reference(x, weight, None, dy, *geometry)[0]
    epilogue = *make_epilogue(dy.shape, with_residual, "integers"), relu
    y = conv2d_direct.conv2d_forward(x, weight, *epilogue, *geometry, lanes)
    np.testing.assert_array_equal(y, finish(plain, *epilogue))


@each_width
@given(geometries(), st.sampled_from(EPILOGUES))
def test_direct_epilogue_is_exact_for_every_geometry(lanes, shapes, options):
    x_shape, weight_shape, geometry = shapes
    x, weight, _, dy = make(x_shape, weight_shape, geometry, "integers")
    plain = reference(x, weight, None, dy, *geometry)[0]
    epilogue = *make_epilogue(dy.shape, options[0], "integers"), options[1]
    y = conv2d_direct.conv2d_forward(x, weight, *epilogue, *geometry, lanes)
    np.testing.assert_array_equal(y, finish(plain, *epilogue))


def test_direct_is_about_as_exact_as_numpy():
    geometry = (1, 1), Padding2d(1, 1, 1, 1), (1, 1), 1
    arrays = make((2, 14, 14, 256), (64, 3, 3, 256), geometry)
    x, weight, bias, dy = arrays
    exact = reference(*arrays, *geometry)
    numpy = (
        conv2d_portable.conv2d_forward(x, weight, bias, *geometry),
        conv2d_portable.conv2d_dx(dy, weight, x.shape, *geometry),
        conv2d_portable.conv2d_dw(dy, x, weight.shape, *geometry),
    )
    for a, b, e in zip(direct(arrays, geometry, HOST), numpy, exact, strict=True):
        floor = 4 * np.finfo(np.float32).eps * np.abs(e).max()
        assert np.abs(a - e).max() <= 2 * np.abs(b - e).max() + floor


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_matrices_give_the_convolution_of_polynomials(m):
    butterfly, pixels, filters, results = (
        np.array(matrix[m])
        for matrix in (
            transforms.BUTTERFLY,
            transforms.PIXEL_HALVES,
            transforms.FILTER_HALVES,
            transforms.RESULT_HALVES,
        )
    )
    random = np.random.default_rng(0)
    d, g = random.standard_normal(m + 2), random.standard_normal(3)
    y = (butterfly @ results).T @ ((butterfly @ filters @ g) * (butterfly @ pixels @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=1e-12)


WINOGRAD_CASES = {
    "one tile": ((1, 3, 3, 16), 16, (1, 1, 1, 1)),
    "cut tiles": ((3, 7, 9, 32), 48, (1, 1, 1, 1)),
    "odd channels": ((2, 9, 14, 17), 33, (0, 2, 1, 0)),
    "no padding": ((2, 6, 11, 40), 16, (0, 0, 0, 0)),
    "padding 2": ((2, 4, 5, 16), 19, (2, 2, 2, 2)),
    "several blocks": ((6, 20, 20, 64), 64, (1, 1, 1, 1)),
    "many filters": ((2, 7, 7, 256), 192, (1, 1, 1, 1)),
}


@each_width
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("kind", ["normal", "mean", "large", "tiny", "trained"])
@pytest.mark.parametrize("case", WINOGRAD_CASES.values(), ids=WINOGRAD_CASES.keys())
def test_winograd_keeps_its_bound(case, kind, m, lanes):
    x_shape, k, padding = case
    geometry = (1, 1), Padding2d(*padding), (1, 1), 1
    arrays = make(x_shape, (k, 3, 3, x_shape[3]), geometry, kind)
    exact = reference(*arrays, *geometry)
    yardstick = reference(*(np.abs(a) for a in arrays), *geometry)
    results = by_winograd(arrays, geometry[1], m, lanes)
    # Below the normal numbers, 2^-149 is all the precision there is, of pixels of about 1e-39.
    bound = {2: 5e-6, 4: 2e-5}[m] if kind == "tiny" else BOUND[m]
    for name, a, e, size in zip(("y", "dx", "dw"), results, exact, yardstick, strict=True):
        assert a.shape == e.shape, name
        assert np.abs(a - e).max() <= bound * size.max(), name
        if kind != "mean":
            assert np.abs(a - e).max() <= 1e-4 * np.abs(e).max(), name


@each_width
@settings(max_examples=10)
@given(
    st.tuples(small, st.integers(1, 12), st.integers(1, 12), st.sampled_from([16, 17, 33])),
    st.sampled_from([16, 19, 40]),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.sampled_from([2, 4]),
)
def test_winograd_for_every_shape(lanes, x_shape, k, padding, m):
    assume(x_shape[1] + sum(padding[:2]) >= 3 and x_shape[2] + sum(padding[2:]) >= 3)
    geometry = (1, 1), Padding2d(*padding), (1, 1), 1
    arrays = make(x_shape, (k, 3, 3, x_shape[3]), geometry)
    exact = reference(*arrays, *geometry)
    for a, e in zip(by_winograd(arrays, geometry[1], m, lanes), exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * np.abs(e).max(initial=1))


@each_width
@each_epilogue
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", WINOGRAD_CASES.values(), ids=WINOGRAD_CASES.keys())
def test_winograd_epilogue_keeps_the_bound(case, m, with_residual, relu, lanes):
    x_shape, k, padding = case
    geometry = (1, 1), Padding2d(*padding), (1, 1), 1
    arrays = make(x_shape, (k, 3, 3, x_shape[3]), geometry)
    x, weight, _, dy = arrays
    epilogue = make_epilogue(dy.shape, with_residual)
    y = winograd.conv2d_forward(x, weight, *epilogue, relu, geometry[1], m, lanes)
    expected = finish(reference(x, weight, None, dy, *geometry)[0], *epilogue, relu)
    yardstick = reference(*(np.abs(a) for a in arrays), *geometry)[0] * np.abs(epilogue[0])
    assert (np.abs(y - expected) <= BOUND[m] * yardstick.max()).all()
    assert (y < 0).any() != relu


@each_epilogue
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("setting", ["exact", "f2", "f4"])
def test_epilogue_is_the_composition(setting, dtype, with_residual, relu):
    geometry = (1, 1), Padding2d(1, 1, 1, 1), (1, 1), 1
    x, weight, _, dy = (a.astype(dtype) for a in make((3, 9, 11, 40), (24, 3, 3, 40), geometry))
    scale, shift, residual = make_epilogue(dy.shape, with_residual)
    # Statistics come in float64, and a residual need not be contiguous.
    scale, shift = scale.astype(np.float64), shift.astype(np.float64)
    other = None if residual is None else np.asfortranarray(residual.astype(dtype))
    before = conv2d.set_conv_algorithm(setting)
    try:
        y = conv2d.conv2d_scale_shift_forward(x, weight, scale, shift, other, relu, *geometry)
        plain = conv2d.conv2d_forward(x, weight, None, *geometry)
    finally:
        conv2d.set_conv_algorithm(before)
    expected = finish(plain, scale, shift, residual, relu)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    eps = np.finfo(dtype).eps * (100 if setting == "f4" else 10)
    np.testing.assert_allclose(y, expected, rtol=0, atol=eps * np.abs(expected).max())


@pytest.mark.parametrize("setting", ["exact", "f2", "f4"])
def test_a_nan_passes_the_epilogues_relu(setting):
    geometry = (1, 1), Padding2d(1, 1, 1, 1), (1, 1), 1
    x, weight, _, dy = make((1, 10, 10, 16), (16, 3, 3, 16), geometry)
    scale, shift, residual = make_epilogue(dy.shape, True)
    shift[3], residual[0, :, :, 5] = np.nan, np.nan
    before = conv2d.set_conv_algorithm(setting)
    try:
        y = conv2d.conv2d_scale_shift_forward(x, weight, scale, shift, residual, True, *geometry)
    finally:
        conv2d.set_conv_algorithm(before)
    assert np.isnan(y[..., [3, 5]]).all()
    assert not np.isnan(np.delete(y, [3, 5], axis=3)).any()


@pytest.mark.parametrize("setting", ["exact", "f2", "f4"])
@pytest.mark.parametrize(
    "x_shape, k, stride",
    [((9, 20, 20, 64), 64, 1), ((9, 20, 20, 48), 40, 2), ((2, 7, 7, 256), 256, 1)],
)
def test_threads_do_not_change_a_bit(setting, x_shape, k, stride):
    geometry = (stride, stride), Padding2d(1, 1, 1, 1), (1, 1), 1
    arrays = make(x_shape, (k, 3, 3, x_shape[3]), geometry)
    x, weight, bias, dy = arrays
    finish = 1 + bias, bias, dy, True
    before, threads = conv2d.set_conv_algorithm(setting), numba.get_num_threads()
    results = []
    try:
        for count in (threads, 1):
            numba.set_num_threads(count)
            y = conv2d.conv2d_scale_shift_forward(x, weight, *finish, *geometry)
            results.append([*by_entry(arrays, geometry), y])
    finally:
        numba.set_num_threads(threads)
        conv2d.set_conv_algorithm(before)
    for many, one in zip(*results, strict=True):
        np.testing.assert_array_equal(many, one)


def test_choice_of_the_algorithm():
    def choose(x, weight, stride=1, padding=1, dilation=1, groups=1, setting="auto", dtype="f4"):
        return conv2d.choose_algorithm(
            x,
            weight,
            np.dtype(dtype),
            (stride, stride),
            Padding2d(*[padding] * 4),
            (dilation, dilation),
            groups,
            setting,
            16,
        )

    x, weight = (16, 56, 56, 64), (64, 3, 3, 64)
    assert choose(x, weight) == "winograd_f4"
    assert choose((64, 2, 2, 64), weight) == "winograd_f2"
    assert choose((16, 1, 1, 64), weight) == "direct"
    assert choose((1, 7, 7, 64), weight) == "direct"  # too few tiles to share transformed filters
    assert choose(x, weight, setting="f2") == "winograd_f2"
    assert choose(x, weight, setting="exact") == "direct"
    assert choose(x, weight, stride=2) == "direct"
    assert choose(x, weight, dilation=2) == "direct"
    assert choose(x, weight, padding=3) == "direct"
    assert choose(x, (64, 3, 3, 32), groups=2) == "direct"
    assert choose((16, 56, 56, 8), (64, 3, 3, 8), setting="f4") == "direct"
    assert choose(x, (64, 1, 1, 64), padding=0) == "direct"
    assert choose(x, weight, dtype="f8") == "portable"
    assert choose((0, 56, 56, 64), weight) == "portable"
    assert choose((1, 2**15, 2**15, 64), weight) == "portable"  # offsets would not fit


def test_threads_do_not_meet_in_columns_that_two_panels_share():
    geometry = (1, 1), Padding2d(1, 1, 1, 1), (1, 1), 1
    arrays = make((5, 9, 9, HOST + 8), (HOST + 8, 3, 3, HOST + 8), geometry, "integers")
    arrays[1] = np.concatenate([arrays[1]] * 3, axis=3)  # sums of several pieces
    arrays[0] = np.concatenate([arrays[0]] * 3, axis=3)
    x, weight, bias, _ = arrays
    expected = conv2d_portable.conv2d_forward(x, weight, bias, *geometry)
    for _ in range(50):
        y = conv2d_direct.conv2d_forward(x, weight, None, bias, None, False, *geometry, HOST)
        np.testing.assert_array_equal(y, expected)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="no convolution algorithm 'fast'; choose one of auto"):
        conv2d.set_conv_algorithm("fast")
