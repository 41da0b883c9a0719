"""Launchers start kernels and do nothing else: no waiting, no arithmetic of CuPy's, recordable in a graph.

The fake CuPy refuses what is forbidden. Convolutions have files of their own.
"""

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.backend import to_gpu
from minitl.kernels import cuda
from minitl.shapes import padding2d
from tests.cuda_launch import needs_checker
from tests.cuda_on_cpu.fake_cupy import install

pytestmark = needs_checker

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 2, 4, 4, 8)).astype(np.float32)
A, B, C = RNG.uniform(0.5, 1, (3, 8)).astype(np.float32)
WA, WB, WC = (vector.astype(np.float64) for vector in (A, B, C))
HALF = RNG.standard_normal((2, 2, 2, 8)).astype(np.float32)
INDEX = RNG.integers(0, 4, HALF.shape, np.uint8)
LOGITS, TARGETS = RNG.uniform(0, 1, (2, 4, 8)).astype(np.float32)
LABELS, LOSS = np.array([0, 3, 7, 1]), np.array(2, np.float32)
NUMBER, RATE = np.array([3]), np.array([0.5], np.float32)
FLIP, PLACES = np.array([True, False]), np.array([1, 2], np.int32)
WINDOW = (2, 2), (2, 2), padding2d(0)
BATCHES = RNG.integers(0, 256, (2, 6, 7, 3), np.uint8)
WIDE = X.astype(np.float64)
PICTURES = X[..., :3].copy()
BOX, DARKEST, BRIGHTEST = (0.1, 0.2, 0.3), (-1.0, -1.5, -2.0), (1.0, 1.5, 2.0)

# A function of the backend and its arguments, as many ways to call it as it has kernels.
CALLS = [
    ("add_forward", (X, Y)),
    ("add_forward", (WIDE, WIDE)),
    ("relu_forward", (X,)),
    ("scale_forward", (X, 0.5)),
    ("relu_dx", (X, Y)),
    ("dropout_forward", (X, 0.5, 7, 2)),
    ("dropout_dx", (X, 0.5, 7, NUMBER)),
    ("concat_forward", ([X, Y],)),
    ("concat_dx", (X, [3, 5])),
    ("cast", (X, np.uint16)),
    ("batchnorm_statistics", (X,)),
    ("batchnorm_fold", (WA, WB, A, B, C.copy(), B.copy(), 32, 0.1, 1e-5, True)),
    ("batchnorm_fold", (None, None, A, B, C, B, 32, 0.1, 1e-5, False)),
    ("batchnorm_apply", (X, WA, WB, None, True)),
    ("batchnorm_apply", (X, WA, WB, Y, False)),
    ("batchnorm_reduce", (X, None, Y, WA, WB, True)),
    ("batchnorm_reduce", (X, Y, Y, WA, WB)),
    ("batchnorm_reduce", (X, Y, Y, WA, WB, True)),
    ("batchnorm_coefficients", (WA, WB, C, WA, WB, 32, True)),
    ("batchnorm_coefficients", (None, None, C, None, WB, 32, True)),
    ("batchnorm_dx", (X, None, None, WA, None, None)),
    ("batchnorm_dx", (X, Y, None, WA, None, None)),
    ("batchnorm_dx", (X, None, Y, WA, WB, WC)),
    ("batchnorm_dx", (X, Y, Y, WA, WB, WC)),
    ("batchnorm_relu_maxpool_forward", (X, WA, WB, *WINDOW)),
    ("batchnorm_relu_maxpool_dx", (HALF, INDEX, X.shape, X, WA, WB, WC, *WINDOW)),
    ("batchnorm_relu_maxpool_dx", (HALF, INDEX, X.shape, None, WA, None, None, *WINDOW)),
    ("maxpool2d_forward", (X, *WINDOW)),
    ("maxpool2d_dx", (HALF, INDEX, X.shape, *WINDOW)),
    ("global_avgpool2d_forward", (X,)),
    ("global_avgpool2d_dx", (LOGITS, (4, 3, 3, 8))),
    ("softmax_cross_entropy_forward", (LOGITS, LABELS, None, 0.1)),
    ("softmax_cross_entropy_forward", (LOGITS, LABELS, A, 0.0)),
    ("softmax_cross_entropy_dx", (LOSS, LOGITS, LABELS, None, 0.1)),
    ("sigmoid_binary_cross_entropy_forward", (LOGITS, TARGETS, None)),
    ("sigmoid_binary_cross_entropy_forward", (LOGITS, TARGETS, A)),
    ("sigmoid_binary_cross_entropy_dx", (LOSS, LOGITS, TARGETS, None)),
    ("mean_squared_error_forward", (LOGITS, TARGETS)),
    ("mean_squared_error_dx", (LOSS, LOGITS)),
    ("sgd_step", (A.copy(), B, None, 0.1, 0.0, 0.1, False, False)),
    ("sgd_step", (A.copy(), B, C.copy(), RATE, 0.9, 0.1, True, NUMBER)),
    ("average_step", (A.copy(), B, 0.25)),
    ("clip_norm", ([A.copy(), X.copy().reshape(-1)], 0.5)),
    ("scale_forward", (X, RATE)),
    ("mixup_forward", (X, 0.25)),
    ("cutmix_forward", (X, 1, 3, 0, 2)),
    ("attack_start", (PICTURES, BOX, DARKEST, BRIGHTEST, 7)),
    ("attack_step", (PICTURES, -PICTURES, PICTURES, BOX, BOX, DARKEST, BRIGHTEST)),
    ("adam_step", (A.copy(), B, A.copy(), C.copy(), NUMBER, RATE, 0.9, 0.99, 1e-8, 0.1, True)),
    (
        "normalize_images",
        (BATCHES, (0.4, 0.5, 0.6), (1, 2, 3), 1 / 255, FLIP, PLACES, PLACES, 4, "f"),
    ),
]
ELSEWHERE = {  # Numba's; see test_cuda_avgpool.py
    f"{kind}avgpool2d_{way}" for kind in ("", "adaptive_") for way in ("forward", "dx")
}
SETTINGS = {
    "compile_seconds",
    "on_first_compile",
    "release_memory",
    "set_conv_algorithm",
    "set_precision",
    "set_threads",
}


def each(value, function):
    """Return arguments or results with a function applied to the arrays among them."""
    if type(value) in (list, tuple):
        return type(value)(each(v, function) for v in value)
    return function(value) if hasattr(value, "nbytes") and not isinstance(value, type) else value


@pytest.mark.parametrize(("name", "args"), CALLS, ids=[name for name, _ in CALLS])
def test_launching_is_all_that_is_done(name, args):
    """Results and arguments, some of which are written, are those of a recorded and replayed call."""
    with install() as gpu:
        stream, outcomes = gpu.cupy.cuda.Stream(non_blocking=True), ([], [])
        for record, outcome in zip((False, True), outcomes, strict=True):
            given = each(args, to_gpu)
            with stream:
                if record:
                    stream.begin_capture()
                result = getattr(cuda, name)(*given)
                if record:
                    stream.end_capture().launch()
            assert gpu.synchronisations == []
            each((result, given), lambda x, found=outcome: found.append(gpu.cupy.asnumpy(x)))
            gpu.synchronisations.clear()
    for at_once, recorded in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(at_once, recorded)
        assert not np.isnan(recorded.astype(float)).any()


def apart(gpu, array):
    """Return an equal array with something between its elements."""
    return gpu.cupy.asarray(np.repeat(array, 2, axis=-1))[..., ::2]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        case
        for case in CALLS
        if not case[0].endswith("entropy_dx") and case[0] != "mean_squared_error_dx"
    ],
)
def test_elements_that_lie_apart_are_found_or_refused(name, args):
    with install() as gpu:
        expected = getattr(cuda, name)(*each(args, to_gpu))
        given = each(args, lambda x: apart(gpu, x) if x.ndim else to_gpu(x))
        try:
            found = getattr(cuda, name)(*given)
        except ValueError as error:
            assert "lie one after another" in str(error)
            assert name.startswith(
                ("batchnorm", "sgd", "adam", "average", "clip", "maxpool2d_dx", "norm")
            )
            return
        results = ([], [])
        for result, values in zip((found, expected), results, strict=True):
            each(result, lambda x, values=values: values.append(gpu.cupy.asnumpy(x)))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_that_lie_apart():
    """Those of classes, and of a normalisation, which a user may have cut out of something larger."""
    with install() as gpu:
        logits, labels, weights = each((LOGITS, LABELS, A), to_gpu)
        loss, _ = cuda.softmax_cross_entropy_forward(logits, labels, weights, 0.0)
        same, _ = cuda.softmax_cross_entropy_forward(logits, labels, apart(gpu, A), 0.0)
        assert loss.get() == same.get()
        fold = each((None, None, A, B, B, C), lambda x: to_gpu(x))
        folded = cuda.batchnorm_fold(*fold, 4, 0.1, 1e-5, False)
        cut = cuda.batchnorm_fold(
            None, None, apart(gpu, A), apart(gpu, B), *fold[4:], 4, 0.1, 1e-5, False
        )
        for one, other in zip(folded, cut, strict=True):
            np.testing.assert_array_equal(one.get(), other.get())


def test_the_table_has_every_function():
    own = {n for n in cuda.__all__ if not n.startswith(("conv2d_", "linear_"))}
    assert {name for name, _ in CALLS} == own - ELSEWHERE - SETTINGS


def test_settings_that_a_gpu_has_no_use_for():
    before = cuda.set_conv_algorithm("exact")
    assert cuda.set_conv_algorithm(before) == "exact"
    with pytest.raises(ValueError, match="no convolution algorithm 'fast'"):
        cuda.set_conv_algorithm("fast")
    assert cuda.set_threads(3) == cuda.set_threads(None) == 1
    with pytest.raises(ValueError, match="cannot compute with 0 threads"):
        cuda.set_threads(0)


def test_memory_is_given_back():
    with install() as gpu:
        x = gpu.cupy.asarray(X)
        y = cuda.relu_forward(x)
        del y
        assert gpu.cupy.get_default_memory_pool().free_bytes() > 0
        cuda.release_memory()
        assert gpu.cupy.get_default_memory_pool().free_bytes() == 0
        np.testing.assert_array_equal(gpu.cupy.asnumpy(x), X)
