"""Works A to WF in this program: the same candles and fee, with its own strategies and its own money rules.

Those rules are not the ones of `works`: entries are post-only orders at the bid that rest for a candle and fill only
when the market trades through them, stops are stop-limits that trail, sales take, positions of all markets together
have a bound, and the kind of market comes from four-hour and daily candles. So round trips and profit differ from the
peers'; what is compared is the time for the same candles, markets and number of sets. A, B, C and PF trade the
breakout alone, D and WF all strategies, decided at every 5-minute candle.

`ENGINE` is the one thing to change when a faster engine is there, and with it how many sets `run.py` lets it run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import works as w
from market import Candles
from own import lb
from serve import Run, serve
from works import Outcome, Rule

NEVER = 1e9  # a threshold that no candle reaches: that strategy stays out
BASES = ("AAA", "BBB", "CCC", "DDD", "EEE")
LIMITS = lb.RiskLimits(
    risk_per_trade=w.RISK, daily_loss_cap=w.DAY_CAP, weekly_loss_cap=NEVER, max_positions=w.PLACES, max_exposure=0.96,
    max_asset_exposure=w.LARGEST, max_group_exposure=0.96, min_confidence=0.0, min_edge=0.0, orders_per_minute=100,
    orders_per_day=10_000, round_trips_per_day=10_000, cooldown_hours=1.0,
)
# per engine: a job for each set in, for each set round trips, profit and the daily returns out
Ran = tuple[int, float, np.ndarray]
Engine = Callable[[Sequence[lb.BacktestJob]], list[Ran]]


def params(rule: Rule, is_ensemble: bool) -> lb.StrategyParams:
    """A set of `works` as this program's parameters."""
    usual = lb.StrategyParams(breakout=rule.entry, exit_channel=rule.leave, atr=w.RANGE_CANDLES, stop_atr=rule.stop,
                              trail_atr=2 * rule.stop, squeeze=48, reversion=20, max_holding=2_000)
    return usual if is_ensemble else replace(usual, expansion=NEVER, reversion_z=NEVER)


def settings(rule: Rule, is_ensemble: bool) -> lb.Settings:
    """Everything decided at each candle, 1,000,000 in cash, slippage as in work D or none."""
    pairs = tuple(base + "ZAR" for base in BASES)
    return lb.Settings(
        limits=LIMITS, params=params(rule, is_ensemble),
        costs=lb.Costs(slippage=w.SLIPPAGE if is_ensemble else 0.0),
        schedule=lb.Schedule(pairs=pairs, timeframes=(300,), paper_cash=w.CASH),
    )


def job(c: Candles, markets: int, chosen: lb.Settings) -> lb.BacktestJob:
    """The year as this program's job."""
    candles = []
    for m, base in enumerate(BASES[:markets]):
        market = lb.Market(base + "ZAR", base, "ZAR", 2, 6, 1e-6, 1e9, 0.01, 1e9, maker_fee=w.FEE, taker_fee=w.FEE,
                           fee_source="study", model_spread=0.0001)
        candles.append((market, lb.Series(300, c.opened, c.open[m], c.high[m], c.low[m], c.close[m], c.volume[m])))
    return lb.BacktestJob(tuple(candles), chosen, int(c.opened[0]), int(c.opened[-1]) + 300_000)


def one_by_one(jobs: Sequence[lb.BacktestJob]) -> list[Ran]:
    """The cycle over each job."""
    found = []
    for each in jobs:
        report = lb.run_backtest(each)
        values = np.array([value for _, value in report.equity_daily])
        before = np.concatenate(([w.CASH], values[:-1]))
        found.append((len(report.round_trips), float(values[-1] - w.CASH), values / before - 1))
    return found


ENGINE: Engine = one_by_one


def _prepare(markets: int, is_ensemble: bool, is_sweep: bool, c: Candles, rules: tuple[Rule, ...]) -> Run:
    jobs = [job(c, markets, settings(rule, is_ensemble)) for rule in (rules if is_sweep else (w.USUAL,))]

    def run() -> Outcome:
        found = ENGINE(jobs)
        return Outcome(sum(f[0] for f in found), sum(f[1] for f in found))

    return run


work_a = partial(_prepare, 1, False, False)
work_b = partial(_prepare, 1, False, True)
work_c = partial(_prepare, 5, False, False)
work_pf = partial(_prepare, 5, False, True)
work_d = partial(_prepare, 5, True, False)


def work_wf(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """A yearly run of each set, cut into windows."""
    jobs = [job(c, 5, settings(rule, True)) for rule in rules]

    def run() -> Outcome:
        found = ENGINE(jobs)
        return Outcome(sum(f[0] for f in found), w.CASH * w.joined([f[2] for f in found]))

    return run


if __name__ == "__main__":
    serve("", {"A": work_a, "B": work_b, "C": work_c, "PF": work_pf, "D": work_d, "WF": work_wf})
