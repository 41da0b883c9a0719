"""Hypothesis profiles: `ci` finds the same examples every time; `thorough` looks for new ones.

HYPOTHESIS_PROFILE=thorough python -m pytest

What tests keep for later runs goes to a folder of their own, not to the user's.
"""

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores: threads without work must not keep one busy while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=15)
settings.register_profile("thorough", deadline=None, max_examples=500)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items):
    """Leave out what takes long, but in the thorough profile."""
    if PROFILE != "thorough":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes long: HYPOTHESIS_PROFILE=thorough"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Set $MINITL_CACHE, for processes that tests start as well."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MINITL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
