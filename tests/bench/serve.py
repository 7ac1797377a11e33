"""What each measured system does: prepare one work, then run it each time it is told to, and say what it took.

A system is a script started as `python SCRIPT WORK CANDLES SETS`. It imports, reads and converts (not measured),
says that it is ready, and runs the work once for each line on its stdin. What counts is the CPU time of the process,
its threads and its ended children, from candles in memory to the profit, indicators included.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from market import Candles, load
from works import RULES, Outcome, Rule, some_rules

Run = Callable[[], Outcome]
Prepare = Callable[[Candles, tuple[Rule, ...]], Run]


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """The most memory this process, or its largest child, has had; the kernel tells it in kB, macOS in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    most = max(resource.getrusage(w).ru_maxrss for w in who)
    return most / (1024 * 1024 if sys.platform == "darwin" else 1024)


def timed(run: Run) -> dict[str, object]:
    """One run with what it took and what it came to."""
    wall, cpu = time.perf_counter(), _cpu_s()
    round_trips, profit = run()
    cpu, wall = _cpu_s() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "round_trips": int(round_trips), "profit": float(profit),
            "peak_mb": peak_mb()}


def serve(package: str, works: Mapping[str, Prepare]) -> None:
    """Answer on the real stdout, one JSON object a line; what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def say(value: Mapping[str, object]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    work, file, sets = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    run = works[work](load(file), some_rules(sets))
    say({"version": version(package) if package else "", "share": sets / len(RULES)})
    for _ in sys.stdin:
        say(timed(run))
