"""What the tests of Keras files ask of a conversion."""

import numpy as np
import pytest

from minitl import Tensor, models, no_grad
from minitl.convert import convert
from minitl.errors import UserError


def pictures(size, count=2, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (count, size, size, 3)).astype(np.float32)


def check(path, net, size=None, bound=1e-5, **options):
    """Convert a file, compare the logits with the reference's, and return the report."""
    target = path.parent / "out.h5"
    report = convert(path, target, overwrite=True, **options)
    assert report.complete and report.written
    x = pictures(size or net.size)
    with no_grad():
        found = models.load_model(target).eval()(Tensor(x)).data
    expected = net.logits(x)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    return report


def refused(path, *words, **options):
    """Convert; demand one line with the file's name and these words, and that nothing was written."""
    folder = {p.name for p in path.parent.iterdir()}
    options = {"preprocessing": "raw"} | options
    with pytest.raises(UserError) as caught:
        convert(path, path.parent / "out.h5", **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.isprintable(), message
    for word in words:
        assert word in message, message
    assert {p.name for p in path.parent.iterdir()} == folder
    return message
