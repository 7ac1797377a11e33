"""What the scripts that measure this program alone share: the program, and how they tell a figure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import lunobiz as lb

__all__ = ["lb", "tell"]


def tell(id_: str, text: str, most: float, actual: float, unit: str, note: str = "") -> None:
    """A figure that must not be exceeded, as a line for `run.py`."""
    figure = {"id": id_, "text": text, "needed": most, "actual": actual, "least": False, "unit": unit, "note": note}
    print(json.dumps(figure), flush=True)
