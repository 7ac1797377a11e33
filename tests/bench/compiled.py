"""The practical limit of this machine: the rules as compiled loops. For D and WF the signals are numpy arrays."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import works as w
from market import Candles
from serve import Run, serve
from works import Outcome, Rule

compiled = numba.njit


@compiled
def highest_before(values: np.ndarray, count: int) -> np.ndarray:
    """The highest of the `count` values before each row, NaN for the first rows; a queue of falling values."""
    found = np.full(values.size, np.nan)
    rows = np.empty(values.size, np.int64)
    head = tail = 0
    for row in range(values.size):
        if row >= count:
            while rows[head] < row - count:
                head += 1
            found[row] = values[rows[head]]
        while tail > head and values[rows[tail - 1]] <= values[row]:
            tail -= 1
        rows[tail] = row
        tail += 1
    return found


@compiled
def average_range(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Wilder's average of the true range."""
    found = np.empty(close.size)
    level = found[0] = high[0] - low[0]
    for row in range(1, close.size):
        width = max(high[row], close[row - 1]) - min(low[row], close[row - 1])
        level += (width - level) / w.RANGE_CANDLES
        found[row] = level
    return found


@compiled
def one_market(open_, low, close, top, floor, range_, stop_ranges):
    """Round trips and profit of one unit in one market."""
    trips, profit, paid, stop, next_stop = 0, 0.0, 0.0, 0.0, 0.0
    is_held = buys = sells = False
    for row in range(close.size):
        if sells:
            profit += open_[row] * (1 - w.FEE) - paid
            is_held = sells = False
        elif buys:
            paid, stop = open_[row] * (1 + w.FEE), next_stop
            is_held, buys = True, False
            trips += 1
        if is_held and low[row] <= stop:
            profit += min(open_[row], stop) * (1 - w.FEE) - paid
            is_held = False
        if is_held:
            sells = close[row] < floor[row]
        elif row >= w.WARM_UP and close[row] > top[row]:
            buys, next_stop = True, close[row] - stop_ranges * range_[row]
    if is_held:
        profit += close[-1] * (1 - w.FEE) - paid
    return trips, profit


@compiled
def one_account(days, open_, low, close, top, floor, range_, stop_ranges):  # noqa: C901 - one loop to compile
    """Purchases and last equity of five markets in one account."""
    markets, rows = close.shape
    held, stop, next_stop, wanted = np.zeros(markets), np.zeros(markets), np.zeros(markets), np.zeros(markets)
    sells = np.zeros(markets, np.bool_)
    cash = equity = day_start = w.CASH
    is_halted, purchases = False, 0
    for row in range(rows):
        if row > 0 and days[row] != days[row - 1]:
            day_start, is_halted = equity, False
        for m in range(markets):
            if sells[m]:
                cash += held[m] * open_[m, row] * (1 - w.FEE)
                held[m], sells[m] = 0.0, False
        taken = 0
        equity = 0.0
        for m in range(markets):
            if wanted[m] > 0.0:
                price = open_[m, row] * (1 + w.FEE)
                held[m], stop[m] = min(wanted[m], cash / price), next_stop[m]
                cash -= held[m] * price
                wanted[m] = 0.0
                purchases += 1
            if held[m] > 0.0 and low[m, row] <= stop[m]:
                # purchases come before stops: what a stop brings in is set aside until all markets have bought
                equity += held[m] * min(open_[m, row], stop[m]) * (1 - w.FEE)
                held[m] = 0.0
        cash += equity
        equity = cash
        for m in range(markets):
            if held[m] > 0.0:
                taken += 1
                equity += held[m] * close[m, row]
        is_halted = is_halted or equity <= day_start * (1 - w.DAY_CAP)
        for m in range(markets):
            if held[m] > 0.0:
                sells[m] = is_halted or close[m, row] < floor[m, row]
            elif not is_halted and taken < w.PLACES and row >= w.WARM_UP and close[m, row] > top[m, row]:
                distance = stop_ranges * range_[m, row]
                wanted[m] = min(w.RISK * equity / distance, w.LARGEST * equity / close[m, row])
                next_stop[m] = close[m, row] - distance
                taken += 1
    return purchases, equity


@compiled
def ranked_account(days, open_, low, close, score, distance, kind, leaves, daily):  # noqa: C901 - one loop to compile
    """The same with ranked wishes of several strategies and slippage; `daily` takes the equity of each day's end."""
    markets, rows = close.shape
    held, stop, next_stop, wanted = np.zeros(markets), np.zeros(markets), np.zeros(markets), np.zeros(markets)
    by, next_by = np.zeros(markets, np.int64), np.zeros(markets, np.int64)
    sells, is_open = np.zeros(markets, np.bool_), np.zeros(markets, np.bool_)
    cash = equity = day_start = w.CASH
    is_halted, purchases, day = False, 0, 0
    sale, purchase = (1 - w.SLIPPAGE) * (1 - w.FEE), (1 + w.SLIPPAGE) * (1 + w.FEE)
    for row in range(rows):
        if row > 0 and days[row] != days[row - 1]:
            day_start, is_halted = equity, False
            daily[day] = equity
            day += 1
        for m in range(markets):
            if sells[m]:
                cash += held[m] * open_[m, row] * sale
                held[m], sells[m] = 0.0, False
        equity = 0.0
        for m in range(markets):
            if wanted[m] > 0.0:
                price = open_[m, row] * purchase
                held[m], stop[m], by[m] = min(wanted[m], cash / price), next_stop[m], next_by[m]
                cash -= held[m] * price
                wanted[m] = 0.0
                purchases += 1
            if held[m] > 0.0 and low[m, row] <= stop[m]:
                equity += held[m] * min(open_[m, row], stop[m]) * sale
                held[m] = 0.0
        cash += equity
        equity, taken = cash, 0
        for m in range(markets):
            if held[m] > 0.0:
                taken += 1
                equity += held[m] * close[m, row]
        is_halted = is_halted or equity <= day_start * (1 - w.DAY_CAP)
        for m in range(markets):
            is_open[m] = False
            if held[m] > 0.0:
                sells[m] = is_halted or leaves[by[m], m, row]
            else:
                is_open[m] = not is_halted and score[m, row] > 0.0
        while taken < w.PLACES:
            best = -1
            for m in range(markets):
                if is_open[m] and (best < 0 or score[m, row] > score[best, row]):
                    best = m
            if best < 0:
                break
            far = distance[best, row]
            wanted[best] = min(w.RISK * equity / far, w.LARGEST * equity / close[best, row])
            next_stop[best], next_by[best] = close[best, row] - far, kind[best, row]
            is_open[best] = False
            taken += 1
    daily[day] = equity
    return purchases, equity


def channel(values: np.ndarray, count: int, sign: float) -> np.ndarray:
    """The highest (sign 1) or lowest (sign -1) before each candle, per market."""
    return np.stack([sign * highest_before(sign * row, count) for row in values])


def ranges(c: Candles) -> np.ndarray:
    """The average range per market."""
    return np.stack([average_range(*row) for row in zip(c.high, c.low, c.close, strict=True)])


def mean(values: np.ndarray, count: int) -> np.ndarray:
    """The average of the last `count` values, NaN for the first rows."""
    total = np.cumsum(np.concatenate((np.zeros((len(values), 1)), values), axis=1), axis=1)
    found = np.full(values.shape, np.nan)
    found[:, count - 1 :] = (total[:, count:] - total[:, :-count]) / count
    return found


class Ensemble:
    """The signals of D: what all sets share is computed once, what depends on a set when it is asked for."""

    def __init__(self, c: Candles) -> None:
        self.candles, self.range = c, ranges(c)
        before = np.concatenate((c.close[:, :1], c.close[:, :-1]), axis=1)
        width = np.maximum(c.high, before) - np.minimum(c.low, before)
        average, moved = mean(c.close, 20), np.full(c.close.shape, np.nan)
        moved[:, 48:] = np.abs(c.close[:, 48:] - c.close[:, :-48])
        centred = c.close - c.close[:, :1]
        deviation = np.sqrt(np.maximum(mean(centred**2, 20) - mean(centred, 20) ** 2, 1e-12))
        with np.errstate(invalid="ignore"):
            self.is_trend = moved / (48 * mean(np.abs(c.close - before), 48) + 1e-12) > 0.25
            is_wide = (width > 1.8 * self.range) & (c.close > c.low + 0.7 * (c.high - c.low)) & (c.close > average)
            depth = (average - c.close) / deviation
            self.wide = np.where(is_wide, 0.8 + 0.1 * width / self.range, 0.0)
            self.fallen = np.where(~self.is_trend & (depth > 2.0), 0.5 + 0.1 * depth, 0.0)
            self.below, self.above = c.close < average, c.close > average
        self.is_thick = c.volume > 6_000.0
        self.is_thick[:, : w.WARM_UP] = False

    def run(self, rule: Rule, daily: np.ndarray) -> tuple[int, float]:
        """One set over the year; purchases and last equity."""
        c = self.candles
        top, floor = channel(c.high, rule.entry, 1.0), channel(c.low, rule.leave, -1.0)
        with np.errstate(invalid="ignore"):
            breakout = np.where(self.is_trend & (c.close > top), 1.0 + (c.close - top) / self.range, 0.0)
            leaves = np.stack((c.close < floor, self.below, self.above))
        score = np.maximum(np.maximum(breakout, self.wide), self.fallen)
        kind = np.where(score == breakout, 0, np.where(score == self.wide, 1, 2))
        distance = rule.stop * np.array((1.0, 0.8, 1.5))[kind] * self.range
        score = np.where(self.is_thick, score, 0.0)
        return ranked_account(c.days, c.open, c.low, c.close, score, distance, kind, leaves, daily)


def total(results: list[tuple[int, float]], each: float = 0.0) -> Outcome:
    """The sum over sets; `each` is what every set started with."""
    return Outcome(sum(int(r[0]) for r in results), float(sum(r[1] - each for r in results)))


def sweep_one(c: Candles, rules: tuple[Rule, ...]) -> Outcome:
    """One market, each channel computed once."""
    first = [np.ascontiguousarray(column[0]) for column in (c.open, c.high, c.low, c.close)]
    open_, high, low, close = first
    range_ = average_range(high, low, close)
    tops = {n: highest_before(high, n) for n in {r.entry for r in rules}}
    floors = {m: -highest_before(-low, m) for m in {r.leave for r in rules}}
    return total([one_market(open_, low, close, tops[r.entry], floors[r.leave], range_, r.stop) for r in rules])


def sweep_account(c: Candles, rules: tuple[Rule, ...]) -> Outcome:
    """One account, each channel computed once."""
    range_ = ranges(c)
    tops = {n: channel(c.high, n, 1.0) for n in {r.entry for r in rules}}
    floors = {m: channel(c.low, m, -1.0) for m in {r.leave for r in rules}}
    return total([one_account(c.days, c.open, c.low, c.close, tops[r.entry], floors[r.leave], range_, r.stop)
                  for r in rules], w.CASH)


def ensemble(c: Candles, rules: tuple[Rule, ...]) -> Outcome:
    """The three strategies."""
    shared, daily = Ensemble(c), np.zeros(len(np.unique(c.days)))
    return total([shared.run(rule, daily) for rule in rules], w.CASH)


def walk_forward(c: Candles, rules: tuple[Rule, ...]) -> Outcome:
    """A yearly run of each set, its days cut into windows."""
    shared, returns, purchases = Ensemble(c), [], 0
    for rule in rules:
        daily = np.zeros(len(np.unique(c.days)))
        purchases += shared.run(rule, daily)[0]
        returns.append(np.diff(daily, prepend=w.CASH) / np.concatenate(([w.CASH], daily[:-1])))
    return Outcome(purchases, w.CASH * w.joined(returns))


def _usual(work, c: Candles, rules: tuple[Rule, ...]) -> Run:
    return partial(work, c, (w.USUAL,))


def _all(work, c: Candles, rules: tuple[Rule, ...]) -> Run:
    return partial(work, c, rules)


if __name__ == "__main__":
    serve("numba", {
        "A": partial(_usual, sweep_one), "B": partial(_all, sweep_one), "C": partial(_usual, sweep_account),
        "PF": partial(_all, sweep_account), "D": partial(_usual, ensemble), "WF": partial(_all, walk_forward),
    })
