"""What all tests share: how hypothesis runs."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Two windows on one screen take the focus from each other: each process of tests starts a screen of its own.
if os.environ.get("PYTEST_XDIST_WORKER") and shutil.which("Xvfb"):
    os.environ.pop("DISPLAY", None)

# No deadline: a slow machine is no fault. In CI the examples stay the same, so a red run can be repeated.
settings.register_profile("house", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "house")


@pytest.fixture(autouse=True, scope="module")
def no_window_left_over() -> Iterator[None]:
    """What is left of a window dies here, in its own thread, and not in one that a later test starts."""
    yield
    gc.collect()
