"""The exchange inside the program: Luno's shapes, one market per seed, honest matching, exact balances, faults."""

from __future__ import annotations

import gc
import json
import random
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from email.utils import parsedate_to_datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from lunobiz import (
    DEMO_START_MS,
    Credentials,
    DemoExchange,
    ExchangeDown,
    Fault,
    Floats,
    LunoClient,
    Market,
    RateLimit,
    Reply,
    SteppedClock,
)

KEY = Credentials("cnz2yjswbv3jd", "not-a-real-secret")
DAY_MS = 86_400_000
STEP_MS = 300_000
T0 = 1_700_006_400_000  # 2023-11-15T00:00Z
PAIRS = ("XBTZAR", "ETHZAR", "XRPZAR", "SOLZAR", "LTCZAR", "ADAZAR", "LINKZAR")

MARKETS, TICKERS, TICKER = "/api/exchange/1/markets", "/api/1/tickers", "/api/1/ticker"
BOOK, TRADES, CANDLES = "/api/1/orderbook_top", "/api/1/trades", "/api/exchange/1/candles"
FEES, BALANCE = "/api/1/fee_info", "/api/1/balance"
ORDER, ORDERS, FILLS = "/api/exchange/3/order", "/api/exchange/2/listorders", "/api/1/listtrades"
POST, STOP = "/api/1/postorder", "/api/1/stoporder"


def call(exchange: DemoExchange, path: str, method: str = "GET", /, **params: object) -> Reply:
    """One request with the key."""
    return exchange.send(method, path, [(name, str(value)) for name, value in params.items()], KEY)


def answer(exchange: DemoExchange, path: str, method: str = "GET", /, **params: object) -> dict[str, object]:
    """The JSON of a request that must succeed."""
    reply = call(exchange, path, method, **params)
    assert reply.status == 200, reply.body
    found: dict[str, object] = json.loads(reply.body)
    return found


def rows(exchange: DemoExchange, path: str, name: str, /, **params: object) -> list[dict[str, object]]:
    """The objects of a list answer."""
    found = answer(exchange, path, **params)[name]
    assert isinstance(found, list)
    return found


def code(reply: Reply) -> tuple[int, str]:
    """Status and error code of a refusal, its shape checked."""
    body = json.loads(reply.body)
    assert set(body) == {"error", "error_code", "error_action"} and isinstance(body["error"], str)
    return reply.status, body["error_code"]


# ---- shapes: the documented examples, field by field ------------------------

EIGHT = re.compile(r"[0-9]+\.[0-9]{8}")
PLAIN = re.compile(r"[0-9]+\.[0-9]{2,8}")
WORD = re.compile(r"[A-Za-z0-9_-]*")
Shape = Mapping[str, type | re.Pattern[str]]
TICKER_SHAPE: Shape = {
    "pair": WORD, "timestamp": int, "bid": EIGHT, "ask": EIGHT, "last_trade": EIGHT,
    "rolling_24_hour_volume": EIGHT, "status": WORD,
}  # fmt: skip
MARKET_SHAPE: Shape = {
    "market_id": WORD, "trading_status": WORD, "base_currency": WORD, "counter_currency": WORD, "min_volume": PLAIN,
    "max_volume": PLAIN, "volume_scale": int, "min_price": PLAIN, "max_price": PLAIN, "price_scale": int,
    "fee_scale": int,
}  # fmt: skip
LEVEL_SHAPE: Shape = {"price": EIGHT, "volume": EIGHT}
PRINT_SHAPE: Shape = {"sequence": int, "timestamp": int, "price": EIGHT, "volume": EIGHT, "is_buy": bool}
CANDLE_SHAPE: Shape = {"timestamp": int, "open": PLAIN, "close": PLAIN, "high": PLAIN, "low": PLAIN, "volume": PLAIN}
FEE_SHAPE: Shape = {
    "thirty_day_volume": WORD, "maker_fee": EIGHT, "taker_fee": EIGHT, "maker_fee_buy": EIGHT, "maker_fee_sell": EIGHT,
    "taker_fee_buy": EIGHT, "taker_fee_sell": EIGHT,
}  # fmt: skip
BALANCE_SHAPE: Shape = {
    "account_id": re.compile("[0-9]{19}"), "asset": WORD, "balance": PLAIN, "reserved": PLAIN, "unconfirmed": PLAIN,
    "name": WORD,
}  # fmt: skip
ORDER_SHAPE: Shape = {
    "order_id": re.compile("BX[0-9A-Z]{13}"), "creation_timestamp": int, "expiration_timestamp": int,
    "completed_timestamp": int, "type": WORD, "side": WORD, "status": WORD, "limit_price": PLAIN, "limit_volume": PLAIN,
    "base": PLAIN, "counter": PLAIN, "fee_base": PLAIN, "fee_counter": PLAIN, "pair": WORD, "client_order_id": WORD,
    "base_account_id": int, "counter_account_id": int, "stop_price": PLAIN, "stop_direction": WORD,
    "time_in_force": WORD,
}  # fmt: skip
FILL_SHAPE: Shape = {
    "pair": WORD, "sequence": int, "order_id": WORD, "type": WORD, "timestamp": int, "price": PLAIN, "volume": PLAIN,
    "base": PLAIN, "counter": PLAIN, "fee_base": PLAIN, "fee_counter": PLAIN, "is_buy": bool, "client_order_id": WORD,
}  # fmt: skip


def check_shape(row: object, shape: Shape) -> None:
    """Same fields, and each a string of the form or exactly of the type."""
    assert isinstance(row, dict) and set(row) == set(shape)
    for name, kind in shape.items():
        if isinstance(kind, re.Pattern):
            assert isinstance(row[name], str) and kind.fullmatch(row[name]), (name, row[name])
        else:
            assert type(row[name]) is kind, (name, row[name])


@pytest.fixture
def clock() -> SteppedClock:
    """A clock five seconds after the start of the demo."""
    return SteppedClock(DEMO_START_MS + 5_000)


@pytest.fixture
def demo(clock: SteppedClock) -> DemoExchange:
    """The generated exchange."""
    return DemoExchange.generated(7, clock)


@pytest.mark.parametrize(
    ("path", "name", "params", "shape"),
    [
        (MARKETS, "markets", {}, MARKET_SHAPE),
        (TICKERS, "tickers", {}, TICKER_SHAPE),
        (BOOK, "asks", {"pair": "LTCZAR"}, LEVEL_SHAPE),
        (BOOK, "bids", {"pair": "XRPZAR"}, LEVEL_SHAPE),
        (TRADES, "trades", {"pair": "ETHZAR"}, PRINT_SHAPE),
        (CANDLES, "candles", {"pair": "XRPZAR", "since": T0, "duration": 3600}, CANDLE_SHAPE),
        (BALANCE, "balance", {}, BALANCE_SHAPE),
    ],
)
def test_lists_have_lunos_shape(
    demo: DemoExchange, path: str, name: str, params: dict[str, object], shape: Shape
) -> None:
    found = rows(demo, path, name, **params)
    assert found
    for row in found:
        check_shape(row, shape)


def test_the_other_shapes(demo: DemoExchange) -> None:
    check_shape(answer(demo, TICKER, pair="XBTZAR"), TICKER_SHAPE)
    check_shape(answer(demo, FEES, pair="XBTZAR"), FEE_SHAPE)
    assert set(answer(demo, BOOK, pair="XBTZAR")) == {"timestamp", "asks", "bids"}
    candles = answer(demo, CANDLES, pair="XBTZAR", since=DEMO_START_MS, duration=300)
    assert set(candles) == {"candles", "duration", "pair"} and candles["duration"] == 300
    ask = rows(demo, BOOK, "asks", pair="XBTZAR")[0]["price"]
    price, volume = str(ask).split(".")[0], "0.0001"
    posted = answer(demo, POST, "POST", pair="XBTZAR", type="BID", price=price, volume=volume, client_order_id="lb-1")
    assert set(posted) == {"order_id"}
    order = answer(demo, ORDER, client_order_id="lb-1")
    check_shape(order, ORDER_SHAPE)
    assert order == answer(demo, ORDER, id=posted["order_id"]) == rows(demo, ORDERS, "orders", closed="true")[0]
    assert {"type": "LIMIT", "side": "BUY", "status": "COMPLETE", "stop_direction": ""}.items() <= order.items()
    fills = rows(demo, FILLS, "trades", pair="XBTZAR")
    for fill in fills:
        check_shape(fill, FILL_SHAPE)
        assert (fill["type"], fill["is_buy"], fill["client_order_id"]) == ("BID", True, "lb-1")
    assert sum(Decimal(str(f["base"])) for f in fills) == Decimal(volume)


def test_headers_carry_the_clock(demo: DemoExchange, clock: SteppedClock) -> None:
    headers = call(demo, TICKERS).headers
    assert set(headers) == {"date", "content-type"} and headers["content-type"] == "application/json"
    assert parsedate_to_datetime(headers["date"]).timestamp() * 1000 == DEMO_START_MS + 5_000
    demo.skew_ms = 3_000
    assert parsedate_to_datetime(call(demo, TICKERS).headers["date"]).timestamp() * 1000 == DEMO_START_MS + 8_000


def test_private_paths_want_a_key_and_unknown_ones_are_refused(demo: DemoExchange) -> None:
    for path in (CANDLES, FEES, BALANCE, ORDER, ORDERS, FILLS):
        reply = demo.send("GET", path, [("pair", "XBTZAR")])
        assert (reply.status, reply.body) == (401, b"Unauthorised")
    assert demo.send("POST", POST, key=Credentials()).status == 401
    for path in (MARKETS, TICKERS):
        assert demo.send("GET", path).status == 200
    assert code(call(demo, "/api/1/marketorder", "POST")) == (404, "ErrNotFound")
    assert code(call(demo, TICKER, pair="XBTEUR")) == (400, "ErrInvalidMarketPair")
    assert code(call(demo, TICKERS, pair="XBTEUR")) == (400, "ErrInvalidMarketPair")


def test_the_client_understands_every_answer(demo: DemoExchange, clock: SteppedClock) -> None:
    client = LunoClient(demo, KEY, RateLimit(clock), clock, random.Random(1))
    offered = tuple(replace(m, model_spread=0.001) for m in demo.markets())  # Luno's list tells no spread
    assert client.markets() == offered and tuple(m.pair for m in offered) == PAIRS
    tickers = client.tickers(("XBTZAR", "ADAZAR"))
    assert [t.pair for t in tickers] == ["XBTZAR", "ADAZAR"]
    book = client.order_book("XBTZAR")
    assert book is not None and book.bids[0][0] == tickers[0].bid and book.asks[0][0] == tickers[0].ask
    candles = client.candles("XBTZAR", DEMO_START_MS - DAY_MS, 3600)
    assert len(candles) == 25 and candles[-1].opened_ms == DEMO_START_MS and candles[-2].close == tickers[0].last
    assert client.fees("XBTZAR") == (0.004, 0.006)
    assert {b.asset: b.available for b in client.balances()}["ZAR"] == 100_000
    body = json.loads(call(demo, "/api/1/trades", pair="XBTZAR").body)
    assert float(body["trades"][0]["price"]) == tickers[0].last


# ---- the generated market ----------------------------------------------------


def snapshot(exchange: DemoExchange) -> list[bytes]:
    """Everything public, and candles of three durations."""
    found = [call(exchange, path).body for path in (MARKETS, TICKERS)]
    for pair in PAIRS:
        found += [call(exchange, path, pair=pair).body for path in (BOOK, TRADES, TICKER)]
        found += [
            call(exchange, CANDLES, pair=pair, since=since, duration=duration).body
            for duration in (300, 3600, 86400)
            for since in (0, DEMO_START_MS - DAY_MS, DEMO_START_MS + 22 * DAY_MS)
        ]
    return found


def test_the_same_seed_is_the_same_market_however_it_is_asked() -> None:
    end_ms = DEMO_START_MS + 25 * DAY_MS + 123_456
    straight, wandering = SteppedClock(end_ms), SteppedClock(DEMO_START_MS - 40 * DAY_MS)
    one, other = DemoExchange.generated(3, straight), DemoExchange.generated(3, wandering)
    while wandering.now_ms() < end_ms:
        call(other, BOOK, pair="LINKZAR")
        call(other, CANDLES, pair="ADAZAR", since=0, duration=3600)
        wandering.sleep(4.3 * 86_400)
    wandering.set_ms(end_ms)
    assert snapshot(one) == snapshot(other)
    assert call(one, TICKERS).body != call(DemoExchange.generated(4, straight), TICKERS).body


def test_later_blocks_never_change_the_past() -> None:
    clock = SteppedClock(DEMO_START_MS)
    exchange = DemoExchange.generated(11, clock)
    params = {"pair": "ETHZAR", "since": DEMO_START_MS - 3 * DAY_MS, "duration": 300}
    before = rows(exchange, CANDLES, "candles", **params)[:-1]
    clock.sleep(100 * 86_400)
    assert rows(exchange, CANDLES, "candles", **params)[: len(before)] == before
    fresh = rows(exchange, TICKERS, "tickers")
    assert {t["timestamp"] for t in fresh} == {clock.now_ms()}


def all_candles(exchange: DemoExchange, pair: str, since_ms: int, duration_s: int) -> list[dict[str, object]]:
    """All candles from a moment on, by paging as Luno wants it."""
    found: list[dict[str, object]] = []
    while True:
        page = rows(exchange, CANDLES, "candles", pair=pair, since=since_ms, duration=duration_s)
        found += page
        if len(page) < 1000:
            return found
        since_ms = int(str(page[-1]["timestamp"])) + duration_s * 1000


@pytest.mark.parametrize("number", [0, 2, 5])
def test_candles_are_sound(demo: DemoExchange, number: int) -> None:
    market = demo.markets()[number]
    scales = (market.price_scale, market.volume_scale)
    found = all_candles(demo, market.pair, DEMO_START_MS - 14 * DAY_MS, 300)[:-1]
    assert [c["timestamp"] for c in found] == list(range(DEMO_START_MS - 14 * DAY_MS, DEMO_START_MS, STEP_MS))
    last = None
    for row in found:
        o, h, low, c, v = (Decimal(str(row[n])) for n in ("open", "high", "low", "close", "volume"))
        assert 0 < low <= min(o, c) <= max(o, c) <= h and v >= 0
        assert all(x == round(x, scales[0]) for x in (o, h, low, c)) and v == round(v, scales[1])
        assert last is None or o == last
        assert v > 0 or o == h == low == c
        last = c


@pytest.mark.parametrize("seed", [1, 2])
def test_markets_are_worth_watching(seed: int) -> None:
    clock = SteppedClock(DEMO_START_MS)
    exchange = DemoExchange.generated(seed, clock)
    closes = {}
    for pair in PAIRS:
        candles = all_candles(exchange, pair, 0, 3600)[:-1]
        assert len(candles) == 70 * 24
        closes[pair] = np.array([float(str(c["close"])) for c in candles])
    hourly = {pair: np.diff(np.log(c)) for pair, c in closes.items()}
    for pair, moves in hourly.items():
        assert 0.004 < moves.std() < 0.018
        legs = np.abs(np.log(closes[pair][36:] / closes[pair][:-36]))
        assert np.quantile(legs, 0.9) > 0.06 and legs.max() < 0.6
        calm = np.abs(moves[: 69 * 24]).reshape(69, 24).mean(axis=1)
        assert np.quantile(calm, 0.9) > 1.8 * np.quantile(calm, 0.1)  # quiet days and wild days
    assert 0.4 < np.corrcoef(list(hourly.values()))[np.triu_indices(7, 1)].mean() < 0.9
    for ticker in rows(exchange, TICKERS, "tickers"):
        bid, ask, last, volume = (float(str(ticker[n])) for n in ("bid", "ask", "last_trade", "rolling_24_hour_volume"))
        assert 0 < bid < last < ask and 0.0004 < (ask - bid) / last < 0.007
        assert 0.2e6 < volume * last < 80e6
        assert ticker["pair"] not in ("ADAZAR", "LINKZAR") or volume * last < 2e6


def test_the_thin_markets_have_hours_without_a_trade(demo: DemoExchange) -> None:
    quiet = [c for c in all_candles(demo, "ADAZAR", 0, 3600)[:-1] if c["volume"] == "0.00"]
    assert 10 < len(quiet) < 200
    assert all(c["open"] == c["high"] == c["low"] == c["close"] for c in quiet)


def test_the_ticker_agrees_with_candles_book_and_trades(demo: DemoExchange, clock: SteppedClock) -> None:
    clock.set_ms(DEMO_START_MS + 17 * STEP_MS + 299_999)
    for pair in PAIRS:
        ticker = answer(demo, TICKER, pair=pair)
        assert ticker["timestamp"] == DEMO_START_MS + 17 * STEP_MS
        day = all_candles(demo, pair, DEMO_START_MS + 17 * STEP_MS - DAY_MS, 300)[:-1]
        assert len(day) == 288
        assert sum(Decimal(str(c["volume"])) for c in day) == Decimal(str(ticker["rolling_24_hour_volume"]))
        assert Decimal(str(day[-1]["close"])) == Decimal(str(ticker["last_trade"]))
        asks, bids = (
            [(Decimal(str(r["price"])), Decimal(str(r["volume"]))) for r in rows(demo, BOOK, side, pair=pair)]
            for side in ("asks", "bids")
        )
        assert asks[0][0] == Decimal(str(ticker["ask"])) and bids[0][0] == Decimal(str(ticker["bid"]))
        assert asks == sorted(asks) and len({p for p, _ in asks}) == 20
        assert bids == sorted(bids, reverse=True) and len({p for p, _ in bids}) == 20
        share = sum(v for _, v in asks) / Decimal(str(ticker["rolling_24_hour_volume"]))
        assert Decimal("0.01") < share < Decimal("0.3")


def test_public_trades(demo: DemoExchange, clock: SteppedClock) -> None:
    found = rows(demo, TRADES, "trades", pair="XBTZAR")
    times, numbers = ([int(str(t[name])) for t in found] for name in ("timestamp", "sequence"))
    assert len(found) == 100 and times == sorted(times, reverse=True)
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) == 100
    late = rows(demo, TRADES, "trades", pair="XBTZAR", since=times[3])
    assert [t["sequence"] for t in late] == numbers[:4]
    assert code(call(demo, TRADES, pair="XBTZAR", since=clock.now_ms() - DAY_MS - 1))[0] == 400


# ---- candles -----------------------------------------------------------------


def test_a_page_is_the_earliest_thousand(demo: DemoExchange) -> None:
    first_ms = DEMO_START_MS - 70 * DAY_MS
    page = rows(demo, CANDLES, "candles", pair="XBTZAR", since=0, duration=300)
    assert [c["timestamp"] for c in page] == [first_ms + n * STEP_MS for n in range(1000)]
    page = rows(demo, CANDLES, "candles", pair="XBTZAR", since=first_ms + 1, duration=300)
    assert page[0]["timestamp"] == first_ms + STEP_MS
    exactly = DEMO_START_MS - 999 * STEP_MS
    full = rows(demo, CANDLES, "candles", pair="XBTZAR", since=exactly, duration=300)
    assert len(full) == 1000 and full[-1]["timestamp"] == DEMO_START_MS
    assert rows(demo, CANDLES, "candles", pair="XBTZAR", since=exactly - 1, duration=300) == full
    short = rows(demo, CANDLES, "candles", pair="XBTZAR", since=exactly - STEP_MS, duration=300)
    assert len(short) == 1000 and short[-1]["timestamp"] == DEMO_START_MS - STEP_MS  # never reaches the present
    assert rows(demo, CANDLES, "candles", pair="XBTZAR", since=DEMO_START_MS + 1, duration=300) == []


@pytest.mark.parametrize("duration", [900, 3600, 14400, 86400, 259200, 604800])
def test_long_candles_are_gathered_from_short_ones(duration: int) -> None:
    clock = SteppedClock(DEMO_START_MS + 3 * DAY_MS + 100 * STEP_MS)
    exchange = DemoExchange.generated(5, clock)
    since = (DEMO_START_MS - 7 * DAY_MS) // (duration * 1000) * duration * 1000
    fine, coarse = (all_candles(exchange, "SOLZAR", since, d) for d in (300, duration))
    assert [int(str(c["timestamp"])) % (duration * 1000) for c in coarse] == [0] * len(coarse)
    assert clock.now_ms() - int(str(coarse[-1]["timestamp"])) < duration * 1000
    groups: dict[int, list[dict[str, object]]] = {}
    for row in fine[:-1]:  # the last one is not closed
        groups.setdefault(int(str(row["timestamp"])) // (duration * 1000), []).append(row)
    for candle in coarse:
        inside = groups.pop(int(str(candle["timestamp"])) // (duration * 1000))
        values = {n: [Decimal(str(c[n])) for c in inside] for n in ("open", "high", "low", "close", "volume")}
        wanted = (
            values["open"][0], max(values["high"]), min(values["low"]), values["close"][-1], sum(values["volume"])
        )  # fmt: skip
        assert wanted == tuple(Decimal(str(candle[n])) for n in ("open", "high", "low", "close", "volume"))
    assert not groups


def test_the_candle_in_progress_grows(demo: DemoExchange, clock: SteppedClock) -> None:
    def running(duration: int) -> dict[str, object]:
        return rows(demo, CANDLES, "candles", pair="XBTZAR", since=DEMO_START_MS, duration=duration)[-1]

    last = rows(demo, CANDLES, "candles", pair="XBTZAR", since=DEMO_START_MS - STEP_MS, duration=300)[0]
    flat = dict.fromkeys(("open", "high", "low", "close"), last["close"]) | {"volume": "0.00"}
    for duration in (300, 3600):
        assert running(duration) == flat | {"timestamp": DEMO_START_MS}
    clock.set_ms(DEMO_START_MS + 2 * STEP_MS)
    fine = rows(demo, CANDLES, "candles", pair="XBTZAR", since=DEMO_START_MS, duration=300)
    assert [c["timestamp"] for c in fine] == [DEMO_START_MS + n * STEP_MS for n in range(3)]
    hour = running(3600)
    assert hour["timestamp"] == DEMO_START_MS
    assert (hour["open"], hour["close"]) == (fine[0]["open"], fine[1]["close"])
    assert Decimal(str(hour["volume"])) == sum(Decimal(str(c["volume"])) for c in fine)


def test_bad_candle_requests(demo: DemoExchange) -> None:
    wrong: list[dict[str, object]] = [
        {"pair": "XBTZAR", "since": 0, "duration": 60},  # finer than the market is made
        {"pair": "XBTZAR", "since": 0, "duration": 7200},  # Luno has none
        {"pair": "XBTZAR", "duration": 300},
        {"pair": "XBTZAR", "since": "yesterday", "duration": 300},
    ]
    assert {code(call(demo, CANDLES, **params)) for params in wrong} == {(400, "ErrInvalidArguments")}
    assert code(call(demo, CANDLES, since=0, duration=300)) == (400, "ErrInvalidMarketPair")


# ---- matching: tables of candles, one row = open, high, low, close, volume ---

MARKET = Market("XBTUSDT", "XBT", "USDT", 0, 4, 0.001, 100.0, 1.0, 1e6, model_spread=0.002)
FLAT = (1000.0, 1000.0, 1000.0, 1000.0, 50.0)  # quote 999 / 1001, and 5.0 to take


def table(*candles: Sequence[float]) -> tuple[DemoExchange, SteppedClock]:
    """A recorded market with one flat candle closed and the given ones to come; the clock five seconds after it."""
    found = [(T0 + n * STEP_MS, *candle) for n, candle in enumerate((FLAT, *candles))]
    clock = SteppedClock(T0 + STEP_MS + 5_000)
    exchange = DemoExchange.recorded({"XBTUSDT": np.array(found)}, 300, {"XBTUSDT": MARKET}, clock)
    return exchange, clock


def buy(exchange: DemoExchange, price: object, volume: object, **more: object) -> dict[str, object]:
    """Post a bid and look it up."""
    posted = answer(exchange, POST, "POST", pair="XBTUSDT", type="BID", price=price, volume=volume, **more)
    return answer(exchange, ORDER, id=posted["order_id"])


def sell(exchange: DemoExchange, price: object, volume: object, **more: object) -> dict[str, object]:
    """Post an ask and look it up."""
    posted = answer(exchange, POST, "POST", pair="XBTUSDT", type="ASK", price=price, volume=volume, **more)
    return answer(exchange, ORDER, id=posted["order_id"])


def status(exchange: DemoExchange, order: dict[str, object]) -> tuple[object, object, object]:
    """Status, base and counter of an order now."""
    now = answer(exchange, ORDER, id=order["order_id"])
    return now["status"], now["base"], now["counter"]


def money(exchange: DemoExchange) -> dict[str, tuple[str, str]]:
    """Balance and reserved per asset."""
    return {str(r["asset"]): (str(r["balance"]), str(r["reserved"])) for r in rows(exchange, BALANCE, "balance")}


def test_a_resting_bid_fills_only_when_a_later_candle_goes_through_it() -> None:
    exchange, clock = table(
        (1000, 1000, 990, 995, 10),  # touches 990
        (995, 996, 989, 990, 10),  # through by one tick
    )
    order = buy(exchange, 990, "2")
    assert (order["status"], order["base"]) == ("PENDING", "0.00")
    assert money(exchange) == {"USDT": ("100000.00", "1980.00"), "XBT": ("0.00", "0.00")}
    clock.sleep(300)
    assert status(exchange, order) == ("PENDING", "0.00", "0.00")
    clock.sleep(300)
    assert status(exchange, order) == ("COMPLETE", "2.00", "1980.00")
    done = answer(exchange, ORDER, id=order["order_id"])
    assert done["completed_timestamp"] == T0 + 3 * STEP_MS and done["expiration_timestamp"] == 0
    assert (done["fee_base"], done["fee_counter"]) == ("0.008", "0.00")  # the maker's 0.4 %
    [fill] = rows(exchange, FILLS, "trades", pair="XBTUSDT")
    assert (fill["price"], fill["is_buy"], fill["timestamp"]) == ("990.00", False, T0 + 3 * STEP_MS)
    assert money(exchange) == {"USDT": ("98020.00", "0.00"), "XBT": ("1.992", "0.00")}


def test_what_traded_before_the_order_does_not_count() -> None:
    exchange, clock = table((1000, 1000, 900, 1000, 10), (1000, 1000, 999, 1000, 10), (1000, 1000, 949, 1000, 10))
    clock.sleep(300)
    order = buy(exchange, 950, "1")
    clock.sleep(300)
    assert status(exchange, order)[0] == "PENDING"
    clock.sleep(300)
    assert status(exchange, order)[0] == "COMPLETE"


def test_a_resting_order_gets_no_more_than_was_traded() -> None:
    exchange, clock = table((1000, 1000, 980, 985, 0.5), (985, 985, 985, 985, 0), (985, 986, 980, 985, 0.7))
    order = buy(exchange, 990, "1")
    clock.sleep(600)
    assert status(exchange, order) == ("PENDING", "0.50", "495.00")
    assert money(exchange)["USDT"] == ("99505.00", "495.00")
    clock.sleep(300)
    assert status(exchange, order) == ("COMPLETE", "1.00", "990.00")


def test_a_taker_gets_the_quote_up_to_the_depth_and_the_rest_waits() -> None:
    exchange, clock = table((1000, 1010, 1000, 1010, 20), (1010, 1011, 1004, 1010, 20))
    order = buy(exchange, 1005, "6")
    assert (order["status"], order["base"], order["counter"]) == ("PENDING", "5.00", "5005.00")
    assert (order["fee_base"], order["fee_counter"]) == ("0.03", "0.00")  # the taker's 0.6 %
    assert money(exchange) == {"USDT": ("94995.00", "1005.00"), "XBT": ("4.97", "0.00")}
    clock.sleep(300)
    assert status(exchange, order) == ("COMPLETE", "6.00", "6010.00")  # the last one as maker, at the limit
    fills = rows(exchange, FILLS, "trades", pair="XBTUSDT")
    assert [(f["price"], f["volume"], f["is_buy"]) for f in fills] == [
        ("1001.00", "5.00", True),
        ("1005.00", "1.00", False),
    ]


def test_immediate_or_cancel_leaves_nothing_behind() -> None:
    exchange, _ = table(FLAT)
    part = buy(exchange, 1005, "6", time_in_force="IOC")
    assert (part["status"], part["base"], part["limit_volume"]) == ("COMPLETE", "5.00", "6.00")
    assert part["completed_timestamp"] == T0 + STEP_MS + 5_000
    none = buy(exchange, 1000, "6", time_in_force="IOC")
    assert (none["status"], none["base"]) == ("COMPLETE", "0.00")
    assert money(exchange)["USDT"] == ("94995.00", "0.00")


@pytest.mark.parametrize(("price", "outcome"), [("1000", "PENDING"), ("1001", "COMPLETE"), ("1050", "COMPLETE")])
def test_post_only_never_takes(price: str, outcome: str) -> None:
    exchange, clock = table((1000, 1000, 900, 1000, 10))
    order = buy(exchange, price, "1", post_only="true")
    assert (order["status"], order["base"]) == (outcome, "0.00")
    clock.sleep(300)
    assert status(exchange, order)[:2] == ("COMPLETE", "1.00" if outcome == "PENDING" else "0.00")


def with_coins(exchange: DemoExchange, volume: str) -> None:
    """Put coins of the base into the account."""
    exchange.accounts.total["XBT"] += Decimal(volume)


def test_a_resting_ask_and_its_fee() -> None:
    exchange, clock = table((1000, 1010, 1000, 1000, 10), (1000, 1011, 1000, 1000, 10))
    with_coins(exchange, "3")
    order = sell(exchange, 1010, "2")
    assert money(exchange)["XBT"] == ("3.00", "2.00")
    clock.sleep(300)
    assert status(exchange, order)[0] == "PENDING"
    clock.sleep(300)
    assert status(exchange, order) == ("COMPLETE", "2.00", "2020.00")
    assert money(exchange) == {"USDT": ("102011.92", "0.00"), "XBT": ("1.00", "0.00")}  # less 0.4 % of 2020


def test_a_stop_limit_sleeps_until_a_trade_at_its_stop() -> None:
    exchange, clock = table(
        (1000, 1000, 951, 960, 10),  # above the stop
        (960, 961, 950, 952, 30),  # trades at 950: half the spread of 2 below it, 3.0 on offer
        (952, 960, 941, 950, 10),
    )
    with_coins(exchange, "4")
    order = sell(exchange, 940, "4", stop_price=950, stop_direction="BELOW")
    assert (order["type"], order["status"], order["stop_price"]) == ("STOP_LIMIT", "AWAITING", "950.00")
    assert money(exchange)["XBT"] == ("4.00", "4.00")
    assert rows(exchange, ORDERS, "orders") == [order]  # an open one
    clock.sleep(300)
    assert status(exchange, order)[0] == "AWAITING"
    clock.sleep(300)
    # close 952, quote 951 / 953, moved down by 2 to the stop: bid 949
    assert status(exchange, order) == ("PENDING", "3.00", "2847.00")
    [fill] = rows(exchange, FILLS, "trades", pair="XBTUSDT")
    assert (fill["price"], fill["is_buy"], fill["timestamp"]) == ("949.00", False, T0 + 3 * STEP_MS)
    assert (fill["type"], fill["fee_counter"]) == ("ASK", "17.082")
    clock.sleep(300)
    assert status(exchange, order) == ("COMPLETE", "4.00", "3787.00")  # the rest at its limit of 940


def test_a_gap_over_the_limit_leaves_a_stop_limit_resting() -> None:
    exchange, clock = table(
        (900, 930, 890, 930, 100),  # opens far below stop and limit
        (930, 940, 930, 940, 100),  # only touches the limit
        (940, 941, 940, 941, 100),  # through it
    )
    with_coins(exchange, "1")
    order = sell(exchange, 940, "1", stop_price=950, stop_direction="BELOW")
    for wanted in ("PENDING", "PENDING", "COMPLETE"):
        clock.sleep(300)
        assert status(exchange, order)[0] == wanted
    assert status(exchange, order) == ("COMPLETE", "1.00", "940.00")


def test_a_stop_to_buy_above() -> None:
    exchange, clock = table((1000, 1049, 1000, 1040, 10), (1040, 1060, 1040, 1055, 10))
    order = buy(exchange, 1070, "0.5", stop_price=1050, stop_direction="ABOVE")
    clock.sleep(300)
    assert status(exchange, order)[0] == "AWAITING"
    clock.sleep(300)
    # close 1055, quote 1053 / 1057, moved down by 5 to the stop: ask 1052
    assert status(exchange, order) == ("COMPLETE", "0.50", "526.00")


def test_cancelling() -> None:
    exchange, clock = table((1000, 1000, 980, 985, 0.5), FLAT)
    order = buy(exchange, 990, "1")
    clock.sleep(310)
    assert answer(exchange, STOP, "POST", order_id=order["order_id"]) == {"success": True}
    done = answer(exchange, ORDER, id=order["order_id"])
    assert (done["status"], done["base"], done["limit_volume"]) == ("COMPLETE", "0.50", "1.00")
    assert done["expiration_timestamp"] == done["completed_timestamp"] == T0 + STEP_MS + 315_000
    assert money(exchange)["USDT"] == ("99505.00", "0.00")
    for wrong in (order["order_id"], "BXNOSUCHORDER00"):
        found = code(call(exchange, STOP, "POST", order_id=wrong))
        assert found == (400, "ErrCannotStopUnknownOrNonPendingOrder")


def test_a_fill_comes_before_a_late_cancel() -> None:
    exchange, clock = table((1000, 1000, 900, 985, 50))
    order = buy(exchange, 990, "1")
    clock.sleep(300)
    assert call(exchange, STOP, "POST", order_id=order["order_id"]).status == 400
    assert status(exchange, order)[:2] == ("COMPLETE", "1.00")


def test_fees_on_top_of_what_is_paid() -> None:
    exchange, _ = table(FLAT)
    exchange.accounts.are_fees_on_top = True
    order = buy(exchange, 1001, "1")
    assert (order["fee_base"], order["fee_counter"]) == ("0.00", "6.006")
    order = sell(exchange, 999, "0.9")
    assert (order["fee_base"], order["fee_counter"]) == ("0.0054", "0.00")
    assert money(exchange) == {"USDT": ("99892.094", "0.00"), "XBT": ("0.0946", "0.00")}
    assert code(call(exchange, POST, "POST", pair="XBTUSDT", type="ASK", price=1100, volume="0.0946")) == (
        400,
        "ErrInsufficientBalance",
    )


def test_fees_are_rounded_up_to_eight_decimals() -> None:
    exchange = DemoExchange.recorded({"XBTUSDT": recording(1)}, 900, {"XBTUSDT": XBT}, SteppedClock(T0 + DAY_MS))
    order = buy(exchange, "90000.00", "0.000257")
    assert (order["base"], order["fee_base"]) == ("0.000257", "0.00000052")  # 0.2 % is 0.000000514
    assert money(exchange)["XBT"][0] == "0.00025648"


def test_what_is_held_back_cannot_be_spent_twice() -> None:
    exchange, _ = table(FLAT)
    order = buy(exchange, 600, "100")
    refused = call(exchange, POST, "POST", pair="XBTUSDT", type="BID", price=800, volume="50.001")
    assert code(refused) == (400, "ErrInsufficientBalance")
    answer(exchange, STOP, "POST", order_id=order["order_id"])
    assert buy(exchange, 800, "50.001")["status"] == "PENDING"


def test_fills_are_numbered_by_time_however_often_one_looks() -> None:
    seen = []
    for pause_s in (300, 900):
        exchange, clock = table((1000, 1000, 985, 990, 9), (990, 990, 975, 980, 9), FLAT)
        low, high = buy(exchange, 980, "1"), buy(exchange, 990, "1")
        for _ in range(0, 900, pause_s):
            clock.sleep(pause_s)
            call(exchange, BALANCE)
        found = rows(exchange, FILLS, "trades", pair="XBTUSDT")
        assert [f["order_id"] for f in found] == [high["order_id"], low["order_id"]]
        seen.append(found)
    assert seen[0] == seen[1]


def test_the_same_client_id_is_taken_once() -> None:
    exchange, clock = table(FLAT)
    order = {"pair": "XBTUSDT", "type": "BID", "price": 990, "volume": "1", "client_order_id": "LB1-x-1"}
    answer(exchange, POST, "POST", **order)
    clock.sleep(20)
    assert code(call(exchange, POST, "POST", **order)) == (409, "ErrDuplicateClientOrderID")
    assert len(rows(exchange, ORDERS, "orders")) == 1
    refused = order | {"client_order_id": "LB1-x-2", "volume": "5000"}
    assert code(call(exchange, POST, "POST", **refused)) == (400, "ErrVolumeTooHigh")
    answer(exchange, POST, "POST", **order | {"client_order_id": "LB1-x-2"})  # a failed one does not use it up


def test_requests_expire() -> None:
    exchange, clock = table(FLAT)
    order = {"pair": "XBTUSDT", "type": "BID", "price": 990, "volume": "1"}
    now = clock.now_ms()
    for sent, ttl, wanted in ((now, 5000, 200), (now - 5000, 5000, 200), (now - 5001, 5000, 400), (0, 5000, 200)):
        assert call(exchange, POST, "POST", **order, timestamp=sent, ttl=ttl).status == wanted
    late = call(exchange, POST, "POST", **order, timestamp=now - 10_001)
    assert code(late) == (400, "ErrDeadlineExceeded")
    for wrong in (10_001, "soon"):
        assert code(call(exchange, POST, "POST", **order, ttl=wrong)) == (400, "ErrInvalidArguments")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"price": "990.5"}, "ErrPriceDenominationNotAllowed"),
        ({"volume": "1.00001"}, "ErrVolumeDenominationNotAllowed"),
        ({"volume": "0.0009"}, "ErrVolumeTooLow"),
        ({"volume": ""}, "ErrVolumeTooLow"),
        ({"volume": "100.0001"}, "ErrVolumeTooHigh"),
        ({"price": "0"}, "ErrPriceTooLow"),
        ({"price": "1000001"}, "ErrPriceTooHigh"),
        ({"volume": "1e-1"}, "ErrInvalidValue"),
        ({"volume": "-1"}, "ErrInvalidValue"),
        ({"price": "NaN"}, "ErrInvalidValue"),
        ({"pair": "XBTZAR"}, "ErrInvalidMarketPair"),
        ({"pair": ""}, "ErrInvalidMarketPair"),
        ({"type": "BUY"}, "ErrInvalidOrderSide"),
        ({"time_in_force": "FOREVER"}, "ErrInvalidArguments"),
        ({"time_in_force": "IOC", "post_only": "true"}, "ErrPostOnlyNotAllowed"),
        ({"stop_price": "950.5", "stop_direction": "BELOW"}, "ErrInvalidStopPrice"),
        ({"stop_price": "950"}, "ErrInvalidStopDirection"),
        ({"client_order_id": "a b"}, "ErrInvalidClientOrderId"),
        ({"client_order_id": "x" * 256}, "ErrInvalidClientOrderId"),
        ({"volume": "100"}, ""),
        ({"volume": "99.9999", "price": "1002"}, "ErrInsufficientBalance"),
        ({"type": "ASK", "price": "1100"}, "ErrInsufficientBalance"),
    ],
)
def test_wrong_orders_are_refused(change: dict[str, str], wanted: str) -> None:
    exchange, _ = table(FLAT)
    order: dict[str, object] = {"pair": "XBTUSDT", "type": "BID", "price": "990.00", "volume": "1.0", **change}
    reply = call(exchange, POST, "POST", **order)
    assert (reply.status == 200) if not wanted else (code(reply) == (400, wanted))
    assert len(rows(exchange, ORDERS, "orders")) == (0 if wanted else 1)


def test_looking_up_orders() -> None:
    exchange, clock = table(FLAT, FLAT)
    ids = []
    for n in range(4):
        ids.append(buy(exchange, 900 + n, "1", client_order_id=f"lb-{n}")["order_id"])
        clock.sleep(1)
    answer(exchange, STOP, "POST", order_id=ids[1])
    assert [o["order_id"] for o in rows(exchange, ORDERS, "orders")] == [ids[3], ids[2], ids[0]]
    assert [o["order_id"] for o in rows(exchange, ORDERS, "orders", closed="true")] == [ids[1]]
    assert [o["order_id"] for o in rows(exchange, ORDERS, "orders", pair="XBTUSDT", limit=2)] == [ids[3], ids[2]]
    before = T0 + STEP_MS + 5_000 + 2_000
    assert [o["order_id"] for o in rows(exchange, ORDERS, "orders", created_before=before)] == [ids[0]]
    assert code(call(exchange, ORDERS, limit=1001)) == (400, "ErrLimitOutOfRange")
    assert code(call(exchange, ORDER, client_order_id="lb-9")) == (404, "ErrOrderNotFound")
    assert code(call(exchange, ORDER, id="BXNOSUCHORDER00")) == (404, "ErrOrderNotFound")
    assert code(call(exchange, ORDER, id=ids[0], client_order_id="lb-0")) == (400, "ErrInvalidArguments")
    assert code(call(exchange, ORDER)) == (400, "ErrInvalidArguments")


def test_looking_up_fills() -> None:
    exchange, clock = table(*[(1000, 1000, 900, 1000, 1)] * 4)
    buy(exchange, 950, "4")
    clock.sleep(1_200)
    found = rows(exchange, FILLS, "trades", pair="XBTUSDT")
    numbers, times = [int(str(f["sequence"])) for f in found], [f["timestamp"] for f in found]
    assert len(set(numbers)) == 4 and numbers == sorted(numbers)
    assert times == [T0 + n * STEP_MS for n in (2, 3, 4, 5)]

    def seen(**params: object) -> list[int]:
        return [int(str(f["sequence"])) for f in rows(exchange, FILLS, "trades", pair="XBTUSDT", **params)]

    assert seen(after_seq=numbers[1]) == numbers[1:]
    assert seen(after_seq=numbers[3] + 1) == []
    assert seen(before_seq=numbers[1]) == numbers[:1]
    assert seen(since=times[2]) == numbers[2:]
    assert seen(before=times[2]) == numbers[1::-1]  # newest first
    assert seen(sort_desc="true", limit=3) == numbers[:0:-1]
    assert code(call(exchange, FILLS)) == (400, "ErrInvalidMarketPair")


@pytest.mark.parametrize(
    ("shown", "ticker", "post_only", "wanted"),
    [
        ("POST_ONLY", "POSTONLY", "false", "ErrPostOnlyMode"),
        ("POST_ONLY", "POSTONLY", "true", ""),
        ("SUSPENDED", "DISABLED", "true", "ErrMarketUnavailable"),
        ("UNKNOWN", "UNKNOWN", "true", "ErrMarketUnavailable"),
    ],
)
def test_market_status(shown: str, ticker: str, post_only: str, wanted: str) -> None:
    exchange, _ = table(FLAT)
    exchange.statuses["XBTUSDT"] = shown
    assert rows(exchange, MARKETS, "markets")[0]["trading_status"] == shown
    assert rows(exchange, TICKERS, "tickers")[0]["status"] == ticker
    reply = call(exchange, POST, "POST", pair="XBTUSDT", type="BID", price=990, volume=1, post_only=post_only)
    assert reply.status == 200 if not wanted else code(reply) == (400, wanted)


def test_a_delisted_market_and_a_key_that_may_only_read(demo: DemoExchange) -> None:
    demo.statuses["SOLZAR"] = "DELISTED"
    assert [t["pair"] for t in rows(demo, TICKERS, "tickers")] == [p for p in PAIRS if p != "SOLZAR"]
    assert code(call(demo, TICKER, pair="SOLZAR")) == (400, "ErrInvalidMarketPair")
    demo.can_trade = False
    assert code(call(demo, STOP, "POST", order_id="BXNOSUCHORDER00")) == (403, "ErrInsufficientPerms")
    assert call(demo, BALANCE).status == 200


# ---- the book of the generated market, and the ledger -------------------------


def test_a_taker_walks_the_book(demo: DemoExchange) -> None:
    asks = [(Decimal(str(r["price"])), Decimal(str(r["volume"]))) for r in rows(demo, BOOK, "asks", pair="LTCZAR")]
    volume = sum(v for _, v in asks[:3]) + asks[3][1] / 2 // Decimal("0.0001") * Decimal("0.0001")
    posted = answer(demo, POST, "POST", pair="LTCZAR", type="BID", price=asks[9][0], volume=volume, time_in_force="IOC")
    found = rows(demo, FILLS, "trades", pair="LTCZAR")
    assert [Decimal(str(f["price"])) for f in found] == [p for p, _ in asks[:4]]
    assert [Decimal(str(f["volume"])) for f in found[:3]] == [v for _, v in asks[:3]]
    order = answer(demo, ORDER, id=posted["order_id"])
    assert Decimal(str(order["base"])) == volume
    assert Decimal(str(order["counter"])) == sum(Decimal(str(f["price"])) * Decimal(str(f["volume"])) for f in found)
    shallow = answer(
        demo, POST, "POST", pair="LTCZAR", type="BID", price=asks[1][0], volume=volume, time_in_force="IOC"
    )
    order = answer(demo, ORDER, id=shallow["order_id"])
    assert order["status"] == "COMPLETE" and Decimal(str(order["base"])) == asks[0][1] + asks[1][1]


Wish = tuple[str, str, int, int, str, int]
wishes = st.lists(
    st.tuples(
        st.sampled_from(["BID", "ASK"]),
        st.sampled_from(["XBTZAR", "XRPZAR", "LINKZAR"]),
        st.integers(-150, 150),  # distance of the limit from the last price in basis points
        st.integers(1, 60),  # worth in hundreds of rand
        st.sampled_from(["GTC", "IOC", "post", "stop", "cancel"]),
        st.integers(0, 12),  # candles until the next one
    ),
    min_size=1,
    max_size=25,
)


def play(exchange: DemoExchange, clock: SteppedClock, plan: list[Wish], pause_s: int) -> None:
    """Send the wishes one after another, looking at the account every `pause_s` seconds in between."""
    for asset in ("XBT", "XRP", "LINK"):
        exchange.accounts.total[asset] += Decimal("7.5")
    scales = {m.pair: (m.price_scale, m.volume_scale) for m in exchange.markets()}
    for side, pair, away, worth, kind, candles in plan:
        last = Decimal(str(answer(exchange, TICKER, pair=pair)["last_trade"]))
        price = round(last * (10_000 + away) / 10_000, scales[pair][0])
        volume = round(worth * 100 / last, scales[pair][1])
        order: dict[str, object] = {"pair": pair, "type": side, "price": price, "volume": volume}
        if kind == "cancel":
            for row in rows(exchange, ORDERS, "orders")[:1]:
                call(exchange, STOP, "POST", order_id=row["order_id"])
        elif kind == "stop":
            direction = "BELOW" if away < 0 else "ABOVE"
            call(exchange, POST, "POST", **order, stop_price=price, stop_direction=direction)
        else:
            extra = {"post_only": "true"} if kind == "post" else {"time_in_force": kind}
            call(exchange, POST, "POST", **order, **extra)
        until = clock.now_ms() + candles * STEP_MS
        while clock.now_ms() < until:
            clock.set_ms(min(until, clock.now_ms() + pause_s * 1000))
            call(exchange, BALANCE)


def ledger(exchange: DemoExchange) -> Iterator[tuple[str, Decimal, Decimal]]:
    """Per asset what balance and reserve must be, from orders and fills alone."""
    orders = rows(exchange, ORDERS, "orders", limit=1000)
    fills = [f for pair in PAIRS for f in rows(exchange, FILLS, "trades", pair=pair, limit=1000)]
    for asset in ("ZAR", "XBT", "XRP", "LINK"):
        total, held = Decimal("100000") if asset == "ZAR" else Decimal("7.5"), Decimal(0)
        for fill in fills:
            base, counter, fee_base, fee_counter = (
                Decimal(str(fill[n])) for n in ("base", "counter", "fee_base", "fee_counter")
            )
            sign = 1 if fill["type"] == "BID" else -1
            total += (sign * base - fee_base) if str(fill["pair"]) == asset + "ZAR" else 0
            total -= (sign * counter + fee_counter) if asset == "ZAR" else 0
        for order in orders:
            left = Decimal(str(order["limit_volume"])) - Decimal(str(order["base"]))
            if order["side"] == "BUY" and asset == "ZAR":
                held += left * Decimal(str(order["limit_price"]))
            if order["side"] == "SELL" and order["pair"] == asset + "ZAR":
                held += left
        yield asset, total, held


@hypothesis_settings(max_examples=20)
@given(plan=wishes, seed=st.integers(0, 3))
def test_the_ledger_agrees_to_the_last_digit_however_often_one_looks(plan: list[Wish], seed: int) -> None:
    seen = []
    for pause_s in (300, 5_000):
        clock = SteppedClock(DEMO_START_MS - 60 * DAY_MS)  # little history, so quickly made
        exchange = DemoExchange.generated(seed, clock)
        play(exchange, clock, plan, pause_s)
        balances = money(exchange)
        for asset, total, held in ledger(exchange):
            assert (Decimal(balances[asset][0]), Decimal(balances[asset][1])) == (total, held)
            assert 0 <= held <= total
        bodies = [call(exchange, path).body for path in (BALANCE, ORDERS)]
        bodies += [call(exchange, FILLS, pair=pair).body for pair in PAIRS]
        seen.append([*bodies, call(exchange, ORDERS, closed="true").body])
    assert seen[0] == seen[1]


# ---- faults --------------------------------------------------------------------


def test_faults_are_used_up_in_order(demo: DemoExchange) -> None:
    demo.faults.extend([Fault("down", times=2), Fault("500"), Fault("429", path="/api/1/tick", wait_s=7)])
    for _ in range(2):
        with pytest.raises(ExchangeDown):
            call(demo, BALANCE)
    assert call(demo, BALANCE).status == 500
    assert call(demo, BALANCE).status == 200  # the last one waits for its path
    limited = call(demo, TICKERS)
    assert (limited.status, limited.headers["retry-after"]) == (429, "7")
    assert call(demo, TICKERS).status == 200 and not demo.faults
    assert demo.calls == {"GET " + BALANCE: 4, "GET " + TICKERS: 2}


def test_bodies_that_are_no_answer(demo: DemoExchange) -> None:
    good = call(demo, BALANCE).body
    demo.faults.extend(Fault(kind) for kind in ("500", "401", "garbage", "wrong_shape", "truncated"))
    html, refused, garbage, shape, cut = (call(demo, BALANCE) for _ in range(5))
    assert (html.status, refused.status, refused.body) == (500, 401, b"Unauthorised") and b"<html>" in html.body
    assert (garbage.status, shape.status, cut.status) == (200, 200, 200)
    assert isinstance(json.loads(shape.body), list) and good.startswith(cut.body) and cut.body != good
    for reply in (html, garbage, cut):
        with pytest.raises(ValueError, match=r".*"):
            json.loads(reply.body)


def test_any_error_code_can_be_planned(demo: DemoExchange) -> None:
    demo.faults.extend([Fault("ErrUnderMaintenance"), Fault("ErrOrderNotFound"), Fault("ErrMarketNotAllowed")])
    found = [code(call(demo, FEES, pair="XBTZAR")) for _ in range(3)]
    assert found == [(503, "ErrUnderMaintenance"), (404, "ErrOrderNotFound"), (400, "ErrMarketNotAllowed")]


def test_null_lists_slow_answers_and_time_outs(demo: DemoExchange, clock: SteppedClock) -> None:
    demo.faults.extend([Fault("null_lists"), Fault("slow", wait_s=4), Fault("timeout", wait_s=15)])
    assert answer(demo, ORDERS) == {"orders": None}
    start = clock.now_ms()
    assert call(demo, TICKERS).status == 200 and clock.now_ms() == start + 4_000
    with pytest.raises(ExchangeDown):
        call(demo, TICKERS)
    assert clock.now_ms() == start + 19_000


@pytest.mark.parametrize(
    ("kind", "arrives"),
    [("down", 0), ("timeout", 0), ("500", 0), ("429", 0), ("garbage", 0), ("ErrInternal", 0), ("twice", 1),
     ("slow", 1), ("truncated", 1), ("down_after", 1), ("timeout_after", 1), ("500_after", 1), ("garbage_after", 1),
     ("ErrInternal_after", 1)],
)  # fmt: skip
def test_an_order_under_a_fault_arrives_or_not(kind: str, arrives: int) -> None:
    exchange, _ = table(FLAT)
    exchange.faults.append(Fault(kind, wait_s=1))
    params = [("pair", "XBTUSDT"), ("type", "BID"), ("price", "990"), ("volume", "1"), ("client_order_id", "lb-1")]
    if kind.removesuffix("_after") in ("down", "timeout"):
        with pytest.raises(ExchangeDown):
            exchange.send("POST", POST, params, KEY)
    else:
        reply = exchange.send("POST", POST, params, KEY)
        assert kind != "twice" or code(reply) == (409, "ErrDuplicateClientOrderID")
    assert len(rows(exchange, ORDERS, "orders")) == arrives
    assert exchange.calls["POST " + POST] == 1


@pytest.mark.parametrize(("delay_s", "is_found"), [(8.0, True), (45.0, False)])
def test_a_late_request_counts_within_its_time_to_live(delay_s: float, is_found: bool) -> None:
    exchange, clock = table(FLAT)
    sent_ms = clock.now_ms()
    exchange.faults.append(Fault("late", path=POST, wait_s=delay_s))
    order = {"pair": "XBTUSDT", "type": "BID", "price": 990, "volume": 1, "timestamp": sent_ms, "ttl": 10_000}
    with pytest.raises(ExchangeDown):
        call(exchange, POST, "POST", client_order_id="lb-1", **order)
    assert call(exchange, ORDER, client_order_id="lb-1").status == 404
    clock.sleep(60)
    reply = call(exchange, ORDER, client_order_id="lb-1")
    assert reply.status == (200 if is_found else 404)
    if is_found:
        assert json.loads(reply.body)["creation_timestamp"] == sent_ms + 8_000


# ---- recorded candles ------------------------------------------------------------


def recording(days: int, step_s: int = 900, start_ms: int = T0, seed: int = 1) -> Floats:
    """Made-up candles with awkward decimals and a hole of three."""
    rng = np.random.default_rng(seed)
    count = days * 86_400 // step_s
    close = np.round(30_000 * np.exp(np.cumsum(0.002 * rng.standard_normal(count))), 2)
    start = np.concatenate(([30_000.01], close[:-1]))
    high, low = np.round(np.maximum(start, close) + 3.07, 2), np.round(np.minimum(start, close) - 2.93, 2)
    opened = start_ms + np.arange(count) * step_s * 1000.0
    found = np.column_stack((opened, start, high, low, close, np.round(rng.uniform(0, 400, count), 5)))
    return np.delete(found, [50, 51, 52], axis=0)


XBT = Market("XBTUSDT", "XBT", "USDT", 2, 6, 0.0001, 100.0, 0.01, 1e7, maker_fee=0.001, taker_fee=0.002)
ETH = Market("ETHUSDT", "ETH", "USDT", 2, 6, 0.0001, 100.0, 0.01, 1e7)


def test_a_replay_is_the_file() -> None:
    data = recording(20)
    clock = SteppedClock(T0 + 20 * DAY_MS)
    exchange = DemoExchange.recorded({"XBTUSDT": data}, 900, {"XBTUSDT": XBT}, clock)
    found = all_candles(exchange, "XBTUSDT", 0, 900)
    names = ("timestamp", "open", "high", "low", "close", "volume")
    assert np.array_equal(np.array([[float(str(c[n])) for n in names] for c in found]), data)
    hours = all_candles(exchange, "XBTUSDT", 0, 3600)
    assert len(hours) == 480  # the hole of 45 minutes leaves one quarter of its hour
    for hour in hours[10:14]:
        opened = int(str(hour["timestamp"]))
        part = data[(data[:, 0] >= opened) & (data[:, 0] < opened + 3_600_000)]
        assert float(str(hour["high"])) == part[:, 2].max() and float(str(hour["open"])) == part[0, 1]
        assert float(str(hour["volume"])) == pytest.approx(part[:, 5].sum(), abs=1e-9)


def test_a_replay_shows_only_what_has_closed() -> None:
    data = recording(20)
    clock = SteppedClock(T0 + 100 * 900_000 + 450_000)
    exchange = DemoExchange.recorded({"XBTUSDT": data}, 900, {"XBTUSDT": XBT}, clock)
    row = data[data[:, 0] == T0 + 99 * 900_000][0]
    ticker = answer(exchange, TICKER, pair="XBTUSDT")
    assert ticker["timestamp"] == T0 + 100 * 900_000
    assert float(str(ticker["last_trade"])) == row[4]
    candle = lunobiz.Candle(int(row[0]), *row[1:6].tolist())
    assert (float(str(ticker["bid"])), float(str(ticker["ask"]))) == lunobiz.modelled_quote(XBT, candle)
    day = data[(data[:, 0] >= T0 + 4 * 900_000) & (data[:, 0] < T0 + 100 * 900_000)]
    assert float(str(ticker["rolling_24_hour_volume"])) == pytest.approx(day[:, 5].sum(), abs=1e-7)
    assert answer(exchange, BOOK, pair="XBTUSDT") == {"timestamp": clock.now_ms(), "asks": None, "bids": None}
    fees = answer(exchange, FEES, pair="XBTUSDT")
    assert (fees["maker_fee_buy"], fees["taker_fee_sell"]) == ("0.00100000", "0.00200000")
    found = all_candles(exchange, "XBTUSDT", 0, 900)
    assert found[-1]["timestamp"] == T0 + 100 * 900_000 and found[-1]["volume"] == "0.00"
    assert {r["asset"] for r in rows(exchange, BALANCE, "balance")} == {"XBT", "USDT"}
    assert money(exchange)["USDT"] == ("100000.00", "0.00")


def test_a_hole_is_a_hole_and_the_end_is_the_end() -> None:
    data = recording(20)
    clock = SteppedClock(T0 + 52 * 900_000)
    exchange = DemoExchange.recorded({"XBTUSDT": data}, 900, {"XBTUSDT": XBT}, clock)
    assert answer(exchange, TICKER, pair="XBTUSDT")["timestamp"] == T0 + 50 * 900_000
    assert all_candles(exchange, "XBTUSDT", 0, 900)[-1]["timestamp"] == T0 + 49 * 900_000  # none in progress
    clock.set_ms(exchange.end_ms + DAY_MS)
    assert answer(exchange, TICKER, pair="XBTUSDT")["timestamp"] == exchange.end_ms == T0 + 20 * DAY_MS
    assert all_candles(exchange, "XBTUSDT", 0, 900)[-1]["timestamp"] == exchange.end_ms - 900_000
    assert rows(exchange, TRADES, "trades", pair="XBTUSDT") == []


def test_where_a_replay_starts() -> None:
    clock = SteppedClock(T0)
    both = {"XBTUSDT": recording(100), "ETHUSDT": recording(40, start_ms=T0 + 30 * DAY_MS)}
    exchange = DemoExchange.recorded(both, 900, {"XBTUSDT": XBT, "ETHUSDT": ETH}, clock)
    assert (exchange.history_start_ms, exchange.start_ms, exchange.end_ms) == (T0, T0 + 70 * DAY_MS, T0 + 100 * DAY_MS)
    assert exchange.finest_s == 900 and [m.pair for m in exchange.markets()] == ["ETHUSDT", "XBTUSDT"]
    clock.set_ms(T0 + 900_000)
    early, running = rows(exchange, TICKERS, "tickers")
    assert (early["bid"], early["ask"], early["last_trade"]) == ("0.00000000",) * 3
    assert float(str(running["last_trade"])) > 0
    order = {"pair": "ETHUSDT", "type": "BID", "price": 1, "volume": 1}
    assert code(call(exchange, POST, "POST", **order)) == (400, "ErrMarketUnavailable")
    short = DemoExchange.recorded({"XBTUSDT": recording(30)}, 900, {"XBTUSDT": XBT}, clock)
    assert short.start_ms == T0 + 15 * DAY_MS


def test_the_generated_market_says_where_it_starts(demo: DemoExchange) -> None:
    assert (demo.finest_s, demo.start_ms, demo.history_start_ms) == (300, DEMO_START_MS, DEMO_START_MS - 70 * DAY_MS)
    assert demo.end_ms > DEMO_START_MS + 100 * 365 * DAY_MS
    demo.close()


def held_bytes(root: object) -> int:
    """The memory of everything that can be reached from here and is no code."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        waiting.extend(gc.get_referents(thing))
    return total


def test_a_demo_that_runs_for_months_holds_no_more_than_in_its_first_weeks() -> None:
    clock = SteppedClock(DEMO_START_MS)
    exchange = DemoExchange.generated(6, clock)
    held = []
    for _ in range(6):
        for _ in range(20):
            clock.sleep(86_400)
            for pair in PAIRS:
                call(exchange, CANDLES, pair=pair, since=clock.now_ms() - DAY_MS, duration=3600)
                call(exchange, CANDLES, pair=pair, since=clock.now_ms() - 2 * STEP_MS, duration=300)
        held.append(held_bytes(exchange))
    assert held[-1] < held[0] * 1.05
    assert len(all_candles(exchange, "XBTZAR", 0, 3600)) == 190 * 24 + 1  # but it can tell all of its days
    assert held_bytes(exchange) < held[0] * 1.05
