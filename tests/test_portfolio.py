"""PORTFOLIO: what we own after each fill, held against a ledger in exact decimals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from decimal import ROUND_CEILING, Decimal
from enum import Enum
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from desks import CASH, NOW, PAIR, T0, cause, decimal, desk, fee_of, fill, market, order, position, quote, view
from lunobiz import (
    CauseKind,
    DataError,
    Desk,
    ExitPhase,
    Fill,
    Order,
    OrderKind,
    OrderState,
    Regime,
    RoundTrip,
    Side,
    TradingState,
    book_fill,
    canonical,
    clear_cause,
    close_position,
    daily_profit,
    desk_from_json,
    desk_json,
    equity,
    exposure,
    mark_positions,
    market_value,
    put_order,
    put_position,
    reserved_cash,
    set_cause,
    unrealised,
)

STEP = Decimal("0.00000001")  # the finest step there is: fees have eight decimals
BUY = order(volume=10.0, limit=100.0)
SELL = order(OrderKind.EXIT, 10.0, 90.0, order_id="LB1-000002")


# ---- what a desk is worth --------------------------------------------------------------------------------


def test_worth_of_a_desk_by_hand() -> None:
    """10 units marked at 110 with a taker fee of 0.6 % bring 1,093.40."""
    held = position(10.0, 100.0, mark=110.0, exit_fee=0.006)
    at = desk(5_000.0, positions=(held,), day_start_equity=6_000.0)
    assert market_value(held) == pytest.approx(1_093.40)
    assert exposure(at) == 1_100.0
    assert equity(at) == pytest.approx(6_093.40)
    assert daily_profit(at) == pytest.approx(93.40)


def test_unrealised_counts_the_fees_of_both_sides() -> None:
    """Bought for 1,000 and a fee of 4, worth 1,093.40 now: 89.40; of nothing bought nothing is due."""
    held = position(10.0, 100.0, mark=110.0, exit_fee=0.006)
    assert held.fees == 4.0
    assert unrealised(held) == pytest.approx(89.40)
    assert unrealised(replace(held, bought=0.0, volume=0.0)) == 0.0


def test_reserved_cash_counts_what_buys_may_still_spend() -> None:
    """An open buy of 10 at 100 with 4 filled reserves 600 and the fee; a sale reserves nothing."""
    at = desk(orders=(replace(BUY, filled=4.0), SELL))
    assert reserved_cash(at, 0.006) == pytest.approx(603.6)
    assert reserved_cash(desk(), 0.006) == 0.0


@pytest.mark.parametrize(("bid", "marked"), [(105.0, 105.0), (0.0, 100.0), (None, 100.0)])
def test_positions_are_marked_at_the_newest_known_bid(bid: float | None, marked: float) -> None:
    """Without a quote, or without a bid in it, the last mark stays."""
    seen = view(ticker=None if bid is None else quote(bid, 106.0), market=market(taker_fee=0.01))
    other = position(1.0, pair="BBBZAR")
    after = mark_positions(desk(positions=(position(), other)), (seen,))
    assert after.positions[0].mark == marked
    assert after.positions[0].exit_fee == (0.01 if bid else 0.006)
    assert after.positions[1] == other


# ---- places on the desk ----------------------------------------------------------------------------------


def test_positions_and_orders_have_one_place_each_in_order() -> None:
    """Putting replaces; positions are in the order of their pairs, orders in the order of their ids."""
    a, b = position(1.0), position(1.0, pair="BBBZAR")
    at = put_position(put_position(put_position(desk(), b), a), replace(a, volume=2.0))
    assert [(p.pair, p.volume) for p in at.positions] == [(PAIR, 2.0), ("BBBZAR", 1.0)]
    at = put_order(put_order(put_order(at, SELL), BUY), replace(BUY, filled=1.0))
    assert [(o.order_id, o.filled) for o in at.orders] == [("LB1-000001", 1.0), ("LB1-000002", 0.0)]
    assert at.order("LB1-000002") == SELL
    assert at.order("LB1-000009") is None
    assert at.orders_of(PAIR, OrderKind.EXIT) == (SELL,)
    assert len(at.orders_of(PAIR)) == 2
    assert at.orders_of("BBBZAR") == ()


@pytest.mark.parametrize("state", list(OrderState))
def test_only_final_orders_leave_the_desk(state: OrderState) -> None:
    """DONE, REJECTED and NOT_PLACED are final; an order of unknown outcome stays."""
    is_final = state in (OrderState.DONE, OrderState.REJECTED, OrderState.NOT_PLACED)
    assert bool(put_order(desk(orders=(BUY,)), replace(BUY, state=state)).orders) != is_final


# ---- causes and states -----------------------------------------------------------------------------------

STATES = {
    CauseKind.BALANCE_DRIFT: TradingState.REDUCING,
    CauseKind.FOREIGN_ORDER: TradingState.REDUCING,
    CauseKind.MAINTENANCE: TradingState.REDUCING,
    CauseKind.DAILY_CAP: TradingState.COOLDOWN,
    CauseKind.UNKNOWN_ORDER: TradingState.UNCERTAIN,
    CauseKind.NO_NETWORK: TradingState.UNCERTAIN,
    CauseKind.CLOCK_SKEW: TradingState.UNCERTAIN,
    CauseKind.RESUMED: TradingState.UNCERTAIN,
    CauseKind.STORE_TROUBLE: TradingState.UNCERTAIN,
    CauseKind.WEEKLY_CAP: TradingState.HALTED,
    CauseKind.UNRESOLVED: TradingState.HALTED,
    CauseKind.KEY_REFUSED: TradingState.HALTED,
    CauseKind.DAMAGED_STORE: TradingState.HALTED,
    CauseKind.DOUBLE_USE: TradingState.HALTED,
    CauseKind.KILL: TradingState.KILLED,
}
SEVERITY = ["READY", "REDUCING", "COOLDOWN", "UNCERTAIN", "HALTED", "KILLED"]


@pytest.mark.parametrize("kind", list(CauseKind))
def test_each_cause_brings_its_state(kind: CauseKind) -> None:
    """The table of the states, one row per cause."""
    assert desk(causes=(cause(kind),)).state is STATES[kind]


@given(st.lists(st.sampled_from(list(CauseKind)), unique=True))
def test_the_most_severe_cause_wins(found: list[CauseKind]) -> None:
    """Whatever causes there are, in whatever order, the state is the worst of theirs; none is READY."""
    at = desk()
    for kind in found:
        at = set_cause(at, cause(kind))
    worst = max((SEVERITY.index(STATES[k].name) for k in found), default=0)
    assert at.state.name == SEVERITY[worst]


def test_a_cause_keeps_its_start_and_is_cleared_alone() -> None:
    """Setting it again changes nothing; clearing takes away only the kinds named."""
    first = cause(CauseKind.KILL, since_ms=T0)
    at = set_cause(set_cause(desk(), first), cause(CauseKind.KILL))
    assert at.causes == (first,)
    at = set_cause(at, cause(CauseKind.DAILY_CAP))
    assert [c.kind for c in clear_cause(at, CauseKind.DAILY_CAP, CauseKind.RESUMED).causes] == [CauseKind.KILL]


# ---- one fill --------------------------------------------------------------------------------------------


def test_a_buy_opens_a_position_with_its_orders_stop() -> None:
    """10 at 100 with a fee of 4 leaves 98,996 in cash; the order on the desk knows its fill."""
    at, trip = book_fill(desk(orders=(BUY,)), fill(BUY, 10.0, 100.0, fee_counter=4.0), BUY)
    held = at.position(PAIR)
    assert trip is None and held is not None
    assert (at.cash, at.fees_paid, at.orders[0].filled) == (98_996.0, 4.0, 10.0)
    assert (held.volume, held.entry, held.stop, held.stop_distance) == (10.0, 100.0, 95.0, 5.0)
    assert (held.strategy, held.regime, held.timeframe_s) == (BUY.strategy, BUY.regime, 3600)
    assert (held.best, held.mark, held.fees, held.opened_ms) == (100.0, 100.0, 4.0, NOW)
    assert held.phase is ExitPhase.NONE


def test_a_second_buy_averages_the_entry_and_keeps_the_stop() -> None:
    """5 at 100 and 5 at 110 are 10 at 105; stop and opening stay those of the first."""
    at, _ = book_fill(desk(), fill(BUY, 5.0, 100.0, fee_counter=2.0), BUY)
    later = replace(BUY, stop=101.0)
    at, _ = book_fill(at, fill(later, 5.0, 110.0, fee_counter=2.2, time_ms=NOW + 1), later)
    held = at.positions[0]
    assert (held.volume, held.entry, held.stop, held.opened_ms, held.fees) == (10.0, 105.0, 95.0, NOW, 4.2)


def test_a_sale_closes_into_a_round_trip_after_fees() -> None:
    """Bought 10 at 100 (fee 4), sold 4 at 110 (fee 2.64) and 6 at 120 (fee 4.32): profit 149.04."""
    at, _ = book_fill(desk(), fill(BUY, 10.0, 100.0, fee_counter=4.0), BUY)
    at, none = book_fill(at, fill(SELL, 4.0, 110.0, fee_counter=2.64), SELL)
    assert none is None and at.positions[0].volume == 6.0
    at, trip = book_fill(at, fill(SELL, 6.0, 120.0, fee_counter=4.32, time_ms=NOW + 5), SELL)
    assert trip is not None and at.positions == () and at.dust == ()
    assert trip.profit == pytest.approx(149.04)
    assert (trip.volume, trip.entry, trip.exit, trip.reason) == (10.0, 100.0, 116.0, "exit")
    assert (trip.opened_ms, trip.closed_ms) == (NOW, NOW + 5)
    assert trip.fees == pytest.approx(10.96)
    assert at.cash == pytest.approx(CASH + 149.04)
    assert at.closings == ((PAIR, NOW + 5),)


def test_the_reason_to_leave_is_kept() -> None:
    """A position that already knows why it leaves keeps that; otherwise the order's kind is the reason."""
    held = position(exit_why="mean reached")
    _, trip = book_fill(desk(positions=(held,)), fill(SELL, 10.0, 100.0), SELL)
    assert trip is not None and trip.reason == "mean reached"
    stop = order(OrderKind.PROTECTION, 10.0, 94.0)
    _, trip = book_fill(desk(positions=(position(),)), fill(stop, 10.0, 95.0), stop)
    assert trip is not None and trip.reason == "protection"


@pytest.mark.parametrize("held", [(), (position(3.0),), (position(10.0, pair="BBBZAR"),)])
def test_a_sale_of_more_than_is_held_is_never_booked(held: tuple[object, ...]) -> None:
    """No short sale, whatever the exchange is said to have done."""
    with pytest.raises(ValueError, match="more than is held"):
        book_fill(desk(positions=held), fill(SELL, 3.01, 100.0), SELL)


def test_a_fee_in_base_beyond_the_position_came_out_of_other_coins() -> None:
    """3 units are sold at 100 with a fee of 0.01 units on top: 300 come in, a fee worth 1 counts, nothing is held."""
    at, trip = book_fill(desk(positions=(position(3.0),)), fill(SELL, 3.0, 100.0, fee_base=0.01), SELL)
    assert at.cash == 100_300.0 and not at.positions and not at.dust
    assert trip is not None and trip.volume == 3.0 and trip.exit == 100.0
    assert trip.profit == pytest.approx(-1.2 - 1.0)  # bought at 100 for a fee of 0.4 %, 1.20, and sold for 1.00


def test_a_fill_beyond_its_orders_volume_is_never_booked() -> None:
    """Fills never exceed what was ordered; a poisoned answer must not become a position."""
    with pytest.raises(ValueError):
        book_fill(desk(orders=(BUY,)), fill(BUY, 100.0, 100.0), BUY)


def test_what_is_left_at_the_close_is_dust() -> None:
    """It is listed, counts for nothing, and the loss of it is in the round trip."""
    held = position(0.005, 100.0, sold=9.995, exit_value=999.5, bought=10.0, entry_value=1_000.0, fees=0.0)
    at, trip = close_position(desk(positions=(held,)), held, NOW)
    assert at.dust == ((PAIR, 0.005),)
    assert (equity(at), exposure(at), at.positions) == (CASH, 0.0, ())
    assert trip.profit == pytest.approx(-0.5)


def test_dust_that_never_was_sold_is_a_round_trip_without_an_exit() -> None:
    """A position closed before any sale has lost all it cost."""
    at, trip = close_position(desk(positions=(position(0.005),)), position(0.005), NOW)
    assert (trip.exit, trip.volume) == (0.0, 0.0)
    assert trip.profit == pytest.approx(-0.502)
    assert at.closings == ((PAIR, NOW),)


def test_a_fee_in_base_is_counted_once() -> None:
    """10 bought at 100 with 0.04 kept as fee, 9.96 sold at 100: the round trip loses just the fee, 4."""
    at, _ = book_fill(desk(), fill(BUY, 10.0, 100.0, fee_base=0.04), BUY)
    assert at.positions[0].volume == pytest.approx(9.96)
    at, trip = book_fill(at, fill(SELL, 9.96, 100.0), SELL)
    assert trip is not None
    assert at.cash == pytest.approx(CASH - 4.0)
    assert trip.profit == pytest.approx(-4.0)


# ---- many fills, against an exact ledger -----------------------------------------------------------------


@dataclass
class Ledger:
    """Cash and coins in exact decimals; it knows nothing of positions."""

    cash: Decimal = Decimal("100000")
    coins: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)

    def book(self, side: Side, price: Decimal, volume: Decimal, fee_base: Decimal, fee_counter: Decimal) -> None:
        """The identity of every fill: money one way, coins the other, fees from whichever they are taken."""
        sign = 1 if side is Side.BUY else -1
        self.cash -= sign * price * volume + fee_counter
        self.coins += sign * volume - fee_base
        self.fees += fee_counter + fee_base * price


Drawn = tuple[int, int, bool, bool]  # price in ticks, volume in lots, is a buy, has its fee in base


def play(drawn: list[Drawn], check: Callable[[Desk, Ledger], None]) -> tuple[Desk, Ledger, list[RoundTrip]]:
    """Book what can be booked of these fills on a desk and on a ledger, and sell the rest at the end."""
    at, ledger, trips = desk(), Ledger(), []
    lot = Decimal("0.0001")
    for number, (ticks, lots, is_buy, in_base) in enumerate([*drawn, (10_000, 10**9, False, False)]):
        price, volume = Decimal(ticks) / 100, lots * lot
        if is_buy:
            volume = min(volume, ledger.cash / (price * Decimal("1.01")) // lot * lot)
        elif in_base:
            volume = min(volume, ledger.coins / Decimal("1.01") // lot * lot)
        elif number == len(drawn):
            volume = ledger.coins
        else:
            volume = min(volume, ledger.coins // lot * lot)
        if volume <= 0:
            continue
        rate = Decimal("0.004") if is_buy else Decimal("0.006")
        fee_base = (volume * rate).quantize(STEP, rounding=ROUND_CEILING) if in_base else Decimal(0)
        fee_counter = Decimal(0) if in_base else fee_of(price, volume, rate)
        source = order(OrderKind.ENTRY if is_buy else OrderKind.EXIT, float(volume), order_id=f"LB1-{number:06d}")
        done = Fill(f"F{number}", source.order_id, PAIR, source.side, source.kind, NOW + number, float(price),
                    float(volume), float(fee_base), float(fee_counter), is_buy, "")
        at, trip = book_fill(put_order(at, source), done, source)
        at = put_order(at, replace(source, state=OrderState.DONE))
        ledger.book(source.side, price, volume, fee_base, fee_counter)
        trips += [trip] if trip is not None else []
        check(at, ledger)
    return at, ledger, trips


def agree(at: Desk, ledger: Ledger) -> None:
    """The float book is within one step of the ledger, and neither is below zero."""
    held = at.position(PAIR)
    coins = decimal(held.volume if held is not None else 0.0) + sum(decimal(v) for _, v in at.dust)
    assert abs(decimal(at.cash) - ledger.cash) < STEP
    assert abs(coins - ledger.coins) < STEP
    assert abs(decimal(at.fees_paid) - ledger.fees) < STEP
    assert at.cash >= -1e-8 and coins >= 0


FILLS = st.lists(
    st.tuples(st.integers(100, 100_000), st.integers(1, 200_000), st.booleans(), st.booleans()), max_size=40
)


@given(FILLS)
@hypothesis_settings(max_examples=150)
def test_the_book_and_the_ledger_agree_after_every_fill(drawn: list[Drawn]) -> None:
    """Random prices, volumes, sides and fees, in base or in counter."""
    play(drawn, agree)


@pytest.mark.parametrize("seed", range(3))
def test_the_book_and_the_ledger_agree_over_a_long_life(seed: int) -> None:
    """Three thousand fills do not let the floats drift by a step."""
    chance = random.Random(seed)
    drawn = [(chance.randint(100, 100_000), chance.randint(1, 50_000), chance.random() < 0.5, chance.random() < 0.3)
             for _ in range(3_000)]
    _, ledger, trips = play(drawn, agree)
    assert trips and ledger.fees > 0


@given(FILLS)
@hypothesis_settings(max_examples=150)
def test_profits_of_round_trips_add_up_to_the_change_of_equity(drawn: list[Drawn]) -> None:
    """Flat at the end, with fees in base or in counter: what the trips say was earned is what the cash shows."""
    at, ledger, trips = play(drawn, lambda at, ledger: None)
    assert at.positions == ()
    assert sum(t.profit for t in trips) == pytest.approx(float(ledger.cash) - CASH, abs=1e-6)
    assert equity(at) == at.cash


@given(FILLS)
@hypothesis_settings(max_examples=60)
def test_profits_add_up_with_fees_in_counter(drawn: list[Drawn]) -> None:
    """The same with every fee in counter, as Luno takes them from sales."""
    _, ledger, trips = play([(p, v, s, False) for p, v, s, _ in drawn], lambda at, ledger: None)
    assert sum(t.profit for t in trips) == pytest.approx(float(ledger.cash) - CASH, abs=1e-6)


# ---- the desk as text ------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def values(hint: object) -> st.SearchStrategy[object]:
    """Random values of a type as the desk's fields name it, finite numbers only."""
    if hint is float:
        return FINITE
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            return st.lists(values(inner[0]), max_size=3).map(tuple)
        return st.tuples(*(values(i) for i in inner))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        hints = get_type_hints(hint)
        return st.builds(hint, **{f.name: values(hints[f.name]) for f in fields(hint)})
    return {int: st.integers(-(2**60), 2**60), str: st.text(max_size=8), bool: st.booleans()}[hint]  # type: ignore[index]


@given(values(Desk))
@hypothesis_settings(max_examples=100)
def test_any_desk_survives_as_text(at: Desk) -> None:
    """What is written is what is read, to the last bit, and equal desks give equal bytes."""
    text = desk_json(at)
    assert desk_from_json(text) == at
    assert desk_json(desk_from_json(text)) == text


def test_enums_are_written_by_name_and_keys_sorted() -> None:
    """The text has no spaces, and a number that is none becomes null."""
    assert canonical({"b": (Side.BUY, 1.5), "a": [Regime.WILD, float("inf"), None]}) == \
        '{"a":["WILD",null,null],"b":["BUY",1.5]}'


@pytest.mark.parametrize("text", [
    "", "nonsense", "[]", "5", "null", "{}", '{"cash":1}', "[" * 50,
    desk_json(Desk(1.0)).replace('"positions":[]', '"positions":[{}]'),
    desk_json(Desk(1.0)).replace('"positions":[]', '"positions":5'),
    desk_json(Desk(1.0)).replace('"dust":[]', '"dust":[1]'),
    desk_json(Desk(1.0)).replace('"orders":[]', '"orders":[7]'),
    desk_json(Desk(1.0)).replace('"causes":[]', '"causes":["x"]'),
    desk_json(Desk(1.0)).replace('"cash":1.0', '"cash":1.0,"more":2'),
    desk_json(replace(desk(), causes=(cause(CauseKind.KILL),))).replace("KILL", "FUN"),
])
def test_what_is_no_desk_is_named_so(text: str) -> None:
    """DataError, never another error, and never a desk."""
    with pytest.raises(DataError, match="saved desk"):
        desk_from_json(text)


@pytest.mark.parametrize("text", [
    desk_json(Desk(1.0)).replace('"cash":1.0', '"cash":null'),
    desk_json(Desk(1.0)).replace('"cash":1.0', '"cash":"1"'),
    desk_json(Desk(1.0)).replace('"cash":1.0', '"cash":NaN'),
    desk_json(Desk(float("inf"))),
])
def test_a_desk_without_a_number_for_its_cash_is_not_read(text: str) -> None:
    """A damaged desk must not come back as one that fails in the middle of a cycle."""
    with pytest.raises(DataError, match="saved desk"):
        desk_from_json(text)


def test_the_text_is_one_json_object() -> None:
    """Anybody can read it."""
    row = json.loads(desk_json(desk(positions=(position(),), orders=(BUY,))))
    assert row["positions"][0]["phase"] == "NONE"
    assert row["orders"][0]["state"] == "OPEN"
    assert isinstance(BUY, Order)
