"""The dense layer on the GPU, run on the CPU by the checker."""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import conv2d, linear
from tests.cuda_launch import each_gpu, of_type

KINDS = {"float": "float", "tf32": "float", "bf16": "bf16", "double": "double"}
SHAPES = [(1, 1, 1), (5, 7, 3), (2, 64, 10), (67, 33, 70), (3, 512, 40)]  # batch, inputs, outputs


gpu = each_gpu()


@pytest.fixture(params=KINDS)
def kind(request):
    before = conv2d.set_precision("tf32" if request.param == "tf32" else "float32")
    yield request.param
    conv2d.set_precision(before)


def whole(seed, *shape):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("batch, inputs, outputs", SHAPES)
def test_whole_numbers_are_exact(gpu, kind, batch, inputs, outputs):
    x, weight, bias = whole(1, batch, inputs), whole(2, outputs, inputs), whole(3, outputs)
    dy = whole(4, batch, outputs)
    real = np.float64 if kind == "double" else np.float32
    x_, dy_ = (gpu.cupy.asarray(of_type(a, KINDS[kind])) for a in (x, dy))
    weight_, bias_ = (gpu.cupy.asarray(a.astype(real)) for a in (weight, bias))
    results = [
        (linear.linear_forward(x_, weight_, bias_), x @ weight.T + bias, KINDS[kind]),
        (linear.linear_forward(x_, weight_, None), x @ weight.T, KINDS[kind]),
        (linear.linear_dx(dy_, weight_), dy @ weight, KINDS[kind]),
        (linear.linear_dw(dy_, x_), dy.T @ x, None),
        (linear.linear_db(dy_), dy.sum(0), None),
    ]
    assert not gpu.synchronisations
    for got, expected, rounded_to in results:
        expected = of_type(expected, rounded_to) if rounded_to else expected.astype(real)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got.get(), expected)


def test_long_sums_of_few_results_are_split(gpu, kind):
    x, weight = whole(1, 3, 512), whole(2, 40, 512)
    real = np.float64 if kind == "double" else np.float32
    linear.linear_forward(
        gpu.cupy.asarray(of_type(x, KINDS[kind])), gpu.cupy.asarray(weight.astype(real)), None
    )
    if not gpu.launches:
        pytest.skip("CuPy keeps no record of launches")
    grids = {name: grid for name, grid, _ in gpu.launches}
    assert grids["conv2d_forward"][1] == 512 * {"bf16": 2, "double": 8}.get(kind, 4) // 64 // 8


def test_rows_of_a_matrix_may_lie_apart(gpu):
    x, weight = whole(1, 6, 16), whole(2, 8, 16)
    x_ = gpu.cupy.asarray(x)[::2]
    np.testing.assert_array_equal(
        linear.linear_forward(x_, gpu.cupy.asarray(weight), None).get(), x[::2] @ weight.T
    )


def test_a_captured_step_can_be_repeated(gpu):
    """Launchers neither wait nor read: what they start can be recorded and run on other numbers."""
    x, weight = gpu.cupy.asarray(whole(1, 4, 24)), gpu.cupy.asarray(whole(2, 8, 24))
    linear.linear_dw(linear.linear_forward(x, weight, None), x)  # loads the kernels
    gpu.cupy.cuda.Device().synchronize()
    stream = gpu.cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        y = linear.linear_forward(x, weight, None)
        dw = linear.linear_dw(y, x)
        graph = stream.end_capture()
        other = whole(5, 4, 24)
        x.set(other)
        graph.launch(stream)
        expected = other @ whole(2, 8, 24).T
        np.testing.assert_array_equal(y.get(), expected)
        np.testing.assert_array_equal(dw.get(), expected.T @ other)
