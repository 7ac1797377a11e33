"""Works A and C in backtrader: each purchase carries its stop as a child order."""

from __future__ import annotations

import backtrader as bt
import pandas as pd
import works as w
from market import Candles
from serve import Run, serve
from works import Outcome, Rule


class Breakout(bt.Strategy):
    """The rules over one market with one unit, or over several in one account."""

    params = (("rule", w.USUAL), ("is_account", False))

    def __init__(self) -> None:
        rule = self.p.rule
        self.tops = [bt.ind.Highest(d.high(-1), period=rule.entry) for d in self.datas]
        self.floors = [bt.ind.Lowest(d.low(-1), period=rule.leave) for d in self.datas]
        self.ranges = [bt.ind.ATR(d, period=w.RANGE_CANDLES) for d in self.datas]
        self.stops: dict[int, bt.Order] = {}
        self.purchases = 0
        self.day, self.day_start, self.equity, self.is_halted = None, w.CASH, w.CASH, False

    def notify_order(self, order: bt.Order) -> None:
        """Count the purchases."""
        self.purchases += order.isbuy() and order.status == order.Completed

    def review_day(self) -> None:
        """The daily cap: a day starts with the equity of the close before it."""
        day = self.datetime.date()
        if day != self.day:
            self.day, self.day_start, self.is_halted = day, self.equity, False
        self.equity = self.broker.getvalue()
        self.is_halted = self.is_halted or self.equity <= self.day_start * (1 - w.DAY_CAP)

    def volume(self, number: int, distance: float) -> float:
        """One unit, or what the risk allows."""
        if not self.p.is_account:
            return 1.0
        return min(w.RISK * self.equity / distance, w.LARGEST * self.equity / self.datas[number].close[0])

    def next(self) -> None:
        """At each close: leave, then enter while there is a place."""
        if self.p.is_account:
            self.review_day()
        held = {n for n, d in enumerate(self.datas) if self.getposition(d).size}
        for number in held:
            data = self.datas[number]
            if self.is_halted or data.close[0] < self.floors[number][0]:
                self.cancel(self.stops[number])
                self.close(data)
        free = (w.PLACES if self.p.is_account else 1) - len(held)
        for number, data in enumerate(self.datas):
            if free > 0 and number not in held and not self.is_halted and len(self) > w.WARM_UP:
                free -= self.buy_breakout(number, data)

    def buy_breakout(self, number: int, data: bt.feeds.PandasData) -> bool:
        """Buy at the next open if the close is above the top; True if that is wanted."""
        close = data.close[0]
        if close <= self.tops[number][0]:
            return False
        distance = self.p.rule.stop * self.ranges[number][0]
        volume = self.volume(number, distance)
        parent = self.buy(data, size=volume, exectype=bt.Order.Market, transmit=False)
        self.stops[number] = self.sell(data, size=volume, exectype=bt.Order.Stop, price=close - distance, parent=parent)
        return True


def prepare(c: Candles, markets: int) -> Run:
    """The library reads its candles from tables."""
    index = pd.to_datetime(c.opened, unit="ms")
    tables = [pd.DataFrame({"open": c.open[m], "high": c.high[m], "low": c.low[m], "close": c.close[m],
                            "volume": c.volume[m]}, index=index) for m in range(markets)]

    def run() -> Outcome:
        cerebro = bt.Cerebro(stdstats=False)
        cerebro.broker.setcash(w.CASH)
        cerebro.broker.setcommission(commission=w.FEE)
        for table in tables:
            cerebro.adddata(bt.feeds.PandasData(dataname=table))
        cerebro.addstrategy(Breakout, is_account=markets > 1)
        (strategy,) = cerebro.run()
        return Outcome(strategy.purchases, cerebro.broker.getvalue() - w.CASH)

    return run


def work_a(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One market."""
    return prepare(c, 1)


def work_c(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One account."""
    return prepare(c, len(c.close))


if __name__ == "__main__":
    serve("backtrader", {"A": work_a, "C": work_c})
