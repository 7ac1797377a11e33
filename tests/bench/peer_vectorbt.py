"""Works A, B and C in vectorbt: the usual table of signals for A and B, orders computed candle by candle for C."""

from __future__ import annotations

import numpy as np
import pandas as pd
import vectorbt as vbt
import works as w
from market import Candles
from numba import njit
from serve import Run, serve
from vectorbt.portfolio.enums import NoOrder
from vectorbt.portfolio.nb import order_nb
from works import Outcome, Rule


class Table:
    """Candles as the columns that vectorbt takes."""

    def __init__(self, c: Candles, markets: int) -> None:
        index = pd.to_datetime(c.opened, unit="ms")
        frames = [pd.DataFrame(np.ascontiguousarray(rows[:markets].T), index=index)
                  for rows in (c.open, c.high, c.low, c.close)]
        self.open, self.high, self.low, self.close = frames
        self.days = c.days

    def top(self, count: int) -> pd.DataFrame:
        """The highest high before each candle."""
        return self.high.rolling(count).max().shift()

    def floor(self, count: int) -> pd.DataFrame:
        """The lowest low before each candle."""
        return self.low.rolling(count).min().shift()

    def range(self) -> pd.DataFrame:
        """Wilder's average of the true range."""
        before = self.close.shift().fillna(self.close.iloc[0])
        width = np.maximum(self.high, before) - np.minimum(self.low, before)
        return width.ewm(alpha=1 / w.RANGE_CANDLES, adjust=False).mean()


def _delayed(flags: np.ndarray) -> np.ndarray:
    """What a close says is done at the next open."""
    later = np.zeros_like(flags)
    later[1:] = flags[:-1]
    return later


def by_signals(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One column a set. A stop is a share of the purchase here, so it lies a hair beside the rules' own."""
    t = Table(c, 1)

    def run() -> Outcome:
        close, range_ = t.close[0].to_numpy(), t.range()[0].to_numpy()
        above = {n: close > t.top(n)[0].to_numpy() for n in {r.entry for r in rules}}
        below = {m: close < t.floor(m)[0].to_numpy() for m in {r.leave for r in rules}}
        shares = {k: k * range_ / close for k in {r.stop for r in rules}}
        entries = np.column_stack([_delayed(above[r.entry]) for r in rules])
        entries[: w.WARM_UP + 1] = False
        exits = np.column_stack([_delayed(below[r.leave]) for r in rules])
        stops = np.column_stack([np.concatenate(([0.01], shares[r.stop][:-1])) for r in rules])
        wide = [np.broadcast_to(frame.to_numpy(), entries.shape) for frame in (t.open, t.high, t.low, t.close)]
        held = vbt.Portfolio.from_signals(
            wide[3], entries, exits, price=wide[0], open=wide[0], high=wide[1], low=wide[2], size=1.0,
            size_type="amount", sl_stop=stops, stop_entry_price="price", stop_exit_price="stoplimit",
            upon_stop_exit="close", accumulate=False, fees=w.FEE, init_cash=w.CASH, freq="5min",
        )
        return Outcome(int(np.sum(held.trades.count())), float(np.sum(held.final_value() - w.CASH)))

    return run


@njit
def plan(c, book, days, open_, low, close, top, floor, range_, stop_ranges):  # noqa: C901 - one loop to compile
    """Before each candle: judge the close before it, then list this candle's orders with their prices.

    Rows of `book`: stop, wished volume, wished stop, and sale. After those of the markets it holds the day's first
    equity, whether the day is over, how many orders are listed, and the orders: market, volume, price.
    """
    row, markets = c.i, close.shape[1]
    state, orders = book[4], book[5:]
    state[2] = 0.0
    if row == 0:
        state[0] = w.CASH
        return (book,)
    last = row - 1
    equity, taken = c.last_cash[c.group], 0
    for m in range(markets):
        if c.last_position[c.from_col + m] > 0.0:
            equity += c.last_position[c.from_col + m] * close[last, m]
            taken += 1
    if equity <= state[0] * (1 - w.DAY_CAP):
        state[1] = 1.0
    for m in range(markets):
        if c.last_position[c.from_col + m] > 0.0:
            book[3, m] = 1.0 if state[1] > 0.0 or close[last, m] < floor[last, m] else 0.0
        elif state[1] == 0.0 and taken < w.PLACES and last >= w.WARM_UP and close[last, m] > top[last, m]:
            distance = stop_ranges * range_[last, m]
            book[1, m] = min(w.RISK * equity / distance, w.LARGEST * equity / close[last, m])
            book[2, m] = close[last, m] - distance
            taken += 1
    if days[row] != days[last]:
        state[0], state[1] = equity, 0.0
    listed = 0
    for step in range(3):
        for m in range(markets):
            held = c.last_position[c.from_col + m]
            volume, price = 0.0, open_[row, m]
            if step == 0 and book[3, m] > 0.0:
                volume = -held
            elif step == 1 and book[1, m] > 0.0:
                volume, book[0, m] = book[1, m], book[2, m]
            elif step == 2 and (book[1, m] > 0.0 or (held > 0.0 and book[3, m] == 0.0)) and low[row, m] <= book[0, m]:
                volume, price = -np.inf, min(price, book[0, m])
            if volume != 0.0:
                orders[listed, 0], orders[listed, 1], orders[listed, 2] = m, volume, price
                listed += 1
    book[1, :markets] = 0.0
    book[3, :markets] = 0.0
    state[2] = listed
    return (book,)


@njit
def give(c, book):
    """Hand over the listed orders one by one; a sale of everything is as large as what is held by then."""
    if c.call_idx >= book[4, 2]:
        return -1, NoOrder
    order = book[5 + c.call_idx]
    column = c.from_col + int(order[0])
    volume = -c.last_position[column] if np.isinf(order[1]) else order[1]
    return column, order_nb(volume, order[2], fees=w.FEE)


def by_orders(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """Five columns that share their cash."""
    t = Table(c, len(c.close))

    def run() -> Outcome:
        rule, markets = w.USUAL, len(c.close)
        arrays = (t.open, t.low, t.close, t.top(rule.entry), t.floor(rule.leave), t.range())
        book = np.zeros((5 + 3 * markets, max(3, markets)))
        held = vbt.Portfolio.from_order_func(
            t.close, give, flexible=True, cash_sharing=True, group_by=True, init_cash=w.CASH, freq="5min",
            max_orders=len(c.opened), pre_segment_func_nb=plan,
            pre_segment_args=(book, t.days, *(a.to_numpy() for a in arrays), rule.stop),
        )
        return Outcome(int(held.trades.count()), float(held.final_value() - w.CASH))

    return run


if __name__ == "__main__":
    serve("vectorbt", {"A": lambda c, rules: by_signals(c, (w.USUAL,)), "B": by_signals, "C": by_orders})
