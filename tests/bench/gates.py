"""PG: how long a full evaluation of the gates takes, on five markets and three years of hourly candles.

Once on markets with a planted edge, where it should go through all permutations, and three times on markets without
one, where it should stop early. Both cores are used, so what counts is the clock on the wall; the CPU is in the note.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import market
import numpy as np
from own import lb, tell

HOURS, YEARS, PROCESSES = 26_304, 3, 2
BASES = ("AAA", "BBB", "CCC", "DDD", "EEE")
PASSES_S, FAILS_S = 300.0, 45.0
LEG_HOURS, EDGE = 480, 0.0012  # of planted trends: how long a leg is, and its drift in an hour


def in_processes(work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
    """Both cores; the answers come in the order of the parts, and who stops listening stops the work."""
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(work, parts)
    finally:
        pool.shutdown(cancel_futures=True)


def job(seed: int, edge: float) -> Any:
    """Three years of five markets; with an edge, legs that climb and fall in turn, each market at its own time."""
    made = market.generate(len(BASES), HOURS, seed)
    opened = market.START_MS - YEARS * 365 * lb.DAY_MS + np.arange(HOURS, dtype=np.int64) * lb.HOUR_MS
    candles = []
    for m, base in enumerate(BASES):
        legs = np.where((np.arange(HOURS) + m * 97) // LEG_HOURS % 2 == 0, edge, -edge)
        level = np.exp(np.cumsum(legs))
        prices = (np.round(1000 * (p[m] / 1000) ** math.sqrt(YEARS) * level, 2)
                  for p in (made.open, made.high, made.low, made.close))
        rules = lb.Market(base + "ZAR", base, "ZAR", 2, 6, 0.0001, 1e6, 0.01, 1e9)
        candles.append((rules, lb.Series(3600, opened, *prices, made.volume[m])))
    pairs = tuple(base + "ZAR" for base in BASES)
    settings = lb.Settings(schedule=lb.Schedule(pairs=pairs))
    return lb.GateJob(candles=tuple(candles), settings=settings, as_of_ms=0, attempts=1, is_self_tested=True)


def evaluated(seed: int, edge: float) -> tuple[float, float, str]:
    """Seconds on the wall and of CPU of one evaluation, and which gates did not pass."""
    asked = job(seed, edge)
    wall, before = time.perf_counter(), _cpu_s()
    evaluation = lb.evaluate(asked, mapper=in_processes)
    wall, cpu = time.perf_counter() - wall, _cpu_s() - before
    return wall, cpu, " ".join(f"{g.id} {g.result}" for g in evaluation.gates if g.result != "PASS") or "all passed"


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    """One that should pass, three that should not."""
    texts = ("full evaluation of the gates that goes to the end", "the same when it fails early, median of 3")
    if not hasattr(lb, "GateJob"):
        for text, most in zip(texts, (PASSES_S, FAILS_S), strict=True):
            tell("PG", text, most, math.nan, "s", "the program has no gates yet")
        return
    wall, cpu, words = evaluated(1, EDGE)
    tell("PG", texts[0], PASSES_S, wall, "s", f"CPU {cpu:.0f} s; {words}")
    found = [evaluated(seed, 0.0) for seed in (2, 3, 4)]
    walls, cpus = ([f[i] for f in found] for i in range(2))
    tell("PG", texts[1], FAILS_S, statistics.median(walls), "s",
         f"CPU {statistics.median(cpus):.0f} s; {'; '.join(f[2] for f in found)}")


if __name__ == "__main__":
    main()
