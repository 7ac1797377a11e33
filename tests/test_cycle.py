"""CYCLE: candles in, orders out, checked with a pencil; the states, the caps, the kill switch; and a random life.

`Stage` plays hourly candles: a close of 100 quotes 99.90 and 100.10, an entry rests at 99.90 with its stop at 95, and a
candle of volume 100 fills 10 units. A taker at an open of 100 gets 99.80 or pays 100.21 when the candle closes at 100.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from candles import HOURLY
from desks import (
    ALL_CAUSES,
    CASH,
    CLOSE,
    ENTER,
    HOUR,
    LEAVE,
    NOW,
    PAIR,
    T0,
    Play,
    Stage,
    Tape,
    Watched,
    bar,
    cause,
    codes,
    decimal,
    desk,
    doubt,
    fill,
    kinds,
    market,
    moment,
    order,
    outlook,
    position,
    protection,
    quote,
    run,
    setup,
    signal,
    view,
    with_limits,
)
from lunobiz import (
    BASE_FEE_WORDS,
    CALLED_OFF_MS,
    CASH_WORDS,
    DAY_MS,
    EXPANSION,
    FOLLOW_UP_MS,
    HOUR_MS,
    MOMENTUM,
    OWNER_CAUSES,
    REVERSION,
    Action,
    AuditBroken,
    CauseKind,
    Conditions,
    Costs,
    CycleReport,
    Desk,
    Doubt,
    ExitPhase,
    Moment,
    Order,
    OrderBook,
    OrderKind,
    OrderState,
    Outcome,
    OutcomeUnknown,
    Refusal,
    Regime,
    Settings,
    Settlement,
    Setup,
    Side,
    SimulatedExecutor,
    TradingState,
    clear_cause,
    decide,
    desk_from_json,
    desk_json,
    equity,
    may_reduce,
    never,
    trade_cycle,
    trade_moment,
    trade_now,
    worst_exposure,
)

Prices = tuple[float, float, float, float]
ENTRY_KINDS = (OrderKind.ENTRY, OrderKind.TAKER_ENTRY)
TWO_HOURS = replace(HOURLY, schedule=replace(HOURLY.schedule, entry_timeout_candles=2))
TAKES = replace(HOURLY, schedule=replace(HOURLY.schedule, takes_after_timeout=True))
HOLD = with_limits(daily_cap_action="hold")
NOTHING_NEW = Conditions(is_reconciled=False)


# ---- tables of candles -----------------------------------------------------------------------------------


class Hour(NamedTuple):
    """One candle, and the setups read at its close."""

    prices: Prices
    setups: tuple[Setup, ...] = ()
    volume: float = 100.0


class Scene(NamedTuple):
    """Candles and the fills expected: (row, kind, volume, price); and what is held and rests at the end."""

    why: str
    hours: tuple[Hour, ...]
    fills: tuple[tuple[int, str, float, float], ...]
    held: float = 0.0
    rests: tuple[str, ...] = ()
    settings: Settings = HOURLY


#              open   high   low    close
SIGNAL = Hour((100.0, 100.0, 100.0, 100.0), ENTER)  # the strategies want in: a bid of 10 at 99.90
QUIET = Hour((100.0, 100.5, 99.95, 100.0))  # never touches 99.90
BOUGHT = Hour((100.0, 100.5, 99.89, 100.0))  # one tick through 99.90
OUT = Hour((100.0, 100.5, 99.95, 100.0), LEAVE)  # the strategy wants out

SCENES = (
    Scene("an entry that is not reached ends with its candle", (
        SIGNAL,
        Hour((100.0, 100.5, 99.90, 100.0)),  # at the limit, not through it: time is up, cancelled
        Hour((99.0, 99.0, 90.0, 100.0)),  # through it, too late
    ), ()),
    Scene("an entry may rest two candles", (
        SIGNAL,
        QUIET,  # one candle has passed
        BOUGHT,  # filled in the second
    ), ((2, "entry", 10.0, 99.90),), 10.0, ("protection",), TWO_HOURS),
    Scene("and not three", (
        SIGNAL,
        QUIET,
        QUIET,  # two have passed: cancelled
        BOUGHT,
    ), (), settings=TWO_HOURS),
    Scene("a position gets its stop at the exchange", (
        SIGNAL,
        BOUGHT,  # filled at the limit
        QUIET,  # and is kept
    ), ((1, "entry", 10.0, 99.90),), 10.0, ("protection",)),
    Scene("the stop is reached", (
        SIGNAL,
        BOUGHT,
        Hour((100.0, 100.0, 95.01, 100.0)),  # a cent above the stop
        Hour((100.0, 100.0, 95.00, 100.0)),  # reached: 95 x 0.999 x 0.999 = 94.81
    ), ((1, "entry", 10.0, 99.90), (3, "protection", 10.0, 94.81))),
    Scene("a stop in a thin market sells what it can at its limit", (
        SIGNAL,
        BOUGHT,
        Hour((100.0, 100.0, 95.0, 100.0), volume=40.0),  # a tenth of 40
        Hour((100.0, 100.0, 99.0, 100.0), volume=40.0),  # it has been reached: now a resting sale at 94.05
        Hour((100.0, 100.0, 99.0, 100.0), volume=40.0),  # the last 2
    ), ((1, "entry", 10.0, 99.90), (2, "protection", 4.0, 94.81), (3, "protection", 4.0, 94.05),
        (4, "protection", 2.0, 94.05))),
    Scene("a gap through the stop's limit is left by a bounded taker", (
        SIGNAL,
        BOUGHT,
        Hour((90.0, 90.0, 90.0, 90.0)),  # 89.82 < 94.05: reached, not sold; an exit at 88.11 takes its place
        Hour((90.0, 100.0, 90.0, 100.0)),  # sold at the open: 90 x 0.999 x 0.999 = 89.82009
    ), ((1, "entry", 10.0, 99.90), (3, "exit", 10.0, 89.82))),
    Scene("a second gap: the bounded taker is missed and follows", (
        SIGNAL,
        BOUGHT,
        Hour((90.0, 90.0, 90.0, 90.0)),  # exit at 88.11 at the lowest
        Hour((80.0, 100.0, 80.0, 100.0)),  # 79.84 is below its bound: the exit ends, the next one bounds at 97.90
        Hour((100.0, 100.0, 100.0, 100.0)),  # 99.80
    ), ((1, "entry", 10.0, 99.90), (4, "exit", 10.0, 99.80))),
    Scene("the strategy leaves at the next open", (
        SIGNAL,
        BOUGHT,
        OUT,  # the stop is taken off, then an exit goes in
        Hour((100.0, 100.0, 94.0, 100.0)),  # 100 x 0.999 x 0.999 = 99.8001; the old stop is gone
    ), ((1, "entry", 10.0, 99.90), (3, "exit", 10.0, 99.80))),
    Scene("leaving a thin market takes its time", (
        SIGNAL,
        BOUGHT,
        OUT,
        Hour((100.0, 100.0, 99.0, 100.0), volume=40.0),  # 4
        Hour((100.0, 100.0, 99.0, 100.0), volume=0.0),  # nobody
        Hour((100.0, 100.0, 99.0, 100.0), volume=50.0),  # 5
        Hour((100.0, 100.0, 99.0, 100.0), volume=50.0),  # the last one
    ), ((1, "entry", 10.0, 99.90), (3, "exit", 4.0, 99.80), (5, "exit", 5.0, 99.80), (6, "exit", 1.0, 99.80))),
    Scene("an entry in a thin market: the rest is cancelled, what was got is protected", (
        SIGNAL,
        Hour((100.0, 100.5, 99.89, 100.0), volume=30.0),  # 3 of 10, time is up
        BOUGHT,
    ), ((1, "entry", 3.0, 99.90),), 3.0, ("protection",)),
    Scene("an entry filled in two candles has one protection for both", (
        SIGNAL,
        Hour((100.0, 100.5, 99.89, 100.0), volume=30.0),  # 3: protection for 3, the entry rests on
        BOUGHT,  # 7 more: protection for 10
        Hour((100.0, 100.0, 95.0, 100.0)),  # sold as one
    ), ((1, "entry", 3.0, 99.90), (2, "entry", 7.0, 99.90), (3, "protection", 10.0, 94.81)), settings=TWO_HOURS),
    Scene("an entry filled and stopped in one candle leaves at the next open", (
        SIGNAL,
        Hour((100.0, 100.0, 94.0, 94.0)),  # bought on the way down; the bid of 93.90 is below the stop
        Hour((94.0, 100.0, 94.0, 100.0)),  # 94 x 0.998001 = 93.812
    ), ((1, "entry", 10.0, 99.90), (2, "exit", 10.0, 93.81))),
    Scene("a fill too small to sell is dust", (
        SIGNAL,
        Hour((100.0, 100.5, 99.89, 100.0), volume=0.05),  # 0.005, half the smallest order: written off
        QUIET,
    ), ((1, "entry", 0.005, 99.90),)),
    Scene("after the time-out the entry is taken if its signal stands", (
        SIGNAL,
        Hour((100.0, 100.5, 99.95, 100.0), ENTER),  # cancelled, then a taker up to 100.10 x 1.002
        Hour((100.0, 110.0, 100.0, 100.0)),  # 100 x 1.001 x 1.001 = 100.2001
    ), ((2, "taker entry", 10.0, 100.21),), 10.0, ("protection",), TAKES),
    Scene("not if the signal is gone", (SIGNAL, QUIET, BOUGHT), (), settings=TAKES),
    Scene("not if another strategy wants in", (
        SIGNAL,
        Hour((100.0, 100.5, 99.95, 100.0), (setup(strategy=EXPANSION, numbers=(("width", 3.0), ("top", 99.0))),)),
        QUIET,
    ), (), settings=TAKES),
    Scene("not if it was filled in part", (
        SIGNAL,
        Hour((100.0, 100.5, 99.89, 100.0), ENTER, 30.0),
        Hour((100.0, 110.0, 100.0, 100.0)),
    ), ((1, "entry", 3.0, 99.90),), 3.0, ("protection",), TAKES),
    Scene("a taker entry beyond its bound ends unfilled", (
        SIGNAL,
        Hour((100.0, 100.5, 99.95, 100.0), ENTER),  # bound 100.31
        Hour((100.2, 110.0, 100.0, 100.0)),  # 100.2 x 1.002001 = 100.4005
        Hour((100.0, 110.0, 100.0, 100.0)),  # over
    ), (), settings=TAKES),
    Scene("a rising market lifts the stop, a falling one never lowers it", (
        SIGNAL,
        BOUGHT,
        Hour((100.0, 104.0, 100.0, 104.0)),  # best 104, less 7 ranges of 1: the stop goes to 97
        Hour((104.0, 104.0, 100.0, 100.0)),  # stays
        Hour((100.0, 100.0, 97.0, 100.0)),  # 97 x 0.998001 = 96.806
    ), ((1, "entry", 10.0, 99.90), (4, "protection", 10.0, 96.80))),
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.why)
@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted every hour"])
def test_scenes(scene: Scene, restarts: bool) -> None:
    """The fills by the pencil, the same with a restart after every candle; cash by an exact ledger."""
    stage = Stage(scene.settings)
    found = []
    for number, hour in enumerate(scene.hours):
        before = len(stage.fills)
        stage.hour(hour.prices, hour.volume, hour.setups)
        found += [(number, f.kind.value, f.volume, f.price) for f in stage.fills[before:]]
        if restarts:
            stage.restart()
    assert found == list(scene.fills)
    assert sum(p.volume for p in stage.desk.positions) == pytest.approx(scene.held)
    assert tuple(o.kind.value for o in stage.desk.orders) == scene.rests
    ledger = Decimal(int(CASH))
    for _, kind, volume, price in scene.fills:
        value = decimal(price) * decimal(volume)
        is_buy = "entry" in kind
        is_maker = kind == "entry" or (kind == "protection" and price == 94.05)
        ledger -= value * (Decimal("0.004") if is_maker else Decimal("0.006"))
        ledger -= value if is_buy else -value
    assert abs(decimal(stage.desk.cash) - ledger) < Decimal("0.0000001")


def test_the_story_of_a_round_trip() -> None:
    """Events, decisions and the round trip of bought at 99.90 and sold at 99.80: 998 - 999 - 3.996 - 5.988."""
    stage = Stage()
    rows = []
    for hour in (SIGNAL, BOUGHT, QUIET, OUT, QUIET):
        reports = stage.hour(hour.prices, hour.volume, hour.setups)
        rows.append([(d.action, d.code) for d in reports[0].decisions])
        assert all(not r.decisions for r in reports[1:])
    assert rows == [[(Action.ENTER, "enter")], [(Action.HOLD, "hold")], [(Action.HOLD, "hold")],
                    [(Action.EXIT, "exit")], [(Action.WAIT, "no-signal")]]
    trips = [t for r in stage.tape.reports for t in r.round_trips]
    assert [t.profit for t in trips] == [pytest.approx(-10.984)]
    assert trips[0].reason == "trend over"
    assert stage.events() == ["entry", "exit"]
    assert stage.desk.cash == pytest.approx(CASH - 10.984)
    assert [e.text for r in stage.tape.reports for e in r.events] == [
        "buy 10 AAAZAR at 99.9", "sell 10 AAAZAR at 99.8, round trip -1.10%"]


def test_a_trailing_stop_is_replaced_by_cancel_wait_new() -> None:
    """In the hour of 104 the old one is cancelled; only the follow-up, with its end known, places the new one."""
    stage = Stage()
    for hour in (SIGNAL, BOUGHT):
        stage.hour(hour.prices, hour.volume, hour.setups)
    stage.executor.diary.clear()
    reports = stage.hour((100, 104, 100, 104))
    assert stage.executor.diary == ["settle", "cancel protection", "settle", "place protection"]
    assert [kinds(r.cancels) for r in reports] == [[OrderKind.PROTECTION], []]
    assert [kinds(r.orders) for r in reports] == [[], [OrderKind.PROTECTION]]
    assert reports[1].now_ms == reports[0].now_ms + FOLLOW_UP_MS
    assert [(o.stop, o.limit) for o in stage.desk.orders] == [(97.0, 96.03)]
    assert reports[0].decisions[0].why == "Stop raised from 95 to 97"


@pytest.mark.parametrize(("close", "atr", "stop"), [
    (102.5, 1.0, 95.0),  # 95.5 is just half a range higher: not worth an order
    (102.51, 1.0, 95.51),
    (102.51, math.nan, 95.0),  # no range, no step
    (90.0, 0.5, 95.0),  # 86.5 would be lower
])
def test_trailing_moves_in_steps_and_only_up(close: float, atr: float, stop: float) -> None:
    """Best close less seven ranges, if that lifts the stop by more than half a range."""
    held = position(stop=95.0, best=90.0)
    seen = view(ticker=quote(99.9, 100.1), outlooks=(outlook(close=close, atr=atr),))
    at = run(desk(positions=(held,), orders=(protection(),)), seen).desk
    assert at.positions[0].stop == stop
    assert at.positions[0].best == (90.0 if math.isnan(atr) else max(90.0, close))


def test_trailing_waits_for_the_positions_own_candle() -> None:
    """Between decisions, or on another timeframe, the stop stays."""
    high = outlook(close=120.0, timeframe_s=14_400)
    at = desk(positions=(position(),), orders=(protection(),))
    assert run(at, view(outlooks=(high,)), due=(14_400,)).desk.positions[0].stop == 95.0
    assert run(at, view(outlooks=(outlook(close=120.0),)), due=()).desk.positions[0].stop == 95.0
    assert run(at, view(outlooks=(outlook(close=120.0),))).desk.positions[0].stop == 113.0


# ---- protection ------------------------------------------------------------------------------------------


def test_one_protection_for_the_whole_position() -> None:
    """Without one it is placed; a right one rests; a wrong one is cancelled and only then replaced."""
    held = desk(90_000.0, positions=(position(),))
    placed = run(held)
    assert [(o.kind, o.volume, o.stop, o.limit) for o in placed.orders] == [(OrderKind.PROTECTION, 10.0, 95.0, 94.05)]
    assert placed.orders[0].order_id == "LB1-000001" and placed.desk.next_order == 2
    assert placed.orders[0].expires_ms == 0 and placed.orders[0].strategy == MOMENTUM
    assert run(replace(held, orders=(protection(),))).is_quiet is False  # its decision row
    assert run(replace(held, orders=(protection(),)), due=()).is_quiet
    for wrong in (protection(9.0), protection(stop=94.0), protection(filled=1.0)):
        report = run(replace(held, orders=(wrong,)), due=())
        assert kinds(report.cancels) == [OrderKind.PROTECTION] and not report.orders
        again = run(report.desk, due=())
        assert not again.cancels and not again.orders  # asked once, then waited for


def test_a_rest_below_the_minimum_has_no_protection() -> None:
    """While its entry rests it may still grow; nothing can be sold meanwhile."""
    at = desk(positions=(position(0.0099),), orders=(order(),))
    report = run(at, due=())
    assert not report.orders and report.desk.positions


@pytest.mark.parametrize("trouble", [
    view(market=market(status="SUSPENDED"), outlooks=(outlook(*LEAVE),)),
    view(ticker=quote(at_ms=NOW - 16_000), outlooks=(outlook(*LEAVE),)),
    view(ticker=None, outlooks=(outlook(*LEAVE),)),
])
def test_protection_stays_while_the_market_takes_no_exit(trouble: object) -> None:
    """An exit that cannot be sent must not take the stop off first: the position would stand bare."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(),))
    report = run(at, trouble)  # type: ignore[arg-type]
    assert not report.cancels


def test_protection_stays_while_the_market_takes_no_new_one() -> None:
    """The same for a raised stop: the old one rests until a new one can be placed."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(),))
    report = run(at, view(market=market(status="SUSPENDED"), outlooks=(outlook(close=110.0),)))
    assert not report.cancels


def test_an_exit_that_is_refused_is_told() -> None:
    """Each refusal leaves a row or an event with its code: a position that cannot be left is no secret."""
    at = desk(90_000.0, positions=(position(phase=ExitPhase.CANCELLING, exit_why="time"),))
    report = run(at, view(market=market(status="SUSPENDED")))
    assert report.verdicts[0].refusal is Refusal.MARKET
    told = [e.text for e in report.events] + [d.code + d.why for d in report.decisions]
    assert any("P13-market" in text for text in told)


def test_a_position_without_a_view_is_left_alone() -> None:
    """What cannot be seen is not touched."""
    at = desk(positions=(position(),))
    report = run(at, view(market=market("BBB"), outlooks=()), due=())
    assert not report.orders and report.desk.positions == at.positions


# ---- reasons to leave ------------------------------------------------------------------------------------

Q = (("z", 0.0), ("mean", 100.0))


@pytest.mark.parametrize(("why", "strategy", "setups", "regime", "age_h", "reason"), [
    ("keep", MOMENTUM, (), Regime.TRENDING, 1, ""),
    ("its own exit", MOMENTUM, LEAVE, Regime.TRENDING, 1, "trend over"),
    ("another strategy's exit", EXPANSION, LEAVE, Regime.TRENDING, 1, ""),
    ("the mean", REVERSION, (setup(strategy=REVERSION, is_entry=False, is_exit=True),), Regime.RANGING, 1,
     "mean reached"),
    ("reversion in a trend", REVERSION, (), Regime.TRENDING, 1, "regime change"),
    ("reversion in a wild market", REVERSION, (), Regime.WILD, 1, "regime change"),
    ("momentum in a wild market", MOMENTUM, (), Regime.WILD, 1, ""),
    ("too long", MOMENTUM, (), Regime.TRENDING, 480, "time"),
    ("nearly too long", MOMENTUM, (), Regime.TRENDING, 479.999, ""),
    ("a strategy of older days", "forgotten", LEAVE, Regime.WILD, 1, ""),
])
def test_reasons_to_leave(why: str, strategy: str, setups: tuple[Setup, ...], regime: Regime, age_h: float,
                          reason: str) -> None:
    """The reason is kept with the position, and the stop is taken off first."""
    held = position(strategy=strategy, opened_ms=NOW - round(age_h * HOUR))
    at = desk(90_000.0, positions=(held,), orders=(protection(),))
    report = run(at, view(outlooks=(outlook(*setups, regime=regime),)))
    kept = report.desk.positions[0]
    assert kept.exit_why == reason
    assert (kept.phase, bool(report.cancels)) == (ExitPhase.CANCELLING if reason else ExitPhase.NONE, bool(reason))
    assert not report.orders
    between = run(at, view(outlooks=(outlook(*setups, regime=regime),)), due=())
    assert between.desk.positions[0].phase is ExitPhase.NONE  # a candle's reason counts at its decision only


@pytest.mark.parametrize(("bid", "orders", "leaves"), [
    (95.0, (protection(is_triggered=True),), True),
    (95.01, (protection(is_triggered=True),), False),
    (95.0, (protection(),), False),  # the exchange will do it
    (95.0, (), True),  # nothing rests: sell
    (0.0, (protection(is_triggered=True),), False),  # no bid is no price
])
def test_below_the_stop(bid: float, orders: tuple[Order, ...], leaves: bool) -> None:
    """At the stop and below, once the resting stop has had its chance."""
    at = desk(90_000.0, positions=(position(),), orders=orders)
    report = run(at, view(ticker=quote(bid, 100.1)), due=())
    assert (report.desk.positions[0].exit_why == "stop") == leaves
    if leaves and not orders:
        assert kinds(report.orders) == [OrderKind.EXIT]


def test_the_steps_of_leaving() -> None:
    """NONE, CANCELLING while orders are on the book, EXITING with a bounded sale at 99.90 x 0.98 = 97.902."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(), order(order_id="LB1-000002", volume=5.0)))
    first = run(at, view(outlooks=(outlook(*LEAVE),)))
    assert sorted(k.value for k in kinds(first.cancels)) == ["entry", "protection"]
    assert first.desk.positions[0].phase is ExitPhase.CANCELLING
    second = run(first.desk, due=())
    assert not second.cancels and not second.orders
    ended = Settlement((), tuple(Outcome(o.order_id, OrderState.DONE, "cancelled") for o in first.cancels))
    third = run(first.desk, settlement=ended, due=())
    assert [(o.kind, o.volume, o.limit) for o in third.orders] == [(OrderKind.EXIT, 10.0, 97.9)]
    assert third.desk.positions[0].phase is ExitPhase.EXITING
    fourth = run(third.desk, due=())
    assert not fourth.cancels and not fourth.orders  # the exit works
    partly = third.orders[0]
    sold = Settlement((fill(partly, 4.0, 99.0),), (Outcome(partly.order_id, OrderState.DONE, "rest cancelled"),))
    fifth = run(fourth.desk, settlement=sold, due=())
    assert [(o.kind, o.volume) for o in fifth.orders] == [(OrderKind.EXIT, 6.0)]


# ---- settlement ------------------------------------------------------------------------------------------


def test_a_fill_of_an_order_nobody_knows_stops_everything() -> None:
    """It is not booked and not passed over."""
    with pytest.raises(OutcomeUnknown, match="LB1-000001"):
        run(desk(), settlement=Settlement((fill(order(), 1.0, 99.9),)))


def test_outcomes_move_orders_on() -> None:
    """Accepted, triggered, ended; what is not on the desk any more is no news."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(state=OrderState.INTENT),))
    seen = Settlement((), (Outcome("LB1-000001", OrderState.OPEN, "stop reached", True),
                           Outcome("LB1-999999", OrderState.DONE, "filled")))
    report = run(at, settlement=seen, due=())
    assert (report.desk.orders[0].state, report.desk.orders[0].is_triggered) == (OrderState.OPEN, True)
    later = run(report.desk, settlement=Settlement((), (Outcome("LB1-000001", OrderState.OPEN, "seen"),)), due=())
    assert later.desk.orders[0].is_triggered


def test_an_order_of_unknown_outcome_makes_the_desk_uncertain() -> None:
    """Nothing is sent and nothing cancelled until its fate is known; then the cause ends by itself."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(), order(order_id="LB1-000002", pair="BBBZAR")))
    report = run(at, view(outlooks=(outlook(*LEAVE),)),
                 settlement=Settlement((), (Outcome("LB1-000002", OrderState.UNKNOWN, "time-out"),)))
    assert report.desk.state is TradingState.UNCERTAIN
    assert not report.cancels and not report.orders
    known = run(report.desk, settlement=Settlement((), (Outcome("LB1-000002", OrderState.DONE, "filled"),)), due=())
    assert known.desk.state is TradingState.READY


def test_dust_is_swept_when_nothing_works_any_more() -> None:
    """Below the minimum and without orders the position closes into a round trip; at the minimum it stays."""
    report = run(desk(positions=(position(0.0099),)), due=())
    assert [t.reason for t in report.round_trips] == ["too small to sell"]
    assert report.desk.dust == ((PAIR, 0.0099),) and not report.desk.positions
    assert run(desk(positions=(position(0.01),)), due=()).desk.positions
    leaving = run(desk(positions=(position(0.0099, exit_why="time", phase=ExitPhase.EXITING),)), due=())
    assert leaving.round_trips[0].reason == "time"
    unseen = run(desk(positions=(position(0.0099),)), view(market=market("BBB")), due=())
    assert unseen.desk.positions


def test_a_round_trip_is_never_quiet() -> None:
    """A cycle that closes a position must reach the audit, whatever else it did not do."""
    report = run(desk(positions=(position(0.0099),)), due=())
    assert report.round_trips and not report.is_quiet


@pytest.mark.parametrize("part", ["fills", "outcomes", "cancels", "orders", "decisions", "events", "round_trips"])
def test_each_thing_alone_is_kept(part: str) -> None:
    """The audit has every cycle in which anything happened, and no other."""
    quiet = run(desk(), due=())
    assert quiet.is_quiet
    one = ("x",)
    if part in ("fills", "outcomes"):
        told = replace(quiet, settlement=replace(Settlement(), **{part: one}))  # type: ignore[arg-type]
    else:
        told = replace(quiet, **{part: one})  # type: ignore[arg-type]
    assert not told.is_quiet


def test_dust_counts_for_nothing() -> None:
    """It holds no place and does not block an entry in its market."""
    report = run(desk(dust=((PAIR, 0.005),)), view(outlooks=(outlook(*ENTER),)))
    assert kinds(report.orders) == [OrderKind.ENTRY]
    assert report.exposure == 0.0


# ---- entries ---------------------------------------------------------------------------------------------


def wanting(base: str, **changes: object) -> object:
    """A view of a market that a strategy wants to enter."""
    return view(market=market(base), outlooks=(outlook(setup(**changes), pair=base + "ZAR"),))


def test_an_entry_and_its_marks() -> None:
    """A post-only bid that lives one candle, with the signal's stop, remembered for the throttle."""
    report = run(desk(), view(outlooks=(outlook(*ENTER),)))
    assert report.orders == (replace(order(), state=OrderState.INTENT, why=report.orders[0].why),)
    assert report.orders[0].expires_ms == NOW + HOUR
    assert report.desk.entries == ((PAIR, CLOSE - HOUR),) and report.desk.order_times == (NOW,)
    assert report.signals[0].why == report.orders[0].why
    assert report.decisions[0].action is Action.ENTER
    assert dict(report.decisions[0].numbers)["volume"] == 10.0


@pytest.mark.parametrize("late_ms", [0, 900, 1_000, 2_000, 9_000])
def test_time_outs_count_whole_candles_however_late_the_decision_was(late_ms: int) -> None:
    """Decided a little late, the entry is over at the next decision all the same, not some quotes later."""
    report = run(desk(), view(outlooks=(outlook(*ENTER),)), now_ms=NOW + late_ms)
    next_decision = NOW + HOUR
    seen = view(ticker=quote(at_ms=next_decision), outlooks=(outlook(closed_ms=CLOSE + HOUR),))
    later = run(report.desk, seen, now_ms=next_decision)
    assert kinds(later.cancels) == [OrderKind.ENTRY]
    before = run(report.desk, view(ticker=quote(at_ms=next_decision - 5_001)), now_ms=next_decision - 5_001, due=())
    assert not before.cancels


def test_entries_are_judged_one_after_the_other() -> None:
    """Four markets of one strength want 25 % each: 24 % and 24 %, then 12 % are left of 60 %, then nothing."""
    rich = with_limits(risk_per_trade=0.02, max_asset_exposure=0.24, max_positions=8)
    views = tuple(replace(wanting(b), bar=bar(volume=1e6)) for b in ("AAA", "BBB", "CCC", "DDD"))  # type: ignore[type-var]
    report = run(desk(), *views, settings=rich)  # type: ignore[arg-type]
    assert [o.pair for o in report.orders] == ["AAAZAR", "BBBZAR", "CCCZAR"]
    assert [round(o.volume * o.limit, -1) for o in report.orders] == [24_000, 24_000, 12_000]
    assert codes(report) == ["enter", "enter", "enter", "P7-exposure"]
    assert worst_exposure(report.desk) <= 60_000
    few = run(desk(), *views, settings=with_limits(max_positions=2))  # type: ignore[arg-type]
    assert codes(few) == ["enter", "enter", "P7-positions", "P7-positions"]


def test_the_strongest_comes_first() -> None:
    """Confidence decides; of two wishes for one market and candle only the stronger is judged."""
    weak = view(market=market("AAA"), outlooks=(outlook(setup(strength=0.7)),))
    strong = wanting("BBB", strength=0.95)
    report = run(desk(), weak, strong, settings=with_limits(max_positions=1))  # type: ignore[arg-type]
    assert [o.pair for o in report.orders] == ["BBBZAR"]
    both = view(outlooks=(outlook(setup(strength=0.7), setup(strategy=EXPANSION, strength=0.95,
                                                             numbers=(("width", 3.0), ("top", 99.0)))),))
    report = run(desk(), both)
    assert [o.strategy for o in report.orders] == [EXPANSION]
    assert len(report.verdicts) == 1 and len(report.signals) == 2


def test_no_entries_between_decisions() -> None:
    """Not even ranked."""
    report = run(desk(), view(outlooks=(outlook(*ENTER),)), due=())
    assert not report.signals and not report.orders and not report.decisions


def test_a_wish_without_a_quote_is_refused_by_row() -> None:
    """No bid, no price."""
    report = run(desk(), view(ticker=None, outlooks=(outlook(*ENTER),)))
    assert report.decisions[0].action is Action.REJECT and not report.orders


def test_a_retry_waits_for_the_end_of_the_order_before_it() -> None:
    """While the cancelled entry is on the book nothing is taken; once it is off, one taker up to 100.3002."""
    old = order(expires_ms=NOW)
    stands = view(outlooks=(outlook(*ENTER),))
    first = run(desk(orders=(old,)), stands, settings=TAKES)
    assert kinds(first.cancels) == [OrderKind.ENTRY] and not first.orders
    assert len(first.desk.retries) == 1 and codes(first) == ["working"]
    second = run(first.desk, stands, settings=TAKES, due=())
    assert not second.orders and len(second.desk.retries) == 1
    off = Settlement((), (Outcome(old.order_id, OrderState.DONE, "cancelled"),))
    third = run(second.desk, stands, settings=TAKES, settlement=off, due=())
    assert [(o.kind, o.limit, o.expires_ms) for o in third.orders] == [(OrderKind.TAKER_ENTRY, 100.31, 0)]
    assert not third.desk.retries
    gone = run(second.desk, view(market=market("BBB")), settings=TAKES, settlement=off, due=())
    assert not gone.orders and not gone.desk.retries


def test_a_retry_is_dropped_when_the_state_does_not_allow_it() -> None:
    """Halted meanwhile: refused, and not tried again."""
    at = desk(retries=(signal(),), causes=(cause(CauseKind.WEEKLY_CAP),))
    report = run(at, settings=TAKES, due=())
    assert report.verdicts[0].refusal is Refusal.STATE and not report.desk.retries


def test_a_retry_does_not_outlive_its_candle() -> None:
    """The cancel was answered only eight hours later: an old signal is never acted upon."""
    later = NOW + 8 * HOUR
    seen = view(ticker=quote(at_ms=later), outlooks=(outlook(closed_ms=CLOSE + 8 * HOUR),))
    report = run(desk(retries=(signal(),)), seen, settings=TAKES, now_ms=later)
    assert not report.orders


@pytest.mark.parametrize(("old", "held"), [
    (order(expires_ms=CALLED_OFF_MS), 0.0),  # by the owner
    (order(OrderKind.TAKER_ENTRY, expires_ms=CALLED_OFF_MS), 0.0),
    (order(expires_ms=NOW, filled=4.0), 4.0),
])
def test_what_was_called_off_or_partly_filled_is_not_taken_again(old: Order, held: float) -> None:
    """Its signal stands, but the owner wanted out, or the position is there."""
    at = desk(90_000.0, orders=(old,), positions=(position(held),) if held else ())
    report = run(at, view(outlooks=(outlook(*ENTER),)), settings=TAKES)
    assert report.signals and old.kind in kinds(report.cancels)
    assert not report.desk.retries and not any(o.side is Side.BUY for o in report.orders)


def test_without_a_quote_there_is_nothing_to_take() -> None:
    """What an entry must earn is not known then."""
    report = run(desk(orders=(order(expires_ms=NOW),)), view(ticker=None, outlooks=(outlook(*ENTER),)), settings=TAKES)
    assert report.signals and kinds(report.cancels) == [OrderKind.ENTRY] and not report.desk.retries


def test_a_retry_is_no_duplicate_of_its_own_candle() -> None:
    """The mark of its own candle goes and comes back with the order; that of another market stays."""
    other = ("BBBZAR", CLOSE - HOUR)
    at = desk(retries=(signal(),), entries=((PAIR, CLOSE - HOUR), other))
    report = run(at, settings=TAKES, due=())
    assert kinds(report.orders) == [OrderKind.TAKER_ENTRY]
    assert report.desk.entries == (other, (PAIR, CLOSE - HOUR))


def test_a_retry_keeps_the_timeframe_of_its_order() -> None:
    """The hourly entry is not taken on the word of the four-hour candles."""
    fast, slow = outlook(), outlook(*ENTER, timeframe_s=14_400)
    at = desk(orders=(order(expires_ms=NOW),))
    report = run(at, view(outlooks=(fast, slow)), settings=TAKES, due=(3600, 14_400))
    assert not report.desk.retries


# ---- states and their table ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_CAUSES)
def test_what_each_state_lets_through(kind: CauseKind) -> None:
    """decisions.md section 5: entries never; entry orders stay in UNCERTAIN only; exits as `may_reduce` says."""
    resting = order(order_id="LB1-000002", pair="BBBZAR")
    at = desk(90_000.0, positions=(position(),), orders=(protection(), resting),
              causes=(cause(kind, until_ms=NOW + DAY_MS),))
    views = (view(outlooks=(outlook(*LEAVE),)), wanting("CCC"))
    report = run(at, *views, conditions=NOTHING_NEW)  # type: ignore[arg-type]
    state = report.desk.state
    assert state is kind.state
    cancelled = {o.kind for o in report.cancels}
    assert not report.orders
    assert (OrderKind.ENTRY in cancelled) == (state is not TradingState.UNCERTAIN)
    assert (OrderKind.PROTECTION in cancelled) == may_reduce(at)
    off = replace(report.desk, orders=())
    after = run(off, *views, conditions=NOTHING_NEW)  # type: ignore[arg-type]
    assert kinds(after.orders) == ([OrderKind.EXIT] if may_reduce(at) else [])
    bare = desk(90_000.0, positions=(position(),), causes=at.causes)
    assert kinds(run(bare, settings=HOLD, conditions=NOTHING_NEW).orders) == (
        [OrderKind.PROTECTION] if may_reduce(at) else [])


def test_in_ready_all_that_risk_approves_goes_out() -> None:
    """An exit in one market, an entry in another."""
    at = desk(90_000.0, positions=(position(),))
    report = run(at, view(outlooks=(outlook(*LEAVE),)), wanting("CCC"))  # type: ignore[arg-type]
    assert kinds(report.orders) == [OrderKind.EXIT, OrderKind.ENTRY]


BRINGS = (
    (Conditions(is_killed=True), CauseKind.KILL),
    (Conditions(has_network=False), CauseKind.NO_NETWORK),
    (Conditions(is_store_ok=False), CauseKind.STORE_TROUBLE),
    (Conditions(is_maintenance=True), CauseKind.MAINTENANCE),
    (Conditions(is_key_refused=True), CauseKind.KEY_REFUSED),
    (Conditions(skew_ms=2_001), CauseKind.CLOCK_SKEW),
    (Conditions(skew_ms=-2_001), CauseKind.CLOCK_SKEW),
    (Conditions(loop_gap_ms=30_001), CauseKind.RESUMED),
    (Conditions(is_contradicted=True), CauseKind.UNKNOWN_ORDER),
    (Conditions(is_drifting=True), CauseKind.BALANCE_DRIFT),
    (Conditions(has_foreign=True), CauseKind.FOREIGN_ORDER),
    (Conditions(is_unresolved=True), CauseKind.UNRESOLVED),
    (Conditions(is_double_used=True), CauseKind.DOUBLE_USE),
)


@pytest.mark.parametrize(("conditions", "kind"), BRINGS)
def test_conditions_bring_causes_and_a_clean_reconcile_ends_them(conditions: Conditions, kind: CauseKind) -> None:
    """Told once at the start and once at the end; the owner's causes stay, and so do all others' causes."""
    other = cause(CauseKind.DAMAGED_STORE)
    first = run(desk(causes=(other,)), conditions=conditions)
    assert [c.kind for c in first.desk.causes] == [CauseKind.DAMAGED_STORE, kind]
    assert [e.kind for e in first.events] == ["kill" if kind is CauseKind.KILL else "state"]
    again = run(first.desk, conditions=conditions)
    assert not again.events and again.desk.causes == first.desk.causes
    unsure = run(again.desk, conditions=NOTHING_NEW)
    assert not unsure.events and unsure.desk.causes == first.desk.causes
    clean = run(unsure.desk, conditions=Conditions())
    assert [c.kind for c in clean.desk.causes] == [CauseKind.DAMAGED_STORE] + [kind] * (kind in OWNER_CAUSES)
    assert len(clean.events) == (kind not in OWNER_CAUSES)


def test_every_cause_is_brought_but_one() -> None:
    """A damaged store ends the session before it could be a cause; a desk that has it is held back all the same."""
    brought = {c.kind for conditions, _ in BRINGS for c in run(desk(), conditions=conditions).desk.causes}
    brought |= {c.kind for c in run(desk(94_000.0, day_start_equity=CASH, week_start_equity=CASH)).desk.causes}
    brought |= {c.kind for c in run(desk(80_000.0, day_start_equity=CASH, week_start_equity=CASH)).desk.causes}
    assert set(CauseKind) - brought == {CauseKind.DAMAGED_STORE}


@pytest.mark.parametrize("conditions", [Conditions(skew_ms=2_000), Conditions(loop_gap_ms=30_000)])
def test_limits_of_clock_and_loop_are_still_sound(conditions: Conditions) -> None:
    """At the limit nothing is wrong."""
    assert run(desk(), conditions=conditions).desk.state is TradingState.READY


# ---- loss caps -------------------------------------------------------------------------------------------


def run_at(at: Desk, now: int, settings: Settings | None = None, conditions: Conditions | None = None) -> CycleReport:
    """One `decide` between decisions at another time."""
    return run(at, settings=settings, now_ms=now, due=(), conditions=conditions or Conditions())


@pytest.mark.parametrize(("cash", "is_reached"), [(97_000.0, True), (97_000.01, False), (90_000.0, True)])
def test_the_daily_cap_at_its_edge(cash: float, is_reached: bool) -> None:
    """3 % of 100,000 is reached at 97,000."""
    report = run(desk(cash, day_start_equity=CASH, week_start_equity=cash))
    assert (report.desk.state is TradingState.COOLDOWN) == is_reached
    assert [e.kind for e in report.events] == ["daily_cap"] * is_reached


@pytest.mark.parametrize(("cash", "is_reached"), [(94_000.0, True), (94_000.01, False)])
def test_the_weekly_cap_at_its_edge(cash: float, is_reached: bool) -> None:
    """6 % of 100,000 is reached at 94,000."""
    report = run(desk(cash, day_start_equity=cash, week_start_equity=CASH))
    assert (report.desk.state is TradingState.HALTED) == is_reached
    assert [e.kind for e in report.events] == ["weekly_cap"] * is_reached


def test_open_losses_and_the_fee_of_leaving_count() -> None:
    """10 at a bid of 99.90 less 0.6 % are 993.006: 96,006.98 in cash make less than 97,000, 96,007 do not."""
    held, rests = (position(),), (protection(),)
    low = desk(96_006.98, positions=held, orders=rests, day_start_equity=CASH)
    assert run(low).desk.state is TradingState.COOLDOWN
    assert run(replace(low, cash=96_007.0)).desk.state is TradingState.READY


def test_at_the_daily_cap_entries_are_cancelled_and_positions_left_at_once() -> None:
    """Close is the default: no candle is waited for, the reason is the cap."""
    at = desk(96_000.0, positions=(position(),), orders=(protection(), order(order_id="LB1-000002", pair="BBBZAR")),
              day_start_equity=CASH)
    report = run(at, due=())
    assert sorted(k.value for k in kinds(report.cancels)) == ["entry", "protection"]
    assert report.desk.positions[0].exit_why == "loss cap"
    off = run(replace(report.desk, orders=()), due=())
    assert kinds(off.orders) == [OrderKind.EXIT]


def test_at_the_daily_cap_positions_may_be_kept_to_their_stops() -> None:
    """Hold: only the entry goes; the stop is watched as ever."""
    at = desk(96_000.0, positions=(position(),), orders=(protection(), order(order_id="LB1-000002", pair="BBBZAR")),
              day_start_equity=CASH)
    report = run(at, settings=HOLD, due=())
    assert kinds(report.cancels) == [OrderKind.ENTRY]
    assert report.desk.positions[0].phase is ExitPhase.NONE
    assert "keep their stops" in report.events[0].text


@pytest.mark.parametrize(("hour", "hours", "until"), [
    (10, 12.0, T0 + DAY_MS),  # 22:00:05 is before midnight: the next day
    (20, 12.0, T0 + 20 * HOUR + 5_000 + 12 * HOUR),  # 08:00:05 of the next day
    (10, 72.0, T0 + 10 * HOUR + 5_000 + 72 * HOUR),
])
def test_the_cooldown_ends_with_the_later_of_day_and_pause(hour: int, hours: float, until: int) -> None:
    """Through restarts, through deposits, to the millisecond; entries are refused up to then and pass afterwards."""
    settings = with_limits(cooldown_hours=hours)
    start = T0 + hour * HOUR + 5_000
    at = run_at(desk(97_000.0, day_start_equity=CASH), start, settings).desk
    assert [(c.kind, c.until_ms) for c in at.causes] == [(CauseKind.DAILY_CAP, until)]
    now = start
    while now < until:
        at = desk_from_json(desk_json(replace(at, cash=at.cash + 1_000.0)))  # the owner pays in; that is no profit
        wants = view(ticker=quote(at_ms=now), outlooks=(outlook(*ENTER),))
        report = run(at, wants, settings=settings, now_ms=now)
        assert report.desk.state is TradingState.COOLDOWN and not report.orders
        assert codes(report) == ["P2-state"]
        at, now = report.desk, now + 5 * HOUR
    at = run_at(at, until - 1, settings).desk
    assert at.state is TradingState.COOLDOWN
    over = run(at, view(ticker=quote(at_ms=until), outlooks=(outlook(*ENTER),)), settings=settings, now_ms=until)
    assert over.desk.state is TradingState.READY
    assert [e.kind for e in over.events] == ["cooldown"]
    assert kinds(over.orders) == [OrderKind.ENTRY]


def test_a_cap_reached_again_when_the_cooldown_ends_starts_anew() -> None:
    """Held to its stop, the position has lost the next day's share too."""
    at = desk(96_000.0, day_start_equity=CASH, causes=(cause(CauseKind.DAILY_CAP, until_ms=NOW),))
    report = run(at, due=())
    assert [e.kind for e in report.events] == ["cooldown", "daily_cap"]
    assert report.desk.causes[0].since_ms == NOW


def test_the_weekly_cap_halts_until_the_owner_says_so() -> None:
    """Not the new day, not the new week, not a deposit, not a restart; the owner's word does."""
    at = run(desk(94_000.0, day_start_equity=94_000.0, week_start_equity=CASH)).desk
    for days in range(1, 15):
        at = desk_from_json(desk_json(replace(at, cash=at.cash + 5_000.0)))
        at = run_at(at, NOW + days * DAY_MS).desk
        assert at.state is TradingState.HALTED
    assert run_at(clear_cause(at, CauseKind.WEEKLY_CAP), NOW + 15 * DAY_MS).desk.state is TradingState.READY


@pytest.mark.parametrize(("settings", "leaves"), [(HOURLY, True), (HOLD, False)])
def test_the_weekly_cap_leaves_positions_too(settings: Settings, leaves: bool) -> None:
    """Exits are allowed under it; the action is the daily cap's."""
    at = desk(93_000.0, positions=(position(),), orders=(protection(),), week_start_equity=CASH)
    report = run(at, settings=settings, due=())
    assert bool(report.cancels) == leaves


def test_days_and_weeks_begin_at_midnight_and_monday() -> None:
    """T0 is a Thursday: Sunday 4 January ends the week, Monday 5 January begins one."""
    at = Desk(CASH)
    seen = []
    for hours in (0, 23, 24, 71, 72 + 23, 96, 97):
        at = replace(run_at(at, T0 + hours * HOUR).desk, cash=at.cash + 1.0)
        seen.append((at.day - T0 // DAY_MS, at.day_start_equity - CASH, at.week_start_equity - CASH))
    assert seen == [(0, 0, 0), (0, 0, 0), (1, 2, 0), (2, 3, 0), (3, 4, 0), (4, 5, 5), (4, 5, 5)]
    assert at.peak_equity == CASH + 6


def test_a_clock_that_goes_back_starts_no_new_day() -> None:
    """One reset a day: going back over midnight must not forget what the day has lost."""
    at = run_at(desk(CASH), T0 + DAY_MS + 1_000).desk
    lost = replace(at, cash=98_000.0)
    back = run_at(lost, T0 + DAY_MS - 1_000, conditions=Conditions(skew_ms=-2_000.0)).desk
    assert back.day_start_equity == CASH
    assert run_at(back, T0 + DAY_MS + 2_000).desk.day_start_equity == CASH


def test_an_empty_desk_is_no_crash() -> None:
    """Without any money there is nothing to lose and nothing to divide by."""
    assert not run(Desk(0.0)).orders


def test_old_counts_are_forgotten() -> None:
    """Order times and closings after a day, entries after seven."""
    at = desk(order_times=(NOW - DAY_MS, NOW - DAY_MS + 1), closings=((PAIR, NOW - DAY_MS), (PAIR, NOW)),
              entries=((PAIR, NOW - 7 * DAY_MS), (PAIR, NOW - 7 * DAY_MS + 1)))
    kept = run(at, due=()).desk
    assert (len(kept.order_times), len(kept.closings), len(kept.entries)) == (1, 1, 1)


# ---- kill switch -----------------------------------------------------------------------------------------


def test_the_kill_switch() -> None:
    """Entries are cancelled, protection stays, no order of any kind; gone is not re-armed; only re-arming is."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(), order(order_id="LB1-000002", pair="BBBZAR")))
    views = (view(outlooks=(outlook(*LEAVE),)), wanting("CCC"))
    report = run(at, *views, conditions=Conditions(is_killed=True))  # type: ignore[arg-type]
    assert kinds(report.cancels) == [OrderKind.ENTRY] and not report.orders
    assert report.desk.state is TradingState.KILLED
    at = desk_from_json(desk_json(report.desk))
    for hours in (1, 24, 24 * 8):
        now = NOW + hours * HOUR
        later = run(at, view(ticker=quote(at_ms=now), outlooks=(outlook(*LEAVE),)), now_ms=now)
        assert later.desk.state is TradingState.KILLED and not later.orders
        assert OrderKind.PROTECTION not in kinds(later.cancels)
        at = later.desk
    armed = run(clear_cause(at, CauseKind.KILL), *views)  # type: ignore[arg-type]
    assert kinds(armed.orders) == [OrderKind.ENTRY]
    assert kinds(armed.cancels) == [OrderKind.PROTECTION]


def test_a_bare_position_gets_no_protection_while_killed() -> None:
    """No new order of any kind means none."""
    report = run(desk(90_000.0, positions=(position(),)), conditions=Conditions(is_killed=True))
    assert not report.orders and report.verdicts[-1].refusal is Refusal.KILLED


def test_a_kill_between_decision_and_sending_stops_the_order() -> None:
    """Decided freely, refused at the door; the next cycle knows it was never placed."""
    killed = [False]
    stage = Stage(is_killed=lambda: killed[0])
    killed[0] = True
    stage.hour(SIGNAL.prices, 100.0, ENTER)
    assert [o.state for o in stage.desk.orders] == [OrderState.INTENT]
    reports = stage.hour(BOUGHT.prices, conditions=Conditions(is_killed=True))
    assert reports[0].settlement.outcomes[0].state is OrderState.REJECTED
    assert not stage.fills and not stage.desk.orders and stage.desk.state is TradingState.KILLED


def test_a_restart_places_nothing_while_killed() -> None:
    """An order written but perhaps not sent is not accepted after the kill file has come."""
    written = desk(orders=(order(state=OrderState.INTENT),))
    executor = SimulatedExecutor(Costs(), lambda: True, written.orders)
    seen = view(ticker=None, bar=bar(CLOSE, (100, 100, 99, 100)))
    answer = executor.settle(moment(seen, now_ms=NOW + HOUR))
    assert not answer.fills
    assert [o.state for o in answer.outcomes] == [OrderState.REJECTED]


# ---- the simulated executor ------------------------------------------------------------------------------


def test_orders_live_until_they_are_filled_or_cancelled() -> None:
    """Accepted, filled in part, cancelled; a second cancel is answered by silence."""
    executor = SimulatedExecutor(Costs())
    executor.place(order(state=OrderState.INTENT))
    thin = moment(view(ticker=None, bar=bar(CLOSE, (100, 100, 99, 100), 30.0)), now_ms=NOW + HOUR)
    answer = executor.settle(thin)
    assert [(f.volume, f.price) for f in answer.fills] == [(3.0, 99.9)]
    assert [o.why for o in answer.outcomes] == ["accepted"]
    executor.cancel(order())
    executor.cancel(order())
    assert [(o.state, o.why) for o in executor.settle(thin).outcomes] == [(OrderState.DONE, "cancelled")]
    assert executor.settle(thin) == Settlement()
    assert never() is False


def test_an_old_quote_does_not_fill_the_rest_of_an_order() -> None:
    """A bar gives 3 of 10; the quote of that candle's end says the same once more, a newer one is evidence."""
    executor = SimulatedExecutor(Costs())
    executor.place(order())
    old = quote(98.9, 99.0, NOW + HOUR)
    thin = moment(view(ticker=old, bar=bar(CLOSE, (100, 100, 99, 99), 30.0)), now_ms=NOW + HOUR)
    assert [f.volume for f in executor.settle(thin).fills] == [3.0]
    assert not executor.settle(moment(view(ticker=old, bar=None), now_ms=NOW + 2 * HOUR)).fills
    newer = view(ticker=replace(old, time_ms=NOW + HOUR + 1), bar=None)
    assert [f.volume for f in executor.settle(moment(newer, now_ms=NOW + 3 * HOUR)).fills] == [7.0]


def test_a_follow_up_adds_no_fills() -> None:
    """It brings answers only, however tempting its views are."""
    executor = SimulatedExecutor(Costs())
    executor.place(order())
    tempting = moment(view(ticker=None, bar=bar(CLOSE, (90, 90, 90, 90))), now_ms=NOW + HOUR)
    assert not executor.settle(replace(tempting, is_follow_up=True)).fills
    assert executor.settle(tempting).fills
    assert executor.settle(moment(view(market=market("BBB")))) == Settlement()


@pytest.mark.parametrize("kind", [OrderKind.EXIT, OrderKind.TAKER_ENTRY])
def test_a_taking_order_has_one_chance(kind: OrderKind) -> None:
    """The first evidence decides, a bar or a book; without any it waits."""
    limit = 98.0 if kind is OrderKind.EXIT else 102.0
    for seen, is_over in (
        (view(ticker=quote(at_ms=NOW + 1), bar=None), False),
        (view(ticker=None, bar=bar(CLOSE, volume=0.0)), True),
        (view(ticker=None, bar=None, book=OrderBook(NOW, (), ())), False),
        (view(ticker=None, bar=None, book=OrderBook(NOW + 1, (), ())), True),
    ):
        executor = SimulatedExecutor(Costs(), orders=(order(kind, 10.0, limit),))
        answer = executor.settle(moment(seen, now_ms=NOW + HOUR))
        assert not answer.fills
        assert bool(answer.outcomes) == is_over


def test_orders_read_back_go_on_where_they_were() -> None:
    """Half filled, triggered, asked to end, or only written: each goes on as the desk says."""
    saved = (order(filled=4.0), protection(order_id="LB1-000002", is_triggered=True),
             order(order_id="LB1-000003", is_cancelling=True),
             order(order_id="LB1-000004", state=OrderState.INTENT, limit=50.0))
    executor = SimulatedExecutor(Costs(), orders=saved)
    answer = executor.settle(moment(view(ticker=None, bar=bar(CLOSE, (99, 99, 99, 99))), now_ms=NOW + HOUR))
    assert [(f.order_id, f.volume, f.price) for f in answer.fills] == [
        ("LB1-000001", 6.0, 99.9), ("LB1-000002", 10.0, 94.05)]
    assert {(o.order_id, o.state) for o in answer.outcomes} == {
        ("LB1-000001", OrderState.DONE), ("LB1-000002", OrderState.DONE), ("LB1-000003", OrderState.DONE),
        ("LB1-000004", OrderState.OPEN)}


def test_an_order_that_was_to_be_cancelled_before_it_was_placed_is_never_placed() -> None:
    """Written, called off and then a crash: a candle far below its limit fills nothing."""
    executor = SimulatedExecutor(Costs(), orders=(order(state=OrderState.INTENT, is_cancelling=True),))
    answer = executor.settle(moment(view(ticker=None, bar=bar(CLOSE, (90, 90, 90, 90))), now_ms=NOW + HOUR))
    assert answer == Settlement((), (Outcome("LB1-000001", OrderState.DONE, "cancelled"),))


# ---- the line --------------------------------------------------------------------------------------------


def test_the_order_of_the_line() -> None:
    """Settle, write, cancel, place: the five statements and nothing else."""
    watched = Watched(SimulatedExecutor(Costs(), orders=(order(pair="BBBZAR", expires_ms=NOW),)))
    tape = Tape(watched.diary)
    at = desk(orders=(order(pair="BBBZAR", expires_ms=NOW),), next_order=2)
    when = moment(view(outlooks=(outlook(*ENTER),)), view(market=market("BBB"), ticker=None, outlooks=(), bar=None))
    report = trade_cycle(at, when, watched, tape, HOURLY)
    assert watched.diary == ["settle", "record", "cancel entry", "place entry"]
    assert tape.reports == [report]


def test_nothing_is_sent_that_could_not_be_written() -> None:
    """A recorder that fails stops the line before cancel and place."""
    watched = Watched(SimulatedExecutor(Costs()))
    tape = Tape(watched.diary, AuditBroken("disk full"))
    when = moment(view(outlooks=(outlook(*ENTER),)))
    with pytest.raises(AuditBroken):
        trade_moment(desk(), when, watched, tape, HOURLY)
    assert watched.diary == ["settle", "record"]


def test_follow_ups_end() -> None:
    """In real time there are none; a moment without cancels has none; one that cancels has at most three."""
    at = desk(orders=(order(expires_ms=NOW),), next_order=2)
    for trade, count in ((trade_now, 1), (trade_moment, 2)):
        executor = SimulatedExecutor(Costs(), orders=at.orders)
        reports = trade(at, moment(view(bar=None)), executor, Tape(), HOURLY)
        assert len(reports) == count
    assert len(trade_moment(desk(), moment(), SimulatedExecutor(Costs()), Tape(), HOURLY)) == 1

    late = tuple(order(order_id=f"LB1-90000{n}", pair=f"P{n}ZAR", expires_ms=NOW + n * FOLLOW_UP_MS) for n in range(6))
    reports = trade_moment(desk(orders=late), moment(), SimulatedExecutor(Costs(), orders=late), Tape(), HOURLY)
    assert [len(r.cancels) for r in reports] == [1, 1, 1, 1]  # one more would be due; that is left to the next moment
    assert [r.due for r in reports] == [(3600,), (), (), ()]


# ---- one row per market and candle, whatever happens -----------------------------------------------------


def test_rows_by_situation() -> None:
    """Doubted, missing, held elsewhere, working, judged, nothing to see."""
    at = desk(90_000.0, positions=(position(pair="HHHZAR"),),
              orders=(order(pair="WWWZAR"), protection(pair="HHHZAR", order_id="LB1-000002")), next_order=3)

    def of(base: str, **changes: object) -> object:
        return view(market=market(base), **{"outlooks": (outlook(pair=base + "ZAR"),), **changes})

    views = (of("AAA"), of("DDD", findings=(doubt(),)), of("EEE", outlooks=(outlook(findings=(doubt(Doubt.JUMP),)),)),
             of("HHH"), of("MMM", outlooks=()), of("WWW"), wanting("XXX"))
    report = run(at, *views)  # type: ignore[arg-type]
    assert [(d.pair[:3], d.action, d.code) for d in report.decisions] == [
        ("AAA", Action.WAIT, "no-signal"), ("DDD", Action.SKIP, "gap"), ("EEE", Action.SKIP, "jump"),
        ("HHH", Action.HOLD, "hold"), ("MMM", Action.SKIP, "stale_candles"), ("WWW", Action.WAIT, "working"),
        ("XXX", Action.ENTER, "enter")]
    assert all(d.opened_ms == CLOSE - HOUR and d.time_ms == NOW for d in report.decisions)
    assert "99.9" in report.decisions[5].why


def test_every_action_is_taken_and_its_code_told() -> None:
    """Those of the refusals and of the doubts stand in their own tables."""
    held = desk(90_000.0, positions=(position(),), orders=(protection(),))
    wish, exits = view(outlooks=(outlook(*ENTER),)), view(outlooks=(outlook(*LEAVE),))
    rows = [run(at, seen).decisions[0] for at, seen in (
        (desk(), wish), (held, exits), (held, view()), (desk(), view()), (desk(orders=(order(),)), view()),
        (desk(0.0), wish), (desk(), view(findings=(doubt(),))))]
    assert [(r.action, r.code) for r in rows] == [
        (Action.ENTER, "enter"), (Action.EXIT, "exit"), (Action.HOLD, "hold"), (Action.WAIT, "no-signal"),
        (Action.WAIT, "working"), (Action.REJECT, Refusal.LOSS_CAP.value), (Action.SKIP, "gap")]
    assert {r.action for r in rows} == set(Action)


def test_a_row_says_that_training_chose_cash() -> None:
    """A market without a signal then has nothing to wait for."""
    cash = replace(HOURLY, params=replace(HOURLY.params, is_cash=True))
    (row,) = run(desk(), settings=cash).decisions
    assert (row.action, row.code, row.why) == (Action.WAIT, "cash", CASH_WORDS)
    (row,) = run(desk(), view(outlooks=(outlook(*ENTER),)), settings=cash).decisions
    assert (row.action, row.code) == (Action.REJECT, Refusal.CASH.value)


def test_a_market_held_on_another_timeframe_is_not_called_an_entry() -> None:
    """The stop of the hourly position is no resting entry of the four-hour candles."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(),))
    report = run(at, view(outlooks=(outlook(), outlook(timeframe_s=14_400))), due=(3600, 14_400))
    assert [d.timeframe_s for d in report.decisions] == [3600, 14_400]
    assert "Entry" not in report.decisions[1].why


@st.composite
def situations(draw: st.DrawFn) -> tuple[Desk, Moment]:
    """Any desk with any markets in any condition."""
    bases = ("AAA", "BBB", "CCC")
    views, positions, orders = [], [], []
    due = draw(st.sampled_from(((), (3600,), (3600, 14_400))))
    for number, base in enumerate(bases):
        pair = base + "ZAR"
        read = tuple(
            outlook(draw(st.sampled_from((ENTER[0], LEAVE[0], setup(is_entry=False)))), pair=pair, timeframe_s=s,
                    regime=draw(st.sampled_from(list(Regime))), close=draw(st.sampled_from((90.0, 100.0, 110.0))),
                    findings=(doubt(),) if draw(st.booleans()) else ())
            for s in (3600, 14_400) if draw(st.booleans()))
        findings = (doubt(draw(st.sampled_from(list(Doubt)))),) if draw(st.booleans()) else ()
        ticker = draw(st.sampled_from((None, quote(), quote(at_ms=0), quote(0.0, 0.0), quote(94.0, 94.1))))
        status = draw(st.sampled_from(("ACTIVE", "POST_ONLY", "SUSPENDED")))
        if draw(st.booleans()):
            views.append(view(market=market(base, status=status), ticker=ticker, outlooks=read, findings=findings))
        if draw(st.booleans()):
            positions.append(position(draw(st.sampled_from((0.001, 10.0))), pair=pair,
                                      phase=draw(st.sampled_from(list(ExitPhase))),
                                      timeframe_s=draw(st.sampled_from((3600, 14_400)))))
            if draw(st.booleans()):
                orders.append(protection(pair=pair, order_id=f"LB1-1{number:05d}",
                                         is_triggered=draw(st.booleans()), stop=draw(st.sampled_from((95.0, 94.0)))))
        if draw(st.booleans()):
            orders.append(order(draw(st.sampled_from(ENTRY_KINDS)), pair=pair, order_id=f"LB1-2{number:05d}",
                                state=draw(st.sampled_from((OrderState.INTENT, OrderState.OPEN, OrderState.UNKNOWN))),
                                expires_ms=draw(st.sampled_from((0, NOW, NOW + 1)))))
    found = draw(st.sets(st.sampled_from(ALL_CAUSES), max_size=3))
    at = desk(draw(st.sampled_from((1_000.0, CASH))), positions=tuple(positions), orders=tuple(orders),
              causes=tuple(cause(k, until_ms=NOW + 1) for k in sorted(found, key=lambda k: k.name)),
              retries=(signal(),) if draw(st.booleans()) else ())
    conditions = Conditions(draw(st.booleans()), draw(st.booleans()), draw(st.booleans()), draw(st.booleans()),
                            is_reconciled=draw(st.booleans()))
    return at, moment(conditions=conditions, due=due) if not views else Moment(NOW, tuple(views), conditions, due)


@given(situations(), st.booleans())
@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_one_row_per_market_and_candle_in_every_situation(situation: tuple[Desk, Moment], takes: bool) -> None:
    """The counts add up; each row explains itself; and nothing that is sent is against the table of states."""
    at, when = situation
    report = decide(at, when, Settlement(), TAKES if takes else HOURLY)
    assert [(d.pair, d.timeframe_s) for d in report.decisions] == [(v.pair, s) for v in when.views for s in when.due]
    assert all(d.why and d.code for d in report.decisions)
    entries = [o for o in report.orders if o.side is Side.BUY]
    assert len([d for d in report.decisions if d.action is Action.ENTER]) >= len(
        [o for o in entries if o.kind is OrderKind.ENTRY])
    assert not entries or report.desk.state is TradingState.READY
    assert not report.orders or may_reduce(report.desk)
    assert not (when.conditions.is_killed and report.orders)
    for pair in {o.pair for o in report.desk.orders}:
        live = [o for o in report.desk.orders_of(pair, OrderKind.PROTECTION)]
        assert len(live) <= 1
        assert not (report.desk.orders_of(pair, OrderKind.EXIT) and live)
    assert len({o.order_id for o in report.desk.orders}) == len(report.desk.orders)
    assert decide(at, when, Settlement(), TAKES if takes else HOURLY) == report
    assert desk_from_json(desk_json(report.desk)) == report.desk


# ---- a random life ---------------------------------------------------------------------------------------

BASES = ("AAA", "BBB", "CCC")
STEPS = st.integers(-120, 120)
LIFE = replace(
    with_limits(risk_per_trade=0.02, daily_loss_cap=0.01, weekly_loss_cap=0.02, cooldown_hours=2.0, max_positions=2),
    schedule=replace(HOURLY.schedule, takes_after_timeout=True, entry_timeout_candles=2),
)


class Life(RuleBasedStateMachine):
    """Hours of random candles with a kill switch, lost networks, restarts and an owner; checked after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.has_kill_file = False
        self.kills_late = False
        self.conditions = Conditions()
        self.stage = Stage(LIFE, 20_000.0, is_killed=lambda: self.has_kill_file or self.kills_late)
        self.price = dict.fromkeys(BASES, 10_000)  # in ticks
        self.volumes: dict[str, Decimal] = {}
        self.ordered: dict[str, float] = {}
        self.ledger = Decimal(20_000)
        self.profit = 0.0

    def candle(self, base: str, data: st.DataObject) -> Play:
        """The next candle of one market, now and then with a gap, and what is read at its close."""
        opened = max(500, self.price[base] + data.draw(st.sampled_from((0, 0, 0, 20, -20, -900))))
        closed = max(500, opened + data.draw(STEPS))
        high = max(opened, closed) + data.draw(st.integers(0, 60))
        low = min(opened, closed) - data.draw(st.integers(0, 60))
        self.price[base] = closed
        wants = data.draw(st.sampled_from(((), ENTER, ENTER, LEAVE)))
        volume = data.draw(st.sampled_from((0.0, 0.05, 40.0, 400.0, 4_000.0)))
        atr = data.draw(st.sampled_from((0.3, 1.0)))
        return Play((opened / 100, high / 100, low / 100, closed / 100), volume, wants, atr)

    @rule(data=st.data())
    def an_hour(self, data: st.DataObject) -> None:
        """One candle in each market."""
        plays = {base: self.candle(base, data) for base in BASES}
        conditions = replace(self.conditions, is_killed=self.has_kill_file)
        before = self.stage.desk
        reports = self.stage.hours(plays, conditions=conditions)
        self.has_kill_file = self.has_kill_file or self.kills_late
        self.kills_late = False
        assert len(reports[0].decisions) == len(BASES)
        for report in reports:
            self.check(report, before)
            before = report.desk

    @rule(data=st.data())
    def a_few_hours(self, data: st.DataObject) -> None:
        """Deep water: several hours in a row, so that orders get old and positions large."""
        for _ in range(3):
            self.an_hour(data)

    @rule()
    def a_restart(self) -> None:
        """The program ends and begins again from what was written."""
        self.stage.restart()

    @rule()
    def a_kill_file(self) -> None:
        """The owner pulls the switch."""
        self.has_kill_file = True

    @rule()
    def a_kill_in_the_last_moment(self) -> None:
        """The file comes after the next decision has been taken."""
        self.kills_late = True

    @rule()
    def the_owner_lifts_everything(self) -> None:
        """The file is removed, the desk re-armed, halts lifted."""
        self.has_kill_file = self.kills_late = False
        at = clear_cause(self.stage.desk, *OWNER_CAUSES)
        self.stage.desk = replace(at, week_start_equity=equity(at))

    @precondition(lambda self: self.has_kill_file)
    @rule()
    def the_file_is_gone(self) -> None:
        """Without re-arming."""
        self.has_kill_file = False

    @rule(conditions=st.sampled_from((
        Conditions(), Conditions(), Conditions(has_network=False, is_reconciled=False), Conditions(skew_ms=5_000.0),
        Conditions(is_maintenance=True), Conditions(is_reconciled=False), Conditions(is_store_ok=False))))
    def the_line_changes(self, conditions: Conditions) -> None:
        """For better or worse."""
        self.conditions = conditions

    @rule(hours=st.integers(1, 200))
    def time_passes(self, hours: int) -> None:
        """Nothing is heard for a while."""
        self.stage.next_close += hours * HOUR_MS

    def check(self, report: CycleReport, before: Desk) -> None:
        """What must hold for every report."""
        at, limits = report.desk, LIFE.limits
        for done in report.settlement.fills:
            sign = 1 if done.side is Side.BUY else -1
            self.volumes[done.pair] = self.volumes.get(done.pair, Decimal(0)) + sign * decimal(done.volume)
            self.ledger -= sign * decimal(done.price) * decimal(done.volume) + decimal(done.fee_counter)
            self.ordered[done.order_id] -= done.volume
            assert self.ordered[done.order_id] >= -1e-9, "filled more than was ordered"
        self.profit += sum(t.profit for t in report.round_trips)
        entries = [o for o in report.orders if o.side is Side.BUY]
        if report.orders:
            assert may_reduce(at), "an order against the table of states"
            assert CauseKind.KILL not in {c.kind for c in at.causes}
        if entries:
            assert at.state is TradingState.READY
            assert worst_exposure(at) <= equity(at) * limits.max_exposure + 0.01
            assert len({p.pair for p in at.positions} | {o.pair for o in at.orders}) <= limits.max_positions
            for wanted in entries:
                assert worst_exposure(at, frozenset((wanted.pair,))) <= equity(at) * limits.max_asset_exposure + 0.01
        for wanted in report.orders:
            assert wanted.order_id not in self.ordered, "an id used twice"
            self.ordered[wanted.order_id] = wanted.volume
        for base in BASES:  # one that is still being cancelled counts: at the exchange it may be alive
            sales = [o for o in at.orders_of(base + "ZAR") if o.side is Side.SELL]
            assert len(sales) <= 1, "two sales of one position"
        for held in before.positions:
            now = at.position(held.pair)
            assert now is None or now.opened_ms != held.opened_ms or now.stop >= held.stop, "a stop was lowered"

    @invariant()
    def money_is_exact_and_never_borrowed(self) -> None:
        """The float cash is the ledger's, and both are not below zero."""
        assert self.stage.desk.cash >= 0
        assert abs(decimal(self.stage.desk.cash) - self.ledger) < Decimal("0.00000001")

    @invariant()
    def holdings_are_the_sum_of_fills(self) -> None:
        """Per market: bought less sold is what is held, dust included; never below zero."""
        at = self.stage.desk
        for base in BASES:
            pair = base + "ZAR"
            held = at.position(pair)
            owned = decimal(held.volume if held is not None else 0.0) + sum(decimal(v) for p, v in at.dust if p == pair)
            assert abs(owned - self.volumes.get(pair, Decimal(0))) < Decimal("0.00000001")
            assert owned >= 0

    @invariant()
    def profits_add_up_when_flat(self) -> None:
        """With nothing held the round trips have earned what the cash shows."""
        if not self.stage.desk.positions:
            assert self.profit == pytest.approx(self.stage.desk.cash - 20_000, abs=1e-6)

    @invariant()
    def the_exchange_and_the_desk_know_the_same_orders(self) -> None:
        """What lives there is what the desk thinks lives there."""
        expected = {o.order_id for o in self.stage.desk.orders if not o.is_cancelling}
        assert set(self.stage.executor.alive) == expected

    @invariant()
    def each_position_has_one_way_out(self) -> None:
        """At most one protection, never more for sale than is held; and one sale at least where orders may go out."""
        at, alive = self.stage.desk, self.stage.executor.alive.values()
        for base in BASES:
            sales = [o for o in alive if o.pair == base + "ZAR" and o.side is Side.SELL]
            held = at.position(base + "ZAR")
            assert sum(o.kind is OrderKind.PROTECTION for o in sales) <= 1
            assert len(sales) <= 1
            known = [at.order(o.order_id) for o in sales]
            assert sum(o.remaining for o in known if o is not None) <= (held.volume if held is not None else 0.0) + 1e-9
            is_free = may_reduce(at) and not self.stage.is_killed() and self.stage.tape.reports
            if held is not None and held.volume >= 0.01 and is_free and self.was_free():
                assert sales, "a position stands bare"

    def was_free(self) -> bool:
        """True if the last moment could send orders."""
        last, at = self.stage.tape.reports[-1].desk, self.stage.desk
        return may_reduce(last) and last.causes == at.causes


# Not made smaller when it fails: that takes minutes, and the seed repeats it.
Life.TestCase.settings = hypothesis_settings(
    max_examples=120, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
test_a_random_life = Life.TestCase


@given(st.lists(st.tuples(st.integers(-150, 150), st.sampled_from((0.05, 40.0, 400.0)),
                          st.sampled_from((0, 1, 2)), st.booleans()), min_size=5, max_size=40))
@hypothesis_settings(max_examples=40)
def test_a_restart_changes_nothing(hours: list[tuple[int, float, int, bool]]) -> None:
    """The same candles with and without restarts give the same orders, fills and desk, to the last bit."""
    steady, shaken = Stage(LIFE), Stage(LIFE)
    price = 10_000
    for step, volume, wish, restarts in hours:
        closed = max(1_000, price + step)
        prices = (price / 100, max(price, closed) / 100 + 0.3, min(price, closed) / 100 - 0.3, closed / 100)
        setups = ((), ENTER, LEAVE)[wish]
        price = closed
        for stage in (steady, shaken):
            stage.hour(prices, volume, setups)
        if restarts:
            shaken.restart()
    assert shaken.desk == steady.desk
    assert shaken.fills == steady.fills
    assert [r.orders for r in shaken.tape.reports] == [r.orders for r in steady.tape.reports]


def test_what_the_kill_switch_refuses_is_not_told_at_every_candle() -> None:
    """The switch itself was told once; a stop that cannot be raised meanwhile is no error of its own."""
    at = desk(90_000.0, positions=(position(),), orders=(protection(),), causes=(cause(CauseKind.KILL),))
    report = run(at, view(outlooks=(outlook(close=110.0),)))
    assert not [e for e in report.events if e.kind == "refused"]
    assert not report.cancels


# ---- sales that the exchange answers in its own way ------------------------------------------------------

SELLING = order(OrderKind.EXIT, 10.0, 97.9, order_id="LB1-000009", stop=97.9)


def leaving(refused: int = 0, **changes: object) -> Desk:
    """A desk that is selling its position of 10."""
    held = position(phase=ExitPhase.EXITING, exit_why="trend over", refused=refused)
    return desk(90_000.0, positions=(held,), orders=(SELLING,), next_order=10, **changes)


def refused(code: str = "ErrInsufficientBalance", of: Order = SELLING) -> Settlement:
    """The exchange refused the sale."""
    return Settlement((), (Outcome(of.order_id, OrderState.REJECTED, f"refused by the exchange, {code}", False, code),))


@pytest.mark.parametrize("code", ["ErrInsufficientBalance", "ErrInsufficientFunds"])
def test_a_sale_refused_for_want_of_coins_is_tried_once_with_less(code: str) -> None:
    """10 / 1.006 = 9.94035..., so 9.9403; then not again before the next decision, and once at each."""
    first = run(leaving(), settlement=refused(code), due=())
    assert [(o.kind, o.volume) for o in first.orders] == [(OrderKind.EXIT, 9.9403)]
    assert [(e.kind, e.level) for e in first.events] == [("refused", "error"), ("fee", "warning")]
    assert first.desk.base_fees == (PAIR,) and first.desk.positions[0].refused == 1
    second = run(first.desk, settlement=refused(code, first.orders[0]), due=())
    assert not second.orders and second.desk.positions[0].refused == 2
    assert [(e.kind, e.level) for e in second.events] == [("refused", "error")]
    quiet = run(second.desk, due=())
    assert not quiet.orders and not quiet.events
    decision = run(quiet.desk)
    assert [(o.kind, o.volume) for o in decision.orders] == [(OrderKind.EXIT, 9.9403)]
    third = run(decision.desk, settlement=refused(code, decision.orders[0]), due=())
    assert not third.orders and third.desk.positions[0].refused == 3


def test_a_sale_refused_for_another_reason_is_tried_once_more_as_it_is() -> None:
    first = run(leaving(), settlement=refused("ErrMarketUnavailable"), due=())
    assert [o.volume for o in first.orders] == [10.0] and first.desk.base_fees == ()
    second = run(first.desk, settlement=refused("ErrMarketUnavailable", first.orders[0]), due=())
    assert not second.orders


def test_a_sale_that_is_taken_forgets_the_refusals() -> None:
    for state in (OrderState.OPEN, OrderState.DONE):
        taken = Settlement((), (Outcome(SELLING.order_id, state, "accepted"),))
        assert run(leaving(refused=2), settlement=taken, due=()).desk.positions[0].refused == 0


def test_a_refused_stop_does_not_hold_up_the_sale_that_follows() -> None:
    """The stop is refused twice and waits for a decision; when the price is below it, the sale goes at once."""
    stop = protection(order_id="LB1-000009")
    at = desk(90_000.0, positions=(position(refused=1),), orders=(stop,), next_order=10)
    waiting = run(at, settlement=refused("ErrStopPriceTooHigh", stop), due=())
    assert not waiting.orders and waiting.desk.positions[0].refused == 2
    below = view(ticker=quote(94.0, 94.1))
    gone = run(waiting.desk, below, due=())
    assert [o.kind for o in gone.orders] == [OrderKind.EXIT]


def test_a_refused_purchase_is_told_and_teaches_nothing() -> None:
    buying = order(order_id="LB1-000009")
    report = run(desk(orders=(buying,)), settlement=refused(of=buying), due=())
    assert [(e.kind, e.level) for e in report.events] == [("refused", "warning")]
    assert not report.orders and report.desk.base_fees == () and not report.desk.orders


def test_a_fee_in_base_is_told_once_and_sales_keep_it_back_from_then_on() -> None:
    """5 of 10 are sold with 0.03 on top: 4.97 are left, of which 4.97 / 1.006 = 4.94035... can be sold: 4.9403."""
    part = fill(SELLING, 5.0, 99.9, fee_base=0.03)
    over = Outcome(SELLING.order_id, OrderState.DONE, "rest cancelled")
    report = run(leaving(), settlement=Settlement((part,), (over,)), due=())
    assert [e.kind for e in report.events] == ["exit", "fee"] and "not the bot's" not in report.events[1].text
    assert [(o.kind, o.volume) for o in report.orders] == [(OrderKind.EXIT, 4.9403)]
    again = fill(report.orders[0], 4.9403, 99.9, fee_base=0.02964180)
    last = run(report.desk, settlement=Settlement(
        (again,), (Outcome(report.orders[0].order_id, OrderState.DONE, "filled"),)), due=())
    assert "fee" not in [e.kind for e in last.events]
    # 4.97 - 4.9403 - 0.0296418 = 0.0000582 is left, too little to sell
    assert not last.desk.positions and last.desk.dust[0][1] == pytest.approx(0.0000582, abs=1e-9)


def test_a_sale_of_all_with_its_fee_on_top_is_booked_and_what_was_missing_is_told() -> None:
    report = run(leaving(), settlement=Settlement((fill(SELLING, 10.0, 99.9, fee_base=0.06),)), due=())
    assert not report.desk.positions and report.desk.cash == pytest.approx(90_999.0)
    fee = next(e for e in report.events if e.kind == "fee")
    assert fee.level == "warning" and "0.06 of it was not the bot's" in fee.text


def test_a_fee_in_base_that_comes_after_the_close_was_not_the_bots() -> None:
    """All is sold already: the 0.06 came out of the owner's coins, and later sales keep it back."""
    sale = order(OrderKind.EXIT, 10.0, 98.0)
    late = fill(sale, 0.0, 100.0, fee_base=0.06)
    report = run(desk(orders=(sale,)), settlement=Settlement((late,)), due=())
    assert report.desk.base_fees == (PAIR,) and report.desk.positions == ()
    (told,) = (e.text for e in report.events if e.kind == "fee")
    assert told == f"{PAIR}: {BASE_FEE_WORDS}; 0.06 of it was not the bot's"


def test_protection_keeps_the_fee_back_and_is_left_alone() -> None:
    """9.9403 of 10 rest; the next look changes nothing."""
    first = run(desk(90_000.0, positions=(position(),), base_fees=(PAIR,)), due=())
    assert [(o.kind, o.volume) for o in first.orders] == [(OrderKind.PROTECTION, 9.9403)]
    second = run(first.desk, due=())
    assert not second.orders and not second.cancels


def test_what_cannot_be_sold_with_its_fee_is_dust() -> None:
    """0.01 is the smallest order: 0.01005 is more, but 0.01005 / 1.006 is not."""
    left = position(0.01005)
    assert run(desk(positions=(left,)), due=()).desk.positions
    swept = run(desk(positions=(left,), base_fees=(PAIR,)), due=())
    assert not swept.desk.positions and swept.desk.dust == ((PAIR, 0.01005),)
