"""The benchmarks: nothing wrong is timed, figures are complete, and the command line explains itself."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import kernels, machine, report, rivals, shapes, step
from benchmarks.cases import operations
from benchmarks.timing import by_turns
from benchmarks.verify import verify
from minitl.kernels import cpu

ROOT = Path(__file__).parent.parent
PEAKS = {"gflops": 100.0, "gbytes": 10.0}
FAST = {"samples": 2, "least_samples": 2, "pause": 0.0}


def small(layer):
    """Return the same kind of layer at a size that takes no time."""
    most = {"sgd": 999, "adam": 999}.get(layer.op, 40)
    return replace(
        layer,
        size=min(layer.size, 12),
        channels=min(layer.channels, most),
        filters=min(layer.filters, most),
    )


NETWORK = {"tiny": Counter(small(layer) for layer in shapes.distinct())}
CASES = [(maker, layer) for maker, layer, _ in kernels.select(("*",), NETWORK)]


@pytest.mark.parametrize(("maker", "layer"), CASES, ids=lambda v: getattr(v, "op", None))
def test_every_operation_is_right_and_every_rival_too(maker, layer):
    with torch.no_grad():
        check = verify(maker.make(layer, 2))
    assert check.passed
    assert check.rival_error < 1e-4


def test_a_wrong_kernel_is_refused(monkeypatch, capsys):
    right = cpu.conv2d_forward

    def wrong(*arguments):
        y = right(*arguments)
        y[0, 0, 0, 0] += 0.001 * np.abs(y).max()
        return y

    layer = shapes.Layer("conv2d", 8, 5, 6, 3, 1, 1)
    maker = next(operations(layer))
    assert kernels.measure(maker, layer, 2, PEAKS, **FAST)["verified"]
    monkeypatch.setattr(cpu, "conv2d_forward", wrong)
    row = kernels.measure(maker, layer, 2, PEAKS, **FAST)
    assert not row["verified"]
    assert "ms" not in row
    assert row["error"] == pytest.approx(0.001, rel=0.01)
    report.KernelTable().show(row)
    report.show_kernel_summary([row | {"uses": {}}], {})
    assert capsys.readouterr().out.count("WRONG") == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(monkeypatch, bad):
    monkeypatch.setattr(cpu, "relu_forward", lambda x: np.full_like(x, bad))
    maker = next(operations(shapes.Layer("relu", 3, 4)))
    assert not verify(maker.make(shapes.Layer("relu", 3, 4), 2)).passed


def test_rows_have_all_figures(capsys):
    table = report.KernelTable()
    rows = kernels.run(("conv2d_*", "sgd_step"), 1, PEAKS, table.show, NETWORK, **FAST)
    figures = {"op", "shape", "algorithm", "uses", "verified", "error", "rival_error", "bound"}
    figures |= {"flops", "bytes", "ms", "spread", "gflops", "share_of_peak", "rivals_ms"}
    figures |= {"rival", "rival_ms", "rival_spread", "ratio"}
    assert {row["op"] for row in rows} > {"conv2d_forward", "conv2d_dx", "conv2d_dw", "sgd_step"}
    for row in rows:
        assert set(row) == figures
        assert row["rival_ms"] == min(row["rivals_ms"].values())
        assert row["ratio"] == pytest.approx(row["rival_ms"] / row["ms"])
    totals = kernels.totals(rows)
    assert set(totals) == {f"tiny {row['op']}" for row in rows}
    report.show_kernel_summary(rows, totals)
    assert all(len(line) <= 110 for line in capsys.readouterr().out.splitlines())


def test_contenders_take_turns():
    calls = []
    contenders = {name: lambda n=name: calls.append(n) for name in "AB"}
    times = by_turns(contenders, samples=3, least_samples=3, pause=0)
    assert {len(t) for t in times.values()} == {3}
    runs = [a for a, b in zip(calls, [*calls[1:], None], strict=True) if a != b]
    assert runs == ["A", "B"] * 4  # once to learn how long a call takes


def test_networks_have_the_published_sizes():
    # Multiply-adds (He et al. 2015, table 1; convolutions and dense layers) and parameters.
    for name, multiply_adds, parameters in (
        ("resnet18", 1.81e9, 11_689_512),
        ("resnet50", 4.09e9, 25_557_032),
        ("vgg16", 15.47e9, 138_357_544),
    ):
        total = 0
        for layer, count in shapes.NETWORKS[name].items():
            if layer.op in ("conv2d", "linear"):
                after = (layer.size + 2 * layer.padding - layer.kernel) // layer.stride + 1
                after = after if layer.op == "conv2d" else 1
                total += count * after**2 * layer.kernel**2 * layer.channels * layer.filters
        assert total == pytest.approx(multiply_adds, rel=0.01), name
        assert shapes.Layer("sgd", 1, parameters) in shapes.NETWORKS[name]


def test_quick_selects_one_of_each_class():
    ops = {maker.op for maker, _, _ in kernels.select(kernels.QUICK)}
    assert {"conv2d_forward", "conv2d_dx", "conv2d_dw", "batchnorm_add_relu_dx"} <= ops
    for pattern in kernels.QUICK:
        assert list(kernels.select((pattern,))), pattern
    assert {u for _, _, uses in kernels.select(("resnet18",)) for u in uses} >= {"resnet18"}


def test_peaks_and_roof():
    peaks = machine.measure_peaks(quick=True)
    assert peaks["gflops"] > 1
    assert peaks["gbytes"] > 0.1
    assert machine.roof(2e9, 1e3, PEAKS) == pytest.approx(20)
    assert machine.roof(2, 1e9, PEAKS) == pytest.approx(100)


def test_folding_keeps_the_rivals_result():
    network = rivals.make("resnet50").eval()
    for name, value in network.named_buffers():
        if name.endswith("running_var"):
            value.fill_(1.5)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(rivals.fold(network)(x), expected, rtol=1e-3, atol=1e-3)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def contender(name, engine, values, task="training"):
    made = object.__new__(step.Contender)
    made.name, made.spec, made.values = name, {"engine": engine, "task": task}, values
    return made


def test_contenders_that_disagree_are_refused():
    torch_one = contender("PyTorch", "torch", [7.0, 6.0, 5.0])
    for values, word in (
        ([7.0, 6.0, 5.0], ""),
        ([7.001, 6.0, 5.01], ""),
        ([7.05, 6.0, 5.0], "first"),
        ([7.0, 6.0, 5.1], "third"),
        ([float("nan"), 6.0, 5.0], "first"),
    ):
        problem = step.disagreement([contender("minitl", "minitl", values), torch_one], "training")
        assert word in problem
        assert bool(problem) == bool(word)
    assert step.disagreement([torch_one], "training")


@pytest.fixture(scope="module")
def quick_step(tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "step.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "step",
        "--quick",
        "--size",
        "64",
        "--batch",
        "4",
    ]
    command += ["--rounds", "2", "--profile", "--no-startup", "--tasks", "training"]
    done = subprocess.run(
        [*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout, json.loads(path.read_text())


def test_step_from_the_outside(quick_step):
    output, result = quick_step
    assert {"command", "date", "machine", "settings", "groups"} <= set(result)
    assert {"cpu", "cores", "versions", "commit"} <= set(result["machine"])
    assert [group["task"] for group in result["groups"]] == ["training"]
    for group in result["groups"]:
        assert group["verified"]
        assert group["ratio"] > 0
        assert len(group["contenders"]) == 3
        for c in group["contenders"]:
            assert c["difference"] < step.SAME
            assert c["ms"] > 0
            assert c["peak_mb"] > 50
            assert {"name", "spread", "ratio", "faults_per_step", "first_step_s"} <= set(c)
        names = {name for name, _, _ in group["profile"]}
        assert "conv2d_forward" in names
    assert all(len(line) <= 110 for line in output.splitlines()[3:])


def test_kernels_from_the_outside(tmp_path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / "kernels.json", tmp_path / "kernels.png"]
    command = [sys.executable, "-m", "benchmarks", "kernels", "--quick", "--batch", "1"]
    command += ["--only", "linear_* 2048-1000", "--only", "global_avgpool2d_* 2048 7px"]
    command += ["--json", str(files[0]), "--plot", str(files[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(files[0].read_text())
    assert {"command", "date", "machine", "settings", "peaks", "rows", "totals"} <= set(result)
    assert len(result["rows"]) == 5
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernels", "--only", "conv3d*"], "matches nothing"),
        (["kernels", "--plot", "missing/folder/a.png"], "there is no folder"),
        (["step", "--models", "vgg19"], "choose from resnet18, resnet50"),
        (["step", "--tasks", "sleeping"], "choose from training, frozen, inference"),
        (["step", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_wrong_arguments_are_explained(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 2
    assert says in capsys.readouterr().err


def test_a_missing_library_names_the_extra(monkeypatch, capsys):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    monkeypatch.setattr(sys, "argv", ["benchmarks", "kernels", "--quick"])
    assert command.main() == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err
