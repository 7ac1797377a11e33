"""Every answer of the exchange, spoilt in every way: only our own errors come out, and no value that cannot be.

The answers are those of the built-in exchange, with some of their bytes or of their fields replaced. What is read from
them must be finite, of ordinary size, and never negative where it cannot be.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from fakes import FakeClock
from lunobiz import (
    Answer,
    Balance,
    Candle,
    Credentials,
    ExchangeDown,
    ExchangeRefused,
    FoundOrder,
    LunoClient,
    LunoOrders,
    Market,
    OrderBook,
    OrderKind,
    Params,
    PostAnswer,
    RateLimit,
    Reply,
    SentOrder,
    Side,
    SteppedClock,
    Ticker,
)
from sessions import KEY, lively_exchange

SENT = SentOrder("LB1-000001", "LB1-3fa9c2d1-000001", "AAAZAR", Side.BUY, OrderKind.ENTRY, Decimal("500"), Decimal("1"),
                 Decimal(0), 1_710_000_000_000)  # fmt: skip
CALLS: dict[str, Callable[[LunoClient, LunoOrders], object]] = {
    "markets": lambda c, o: c.markets(),
    "tickers": lambda c, o: c.tickers(),
    "book": lambda c, o: c.order_book("AAAZAR"),
    "candles": lambda c, o: c.candles("AAAZAR", 1_704_067_200_000, 3600),
    "fees": lambda c, o: c.fees("AAAZAR"),
    "balances": lambda c, o: c.balances(),
    "find": lambda c, o: o.find(SENT),
    "open orders": lambda c, o: o.open_orders(),
    "closed orders": lambda c, o: o.closed_orders(0),
    "post": lambda c, o: o.post(SENT),
    "cancel": lambda c, o: o.cancel("BXDEMO000000001"),
}
ERRORS = (b'{"error": "no", "error_code": "ErrInsufficientBalance"}', b'{"error": "no", "error_code": "ErrInternal"}',
          b'{"error": "Order not found", "error_code": "ErrOrderNotFound"}')  # fmt: skip
STATUSES = (200, 200, 200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 409, 429, 500, 503)
NASTY: tuple[object, ...] = (
    None, True, False, "", " ", "0", "-0", "-1", "-0.00000001", -1, 0, 1, 1.5, -2.5, "1e5", "1E400", 1e300, -1e300,
    1e-300, "NaN", "nan", "Infinity", "-Infinity", "inf", "1_000", " 1", "1 ", "+1", "1,5", "0x10", "٣", "१.५", "1.",
    ".5", "--1", "9" * 18, "9" * 19, "9" * 40, "0." + "9" * 40, 10**17, 10**18, 10**30, -(10**30), 2**63, "BUY", "SELL",
    "COMPLETE", "PENDING", [], {}, [[]], [None], [1, "2"], {"a": 1}, {"price": "1"}, "\x00", "\ud800", "A" * 5_000,
    "AAAZAR", "ZARAAA", "../../etc", "ErrNope", "2026-01-01T00:00:00Z", "2026-13-45T99:00:00Z", 1_710_000_000_000,
    10**12 - 1, 4 * 10**12 + 1,
)  # fmt: skip
RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1" * 5_000, b"[" * 3_000, b'{"a":' * 3_000,
       b"\xff\xfe", b'"\\ud800"', b"nul", b"0123", b"-", b"1e", b"00", b"1.0e-400")  # fmt: skip


class Line:
    """Answers whatever it is told to."""

    def __init__(self) -> None:
        self.reply = Reply(200, {}, b"")

    def send(self, method: str, path: str, params: Params = (), key: Credentials | None = None) -> Reply:
        return self.reply

    def close(self) -> None:
        """Nothing to let go of."""


class Desk(NamedTuple):
    """The program's reading side on such a line, and an honest answer to each call."""

    line: Line
    client: LunoClient
    orders: LunoOrders
    honest: dict[str, bytes]

    def read(self, name: str, status: int, body: bytes) -> object:
        """What the program makes of an answer; an error of its own comes back as a value."""
        self.line.reply = Reply(status, {}, body)
        try:
            return CALLS[name](self.client, self.orders)
        except (ExchangeDown, ExchangeRefused) as error:
            return error


def honest_answers() -> dict[str, bytes]:
    """An account in use: orders that rest, that are done and that wait for a stop."""
    clock = SteppedClock(0)
    exchange = lively_exchange(clock, 3)
    forms = (("BID", "1", "800", ""), ("BID", "0.5", "2000", ""), ("ASK", "0.2", "5", "4"))
    for number, (side, volume, price, stop) in enumerate(forms):
        more = [("stop_price", stop), ("stop_direction", "BELOW")] if stop else []
        exchange.send("POST", "/api/1/postorder", [
            ("pair", "AAAZAR"), ("type", side), ("volume", volume), ("price", price), *more,
            ("client_order_id", f"LB1-3fa9c2d1-{number + 1:06d}")], KEY)
    lists = [("closed", "false"), ("limit", "1000")]
    asked: dict[str, tuple[str, Params]] = {
        "markets": ("/api/exchange/1/markets", []), "tickers": ("/api/1/tickers", []),
        "fees": ("/api/1/fee_info", [("pair", "AAAZAR")]), "balances": ("/api/1/balance", []),
        "candles": ("/api/exchange/1/candles", [("pair", "AAAZAR"), ("duration", "3600"),
                                                ("since", str(clock.now_ms() - 9 * 3_600_000))]),
        "find": ("/api/exchange/3/order", [("client_order_id", SENT.client_id)]),
        "open orders": ("/api/exchange/2/listorders", lists),
        "closed orders": ("/api/exchange/2/listorders", [("closed", "true"), ("limit", "1000")]),
    }
    found = {name: exchange.send("GET", path, params, KEY).body for name, (path, params) in asked.items()}
    found["book"] = json.dumps({"timestamp": clock.now_ms(), "bids": [{"price": "99.5", "volume": "3"},
                                                                       {"price": "99", "volume": "8"}],
                                "asks": [{"price": "100.5", "volume": "2"}]}).encode()
    found |= {"post": b'{"order_id": "BXDEMO000000001"}', "cancel": b'{"success": true}'}
    return found


@pytest.fixture(scope="module")
def desk() -> Desk:
    """A desk without a limit of calls."""
    clock = FakeClock(1_710_000_000_000)
    line = Line()
    limit = RateLimit(clock, 10**12)
    limit.empty = lambda wait_s: None  # type: ignore[method-assign]  # a 429 must not silence what comes after it
    client = LunoClient(line, KEY, limit, clock, random.Random(1))
    return Desk(line, client, LunoOrders(client), honest_answers())


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read is made once."""
    monkeypatch.setattr(lunobiz, "with_retries", lambda call, clock, rng: call())


# ---- what may come out -----------------------------------------------------------------------------------


def numbers(value: object, place: str = "") -> Iterator[tuple[str, float | Decimal]]:
    """All numbers of a value, with the names of their fields."""
    if isinstance(value, (str, bytes, Enum, bool)) or value is None:
        return
    if isinstance(value, (int, float, Decimal)):
        yield place, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, part in zip(value._fields, value, strict=True):
            yield from numbers(part, name)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from numbers(part, place)
    else:
        for name in value.__dataclass_fields__:  # type: ignore[attr-defined]
            yield from numbers(getattr(value, name), name)


SIGNED = ("fee_base", "fee_counter", "maker_fee", "taker_fee")  # rebates are negative


KINDS: dict[str, type] = {"markets": Market, "tickers": Ticker, "balances": Balance, "candles": Candle,
                          "open orders": FoundOrder, "closed orders": FoundOrder}  # fmt: skip


def is_of_its_kind(name: str, found: object) -> bool:
    """True if a call gave what it promises."""
    if name in KINDS:
        return isinstance(found, tuple) and all(isinstance(row, KINDS[name]) for row in found)
    if name == "post":
        return isinstance(found, PostAnswer) and isinstance(found.answer, Answer)
    if name == "cancel":
        return isinstance(found, str) and (found == "" or found.startswith(("Err", "HTTP-")))
    if name in ("find", "book"):
        return found is None or isinstance(found, FoundOrder if name == "find" else OrderBook)
    return isinstance(found, tuple)


def trouble(name: str, found: object) -> str:
    """What of a value that was read cannot be, "" if all can."""
    if isinstance(found, (ExchangeDown, ExchangeRefused)):
        return ""
    if not is_of_its_kind(name, found):
        return f"not of its kind: {found!r:.200}"
    for place, number in numbers(found):
        if not math.isfinite(number) or abs(number) > 10**18:  # 18 nines, as a float
            return f"{place} is {number}"
        if name == "fees" and not -0.05 <= number <= 0.1:
            return f"a fee of {number}"
        if number < 0 and place not in SIGNED and name not in ("candles", "fees"):  # candles are judged by CANDLES
            return f"{place} is {number}"
    return ""


# ---- how answers are spoilt ---------------------------------------------------------------------------------


def places_of(value: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The ways to all parts of a JSON value."""
    found = [way]
    if isinstance(value, dict):
        found += [w for k, v in value.items() for w in places_of(v, (*way, k))]
    elif isinstance(value, list):
        found += [w for n, v in enumerate(value[:3]) for w in places_of(v, (*way, n))]
    return found


def with_part(value: object, way: tuple[object, ...], part: object) -> object:
    """A JSON value with another part in one place."""
    if not way:
        return part
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    copy[way[0]] = with_part(copy[way[0]], way[1:], part)
    return copy


def without_part(value: object, way: tuple[object, ...]) -> object:
    """A JSON value that lacks a part."""
    if not way:
        return None
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    if len(way) == 1:
        del copy[way[0]]
    else:
        copy[way[0]] = without_part(copy[way[0]], way[1:])
    return copy


def spoilt(rng: random.Random, body: bytes) -> bytes:
    """An answer with one to three faults."""
    value = json.loads(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        ways = places_of(value)
        way = rng.choice(ways)
        value = without_part(value, way) if rng.random() < 0.15 else with_part(value, way, rng.choice(NASTY))
        if not isinstance(value, (dict, list)):
            break
    made = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    luck = rng.random()
    if luck < 0.1:
        made = made[: rng.randrange(len(made) + 1)]
    elif luck < 0.2 and made:
        at = rng.randrange(len(made))
        made = made[:at] + bytes([rng.randrange(256)]) + made[at + 1 :]
    elif luck < 0.3:
        at = rng.randrange(len(made) + 1)
        made = made[:at] + rng.choice(RAW) + made[at + rng.randrange(6) :]
    elif luck < 0.35:  # a key twice
        made = made.replace(b"{", b'{"balance": "1", "balance": "2", "base": "1", "base": "3", ', 1)
    return made


def bombard(desk: Desk, seed: int, count: int) -> Counter[str]:
    """So many spoilt answers; how often something was still read, by call."""
    rng, names, seen = random.Random(seed), list(CALLS), Counter[str]()
    for number in range(count):
        name = names[number % len(names)]
        body = rng.choice(ERRORS) if rng.random() < 0.03 else desk.honest[name]
        made = spoilt(rng, body)
        found = desk.read(name, rng.choice(STATUSES), made)
        wrong = trouble(name, found)
        assert not wrong, f"{name}: {wrong}, of {made[:400]!r}"
        seen[f"{name} {'refused' if isinstance(found, Exception) else 'read'}"] += 1
    return seen


@pytest.mark.parametrize("name", CALLS)
def test_an_honest_answer_is_read(desk: Desk, name: str) -> None:
    """Or the others would prove nothing."""
    found = desk.read(name, 200, desk.honest[name])
    assert found not in ((), None) and not isinstance(found, Exception) and trouble(name, found) == ""


def test_spoilt_answers_bring_errors_of_ours_or_sound_values(desk: Desk) -> None:
    seen = bombard(desk, 9, 10_000)
    for name in CALLS:
        assert seen[f"{name} read"] >= 10, name
        assert name in ("post", "cancel") or seen[f"{name} refused"] > 200, name


@given(st.data())
@hypothesis_settings(max_examples=150)
def test_any_value_in_any_place(desk: Desk, data: st.DataObject) -> None:
    """The same with values that are searched for, and shrunk when one gets through."""
    name = data.draw(st.sampled_from(list(CALLS)))
    honest = json.loads(desk.honest[name])
    way = data.draw(st.sampled_from(places_of(honest)))
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.decimals().map(str)
    part = data.draw(leaf | st.lists(leaf, max_size=2) | st.dictionaries(st.text(max_size=8), leaf, max_size=2))
    body = json.dumps(with_part(honest, way, part)).encode()
    assert trouble(name, desk.read(name, data.draw(st.sampled_from(STATUSES)), body)) == ""


@given(st.sampled_from(list(CALLS)), st.binary(max_size=300), st.integers(100, 599))
@hypothesis_settings(max_examples=300)
def test_any_bytes(desk: Desk, name: str, body: bytes, status: int) -> None:
    assert trouble(name, desk.read(name, status, body)) == ""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_million_spoilt_answers(desk: Desk, seed: int) -> None:
    """A hundred thousand each, half an hour in all: pytest -m long -k million_spoilt"""
    assert bombard(desk, 1_000 + seed, 100_000).total() == 100_000
