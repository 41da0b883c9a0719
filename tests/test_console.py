"""What a run shows: results on standard output, everything else on standard error."""

import io
from types import SimpleNamespace

import pytest

from minitl.train.console import announce_compilation, say


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_notice_about_compiling_stays_out_of_results(capsys, kind):
    """Standard output may be JSON that another program reads."""
    kernels = SimpleNamespace(on_first_compile=lambda announce, training: announce())
    announce_compilation(SimpleNamespace(kind=kind, kernels=kernels))
    output = capsys.readouterr()
    assert output.out == ""
    assert f"compiling {kind.upper()} kernels" in output.err


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-8", r"grün caf\udce9"), ("latin-1", r"grün caf\udce9"), ("ascii", r"gr\xfcn caf\udce9")],
)
def test_what_a_terminal_cannot_show_is_spelled_out(monkeypatch, encoding, line):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
    say("grün caf\udce9")
    assert written.getvalue() == f"{line}\n".encode(encoding)
