"""Hypothesis profiles: `ci` finds the same examples every time; `thorough` looks for new ones.

HYPOTHESIS_PROFILE=thorough python -m pytest

Kernels are compiled for narrower vectors than the machine's as well, because those are tested too.
"""

import os

from hypothesis import settings

os.environ.setdefault("MINITL_EVERY_WIDTH", "1")  # before kernels are imported

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
