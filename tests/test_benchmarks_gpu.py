"""The GPU run as far as it goes without one: its cases are right, its stages, clock and report hold."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("cuda.bindings.nvrtc")
from benchmarks.gpu import report, run
from benchmarks.shapes import NETWORKS, Layer
from minitl.kernels.cuda import compiler
from tests.cuda_on_cpu import host_module
from tests.cuda_on_cpu.fake_cupy import install

ROOT = Path(__file__).parent.parent
needs_checker = pytest.mark.skipif(not host_module.HERE_IT_RUNS, reason=host_module.REASON)


@needs_checker
def test_every_case_is_verified_and_a_wrong_one_refused() -> None:
    with install():
        from benchmarks.gpu import kernels

        layer = Layer("conv2d", 6, 8, 16, 3, 2, 1)
        cases = [
            *kernels._directions(layer, 2, "bf16", 1),
            *kernels._directions(layer, 2, "tf32", 1),
        ]
        cases += kernels.memory_bound(2, 3, 16)
        for case in cases:
            row = kernels.measure(case, timed=False)
            assert row["verified"], row
            assert case.bytes > 0 and (case.flops > 0) == case.op.startswith("conv2d")
        right = cases[0].ours
        cases[0].ours = lambda *arrays: kernels.cuda.relu_forward(right(*arrays))
        row = kernels.measure(cases[0])
        assert not row["verified"] and "ms" not in row


@needs_checker
def test_recorded_calls_compute_what_they_computed() -> None:
    with install(mode="fast") as gpu:
        from benchmarks.gpu.timing import by_turns, record_minitl
        from minitl.kernels import cuda

        x = gpu.cupy.asarray(np.array([-1, 2, -3], np.float32))
        results = []

        def call():
            results.append(cuda.relu_forward(x))
            return results[-1]

        recorded = record_minitl([call])
        times = by_turns({"ours": recorded}, rounds=2)
        assert times["ours"] >= 0
        assert gpu.cupy.asnumpy(results[-1]).tolist() == [0, 2, 0]


@needs_checker
@pytest.mark.parametrize("kind", ["float32", "tf32", "bf16"])
def test_numbers_are_the_same_on_both_sides(kind: str) -> None:
    with install():
        from benchmarks.gpu import arrays

        there = arrays.random(3, 5, precision=kind)
        back = arrays.to_torch(arrays.to_minitl(there))
        assert back.dtype == there.dtype and torch.equal(back, there)


def test_memory_is_handed_over_when_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch and CuPy work on streams that do not wait for each other."""
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append("torch"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "as_tensor", lambda array, device: torch.tensor(array._array))
    monkeypatch.setattr("benchmarks.gpu.arrays.device", lambda: torch.device("cpu"))
    with install(late=True) as gpu, gpu.cupy.cuda.Stream(non_blocking=True):
        from benchmarks.gpu import arrays

        there = arrays.random(3, 5)
        ours = arrays.to_minitl(there)
        assert waited == ["torch"]
        assert torch.equal(arrays.to_torch(ours), there)


def test_what_matters_most_comes_first() -> None:
    from benchmarks.gpu import kernels, step

    assert list(step.plan(target=True)) == [
        ("resnet50", "fine-tuning", 256, compiled) for compiled in (False, True)
    ]
    others = list(step.plan(target=False))
    assert others[0] == ("resnet50", "training", 256, False)
    assert {(name, task, batch) for name, task, batch, _ in others} >= {
        (name, task, batch)
        for name in ("resnet50", "resnet18")
        for task in step.TASKS
        for batch in (32, 256)
        if (name, task, batch) != ("resnet50", "fine-tuning", 256)
    }
    kinds = [(c.op.startswith("conv2d"), c.precision) for c in kernels.in_order()]
    assert list(dict.fromkeys(kinds)) == [
        (True, "bf16"), (True, "tf32"), (False, "bf16"), (False, "float32"), (True, "float32"),
    ]  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with the names of a ResNet, for both sides: the stem and one block."""
    from benchmarks import rivals
    from benchmarks.gpu import step
    from minitl.models import resnet

    depths = (1, 0, 0, 0)
    layers = {Layer("conv2d", 16, 3, 64, 7, 2, 3, first=True): 1}
    monkeypatch.setitem(rivals.NETWORKS, "tiny", (False, depths))
    monkeypatch.setitem(step.LAYERS, "tiny", layers)
    monkeypatch.setattr(step, "IMAGES", 4)
    monkeypatch.setattr(step, "NORMS", ("*bn[0-9].*",))

    def create(name: str, seed: int | None) -> resnet.ResNet:
        return resnet.ResNet(name, resnet.BasicBlock, depths, 1000, seed, resnet.Style(), {})

    monkeypatch.setattr(step.models, "create", create)


@needs_checker
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "task",
    [
        "fine-tuning",
        pytest.param("training", marks=pytest.mark.slow),
        "frozen backbone",
        "inference",
    ],
)
def test_steps_are_compared_with_those_of_torch_and_timed(task: str) -> None:
    with install(mode="fast"):
        from benchmarks.gpu import step
        from minitl.device import get_device

        with get_device("cuda").computing():
            row = step.compare("tiny", task, 4, size=16, compiled=False, rounds=1)
    assert row["verified"], row
    assert row["allowed"] < 0.5  # of bfloat16's own
    assert row["images_per_second"].keys() == {"minitl", "torch eager"}
    assert row["better"] == "torch eager" and row["ratio"] > 0
    forward, times = 2 * 8 * 8 * 64 * 3 * 49 / 1e9, 1 + (task in ("training", "fine-tuning"))
    assert row["gflop"] == pytest.approx(forward * times)


@needs_checker
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("wrong", ["one gradient", "momentum", "a layer that should stay"])
def test_a_step_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    with install(mode="fast"):
        from benchmarks.gpu import step
        from minitl import nn
        from minitl.device import get_device
        from minitl.kernels import cuda

        task = "fine-tuning"
        if wrong == "one gradient":
            right = cuda.conv2d_dw

            def conv2d_dw(dy, x, shape, **geometry):  # type: ignore[no-untyped-def]
                dw = right(dy, x, shape, **geometry)
                return cuda.scale_forward(dw, 0.5) if shape[1] == 7 else dw

            monkeypatch.setattr(cuda, "conv2d_dw", conv2d_dw)
        elif wrong == "momentum":
            make = step.optim.SGD
            monkeypatch.setattr(
                step.optim, "SGD", lambda p, lr, momentum: make(p, lr, momentum - 0.3)
            )
        else:
            task = "frozen backbone"
            monkeypatch.setattr(nn.Module, "freeze", lambda self, *names: None)
        with get_device("cuda").computing():
            row = step.compare("tiny", task, 4, size=16, compiled=False, rounds=1)
    assert not row["verified"] and "ms" not in row
    if wrong == "one gradient":
        assert row["worst"] in ("conv1.weight", "all weights")


def test_all_convolutions_of_the_network_are_there() -> None:
    from benchmarks.gpu import kernels

    cases = list(kernels.convolutions())
    forward = [case for case in cases if (case.op, case.precision) == ("conv2d_forward", "bf16")]
    assert sum(case.uses for case in forward) == 53
    layers = [layer for layer in NETWORKS["resnet50"] if layer.op == "conv2d"]
    assert len(cases) == 3 * (3 * len(layers) - 1)  # nobody needs dx of the first
    assert sum(c.uses * c.flops for c in forward) / kernels.BATCH == pytest.approx(8.2e9, rel=0.02)


def stage(name: str, code: str, limit: float = 60, **options: object) -> run.Stage:
    return run.Stage(name, (sys.executable, "-c", code, "{rows}", "{seconds}"), limit, **options)


def test_a_failing_stage_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write = 'import sys; f = open(sys.argv[1], \'w\'); f.write(\'{"peaks": {"copy_gbytes": 1000}}\\n{"op\''
    stages = [
        stage("broken", "print('my last words'); raise SystemExit(3)"),
        stage("kernels", f"{write}); f.flush(); import os; os._exit(1)", rows=True),
        stage("slow", "import time; time.sleep(60)", limit=6),
        stage("missing", "pass", needs="no-such-program"),
        stage("good", "pass"),
    ]
    result = run.run(tmp_path / "out", 60, stages)
    outcomes = {name: s["outcome"] for name, s in result["stages"].items()}
    assert outcomes == {
        "broken": "failed with 3",
        "kernels": "failed with 1",
        "slow": "stopped: it took too long",
        "missing": "left out: there is no no-such-program",
        "good": "passed",
    }
    assert "my last words" in result["stages"]["broken"]["last_words"]
    # Of a stage that died while it wrote, the whole lines are kept.
    assert result["stages"]["kernels"]["rows"] == [{"peaks": {"copy_gbytes": 1000}}]
    written = json.loads((tmp_path / "out/gpu.json").read_text())
    assert written["stages"].keys() == outcomes.keys()
    assert "Whole steps were not measured" in (tmp_path / "out/gpu.md").read_text()


def test_when_the_time_is_up_the_rest_is_left_out(tmp_path: Path) -> None:
    result = run.run(tmp_path, 4, [stage("late", "pass")])
    assert result["stages"]["late"]["outcome"] == "left out: no time left"


def test_the_stages_fit_into_their_time_and_name_what_exists(tmp_path: Path) -> None:
    stages = run.stages(tmp_path)
    assert run.TOTAL <= 8 * 60
    limits = {s.name: s.limit for s in stages}
    # What matters most has its time even if everything before it takes all that it may.
    first = ["compile", "doctor", "target", "kernels"]
    assert list(limits)[: len(first)] == first
    assert sum(limits[name] for name in first) <= 0.8 * run.TOTAL
    names = " ".join(Path(path).read_text() for path in run.cuda_tests())
    looked_at = set(run.SANITIZED.replace("(", "").replace(")", "").split()) - {"and", "or", "gpu"}
    assert len(looked_at) == 5 and all(word in names for word in looked_at)
    modules = [s.command[2] for s in stages if s.command[1:2] == ("-m",)]
    assert {"pytest", "minitl", "benchmarks.gpu.kernels"} <= set(modules)
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert module == "pytest" or path.is_dir() or path.with_suffix(".py").exists(), module
    tests = {Path(name).stem.removeprefix("test_cuda_") for name in run.cuda_tests()}
    parts = {
        "conv2d_passes",
        "conv2d_weight",
    }  # of conv2d; what Numba compiles, the doctor looks at
    launchers = {path.stem for path in compiler.FOLDER.glob("*.cu")}
    assert tests == launchers - parts | {"linear", "variants"}


def test_every_variant_is_compiled_ahead() -> None:
    stems = {stem for stem, _ in compiler.variants("sm_80")}
    assert stems == {path.stem for path in compiler.FOLDER.glob("*.cu")}
    assert len(compiler.variants("sm_90a")) > len(compiler.variants("sm_80"))  # by warpgroups


def test_the_report_shows_figures_and_what_is_missing(tmp_path: Path) -> None:
    conv = {"op": "conv2d_dx", "shape": "3x3", "precision": "bf16", "verified": True, "error": 0.0}
    rows = [
        {"peaks": {"bf16_tflops": 800.0, "copy_gbytes": 4000.0}},
        conv | {"ms": 1.0, "tflops": 400.0, "gbytes": 2000.0, "rival_ms": 0.5, "ratio": 0.5},
        conv
        | {
            "shape": "1x1",
            "ms": 1.0,
            "tflops": 400.0,
            "gbytes": 1.0,
            "rival_ms": 2.0,
            "ratio": 2.0,
            "by_single_warps": 1.25,
        },
        conv | {"verified": False, "error": 0.1, "bound": 0.01},
        {
            "op": "add_forward",
            "shape": "big",
            "precision": "bf16",
            "ms": 1.0,
            "tflops": 0.0,
            "gbytes": 3000.0,
        },
        {"unfinished": "no time left for more"},
    ]
    step = {
        "model": "resnet50", "task": "training", "batch": 256, "ratio": 1.5, "better": "torch eager",
        "difference": 0.001, "allowed": 0.002, "worst": "all weights", "gflop": 24.0, "bytes": 250e6,
        "images_per_second": {"minitl": 3000.0, "torch eager": 2000.0}, "ms": {"minitl": 64.0},
        "memory_gb": {"minitl": 20.0, "torch eager": 25.0},
    }  # fmt: skip
    wrong_step = {
        "model": "resnet50", "task": "fine-tuning", "batch": 256, "verified": False,
        "difference": 0.5, "allowed": 0.1, "worst": "conv1.weight",
    }  # fmt: skip
    result = {
        "date": "today", "command": "c", "gpu": {}, "machine": {"commit": "x", "python": "3", "versions": {}},
        "stages": {
            "kernels": {"outcome": "passed", "seconds": 1.0, "rows": rows},
            "target": {"outcome": "passed", "seconds": 1.0, "rows": [wrong_step]},
            "steps": {"outcome": "passed", "seconds": 1.0, "rows": [step, {"unfinished": "late"}]},
        },
    }  # fmt: skip
    text = report.markdown(result)
    assert "| bf16 | nan | 1.00 | nan | 1.00 |" in text  # the geometric mean of 1/2 and 2
    assert "| bf16, beside our own by single warps | nan | 1.25 | nan | 1.25 |" in text
    # 400 of 800 TFLOP/s are a floor of half the time; half the copy's bytes a second are one of half as well.
    assert "| 1.0000 | 0.5000 | 50% | 400.0 | 2,000 | 0.50 | cuDNN |" in text
    assert "| 2.00 | minitl |" in text and "wrong: error 1.0e-01 above 1.0e-02" in text
    assert "75% (below 85 %)" in text and "no time left for more" in text
    # 256 pictures of 250 MB at 4 TB/s are 16 ms, more than 24 GFLOP each at 800 TFLOP/s.
    line = "3,000 | 2,000 |  | 1.50 (torch eager) | 25% | 1.0e-03 of 2.0e-03, all weights | 20.0, 25.0 |"
    assert f"| resnet50 | training | 256 | {line}" in text
    assert "not timed: conv1.weight differ from PyTorch" in text and "5.0e-01 of 1.0e-01" in text
    report.plots(result, tmp_path)
    assert (tmp_path / "convolutions.png").stat().st_size > 5000
    assert (tmp_path / "steps.png").stat().st_size > 5000


def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
