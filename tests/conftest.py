"""What all tests share: how hypothesis runs."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: a slow machine is no fault. In CI the examples stay the same, so a red run can be repeated.
settings.register_profile("house", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "house")
