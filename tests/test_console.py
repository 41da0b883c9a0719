"""What a run shows: results on standard output, everything else on standard error."""

from types import SimpleNamespace

import pytest

from minitl.train.console import announce_compilation


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_notice_about_compiling_stays_out_of_results(capsys, kind):
    """Standard output may be JSON that another program reads."""
    kernels = SimpleNamespace(on_first_compile=lambda announce, training: announce())
    announce_compilation(SimpleNamespace(kind=kind, kernels=kernels))
    output = capsys.readouterr()
    assert output.out == ""
    assert f"compiling {kind.upper()} kernels" in output.err
