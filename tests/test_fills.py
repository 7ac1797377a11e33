"""FILLS: tables of candles, quotes and books, one comment each, with the fill that a pencil gives.

The market has a tick of 0.01 and a lot of 0.0001, fees of 0.4 % and 0.6 %, a modelled spread of 0.2 %; slippage is
0.1 %. Views without a quote keep the spread modelled: a taker at an open of 100 pays half a spread, 0.1 %, and
slippage, 0.1 %, so 100 x 1.001 x 1.001 = 100.2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from desks import CLOSE, HOUR, NOW, bar, decimal, fee_of, market, order, protection, quote, view
from lunobiz import (
    DAY_MS,
    Candle,
    Costs,
    MarketView,
    Order,
    OrderBook,
    OrderKind,
    Side,
    Ticker,
    execute,
    fill_of,
    half_spread,
    is_stop_reached,
    modelled_quote,
    rolling_volume,
    walk_book,
)

AFTER = NOW + HOUR  # the next decision
SLACK_MS = 15_000  # a bar may have opened this much before the order
COSTS = Costs()
ENTRY = order(limit=99.9)
EXIT = order(OrderKind.EXIT, 10.0, 98.0)
TAKER = order(OrderKind.TAKER_ENTRY, 10.0, 102.0)
STOP = protection()  # stop 95, limit 94.05
GAPPED = replace(STOP, is_triggered=True)


def after(prices: tuple[float, float, float, float], volume: float = 100.0) -> MarketView:
    """A view with nothing but the candle that opened as the order was made."""
    return view(ticker=None, bar=bar(CLOSE, prices, volume))


def ticks(last: float, bid: float = 99.9, ask: float = 100.1, at_ms: int = NOW + 1) -> MarketView:
    """A view with nothing but a quote newer than the order."""
    return view(ticker=quote(bid, ask, at_ms, last=last), bar=None)


def levels(side: Side, *rows: tuple[float, float], at_ms: int = NOW + 1) -> MarketView:
    """A view with a book newer than the order, nothing on its other side."""
    book = OrderBook(at_ms, rows, ()) if side is Side.SELL else OrderBook(at_ms, (), rows)
    return view(ticker=None, bar=None, book=book)


class Row(NamedTuple):
    """An order, what the market showed, and the fill expected: price, volume, maker; None for no fill."""

    why: str
    order: Order
    view: MarketView
    fill: tuple[float, float, bool] | None
    is_triggered: bool = False


#                                          open   high   low    close
RESTING = (
    # the price comes down to the limit only: somebody else was first
    Row("at the limit", ENTRY, after((100.0, 101.0, 99.90, 100.0)), None),
    # one tick beyond it: ours was filled, at its own price, a tenth of 100 units
    Row("one tick beyond", ENTRY, after((100.0, 101.0, 99.89, 100.0)), (99.9, 10.0, True)),
    # opened far below: a resting order still fills at its limit, never better
    Row("gap below", ENTRY, after((80.0, 81.0, 79.0, 80.0)), (99.9, 10.0, True)),
    # a tenth of 30 units
    Row("thin bar", ENTRY, after((100.0, 101.0, 99.0, 100.0), 30.0), (99.9, 3.0, True)),
    # 6 of 10 filled before: the rest
    Row("the rest", replace(ENTRY, filled=6.0), after((100.0, 101.0, 99.0, 100.0)), (99.9, 4.0, True)),
    # nobody traded
    Row("empty bar", ENTRY, after((100.0, 101.0, 99.0, 100.0), 0.0), None),
    # less than a lot
    Row("crumb", ENTRY, after((100.0, 101.0, 99.0, 100.0), 0.0009), None),
    # the bar had opened too long before the order
    Row("older bar", ENTRY, view(ticker=None, bar=bar(NOW - SLACK_MS - 1, (100, 101, 99, 100))), None),
    # opened just as long before it as a bar may
    Row("bar in time", ENTRY, view(ticker=None, bar=bar(NOW - SLACK_MS, (100, 101, 99, 100))),
        (99.9, 10.0, True)),
    # a bar that shows nothing outweighs the quote taken at its end
    Row("bar before quote", ENTRY, view(ticker=quote(90.0, 90.1, AFTER, last=90.0),
                                        bar=bar(CLOSE, (100, 101, 99.9, 100))), None),
    # the ask is a tick below our bid: somebody would have sold to us
    Row("ask beyond", ENTRY, ticks(99.95, 99.80, 99.89), (99.9, 10.0, True)),
    Row("ask at the limit", ENTRY, ticks(99.95, 99.80, 99.90), None),
    # a trade a tick below our bid
    Row("trade beyond", ENTRY, ticks(99.89, 99.80, 100.0), (99.9, 10.0, True)),
    Row("trade at the limit", ENTRY, ticks(99.90, 99.80, 100.0), None),
    # 0.3 less 0.1 is 0.2, not the float below it
    Row("the rest on the grid", replace(ENTRY, volume=0.3, filled=0.1), ticks(99.89, 99.80, 100.0), (99.9, 0.2, True)),
    # an ask of zero is no ask
    Row("no ask", ENTRY, ticks(99.95, 99.80, 0.0), None),
    Row("neither trade nor ask", ENTRY, ticks(0.0, 99.80, 0.0), None),
    # a quote as old as the order, and one older
    Row("quote of the same moment", ENTRY, ticks(90.0, 89.0, 90.0, NOW), None),
    Row("older quote", ENTRY, ticks(90.0, 89.0, 90.0, NOW - 1), None),
    Row("nothing to see", ENTRY, view(ticker=None, bar=None), None),
    # a book is no evidence for a resting order
    Row("book only", ENTRY, levels(Side.BUY, (90.0, 100.0)), None),
)

TAKING = (
    # sold at the open: 100 x 0.999 x 0.999 = 99.8001, down to the tick
    Row("exit at the open", EXIT, after((100.0, 100.0, 90.0, 90.0)), (99.80, 10.0, False)),
    # bought at the open: 100 x 1.001 x 1.001 = 100.2001, up to the tick
    Row("entry at the open", TAKER, after((100.0, 110.0, 100.0, 110.0)), (100.21, 10.0, False)),
    # the quote's spread of 2 % counts where there is one: 100 x 0.99 x 0.999 = 98.901
    Row("quoted spread", EXIT, view(ticker=quote(99.0, 101.0), bar=bar(CLOSE)), (98.90, 10.0, False)),
    # 98.1970 x 0.999 x 0.999 = 98.0007 passes 98, 98.1960 gives 97.9997 and does not
    Row("just within the bound", EXIT, after((98.1970, 99.0, 98.0, 98.0)), (98.00, 10.0, False)),
    Row("just beyond the bound", EXIT, after((98.1960, 99.0, 98.0, 98.0)), None),
    # bought at most at 102: 101.80 gives 102.0037
    Row("entry beyond its bound", TAKER, after((101.80, 102.0, 101.0, 102.0)), None),
    Row("a tenth of the bar", EXIT, after((100.0, 100.0, 99.0, 99.0), 12.3456), (99.80, 1.2345, False)),
    Row("an empty bar", EXIT, after((100.0, 100.0, 99.0, 99.0), 0.0), None),
    Row("an older bar", EXIT, view(ticker=None, bar=bar(CLOSE - HOUR)), None),
    Row("a quote alone is no counterparty", EXIT, ticks(100.0), None),
    # the first bid holds it all: 99.90 x 0.999 = 99.8001
    Row("first level", EXIT, levels(Side.SELL, (99.90, 50.0)), (99.80, 10.0, False)),
    # 4 at 99.90 and 6 at 99.40 are 99.60 on average, x 0.999 = 99.5004
    Row("two levels", EXIT, levels(Side.SELL, (99.90, 4.0), (99.40, 60.0)), (99.50, 10.0, False)),
    # 98.10 x 0.999 = 98.0019 passes 98; 98.09 does not: the rest stays
    Row("down to the bound", EXIT, levels(Side.SELL, (99.90, 4.0), (98.10, 2.0), (98.09, 60.0)), (99.20, 6.0, False)),
    Row("nothing within the bound", EXIT, levels(Side.SELL, (98.09, 60.0)), None),
    # 4 at 100.10 and 6 at 100.60 are 100.40, x 1.001 = 100.5004
    Row("buying two levels", TAKER, levels(Side.BUY, (100.10, 4.0), (100.60, 60.0)), (100.51, 10.0, False)),
    Row("buying beyond the bound", TAKER, levels(Side.BUY, (101.90, 60.0)), None),
    Row("a book of dust", EXIT, levels(Side.SELL, (99.90, 0.00009)), None),
    Row("an empty book", EXIT, levels(Side.SELL), None),
    # a book of the order's own moment is what it was decided on
    Row("book as old as the order", EXIT, levels(Side.SELL, (99.90, 50.0), at_ms=NOW), None),
    # the old book gives way to the new bar, the new book goes before it
    Row("old book, new bar", EXIT, replace(levels(Side.SELL, (99.90, 1.0), at_ms=NOW), bar=bar(CLOSE)),
        (99.80, 10.0, False)),
    Row("new book, new bar", EXIT, replace(levels(Side.SELL, (99.90, 1.0)), bar=bar(CLOSE)), (99.80, 1.0, False)),
)

PROTECTING = (
    # the low stays a cent above the stop
    Row("not reached", STOP, after((100.0, 101.0, 95.01, 96.0)), None),
    # reached from above: 95 x 0.999 x 0.999 = 94.810095, down to the tick
    Row("reached", STOP, after((100.0, 101.0, 95.0, 96.0)), (94.81, 10.0, False), True),
    # opened below the stop: the open counts, 94.80 x 0.998001 = 94.6104
    Row("opened below", STOP, after((94.80, 95.0, 90.0, 90.0)), (94.61, 10.0, False), True),
    # 94.2390 x 0.998001 = 94.0506 is the limit of 94.05; 94.2380 gives 94.0496 and is not
    Row("gap down to the limit", STOP, after((94.2390, 95.0, 90.0, 90.0)), (94.05, 10.0, False), True),
    Row("gap through the limit", STOP, after((94.2380, 99.0, 90.0, 90.0)), None, True),
    # a tenth of 25 units; it has been reached all the same
    Row("thin bar", STOP, after((100.0, 100.0, 95.0, 96.0), 25.0), (94.81, 2.5, False), True),
    Row("empty bar", STOP, after((100.0, 100.0, 95.0, 96.0), 0.0), None, True),
    # reached before and left behind: now it rests as a sale at 94.05
    Row("resting sale: up to its limit", GAPPED, after((93.0, 94.05, 92.0, 93.0)), None, True),
    Row("resting sale: one tick beyond", GAPPED, after((93.0, 94.06, 92.0, 93.0)), (94.05, 10.0, True), True),
    Row("resting sale: never better", GAPPED, after((99.0, 99.0, 98.0, 99.0)), (94.05, 10.0, True), True),
    Row("resting sale: by a trade", GAPPED, ticks(94.06, 94.0, 94.2), (94.05, 10.0, True), True),
    Row("resting sale: no evidence", GAPPED, view(ticker=None, bar=None), None, True),
    # a trade at the stop: 95 x (1 - half of 0.1/95.05) x 0.999 = 94.8550
    Row("by a trade", STOP, ticks(95.0, 95.0, 95.1), (94.85, 10.0, False), True),
    Row("the rest on the grid, by a trade", replace(STOP, volume=0.3, filled=0.1), ticks(95.0, 95.0, 95.1),
        (94.85, 0.2, False), True),
    Row("by a trade above the stop", STOP, ticks(95.01, 95.0, 95.1), None),
    # the bar tells more than the quote at its end
    Row("bar before quote", STOP, view(ticker=quote(90.0, 90.1, AFTER, last=90.0), bar=bar(CLOSE)), None),
    Row("older evidence", STOP, view(ticker=quote(90.0, 90.1, NOW, last=90.0), bar=bar(CLOSE - HOUR, (9, 9, 9, 9))),
        None),
)


@pytest.mark.parametrize("row", [*RESTING, *TAKING, *PROTECTING], ids=lambda r: r.why)
def test_the_table_of_fills(row: Row) -> None:
    """Price, volume, maker or taker, and whether the stop has been reached."""
    execution, is_triggered = execute(row.order, row.view, COSTS)
    found = None if execution is None else (execution.price, execution.volume, execution.is_maker)
    assert found == row.fill
    assert is_triggered == row.is_triggered
    assert execution is None or execution.evidence


def test_a_trade_older_than_the_quote_is_no_evidence() -> None:
    """The last trade was at 95 before bids came in at 99.90: a new bid at 99.90 is not filled by it.

    In a thin market the last trade may be hours old while its quote is fresh; what is below the best bid was traded
    before that bid was there.
    """
    assert execute(ENTRY, ticks(95.0, 99.90, 100.10), COSTS) == (None, False)


def test_a_trade_older_than_the_quote_reaches_no_stop() -> None:
    """The same last trade of 95 does not stop out what can be sold at 99.90."""
    assert execute(STOP, ticks(95.0, 99.90, 100.10), COSTS) == (None, False)


def test_a_stop_is_reached_at_the_stop() -> None:
    """At or below; without any evidence not at all."""
    assert is_stop_reached(STOP, after((100.0, 100.0, 95.0, 96.0)))
    assert not is_stop_reached(STOP, after((100.0, 100.0, 95.01, 96.0)))
    assert not is_stop_reached(STOP, view(ticker=None, bar=None))


def test_the_fee_of_a_fill_is_rounded_up() -> None:
    """1.2345 at 99.80 with 0.6 % is 0.7392186; what is less than the eighth decimal counts as one of them."""
    execution, _ = execute(EXIT, after((100.0, 100.0, 99.0, 99.0), 12.3456), COSTS)
    assert execution is not None
    done = fill_of(EXIT, execution, market(), AFTER)
    assert decimal(done.fee_counter) == fee_of(Decimal("99.8"), Decimal("1.2345"), Decimal("0.006")) \
        == Decimal("0.7392186")
    assert (done.fee_base, done.is_maker, done.time_ms) == (0.0, False, AFTER)
    assert (done.order_id, done.pair, done.side, done.kind) == (EXIT.order_id, EXIT.pair, EXIT.side, EXIT.kind)
    assert done.fill_id == f"{EXIT.order_id}@{AFTER}"
    maker = fill_of(ENTRY, execution._replace(price=99.90, is_maker=True, volume=0.3333), market(), AFTER)
    assert decimal(maker.fee_counter) == fee_of(Decimal("99.9"), Decimal("0.3333"), Decimal("0.004"))
    dear = fill_of(ENTRY, execution._replace(price=0.01, volume=0.0001), market(), AFTER)
    assert dear.fee_counter == 0.00000001


def test_half_the_spread_is_quoted_or_modelled() -> None:
    """0.2 over 100 is 0.2 %, half of it 0.1 %; without a quote or a price in it the model's."""
    assert half_spread(view()) == pytest.approx(0.001)
    assert half_spread(view(ticker=quote(99.0, 101.0))) == pytest.approx(0.01)
    assert half_spread(view(ticker=None, market=market(model_spread=0.004))) == 0.002
    assert half_spread(view(ticker=quote(0.0, 0.0, last=1.0), market=market(model_spread=0.004))) == 0.002


@pytest.mark.parametrize(("close", "scale", "expected"), [
    (100.0, 2, (99.90, 100.10)),
    (100.03, 2, (99.92, 100.14)),  # 99.92997 down, 100.13003 up
    (0.05, 2, (0.04, 0.06)),  # 0.04995 and 0.05005
    (1_000.0, 0, (999.0, 1_001.0)),
])
def test_the_modelled_quote(close: float, scale: int, expected: tuple[float, float]) -> None:
    """The close less and plus half the spread, each rounded against us."""
    assert modelled_quote(market(price_scale=scale), bar(prices=(close,) * 4)) == expected


def test_the_modelled_quote_is_never_closed() -> None:
    """Without a spread there is still a tick between bid and ask."""
    assert modelled_quote(market(model_spread=0.0), bar()) == (100.0, 100.01)


@given(st.floats(0.01, 1e6), st.integers(0, 6), st.floats(0.0, 0.02))
def test_bid_and_ask_enclose_the_close(close: float, scale: int, spread: float) -> None:
    """On the grid, bid below ask, the close between them."""
    this = market(price_scale=scale, model_spread=spread)
    bid, ask = modelled_quote(this, bar(prices=(close,) * 4))
    slack = 1e-6 * this.tick
    assert bid < ask
    assert bid <= close + slack and ask >= close - slack
    assert round(bid, scale) == bid and round(ask, scale) == ask


def test_the_volume_of_24_hours_by_hand() -> None:
    """Eight-hour candles: three fill a day, the fourth pushes the first out; a hole leaves its volume out."""
    opened = np.array([0, 8, 16, 24, 40], dtype=np.int64) * HOUR
    volume = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert rolling_volume(opened, volume, 8 * 3600).tolist() == [1.0, 3.0, 7.0, 14.0, 24.0]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 1_000)), min_size=1, max_size=60))
def test_the_volume_of_24_hours(rows: list[tuple[int, int]]) -> None:
    """The sum of what opened in the 24 hours up to each candle's end."""
    opened = np.cumsum([hours for hours, _ in rows]) * HOUR
    volume = np.array([v / 8 for _, v in rows])
    found = rolling_volume(opened.astype(np.int64), volume, 3600)
    for row, end in enumerate(opened + HOUR):
        inside = [v for o, v in zip(opened, volume, strict=True) if end - DAY_MS <= o < end]
        assert found[row] == pytest.approx(sum(inside), abs=1e-8)


# ---- what no market can do to an order -------------------------------------------------------------------

PRICES = st.integers(8_000, 12_000).map(lambda n: n / 100)


@st.composite
def markets_shown(draw: st.DrawFn) -> MarketView:
    """Any candle, quote and book around 100, fresh or old."""
    low, high = sorted((draw(PRICES), draw(PRICES)))
    within = st.integers(round(low * 100), round(high * 100)).map(lambda n: n / 100)
    candle = Candle(CLOSE + draw(st.sampled_from((-HOUR, -10_000, 0, HOUR))), draw(within), high, low, draw(within),
                    draw(st.floats(0.0, 300.0)))
    bid = draw(PRICES)
    ticker = quote(bid, bid + draw(st.floats(0.01, 2.0)), NOW + draw(st.integers(-5, 5)), last=draw(PRICES))
    sides = [sorted((draw(st.lists(st.tuples(PRICES, st.floats(0.0, 20.0)), max_size=5))), reverse=down)
             for down in (True, False)]
    book = OrderBook(NOW + draw(st.integers(-5, 5)), tuple(sides[0]), tuple(sides[1]))
    return view(bar=draw(st.none() | st.just(candle)), ticker=draw(st.none() | st.just(ticker)),
                book=draw(st.none() | st.just(book)))


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any order around 100, filled in part or not."""
    kind = draw(st.sampled_from(list(OrderKind)))
    lots = draw(st.integers(1, 200_000))
    volume, filled = lots / 10_000, draw(st.integers(0, lots - 1)) / 10_000
    limit = draw(PRICES)
    return order(kind, volume, limit, filled=filled, is_triggered=draw(st.booleans()),
                 stop=limit if kind is OrderKind.EXIT else round(limit / 0.99, 2))


@given(orders(), markets_shown())
@hypothesis_settings(max_examples=500)
def test_no_fill_is_better_or_larger_than_the_order_allows(wanted: Order, seen: MarketView) -> None:
    """Never past the limit, never more than the rest or a tenth of the bar, on the grids, never from old news."""
    execution, _ = execute(wanted, seen, COSTS)
    if execution is None:
        return
    assert 0 < execution.volume <= wanted.remaining + 1e-9
    assert round(execution.volume, 4) == execution.volume and round(execution.price, 2) == execution.price
    sign = 1 if wanted.side is Side.BUY else -1
    assert sign * (wanted.limit - execution.price) >= 0
    if execution.is_maker:
        assert execution.price == wanted.limit
        assert wanted.kind in (OrderKind.ENTRY, OrderKind.PROTECTION)
    has_bar = seen.bar is not None and seen.bar.opened_ms + SLACK_MS >= wanted.created_ms
    has_quote = seen.ticker is not None and seen.ticker.time_ms > wanted.created_ms
    has_book = seen.book is not None and seen.book.time_ms > wanted.created_ms
    assert has_bar or has_quote or has_book
    if execution.evidence != "book" and has_bar and seen.bar is not None:
        assert execution.volume <= seen.bar.volume * 0.1 + 1e-9
    if execution.evidence == "book" and seen.book is not None:
        side = seen.book.asks if wanted.side is Side.BUY else seen.book.bids
        assert execution.volume <= sum(v for _, v in side) + 1e-9
        assert sign * (execution.price - side[0][0]) > 0


@given(st.lists(st.tuples(PRICES, st.floats(0.0, 20.0)), max_size=6), st.floats(0.0, 60.0), PRICES)
def test_walking_a_book(rows: list[tuple[float, float]], wanted: float, bound: float) -> None:
    """All that is within the bound is taken, from the best level on, and no more than wanted."""
    rows.sort()
    volume, value = walk_book(rows, wanted, lambda price: price <= bound)
    within = [(p, v) for p, v in rows if p <= bound]
    assert volume == pytest.approx(min(wanted, math.fsum(v for _, v in within)), abs=1e-9)
    if volume > 1e-9:
        assert rows[0][0] - 1e-9 <= value / volume <= bound + 1e-9


@pytest.mark.parametrize("make", [lambda: ENTRY, lambda: EXIT, lambda: TAKER, lambda: STOP])
def test_nothing_fills_on_evidence_older_than_the_order(make: Callable[[], Order]) -> None:
    """The bar, quote and book it was decided on, each as tempting as can be, fill no order."""
    cheap = Ticker("AAAZAR", NOW, 0.01, 0.02, 0.01, 1e9)
    dear = Ticker("AAAZAR", NOW, 1e5, 1e5, 1e5, 1e9)
    for ticker, price in ((cheap, 0.02), (dear, 1e5)):
        book = OrderBook(NOW, ((price, 1e6),), ((price, 1e6),))
        old = view(ticker=ticker, bar=bar(CLOSE - HOUR, (price,) * 4, 1e9), book=book)
        for wanted in (make(), replace(make(), is_triggered=make().kind is OrderKind.PROTECTION)):
            assert execute(wanted, old, COSTS)[0] is None
