"""LUNO: every shape of answer that the exchange may send, and all that must not get past the door."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lunobiz
from fakes import FakeClock, FakeTransport, Request, Step, reply
from lunobiz import (
    Candle,
    Credentials,
    ExchangeDown,
    ExchangeRefused,
    LunoClient,
    OrderBook,
    RateLimit,
    RateLimited,
    Reply,
    Ticker,
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
