"""Works A and B in backtesting.py: one market, one strategy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import works as w
from backtesting import Backtest, Strategy, backtesting
from market import Candles
from serve import Run, serve
from works import Outcome, Rule

backtesting._tqdm = lambda rows, **_: rows  # no progress bar: it would cost time that the others do not spend


def average_range(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Wilder's average of the true range."""
    before = np.concatenate((close[:1], close[:-1]))
    width = pd.Series(np.maximum(high, before) - np.minimum(low, before))
    return width.ewm(alpha=1 / w.RANGE_CANDLES, adjust=False).mean().to_numpy()


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """The highest of the values before each row."""
    return pd.Series(values).rolling(count).max().shift().to_numpy()


class Breakout(Strategy):
    """The rules of work A; the stop is an order of the library's own."""

    rule = w.USUAL

    def init(self) -> None:
        """Indicators over the whole series."""
        data = self.data
        self.top = self.I(highest, np.asarray(data.High), self.rule.entry)
        self.floor = self.I(lambda: -highest(-np.asarray(data.Low), self.rule.leave))
        self.range = self.I(average_range, np.asarray(data.High), np.asarray(data.Low), np.asarray(data.Close))

    def next(self) -> None:
        """At each close: leave below the floor, buy above the top."""
        close = self.data.Close[-1]
        if self.position:
            if close < self.floor[-1]:
                self.position.close()
        elif len(self.data) > w.WARM_UP and close > self.top[-1]:
            self.buy(size=1, sl=close - self.rule.stop * self.range[-1])


def prepare(candles: Candles, rules: tuple[Rule, ...]) -> Run:
    """The library's table of candles; one run for each set."""
    columns = {"Open": candles.open, "High": candles.high, "Low": candles.low, "Close": candles.close}
    table = pd.DataFrame({name: rows[0] for name, rows in columns.items()},
                         index=pd.to_datetime(candles.opened, unit="ms")).assign(Volume=candles.volume[0])
    tester = Backtest(table, Breakout, cash=w.CASH, commission=w.FEE, finalize_trades=True)

    def run() -> Outcome:
        found = [tester.run(rule=rule) for rule in rules]
        profit = sum(float(s["Equity Final [$]"]) - w.CASH for s in found)
        return Outcome(sum(int(s["# Trades"]) for s in found), profit)

    return run


if __name__ == "__main__":
    serve("backtesting", {"A": lambda c, rules: prepare(c, (w.USUAL,)), "B": prepare})
