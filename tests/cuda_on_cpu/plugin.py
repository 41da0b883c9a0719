"""A plugin of pytest: tests that were written for the CPU compute with the CUDA kernels instead.

    HYPOTHESIS_PROFILE=brief python -m pytest -p tests.cuda_on_cpu.plugin tests/test_conv2d.py

NumPy arrays pass for CuPy's, so `minitl.backend` finds the CUDA launchers for them; the kernels run on the
CPU. `DESELECTED` says which tests stay out, and why.
"""

import contextlib

import pytest
from hypothesis import settings

from tests.cuda_on_cpu.fake_cupy import install

settings.register_profile("brief", derandomize=True, deadline=None, max_examples=4)

DESELECTED: dict[str, str] = {}

_installed = contextlib.ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Install the fake for the whole run."""
    _installed.enter_context(install(mode="fast", strict=False))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take it away again."""
    _installed.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about the CPU."""
    out = [item for item in items if item.nodeid.split("/")[-1].split("[")[0] in DESELECTED]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)
