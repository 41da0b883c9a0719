"""Convolution on the GPU, run on the CPU by the checker: every kernel, number type and way of copying.

Small whole numbers have exact products and sums in every number type, so there results are demanded bit for
bit; whatever is wrong with a gather, a fragment or a barrier shows.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import conv2d, conv2d_passes, conv2d_plan, conv2d_weight
from minitl.shapes import Padding2d
from tests.cuda_launch import bf16, each_gpu, launched, of_type, widened
from tests.cuda_on_cpu.host_module import KERNELS, HostModule
from tests.reference import conv2d as reference

KINDS = {"float": "float", "tf32": "float", "bf16": "bf16", "double": "double"}
SMALL = conv2d_plan.SMALL

NONE = Padding2d(0, 0, 0, 0)
ONE = Padding2d(1, 1, 1, 1)
# x, weight, stride, padding, dilation, groups
CASES = {
    "plain": ((2, 7, 6, 16), (24, 3, 3, 16), (1, 1), ONE, (1, 1), 1),
    "stride 2, uneven padding": ((2, 9, 8, 16), (8, 3, 3, 16), (2, 2), Padding2d(0, 1, 1, 2), (1, 1), 1),
    "dilation, odd channels": ((1, 9, 10, 5), (33, 3, 2, 5), (1, 2), Padding2d(2, 1, 0, 3), (2, 3), 1),
    "phases without taps": ((2, 5, 7, 8), (16, 1, 1, 8), (2, 3), NONE, (1, 1), 1),
    "stride and dilation with a common factor": (
        (1, 11, 9, 8), (8, 3, 3, 8), (4, 2), Padding2d(3, 2, 1, 1), (2, 3), 1,
    ),
    "stride larger than the picture": ((2, 2, 1, 8), (8, 2, 1, 8), (5, 4), NONE, (1, 1), 1),
    "groups": ((2, 5, 5, 48), (24, 3, 3, 16), (1, 1), ONE, (1, 1), 3),
    "groups of odd size": ((2, 5, 6, 6), (10, 3, 3, 3), (2, 1), ONE, (1, 1), 2),
    "depthwise": ((2, 5, 5, 9), (9, 3, 3, 1), (1, 1), ONE, (1, 1), 9),
    "one pixel": ((1, 1, 1, 67), (1, 1, 1, 67), (1, 1), NONE, (1, 1), 1),
    "stem": ((2, 15, 14, 3), (8, 7, 7, 3), (2, 2), Padding2d(3, 3, 3, 3), (1, 1), 1),
    "even filters, odd channels": ((2, 4, 5, 13), (16, 2, 2, 13), (1, 1), ONE, (1, 1), 1),
    "even channels, odd filters": ((2, 4, 5, 16), (13, 2, 2, 16), (1, 1), ONE, (1, 1), 1),
    "long sums, split": ((1, 3, 3, 128), (16, 3, 3, 128), (1, 1), ONE, (1, 1), 1),
    "many pixels, split": ((4, 17, 16, 8), (8, 1, 1, 8), (1, 1), NONE, (1, 1), 1),
    "several tiles": ((2, 8, 9, 72), (72, 1, 3, 72), (1, 1), ONE, (1, 1), 1),
}  # fmt: skip
ORDERS = ({"async_late": 0}, {"order": 1}, {"order": 2, "seed": 3})


def variants(kept):
    """Yield (stem, macros) of those forms of the kernels of which `kept` says so."""
    for module in (conv2d, conv2d_weight, conv2d_passes):
        stem = module.__name__.split(".")[-1]
        yield from ((stem, variant) for variant in module.VARIANTS if kept(variant))


@pytest.fixture(scope="module", autouse=True)
def compiled(request):
    """Compile what most tests use for the checker, as many at a time as there are cores."""
    if not any("checker" in item.name for item in request.session.items):
        return

    def compile_one(job):
        stem, defines = job
        flags = tuple(f"{name}={value}" for name, value in sorted(defines.items()))
        HostModule(KERNELS / f"{stem}.cu", "check", flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, variants(lambda v: v.get("BM", 64) == 64)))


gpu = each_gpu()


@pytest.fixture(params=KINDS)
def kind(request):
    """Set the precision for one of the ways to multiply, and return its name."""
    before = conv2d.set_precision("tf32" if request.param == "tf32" else "float32")
    yield request.param
    conv2d.set_precision(before)


def activation(gpu, x, kind):
    return gpu.cupy.asarray(of_type(x, KINDS[kind]))


def parameter(gpu, x, kind):
    return gpu.cupy.asarray(x.astype(np.float64 if kind == "double" else np.float32))


def whole(seed, *shape):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_every_order(gpu, compute):
    """Return compute()'s results on the host; they must be the same bits in whatever order threads run."""
    results = []
    for order in ORDERS:
        gpu.order, gpu.seed, gpu.async_late = 0, 0, 1
        for name, value in order.items():
            setattr(gpu, name, value)
        results.append([array.get() for array in compute()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
    return results[0]


def operands(make, x_shape, weight_shape, *geometry):
    x, weight = make(1, *x_shape), make(2, *weight_shape)
    dy = make(3, *reference.conv2d_forward(x[..., :0], weight[:0, ..., :0], None, *geometry[:3], 1).shape[:3],
              weight_shape[0])  # fmt: skip
    return x, weight, dy


def three_products(gpu, kind, x, weight, dy, geometry):
    """Return y, dx and dw as they come from the kernels."""
    x_, dy_ = activation(gpu, x, kind), activation(gpu, dy, kind)
    weight_ = parameter(gpu, weight, kind)
    return in_every_order(
        gpu,
        lambda: (
            conv2d.conv2d_forward(x_, weight_, None, *geometry),
            conv2d.conv2d_dx(dy_, weight_, x.shape, *geometry),
            conv2d.conv2d_dw(dy_, x_, weight.shape, *geometry),
        ),
    )


def expected_products(x, weight, dy, geometry):
    return (
        reference.conv2d_forward(x, weight, None, *geometry),
        reference.conv2d_dx(dy, weight, x.shape, *geometry),
        reference.conv2d_dw(dy, x, weight.shape, *geometry),
    )


def assert_exact(gpu, kind, x, weight, dy, geometry):
    y, dx, dw = three_products(gpu, kind, x, weight, dy, geometry)
    expected_y, expected_dx, expected_dw = expected_products(x, weight, dy, geometry)
    np.testing.assert_array_equal(y, of_type(expected_y, KINDS[kind]))
    np.testing.assert_array_equal(dx, of_type(expected_dx, KINDS[kind]))
    np.testing.assert_array_equal(dw, expected_dw)
    assert dw.dtype == (np.float64 if kind == "double" else np.float32)


@pytest.mark.parametrize("case", CASES)
def test_whole_numbers_are_exact(gpu, kind, case):
    x_shape, weight_shape, *geometry = CASES[case]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    assert_exact(gpu, kind, x, weight, dy, geometry)


@st.composite
def cases(draw):
    """Return shapes and geometry as in CASES."""
    few = st.integers(1, 3)
    kernel, stride, dilation = (draw(st.tuples(few, few)) for _ in range(3))
    padding = Padding2d(*draw(st.tuples(*4 * [st.integers(0, 2)])))
    n, h, w = draw(few), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    assume(h + padding.top + padding.bottom > dilation[0] * (kernel[0] - 1))
    assume(w + padding.left + padding.right > dilation[1] * (kernel[1] - 1))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    cg, kg = (draw(st.sampled_from([1, 3, 8, 16, 24, 33])) for _ in range(2))
    return (n, h, w, cg * groups), (kg * groups, *kernel, cg), stride, padding, dilation, groups


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
@pytest.mark.parametrize("kind", ["tf32", "bf16"], indirect=True)
def test_any_shape_is_exact(gpu, kind, case):
    x_shape, weight_shape, *geometry = case
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    assert_exact(gpu, kind, x, weight, dy, geometry)


def form(kind):
    return conv2d_plan.Format(KINDS[kind], tf32=kind == "tf32")


SLOW = {"rows and columns to spare": pytest.mark.slow}  # "groups" has them too
TILED = {  # pictures, filters, geometry: more than one tile each way, and no whole number of them
    "rows and columns to spare": ((2, 9, 8, 40), (136, 3, 1, 40), (1, 1), ONE, (1, 1), 1),
    "less than a tile": ((1, 5, 3, 24), (8, 2, 3, 24), (2, 1), Padding2d(0, 1, 1, 2), (1, 2), 1),
    "groups": ((1, 13, 11, 16), (144, 1, 3, 8), (1, 2), ONE, (1, 1), 2),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW.get(case, ())) for case in TILED])
@pytest.mark.parametrize(
    ("kind", "tile"),
    [
        pytest.param(kind, tile, id=f"{kind}-{tile.m}x{tile.n}-{tile.warp_m}x{tile.warp_n}")
        for kind in ("float", "tf32", "bf16")
        for tile in conv2d_plan.tiles_for(form(kind), (8, 8), dw=False, warpgroups=True)
    ],
    indirect=["kind"],
)
def test_every_tile_split_and_not(gpu, kind, tile, case):
    """Tiles are chosen by size: here small products are cut into large ones."""
    x_shape, weight_shape, *geometry = TILED[case]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    # Of the larger ones, only dw is split; in one piece test_cuda_variants.py has it.
    for splits in (1, 3) if tile == SMALL else (3,):
        with launched() as found, conv2d_plan.forced(conv2d_plan.Plan(tile, splits)):
            assert_exact(gpu, kind, x, weight, dy, geometry)
        size = {("BM", tile.m), ("BN", tile.n), ("WM", tile.warp_m), ("WN", tile.warp_n)}
        met = {name for _, name, defines in found if size <= defines}
        has_dw = tile in conv2d_plan.tiles_for(form(kind), (8, 8), dw=True, warpgroups=True)
        assert met == {"conv2d_forward", "conv2d_dx"} | ({"conv2d_dw"} if has_dw else set())


@pytest.mark.parametrize(
    ("case", "splits", "with_rest", "cut"),
    [  # stride 1 and more, groups, channels that are no multiple of 16 bytes
        ("stem", 1, True, True),
        ("stem", 3, False, True),
        ("groups", 1, True, False),
        ("groups", 3, True, True),
        ("less than a tile", 1, False, True),
        ("less than a tile", 3, True, False),
    ],
)
def test_gradients_with_a_scale_are_finished_in_their_kernels(
    gpu, kind, case, splits, with_rest, cut
):
    """dx: another gradient is added, and what a ReLU would cut off is; exact on whole numbers."""
    x_shape, weight_shape, *geometry = (CASES | TILED)[case]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    scale = 2.0 ** np.random.default_rng(5).integers(-1, 2, weight_shape[0])
    rest = whole(6, *x_shape)
    _, dx, dw = expected_products(x, weight, dy * scale.astype(np.float32), geometry)
    dx += rest if with_rest else 0
    expected = np.where(x > 0, dx, 0) if cut else dx
    x_, dy_, rest_ = (activation(gpu, a, kind) for a in (x, dy, rest))
    weight_, scale_ = parameter(gpu, weight, kind), gpu.cupy.asarray(scale)
    finish = scale_, rest_ if with_rest else None, x_ if cut else None

    def compute():
        return (
            conv2d.conv2d_dx(dy_, weight_, x_shape, *geometry, *finish),
            conv2d.conv2d_dw(dy_, x_, weight_shape, *geometry, scale_),
        )

    with conv2d_plan.forced(conv2d_plan.Plan(conv2d_plan.SMALL, splits)):
        found = in_every_order(gpu, compute)
    np.testing.assert_array_equal(found[0], of_type(expected, KINDS[kind]))
    np.testing.assert_array_equal(found[1], dw)


@pytest.mark.parametrize("tile", conv2d_plan.WARPGROUP_TILES + conv2d_plan.TILES)
@pytest.mark.parametrize("kind", ["bf16"], indirect=True)
def test_gradients_are_finished_in_every_tile(gpu, kind, tile):
    x_shape, weight_shape, *geometry = TILED["rows and columns to spare"]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    rest = whole(6, *x_shape)
    _, dx, _ = expected_products(x, weight, dy, geometry)
    x_, dy_, rest_ = (activation(gpu, a, kind) for a in (x, dy, rest))
    with conv2d_plan.forced(conv2d_plan.Plan(tile, 1)):
        found = conv2d.conv2d_dx(
            dy_, parameter(gpu, weight, kind), x_shape, *geometry, None, rest_, x_
        )
    np.testing.assert_array_equal(found.get(), of_type(np.where(x > 0, dx + rest, 0), KINDS[kind]))


def test_few_channels_are_copied_16_bytes_at_a_time_on_tensor_cores(gpu, kind):
    """As if the pictures had more channels, of zeros; exact products would pay for that."""
    x_shape, weight_shape, *geometry = CASES["stem"]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    with launched() as found:
        assert_exact(gpu, kind, x, weight, dy, geometry)
    pieces = {dict(v)["PIECE_B"] for _, name, v in found if name in ("conv2d_forward", "conv2d_dw")}
    assert pieces == {{"tf32": 4, "bf16": 8}.get(kind, 1)}


def to_tf32(x):
    """Return x rounded to 10 bits of fraction, ties away from zero."""
    return ((x.view(np.uint32) + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32)


@pytest.mark.parametrize("case", ["plain", "dilation, odd channels", "long sums, split"])
def test_error_is_that_of_rounding(gpu, kind, case):
    x_shape, weight_shape, *geometry = CASES[case]
    x, weight, dy = operands(normal, x_shape, weight_shape, *geometry)
    got = three_products(gpu, kind, x, weight, dy, geometry)
    rounded = {"tf32": to_tf32, "bf16": lambda a: widened(bf16(a))}.get(kind, lambda a: a)
    expected = expected_products(*(rounded(a) for a in (x, weight, dy)), geometry)
    # Of a sum of n products, each of at most n roundings errs by half a unit of the sum of magnitudes; a
    # weight's gradient is not rounded to bf16, everything else is.
    size = expected_products(abs(x), abs(weight), abs(dy), geometry)
    ones = expected_products(*(np.ones_like(a) for a in (x, weight, dy)), geometry)
    unit = 2.0**-53 if kind == "double" else 2.0**-24
    for name, g, e, s, n in zip(("y", "dx", "dw"), got, expected, size, ones, strict=True):
        last = 2.0**-8 if kind == "bf16" and name != "dw" else 0
        bound = 1.01 * (n + 1) * unit * s + last * abs(e)
        assert np.all(abs(widened(g) - e) <= bound), name


EPILOGUE_CASES = ["plain", "even channels, odd filters", "groups of odd size", "long sums, split"]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("case", EPILOGUE_CASES)
def test_scale_shift_residual_and_relu(gpu, kind, case, residual):
    x_shape, weight_shape, *geometry = CASES[case]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    scale, shift = whole(4, weight_shape[0]), whole(5, weight_shape[0])
    added = whole(6, *dy.shape) if residual else None
    arrays = [activation(gpu, x, kind), parameter(gpu, weight, kind)]
    line = [gpu.cupy.asarray(a.astype(np.float64)) for a in (scale, shift)]
    added_ = activation(gpu, added, kind) if residual else None
    plain = reference.conv2d_forward(x, weight, None, *geometry)
    linear = plain * scale + shift + (added if residual else 0)
    for relu, expected in ((False, linear), (True, np.maximum(linear, 0))):
        (y,) = in_every_order(
            gpu,
            lambda relu=relu: [
                conv2d.conv2d_scale_shift_forward(*arrays, *line, added_, relu, *geometry)
            ],
        )
        np.testing.assert_array_equal(widened(y), widened(of_type(expected, KINDS[kind])))
    (y,) = in_every_order(
        gpu, lambda: [conv2d.conv2d_forward(*arrays, parameter(gpu, shift, kind), *geometry)]
    )
    np.testing.assert_array_equal(y, of_type(plain + shift, KINDS[kind]))


def test_relu_keeps_nan(gpu):
    x = whole(1, 1, 2, 2, 8)
    x[0, 1, 1, 3] = np.nan
    one = gpu.cupy.asarray(np.ones(8))
    weight = gpu.cupy.asarray(np.ones((8, 1, 1, 8), np.float32))
    y = conv2d.conv2d_scale_shift_forward(
        gpu.cupy.asarray(x), weight, one, one, None, True, (1, 1), NONE, (1, 1), 1
    )
    np.testing.assert_array_equal(np.isnan(y.get()).all(-1)[0], [[False, False], [False, True]])


STATISTICS_CASES = [
    "plain",
    "dilation, odd channels",
    "groups of odd size",
    "several tiles",
    "one pixel",
]


@pytest.mark.parametrize("case", STATISTICS_CASES)
def test_statistics(gpu, kind, case):
    x_shape, weight_shape, *geometry = CASES[case]
    x, weight, _ = operands(whole, x_shape, weight_shape, *geometry)
    x_, weight_ = activation(gpu, x, kind), parameter(gpu, weight, kind)
    y, mean, var = in_every_order(
        gpu, lambda: conv2d.conv2d_statistics_forward(x_, weight_, *geometry)
    )
    expected = reference.conv2d_forward(x, weight, None, *geometry)
    np.testing.assert_array_equal(y, of_type(expected, KINDS[kind]))
    exact = widened(y).reshape(-1, weight_shape[0])
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6, atol=2e-7 * abs(exact).max())
    np.testing.assert_allclose(var, exact.var(0), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("offset", [1e3, -1e4])
def test_statistics_of_channels_far_from_zero(gpu, offset):
    x = normal(1, 3, 9, 9, 8)
    x[..., 0] = offset
    weight = normal(2, 24, 1, 1, 8)
    weight[..., 0] = 1
    y, mean, var = conv2d.conv2d_statistics_forward(
        *(gpu.cupy.asarray(a) for a in (x, weight)), (1, 1), NONE, (1, 1), 1
    )
    exact = widened(y.get()).reshape(-1, 24)
    far = abs(exact.mean(0)) / exact.std(0)
    assert far.min() > 100
    np.testing.assert_allclose(mean.get(), exact.mean(0), rtol=1e-7)
    # A tile's mean is kept in float32.
    assert np.all(abs(var.get() / exact.var(0) - 1) <= 2e-6 + 2.0**-24 * far)


def test_statistics_of_a_constant(gpu):
    x, weight = np.full((2, 9, 9, 8), 3, np.float32), np.full((8, 1, 1, 8), 0.1, np.float32)
    y, mean, var = conv2d.conv2d_statistics_forward(
        *(gpu.cupy.asarray(a) for a in (x, weight)), (1, 1), NONE, (1, 1), 1
    )
    np.testing.assert_array_equal(mean.get(), y.get()[0, 0, 0])
    np.testing.assert_array_equal(var.get(), 0)


def test_statistics_need_pictures(gpu):
    x, weight = np.zeros((0, 4, 4, 8), np.float32), whole(2, 8, 1, 1, 8)
    with pytest.raises(ValueError, match="at least one picture"):
        conv2d.conv2d_statistics_forward(
            *(gpu.cupy.asarray(a) for a in (x, weight)), (1, 1), NONE, (1, 1), 1
        )


@pytest.mark.parametrize("rows, channels", [(1, 1), (7, 33), (700, 5), (5000, 9)])
def test_bias_gradient(gpu, kind, rows, channels):
    dy = whole(3, 1, rows, 1, channels)
    (db,) = in_every_order(gpu, lambda: [conv2d.conv2d_db(activation(gpu, dy, kind))])
    np.testing.assert_array_equal(db, reference.conv2d_db(dy))


def shifted(gpu, x):
    """Return x as a device array that starts in the middle of 16 bytes."""
    memory = np.empty(x.size + 1, x.dtype)
    memory[1:] = x.reshape(-1)
    return gpu.cupy.asarray(memory)[1:].reshape(x.shape)


def test_arrays_that_are_not_aligned(gpu, kind):
    x_shape, weight_shape, *geometry = CASES["plain"]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    residual, ones = whole(4, *dy.shape), np.ones(weight_shape[0])
    expected_y, expected_dx, expected_dw = expected_products(x, weight, dy, geometry)
    x_, dy_, residual_ = (shifted(gpu, of_type(a, KINDS[kind])) for a in (x, dy, residual))
    weight_ = shifted(gpu, weight.astype(np.float64 if kind == "double" else np.float32))
    one, zero = shifted(gpu, ones), shifted(gpu, 0 * ones)
    aligned_x = activation(gpu, x, kind)
    results = (
        (conv2d.conv2d_forward(x_, weight_, None, *geometry), expected_y),
        (conv2d.conv2d_forward(aligned_x, weight_, None, *geometry), expected_y),
        (conv2d.conv2d_dx(dy_, weight_, x.shape, *geometry), expected_dx),
        (conv2d.conv2d_dw(dy_, aligned_x, weight.shape, *geometry), expected_dw),
        (
            conv2d.conv2d_scale_shift_forward(x_, weight_, one, zero, residual_, False, *geometry),
            expected_y + residual,
        ),
    )
    for got, expected in results:
        expected = expected if got.dtype == np.float32 else of_type(expected, KINDS[kind])
        np.testing.assert_array_equal(got.get(), expected)


def test_memory_order_does_not_matter(gpu):
    x_shape, weight_shape, *geometry = CASES["plain"]
    x, weight, dy = operands(whole, x_shape, weight_shape, *geometry)
    scale, shift = (whole(seed, 24).astype(np.float64) for seed in (4, 5))
    residual = whole(6, *dy.shape)
    arrays = x, weight, scale, shift, residual
    apart = [gpu.cupy.asarray(np.repeat(a, 2, -1))[..., ::2] for a in arrays]
    y = conv2d.conv2d_scale_shift_forward(*apart, False, *geometry)
    expected_y, expected_dx, expected_dw = expected_products(x, weight, dy, geometry)
    np.testing.assert_array_equal(y.get(), expected_y * scale + shift + residual)
    dy_ = gpu.cupy.asarray(np.repeat(dy, 2, -1))[..., ::2]
    dx, dw = (
        conv2d.conv2d_dx(dy_, apart[1], x.shape, *geometry),
        conv2d.conv2d_dw(dy_, apart[0], weight.shape, *geometry),
    )
    np.testing.assert_array_equal(dx.get(), expected_dx)
    np.testing.assert_array_equal(dw.get(), expected_dw)
    np.testing.assert_array_equal(conv2d.conv2d_db(dy_).get(), reference.conv2d_db(dy))


def test_no_pictures(gpu, kind):
    geometry = (1, 1), ONE, (1, 1), 1
    x, weight = np.zeros((0, 4, 4, 8)), parameter(gpu, whole(2, 8, 3, 3, 8), kind)
    x_ = activation(gpu, x, kind)
    assert conv2d.conv2d_forward(x_, weight, None, *geometry).shape == x.shape
    assert conv2d.conv2d_dx(x_, weight, x.shape, *geometry).shape == x.shape
    np.testing.assert_array_equal(conv2d.conv2d_dw(x_, x_, weight.shape, *geometry).get(), 0)
    np.testing.assert_array_equal(conv2d.conv2d_db(x_).get(), 0)


def test_parameters_have_their_own_type(gpu):
    geometry = (1, 1), NONE, (1, 1), 1
    x, weight = gpu.cupy.asarray(whole(1, 1, 2, 2, 8)), gpu.cupy.asarray(np.ones((8, 1, 1, 8)))
    with pytest.raises(TypeError, match="weight must be float32; got float64"):
        conv2d.conv2d_forward(x, weight, None, *geometry)
    with pytest.raises(TypeError, match="weight must be float32; got float64"):
        conv2d.conv2d_dx(x, weight, x.shape, *geometry)


def test_too_large_is_said(gpu):
    with pytest.raises(ValueError, match="use smaller batches"):
        conv2d_plan.Geometry.of((2**15, 256, 256, 1), (1, 1, 1, 1), (1, 1), NONE, (1, 1), 1)


def test_precision_is_checked_and_returned():
    assert conv2d.set_precision("tf32") == "float32"
    assert conv2d.set_precision("float32") == "tf32"
    with pytest.raises(ValueError, match="no precision 'half'; choose one of float32, tf32"):
        conv2d.set_precision("half")


# rows, columns and depth of the products of ResNet-50 at 224 x 224, for one picture
PRODUCTS = [
    (112 * 112, 64, 147), (56 * 56, 64, 64), (56 * 56, 64, 576), (56 * 56, 256, 64), (28 * 28, 128, 1152),
    (28 * 28, 512, 128), (14 * 14, 256, 2304), (14 * 14, 1024, 256), (49, 512, 4608), (49, 2048, 512),
    (1, 1000, 2048),
]  # fmt: skip


@pytest.mark.parametrize("pictures", [1, 8, 64, 256])
@pytest.mark.parametrize("pixels, filters, depth", PRODUCTS)
def test_plans_fill_the_card(pixels, filters, depth, pictures):
    rows = pixels * pictures
    plan = conv2d_plan.choose(rows, filters, depth // 32, 1, conv2d_plan.TILES, False, True)
    blocks = plan.tiles(rows, filters) * plan.splits
    assert blocks >= conv2d_plan.ENOUGH_BLOCKS / 2 or plan.splits == max(1, depth // 32 // 8)
    plan = conv2d_plan.choose(filters, depth, rows // 32, 1, conv2d_plan.TILES, True, True)
    blocks = plan.tiles(filters, depth) * plan.splits
    assert blocks >= conv2d_plan.ENOUGH_BLOCKS or plan.splits == max(1, rows // 32 // 8)
    assert plan.tile.m < 2 * filters
    assert plan.tile.n < 2 * depth


def test_large_products_take_large_tiles():
    assert conv2d_plan.choose(50000, 512, 8, 1, conv2d_plan.TILES, False, True).tile.n == 128
    assert conv2d_plan.choose(50000, 64, 8, 1, conv2d_plan.TILES, False, True).tile.n == 64
