"""Builders of markets, quotes, views, positions, orders, desks and moments, and a stage on which candles are played.

The numbers are made for a pencil: a tick of 0.01, a lot of 0.0001, a spread of 0.2 %, fees of 0.4 % and 0.6 %. A
close of 100 is a bid of 99.90 and an ask of 100.10; a candle of volume 100 fills 10 units at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from candles import HOURLY
from lunobiz import (
    DAY_MS,
    DECISION_DELAY_MS,
    MOMENTUM,
    Candle,
    Case,
    Cause,
    CauseKind,
    Conditions,
    CycleReport,
    Desk,
    Doubt,
    Fill,
    Finding,
    Market,
    MarketView,
    Moment,
    Order,
    OrderIntent,
    OrderKind,
    OrderState,
    Outlook,
    Position,
    Refusal,
    Regime,
    RiskVerdict,
    Settings,
    Settlement,
    Setup,
    Side,
    Signal,
    SimulatedExecutor,
    Ticker,
    assess,
    decide,
    desk_from_json,
    desk_json,
    modelled_quote,
    trade_moment,
)

T0 = 1_767_225_600_000  # Thursday 2026-01-01 00:00 UTC
HOUR = 3_600_000
CLOSE = T0 + 10 * HOUR  # the candle from 9 to 10 o'clock has just closed
NOW = CLOSE + DECISION_DELAY_MS
PAIR = "AAAZAR"
CASH = 100_000.0
ALL_CAUSES = tuple(CauseKind)


def market(base: str = "AAA", **changes: object) -> Market:
    """A market with a tick of 0.01, a lot of 0.0001 and a minimum of 0.01."""
    plain = Market(base + "ZAR", base, "ZAR", 2, 4, 0.01, 100_000.0, 0.01, 1_000_000.0, model_spread=0.002)
    return replace(plain, **changes)  # type: ignore[arg-type]


def quote(bid: float = 99.9, ask: float = 100.1, at_ms: int = CLOSE, **changes: object) -> Ticker:
    """A quote whose last price lies in the middle, of a market with much volume."""
    plain = Ticker(PAIR, at_ms, bid, ask, round((bid + ask) / 2, 6), 1_000_000.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def bar(opened_ms: int = CLOSE - HOUR, prices: Sequence[float] = (100, 100, 100, 100), volume: float = 100.0) -> Candle:
    """A candle from open, high, low and close."""
    return Candle(opened_ms, float(prices[0]), float(prices[1]), float(prices[2]), float(prices[3]), volume)


def setup(**changes: object) -> Setup:
    """A strong momentum entry: stop 5 below, a move of 10 % expected."""
    plain = Setup(MOMENTUM, True, False, 0.9, 5.0, 0.10, (("high", 99.0), ("low", 90.0), ("efficiency", 0.5),
                                                          ("z", 0.0), ("mean", 100.0)))
    return replace(plain, **changes)  # type: ignore[arg-type]


def outlook(*setups: Setup, closed_ms: int = CLOSE, timeframe_s: int = 3600, **changes: object) -> Outlook:
    """A reading of a trending market at 100 with an average range of 1."""
    quiet = (setup(is_entry=False),)
    plain = Outlook(PAIR, timeframe_s, closed_ms - timeframe_s * 1000, 100.0, 1.0, Regime.TRENDING, setups or quiet)
    return replace(plain, **changes)  # type: ignore[arg-type]


def view(**changes: object) -> MarketView:
    """AAAZAR at 100 with a fresh quote, the last bar and a quiet outlook."""
    plain = MarketView(market(), quote(), bar(), (outlook(),))
    return replace(plain, **changes)  # type: ignore[arg-type]


def moment(*views: MarketView, **changes: object) -> Moment:
    """Five seconds after the hour, the hourly candle due."""
    plain = Moment(NOW, views or (view(),), due=(3600,))
    return replace(plain, **changes)  # type: ignore[arg-type]


def signal(**changes: object) -> Signal:
    """A momentum wish at 100 with its stop at 95."""
    plain = Signal(PAIR, MOMENTUM, 3600, CLOSE - HOUR, Regime.TRENDING, 0.9, 95.0, 5.0, 0.10, 0.012, "a reason")
    return replace(plain, **changes)  # type: ignore[arg-type]


def intent(**changes: object) -> OrderIntent:
    """The wish to buy at the bid."""
    plain = OrderIntent(PAIR, Side.BUY, OrderKind.ENTRY, 99.9, 95.0, 0.0, signal(), "a reason")
    return replace(plain, **changes)  # type: ignore[arg-type]


def selling(volume: float = 10.0, **changes: object) -> OrderIntent:
    """The wish to sell at most 2 % below the bid."""
    plain = OrderIntent(PAIR, Side.SELL, OrderKind.EXIT, 97.9, 97.9, volume, None, "trend over")
    return replace(plain, **changes)  # type: ignore[arg-type]


def position(volume: float = 10.0, price: float = 100.0, **changes: object) -> Position:
    """A position bought at one price, stop 5 below."""
    plain = Position(PAIR, volume, price - 5.0, 5.0, CLOSE - HOUR, MOMENTUM, Regime.TRENDING, 3600, price, price,
                     volume, volume * price, round(volume * price * 0.004, 8), 0.006)
    return replace(plain, **changes)  # type: ignore[arg-type]


def order(kind: OrderKind = OrderKind.ENTRY, volume: float = 10.0, limit: float = 99.9, **changes: object) -> Order:
    """An open order made at the last decision; a protection has its stop at 95, an entry gives that stop."""
    side = Side.BUY if kind in (OrderKind.ENTRY, OrderKind.TAKER_ENTRY) else Side.SELL
    expires = NOW + HOUR if kind is OrderKind.ENTRY else 0
    plain = Order("LB1-000001", PAIR, side, kind, OrderState.OPEN, volume, limit, 95.0, NOW, expires, MOMENTUM,
                  Regime.TRENDING, 3600, "a reason")
    return replace(plain, **changes)  # type: ignore[arg-type]


def protection(volume: float = 10.0, stop: float = 95.0, **changes: object) -> Order:
    """A resting stop-limit, its limit 1 % below the stop."""
    plain = order(OrderKind.PROTECTION, volume, round(stop * 0.99, 2), stop=stop)
    return replace(plain, **changes)  # type: ignore[arg-type]


def fill(source: Order, volume: float, price: float, **changes: object) -> Fill:
    """A fill of an order without fees."""
    plain = Fill("F1", source.order_id, source.pair, source.side, source.kind, NOW, price, volume, 0.0, 0.0, True, "")
    return replace(plain, **changes)  # type: ignore[arg-type]


def desk(cash: float = CASH, **changes: object) -> Desk:
    """A desk in the middle of a day that has gone neither up nor down."""
    now = NOW // DAY_MS
    plain = Desk(cash, day=now, week=(now + 3) // 7)
    made = replace(plain, **changes)  # type: ignore[arg-type]
    worth = made.cash + sum(p.volume * p.mark * (1 - p.exit_fee) for p in made.positions)
    return replace(made, day_start_equity=changes.get("day_start_equity", worth),  # type: ignore[arg-type]
                   week_start_equity=changes.get("week_start_equity", worth),  # type: ignore[arg-type]
                   peak_equity=changes.get("peak_equity", worth))  # type: ignore[arg-type]


def cause(kind: CauseKind, **changes: object) -> Cause:
    """A cause since this moment without an end."""
    return replace(Cause(kind, NOW, 0, kind.words), **changes)  # type: ignore[arg-type]


def doubt(kind: Doubt = Doubt.GAP) -> Finding:
    """A finding of this kind."""
    return Finding(kind, "for a test")


def with_limits(**changes: object) -> Settings:
    """Hourly settings with other limits."""
    return replace(HOURLY, limits=replace(HOURLY.limits, **changes))  # type: ignore[arg-type]


def judge(
    wish: OrderIntent | None = None,
    at: Desk | None = None,
    seen: MarketView | None = None,
    settings: Settings | None = None,
    **conditions: object,
) -> RiskVerdict:
    """Risk's word on a wish, by default on a sound entry that risk lets pass."""
    seen = view() if seen is None else seen
    when = moment(seen, conditions=Conditions(**conditions))  # type: ignore[arg-type]
    return assess(Case(wish or intent(), desk() if at is None else at, seen, when, settings or HOURLY))


def run(at: Desk, *views: MarketView, settings: Settings | None = None, settlement: Settlement | None = None,
        **changes: object) -> CycleReport:
    """One `decide` at the usual moment."""
    return decide(at, moment(*views, **changes), settlement or Settlement(), settings or HOURLY)


def kinds(orders: Sequence[Order]) -> list[OrderKind]:
    """What the orders are for."""
    return [o.kind for o in orders]


def fee_of(price: Decimal, volume: Decimal, rate: Decimal) -> Decimal:
    """A fee in counter, rounded up to eight decimals."""
    return (price * volume * rate).quantize(Decimal("0.00000001"), rounding=ROUND_CEILING)


def decimal(value: float) -> Decimal:
    """The shortest decimal that reads as this float."""
    return Decimal(repr(value))


class Watched:
    """The simulated executor, with a diary of what it was asked and a list of what lives at the exchange."""

    def __init__(self, inner: SimulatedExecutor, alive: Mapping[str, Order] | None = None) -> None:
        self._inner = inner
        self.diary: list[str] = []
        self.alive: dict[str, Order] = dict(alive or {})
        self.fills: list[Fill] = []

    def settle(self, when: Moment) -> Settlement:
        """Ask the inner one."""
        answer = self._inner.settle(when)
        self.diary.append("settle")
        self.fills += answer.fills
        for outcome in answer.outcomes:
            if outcome.state in (OrderState.DONE, OrderState.REJECTED):
                self.alive.pop(outcome.order_id, None)
        return answer

    def place(self, wanted: Order) -> None:
        """Pass on."""
        self.diary.append(f"place {wanted.kind.value}")
        self.alive[wanted.order_id] = wanted
        self._inner.place(wanted)

    def cancel(self, wanted: Order) -> None:
        """Pass on; a cancel is answered at once, so the order no longer lives."""
        self.diary.append(f"cancel {wanted.kind.value}")
        self.alive.pop(wanted.order_id, None)
        self._inner.cancel(wanted)


class Tape:
    """A recorder that keeps reports, or refuses."""

    def __init__(self, diary: list[str] | None = None, trouble: Exception | None = None) -> None:
        self.reports: list[CycleReport] = []
        self._diary = diary
        self._trouble = trouble

    def record(self, report: CycleReport) -> None:
        """Keep it."""
        if self._diary is not None:
            self._diary.append("record")
        if self._trouble is not None:
            raise self._trouble
        self.reports.append(report)


class Play(NamedTuple):
    """What one hour brings to one market: the candle and what the strategies read at its close."""

    prices: Sequence[float]
    volume: float = 100.0
    setups: tuple[Setup, ...] = ()
    atr: float = 1.0
    findings: tuple[Finding, ...] = ()


ENTER = (setup(),)
LEAVE = (setup(is_entry=False, is_exit=True),)


class Stage:
    """Hourly candles played through `trade_moment` and the simulated executor, one hour after the other."""

    def __init__(self, settings: Settings | None = None, cash: float = CASH, start_ms: int = CLOSE,
                 is_killed: Callable[[], bool] = lambda: False) -> None:
        self.settings = settings or HOURLY
        self.desk = Desk(cash)
        self.next_close = start_ms
        self.is_killed = is_killed
        self.executor = Watched(SimulatedExecutor(self.settings.costs, is_killed))
        self.tape = Tape()
        self.fills: list[Fill] = []

    def hour(self, prices: Sequence[float], volume: float = 100.0, setups: tuple[Setup, ...] = (),
             **changes: object) -> tuple[CycleReport, ...]:
        """Play one candle of AAAZAR."""
        atr = changes.pop("atr", 1.0)
        return self.hours({"AAA": Play(prices, volume, setups, float(str(atr)))}, **changes)

    def hours(self, plays: Mapping[str, Play], **changes: object) -> tuple[CycleReport, ...]:
        """Play one candle of each market."""
        closed, self.next_close = self.next_close, self.next_close + HOUR
        views = tuple(self._view(base, plays[base], closed) for base in sorted(plays))
        when = replace(Moment(closed + DECISION_DELAY_MS, views, due=(3600,)), **changes)  # type: ignore[arg-type]
        reports = trade_moment(self.desk, when, self.executor, self.tape, self.settings)
        self.desk = reports[-1].desk
        self.fills += [f for r in reports for f in r.settlement.fills]
        return reports

    def _view(self, base: str, play: Play, closed: int) -> MarketView:
        this = market(base)
        candle = bar(closed - HOUR, play.prices, play.volume)
        bid, ask = modelled_quote(this, candle)
        seen = Ticker(this.pair, closed, bid, ask, candle.close, 1_000_000.0)
        read = outlook(*play.setups, closed_ms=closed, pair=this.pair, close=candle.close, atr=play.atr)
        return MarketView(this, seen, candle, (read,), None, play.findings)

    def restart(self) -> None:
        """Throw the executor away and go on with the desk as it was written."""
        self.desk = desk_from_json(desk_json(self.desk))
        inner = SimulatedExecutor(self.settings.costs, self.is_killed, self.desk.orders)
        alive = {o.order_id: o for o in self.desk.orders if not o.is_cancelling}
        self.executor = Watched(inner, alive)

    def told(self) -> list[tuple[str, str, float, float]]:
        """Kind, side, volume and price of each fill so far."""
        return [(f.kind.value, f.side.value, f.volume, f.price) for f in self.fills]

    def events(self) -> list[str]:
        """Kinds of the events so far."""
        return [e.kind for r in self.tape.reports for e in r.events]


def codes(report: CycleReport) -> list[str]:
    """The codes of the decisions."""
    return [d.code for d in report.decisions]


def refusal(verdict: RiskVerdict) -> Refusal | None:
    """The refusal of a verdict."""
    return verdict.refusal
