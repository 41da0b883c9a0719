"""The compiler of the CUDA kernels and its cache; NVRTC needs no GPU."""

import multiprocessing

import pytest

from minitl.errors import UserError

pytest.importorskip("cuda.bindings.nvrtc")
from minitl.kernels.cuda import compiler

HEADER = "#define TWICE(x) ((x) + (x))\n"
SOURCE = '#include "h.cuh"\nextern "C" __global__ void k(T* y) { y[threadIdx.x] = TWICE(FACTOR * y[0]); }\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Kernels of our own, and a cache of their own."""
    (tmp_path / "k.cu").write_text(SOURCE)
    (tmp_path / "h.cuh").write_text(HEADER)
    monkeypatch.setattr(compiler, "FOLDER", tmp_path)
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compiler, "_announce", None)
    return tmp_path


def cubin(architecture="sm_80", **defines):
    return compiler.cubin_path("k", architecture, {"T": "float", "FACTOR": 3, **defines})


def compilations(monkeypatch):
    """Return a list that grows with each compilation."""
    done, compile_source = [], compiler.compile_source

    def counted(*args):
        done.append(args[1])
        return compile_source(*args)

    monkeypatch.setattr(compiler, "compile_source", counted)
    return done


def test_cubin_is_made_once_and_found_again(folder, monkeypatch):
    done = compilations(monkeypatch)
    path = cubin()
    assert path.read_bytes().startswith(b"\x7fELF")
    assert "Used" in path.with_suffix(".log").read_text()
    assert cubin() == path
    assert len(done) == 1


def test_everything_that_matters_makes_another_cubin(folder, monkeypatch):
    paths = {cubin(), cubin(T="double"), cubin(FACTOR=4), cubin("sm_90a")}
    (folder / "h.cuh").write_text(HEADER.replace("+", "*"))
    paths.add(cubin())
    (folder / "k.cu").write_text(SOURCE + "// more\n")
    paths.add(cubin())
    monkeypatch.setattr(compiler, "OPTIONS", ("--std=c++14",))
    paths.add(cubin())
    monkeypatch.setattr(compiler, "version", lambda: (99, 0))
    paths.add(cubin())
    assert len(paths) == 8


@pytest.mark.parametrize("damage", [b"", b"\x7fELF and then nothing"])
def test_damaged_entry_is_compiled_again(folder, monkeypatch, damage):
    path = cubin()
    whole = path.read_bytes()
    path.write_bytes(damage)
    done = compilations(monkeypatch)
    again = cubin()
    assert again.read_bytes() == whole
    assert len(done) == 1


def compile_in_process(folder, results):
    compiler.FOLDER, compiler.cache_folder = folder, lambda: folder
    results.put(cubin().read_bytes())


def test_processes_may_compile_at_once(folder):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=compile_in_process, args=(folder, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    contents = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert contents == {cubin().read_bytes()}
    assert not [p for p in folder.iterdir() if p.suffix not in (".cu", ".cuh", ".cubin", ".log")]


def test_first_compilation_is_announced_once(folder):
    announced, seconds = [], [compiler.compile_seconds()]
    compiler.on_first_compile(lambda: announced.append(0))  # by a run that found all it needed
    compiler.on_first_compile(lambda: announced.append(1))
    for factor in (3, 5, 5):
        cubin(FACTOR=factor)
        seconds.append(compiler.compile_seconds())
    assert announced == [1]
    assert seconds[0] < seconds[1] < seconds[2] == seconds[3]  # the last one is there already


def test_forms_compiled_ahead_are_there_and_an_error_costs_no_other(folder):
    (folder / "bad.cu").write_text(SOURCE + "nonsense;\n")
    forms = [(stem, {"T": "float", "FACTOR": n}) for stem, n in (("k", 3), ("bad", 3), ("k", 5))]
    jobs = list(compiler.compile_ahead(forms, "sm_80"))
    problems = [job.exception() for job in jobs if job.exception()]
    assert len(jobs) == 3 and len(problems) == 1
    assert "bad.cu does not compile" in str(problems[0])
    assert {job.result() for job in jobs if not job.exception()} == {
        cubin(FACTOR=factor) for factor in (3, 5)
    }


def test_mistake_is_shown_with_its_line(folder):
    (folder / "k.cu").write_text(SOURCE + "nonsense;\n")
    with pytest.raises(RuntimeError, match=r"(?s)k\.cu does not compile for sm_80.*k\.cu\(3\)"):
        cubin()


def test_unwritable_cache_falls_back_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        compiler.platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name
    )
    folder = compiler.cache_folder()
    assert folder.is_dir()
    assert tmp_path not in folder.parents


def test_architecture_of_a_card(monkeypatch):
    assert compiler.architecture((9, 0)) == "sm_90a"
    assert compiler.architecture((8, 6)) == "sm_86"
    with pytest.raises(UserError, match=r"8\.0 or later.*has 7\.5"):
        compiler.architecture((7, 5))
    with pytest.raises(UserError, match=r"cannot compile for compute capability 99\.0"):
        compiler.architecture((99, 0))


def test_resources_are_read_from_the_log(folder):
    found = compiler.compile_kernels("k", "sm_80", {"T": "float", "FACTOR": 1}).resources()
    assert list(found) == ["k"]
    assert found["k"].registers > 0
    assert found["k"].spilled == found["k"].shared == 0
