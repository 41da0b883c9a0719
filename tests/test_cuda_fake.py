"""The fake of CuPy: its names are CuPy's, it refuses what CuPy refuses, and it does what CUDA does."""

import importlib
import inspect
import re

import numpy as np
import pytest

from tests.cuda_on_cpu import fake_cupy, host_module
from tests.cuda_on_cpu.fake_cupy import NAMES, CUDARuntimeError, install

needs_compiler = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def gpu(request):
    with install(late=request.param) as gpu:
        yield gpu


# ---------------------------------------------------------------------------------- the names


# Only CuPy makes these; nobody calls their constructors.
MADE_BY_CUPY = {"MemoryPointer", "PinnedMemoryPool", "PinnedMemoryPointer", "CUDARuntimeError"}


def parameters(function):
    """Return the names of a function's parameters, or None where they cannot be found out."""
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        first = (getattr(function, "__doc__", None) or "").split("\n")[0]
        match = re.match(r"[\w.]+\((.*)\)", first)  # Cython writes it there
        if not match:
            return None
        names = [re.sub(r"[:=].*", "", part).split()[-1:] for part in match[1].split(",")]
        return [name[0].lstrip("*") for name in names if name and name[0] not in ("self", "*", "/")]


def members():
    for module, found in NAMES.items():
        for name, fake in found.items():
            yield module, name, fake
            if isinstance(fake, type):
                for member, value in vars(fake).items():
                    if not member.startswith("_"):
                        yield module, f"{name}.{member}", value


def _label(value):
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("module", "name", "fake"), list(members()), ids=_label)
def test_every_name_is_in_cupy_with_the_same_parameters(module, name, fake):
    cupy = pytest.importorskip("cupy", minversion="14")
    real = importlib.import_module(module) if module != "cupy" else cupy
    for part in name.split("."):
        real = getattr(real, part)
    theirs = parameters(real)
    if callable(fake) and name not in MADE_BY_CUPY and theirs and "args" not in theirs:
        ours = parameters(fake.__init__ if isinstance(fake, type) else fake)
        assert set(ours) - {"_", "__"} <= set(theirs), f"CuPy's has {theirs}"
        if not {"shape", "axes"} & set(theirs):
            assert ours == [p for p in theirs if p in ours], f"CuPy's order is {theirs}"


def test_other_names_are_not_there(gpu):
    for name in ("add", "sum", "matmul", "random", "where"):
        with pytest.raises(AttributeError):
            getattr(gpu.cupy, name)
    with pytest.raises(AttributeError):
        gpu.cupy.zeros(3).sum  # noqa: B018
    import cupy

    assert cupy is gpu.cupy


# ------------------------------------------------------------------------------------- arrays


def device(gpu, *shape):
    host = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return gpu.cupy.asarray(host), host


def test_arrays_go_to_the_device_and_come_back(gpu):
    x, host = device(gpu, 3, 4)
    assert not isinstance(x, np.ndarray)
    assert (x.shape, x.dtype, x.nbytes) == ((3, 4), np.float32, 48)
    assert gpu.synchronisations == []
    np.testing.assert_array_equal(gpu.cupy.asnumpy(x), host)
    np.testing.assert_array_equal(x[1:, ::2].get(), host[1:, ::2])
    np.testing.assert_array_equal(x[1, 2].get(), host[1, 2])
    np.testing.assert_array_equal(x.reshape(2, 6).T.get(), host.reshape(2, 6).T)
    assert len(gpu.synchronisations) == 4


def test_copies_and_fills(gpu):
    x, host = device(gpu, 3, 4)
    y = gpu.cupy.empty(x.shape, x.dtype)
    y[...] = x
    y[0] = 0
    y[1] = x[2]
    expected = np.stack([np.zeros(4), host[2], host[2]])
    np.testing.assert_array_equal(y.get(), expected)
    np.testing.assert_array_equal(x.get(), host)
    y[1:].data.copy_from_device_async(x.data, 16)
    np.testing.assert_array_equal(y[1].get(), host[0])
    z = gpu.cupy.empty((4, 3), np.float32)
    z[...] = x.T
    np.testing.assert_array_equal(z.get(), host.T)
    np.testing.assert_array_equal(gpu.cupy.ascontiguousarray(x.T).get(), host.T)
    np.testing.assert_array_equal(gpu.cupy.zeros((2, 2)).get(), 0)
    assert np.isnan(gpu.cupy.empty((2, 2), np.float32).get()).all()


def test_the_order_of_an_array_is_kept_unless_it_is_said(gpu):
    host = np.arange(12, dtype=np.float32).reshape(3, 4)
    for given, is_in_order in ((host, True), (host.T, False), (host[:, ::2], True)):
        assert gpu.cupy.asarray(given, order="C").flags.c_contiguous
        assert gpu.cupy.asarray(given).flags.c_contiguous == is_in_order
        np.testing.assert_array_equal(gpu.cupy.asarray(given).get(), given)


def test_what_cupy_refuses_or_would_compute_itself_is_refused(gpu):
    x, host = device(gpu, 4)
    for use in (
        lambda: np.asarray(x),
        lambda: np.add(x, 1),
        lambda: np.concatenate([x, x]),
        lambda: x + x,
        lambda: x * 2,
        lambda: 2 * x,
        lambda: host + x,
        lambda: x == x,
        lambda: bool(x),
        lambda: x[np.array([0, 1])],
        lambda: x[x],
        lambda: x.copy(),
        lambda: x.fill(1),
        lambda: x[::2].fill(0),
        lambda: x.__setitem__(0, 1),
        lambda: x[:1].__setitem__(slice(None), x[1:2]),
        lambda: gpu.cupy.asarray(np.float32(2)),
        lambda: x.T.__setitem__(0, host[0:1]),
        lambda: gpu.cupy.asarray(x, np.float64),
        lambda: x.set(host.astype(np.float64)),
    ):
        with pytest.raises(TypeError):
            use()


@needs_compiler
def test_kernels_refuse_host_arrays(gpu):
    from minitl.kernels.cuda import runtime

    x, host = device(gpu, 8)

    def relu(given):
        args = (given, x, np.int64(8))
        runtime.launch("elementwise", "relu_forward", (1,), (32,), args, T="float")

    with pytest.raises(TypeError, match="argument 0 is a host array"):
        relu(host)
    relu(x)
    np.testing.assert_array_equal(x.get(), host)
    assert gpu.launches == [("relu_forward", (1,), (32,))]


# ------------------------------------------------------------------------------------- memory


def test_memory_is_reused_and_limited():
    with install(memory=4096) as gpu:
        empty, pool = gpu.cupy.empty, gpu.cupy.get_default_memory_pool()
        x = empty(512, np.uint8)
        address = x.data.ptr
        assert (pool.used_bytes(), pool.total_bytes()) == (512, 512)
        view = x[:10]
        del x
        assert pool.used_bytes() == 512, "a view holds the memory"
        del view
        assert (pool.used_bytes(), pool.free_bytes()) == (0, 512)
        assert empty(100, np.uint8).data.ptr == address
        big = empty(4096, np.uint8)  # the pool lets go of what is unused
        with pytest.raises(gpu.cupy.cuda.memory.OutOfMemoryError, match="Out of memory"):
            empty(1, np.uint8)
        del big
        pool.set_limit(size=1024)
        with pytest.raises(MemoryError, match="limit set to: 1,024"):
            empty(2048, np.uint8)


def test_another_pool_may_be_used():
    with install() as gpu:
        cuda = gpu.cupy.cuda
        pool = cuda.MemoryPool()
        with cuda.using_allocator(pool.malloc):
            x = gpu.cupy.empty(10)
        gpu.cupy.empty(10)
        assert pool.used_bytes() == 512
        del x
        assert pool.used_bytes() == 0


# ----------------------------------------------------------------------------- streams and graphs


def test_an_array_does_not_keep_the_pool_that_its_memory_is_of():
    with install() as gpu:
        pool = gpu.cupy.cuda.MemoryPool(lambda n: _from_driver(gpu, n))
        with gpu.cupy.cuda.using_allocator(pool.malloc):
            x = gpu.cupy.zeros(3, np.float32)
        assert gpu.allocated == 512
        x.get()
        del pool
        assert gpu.allocated == 0
        with pytest.raises(CUDARuntimeError, match="given back"):
            x.get()


def _from_driver(gpu, size):
    memory = gpu.cupy.cuda.memory
    return memory.MemoryPointer(memory.Memory(size), 0)


def test_late_streams_show_a_missing_wait():
    with install(late=True) as gpu:
        cuda = gpu.cupy.cuda
        copying, computing = (cuda.Stream(non_blocking=True) for _ in range(2))
        with copying:
            x = gpu.cupy.empty(4, np.float32)
            x.set(np.ones(4, np.float32))
            there = copying.record()
        with computing:
            y = gpu.cupy.empty(4, np.float32)
            y[...] = x
            assert np.isnan(y.get()).all(), "nobody waited for the copy"
            computing.wait_event(there)
            y[...] = x
            np.testing.assert_array_equal(y.get(), 1)
        assert gpu.synchronisations == ["ndarray.get"] * 2
        assert there.done


def test_pinned_memory_must_stay_until_it_is_copied():
    with install(late=True) as gpu:
        stream = gpu.cupy.cuda.Stream(non_blocking=True)
        host = np.frombuffer(gpu.cupy.cuda.alloc_pinned_memory(16), np.float32)
        with stream:
            x = gpu.cupy.empty(4, np.float32)
            host[:] = 1
            x.set(host)
            host[:] = 2  # too early
            np.testing.assert_array_equal(x.get(), 2)
            x.set(host)
            stream.synchronize()
            host[:] = 3
            np.testing.assert_array_equal(x.get(), 2)


def test_a_graph_repeats_its_work_with_the_arguments_it_had(gpu):
    stream = gpu.cupy.cuda.Stream(non_blocking=True)
    host = np.frombuffer(gpu.cupy.cuda.alloc_pinned_memory(16), np.float32)
    x, y, z = (gpu.cupy.zeros(4, np.float32) for _ in range(3))
    gpu.cupy.cuda.Device().synchronize()
    with stream:
        x.set(np.ones(4, np.float32))
        stream.begin_capture()
        assert stream.is_capturing()
        y[...] = x
        z.data.copy_from_device_async(y.data, 8)
        x.fill(0)
        graph = stream.end_capture()
        np.testing.assert_array_equal(x.get(), 1)  # capturing does nothing
        for value in (1, 2):
            host[:] = value
            x.set(host)
            graph.launch()
            np.testing.assert_array_equal(x.get(), 0)
            np.testing.assert_array_equal(y.get(), value)
            np.testing.assert_array_equal(z.get(), [value, value, 0, 0])


def test_what_a_capture_cannot_hold_is_refused(gpu):
    cuda = gpu.cupy.cuda
    stream, other = (cuda.Stream(non_blocking=True) for _ in range(2))
    x = gpu.cupy.zeros(4, np.float32)
    pinned = np.frombuffer(gpu.cupy.cuda.alloc_pinned_memory(16), np.float32)
    event = other.record()
    with pytest.raises(RuntimeError, match="default"):
        cuda.Stream.null.begin_capture()
    with stream:
        stream.begin_capture()
        for use in (
            x.get,
            x.item,
            stream.synchronize,
            cuda.Device().synchronize,
            lambda: gpu.cupy.asarray(np.ones(4)),
            lambda: x.set(np.ones(4, np.float32)),
            lambda: x.set(pinned),
            lambda: x.get(out=pinned, blocking=False),
            lambda: stream.wait_event(event),
            stream.begin_capture,
        ):
            with pytest.raises(RuntimeError):
                use()
        captured = stream.record()
        stream.end_capture()
    for use in (captured.synchronize, lambda: captured.done):  # never, not only now
        with pytest.raises(CUDARuntimeError, match="CapturedEvent"):
            use()
    with pytest.raises(CUDARuntimeError):
        stream.end_capture()


def test_a_graph_does_not_keep_its_memory(gpu):
    stream = gpu.cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        x = gpu.cupy.zeros(4, np.float32)
        graph = stream.end_capture()
        del x
        graph.launch()
        y = gpu.cupy.asarray(np.ones(4, np.float32))  # gets that memory
        graph.launch()
        np.testing.assert_array_equal(y.get(), 0)
        del y
        stream.synchronize()
        gpu.pool.free_all_blocks()
        with pytest.raises(CUDARuntimeError, match="given back"):
            graph.launch()
            stream.synchronize()


def test_outside_of_install_there_is_no_fake():
    with pytest.raises(CUDARuntimeError, match="install"):
        fake_cupy.empty(3)
