"""What a run shows: results on standard output, everything else on standard error; honest speeds."""

import io
from types import SimpleNamespace

import numba
import pytest

from minitl import models
from minitl.cli import main
from minitl.kernels.cpu import jit
from minitl.train import console
from minitl.train.clock import COMPILING, Clock
from minitl.train.console import Progress, announce_compilation, say


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_notice_about_compiling_stays_out_of_results(capsys, kind):
    """Standard output may be JSON that another program reads."""
    kernels = SimpleNamespace(
        on_first_compile=lambda announce, training: announce(), compile_seconds=lambda: 0.0
    )
    announce_compilation(SimpleNamespace(kind=kind, kernels=kernels))
    output = capsys.readouterr()
    assert output.out == ""
    assert f"compiling {kind.upper()} kernels" in output.err


def test_commands_print_names_that_the_encoding_lacks(tmp_path, monkeypatch):
    model = models.create("mlperf_resnet8", num_classes=2, seed=0)
    model.class_names = ["猫", "x"]
    models.save_model(model, tmp_path / "m.h5")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "cp1252"))
    assert main(["inspect", str(tmp_path / "m.h5")]) == 0
    assert "\\u732b" in written.getvalue().decode("cp1252")


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-8", r"grün caf\udce9"), ("latin-1", r"grün caf\udce9"), ("ascii", r"gr\xfcn caf\udce9")],
)
def test_what_a_terminal_cannot_show_is_spelled_out(monkeypatch, encoding, line):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
    say("grün caf\udce9")
    assert written.getvalue() == f"{line}\n".encode(encoding)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time(monkeypatch):
    """A clock that tests set, and what of it was spent on compiling."""
    time = SimpleNamespace(now=1000.0, compiling=50.0)
    monkeypatch.setattr(console, "_compiling", {})
    monkeypatch.setattr("time.monotonic", lambda: time.now)
    monkeypatch.setattr("time.perf_counter", lambda: time.now)
    kernels = SimpleNamespace(
        on_first_compile=lambda announce, training: None, compile_seconds=lambda: time.compiling
    )
    announce_compilation(SimpleNamespace(kind="cpu", kernels=kernels))
    return time


def test_compiling_does_not_count_in_the_time_that_is_left(time):
    log = io.StringIO()
    with Progress("epoch 1/1", 100, log, unit="step") as progress:
        time.now += 31.0
        time.compiling += 30.0
        progress.update(10)
        time.now += 10.0
        progress.update(40)
    line = log.getvalue().splitlines()[0]
    assert "10/100 step  " in line and "10.0 step/s  9 s left" in line


def test_nor_in_that_of_a_live_bar(time):
    with Progress("epoch 1/1", 100, Terminal()) as progress:
        bar = progress._bar
        bar._time = lambda: time.now  # which tqdm takes when it is imported
        bar.start_t = bar.last_print_t = time.now
        time.now += 31.0
        time.compiling += 30.0
        progress.update(10)
        assert bar.format_dict["rate"] == pytest.approx(10)
        assert bar.format_dict["elapsed"] == pytest.approx(31)
        time.now += 2.0
        progress.update(20)
        assert bar.format_dict["rate"] == pytest.approx(10)


def test_compiling_is_a_time_of_its_own(time):
    clock = Clock({"training": 5.0})
    with clock.measure("training"):
        time.now += 12.0
        time.compiling += 10.0
    with clock.measure("validation"):
        time.now += 1.0
    assert clock.seconds == {"training": 7.0, COMPILING: 10.0, "validation": 1.0}


def test_seconds_of_compiling_are_those_of_numba():
    first = numba.njit(lambda x: x - 1)  # with it Numba loads what it needs
    inner = numba.njit(lambda x: x + 1)
    outer = numba.njit(lambda x: inner(x) * 2)
    foreign = numba.njit(lambda x: x / 2)
    for dispatcher in (first, inner, outer):
        dispatcher.py_func.__module__ = "minitl.kernels.cpu.example"
    assert first(3) == 2
    started, before = console.time.perf_counter(), jit.compile_seconds()
    assert outer(3) == 8
    took, counted = console.time.perf_counter() - started, jit.compile_seconds() - before
    assert 0.3 * took < counted <= took  # one inside the other, and yet once
    assert outer(4) == 10 and foreign(4) == 2  # there already; not ours
    assert jit.compile_seconds() - before == counted
