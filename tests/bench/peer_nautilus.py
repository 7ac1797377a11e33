"""Works A and C in nautilus_trader. A market order fills at the close it was sent at, not at the next open."""

from __future__ import annotations

from decimal import Decimal

import pandas as pd
import works as w
from market import CANDLE_MS, Candles
from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig, RiskEngineConfig, StrategyConfig
from nautilus_trader.indicators import AverageTrueRange, DonchianChannel, MovingAverageType
from nautilus_trader.model import currencies
from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.enums import AccountType, OmsType, OrderSide
from nautilus_trader.model.identifiers import InstrumentId, Symbol, Venue
from nautilus_trader.model.instruments import CurrencyPair
from nautilus_trader.model.objects import Money, Price, Quantity
from nautilus_trader.persistence.wranglers import BarDataWrangler
from nautilus_trader.trading.strategy import Strategy
from serve import Run, serve
from works import Outcome, Rule

VENUE, COUNTER = Venue("BENCH"), currencies.USDT
BASES = (currencies.BTC, currencies.ETH, currencies.SOL, currencies.XRP, currencies.ADA)


def instrument(number: int) -> CurrencyPair:
    """One of the generated markets, with two decimals of price and six of volume."""
    symbol = Symbol(f"{BASES[number].code}{COUNTER.code}")
    fee = Decimal(str(w.FEE))
    return CurrencyPair(
        instrument_id=InstrumentId(symbol, VENUE), raw_symbol=symbol, base_currency=BASES[number],
        quote_currency=COUNTER, price_precision=2, size_precision=6, price_increment=Price(0.01, 2),
        size_increment=Quantity(0.000001, 6), maker_fee=fee, taker_fee=fee, ts_event=0, ts_init=0,
    )


class Config(StrategyConfig, frozen=True):
    """The bars to follow, in the order of the markets."""

    bars: list[str]


class Market:
    """What the strategy knows of one market."""

    def __init__(self, pair: CurrencyPair, rule: Rule) -> None:
        self.pair = pair
        self.tops, self.floors = DonchianChannel(rule.entry), DonchianChannel(rule.leave)
        self.ranges = AverageTrueRange(w.RANGE_CANDLES, MovingAverageType.WILDER)
        self.top = self.floor = self.close = self.held = self.stop = 0.0
        self.protection = None

    def take(self, bar: Bar) -> None:
        """Remember the channels of before, then take the bar in."""
        high, low, self.close = bar.high.as_double(), bar.low.as_double(), bar.close.as_double()
        self.top, self.floor = self.tops.upper, self.floors.lower
        self.tops.update_raw(high, low)
        self.floors.update_raw(high, low)
        self.ranges.update_raw(high, low, self.close)


class Breakout(Strategy):
    """The rules over one market with one unit, or over several in one account."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rule, self.purchases, self.rows = w.USUAL, 0, 0
        self.day, self.day_start, self.equity, self.is_halted = -1, w.CASH, w.CASH, False
        self.markets: list[Market] = []

    def on_start(self) -> None:
        """Follow the bars."""
        for text in self.config.bars:
            kind = BarType.from_str(text)
            self.markets.append(Market(self.cache.instrument(kind.instrument_id), self.rule))
            self.subscribe_bars(kind)
        self.by_id = {m.pair.id: m for m in self.markets}
        self.is_account = len(self.markets) > 1

    def on_bar(self, bar: Bar) -> None:
        """The rules are applied when the last market's bar of a candle is in."""
        market = self.by_id[bar.bar_type.instrument_id]
        market.take(bar)
        if market is self.markets[-1]:
            self.rows += 1
            if self.is_account:
                self.review_day(bar.ts_event)
            self.decide()

    def review_day(self, closed_ns: int) -> None:
        """The daily cap; the candle that ends at midnight belongs to the day before."""
        day = (closed_ns - 1) // 86_400_000_000_000
        if day != self.day:
            self.day, self.day_start, self.is_halted = day, self.equity, False
        cash = self.portfolio.account(VENUE).balance_total(COUNTER).as_double()
        self.equity = cash + sum(m.held * m.close for m in self.markets)
        self.is_halted = self.is_halted or self.equity <= self.day_start * (1 - w.DAY_CAP)

    def decide(self) -> None:
        """Leave, then enter while there is a place; who leaves keeps its place in this candle."""
        held = [m for m in self.markets if m.held]
        free = (w.PLACES if self.is_account else 1) - len(held)
        for market in held:
            if self.is_halted or market.close < market.floor:
                self.leave(market)
        for market in self.markets if self.rows > w.WARM_UP and not self.is_halted else ():
            if free > 0 and market not in held and market.close > market.top:
                self.enter(market)
                free -= 1

    def leave(self, market: Market) -> None:
        """Take the stop off and sell."""
        if market.protection is not None:
            self.cancel_order(market.protection)
        volume = market.pair.make_qty(market.held)
        self.submit_order(self.order_factory.market(market.pair.id, OrderSide.SELL, volume))

    def enter(self, market: Market) -> None:
        """Buy one unit, or what the risk allows."""
        distance = self.rule.stop * market.ranges.value
        sized = min(w.RISK * self.equity / distance, w.LARGEST * self.equity / market.close)
        market.stop = market.close - distance
        volume = market.pair.make_qty(sized if self.is_account else 1.0)
        self.submit_order(self.order_factory.market(market.pair.id, OrderSide.BUY, volume))

    def on_order_filled(self, event) -> None:
        """A purchase gets its stop."""
        market = self.by_id[event.instrument_id]
        if event.order_side != OrderSide.BUY:
            market.held, market.protection = 0.0, None
            return
        self.purchases += 1
        market.held = event.last_qty.as_double()
        market.protection = self.order_factory.stop_market(
            market.pair.id, OrderSide.SELL, event.last_qty, market.pair.make_price(market.stop)
        )
        self.submit_order(market.protection)


def prepare(c: Candles, markets: int) -> Run:
    """The library's own bars, one market after the other within each candle."""
    pairs = [instrument(m) for m in range(markets)]
    kinds = [f"{p.id}-5-MINUTE-LAST-EXTERNAL" for p in pairs]
    closed = pd.to_datetime(c.opened + CANDLE_MS, unit="ms", utc=True)
    columns = []
    for m, pair in enumerate(pairs):
        table = pd.DataFrame({"open": c.open[m], "high": c.high[m], "low": c.low[m], "close": c.close[m],
                              "volume": 1e6}, index=closed)  # as much as anybody wants
        columns.append(BarDataWrangler(BarType.from_str(kinds[m]), pair).process(table))
    bars = [bar for row in zip(*columns, strict=True) for bar in row]

    def run() -> Outcome:
        quiet = LoggingConfig(bypass_logging=True)
        engine = BacktestEngine(BacktestEngineConfig(trader_id="BENCH-001", logging=quiet, run_analysis=False,
                                                     risk_engine=RiskEngineConfig(bypass=True)))
        engine.add_venue(VENUE, OmsType.NETTING, AccountType.CASH, [Money(w.CASH, COUNTER)])
        for pair in pairs:
            engine.add_instrument(pair)
        engine.add_data(bars)
        strategy = Breakout(Config(bars=kinds))
        engine.add_strategy(strategy)
        engine.run()
        cash = engine.portfolio.account(VENUE).balance_total(COUNTER).as_double()
        worth = cash + sum(m.held * m.close for m in strategy.markets)
        engine.dispose()
        return Outcome(strategy.purchases, worth - w.CASH)

    return run


def work_a(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One market."""
    return prepare(c, 1)


def work_c(c: Candles, rules: tuple[Rule, ...]) -> Run:
    """One account."""
    return prepare(c, len(c.close))


if __name__ == "__main__":
    serve("nautilus_trader", {"A": work_a, "C": work_c})
