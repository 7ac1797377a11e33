"""The figures to reach, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from systems import Result

Results = Mapping[str, Mapping[str, Result]]  # by work and system
MINE, LIMIT = "this program", "compiled"


class Figure(NamedTuple):
    """One line of the verdict; `least` is true where more is better."""

    id: str
    text: str
    needed: float
    actual: float
    least: bool = True
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        """Reached, missed or not measured."""
        if math.isnan(self.actual):
            return "not measured"
        is_reached = self.actual >= self.needed if self.least else self.actual <= self.needed
        return "reached" if is_reached else "missed"


def _cpu(results: Results, work: str, system: str) -> float:
    found = results.get(work, {}).get(system)
    return found.cpu_s if found is not None else math.nan


def faster(id_: str, work: str, system: str, times: float, results: Results) -> Figure:
    """This program must need this many times less CPU than another system."""
    mine, other = _cpu(results, work, MINE), _cpu(results, work, system)
    return Figure(id_, f"work {work}: CPU of {system} / ours", times, other / mine if mine else math.nan)


def near_limit(id_: str, work: str, times: float, results: Results) -> Figure:
    """This program may need this many times the compiled limit."""
    mine, limit = _cpu(results, work, MINE), _cpu(results, work, LIMIT)
    return Figure(id_, f"work {work}: our CPU / compiled limit", times, mine / limit if limit else math.nan, False)


def small(id_: str, work: str, most_mb: float, results: Results) -> Figure:
    """This program's process may have this much memory; a few sets of a sweep say nothing about all of them."""
    mine = results.get(work, {}).get(MINE)
    is_whole = mine is not None and mine.share == 1
    peak = mine.peak_mb if mine is not None and is_whole else math.nan
    note = "" if is_whole else "needs all sets"
    return Figure(id_, f"work {work}: our peak memory", most_mb, peak, False, "MB", note)


def of_works(results: Results) -> list[Figure]:
    """All figures that works A to WF give, of the works that were measured."""
    found = [
        faster("PA", "A", "backtesting", 60, results), near_limit("PA", "A", 3, results),
        faster("PB", "B", "backtesting", 100, results), faster("PB", "B", "vectorbt", 3, results),
        small("PB", "B", 150, results),
        faster("PC", "C", "nautilus", 100, results), faster("PC", "C", "freqtrade", 150, results),
        faster("PC", "C", "backtrader", 150, results), faster("PC", "C", "vectorbt", 1, results),
        near_limit("PC", "C", 6, results),
        near_limit("PP", "PF", 4, results),
        near_limit("PW", "WF", 2, results), small("PW", "WF", 500, results),
    ]
    return [f for f in found if f.text.split()[1].rstrip(":") in results]
