"""Every form that a kernel is compiled in is executed here, and what is launched is a form that is listed.

What each one computes is looked at closely in its own file; this one holds that none is left out.
"""

import importlib

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels import cuda
from minitl.kernels.cuda import conv2d, conv2d_plan, conv2d_weight
from minitl.shapes import Padding2d, padding2d
from tests.cuda_launch import each_gpu, launched, needs_checker, of_type
from tests.cuda_on_cpu.fake_cupy import install
from tests.test_cuda_compile import STEMS, forms, resources
from tests.test_cuda_conv2d import (
    KINDS,
    activation,
    expected_products,
    operands,
    parameter,
    whole,
)
from tests.test_cuda_launchers import CALLS, RATE, TARGETS, X, each

gpu = each_gpu()

GEOMETRY = (2, 1), Padding2d(0, 1, 1, 2), (1, 1), 2
VECTORS, ONE_BY_ONE = (
    24,
    5,
)  # channels of a group that are copied 16 bytes at a time, and that cannot be


# Bytes of shared memory that the blocks on a multiprocessor have together, by compute capability, and what
# each block takes of it besides its own. (CUDA C++ Programming Guide, "Compute Capabilities")
SHARED = {"8.0, 8.7": 164 << 10, "8.6, 8.9, 12.0": 100 << 10, "9.0, 10.0": 228 << 10}
HOPPER = "9.0, 10.0"  # the first of them
OF_A_BLOCK = 1 << 10
TWO_FIT = ("8.0, 8.7", "9.0, 10.0")  # as the registers are budgeted for


def name_of(variant):
    return "-".join(f"{name}{value}" for name, value in variant.items())


def start(gpu, variant, channels, filters):
    """Return what makes the three products of so many channels a group in this precision and tile."""
    kind = "tf32" if variant["TF32"] else variant["T"]
    tile = conv2d_plan.Tile(*(variant[name] for name in ("BM", "BN", "WM", "WN")))
    plan = conv2d_plan.Plan(tile, 2 if variant.get("SPLIT") else 1)
    shapes = (2, 4, 3, 2 * channels), (2 * filters, 2, 3, channels)
    x, weight, dy = operands(whole, *shapes, *GEOMETRY)
    expected = expected_products(x, weight, dy, GEOMETRY)
    arrays = activation(gpu, x, kind), parameter(gpu, weight, kind), activation(gpu, dy, kind)
    return kind, plan, arrays, expected


def run(kind, plan, function, *args):
    before = conv2d.set_precision("tf32" if kind == "tf32" else "float32")
    try:
        with launched() as found, conv2d_plan.forced(plan):
            return function(*args, *GEOMETRY), found
    finally:
        conv2d.set_precision(before)


def assert_launched(found, stem, name, variant):
    """It was launched in this form, and asked for no more shared memory than there is."""
    asked = found[stem, name, frozenset(variant.items())]
    for architecture, _ in forms(stem, [variant]):
        block = asked + resources(stem, architecture, variant)[name].shared + OF_A_BLOCK
        for cards, there in SHARED.items():
            if variant["WGMMA"] and cards != HOPPER:
                continue
            assert block * (2 if cards in TWO_FIT else 1) <= there, (cards, block)


@pytest.mark.parametrize("variant", conv2d.VARIANTS, ids=name_of)
def test_every_form_of_the_convolution(gpu, variant):
    channels = VECTORS if variant["PIECE_A"] > 1 else ONE_BY_ONE
    kind, plan, (x, weight, dy), expected = start(gpu, variant, channels, channels)
    if variant["DX"]:
        result, found = run(kind, plan, cuda.conv2d_dx, dy, weight, x.shape)
    elif variant["STATISTICS"]:
        (result, *_), found = run(kind, plan, cuda.conv2d_statistics_forward, x, weight)
    else:
        result, found = run(kind, plan, cuda.conv2d_forward, x, weight, None)
    name = "conv2d_dx" if variant["DX"] else "conv2d_forward"
    assert_launched(found, "conv2d", name, variant)
    np.testing.assert_array_equal(result.get(), of_type(expected[variant["DX"]], KINDS[kind]))


@pytest.mark.parametrize("variant", conv2d_weight.VARIANTS, ids=name_of)
def test_every_form_of_the_gradient_of_the_weight(gpu, variant):
    filters, channels = (
        VECTORS if variant[piece] > 1 else ONE_BY_ONE for piece in ("PIECE_A", "PIECE_B")
    )
    kind, plan, (x, weight, dy), expected = start(gpu, variant, channels, filters)
    result, found = run(kind, plan, cuda.conv2d_dw, dy, x, weight.shape)
    assert_launched(found, "conv2d_weight", "conv2d_dw", variant)
    np.testing.assert_array_equal(result.get(), expected[2])


# Kernels that a file has in every type, and that are launched in some.
ONLY = {
    "batchnorm_coefficients": ("float", "double"),  # of parameters
    "batchnorm_fold": ("float", "double"),
    "conv2d_pad_channels": ("float", "bf16"),  # for tensor cores
}
CONVOLUTIONS = ("conv2d", "conv2d_weight")
WIDE_WINDOW = (17, 17), (4, 4), padding2d(8)  # of more pixels than a byte counts
OWN_TYPE = {"bf16": np.dtype(np.uint16), "float": np.dtype(np.float32)}


def calls(kind):
    """Yield (function, arguments) of all that is no convolution, for activations of this type."""
    real = np.float64 if kind == "double" else np.float32

    def convert(array):
        if array.dtype != np.float32 or array is RATE:
            return array
        is_activation = array.ndim > 1 and array is not TARGETS
        return of_type(array, kind) if is_activation else array.astype(real)

    x = of_type(X, kind)
    a, b, c = np.random.default_rng(0).uniform(0.5, 1, (3, 8))
    y, index = x[:, :1, :1].copy(), np.zeros((2, 1, 1, 8), np.int32)
    yield "maxpool2d_forward", (x, *WIDE_WINDOW)
    yield "maxpool2d_dx", (y, index, x.shape, *WIDE_WINDOW)
    yield "batchnorm_relu_maxpool_forward", (x, a, b, *WIDE_WINDOW)
    yield "batchnorm_relu_maxpool_dx", (y, index, x.shape, x, a, b, c, *WIDE_WINDOW)
    yield "batchnorm_relu_maxpool_dx", (y, index, x.shape, None, a, None, None, *WIDE_WINDOW)
    yield "conv2d_db", (x,)
    for name, args in CALLS:
        of_pictures = name.startswith(("attack", "mixup", "cutmix", "normalize", "cast"))
        if kind == "double" and of_pictures:  # which are never in it
            continue
        if name == "normalize_images":
            args = (*args[:-1], OWN_TYPE[kind])
        if name == "cast":
            args = (args[0], OWN_TYPE["float" if kind == "bf16" else "bf16"])
        yield name, each(args, convert)


@pytest.mark.parametrize("kind", ["float", "bf16", "double"])
@needs_checker
def test_every_form_of_all_other_kernels(kind):
    with install() as machine, launched() as found:
        for name, args in calls(kind):
            there = each(args, lambda x: machine.cupy.asarray(np.atleast_1d(x)).reshape(x.shape))
            getattr(cuda, name)(*there)
        # What a convolution does around its matrix product: fill up channels, turn the weight, add up splits,
        # end statistics.
        geometry = *GEOMETRY[:3], 1
        x, weight, dy = operands(whole, (2, 4, 3, 5), (8, 2, 3, 5), *geometry)
        x, dy = (activation(machine, array, kind) for array in (x, dy))
        weight = parameter(machine, weight, kind)
        before = conv2d.set_precision("tf32")
        with conv2d_plan.forced(conv2d_plan.Plan(conv2d_plan.SMALL, 2)):
            cuda.conv2d_forward(x, weight, None, *geometry)
            cuda.conv2d_dx(dy, weight, x.shape, *geometry)
            cuda.conv2d_statistics_forward(x, weight, *geometry)
        conv2d.set_precision(before)
    found = {entry for entry in found if entry[0] not in CONVOLUTIONS}
    listed = {
        (stem, name, frozenset(defines.items()))
        for stem in STEMS
        if stem not in CONVOLUTIONS
        for defines in importlib.import_module(f"minitl.kernels.cuda.{stem}").VARIANTS
        for name in resources(stem, "sm_90a", defines)
    }
    # bf16 comes out of a cast from float, and float out of one from bf16.
    here = {
        entry
        for entry in listed
        if dict(entry[2]).get("FROM", dict(entry[2])["T"]) == kind
        and kind in ONLY.get(entry[1], (kind,))
    }
    assert here <= found
    assert found <= listed
