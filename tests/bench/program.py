"""Works A to WF in this program: the same candles and fee, with its own strategies and its own money rules.

Those rules are not the ones of `works`: entries are post-only orders at the bid that rest for a candle and fill only
when the market trades through them, stops are stop-limits that trail, sales take, positions of all markets together
have a bound, and the kind of market comes from slower candles. So round trips and profit differ from the peers'; what
is compared is the time for the same candles, markets and number of sets. A, B, C and PF trade the breakout alone, D
and WF all strategies, decided at every candle.

This program's lengths are in hours, a candle of an hour at least; 20 candles of 5 minutes cannot be said to it. So the
candles are stamped as if each lasted an hour: as many rows, the same prices, the same lengths in candles. Its days are
24 candles then and its slower candles 4 and 24, where 5 minutes would give 48 and 288: it rolls days and renews
correlations 12 times as often. For WF twelve of its days make one.

`ENGINE` runs all sets of a work at once. Before anything is measured, `check` compares it with the cycle, which is what
trades, on the first candles: round trips and money must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import works as w
from market import Candles
from own import lb
from serve import Run, serve
from works import Outcome, Rule

NEVER = 1e9  # a threshold that no candle reaches: that strategy stays out
BASES = ("AAA", "BBB", "CCC", "DDD", "EEE")
HOUR_S, DAYS_AS_ONE = 3600, 12
CHECKED, CENT = 3_000, 0.01
LIMITS = lb.RiskLimits(
    risk_per_trade=w.RISK, daily_loss_cap=w.DAY_CAP, weekly_loss_cap=NEVER, max_positions=w.PLACES, max_exposure=0.96,
    max_asset_exposure=w.LARGEST, max_group_exposure=0.96, min_confidence=0.0, min_edge=0.0, orders_per_minute=100,
    orders_per_day=10_000, round_trips_per_day=10_000, cooldown_hours=1.0,
)


class Ran(NamedTuple):
    """Of each set: round trips, and equity at the end of each of this program's days, [days, sets]."""

    round_trips: np.ndarray
    equity: np.ndarray


Engine = Callable[[lb.LaneJob], Ran]


def params(rule: Rule, is_ensemble: bool) -> lb.StrategyParams:
    """A set of `works` as this program's parameters."""
    usual = lb.StrategyParams(breakout=rule.entry, exit_channel=rule.leave, atr=w.RANGE_CANDLES, stop_atr=rule.stop,
                              trail_atr=2 * rule.stop, squeeze=48, reversion=20, max_holding=2_000)
    return usual if is_ensemble else replace(usual, expansion=NEVER, reversion_z=NEVER)


def settings(is_ensemble: bool) -> lb.Settings:
    """Everything decided at each candle, 1,000,000 in cash, slippage as in work D or none."""
    pairs = tuple(base + "ZAR" for base in BASES)
    return lb.Settings(
        limits=LIMITS, costs=lb.Costs(slippage=w.SLIPPAGE if is_ensemble else 0.0),
        schedule=lb.Schedule(pairs=pairs, timeframes=(HOUR_S,), paper_cash=w.CASH),
    )


def job(c: Candles, markets: int, rules: tuple[Rule, ...], is_ensemble: bool, rows: int | None = None) -> lb.LaneJob:
    """The year, or its first rows, as one job of all sets."""
    opened = c.opened[0] + np.arange(len(c.opened), dtype=np.int64)[:rows] * lb.HOUR_MS
    candles = []
    for m, base in enumerate(BASES[:markets]):
        market = lb.Market(base + "ZAR", base, "ZAR", 2, 6, 1e-6, 1e9, 0.01, 1e9, maker_fee=w.FEE, taker_fee=w.FEE,
                           fee_source="study", model_spread=0.0001)
        columns = (column[m, :rows] for column in (c.open, c.high, c.low, c.close, c.volume))
        candles.append((market, lb.Series(HOUR_S, opened, *columns)))
    return lb.LaneJob((tuple(candles),), settings(is_ensemble), tuple(params(rule, is_ensemble) for rule in rules),
                      int(opened[0]), int(opened[-1]) + lb.HOUR_MS)


def at_once(asked: lb.LaneJob) -> Ran:
    """All sets as lanes."""
    table = lb.lane_table(asked)
    result = lb.run_lanes(table, lb.Lanes(table, asked.settings))
    return Ran(result.round_trips.sum(axis=0)[0], result.equity[:, 0])


def one_by_one(asked: lb.LaneJob) -> Ran:
    """The cycle over each set."""
    trips, values = [], []
    for each in asked.sets:
        chosen = replace(asked.settings, params=each)
        report = lb.run_backtest(lb.BacktestJob(asked.runs[0], chosen, asked.start_ms, asked.end_ms))
        trips.append(len(report.round_trips))
        values.append([value for _, value in report.equity_daily])
    return Ran(np.array(trips), np.array(values).T)


ENGINE: Engine = at_once


def check(asked: lb.LaneJob) -> None:
    """ValueError if the engine and the cycle differ."""
    mine, cycle = ENGINE(asked), one_by_one(asked)
    away = float(np.abs(mine.equity[-1] - cycle.equity[-1]).max())
    if away > CENT or (mine.round_trips != cycle.round_trips).any():
        raise ValueError(f"round trips {mine.round_trips}, the cycle's {cycle.round_trips}; {away:.2f} apart")


def _prepare(markets: int, is_ensemble: bool, is_sweep: bool, c: Candles, rules: tuple[Rule, ...]) -> Run:
    check(job(c, markets, (w.USUAL,), is_ensemble, CHECKED))
    asked = job(c, markets, rules if is_sweep else (w.USUAL,), is_ensemble)

    def run() -> Outcome:
        found = ENGINE(asked)
        return Outcome(int(found.round_trips.sum()), float((found.equity[-1] - w.CASH).sum()))

    return run


work_a = partial(_prepare, 1, False, False)
work_b = partial(_prepare, 1, False, True)
work_c = partial(_prepare, 5, False, False)
work_pf = partial(_prepare, 5, False, True)
work_d = partial(_prepare, 5, True, False)


def work_wf(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """A yearly run of each set, cut into windows."""
    check(job(c, 5, (w.USUAL,), True, CHECKED))
    asked = job(c, 5, rules, True)

    def run() -> Outcome:
        found = ENGINE(asked)
        values = found.equity[DAYS_AS_ONE - 1 :: DAYS_AS_ONE]
        before = np.vstack((np.full(len(asked.sets), w.CASH), values[:-1]))
        return Outcome(int(found.round_trips.sum()), w.CASH * w.joined(list((values / before - 1).T)))

    return run


if __name__ == "__main__":
    serve("", {"A": work_a, "B": work_b, "C": work_c, "PF": work_pf, "D": work_d, "WF": work_wf})
