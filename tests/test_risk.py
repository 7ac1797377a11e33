"""RISK: every refusal with its numbers, every limit at its edge, sizes that nothing can make too large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from desks import (
    ALL_CAUSES,
    CASH,
    CLOSE,
    HOUR,
    NOW,
    PAIR,
    bar,
    cause,
    decimal,
    desk,
    doubt,
    intent,
    judge,
    market,
    moment,
    order,
    outlook,
    position,
    protection,
    quote,
    selling,
    signal,
    view,
    with_limits,
)
from lunobiz import (
    DAY_MS,
    Case,
    CauseKind,
    Conditions,
    Costs,
    Desk,
    MarketView,
    Order,
    OrderBook,
    OrderIntent,
    OrderKind,
    OrderState,
    Refusal,
    RiskLimits,
    RiskVerdict,
    Settings,
    Side,
    StrategyParams,
    assess,
    equity,
    loss_per_unit,
    may_reduce,
    reserved_cash,
    worst_exposure,
)

LOT = Decimal("0.0001")
HELD = desk(99_000.0, positions=(position(),))


class Ask(NamedTuple):
    """One question to risk: what differs from the sound entry, or from the sound exit, and the word expected."""

    why: str
    answer: Callable[[], RiskVerdict]
    refusal: Refusal | None
    numbers: dict[str, float] = {}  # noqa: RUF012 (never changed)
    words: str = ""


def out(wish: OrderIntent | None = None, at: Desk | None = None, seen: MarketView | None = None,
        **conditions: object) -> RiskVerdict:
    """Risk's word on an exit, by default on a sound one."""
    return judge(wish or selling(), HELD if at is None else at, seen, None, **conditions)


def book(*bids: tuple[float, float], ask: float = 100.1) -> OrderBook:
    """A book of these bids and one large ask."""
    return OrderBook(CLOSE, bids, ((ask, 1_000.0),))


def buys(count: int) -> Desk:
    """A desk with small open buys in other markets."""
    return desk(orders=tuple(order(volume=0.1, order_id=f"LB1-{i:06d}", pair=f"B{i}ZAR") for i in range(count)))


# ---- every refusal of an entry, at its edge --------------------------------------------------------------

ENTRIES = (
    Ask("a sound entry: 10 % of the bar's volume of 100", judge, None, {"volume": 10.0, "value": 999.0}, "10 at 99.9"),
    # P1
    Ask("kill file", lambda: judge(is_killed=True), Refusal.KILLED, words="Kill switch"),
    Ask("killed before", lambda: judge(at=desk(causes=(cause(CauseKind.KILL),))), Refusal.KILLED),
    # P3
    Ask("an order of unknown outcome, anywhere",
        lambda: judge(at=desk(orders=(order(pair="BBBZAR", state=OrderState.UNKNOWN),))), Refusal.UNKNOWN_ORDER,
        words="LB1-000001"),
    # P4
    Ask("the mode may not trade", lambda: judge(is_mode_allowed=False), Refusal.MODE),
    Ask("LIVE is locked again", lambda: judge(may_enter=False), Refusal.MODE, words="locked again"),
    # S0
    Ask("training chose cash",
        lambda: judge(settings=Settings(params=StrategyParams(is_cash=True))), Refusal.CASH, words="Cash:"),
    # P5: prices from 0.01 to 1,000,000
    Ask("limit not a number", lambda: judge(intent(limit=math.nan)), Refusal.BAD_NUMBER),
    Ask("limit infinite", lambda: judge(intent(limit=math.inf)), Refusal.BAD_NUMBER, {"limit": math.inf}),
    Ask("limit zero", lambda: judge(intent(limit=0.0)), Refusal.BAD_NUMBER, {"limit": 0.0}),
    Ask("limit negative", lambda: judge(intent(limit=-1.0)), Refusal.BAD_NUMBER, {"limit": -1.0}),
    Ask("limit above the market's highest", lambda: judge(intent(limit=1_000_000.01)), Refusal.BAD_NUMBER),
    Ask("limit at the market's highest is judged further", lambda: judge(intent(limit=1_000_000.0)),
        Refusal.PRICE_COLLAR),
    Ask("stop below the market's lowest", lambda: judge(intent(stop=0.0099)), Refusal.BAD_NUMBER, {"stop": 0.0099}),
    Ask("stop not a number", lambda: judge(intent(stop=math.nan)), Refusal.BAD_NUMBER),
    Ask("stop at the entry", lambda: judge(intent(stop=99.9)), Refusal.BAD_NUMBER, {"stop": 99.9, "limit": 99.9}),
    # S1, S2: twice the break-even of 1.2 %, confidence 0.55
    Ask("no signal", lambda: judge(intent(signal=None)), Refusal.CONFIDENCE),
    Ask("move below twice the break-even", lambda: judge(intent(signal=signal(move=0.0239))), Refusal.BREAK_EVEN,
        {"move": 0.0239, "break_even": 0.012, "limit": 0.024}),
    Ask("move at twice the break-even", lambda: judge(intent(signal=signal(move=0.024))), None),
    Ask("move not a number", lambda: judge(intent(signal=signal(move=math.nan))), Refusal.BREAK_EVEN),
    Ask("confidence below the floor", lambda: judge(intent(signal=signal(confidence=0.5499))), Refusal.CONFIDENCE,
        {"confidence": 0.5499, "limit": 0.55}),
    Ask("confidence at the floor", lambda: judge(intent(signal=signal(confidence=0.55))), None),
    Ask("confidence not a number", lambda: judge(intent(signal=signal(confidence=math.nan))), Refusal.CONFIDENCE),
    # S3
    Ask("held", lambda: judge(at=HELD), Refusal.HELD, words="position"),
    Ask("an order works here", lambda: judge(at=desk(orders=(order(),))), Refusal.HELD, words="order"),
    Ask("an order works elsewhere", lambda: judge(at=desk(orders=(order(pair="BBBZAR"),))), None),
    # S4
    Ask("the view is in doubt", lambda: judge(seen=view(findings=(doubt(),))), Refusal.DOUBT, words="gap in candles"),
    Ask("the outlook is in doubt", lambda: judge(seen=view(outlooks=(outlook(findings=(doubt(),)),))), Refusal.DOUBT),
    # P13
    Ask("market suspended", lambda: judge(seen=view(market=market(status="SUSPENDED"))), Refusal.MARKET,
        words="SUSPENDED"),
    Ask("market post-only", lambda: judge(seen=view(ticker=quote(status="POST_ONLY"))), Refusal.MARKET),
    # P9: a quote of at most 15 s
    Ask("no quote", lambda: judge(seen=view(ticker=None)), Refusal.STALE),
    Ask("no bid", lambda: judge(seen=view(ticker=quote(bid=0.0))), Refusal.STALE),
    Ask("quote of 15.001 s", lambda: judge(seen=view(ticker=quote(at_ms=NOW - 15_001))), Refusal.STALE,
        {"age_s": 15.001, "limit": 15.0}),
    Ask("quote of 15 s", lambda: judge(seen=view(ticker=quote(at_ms=NOW - 15_000))), None),
    # P8: within 2 % of two sources
    Ask("one source only", lambda: judge(seen=view(outlooks=())), Refusal.PRICE_COLLAR),
    Ask("a book makes the second source", lambda: judge(seen=view(outlooks=(), book=book((99.9, 300.0)))), None),
    Ask("a book without asks does not",
        lambda: judge(seen=view(outlooks=(), book=OrderBook(CLOSE, ((99.9, 300.0),), ()))), Refusal.PRICE_COLLAR),
    Ask("2 % below the last trade", lambda: judge(intent(limit=98.0), seen=view(ticker=quote(last=100.0))), None),
    Ask("more than 2 % below the last trade",
        lambda: judge(intent(limit=97.99), seen=view(ticker=quote(last=100.0))), Refusal.PRICE_COLLAR,
        {"limit": 97.99, "reference": 100.0}),
    Ask("more than 2 % above the candle's close",
        lambda: judge(seen=view(outlooks=(outlook(close=97.94),))), Refusal.PRICE_COLLAR,
        {"limit": 99.9, "reference": 97.94}),
    Ask("a close that is not a number", lambda: judge(seen=view(outlooks=(outlook(close=math.nan),))),
        Refusal.PRICE_COLLAR),
    Ask("far from the book", lambda: judge(seen=view(book=book((90.0, 300.0)))), Refusal.PRICE_COLLAR),
    # P8: spread of 0.4 %, volume of 1,000,000 in counter
    Ask("spread at the limit", lambda: judge(intent(limit=99.8), seen=view(ticker=quote(99.8, 100.2)),
                                             settings=with_limits(max_spread=0.4 / 100.0 + 1e-15)), None),
    Ask("spread over the limit", lambda: judge(intent(limit=99.79), seen=view(ticker=quote(99.79, 100.21))),
        Refusal.SPREAD, {"spread": 0.0042, "limit": 0.004}),
    Ask("bid above ask", lambda: judge(seen=view(ticker=quote(99.9, 99.0, last=99.9))), Refusal.SPREAD),
    Ask("no ask", lambda: judge(seen=view(ticker=quote(99.9, 0.0, last=99.9))), Refusal.SPREAD),
    Ask("24-hour volume at the minimum", lambda: judge(seen=view(ticker=quote(volume_24h=10_000.0))), None),
    Ask("24-hour volume below the minimum", lambda: judge(seen=view(ticker=quote(volume_24h=9_999.0))),
        Refusal.VOLUME_24H, {"volume_24h": 999_900.0, "limit": 1_000_000.0}),
    Ask("24-hour volume not a number", lambda: judge(seen=view(ticker=quote(volume_24h=math.nan))),
        Refusal.VOLUME_24H),
    # P10
    Ask("this candle has led to an entry", lambda: judge(at=desk(entries=((PAIR, CLOSE - HOUR),))), Refusal.DUPLICATE),
    Ask("the candle before has", lambda: judge(at=desk(entries=((PAIR, CLOSE - 2 * HOUR),))), None),
    Ask("another market's has", lambda: judge(at=desk(entries=(("BBBZAR", CLOSE - HOUR),))), None),
    # P11: 6 a minute, 100 a day, 10 round trips
    Ask("the seventh entry in a minute", lambda: judge(at=desk(order_times=(NOW - 59_999,) * 6)), Refusal.THROTTLE,
        {"count": 6.0, "limit": 6.0}, "in a minute"),
    Ask("six, the oldest a minute ago", lambda: judge(at=desk(order_times=(NOW - 60_000, *(NOW,) * 5))), None),
    Ask("the 101st entry in 24 hours", lambda: judge(at=desk(order_times=(NOW - DAY_MS + 1,) * 100)), Refusal.THROTTLE,
        {"count": 100.0, "limit": 100.0}, "in 24 hours"),
    Ask("a hundred, the oldest a day ago",
        lambda: judge(at=desk(order_times=(NOW - DAY_MS, *(NOW - DAY_MS + 1,) * 99))), None),
    Ask("the eleventh round trip here", lambda: judge(at=desk(closings=((PAIR, NOW - DAY_MS + 1),) * 10)),
        Refusal.THROTTLE, {"count": 10.0, "limit": 10.0}, "round trips"),
    Ask("ten round trips here, a day ago", lambda: judge(at=desk(closings=((PAIR, NOW - DAY_MS),) * 10)), None),
    Ask("ten round trips elsewhere", lambda: judge(at=desk(closings=(("BBBZAR", NOW),) * 10)), None),
    # P12: 3 % of the day, 6 % of the week
    Ask("at the daily cap", lambda: judge(at=desk(97_000.0, day_start_equity=CASH)), Refusal.LOSS_CAP,
        {"equity": 97_000.0, "start": CASH}, "day"),
    Ask("a cent above the daily cap", lambda: judge(at=desk(97_000.01, day_start_equity=CASH)), None),
    Ask("at the weekly cap", lambda: judge(at=desk(94_000.0, week_start_equity=CASH)), Refusal.LOSS_CAP,
        {"equity": 94_000.0, "start": CASH}, "week"),
    Ask("a cent above the weekly cap", lambda: judge(at=desk(94_000.01, week_start_equity=CASH)), None),
    Ask("open losses count",
        lambda: judge(at=desk(96_000.0, positions=(position(10.0, mark=99.0, pair="BBBZAR", exit_fee=0.0),),
                              day_start_equity=CASH)), Refusal.LOSS_CAP, {"equity": 96_990.0}),
    Ask("nothing left at all", lambda: judge(at=desk(0.0)), Refusal.LOSS_CAP, {"equity": 0.0}),
    Ask("an equity that is not a number", lambda: judge(at=desk(math.nan, day_start_equity=CASH)), Refusal.LOSS_CAP),
    # P15
    Ask("reconciled 60 s ago", lambda: judge(reconcile_age_ms=60_000), None),
    Ask("reconciled more than 60 s ago", lambda: judge(reconcile_age_ms=60_001), Refusal.CONDITIONS,
        {"value_ms": 60_001.0, "limit_ms": 60_000.0}),
    Ask("clock 2 s wrong", lambda: judge(skew_ms=-2_000), None),
    Ask("clock more than 2 s wrong", lambda: judge(skew_ms=-2_001), Refusal.CONDITIONS,
        {"value_ms": 2_001.0, "limit_ms": 2_000.0}),
    Ask("clock unknown", lambda: judge(skew_ms=math.nan), Refusal.CONDITIONS),
    Ask("a gap of 30 s", lambda: judge(loop_gap_ms=30_000), None),
    Ask("a gap of more than 30 s", lambda: judge(loop_gap_ms=30_001), Refusal.CONDITIONS, {"value_ms": 30_001.0}),
    Ask("no network", lambda: judge(has_network=False), Refusal.CONDITIONS, words="No network"),
    Ask("no audit", lambda: judge(is_store_ok=False), Refusal.CONDITIONS, words="audit"),
    # P7: places
    Ask("two of three places taken", lambda: judge(at=buys(2)), None),
    Ask("three of three places taken", lambda: judge(at=buys(3)), Refusal.MAX_POSITIONS, {"taken": 3.0, "limit": 3.0}),
    Ask("a position and its own open buy take one place",
        lambda: judge(at=desk(positions=(position(1.0, pair="B1ZAR"),), orders=buys(2).orders)), None),
    # P7: value; equity 100,000, the smallest sellable volume 0.01 / 0.994 + 0.0001 = 0.01016...
    Ask("total exposure used up",
        lambda: judge(at=desk(40_001.0, positions=(position(599.99, pair="BBBZAR", exit_fee=0.0),))), Refusal.EXPOSURE,
        {"room": 1 / 99.9}),
    Ask("one asset's exposure used up", lambda: judge(settings=with_limits(max_asset_exposure=0.00001)),
        Refusal.ASSET_EXPOSURE, {"room": 1 / 99.9}),
    Ask("the group's exposure used up by an order",
        lambda: judge(at=desk(orders=(order(volume=400.0, limit=100.0, pair="BBBZAR"),)),
                      seen=view(correlated=("BBBZAR",))), Refusal.GROUP_EXPOSURE, {"room": 0.0}),
    Ask("the same order in a market that does not move along",
        lambda: judge(at=desk(orders=(order(volume=400.0, limit=100.0, pair="BBBZAR"),))), None),
    # P14: 60 % and 40 % of 100,000 would still be free, cash is not
    Ask("cash reserved by an order",
        lambda: judge(at=desk(1_000.0, positions=(position(10.0, pair="CCCZAR", exit_fee=0.0),),
                              orders=(order(volume=9.94, limit=100.0, pair="BBBZAR"),)),
                      settings=with_limits(max_exposure=1.0)), Refusal.BALANCE,
        {"room": (1_000 - 994 * 1.006) * 0.99 / 1.006 / 99.9}),
    # P8: depth
    Ask("no bar and no book", lambda: judge(seen=view(bar=None)), Refusal.DEPTH, {"room": 0.0}),
    Ask("a bar without volume", lambda: judge(seen=view(bar=bar(volume=0.0))), Refusal.DEPTH, {"room": 0.0}),
    Ask("an empty side of the book",
        lambda: judge(seen=view(book=OrderBook(CLOSE, (), ()))), Refusal.DEPTH, {"room": 0.0}),
    Ask("a third of the bids within 2 %: 97.90 counts, 97.89 does not",
        lambda: judge(seen=view(book=book((99.9, 6.0), (97.91, 3.0), (97.89, 99.0)))), None, {"volume": 3.0}),
    # P6, P5
    Ask("the market's largest order", lambda: judge(seen=view(market=market(max_volume=2.5))), None, {"volume": 2.5}),
    # at a tenth of the tested size 0.5 % of 10,000 are at risk: 50 over 6.05846 lost a unit
    # the smallest is 0.01 / 0.994 + 0.0001 = 0.01016036; with a fee of 0.6 % in base 0.01006 / 0.994 + 0.0001
    Ask("the first LIVE orders are twice the smallest", lambda: judge(is_trial=True), None, {"volume": 0.0203}),
    Ask("also where sales pay in base", lambda: judge(at=desk(base_fees=(PAIR,)), is_trial=True), None,
        {"volume": 0.0204}),
    Ask("what the gates found safe to trade", lambda: judge(size=0.1), None, {"volume": 8.2529}),
    Ask("the risk per trade is worth less than the smallest order",
        lambda: judge(at=desk(10.0)), Refusal.ORDER_VALUE, {"room": 0.05 / 6.05846}),
)

EXITS = (
    Ask("a sound exit", out, None, {"volume": 10.0}, "trend over"),
    Ask("kill file", lambda: out(is_killed=True), Refusal.KILLED),
    Ask("an order of unknown outcome",
        lambda: out(at=desk(positions=(position(),), orders=(order(pair="BBBZAR", state=OrderState.UNKNOWN),))),
        Refusal.UNKNOWN_ORDER),
    Ask("the mode may not trade", lambda: out(is_mode_allowed=False), Refusal.MODE),
    Ask("limit not a number", lambda: out(selling(limit=math.nan)), Refusal.BAD_NUMBER),
    Ask("stop infinite", lambda: out(selling(stop=math.inf)), Refusal.BAD_NUMBER, {"stop": math.inf}),
    Ask("stop above the limit, as a protection has it",
        lambda: out(selling(kind=OrderKind.PROTECTION, stop=95.0, limit=94.05)), None, {"volume": 10.0}),
    Ask("volume not a number", lambda: out(selling(math.nan)), Refusal.BAD_NUMBER),
    Ask("market post-only", lambda: out(seen=view(market=market(status="POST_ONLY"))), None),
    Ask("market suspended", lambda: out(seen=view(market=market(status="SUSPENDED"))), Refusal.MARKET),
    Ask("market unknown", lambda: out(seen=view(ticker=quote(status="UNKNOWN"))), Refusal.MARKET),
    Ask("no quote", lambda: out(seen=view(ticker=None)), Refusal.STALE),
    Ask("an old quote", lambda: out(seen=view(ticker=quote(at_ms=NOW - 15_001))), Refusal.STALE, {"age_s": 15.001}),
    Ask("clock wrong", lambda: out(skew_ms=2_001), Refusal.CONDITIONS),
    Ask("reconciled too long ago", lambda: out(reconcile_age_ms=math.inf), Refusal.CONDITIONS),
    Ask("doubts, spread, volume, collar, throttle and caps do not bind",
        lambda: out(selling(limit=50.0),
                    desk(1_000.0, positions=(position(),), day_start_equity=CASH, week_start_equity=CASH,
                         order_times=(NOW,) * 100, closings=((PAIR, NOW),) * 10),
                    view(ticker=quote(90.0, 110.0, volume_24h=0.0), findings=(doubt(),), outlooks=(), bar=None)),
        None, {"volume": 10.0}),
    Ask("more than is held", lambda: out(selling(99.0)), None, {"volume": 10.0}),
    Ask("nothing held", lambda: out(at=desk()), Refusal.MIN_VOLUME, {"volume": 0.0}),
    Ask("a negative volume", lambda: out(selling(-1.0)), Refusal.MIN_VOLUME),
    Ask("the smallest order", lambda: out(at=desk(positions=(position(0.01),))), None, {"volume": 0.01}),
    Ask("less than the smallest order", lambda: out(at=desk(positions=(position(0.0099),))), Refusal.MIN_VOLUME,
        {"volume": 0.0099}),
)


@pytest.mark.parametrize("ask", [*ENTRIES, *EXITS], ids=lambda a: a.why)
def test_the_word_of_risk(ask: Ask) -> None:
    """The refusal with its numbers, or the volume; never both."""
    verdict = ask.answer()
    assert verdict.refusal is ask.refusal, verdict.why
    assert (verdict.volume > 0) == (ask.refusal is None)
    numbers = dict(verdict.numbers)
    for name, value in ask.numbers.items():
        assert numbers[name] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert ask.words in verdict.why
    assert verdict.why


def test_every_refusal_is_produced() -> None:
    """No code of the audit is dead: the tables above give each of them, that of the states stands below."""
    produced = {a.refusal for a in (*ENTRIES, *EXITS)}
    assert set(Refusal) - produced == {Refusal.STATE}
    assert judge(at=desk(causes=(cause(CauseKind.MAINTENANCE),))).refusal is Refusal.STATE


# ---- states ----------------------------------------------------------------------------------------------

EXIT_ALLOWED = {CauseKind.BALANCE_DRIFT, CauseKind.FOREIGN_ORDER, CauseKind.MAINTENANCE, CauseKind.DAILY_CAP,
                CauseKind.WEEKLY_CAP}
NO_EXIT = set(ALL_CAUSES) - EXIT_ALLOWED


@pytest.mark.parametrize("kind", ALL_CAUSES)
def test_orders_allowed_under_each_cause(kind: CauseKind) -> None:
    """No cause lets an entry through; exits pass under REDUCING, COOLDOWN and the weekly cap."""
    at = replace(HELD, causes=(cause(kind),))
    refused = Refusal.KILLED if kind is CauseKind.KILL else Refusal.STATE
    entry = judge(at=desk(causes=(cause(kind),)))
    assert entry.refusal is refused
    assert kind is CauseKind.KILL or kind.words in entry.why
    assert out(at=at).refusal is (None if kind in EXIT_ALLOWED else refused)
    assert may_reduce(at) == (kind in EXIT_ALLOWED)


@given(st.sets(st.sampled_from(ALL_CAUSES)))
def test_exits_need_every_cause_to_allow_them(found: set[CauseKind]) -> None:
    """The weekly cap alone lets exits through: with a wrong clock or an unknown order beside it nothing goes out."""
    at = replace(HELD, causes=tuple(cause(k) for k in found))
    assert may_reduce(at) == (not found & NO_EXIT)
    assert (out(at=at).refusal is None) == (not found & NO_EXIT)
    assert (judge(at=replace(desk(), causes=at.causes)).refusal is None) == (not found)


def test_a_protection_does_not_need_a_fresh_quote() -> None:
    """P6 to P12 bind entries only: the stop of a held position may go out while the quote is old."""
    stop = selling(kind=OrderKind.PROTECTION, limit=94.05, stop=95.0)
    assert out(stop, seen=view(ticker=quote(at_ms=NOW - 16_000))).refusal is None


def test_the_first_refusal_is_the_verdict() -> None:
    """With everything wrong the order of the table decides; each one mended shows the next."""
    bad = view(findings=(doubt(),), ticker=quote(99.0, 101.0, at_ms=0), market=market(status="SUSPENDED"))
    at = desk(1_000.0, positions=(position(),), causes=(cause(CauseKind.DAILY_CAP),),
              orders=(order(state=OrderState.UNKNOWN),), day_start_equity=CASH)
    wish = intent(limit=math.nan, signal=signal(move=0.0, confidence=0.0))
    seen = [judge(wish, at, bad, is_killed=True, is_mode_allowed=False, skew_ms=9e9)]
    seen.append(judge(wish, at, bad, is_mode_allowed=False, skew_ms=9e9))
    at = replace(at, causes=())
    seen.append(judge(wish, at, bad, is_mode_allowed=False, skew_ms=9e9))
    at = replace(at, orders=())
    seen.append(judge(wish, at, bad, is_mode_allowed=False, skew_ms=9e9))
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    wish = replace(wish, limit=99.0)
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    wish = replace(wish, signal=signal(confidence=0.0))
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    wish = replace(wish, signal=signal())
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    at = replace(at, positions=())
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    bad = replace(bad, findings=())
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    bad = replace(bad, market=market())
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    bad = replace(bad, ticker=quote(99.0, 101.0))
    seen.append(judge(wish, at, bad, skew_ms=9e9))
    bad = replace(bad, ticker=quote())
    seen.append(judge(replace(wish, limit=99.9), at, bad, skew_ms=9e9))
    at = replace(at, day_start_equity=1_000.0, week_start_equity=1_000.0)
    seen.append(judge(replace(wish, limit=99.9), at, bad, skew_ms=9e9))
    assert [v.refusal.value if v.refusal else "" for v in seen] == [
        "P1-killed", "P2-state", "P3-unknown-order", "P4-mode", "P5-number", "S2-break-even", "S1-confidence",
        "S3-held", "S4-doubt", "P13-market", "P9-stale", "P8-spread", "P12-loss-cap", "P15-conditions",
    ]


# ---- sizes by hand ---------------------------------------------------------------------------------------


def test_the_size_that_risks_half_a_percent() -> None:
    """Bought at 99.90 with 0.4 %, stopped out at 95 slipped by 0.2 % with 0.6 %: 6.05846 a unit, 500 buy 82.5292."""
    loss = Decimal("99.9") * Decimal("1.004") - Decimal("95") * Decimal("0.998") * Decimal("0.994")
    assert loss == Decimal("6.05846")
    verdict = judge(seen=view(bar=bar(volume=10_000.0)))
    assert verdict.volume == float(Decimal(500) / loss // LOT * LOT) == 82.5292


def test_a_taking_entry_is_sized_with_the_taker_fee() -> None:
    """99.90 and 0.6 % against the same stop: 6.25826 a unit, 500 buy 79.8944."""
    loss = Decimal("99.9") * Decimal("1.006") - Decimal("95") * Decimal("0.998") * Decimal("0.994")
    verdict = judge(intent(kind=OrderKind.TAKER_ENTRY), seen=view(bar=bar(volume=10_000.0)))
    assert verdict.volume == float(Decimal(500) / loss // LOT * LOT) == 79.8944


def test_a_stop_above_what_was_paid_is_no_free_ride() -> None:
    """With a rebate and no taker fee the stop could pay; then there is no size, not an endless one."""
    rebate = market(maker_fee=-0.06, taker_fee=0.0)
    case = Case(intent(stop=95.0), desk(), view(market=rebate), moment(), Settings(costs=Costs(slippage=0.0)))
    assert loss_per_unit(case) < 0
    assert assess(case).refusal in (Refusal.ORDER_VALUE, Refusal.MIN_VOLUME)


def test_worst_case_counts_open_buys_as_filled() -> None:
    """Held 10 at 110, an open buy of 4 of 10 at 100 in another market; a sale and protection add nothing."""
    at = desk(positions=(position(mark=110.0),),
              orders=(order(volume=10.0, limit=100.0, filled=6.0, pair="BBBZAR"), protection(order_id="LB1-000002")))
    assert worst_exposure(at) == 1_500.0
    assert worst_exposure(at, frozenset((PAIR,))) == 1_100.0
    assert worst_exposure(at, frozenset(("BBBZAR",))) == 400.0
    assert worst_exposure(at, frozenset()) == 0.0


def test_the_smallest_entry_can_still_be_sold() -> None:
    """0.0101 bought and a fee of 0.6 % in base leaves more than 0.01; the lot below is refused."""
    fits = with_limits(max_asset_exposure=0.0102 * 99.9 / CASH)
    least = judge(settings=fits)
    assert (least.refusal, least.volume) == (None, 0.0102)
    assert Decimal("0.0102") * Decimal("0.994") >= Decimal("0.01")
    less = judge(settings=with_limits(max_asset_exposure=0.0101 * 99.9 / CASH))
    assert less.refusal is Refusal.ASSET_EXPOSURE


# ---- sizes for any desk and market -----------------------------------------------------------------------

PAIRS = ("BBBZAR", "CCCZAR", "DDDZAR")


@st.composite
def desks(draw: st.DrawFn) -> Desk:
    """Cash, positions and open orders in other markets; sometimes more than the limits allow."""
    positions = [
        position(draw(st.floats(0.01, 400.0)), draw(st.floats(1.0, 300.0)), pair=pair, mark=draw(st.floats(1.0, 300.0)))
        for pair in PAIRS if draw(st.booleans())
    ]
    open_orders = [
        order(draw(st.sampled_from(list(OrderKind))), draw(st.floats(0.01, 300.0)), draw(st.floats(1.0, 300.0)),
              pair=draw(st.sampled_from(PAIRS)), order_id=f"LB1-{n:06d}", filled=draw(st.floats(0.0, 0.01)))
        for n in range(draw(st.integers(0, 3)))
    ]
    return desk(draw(st.floats(1.0, 100_000.0)), positions=tuple(positions), orders=tuple(open_orders))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A sound entry on any desk, in a market of any fees, scales and depth, under any limits."""
    price = draw(st.floats(1.0, 1_000.0))
    scale = draw(st.integers(0, 8))
    taker = draw(st.floats(0.0, 0.02))
    this = market(
        price_scale=6, volume_scale=scale, min_volume=10.0**-scale * draw(st.integers(1, 100)),
        max_volume=draw(st.sampled_from((5.0, 100_000.0))), maker_fee=min(taker, draw(st.floats(-0.001, 0.01))),
        taker_fee=taker,
    )
    bid, ask = this.round_price(price * 0.9995, Side.SELL), this.round_price(price * 1.0005, Side.BUY)
    stop = this.round_price(bid * draw(st.floats(0.5, 0.999)), Side.SELL)
    bids = ((bid, draw(st.sampled_from((0.01, 20.0, 1e7)))),)
    depth = draw(st.sampled_from((None, OrderBook(CLOSE, bids, ((ask, 1.0),)))))
    correlated = tuple(p for p in PAIRS if draw(st.booleans()))
    last = bar(volume=draw(st.sampled_from((0.0, 50.0, 1e7))))
    seen = MarketView(this, quote(bid, ask, volume_24h=1e9), last, (outlook(close=price),), depth, (), correlated)
    wide: dict[str, float] = {"risk_per_trade": 10.0, "max_exposure": 10.0, "max_asset_exposure": 10.0,
                              "max_group_exposure": 10.0}  # so that cash or depth binds; then one limit is made tight
    tight = draw(st.sampled_from(("", *wide)))
    if tight:
        wide[tight] = draw(st.floats(0.001, 0.02) if tight == "risk_per_trade" else st.floats(0.05, 1.0))
    limits = RiskLimits(**wide, max_positions=draw(st.integers(1, 8)))  # type: ignore[arg-type]
    kind = draw(st.sampled_from((OrderKind.ENTRY, OrderKind.TAKER_ENTRY)))
    wish = intent(limit=bid if kind is OrderKind.ENTRY else ask, stop=stop, kind=kind)
    settings = Settings(limits=limits, costs=Costs(slippage=draw(st.floats(0.0, 0.02))))
    return Case(wish, draw(desks()), seen, moment(seen), settings)


def exposed(at: Desk, pairs: frozenset[str] | None) -> Decimal:
    """Positions at their marks and open buys as if filled, in exact decimals."""
    held = sum((decimal(p.volume) * decimal(p.mark) for p in at.positions if pairs is None or p.pair in pairs),
               Decimal(0))
    return held + sum((decimal(o.volume - o.filled) * decimal(o.limit) for o in at.orders
                       if o.kind in (OrderKind.ENTRY, OrderKind.TAKER_ENTRY) and (pairs is None or o.pair in pairs)),
                      Decimal(0))


def bought(case: Case, volume: float) -> Order:
    """The order that the verdict would become."""
    return order(case.intent.kind, volume, case.intent.limit, order_id="LB1-999999")


@given(cases())
@hypothesis_settings(max_examples=400)
def test_no_limit_is_exceeded_on_any_desk(case: Case) -> None:
    """Whatever is approved: the loss at the slipped stop, exposure, places, cash, depth and the market's steps hold."""
    verdict = assess(case)
    at, limits, this = case.desk, case.settings.limits, case.view.market
    if verdict.refusal is not None:
        assert verdict.volume == 0.0
        return
    volume, worth = decimal(verdict.volume), decimal(equity(at))
    slack = Decimal("1e-6") * Decimal(10) ** -this.volume_scale
    limit, stop = decimal(case.intent.limit), decimal(case.intent.stop)
    price_slack = slack * limit + Decimal("1e-6")
    # the lot grid and the market's own bounds
    assert volume == volume.quantize(Decimal(10) ** -this.volume_scale)
    assert decimal(this.min_volume) <= volume <= decimal(this.max_volume)
    # the loss if stopped out with twice the slippage, after both fees
    fee = decimal(this.taker_fee if case.intent.kind is OrderKind.TAKER_ENTRY else this.maker_fee)
    got = stop * (1 - 2 * decimal(case.settings.costs.slippage)) * (1 - decimal(this.taker_fee))
    loss = volume * (limit * (1 + fee) - got)
    assert loss <= worth * decimal(limits.risk_per_trade) + price_slack
    # exposure as if every open buy and this one were filled
    after = replace(at, orders=(*at.orders, bought(case, verdict.volume)))
    group = frozenset((PAIR, *case.view.correlated))
    for pairs, share in ((None, limits.max_exposure), (frozenset((PAIR,)), limits.max_asset_exposure),
                         (group, limits.max_group_exposure)):
        assert exposed(after, pairs) <= worth * decimal(share) + price_slack
    # places, cash after the dearest fee, depth
    places = {p.pair for p in at.positions} | {o.pair for o in after.orders if o.side is Side.BUY}
    assert len(places) <= limits.max_positions
    dearest = 1 + decimal(max(this.maker_fee, this.taker_fee))
    spent = sum(decimal(o.volume - o.filled) * decimal(o.limit) * dearest for o in after.orders if o.side is Side.BUY)
    assert spent <= decimal(at.cash) + price_slack
    if case.view.book is not None:
        assert verdict.volume * 3 <= case.view.book.bids[0][1] + float(3 * slack) + 1e-8
    else:
        assert case.view.bar is not None
        assert verdict.volume <= case.view.bar.volume * 0.1 + float(slack) + 1e-8


@given(cases())
@hypothesis_settings(max_examples=150)
def test_a_second_order_sees_the_first(case: Case) -> None:
    """The approved order reserved, the same wish is refused in this market, and elsewhere never passes the totals."""
    verdict = assess(case)
    assume(verdict.refusal is None)
    reserved = replace(case.desk, orders=(*case.desk.orders, bought(case, verdict.volume)))
    assert assess(replace(case, desk=reserved)).refusal is Refusal.HELD
    other = replace(case.view, market=replace(case.view.market, pair="EEEZAR", base="EEE"))
    wish = replace(case.intent, pair="EEEZAR")
    second = assess(replace(case, desk=reserved, view=other, intent=wish))
    if second.refusal is None:
        both = replace(reserved, orders=(*reserved.orders, order(case.intent.kind, second.volume, wish.limit,
                                                                 pair="EEEZAR", order_id="LB1-999998")))
        assert exposed(both, None) <= decimal(equity(case.desk) * case.settings.limits.max_exposure + 1e-3)
        assert reserved_cash(both, case.view.market.taker_fee) <= case.desk.cash + 1e-3


@given(st.floats(0.0, 1_000.0), st.floats(-10.0, 2_000.0), st.integers(0, 8))
def test_a_sale_is_never_larger_than_what_is_held(held: float, wanted: float, scale: int) -> None:
    """On the grid, at most what is held and wanted but for the last binary digits, at least the minimum."""
    slack = 1e-6 * 10.0**-scale + 1e-12
    seen = view(market=market(volume_scale=scale))
    verdict = out(selling(wanted), desk(positions=(position(max(held, 1e-9)),)), seen)
    assert verdict.volume <= max(held, 1e-9) + slack
    assert verdict.volume <= max(wanted, 0.0) + slack
    assert (verdict.refusal is None) == (verdict.volume >= 0.01)


@given(st.sampled_from(("limit", "stop")), st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -1.0)))
def test_no_odd_number_passes(name: str, value: float) -> None:
    """Neither in nor out."""
    assert judge(replace(intent(), **{name: value})).refusal is Refusal.BAD_NUMBER  # type: ignore[arg-type]
    assert out(replace(selling(), **{name: value})).refusal is Refusal.BAD_NUMBER  # type: ignore[arg-type]


def test_conditions_are_sound_by_default() -> None:
    """The plain moment of these tests hides no trouble."""
    assert moment().conditions == Conditions()
    assert judge().refusal is None and out().refusal is None
