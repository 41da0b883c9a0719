"""Devices by name, what keeps a GPU from being used, and arrays that live on one."""

import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

import minitl
from minitl import nn, optim
from minitl.backend import BFLOAT16, kernel_module, narrow, widen
from minitl.cli import main
from minitl.device import CPU, check_precision, get_device
from minitl.errors import UserError
from minitl.tensor import Tensor
from tests.cuda_launch import launched, needs_checker
from tests.cuda_on_cpu.fake_cupy import install

BIASED = np.float32([1, -2, 3])


# What keeps a GPU from being used


def problem(name, **machine):
    with install(**machine), pytest.raises(UserError) as error:
        get_device(name)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_devices_by_name():
    assert get_device("cpu") is CPU
    with install(count=2):
        assert str(get_device("cuda")) == str(get_device("cuda:0")) == "cuda:0"
        assert str(get_device("cuda:1")) == "cuda:1"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "cpu:0", "cuda:1234"])
def test_other_names(name):
    assert "cpu, cuda or cuda:N" in problem(name)


def test_a_number_that_is_not_there():
    text = problem("cuda:3", count=2)
    assert "no cuda:3" in text
    assert "cuda:1" in text
    assert "1 GPU, cuda:0" in problem("cuda:1")


def test_no_card():
    assert "no GPU that CUDA can use" in problem("cuda", count=0)


@pytest.mark.parametrize(
    ("driver", "words"),
    [(0, ["no NVIDIA driver", "--device cpu"]), (11040, ["too old", "CUDA 11.4", "cuda12"])],
)
def test_no_driver_or_an_old_one(monkeypatch, driver, words):
    with install() as gpu:
        runtime = gpu.cupy.cuda.runtime

        def fail():
            raise runtime.CUDARuntimeError(
                "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
            )

        monkeypatch.setattr(runtime, "getDeviceCount", fail)
        monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
        with pytest.raises(UserError) as error:
            get_device("cuda")
    assert all(word in str(error.value) for word in words)


def test_a_card_that_is_too_old():
    pytest.importorskip("cuda.bindings.nvrtc")
    text = problem("cuda", compute_capability="75")
    assert "8.0" in text
    assert "7.5" in text


def test_no_cupy():
    code = (
        "import sys; sys.modules['cupy'] = None\n"
        "from minitl.cli import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "minitl[cuda13]" in done.stderr


def test_precisions():
    with pytest.raises(UserError, match="bf16 needs a GPU"):
        check_precision(CPU, "bf16")
    with pytest.raises(UserError, match="float32, tf32, bf16"):
        check_precision(get_device("cpu"), "fp16")
    check_precision(CPU, "float32")
    with install():
        plan = kernel_module("cuda")
        with get_device("cuda").computing("tf32"):
            assert plan.set_precision("tf32") == "tf32"
        assert plan.set_precision("float32") == "float32"
    with pytest.raises(ValueError, match="tf32"):
        kernel_module("cpu").set_precision("tf32")
    x = np.ones(3, np.float32)
    assert kernel_module("cpu").cast(x, np.float32) is x
    assert kernel_module("cpu").cast(x, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="uint16"):
        kernel_module("cpu").cast(x, BFLOAT16)


# Arrays on a GPU


def test_bfloat16_is_the_upper_half_of_float32_rounded_to_nearest_even():
    x = np.float32([1, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.3895314e38, np.inf, -0.0, 1e-40])
    exact = np.float32([1, -2.5, 1, 1 + 2**-6, 3.3895314e38, np.inf, -0.0, 1e-40])
    np.testing.assert_allclose(widen(narrow(x)), exact, rtol=2**-9, atol=1e-40)
    np.testing.assert_array_equal(widen(narrow(x[:4])), exact[:4])
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    theirs = torch.tensor(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(widen(narrow(x)), theirs)


def test_tensors_on_a_gpu():
    with install():
        x = minitl.tensor(BIASED, device="cuda")
        np.testing.assert_array_equal(x.numpy(), BIASED)
        assert minitl.tensor(x.data, device="cuda").data is x.data
        np.testing.assert_array_equal(minitl.tensor(x.data, device="cpu").data, BIASED)
        assert minitl.tensor([4.0], device="cuda").item() == 4
        half = Tensor(get_device("cuda").array(narrow(BIASED)))
        assert "bfloat16" in repr(half)
        np.testing.assert_array_equal(half.numpy(), BIASED)
    with pytest.raises(TypeError, match="float32 or float64"):
        Tensor(narrow(BIASED))  # on the CPU these are integers


def test_what_does_not_go_together_is_named():
    with install():
        here, there = minitl.tensor(BIASED), minitl.tensor(BIASED, device="cuda")
        with pytest.raises(TypeError, match=r"the CPU and of the GPU.*\.to\(device\)"):
            minitl.ops.add(here, there)
        half = Tensor(get_device("cuda").array(narrow(BIASED)))
        with pytest.raises(TypeError, match="bfloat16 and float32"):
            minitl.ops.add(half, there)
        rows, weight = narrow(np.ones((2, 3))), narrow(np.ones((4, 3)))
        with pytest.raises(TypeError, match="bfloat16"):  # parameters stay float32
            minitl.ops.linear(*(Tensor(get_device("cuda").array(a)) for a in (rows, weight)))


@needs_checker
def test_gradients_add_up_on_a_gpu_and_anomalies_are_found():
    with install(mode="fast"):
        x = minitl.tensor(BIASED, requires_grad=True, device="cuda")
        seed = minitl.tensor(BIASED * 10, device="cuda").data
        for _ in range(2):
            minitl.ops.add(x, x).backward(seed)
        np.testing.assert_array_equal(Tensor(x.grad).numpy(), BIASED * 40)
        bad = Tensor(get_device("cuda").array(narrow(np.float32([1, np.nan, 2]))))
        with (
            minitl.detect_anomaly(),
            pytest.raises(FloatingPointError, match="NaN in the result of Add"),
        ):
            minitl.ops.add(bad, bad)


class Net(nn.Module):
    """A filter, statistics, and a constant that is neither learned nor saved."""

    def __init__(self):
        self.conv = nn.Conv2d(3, 4, 3, rng=np.random.default_rng(0))
        self.bn = nn.BatchNorm2d(4)
        self._constant = Tensor(np.ones(2, np.float32))


def test_a_module_moves_and_its_state_stays_numpys():
    with install() as gpu:
        model = Net()
        before = {name: array.copy() for name, array in model.state_dict().items()}
        model.to("cuda")
        for array in (model.conv.weight.data, model.bn.running_mean, model._constant.data):
            assert isinstance(array, gpu.cupy.ndarray)
        after = model.state_dict()
        assert after.keys() == before.keys()
        for name, array in after.items():
            np.testing.assert_array_equal(array, before[name], name)
        changed = {name: array + 1 for name, array in before.items()}
        model.load_state_dict(changed)
        for name, array in model.to("cpu").state_dict().items():
            np.testing.assert_array_equal(array, changed[name], name)
            assert isinstance(array, np.ndarray)


@needs_checker
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_an_optimizer_on_a_gpu_saves_and_continues(make):
    options = {"momentum": 0.9} if make is optim.SGD else {}
    gradients = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    def steps(optimizer, parameter, gradients, device):
        for gradient in gradients:
            parameter.grad = device.array(gradient)
            optimizer.step()
        return optimizer

    def start(values, device):
        parameter = nn.Parameter(device.array(values.copy()))
        return make([parameter], lr=0.1, **options), parameter

    with install(mode="fast"):
        cuda = get_device("cuda")
        optimizer, parameter = start(BIASED, cuda)
        steps(optimizer, parameter, gradients[:2], cuda)
        state, values = optimizer.state_dict(), parameter.numpy()
        assert all(isinstance(v, np.ndarray | float | int | bool) for v in state.values())
        steps(optimizer, parameter, gradients[2:], cuda)
        other, again = start(values, cuda)
        other.load_state_dict(state)
        steps(other, again, gradients[2:], cuda)
        np.testing.assert_array_equal(again.numpy(), parameter.numpy())
        optimizer, on_cpu = start(BIASED, CPU)
        steps(optimizer, on_cpu, gradients, CPU)
        np.testing.assert_allclose(parameter.numpy(), on_cpu.numpy(), rtol=1e-6)


# The doctor


@pytest.fixture
def compiled_ahead(monkeypatch):
    """Leave out what the doctor does before its checks, which the fake does not need."""
    compiler = pytest.importorskip("minitl.kernels.cuda.compiler")
    monkeypatch.setattr(compiler, "variants", lambda _: [])


@needs_checker
@pytest.mark.usefixtures("compiled_ahead")
def test_the_doctor_finds_a_healthy_gpu_healthy_and_checks_every_kernel(capsys):
    pytest.importorskip("cuda.bindings.nvrtc")
    from minitl.kernels.cuda import avgpool_kernels, conv2d, conv2d_weight
    from tests.test_cuda_compile import BUDGETS  # has every other kernel

    with install() as gpu, launched() as found:
        assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cuda:0 works" in text
    assert text.count(" ok ") > 50
    assert "sm_90a" in text
    of_numba = {name for name, f in vars(avgpool_kernels).items() if hasattr(f, "py_func")}
    assert {name for name, _, _ in gpu.launches} == set(BUDGETS) | of_numba
    met = {(stem, defines) for stem, _, defines in found}
    for module in (conv2d, conv2d_weight):  # in every tile, copied by vectors
        stem = module.__name__.split(".")[-1]
        for variant in module.VARIANTS:
            if variant["T"] != "double" and 1 not in (variant["PIECE_A"], variant["PIECE_B"]):
                assert (stem, frozenset(variant.items())) in met, variant


@needs_checker
@pytest.mark.usefixtures("compiled_ahead")
def test_the_doctor_finds_a_wrong_kernel_and_one_that_fails(capsys, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    from minitl import doctor

    cuda = kernel_module("cuda")
    few = [check for check in doctor.CHECKS if check.name in ("add", "relu", "concat")]
    monkeypatch.setattr(doctor, "CHECKS", few)
    monkeypatch.setattr(doctor, "TILED", ())

    def broken(x):
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access")

    monkeypatch.setattr(cuda, "add_forward", lambda x, y: cuda.relu_forward(x))
    monkeypatch.setattr(cuda, "relu_forward", broken)
    with install():
        assert main(["doctor"]) == 1
    text, error = capsys.readouterr()
    assert "WRONG  RuntimeError: cudaErrorIllegalAddress" in text
    assert "concat" in text
    assert "4 checks failed" in error  # in float32 and in bf16


@needs_checker
@pytest.mark.usefixtures("compiled_ahead")
def test_the_doctor_survives_a_card_that_no_longer_answers(capsys, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    from minitl import doctor

    monkeypatch.setattr(doctor, "CHECKS", ())
    monkeypatch.setattr(doctor, "TILED", ())
    with install() as gpu:

        def refuse(self):
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access")

        monkeypatch.setattr(gpu.cupy.cuda.Stream, "synchronize", refuse)
        assert main(["doctor"]) == 1
    text, error = capsys.readouterr()
    assert "waiting for the card              WRONG  CUDA_ERROR_ILLEGAL_ADDRESS" in text
    assert "do not trust it" in error


@pytest.mark.parametrize(("machine", "words"), [({"count": 0}, "no GPU"), ({}, "give --device")])
def test_the_doctor_says_what_is_missing(capsys, machine, words):
    pytest.importorskip("cuda.bindings.nvrtc")
    with install(**machine):
        assert main(["doctor", "--device", "cuda" if machine else "cpu"]) == 1
    text, error = capsys.readouterr()
    assert "NVRTC" in text
    assert re.search(r"NVVM +\d", text)
    assert words in error


def test_the_doctor_goes_on_without_what_average_pooling_alone_needs(capsys, monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setitem(sys.modules, "numba.cuda.cudadrv.nvvm", None)
    with install(count=0):
        assert main(["doctor"]) == 1
    text, error = capsys.readouterr()
    assert re.search(r"NVVM +does not load: .*pip install 'numba-cuda\[cu1[23]\]'", text)
    assert "no GPU" in error


def test_the_doctor_compiles_ahead_and_says_how_far_it_is(capsys, monkeypatch, tmp_path):
    compiler = pytest.importorskip("minitl.kernels.cuda.compiler")
    from minitl import doctor

    forms = [(stem, {"T": kind}) for stem in ("optim", "mixing") for kind in ("float", "double")]
    monkeypatch.setattr(compiler, "variants", lambda _: [*forms, ("optim", {"T": "no type"})])
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "PROGRESS", -1)
    for name in ("CHECKS", "TILED", "OPTIMIZERS", "CHANGES"):
        monkeypatch.setattr(doctor, name, {})
    for name in ("_average_error", "_clipping_error", "_pictures_error"):
        monkeypatch.setattr(doctor, name, lambda *_: 0.0)
    references = []
    monkeypatch.setattr(doctor, "start_compiling_references", lambda: references)
    references.append(mock.Mock())
    with install():
        assert main(["doctor"]) == 0
        text = capsys.readouterr().out
        assert "compiling kernels" in text
        assert "  2 of 3\n" in text  # what does not compile is said by the check that needs it
        # Doubles are for gradient checks alone.
        assert len(list(tmp_path.glob("*.cubin"))) == 2
        monkeypatch.setattr(compiler, "variants", lambda _: forms)
        assert main(["doctor"]) == 0
        assert "compiling kernels" not in capsys.readouterr().out
    references[0].join.assert_called_once_with()


def test_what_the_doctor_compares_with_is_compiled_beside_in_processes(monkeypatch):
    from minitl import doctor

    ran = []
    monkeypatch.setattr(doctor, "_operation_error", lambda check, *_: ran.append(check))
    for family in doctor.FAMILIES:
        doctor._run_family(family)
    assert sorted(map(id, ran)) == sorted(map(id, (*doctor.CHECKS, *doctor.TILED)))
    monkeypatch.setattr(doctor, "FAMILIES", ("of no check",))
    (process,) = doctor.start_compiling_references()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("driver", "missing", "words"),
    [
        (
            13010,
            ["cupy"],
            ["cupy-cuda13x:", "'minitl[cuda13]'", "pip install 'cupy-cuda13x' these"],
        ),
        (
            12080,
            ["cuda.bindings.nvrtc", "numba_cuda"],
            ["cuda-bindings==12.*, numba-cuda[cu12]:", "'minitl[cuda12]'"],
        ),
    ],
)
def test_the_doctor_names_all_that_is_missing(capsys, monkeypatch, driver, missing, words):
    from minitl import doctor

    monkeypatch.setattr(doctor, "_driver_version", lambda: driver)
    with install(), monkeypatch.context() as patch:
        for name in missing:
            patch.setitem(sys.modules, name, None)
        assert main(["doctor"]) == 1
    text, error = capsys.readouterr()
    assert all(word in error for word in words), error
    assert text.count("is not installed") == len(missing)


def test_the_doctor_tells_what_does_not_load_from_what_is_not_there(monkeypatch, tmp_path, capsys):
    compiler = pytest.importorskip("minitl.kernels.cuda.compiler")
    from minitl import doctor

    (tmp_path / "numba_cuda.py").write_text("raise ImportError('libnvvm.so.4: no such file')")
    monkeypatch.setattr(doctor, "_driver_version", lambda: 13000)
    with install():
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "numba_cuda", raising=False)
            patch.syspath_prepend(tmp_path)
            assert main(["doctor"]) == 1
        text, error = capsys.readouterr()
        assert "numba_cuda does not load: libnvvm.so.4" in text
        assert "pip install 'numba-cuda[cu13]'" in error

        def fail():
            raise RuntimeError("Failed to dlopen libnvrtc.so.13\nand more")

        monkeypatch.setattr(compiler, "version", fail)
        assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "does not load (Failed to dlopen libnvrtc.so.13)" in error
    assert "cuda-toolkit[nvrtc,cudart]==13.*" in error


# Commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "no GPU that CUDA can use"),
        (["--device", "cuda:1", "--precision", "half"], "float32, tf32, bf16"),
        (["--precision", "tf32"], "needs a GPU: give --device cuda"),
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(tmp_path, capsys, arguments, words):
    out = tmp_path / "run"
    with install(count=0):
        code = main(
            ["finetune", str(tmp_path), "--arch", "resnet18", "--out", str(out), *arguments]
        )
    assert code == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_beside_a_gpu_each_core_decodes():
    from minitl.data.loader import usable_cores
    from minitl.train.config import make_config

    given = {"data": "pictures", "arch": "resnet18"}
    assert make_config(None, given).workers == 1
    assert make_config(None, given | {"device": "cuda:0"}).workers == usable_cores()
    assert make_config(None, given | {"device": "cuda", "workers": 3}).workers == 3
