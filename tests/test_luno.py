"""LUNO: every shape of answer that the exchange may send, and all that must not get past the door."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lunobiz
from fakes import FakeClock, FakeTransport, Request, Step, reply
from lunobiz import (
    Amounts,
    Answer,
    Candle,
    Credentials,
    DemoExchange,
    ExchangeDown,
    ExchangeRefused,
    Fault,
    FoundOrder,
    LunoClient,
    LunoOrders,
    NotSent,
    OrderBook,
    OrderKind,
    OrderState,
    PostAnswer,
    RateLimit,
    RateLimited,
    Reply,
    SentOrder,
    Side,
    SteppedClock,
    Ticker,
    implausible,
    mismatch,
    order_form,
)

KEY = Credentials("canaryid12345", "S3cr3t-canary_0123456789abcdefghijklmnopQRS")
T0 = 1764000000000

MARKET: dict[str, object] = {
    "market_id": "XBTZAR",
    "trading_status": "ACTIVE",
    "base_currency": "XBT",
    "counter_currency": "ZAR",
    "min_volume": "0.0001",
    "max_volume": "100.00",
    "volume_scale": 6,
    "min_price": "100.00",
    "max_price": "100000000.00",
    "price_scale": 0,
    "fee_scale": 8,
}
TICKER: dict[str, object] = {
    "pair": "XBTZAR",
    "timestamp": T0,
    "bid": "1949512.00000000",
    "ask": "1950488.00000000",
    "last_trade": "1950000.00000000",
    "rolling_24_hour_volume": "53.08981500",
    "status": "ACTIVE",
}
BOOK: dict[str, object] = {
    "timestamp": T0,
    "asks": [{"price": "1950488.00000000", "volume": "0.02396800"}, {"price": "1950500.00", "volume": "1.5"}],
    "bids": [{"price": "1949512.00000000", "volume": "0.02148300"}, {"price": "1949000.00", "volume": "2"}],
}
CANDLE: dict[str, object] = {
    "timestamp": T0 - 60_000,
    "open": "1948040.00",
    "close": "1950000.00",
    "high": "1950001.00",
    "low": "1948039.00",
    "volume": "0.045016",
}
CANDLES: dict[str, object] = {"candles": [CANDLE], "duration": 60, "pair": "XBTZAR"}
FEES: dict[str, object] = {
    "thirty_day_volume": "0",
    "maker_fee": "0.00900000",
    "taker_fee": "0.00900000",
    "maker_fee_buy": "0.00400000",
    "maker_fee_sell": "0.00300000",
    "taker_fee_buy": "0.00600000",
    "taker_fee_sell": "0.00700000",
}
BALANCE: dict[str, object] = {
    "account_id": "3706266844366961196",
    "asset": "XBT",
    "balance": "0.05",
    "reserved": "0.002",
    "unconfirmed": "0.00",
    "name": "XBT wallet",
}


class Desk:
    """A client on a scripted line, with its clock."""

    def __init__(self, *script: Step, key: Credentials = KEY, took_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.line = FakeTransport(*script, clock=self.clock, took_s=took_s)
        self.limit = RateLimit(self.clock)
        self.client = LunoClient(self.line, key, self.limit, self.clock, random.Random(7))


Call = Callable[[LunoClient], object]
CALLS: dict[str, tuple[dict[str, object], Call]] = {
    "markets": ({"markets": [MARKET]}, lambda c: c.markets()),
    "tickers": ({"tickers": [TICKER]}, lambda c: c.tickers()),
    "order_book": (BOOK, lambda c: c.order_book("XBTZAR")),
    "candles": (CANDLES, lambda c: c.candles("XBTZAR", T0, 60)),
    "fees": (FEES, lambda c: c.fees("XBTZAR")),
    "balances": ({"balance": [BALANCE]}, lambda c: c.balances()),
}
NEEDS_KEY = {"candles", "fees", "balances"}


def ask(name: str, body: object) -> object:
    """What a call makes of an answer."""
    return CALLS[name][1](Desk(reply(body)).client)


def unusable(name: str, body: object) -> str:
    """The words with which an answer is refused."""
    with pytest.raises(ExchangeDown, match="cannot be used") as caught:
        ask(name, body)
    return str(caught.value)


def without(row: Mapping[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != name}


# ---- what is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "path", "params"),
    [
        (lambda c: c.markets(), "/api/exchange/1/markets", ()),
        (lambda c: c.markets(["XBTZAR"]), "/api/exchange/1/markets", (("pair", "XBTZAR"),)),
        (lambda c: c.tickers(("A", "B")), "/api/1/tickers", (("pair", "A"), ("pair", "B"))),
        (lambda c: c.order_book("XBTZAR"), "/api/1/orderbook_top", (("pair", "XBTZAR"),)),
        (
            lambda c: c.candles("XBTZAR", 5, 300),
            "/api/exchange/1/candles",
            (("pair", "XBTZAR"), ("since", "5"), ("duration", "300")),
        ),
        (lambda c: c.fees("XBTZAR"), "/api/1/fee_info", (("pair", "XBTZAR"),)),
        (lambda c: c.balances(), "/api/1/balance", ()),
    ],
)
def test_requests(call: Call, path: str, params: tuple[tuple[str, str], ...]) -> None:
    desk = Desk(reply({"error_code": "ErrStop"}))
    with pytest.raises(ExchangeRefused):
        call(desk.client)
    is_private = path.rpartition("/")[2] in {"candles", "fee_info", "balance"}
    assert desk.line.requests == [Request("GET", path, params, KEY if is_private else None)]


@pytest.mark.parametrize("name", sorted(NEEDS_KEY))
def test_without_a_key_nothing_private_is_asked(name: str) -> None:
    desk = Desk(reply(CALLS[name][0]), key=Credentials())
    assert not desk.client.has_key
    with pytest.raises(ExchangeRefused) as caught:
        CALLS[name][1](desk.client)
    assert caught.value.code == "no-key" and not desk.line.requests
    assert Desk(reply({})).client.has_key


# ---- good answers ----------------------------------------------------------------------------------------


def test_markets() -> None:
    found = ask("markets", {"markets": [MARKET]})
    assert found == (
        lunobiz.Market(
            "XBTZAR", "XBT", "ZAR", 0, 6, 0.0001, 100.0, 100.0, 1e8, "ACTIVE", 0.004, 0.006, "entry tier"
        ),
    )


def test_a_pair_is_split_as_the_market_says() -> None:
    usdt = MARKET | {"market_id": "USDTZAR", "base_currency": "USDT"}
    (market,) = Desk(reply({"markets": [usdt]})).client.markets()
    assert (market.base, market.counter, market.name) == ("USDT", "ZAR", "USDT/ZAR")


def test_with_fees() -> None:
    (market,) = Desk(reply({"markets": [MARKET]})).client.markets()
    dear = lunobiz.with_fees(market, -0.0001, 0.002, "account")
    assert (dear.maker_fee, dear.taker_fee, dear.fee_source) == (-0.0001, 0.002, "account")
    assert lunobiz.with_fees(dear, 0.004, 0.006, "entry tier") == market


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("ACTIVE", "ACTIVE"),
        ("POST_ONLY", "POST_ONLY"),
        ("POSTONLY", "POST_ONLY"),
        ("SUSPENDED", "SUSPENDED"),
        ("DISABLED", "SUSPENDED"),
        ("UNKNOWN", "UNKNOWN"),
        ("NEWWORD", "UNKNOWN"),
        ("", "UNKNOWN"),
        (None, "UNKNOWN"),
        (1, "UNKNOWN"),
        (["ACTIVE"], "UNKNOWN"),
    ],
)
def test_statuses_have_one_spelling(sent: object, meant: str) -> None:
    (market,) = Desk(reply({"markets": [MARKET | {"trading_status": sent}]})).client.markets()
    (ticker,) = Desk(reply({"tickers": [TICKER | {"status": sent}]})).client.tickers()
    assert (market.status, ticker.status) == (meant, meant)
    (silent,) = Desk(reply({"tickers": [without(TICKER, "status")]})).client.tickers()
    assert silent.status == "UNKNOWN"


def test_tickers() -> None:
    assert ask("tickers", {"tickers": [TICKER]}) == (
        Ticker("XBTZAR", T0, 1949512.0, 1950488.0, 1950000.0, 53.089815, "ACTIVE"),
    )


def test_an_empty_side_of_a_ticker_is_zero() -> None:
    (ticker,) = Desk(
        reply({"tickers": [TICKER | {"bid": "0.00000000", "ask": "0.00000000"}]})
    ).client.tickers()
    assert (ticker.bid, ticker.ask, ticker.spread) == (0.0, 0.0, math.inf)


def test_only_the_pairs_asked_for_come_back() -> None:
    other = {"market_id": "ETHZAR", "base_currency": "ETH"}
    client = Desk(reply({"markets": [MARKET, MARKET | other]})).client
    assert [m.pair for m in client.markets(["ETHZAR"])] == ["ETHZAR"]
    assert [m.pair for m in client.markets()] == ["XBTZAR", "ETHZAR"]


def test_order_book() -> None:
    assert ask("order_book", BOOK) == OrderBook(
        T0, ((1949512.0, 0.021483), (1949000.0, 2.0)), ((1950488.0, 0.023968), (1950500.0, 1.5))
    )


def test_order_book_with_empty_levels_and_sides() -> None:
    level = [{"price": "9", "volume": "0.000"}, {"price": "8", "volume": "1"}]
    assert ask("order_book", BOOK | {"bids": level, "asks": None}) == OrderBook(T0, ((8.0, 1.0),), ())
    assert ask("order_book", BOOK | {"bids": None, "asks": []}) is None
    assert ask("order_book", BOOK | {"bids": level[:1], "asks": []}) is None


@pytest.mark.parametrize("side", ["bids", "asks"])
def test_an_unsorted_book_is_refused(side: str) -> None:
    levels = BOOK[side]
    assert isinstance(levels, list)
    assert "order of" in unusable("order_book", BOOK | {side: levels[::-1]})
    assert "order of" in unusable("order_book", BOOK | {side: [{"price": "0", "volume": "1"}]})


def test_candles_keep_their_order_and_their_fields() -> None:
    later = CANDLE | {"timestamp": T0}
    expected = Candle(T0 - 60_000, 1948040.0, 1950001.0, 1948039.0, 1950000.0, 0.045016)
    found = ask("candles", {"candles": [later, CANDLE]})
    assert isinstance(found, tuple)
    assert (found[0].opened_ms, found[1]) == (T0, expected)


def test_candles_of_another_market_or_duration_are_refused() -> None:
    assert "another market" in unusable("candles", CANDLES | {"pair": "ETHZAR"})
    assert "another duration" in unusable("candles", CANDLES | {"duration": 300})
    assert ask("candles", CANDLES | {"duration": "60", "pair": None}) == ask("candles", CANDLES)


def test_impossible_candles_are_for_others_to_judge() -> None:
    found = ask("candles", {"candles": [CANDLE | {"low": "-5", "high": "1"}]})
    assert isinstance(found, tuple) and (found[0].low, found[0].high) == (-5.0, 1.0)


def test_the_dearer_fee_counts() -> None:
    assert ask("fees", FEES) == (0.004, 0.007)
    old = {"maker_fee": "0.0025", "taker_fee": 0.005, "maker_fee_buy": None}
    assert ask("fees", old) == (0.0025, 0.005)
    rebate = FEES | {"maker_fee_buy": "-0.0002", "maker_fee_sell": "-0.0001"}
    assert ask("fees", rebate) == (-0.0001, 0.007)


@pytest.mark.parametrize("fee", ["0.1001", "0.6", "-0.0501", "25"])
def test_an_absurd_fee_is_refused(fee: str) -> None:
    assert "fees, taker" in unusable(
        "fees", FEES | {"taker_fee_buy": "0", "taker_fee_sell": fee} | {"taker_fee_buy": fee}
    )


def test_balances_are_exact_and_all_accounts_are_there() -> None:
    savings = BALANCE | {"account_id": 9007199254740993, "balance": "0.123456789012345678", "reserved": 0}
    found = ask("balances", {"balance": [BALANCE, savings]})
    assert found == (
        lunobiz.Balance("3706266844366961196", "XBT", Decimal("0.05"), Decimal("0.002")),
        lunobiz.Balance("9007199254740993", "XBT", Decimal("0.123456789012345678"), Decimal(0)),
    )


# ---- shapes that are allowed -----------------------------------------------------------------------------

LISTS = {"markets": "markets", "tickers": "tickers", "candles": "candles", "balances": "balance"}


@pytest.mark.parametrize("name", LISTS)
def test_an_empty_list_may_be_null_but_not_missing(name: str) -> None:
    assert ask(name, {LISTS[name]: None}) == ask(name, {LISTS[name]: []}) == ()
    assert LISTS[name] in unusable(name, {})
    wrongs: tuple[object, ...] = ({}, "", 0, False, {"XBTZAR": {}})
    for wrong in wrongs:
        assert LISTS[name] in unusable(name, {LISTS[name]: wrong})


@pytest.mark.parametrize("name", CALLS)
def test_unknown_fields_are_ignored(name: str) -> None:
    body = CALLS[name][0]
    more = {"new": {"deep": [1, None, True, 1.5]}, "error_code": "", "error": None}
    assert ask(name, body | more) == ask(name, body)


def test_rows_with_unknown_fields_are_read() -> None:
    assert ask("tickers", {"tickers": [TICKER | {"new": [1]}]}) == ask("tickers", {"tickers": [TICKER]})


@pytest.mark.parametrize("value", ["1950000", "1950000.0", 1950000, 1950000.0, 1.95e6])
def test_amounts_may_be_texts_or_numbers(value: object) -> None:
    (ticker,) = Desk(reply({"tickers": [TICKER | {"last_trade": value}]})).client.tickers()
    assert ticker.last == 1950000.0


MOMENTS = {
    "2025-11-24T16:00:00Z": datetime(2025, 11, 24, 16, tzinfo=UTC),
    "2025-11-24T16:00:00.25Z": datetime(2025, 11, 24, 16, 0, 0, 250_000, tzinfo=UTC),
    "2025-11-24T18:00:00.123456789+02:00": datetime(2025, 11, 24, 16, 0, 0, 123_000, tzinfo=UTC),
}


@pytest.mark.parametrize("text", MOMENTS)
def test_times_may_be_rfc3339(text: str) -> None:
    (ticker,) = Desk(reply({"tickers": [TICKER | {"timestamp": text}]})).client.tickers()
    assert ticker.time_ms == round(MOMENTS[text].timestamp() * 1000)


@pytest.mark.parametrize("value", [str(T0), float(T0)])
def test_times_may_be_texts_and_numbers(value: object) -> None:
    assert ask("tickers", {"tickers": [TICKER | {"timestamp": value}]}) == ask(
        "tickers", {"tickers": [TICKER]}
    )


# ---- shapes that are not ---------------------------------------------------------------------------------

BAD_NUMBERS: list[object] = [
    "NaN", "Infinity", "-Infinity", "inf", "1e5", "1E5", "0x10", "1_000", " 1", "1 ", "1\n", "+1",
    "\u0661\u0662",
    "\uff11", "",
    ".5", "1.", "1,5", "1.2.3", "--1", "1" * 19, "1." + "1" * 19, None, True, False, [], {}, [1],
    10**18, 10**30, 1e30, 1e-30, -1e40,
]  # fmt: skip
NUMBER_FIELDS = [
    ("tickers", "tickers", TICKER, "bid"),
    ("tickers", "tickers", TICKER, "ask"),
    ("tickers", "tickers", TICKER, "last_trade"),
    ("tickers", "tickers", TICKER, "rolling_24_hour_volume"),
    ("markets", "markets", MARKET, "min_volume"),
    ("markets", "markets", MARKET, "max_price"),
    ("candles", "candles", CANDLE, "open"),
    ("candles", "candles", CANDLE, "high"),
    ("candles", "candles", CANDLE, "low"),
    ("candles", "candles", CANDLE, "close"),
    ("candles", "candles", CANDLE, "volume"),
    ("balances", "balance", BALANCE, "balance"),
    ("balances", "balance", BALANCE, "reserved"),
]


@pytest.mark.parametrize(("name", "key", "row", "field"), NUMBER_FIELDS)
def test_what_is_no_plain_number_is_refused(name: str, key: str, row: dict[str, object], field: str) -> None:
    for bad in BAD_NUMBERS:
        unusable(name, {key: [row | {field: bad}]})
    unusable(name, {key: [without(row, field)]})
    if name != "candles":
        unusable(name, {key: [row | {field: "-1"}]})


def test_fees_are_strict_as_well() -> None:
    for bad in (b for b in BAD_NUMBERS if b is not None):
        unusable("fees", FEES | {"maker_fee_buy": bad})
    unusable("fees", {"maker_fee": "0.004"})


def test_the_edges_of_the_number_form() -> None:
    for good in ("9" * 18, "0." + "0" * 17 + "1", "-0", "000.000", "007"):
        found = ask("candles", {"candles": [CANDLE | {"open": good}]})
        assert (
            isinstance(found, tuple) and found[0].open == float(good) and math.copysign(1, found[0].open) == 1
        )


@pytest.mark.parametrize(
    "bad",
    [None, "", "yesterday", True, T0 // 1000, T0 * 1000, -T0, T0 + 0.5, "2025-02-30T00:00:00Z", "2025-11-24",
     "2025-11-24T16:00:00", "2025-11-24 16:00:00Z", "1999-11-24T16:00:00Z",
     "2025-11-24T16:00:00+99:99", [], {}],
)  # fmt: skip
def test_what_is_no_moment_is_refused(bad: object) -> None:
    unusable("tickers", {"tickers": [TICKER | {"timestamp": bad}]})
    unusable("candles", {"candles": [CANDLE | {"timestamp": bad}]})
    unusable("order_book", BOOK | {"timestamp": bad})


@pytest.mark.parametrize(
    "change",
    [
        {"market_id": "XBT/ZAR"},
        {"market_id": "xbtzar"},
        {"market_id": "ETHZAR"},
        {"market_id": None},
        {"base_currency": "ZAR", "counter_currency": "XBT"},
        {"price_scale": -1},
        {"price_scale": 13},
        {"volume_scale": 1.5},
        {"volume_scale": True},
        {"volume_scale": None},
        {"min_volume": "101"},
        {"max_volume": "0", "min_volume": "0"},
        {"max_price": "0", "min_price": "0"},
        {"min_price": "100000001"},
    ],
)
def test_impossible_markets_are_refused(change: dict[str, object]) -> None:
    unusable("markets", {"markets": [MARKET | change]})


@pytest.mark.parametrize("broken", [None, [], "x", 5, {}, MARKET | {"min_volume": "NaN"}])
def test_a_broken_market_does_not_hide_the_others(broken: object) -> None:
    client = Desk(reply({"markets": [broken, MARKET, broken]})).client
    assert [m.pair for m in client.markets()] == ["XBTZAR"]


def test_a_broken_ticker_does_not_hide_the_others() -> None:
    client = Desk(reply({"tickers": [TICKER | {"bid": "-1"}, TICKER]})).client
    assert len(client.tickers()) == 1


@pytest.mark.parametrize(
    ("name", "key", "row"), [("candles", "candles", CANDLE), ("balances", "balance", BALANCE)]
)
def test_a_broken_candle_or_balance_spoils_the_answer(name: str, key: str, row: dict[str, object]) -> None:
    several: tuple[object, ...] = (None, [], "x", {})
    for broken in several:
        unusable(name, {key: [row, broken]})


@pytest.mark.parametrize(
    "bad", [{"account_id": None}, {"account_id": True}, {"account_id": "a b"}, {"asset": "x"}]
)
def test_an_account_needs_a_name(bad: dict[str, object]) -> None:
    unusable("balances", {"balance": [BALANCE | bad]})


BODIES = {
    "nothing": b"",
    "text": b"hello",
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "list": b"[]",
    "text in json": b'"ok"',
    "number": b"5",
    "null": b"null",
    "truncated": b'{"tickers": [{"pair": "XBT',
    "two": b"{}{}",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"tickers": []}'.encode("utf-16"),
    "not utf-8": b'{"tickers": "\xff"}',
    "NaN": b'{"tickers": [], "x": NaN}',
    "Infinity": b'{"tickers": [], "x": -Infinity}',
    "same key twice": b'{"tickers": [], "tickers": []}',
    "same key twice, deep": b'{"tickers": [], "x": [{"a": 1, "a": 1}]}',
    "100,000 brackets": b"[" * 100_000,
    "100,000 nested objects": b'{"a":' * 100_000,
    "closed deep nesting": b'{"tickers": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "100 digits": b'{"tickers": [], "x": ' + b"9" * 100 + b"}",
    "5,000 digits": b'{"tickers": [], "x": ' + b"9" * 5_000 + b"}",
    "5,000 decimals": b'{"tickers": [], "x": 0.' + b"9" * 5_000 + b"}",
    "huge exponent": b'{"tickers": [], "x": 1e99999999999999999999}',
}


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_no_strict_json_object_is_refused(kind: str) -> None:
    unusable("tickers", BODIES[kind])


@pytest.mark.parametrize("number", ["1e999999", "1e-999999", "1e99999999", "-1e400"])
def test_a_number_of_absurd_size_is_refused_quickly(number: str) -> None:
    text = json.dumps({"tickers": [TICKER | {"bid": "@"}]}).replace('"@"', number)
    unusable("tickers", text)


# ---- refusals and trouble --------------------------------------------------------------------------------


def error_of(answer: Reply, name: str = "balances") -> lunobiz.LunobizError:
    with pytest.raises(lunobiz.LunobizError) as caught:
        CALLS[name][1](Desk(answer).client)
    return caught.value


def coded(code: object, status: int) -> Reply:
    return reply({"error": "Vertaalde teks.", "error_code": code, "error_action": {}}, status)


@pytest.mark.parametrize("status", [200, 201, 400, 401, 403, 404, 409, 422])
@pytest.mark.parametrize("code", ["ErrInsufficientBalance", "ErrMarketNotAllowed", "ErrBrandNew2026"])
def test_a_code_is_a_refusal_whatever_the_status(status: int, code: str) -> None:
    error = error_of(coded(code, status))
    assert isinstance(error, ExchangeRefused) and error.code == code
    assert "Vertaalde" not in str(error)


@pytest.mark.parametrize(
    ("answer", "name", "code"),
    [
        (reply("Unauthorised", 401), "balances", "HTTP-401"),
        (reply("<html>no</html>", 403), "balances", "HTTP-403"),
        (reply("<html>no</html>", 403), "tickers", "HTTP-403-public"),
        (reply("Unauthorised", 401), "tickers", "HTTP-401-public"),
        (coded("ErrAPIKeyNotFound", 401), "candles", "ErrAPIKeyNotFound"),
        (coded("ErrInsufficientPerms", 403), "fees", "ErrInsufficientPerms"),
        (reply({"code": "x", "message": "y"}, 401), "fees", "HTTP-401"),
    ],
)
def test_a_refused_key(answer: Reply, name: str, code: str) -> None:
    desk = Desk(answer)
    with pytest.raises(ExchangeRefused) as caught:
        CALLS[name][1](desk.client)
    assert caught.value.code == code
    assert (code in lunobiz.KEY_CODES) == (name in NEEDS_KEY)
    assert len(desk.line.requests) == 1, "a refused key is not tried again: that could lock it"


@pytest.mark.parametrize(
    "code", [5, True, ["ErrX"], {"a": 1}, "weird text", "Err", "Err" + "x" * 99, "ErrX\n"]
)
def test_a_code_of_unknown_form_is_still_an_error(code: object) -> None:
    error = error_of(coded(code, 200))
    assert isinstance(error, ExchangeRefused) and error.code == "ErrUnreadable"


@pytest.mark.parametrize(
    "answer",
    [
        reply("", 500),
        reply("<html>", 502),
        reply("", 503),
        reply(b"\xff\x00", 504),
        reply(CALLS["balances"][0], 500),
        coded("ErrInternal", 400),
        coded("ErrDeadlineExceeded", 200),
        reply("moved", 302, {"location": "https://evil.example"}),
        reply(CALLS["balances"][0], 302),
        reply("", 304),
        reply("nope", 400),
        reply("<html>nope</html>", 404),
        reply("", 408),
    ],
)
def test_trouble_of_the_exchange_is_tried_again(answer: Reply) -> None:
    desk = Desk(answer, answer, answer, reply(CALLS["balances"][0]))
    assert desk.client.balances()
    assert (len(desk.line.requests), len(desk.clock.sleeps)) == (4, 3)
    error = error_of(answer)
    assert isinstance(error, ExchangeDown) and not isinstance(error, RateLimited)


def test_a_line_that_is_down_is_tried_again_and_then_told() -> None:
    desk = Desk(ExchangeDown("gone"), reply(CALLS["tickers"][0]))
    assert desk.client.tickers()
    desk = Desk(ExchangeDown("gone"))
    with pytest.raises(ExchangeDown, match="gone"):
        desk.client.tickers()
    assert len(desk.line.requests) == 4


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (reply("<html>slow down</html>", 429), 30.0),
        (reply("", 429, {"retry-after": "25"}), 25.0),
        (reply("", 429, {"retry-after": "9999"}), 300.0),
        (reply("", 429, {"retry-after": "soon"}), 30.0),
        (coded("ErrTooManyRequests", 400), 30.0),
        (coded("ErrTooManyRequests", 200), 30.0),
        (reply("", 503, {"retry-after": "120"}), 120.0),
    ],
)
def test_too_many_calls(answer: Reply, wait_s: float) -> None:
    desk = Desk(answer)
    with pytest.raises(RateLimited) as caught:
        desk.client.tickers()
    assert caught.value.wait_s == wait_s
    assert len(desk.line.requests) == 1 and desk.limit.left() == 0 and not desk.clock.sleeps
    with pytest.raises(RateLimited):
        desk.client.markets()
    assert len(desk.line.requests) == 1, "nobody else may call meanwhile"


def test_a_short_wait_is_waited_here() -> None:
    desk = Desk(reply("", 429, {"retry-after": "3"}), reply(CALLS["tickers"][0]))
    assert desk.client.tickers()
    assert sum(desk.clock.sleeps) >= 3


def test_a_storm_of_429_slows_us_down() -> None:
    desk = Desk(reply("", 429))
    times: list[float] = []
    started = desk.clock.mono_s()
    while desk.clock.mono_s() < started + 1800:
        before = len(desk.line.requests)
        with pytest.raises(RateLimited):
            desk.client.tickers()
        times += [desk.clock.mono_s()] * (len(desk.line.requests) - before)
        desk.clock.advance(10)
    assert 10 < len(times) <= 60
    assert all(b - a >= 30 for a, b in pairwise(times))


# ---- what it tells of itself -----------------------------------------------------------------------------


def http_date(ms: float) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def skew_of(ahead_ms: float, took_s: float, stamped_at: float = 0.5) -> tuple[float, LunoClient]:
    """What the client thinks of a clock ahead by so much, read at that part of the way there and back."""

    def answer(request: Request) -> Reply:
        stamped_ms = desk.clock.now_ms() - took_s * 1000 * (1 - stamped_at)
        return reply(CALLS["tickers"][0], 200, {"date": http_date(stamped_ms + ahead_ms)})

    desk = Desk(answer, took_s=took_s)
    desk.client.tickers()
    return desk.client.skew_ms, desk.client


@settings(max_examples=200)
@given(st.floats(-1400, 1400), st.floats(0, 8), st.floats(0, 1))
def test_a_skew_within_the_resolution_is_none(ahead_ms: float, took_s: float, stamped_at: float) -> None:
    assert skew_of(ahead_ms, took_s, stamped_at)[0] == 0.0


@settings(max_examples=200)
@given(st.sampled_from([-1, 1]), st.floats(2600, 10**7), st.floats(0, 8))
def test_a_real_skew_is_measured_to_half_a_second(sign: int, size_ms: float, took_s: float) -> None:
    ahead_ms = sign * (size_ms + took_s * 500)
    found, client = skew_of(ahead_ms, took_s)
    assert found == pytest.approx(ahead_ms, abs=502)
    assert client.latency_ms == pytest.approx(took_s * 1000, abs=1e-3)


def test_a_clock_set_right_is_noticed_and_a_missing_date_changes_nothing() -> None:
    def answer(request: Request) -> Reply:
        return reply({"tickers": []}, 200, {"date": http_date(true_ms + desk.clock.mono_s() * 1000)})

    desk = Desk(answer, answer, reply({"tickers": []}), reply({"tickers": []}, 200, {"date": "?"}), answer)
    true_ms = desk.clock.now_ms() - desk.clock.mono_s() * 1000
    desk.client.tickers()
    assert desk.client.skew_ms == 0.0
    desk.clock.jump(-7200)
    for _ in range(3):
        desk.client.tickers()
        assert desk.client.skew_ms == pytest.approx(7_200_000, abs=502)
    desk.clock.jump(7200)
    desk.client.tickers()
    assert desk.client.skew_ms == 0.0


def test_the_last_good_answer_is_dated() -> None:
    desk = Desk(reply("", 500), reply({"tickers": []}), coded("ErrX", 400))
    assert desk.client.last_ok_ms == 0
    desk.client.tickers()
    assert desk.client.last_ok_ms == desk.clock.now_ms()
    good_ms = desk.client.last_ok_ms
    desk.clock.advance(5)
    with pytest.raises(ExchangeRefused):
        desk.client.tickers()
    assert (len(desk.line.requests), desk.client.last_ok_ms) == (3, good_ms)


def test_every_call_takes_from_the_limit() -> None:
    desk = Desk(reply("", 500), reply("", 500), reply({"tickers": []}))
    before = desk.limit.left()
    desk.client.tickers()
    assert len(desk.line.requests) == 3
    assert desk.limit.left() <= before - 3 + math.ceil(sum(desk.clock.sleeps) * 3)


# ---- anything at all -------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["XBTZAR", "1.5", "NaN", "ACTIVE", T0, "ErrX", "-0", "1e5", 1e300])
)  # fmt: skip
ROWS = (MARKET, TICKER, BOOK, CANDLE, CANDLES, FEES, BALANCE)
NAMES = st.sampled_from(
    sorted({"error_code", "markets", "tickers", "balance"}.union(*(row.keys() for row in ROWS)))
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=6
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good answer with some part replaced, or some of its bytes."""
    body: dict[str, object] = json.loads(
        json.dumps(draw(st.sampled_from([body for body, _ in CALLS.values()])))
    )
    rows = [row for value in body.values() if isinstance(value, list) for row in value] or [body]
    target = draw(st.sampled_from([body, *rows]))
    target[draw(st.sampled_from(sorted(target)))] = draw(JSON)
    raw = bytearray(json.dumps(body).encode())
    for _ in range(draw(st.integers(0, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def is_sane(value: object) -> bool:
    """True when no number in a result could poison a decision."""
    if isinstance(value, (float, Decimal)):
        return math.isfinite(value) and abs(float(value)) < 1e18
    if isinstance(value, tuple):
        return all(is_sane(v) for v in value)
    slots = getattr(type(value), "__slots__", ())
    return all(is_sane(getattr(value, name)) for name in slots)


@settings(max_examples=2_000)
@given(
    st.sampled_from(sorted(CALLS)),
    st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()) | damaged(),
    st.sampled_from([200, 200, 200, 201, 302, 400, 401, 403, 404, 409, 429, 500, 503])
    | st.integers(100, 999),
)
def test_only_our_errors_come_out(name: str, body: bytes, status: int) -> None:
    desk = Desk(Reply(status, {}, body))
    try:
        result = CALLS[name][1](desk.client)
    except (ExchangeDown, ExchangeRefused) as error:
        assert len(str(error)) < 200
        assert error.__cause__ is None and error.__context__ is None
    else:
        assert 200 <= status < 300 and is_sane(result)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_the_exchange_says_is_repeated(name: str) -> None:
    """An exchange that sends our key back, in any place, does not get it into an error."""
    secret = KEY.secret
    answers = [
        reply({"error": secret, "error_code": code}, status)
        for code in (secret, f"Err{secret}", None)
        for status in (200, 400, 401, 500)
    ]
    answers += [
        reply(secret, status, {"retry-after": secret, "date": secret}) for status in (200, 302, 403, 429)
    ]
    answers += [reply({key: secret for key in CALLS[name][0]})]
    answers += [reply({key: [{secret: secret}] for key in CALLS[name][0]})]
    for answer in answers:
        error = error_of(answer, name)
        assert secret not in str(error) + repr(error) and secret[:21] not in str(error)
    client = Desk(reply({})).client
    assert secret not in repr(client) + repr(vars(client))


# ---- orders ----------------------------------------------------------------------------------------------

ORDER_ROW: dict[str, object] = {
    "order_id": "BXU9N2YEMRHY9WR", "creation_timestamp": T0, "expiration_timestamp": 0, "completed_timestamp": 0,
    "type": "LIMIT", "side": "BUY", "status": "PENDING", "limit_price": "1900000.00", "limit_volume": "0.002",
    "base": "0.001", "counter": "1900.00", "fee_base": "0.000006", "fee_counter": "0.00", "pair": "XBTZAR",
    "client_order_id": "LB1-3fa9c2d1-000001", "base_account_id": 3706266844366961196,
    "counter_account_id": 6183352288689765640, "stop_price": "0.00", "stop_direction": "", "time_in_force": "GTC",
}  # fmt: skip
BOUGHT = Amounts(Decimal("0.001"), Decimal("1900"), Decimal("0.000006"), Decimal("0"))


def wish(number: int = 1, **changes: object) -> SentOrder:
    """A purchase of 0.002 XBT."""
    plain = SentOrder(f"LB1-{number:06d}", f"LB1-3fa9c2d1-{number:06d}", "XBTZAR", Side.BUY, OrderKind.ENTRY,
                      Decimal("1900000"), Decimal("0.002000"), Decimal("0"), T0)
    return replace(plain, **changes)  # type: ignore[arg-type]


class Door:
    """The calls of a LIVE session on a scripted line."""

    def __init__(self, *script: Step) -> None:
        self.desk = Desk(*script)
        self.orders = LunoOrders(self.desk.client)

    def asked(self) -> list[tuple[str, str]]:
        """Method and path of what was asked."""
        return [(r.method, r.path) for r in self.desk.line.requests]


@pytest.mark.parametrize(("answer", "told"), [
    (reply({"order_id": "BXMC2CJ7HNB88U4"}), PostAnswer(Answer.ACCEPTED, "BXMC2CJ7HNB88U4")),
    (reply({"order_id": 1234567}), PostAnswer(Answer.ACCEPTED, "1234567")),
    (reply({"order_id": ""}), PostAnswer(Answer.UNKNOWN)),
    (reply({"order_id": None}), PostAnswer(Answer.UNKNOWN)),
    (reply({"order_id": "BX 1; --"}), PostAnswer(Answer.UNKNOWN)),
    (reply({"success": True}), PostAnswer(Answer.UNKNOWN)),
    (reply([{"order_id": "BXMC2CJ7HNB88U4"}]), PostAnswer(Answer.UNKNOWN)),
    (reply('{"order_id": "BXMC2CJ7HNB88U4"'), PostAnswer(Answer.UNKNOWN)),
    (reply('{"order_id": "BXMC2CJ7HNB88U4", "order_id": "BXMC2CJ7HNB88U5"}'), PostAnswer(Answer.UNKNOWN)),
    (reply(b""), PostAnswer(Answer.UNKNOWN)),
    (reply({"order_id": "BXMC2CJ7HNB88U4", "error_code": "ErrInternal"}),
     PostAnswer(Answer.UNKNOWN, "BXMC2CJ7HNB88U4", "ErrInternal")),
    (reply({"order_id": "BXMC2CJ7HNB88U4"}, 202), PostAnswer(Answer.ACCEPTED, "BXMC2CJ7HNB88U4")),
    (reply({"order_id": "BXMC2CJ7HNB88U4"}, 302), PostAnswer(Answer.UNKNOWN, "BXMC2CJ7HNB88U4")),
    (reply({"error": "x", "error_code": "ErrInsufficientBalance"}, 400),
     PostAnswer(Answer.REFUSED, "", "ErrInsufficientBalance")),
    (reply({"error_code": "ErrNew"}, 400), PostAnswer(Answer.UNKNOWN, "", "ErrNew")),
    (reply({"error_code": "not a code"}, 400), PostAnswer(Answer.UNKNOWN, "", "ErrUnreadable")),
    (reply({"error_code": "ErrDuplicateClientOrderID"}, 409),
     PostAnswer(Answer.EXISTS, "", "ErrDuplicateClientOrderID")),
    (reply("Unauthorised", 401), PostAnswer(Answer.KEY)),
    (reply("<html>Too Many Requests", 429), PostAnswer(Answer.UNKNOWN)),
    (reply("<html>Bad Gateway", 502), PostAnswer(Answer.UNKNOWN)),
    (NotSent("no connection"), PostAnswer(Answer.NOT_SENT)),
    (ExchangeDown("reset"), PostAnswer(Answer.UNKNOWN)),
])  # fmt: skip
def test_an_answer_to_an_order_has_a_class_and_is_asked_for_once(answer: Step, told: PostAnswer) -> None:
    door = Door(answer)
    assert door.orders.post(wish()) == told
    assert door.asked() == [("POST", "/api/1/postorder")]
    assert door.desk.line.requests[0].params == order_form(wish()) and door.desk.line.requests[0].key == KEY


def test_an_order_beyond_the_limit_of_calls_is_not_sent() -> None:
    """And a 429 empties what is left for those after it."""
    door = Door(reply("", 429, {"retry-after": "60"}))
    assert door.orders.post(wish()).answer is Answer.UNKNOWN
    assert door.orders.post(wish(2)).answer is Answer.NOT_SENT
    assert len(door.asked()) == 1


def test_an_order_found_is_exact() -> None:
    door = Door(reply(ORDER_ROW))
    found = door.orders.find(wish())
    assert found == FoundOrder("BXU9N2YEMRHY9WR", "LB1-3fa9c2d1-000001", "XBTZAR", Side.BUY, Decimal("1900000"),
                               Decimal("0.002"), Decimal(0), "PENDING", BOUGHT, T0)
    door.orders.find(wish(exchange_id="BXU9N2YEMRHY9WR"))
    assert [r.params for r in door.desk.line.requests] == [
        (("client_order_id", "LB1-3fa9c2d1-000001"),), (("id", "BXU9N2YEMRHY9WR"),)]


@pytest.mark.parametrize(("answer", "what"), [
    (reply({"error_code": "ErrOrderNotFound"}, 404), None),
    (reply({"error_code": "ErrNotFound"}, 404), None),
    (reply({"error_code": "ErrInvalidOrderRef"}, 400), None),
    (reply("<html>Not Found", 404), ExchangeDown),  # not well-formed: no proof of anything
    (reply({}, 404), ExchangeDown),
    (reply({"error_code": "ErrOrderNotFound"}, 500), ExchangeDown),
    (reply({"error_code": "ErrOrderNotFound"}, 429), RateLimited),
    (reply({"error_code": "ErrInternal"}, 500), ExchangeDown),
    (reply({"error_code": "ErrInvalidArguments"}, 400), ExchangeRefused),
    (reply("Unauthorised", 401), ExchangeRefused),
    (reply({}), ExchangeDown),
    (reply(b"\x00"), ExchangeDown),
    (ExchangeDown("reset"), ExchangeDown),
])
def test_not_found_is_only_what_says_so(answer: Step, what: type[Exception] | None) -> None:
    door = Door(answer)
    if what is None:
        assert door.orders.find(wish()) is None
    else:
        with pytest.raises(what):
            door.orders.find(wish())
    assert len(door.asked()) == 1  # asked again by whoever waits for it


@pytest.mark.parametrize("name", ["order_id", "side", "status", "pair", "base", "counter", "fee_base", "fee_counter",
                                  "creation_timestamp"])
@pytest.mark.parametrize("bad", [None, "", "+1", "-1 ", [], "1,5", True])
def test_an_order_with_a_field_that_cannot_be_read_is_no_answer(name: str, bad: object) -> None:
    with pytest.raises(ExchangeDown):
        Door(reply({**ORDER_ROW, name: bad})).orders.find(wish())


@pytest.mark.parametrize(("name", "bad"), [
    ("status", "CANCELLED"), ("side", "BID"), ("base", "-0.001"), ("counter", "-1"), ("stop_price", "-1"),
    ("limit_price", "1_000"), ("creation_timestamp", 0), ("client_order_id", "a b")])
def test_values_that_an_order_cannot_have(name: str, bad: object) -> None:
    with pytest.raises(ExchangeDown):
        Door(reply({**ORDER_ROW, name: bad})).orders.find(wish())


def test_an_owners_market_order_may_lack_fields() -> None:
    lacking = ("limit_price", "limit_volume", "stop_price", "client_order_id")
    row = {k: v for k, v in ORDER_ROW.items() if k not in lacking}
    found = Door(reply({**row, "fee_counter": "-0.01"})).orders.find(wish())
    assert found is not None and (found.price, found.volume, found.stop, found.client_id) == (0, 0, 0, "")
    assert found.amounts.fee_counter == Decimal("-0.01")


@pytest.mark.parametrize(("answer", "code"), [
    (reply({"success": True}), ""), (reply({"success": False}), ""), (reply(b"x"), ""),
    (reply({"error_code": "ErrCannotStopUnknownOrNonPendingOrder"}, 400), "ErrCannotStopUnknownOrNonPendingOrder"),
    (reply("no", 401), "HTTP-401"), (reply("no", 500), "HTTP-500")])
def test_a_cancel_tells_a_code_and_no_more(answer: Reply, code: str) -> None:
    door = Door(answer)
    assert door.orders.cancel("BX1234") == code
    assert door.asked() == [("POST", "/api/1/stoporder")]
    assert door.desk.line.requests[0].params == (("order_id", "BX1234"),)


# ---- pages of orders -------------------------------------------------------------------------------------


class Book:
    """A list of orders, newest first, given out in pages as the exchange does: those created before a time."""

    def __init__(self, *created: int) -> None:
        self.rows = [{**ORDER_ROW, "order_id": f"BX{n:06d}", "client_order_id": "", "creation_timestamp": T0 + ms}
                     for n, ms in enumerate(created)]
        self.pages: list[dict[str, str]] = []

    def __call__(self, request: Request) -> Reply:
        params = dict(request.params)
        self.pages.append(params)
        before = int(params.get("created_before", 2**62))
        rows = sorted(self.rows, key=lambda r: -int(str(r["creation_timestamp"])))
        page = [r for r in rows if int(str(r["creation_timestamp"])) < before][: int(params["limit"])]
        return reply({"orders": page})


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three orders to a page."""
    monkeypatch.setattr(lunobiz, "LIST_PAGE", 3)


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize("created", [(), (1,), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7), (1, 2, 2, 3, 4),
                                     (1, 1, 2, 2, 3, 3), (5, 5, 6, 6, 7)])
def test_every_order_of_all_pages_comes_once(created: tuple[int, ...]) -> None:
    """Orders of one millisecond that stand on both sides of a page's end too."""
    book = Book(*created)
    found = Door(book).orders.open_orders()
    assert sorted(o.exchange_id for o in found) == [f"BX{n:06d}" for n in range(len(created))]
    assert all(p["closed"] == "false" and p["limit"] == "3" for p in book.pages)
    assert [o.created_ms for o in found] == sorted((T0 + ms for ms in created), reverse=True)


@pytest.mark.usefixtures("short_pages")
def test_pages_end_where_orders_are_too_old() -> None:
    """Of 20 orders those from 14 on are wanted: three pages of three, the second begins with the last of the first."""
    book = Book(*range(1, 21))
    found = Door(book).orders.closed_orders(T0 + 14)
    assert [o.created_ms - T0 for o in found] == [20, 19, 18, 17, 16, 15, 14]
    assert [p.get("created_before") for p in book.pages] == [None, str(T0 + 19), str(T0 + 17), str(T0 + 15)]
    assert all(p["closed"] == "true" for p in book.pages)


@pytest.mark.usefixtures("short_pages")
def test_a_list_without_an_end_is_no_answer() -> None:
    for book in (Book(*range(1, 100)), Book(*([7] * 10))):
        door = Door(book)
        with pytest.raises(ExchangeDown, match="more orders than can be listed"):
            door.orders.open_orders()
        assert len(book.pages) == lunobiz.LIST_PAGES


def test_an_empty_list_of_orders_may_be_null_and_a_broken_row_spoils_it() -> None:
    assert Door(reply({"orders": None})).orders.open_orders() == ()
    assert Door(reply({"orders": []})).orders.closed_orders(T0) == ()
    for answer in (reply({}), reply({"orders": [ORDER_ROW, {**ORDER_ROW, "base": "NaN"}]}), reply({"orders": [1]})):
        with pytest.raises(ExchangeDown):
            Door(answer).orders.open_orders()


# ---- orders on the built-in exchange ---------------------------------------------------------------------


class Market:
    """The built-in exchange with some hours of candles, and a LIVE session's calls to it."""

    def __init__(self) -> None:
        self.clock = SteppedClock(0)
        self.exchange = DemoExchange.generated(3, self.clock)
        self.clock.set_ms(self.exchange.start_ms + 1000)
        self.client = LunoClient(self.exchange, KEY, RateLimit(self.clock), self.clock, random.Random(7))
        self.orders = LunoOrders(self.client)
        self.ticker = self.client.tickers(["XBTZAR"])[0]

    def wish(self, number: int = 1, far: float = 0.9, **changes: object) -> SentOrder:
        """A purchase far below the market, sent now."""
        price = Decimal(round(self.ticker.bid * far))
        return wish(number, price=price, sent_ms=self.orders.exchange_ms(), **changes)

    def is_there(self, order: SentOrder) -> bool:
        """True if the exchange has it."""
        return self.exchange.accounts.of_client(order.client_id) is not None


def test_the_life_of_an_order_on_the_built_in_exchange() -> None:
    at = Market()
    one = at.wish()
    told = at.orders.post(one)
    assert told.answer is Answer.ACCEPTED
    found = at.orders.find(one)
    assert found is not None and mismatch(one, found) == "" and found.status == "PENDING"
    assert at.orders.find(replace(one, exchange_id=told.exchange_id)) == found
    assert at.orders.open_orders() == (found,) and at.orders.closed_orders(0) == ()
    reserved = {b.asset: b.reserved for b in at.orders.balances()}
    assert reserved["ZAR"] == one.price * one.volume
    assert at.orders.cancel(told.exchange_id) == ""
    over = at.orders.find(one)
    assert over is not None and over == found._replace(status="COMPLETE")
    assert at.orders.open_orders() == () and at.orders.closed_orders(one.sent_ms) == (over,)
    assert at.orders.cancel(told.exchange_id) == "ErrCannotStopUnknownOrNonPendingOrder"
    assert at.orders.find(at.wish(2)) is None
    assert at.orders.post(one).answer is Answer.EXISTS


def test_a_taking_order_and_a_stop_come_back_as_they_were_sent() -> None:
    at = Market()
    taking = at.wish(1, 1.01, kind=OrderKind.TAKER_ENTRY)
    at.orders.post(taking)
    found = at.orders.find(taking)
    assert found is not None and found.status == "COMPLETE" and mismatch(taking, found) == ""
    assert implausible(taking, found) == "" and found.amounts.base > 0
    held = found.amounts.base - found.amounts.fee_base
    volume = held.quantize(Decimal("0.0001"), ROUND_DOWN)
    stop = at.wish(2, 0.8, side=Side.SELL, kind=OrderKind.PROTECTION, volume=volume,
                   stop=Decimal(round(at.ticker.bid * 0.81)))
    assert at.orders.post(stop).answer is Answer.ACCEPTED
    waiting = at.orders.find(stop)
    assert waiting is not None and waiting.status == "AWAITING" and mismatch(stop, waiting) == ""


@pytest.mark.parametrize(("kind", "meant", "is_there"), [
    ("down", Answer.UNKNOWN, False), ("down_after", Answer.UNKNOWN, True),
    ("timeout", Answer.UNKNOWN, False), ("timeout_after", Answer.UNKNOWN, True),
    ("429", Answer.UNKNOWN, False), ("429_after", Answer.UNKNOWN, True),
    ("500", Answer.UNKNOWN, False), ("500_after", Answer.UNKNOWN, True),
    ("garbage", Answer.UNKNOWN, False), ("garbage_after", Answer.UNKNOWN, True),
    ("wrong_shape_after", Answer.UNKNOWN, True), ("truncated_after", Answer.UNKNOWN, True),
    ("ErrInternal", Answer.UNKNOWN, False), ("ErrInternal_after", Answer.UNKNOWN, True),
    ("ErrDeadlineExceeded", Answer.UNKNOWN, False), ("ErrDeadlineExceeded_after", Answer.UNKNOWN, True),
    ("ErrUnderMaintenance", Answer.UNKNOWN, False),  # a 503
    ("401", Answer.KEY, False), ("ErrInsufficientPerms", Answer.KEY, False),
    ("ErrInsufficientBalance", Answer.REFUSED, False), ("ErrPriceTooLow_after", Answer.REFUSED, True),
    ("ErrOrderCanceled", Answer.CANCELLED, False), ("twice", Answer.EXISTS, True), ("slow", Answer.ACCEPTED, True),
])
def test_each_fault_of_the_line_has_its_class(kind: str, meant: Answer, is_there: bool) -> None:
    """What is there and what is thought to be: only UNKNOWN, EXISTS and what a look-up confirms may differ."""
    at = Market()
    one = at.wish()
    at.exchange.faults.append(Fault(kind, "/api/1/postorder"))
    assert at.orders.post(one).answer is meant
    assert at.is_there(one) is is_there
    assert at.exchange.calls["POST /api/1/postorder"] == 1
    assert len(at.exchange.accounts.orders) == is_there


@pytest.mark.parametrize(("late_s", "is_there"), [(3.0, True), (4.9, True), (5.1, False), (45.0, False)])
def test_a_late_request_is_refused_by_the_exchange_after_its_deadline(late_s: float, is_there: bool) -> None:
    """The deadline is 5 s after sending."""
    at = Market()
    one = at.wish()
    at.exchange.faults.append(Fault("late", "/api/1/postorder", 1, late_s))
    assert at.orders.post(one).answer is Answer.UNKNOWN
    assert at.orders.find(one) is None
    at.clock.sleep(60)
    assert (at.orders.find(one) is not None) is is_there


@pytest.mark.parametrize("kind", ["down", "500", "garbage", "429", "truncated", "wrong_shape"])
def test_reads_of_orders_are_made_once(kind: str) -> None:
    at = Market()
    calls: list[Callable[[], object]] = [lambda: at.orders.find(at.wish()), at.orders.open_orders, at.orders.balances]
    for call in calls:
        fresh = at.exchange.calls.total()
        at.exchange.faults.append(Fault(kind, "/api/"))
        with pytest.raises(ExchangeDown):
            call()
        assert at.exchange.calls.total() == fresh + 1
        at.clock.sleep(120)


# ---- fees in base on the built-in exchange ---------------------------------------------------------------


@pytest.mark.parametrize("knows_before", [False, True])
def test_all_that_is_held_can_be_sold_where_fees_come_on_top(tmp_path: Path, knows_before: bool) -> None:
    """A sale of everything is refused, one with less is filled, and what is left is dust; orders and desk agree."""
    at = Market()
    at.exchange.accounts.are_fees_on_top = True
    market = next(m for m in at.exchange.markets() if m.pair == "XBTZAR")
    at.exchange.accounts.total["XBT"] = Decimal("0.010000")
    store = lunobiz.Store(tmp_path / "lunobiz.db", lunobiz.Redactor([]), "OFF")
    door = lunobiz.LiveDoor("3fa9c2d1", lambda pair: market, lambda pair: ("", ""), lambda: "")
    executor = lunobiz.LiveExecutor(at.orders, lunobiz.OrderJournal(store), door)
    price = at.ticker.bid
    held = lunobiz.Position("XBTZAR", 0.01, price * 0.9, 1.0, at.clock.now_ms() - 1, "momentum",
                            lunobiz.Regime.TRENDING, 3600, price, price, 0.01, 0.01 * price, 0.0, 0.006,
                            phase=lunobiz.ExitPhase.EXITING, exit_why="trend over")
    now = at.clock.now_ms() // lunobiz.DAY_MS
    desk = lunobiz.Desk(1000.0, (held,), day=now, week=(now + 3) // 7, day_start_equity=1.0, week_start_equity=1.0,
                        base_fees=("XBTZAR",) if knows_before else ())

    class Silent:
        def record(self, report: lunobiz.CycleReport) -> None:
            """Nothing is kept."""

    told: list[str] = []
    for _ in range(8):
        seen = lunobiz.MarketView(market, at.client.tickers(["XBTZAR"])[0], None, ())
        moment = lunobiz.Moment(at.clock.now_ms(), (seen,))
        report = lunobiz.trade_cycle(desk, moment, executor, Silent(), lunobiz.Settings())
        desk, told = report.desk, told + [e.kind for e in report.events]
        at.clock.sleep(5)
    sent = list(executor.sent.values())
    assert [o.state for o in sent] == ([] if knows_before else [OrderState.REJECTED]) + [OrderState.DONE]
    assert sent[-1].filled.base == sent[-1].volume == Decimal("0.009940")  # 0.01 / 1.006 = 0.00994035...
    assert not desk.positions and desk.base_fees == ("XBTZAR",)
    assert told == ([] if knows_before else ["refused", "fee"]) + ["exit", "dust"]
    left = at.exchange.accounts.total["XBT"]
    assert desk.dust[0][1] == pytest.approx(float(left), abs=1e-9) and left == Decimal("0.00000036")
    gained = at.exchange.accounts.total["ZAR"] - 100_000
    assert desk.cash == pytest.approx(1000.0 + float(gained), abs=1e-8)
    store.close()


# ---- the statement ---------------------------------------------------------------------------------------

ENTRY = {"row_index": 6, "timestamp": 1_764_000_000_000, "balance": 9500.675072, "available": 9500.675072,
         "balance_delta": -12.000001, "available_delta": 0, "account_id": "11", "currency": "ZAR", "kind": "EXCHANGE",
         "description": "anything at all", "reference": "", "details": {}}


def test_the_statement_tells_changes_exactly_and_the_newest_first() -> None:
    """JSON numbers are read as decimals; what only reserves changes no balance; the order of rows is not promised."""
    deposit = ENTRY | {"row_index": 8, "kind": "TRANSFER", "balance_delta": 0.1}
    reserving = ENTRY | {"row_index": 7, "balance_delta": 0, "available_delta": -5}
    at = Door(reply({"id": "11", "transactions": [deposit, ENTRY, reserving]}))
    assert at.orders.statement("11") == (
        lunobiz.StatementRow(1_764_000_000_000, "TRANSFER", Decimal("0.1")),
        lunobiz.StatementRow(1_764_000_000_000, "EXCHANGE", Decimal("-12.000001")),
    )
    request = at.desk.line.requests[0]
    assert (request.method, request.path) == ("GET", "/api/1/accounts/11/transactions")
    assert sorted(request.params) == [("max_row", "0"), ("min_row", "-50")]


@pytest.mark.parametrize("broken", [
    {"row_index": 0}, {"row_index": 1.5}, {"kind": "transfer; drop"}, {"kind": None}, {"balance_delta": "NaN"},
    {"balance_delta": None}, {"timestamp": -1},
])
def test_a_broken_entry_spoils_the_statement(broken: dict[str, object]) -> None:
    with pytest.raises(ExchangeDown):
        Door(reply({"transactions": [ENTRY | broken]})).orders.statement("11")


def test_the_built_in_exchange_writes_a_statement() -> None:
    at = Market()
    account = next(b.account_id for b in at.orders.balances() if b.asset == "ZAR")
    assert at.orders.statement(account) == ()
    at.exchange.accounts.change("ZAR", Decimal("250.50"), at.clock.now_ms())
    assert at.orders.statement(account) == (lunobiz.StatementRow(at.clock.now_ms(), "TRANSFER", Decimal("250.50")),)
    before = {b.asset: b.total for b in at.orders.balances()}
    bid = at.wish(far=1.1, kind=OrderKind.TAKER_ENTRY)
    assert at.orders.post(bid).answer is Answer.ACCEPTED
    after = {b.asset: b.total for b in at.orders.balances()}
    entries = at.orders.statement(account)
    assert sum(e.change for e in entries if e.kind == "EXCHANGE") == after["ZAR"] - before["ZAR"] < 0
