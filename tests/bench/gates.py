"""PG: how long a full evaluation of the gates takes: five markets, 24 sets, 12 windows, hourly candles of 3.2 years.

Once on markets with a hidden drift, where it should go through all 199 shuffles, and three times on markets without
one, where it should stop early: before the first shuffle if the unseen days lost money, else when enough shuffled
markets have done as well. Helper processes share the shuffles, as in the program, so what counts is the clock on the
wall; the CPU is in the note.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import replace

import market
import numpy as np
from own import lb, tell

DAYS, HELPERS = 1_152, 2
BASES = ("AAA", "BBB", "CCC", "DDD", "EEE")
PASSES_S, FAILS_S = 300.0, 45.0
SIGMA, COMMON = 0.0065, 0.6  # of an hour
DRIFT_HOURS, EDGE = 240, 0.06  # half-life of the planted drift, and its size in sigmas of an hour


def sets() -> tuple[lb.StrategyParams, ...]:
    """24 sets around those of the program."""
    grid = itertools.product((480, 360, 240), (6.0, 4.0), (240, 120), (0.20, 0.30))
    usual = lb.parameter_sets()[0]
    return tuple(replace(usual, breakout=breakout, stop_atr=stop, trail_atr=1.5 * stop, exit_channel=leave,
                         trend_efficiency=trend) for breakout, stop, leave, trend in grid)


def made(rng: np.random.Generator, common: np.ndarray, edge: float) -> tuple[np.ndarray, ...]:
    """Open, high, low, close and volume of one market: volatility in waves, and a drift that comes and goes."""
    hours, keep = len(common), 0.5 ** (1 / DRIFT_HOURS)
    sigma = SIGMA * np.exp(0.4 * market.swell(rng, keep, math.sqrt(1 - keep**2), hours) - 0.16)
    drift = edge * SIGMA * market.swell(rng, keep, math.sqrt(1 - keep**2), hours)
    move = sigma * (COMMON * common + math.sqrt(1 - COMMON**2) * rng.standard_normal(hours)) + drift - sigma**2 / 2
    reach = -2 * sigma**2 * np.log(1 - rng.random((2, hours)))  # the ends of a Brownian bridge
    end = np.cumsum(move)
    start = end - move
    top, bottom = (move + np.sqrt(move**2 + reach[0])) / 2, (move - np.sqrt(move**2 + reach[1])) / 2
    prices = (np.round(1000 * np.exp(x), 2) for x in (start, start + top, start + bottom, end))
    return (*prices, np.round(20_000 * np.exp(0.5 * rng.standard_normal(hours)), 4))


def job(seed: int, edge: float) -> lb.GateJob:
    """Five markets that share a part of their moves."""
    rng, hours = np.random.default_rng(seed), DAYS * 24
    common = rng.standard_normal(hours)
    opened = market.START_MS - DAYS * lb.DAY_MS + np.arange(hours, dtype=np.int64) * lb.HOUR_MS
    candles = []
    for base in BASES:
        rules = lb.Market(base + "ZAR", base, "ZAR", 2, 6, 0.0001, 1e6, 0.01, 1e9)
        candles.append((rules, lb.Series(3600, opened, *made(rng, common, edge))))
    settings = lb.Settings(schedule=lb.Schedule(pairs=tuple(base + "ZAR" for base in BASES), timeframes=(3600,)))
    return lb.GateJob(candles=tuple(candles), settings=settings, is_self_tested=True, sets=sets())


def always(done: int, total: int) -> bool:
    """Go on."""
    return True


def with_helpers(asked: lb.GateJob) -> lb.Evaluation:
    """Evaluated here, with helper processes for the shuffles as the program has them."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(HELPERS)]
    helpers = [context.Process(target=lb._helper_child, args=(end,), daemon=True) for _, end in pipes]
    try:
        for helper in helpers:
            helper.start()
        for _, end in pipes:
            end.close()
        ends = tuple(end for end, _ in pipes)
        evaluation = lb.evaluate(asked, always, lb.Crew(lb.HelperPool(ends).map, HELPERS))
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()
    assert evaluation is not None
    return evaluation


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def evaluated(seed: int, edge: float) -> tuple[float, float, str]:
    """Seconds on the wall and of CPU of one evaluation, and what came of it."""
    asked = job(seed, edge)
    wall, before = time.perf_counter(), _cpu_s()
    evaluation = with_helpers(asked)
    wall, cpu = time.perf_counter() - wall, _cpu_s() - before
    luck = next(g for g in evaluation.gates if g.id == "G2")
    print(seed, edge, f"{wall:.1f} s, CPU {cpu:.1f} s;", *(f"{g.id} {g.result} {g.actual}" for g in evaluation.gates),
          luck.text, file=sys.stderr, flush=True)
    return wall, cpu, f"G2 {luck.result} {luck.actual}"


def main() -> None:
    """One that should pass, three that should not."""
    wall, cpu, words = evaluated(1, EDGE)
    tell("PG", "full evaluation of the gates that goes to the end", PASSES_S, wall, "s", f"CPU {cpu:.0f} s; {words}")
    found = [evaluated(seed, 0.0) for seed in (2, 3, 4)]
    walls, cpus = ([f[i] for f in found] for i in range(2))
    tell("PG", "the same when it fails early, median of 3", FAILS_S, statistics.median(walls), "s",
         f"longest {max(walls):.0f} s, CPU {statistics.median(cpus):.0f} s; {'; '.join(f[2] for f in found)}")


if __name__ == "__main__":
    main()
