"""Hypothesis profiles: `ci` finds the same examples every time; `thorough` looks for new ones.

HYPOTHESIS_PROFILE=thorough python -m pytest
"""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
