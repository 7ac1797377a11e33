"""PL: what one decision, and one look at fresh quotes, over 20 markets costs in real time, in CPU, without the network.

The exchange is a table in memory; making its answers stands for the network and is not counted. Everything else is:
reading the answers, candles, signals over the live memory, correlations at the first decision of a day, the decision,
noting its inputs and writing it down.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import market
import numpy as np
from own import lb, tell

MARKETS, DECISIONS, HOUR_S, FIGURE_S = 20, 72, 3600, 0.005
PAIRS = tuple(f"{chr(65 + m) * 3}ZAR" for m in range(MARKETS))
HISTORY = lb.memory_rows(HOUR_S) + 10 * 24


class Exchange:
    """Answers of the exchange for a time; `spent_s` is the CPU that making them took."""

    def __init__(self, clock: lb.SteppedClock) -> None:
        made = market.generate(MARKETS, HISTORY + DECISIONS + 1, seed=7)
        prices = (np.round(1000 * (p / 1000) ** 4, 2) for p in (made.open, made.high, made.low, made.close))
        self.open, self.high, self.low, self.close = prices  # moves of hours, not of minutes
        self.opened = market.START_MS + np.arange(len(made.opened), dtype=np.int64) * HOUR_S * 1000
        self.volume, self.clock, self.spent_s = made.volume, clock, 0.0

    def send(self, method: str, path: str, params: Sequence[tuple[str, str]] = (), key: object = None) -> lb.Reply:
        """The answer as bytes."""
        started = time.process_time()
        asked = dict(params)
        name = path.rsplit("/", 1)[-1]
        body = json.dumps(getattr(self, "_" + name)(asked)).encode()
        self.spent_s += time.process_time() - started
        return lb.Reply(200, {}, body)

    def close(self) -> None:
        """Nothing to close."""

    def _row(self) -> int:
        return int(np.searchsorted(self.opened, self.clock.now_ms() - HOUR_S * 1000, side="right")) - 1

    def _markets(self, asked: dict[str, str]) -> object:
        return {"markets": [{
            "market_id": pair, "trading_status": "ACTIVE", "base_currency": pair[:3], "counter_currency": "ZAR",
            "volume_scale": 6, "price_scale": 2, "fee_scale": 8, "min_volume": "0.001", "max_volume": "100000",
            "min_price": "0.01", "max_price": "10000000",
        } for pair in PAIRS]}

    def _tickers(self, asked: dict[str, str]) -> object:
        row = self._row()
        return {"tickers": [{
            "pair": pair, "timestamp": self.clock.now_ms() - 500, "bid": f"{self.close[m, row] * 0.9995:.2f}",
            "ask": f"{self.close[m, row] * 1.0005:.2f}", "last_trade": f"{self.close[m, row]:.2f}",
            "rolling_24_hour_volume": f"{self.volume[m, row - 23 : row + 1].sum():.4f}", "status": "ACTIVE",
        } for m, pair in enumerate(PAIRS)]}

    def _candles(self, asked: dict[str, str]) -> object:
        m = PAIRS.index(asked["pair"])
        start = int(np.searchsorted(self.opened, int(asked["since"])))
        end = min(start + 1000, self._row() + 2)  # the one in progress is sent too
        names = ("open", "close", "high", "low", "volume")
        rows = [{"timestamp": int(self.opened[r])} | {n: f"{getattr(self, n)[m, r]:.4f}" for n in names}
                for r in range(start, end)]
        return {"candles": rows, "duration": HOUR_S, "pair": asked["pair"]}

    def _orderbook_top(self, asked: dict[str, str]) -> object:
        m, row = PAIRS.index(asked["pair"]), self._row()
        sides = {side: [{"price": f"{self.close[m, row] * (1 + sign * (0.0005 + 0.0002 * n)):.2f}", "volume": "20"}
                        for n in range(100)] for side, sign in (("asks", 1), ("bids", -1))}
        return {"timestamp": self.clock.now_ms() - 500, **sides}

    def _fee_info(self, asked: dict[str, str]) -> object:
        return {"maker_fee": "0.004", "taker_fee": "0.006", "thirty_day_volume": "0"}


class Cost(NamedTuple):
    """CPU seconds of a cycle: of looking at the markets, of deciding and writing; and the orders it brought."""

    looking: float
    deciding: float
    orders: int

    @property
    def both(self) -> float:
        """All of it."""
        return self.looking + self.deciding


class Session:
    """A live session without threads: client, feed, store, executor, desk."""

    def __init__(self, folder: Path) -> None:
        plain = lb.Settings()
        self.settings = lb.Settings(schedule=lb.Schedule(pairs=PAIRS, timeframes=(HOUR_S,)), limits=plain.limits)
        self.clock = lb.SteppedClock(market.START_MS + HISTORY * HOUR_S * 1000 + lb.DECISION_DELAY_MS)
        self.exchange = Exchange(self.clock)
        key = lb.Credentials("benchmark", "not-a-secret-of-anybody")
        client = lb.LunoClient(self.exchange, key, lb.RateLimit(self.clock), self.clock, random.Random(1))
        self.store = lb.Store(folder / "live.db", lb.Redactor())
        self.feed = lb.Feed(client, self.store, self.settings)
        self.desk = lb.Desk(self.settings.schedule.paper_cash)
        inputs = lb.InputLog(self.desk)
        self.executor = lb.NotingExecutor(inputs, self.settings.costs, lambda: False, ())
        self.recorder = lb.AuditRecorder(self.store, lb.Mode.PAPER, self.feed, inputs)
        while self.feed.load_page(self.clock.now_ms()) is not None:
            pass

    def decide(self, number: int) -> Cost:
        """One decision at the end of a candle; all markets must have been decided on."""
        self.clock.set_ms(market.START_MS + (HISTORY + number) * HOUR_S * 1000 + lb.DECISION_DELAY_MS)
        self.recorder.is_due = True
        cost, report = self._cycle((HOUR_S,))
        if len(report.decisions) != MARKETS:
            raise RuntimeError("a market was left out")
        return cost

    def quote(self) -> Cost:
        """One look at fresh quotes, half a minute later."""
        self.clock.set_ms(self.clock.now_ms() + 30_000)
        return self._cycle(())[0]

    def _cycle(self, due: tuple[int, ...]) -> tuple[Cost, lb.CycleReport]:
        started, network = time.process_time(), self.exchange.spent_s
        wanted = frozenset(p.pair for p in self.desk.positions) | {o.pair for o in self.desk.orders}
        moment = self.feed.moment(self.clock.now_ms(), due, lb.Conditions(is_reconciled=True), wanted)
        looked = time.process_time()
        reports = lb.trade_now(self.desk, moment, self.executor, self.recorder, self.settings)
        decided = time.process_time()
        self.desk = reports[-1].desk
        cost = Cost(looked - started - (self.exchange.spent_s - network), decided - looked, len(reports[-1].orders))
        return cost, reports[-1]


def signals_s(session: Session) -> float:
    """CPU of the signals alone over the live memory of all markets."""
    exchange, rows = session.exchange, slice(HISTORY - lb.memory_rows(HOUR_S), HISTORY)
    tables = [lb.Series(HOUR_S, exchange.opened[rows], *(np.ascontiguousarray(column[m, rows]) for column in (
        exchange.open, exchange.high, exchange.low, exchange.close, exchange.volume))) for m in range(MARKETS)]
    found = []
    for _ in range(15):
        started = time.process_time()
        for pair, series in zip(PAIRS, tables, strict=True):
            lb.signal_table(pair, series, session.settings.params)
        found.append(time.process_time() - started)
    return statistics.median(found)


def median_ms(costs: Sequence[Cost]) -> Cost:
    """The medians, in ms, and all orders."""
    looking, deciding = (statistics.median(getattr(c, name) for c in costs) * 1000 for name in ("looking", "deciding"))
    return Cost(looking, deciding, sum(c.orders for c in costs))


def main(folder: Path) -> None:
    """Decide every hour of three days, and look at the quotes twice after each."""
    decisions, quotes = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        session = Session(Path(place))
        for number in range(DECISIONS):
            decisions.append(session.decide(number))
            quotes += [session.quote(), session.quote()]
        alone = signals_s(session)
        session.store.close()
    usual = median_ms(decisions)
    note = (f"medians of {DECISIONS} decisions, {usual.orders} orders; looking {usual.looking:.1f} ms (signals one"
            f" market after the other {alone * 1000:.1f}), deciding and writing {usual.deciding:.1f} ms; longest"
            f" {max(c.both for c in decisions) * 1000:.0f} ms")
    tell("PL", f"a decision over {MARKETS} markets, CPU without the network", FIGURE_S * 1000,
         statistics.median(c.both for c in decisions) * 1000, "ms", note)
    usual = median_ms(quotes)
    note = f"median of {len(quotes)}; looking {usual.looking:.1f} ms, deciding and writing {usual.deciding:.1f} ms"
    tell("PL", f"a look at the quotes of {MARKETS} markets, CPU without the network", FIGURE_S * 1000,
         statistics.median(c.both for c in quotes) * 1000, "ms", note)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
