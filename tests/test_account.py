"""ACCOUNT: what closing all would bring, where each order is watched, whose coins are whose. Numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from desks import HOUR, NOW, PAIR, cause, desk, market, order, position, protection, signal
from lunobiz import (
    DASH,
    CauseKind,
    ExitPhase,
    Holding,
    Mode,
    OrderKind,
    OrderState,
    Row,
    Settings,
    closing_offer,
    coin_rows,
    dust_rows,
    equity,
    order_rows,
    owner_act,
)

D = Decimal
BBB = "BBBZAR"
SLIP = 0.001  # the usual slippage of a taking fill; a stop is thought to slip twice as far
MARKETS = {PAIR: market(), BBB: market("BBB", price_scale=0, volume_scale=6)}
SETTINGS = Settings()  # a sale goes 2 % below the bid at most
ENTRY = order(order_id="LB1-000007", pair=BBB, limit=1_250_000.0, volume=0.01)
MODES = [Mode.PAPER, Mode.DEMO, Mode.REPLAY, Mode.LIVE]


# ---- what closing all would bring ----------------------------------------------------------------------------


def test_one_position_in_full() -> None:
    """10 AAA at 99.90 are 999.00; 0.6 % of that is 5.994, so 993.006 comes in. They cost 1,000.00 and a fee of 0.4 %,
    4.00: 993.006 - 1,004.00 = -10.994. At worst, 2 % lower: 993.006 x 0.98 = 973.14588.
    """
    offer = closing_offer(desk(positions=(position(mark=99.9),)), MARKETS, SETTINGS)
    assert (offer.marks, offer.problem) == ((PAIR,), "")
    assert offer.lines == (
        "•  AAA/ZAR   10.0000 at bid 99.90 = R993.01 after R5.99 fee   (-R10.99)",
        "About R993.01 comes in. Each sale takes the bids down to 2.0 % below the best one, so at worst R973.15; what"
        " is left over is offered again.",
    )


def test_a_position_that_was_sold_in_part_bears_its_share() -> None:
    """4 of 10 are left: at 120.00 they are 480.00, less 2.88 is 477.12. Their share of 1,000.00 and of the fee of
    4.00 is 400.00 + 1.60: a gain of 75.52.
    """
    rest = position(volume=4.0, mark=120.0, bought=10.0, entry_value=1000.0, fees=4.0)
    line = closing_offer(desk(positions=(rest,)), MARKETS, SETTINGS).lines[0]
    assert line.endswith("4.0000 at bid 120.00 = R477.12 after R2.88 fee   (+R75.52)")


def test_two_positions_and_an_entry_add_up() -> None:
    """999.00 x 0.994 = 993.006 and 0.5 x 2,000 x 0.994 = 994.00 are 1,987.006; x 0.98 is 1,947.26588."""
    other = position(0.5, 2000.0, pair=BBB)
    offer = closing_offer(desk(positions=(position(mark=99.9), other), orders=(ENTRY,)), MARKETS, SETTINGS)
    assert offer.marks == (PAIR, BBB, "LB1-000007")
    assert [line.split("   ")[0] for line in offer.lines[:3]] == ["•  AAA/ZAR", "•  BBB/ZAR", "•  BBB/ZAR"]
    assert "entry order at 1,250,000 is cancelled" in offer.lines[2]
    assert "About R1,987.01 comes in." in offer.lines[3] and "at worst R1,947.27;" in offer.lines[3]


def test_the_worst_price_follows_the_setting_and_the_counter_its_sign() -> None:
    """5 % below: 993.006 x 0.95 = 943.3557; in USDT with the word behind."""
    coin = market(counter="USDT", pair="AAAUSDT")
    settings = replace(SETTINGS, costs=replace(SETTINGS.costs, exit_bound=0.05),
                       schedule=replace(SETTINGS.schedule, counter="USDT"))
    held = position(mark=99.9, pair="AAAUSDT")
    lines = closing_offer(desk(positions=(held,)), {"AAAUSDT": coin}, settings).lines
    assert "= 993.01 USDT after 5.99 USDT fee   (-10.99 USDT)" in lines[0]
    assert "5.0 % below" in lines[1] and "at worst 943.36 USDT;" in lines[1]


def test_entries_alone_bring_nothing_in() -> None:
    """Resting ones and those that take; a protection without a position is none of them."""
    taking = order(OrderKind.TAKER_ENTRY, order_id="LB1-000003", limit=100.2)
    offer = closing_offer(desk(orders=(ENTRY, taking, protection(order_id="LB1-000001"))), MARKETS, SETTINGS)
    assert offer.marks == ("LB1-000003", "LB1-000007")
    assert offer.lines == ("•  BBB/ZAR   entry order at 1,250,000 is cancelled",
                           "•  AAA/ZAR   entry order at 100.20 is cancelled")


def test_an_entry_of_a_market_that_is_no_longer_known_is_told_by_its_code() -> None:
    lines = closing_offer(desk(orders=(ENTRY,)), {}, SETTINGS).lines
    assert lines == (f"•  {BBB}   entry order at 1,250,000 is cancelled",)


@pytest.mark.parametrize("phase", [ExitPhase.CANCELLING, ExitPhase.EXITING])
def test_what_is_being_left_already_is_left_out(phase: ExitPhase) -> None:
    leaving = position(phase=phase, exit_why="trend over")
    offer = closing_offer(desk(positions=(leaving,), orders=(order(OrderKind.EXIT, limit=97.9),)), MARKETS, SETTINGS)
    assert (offer.marks, offer.lines) == ((), ())
    assert offer.problem == ("There is nothing to close: no open position that is not being left already, and no entry"
                             " order.")
    both = closing_offer(desk(positions=(leaving, position(1.0, 2000.0, pair=BBB))), MARKETS, SETTINGS)
    assert both.marks == (BBB,) and len(both.lines) == 2
    assert "About R1,988.00 comes in." in both.lines[1]  # 2,000 x 0.994


def test_with_nothing_open_there_is_nothing_to_close() -> None:
    offer = closing_offer(desk(), MARKETS, SETTINGS)
    assert (offer.marks, offer.lines) == ((), ()) and offer.problem.startswith("There is nothing to close")


ALLOWED = (CauseKind.BALANCE_DRIFT, CauseKind.FOREIGN_ORDER, CauseKind.MAINTENANCE, CauseKind.DAILY_CAP,
           CauseKind.WEEKLY_CAP)


@pytest.mark.parametrize("kind", CauseKind)
def test_a_state_that_lets_no_sale_out_says_so(kind: CauseKind) -> None:
    """Reducing, cooling down and the weekly cap let sales out; uncertain, killed and every other halt do not."""
    offer = closing_offer(desk(positions=(position(),), causes=(cause(kind),)), MARKETS, SETTINGS)
    assert bool(offer.problem) is (kind not in ALLOWED)
    assert bool(offer.marks) is bool(offer.lines) is (kind in ALLOWED)
    if offer.problem:
        assert offer.problem == (f"Not now: the state is {kind.state.name} ({kind.words}), and it lets no sale out.")


def test_the_weekly_cap_lets_out_only_by_itself() -> None:
    """With it the line may be down as well: then nothing can be sold, and both reasons are told."""
    causes = (cause(CauseKind.WEEKLY_CAP), cause(CauseKind.NO_NETWORK))
    problem = closing_offer(desk(positions=(position(),), causes=causes), MARKETS, SETTINGS).problem
    assert "HALTED (weekly loss cap, no network)" in problem
    lesser = tuple(map(cause, (CauseKind.WEEKLY_CAP, CauseKind.DAILY_CAP, CauseKind.BALANCE_DRIFT)))
    assert not closing_offer(desk(positions=(position(),), causes=lesser), MARKETS, SETTINGS).problem


def test_the_same_desk_gives_the_same_marks_in_any_order() -> None:
    """What was shown is compared with what is there by them."""
    first, second = position(), position(1.0, pair=BBB)
    offers = {closing_offer(desk(positions=held, orders=(ENTRY,)), MARKETS, SETTINGS).marks
              for held in ((first, second), (second, first))}
    assert offers == {(PAIR, BBB, "LB1-000007")}


def test_the_act_touches_what_was_offered_and_nothing_else() -> None:
    leaving = position(1.0, pair=BBB, phase=ExitPhase.EXITING, exit_why="trend over", refused=2)
    before = desk(positions=(position(refused=1), leaving), orders=(protection(), ENTRY), retries=(signal(),))
    after = owner_act(before, "close_all")
    assert after.positions == (
        replace(before.positions[0], phase=ExitPhase.CANCELLING, refused=0, exit_why="closed by the owner"), leaving)
    assert after.orders == (protection(), replace(ENTRY, expires_ms=1))
    assert after.retries == ()  # a signal whose order is just going off is not taken up either
    assert replace(after, positions=before.positions, orders=before.orders, retries=before.retries) == before
    assert equity(after) == equity(before)
    assert owner_act(after, "close_all") == after


# ---- what rests where ----------------------------------------------------------------------------------------


def one(rows: tuple[Row, ...]) -> Row:
    """The only row."""
    assert len(rows) == 1, rows
    return rows[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("changes", "live", "state"), [
    ({"state": OrderState.OPEN}, "At Luno", "Resting"),
    ({"state": OrderState.INTENT}, "In the program", "Being sent"),
    ({"state": OrderState.UNKNOWN}, "Not certain", "Outcome unknown"),
    ({"state": OrderState.OPEN, "is_cancelling": True}, "At Luno", "Being cancelled"),
])
def test_where_an_order_is_watched(mode: Mode, changes: dict[str, object], live: str, state: str) -> None:
    """Only LIVE has an exchange; what is not certain there warns."""
    at = desk(orders=(replace(order(), **changes),))  # type: ignore[arg-type]
    row = one(order_rows(at, MARKETS, mode, NOW, SLIP))
    assert row.cells[8:10] == (state, live if mode is Mode.LIVE else "Simulated")
    assert row.tone == ("warn" if mode is Mode.LIVE and live == "Not certain" else "")


def test_an_entry_in_full() -> None:
    """It is 2 h 14 min old; its own stop is none that waits anywhere yet.

    The 7.5 not bought yet: 7.5 x 99.90 x 1.004 = 752.247 would be paid, 7.5 x 95 x 0.998 x 0.994 = 706.8086 come back.
    """
    at = desk(orders=(order(volume=10.0, filled=2.5, created_ms=NOW - 2 * HOUR - 14 * 60_000),))
    row = one(order_rows(at, MARKETS, Mode.PAPER, NOW, SLIP))
    assert row == Row("LB1-000001", ("AAA/ZAR", "Entry", "BUY", "99.90", DASH, "10.0000", "2.5000", "-45.44",
                                     "Resting", "Simulated", "2h 14m"), "")
    taker = desk(orders=(order(OrderKind.TAKER_ENTRY, volume=7.5),))  # 7.5 x 99.90 x 0.006 = 4.4955 of fee, not 2.997
    assert one(order_rows(taker, MARKETS, Mode.PAPER, NOW, SLIP)).cells[7] == "-46.94"
    assert one(order_rows(taker, MARKETS, Mode.PAPER, NOW, 0.0)).cells[7] == "-45.52"  # 708.225 come back


@pytest.mark.parametrize(("is_triggered", "state"), [(False, "Waits for its stop"), (True, "Stop reached")])
def test_a_protection_has_its_stop_and_says_whether_it_was_reached(is_triggered: bool, state: str) -> None:
    """95.00 is the stop, 1 % below it the limit: 94.05.

    The 10 cost 1,000 and 4 of fee; 10 x 95 x 0.998 x 0.994 = 942.4114 come back.
    """
    at = desk(positions=(position(),), orders=(protection(is_triggered=is_triggered, filled=1.0),))
    row = one(order_rows(at, MARKETS, Mode.LIVE, NOW, SLIP))
    assert row.cells == ("AAA/ZAR", "Stop", "SELL", "94.05", "95.00", "10.0000", "1.0000", "-61.59", state, "At Luno",
                         "0s")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resting", [
    (), (protection(state=OrderState.INTENT),), (protection(state=OrderState.UNKNOWN),), (order(OrderKind.EXIT),),
    (protection(pair=BBB),),
])
def test_a_stop_that_does_not_rest_comes_first_and_warns(mode: Mode, resting: tuple[object, ...]) -> None:
    """A protection that is on its way or of which nothing is known watches nothing."""
    held = position(opened_ms=NOW - 38 * 60_000)
    at = replace(desk(positions=(held,)), orders=(ENTRY, *resting))  # type: ignore[arg-type]
    rows = order_rows(at, MARKETS, mode, NOW, SLIP)
    assert rows[0] == Row("stop of AAAZAR", ("AAA/ZAR", "Stop", "SELL", DASH, "95.00", "10.0000", DASH, "-61.59",
                                             "Does not rest", "Only in the program", "38m"), "warn")
    assert [r.key for r in rows[1:]] == [o.order_id for o in at.orders] and len(rows) == 2 + len(resting)


def test_a_market_that_is_not_known_is_no_row_and_no_error() -> None:
    at = desk(positions=(position(pair="ODDZAR"),), orders=(order(pair="ODDZAR"),))
    assert order_rows(at, MARKETS, Mode.LIVE, NOW, SLIP) == ()
    assert order_rows(desk(), MARKETS, Mode.LIVE, NOW, SLIP) == ()


# ---- whose coins are whose -----------------------------------------------------------------------------------


def test_coins_in_columns_to_the_last_decimal() -> None:
    """0.1 + 0.2 is 0.3 here, and 1E-8 is written out; zeros behind the point are not, thousands are set apart."""
    rows = coin_rows((Holding("XBT", D("0.10000000"), D("0.20000000"), D(0)),
                      Holding("ZAR", D("-12.5"), D("1000"), D("0")),
                      Holding("ETH", D(0), D("1E+2"), D("-0.00000001")),
                      Holding("ADA", D("0E-8"), D("1E-8"), D("0.00"))))
    assert [(r.key, r.cells, r.tone) for r in rows] == [
        ("XBT", ("XBT", "0.1", "0.2", "0", "0.3"), ""),
        ("ZAR", ("ZAR", "-12.5", "1,000", "0", "987.5"), ""),
        ("ETH", ("ETH", "0", "100", "-0.00000001", "99.99999999"), "warn"),
        ("ADA", ("ADA", "0", "0.00000001", "0", "0.00000001"), ""),
    ]


def test_what_is_too_small_to_sell_is_listed_apart() -> None:
    held = desk(dust=((PAIR, 0.0042), (BBB, 0.0), ("GONEZAR", 1.0)))
    assert [row.cells for row in dust_rows(held, MARKETS)] == [("AAA dust", "0.0042", "—", "—", "—")]
    assert dust_rows(desk(), MARKETS) == ()


def test_a_coin_without_any_is_left_out() -> None:
    assert coin_rows((Holding("XBT", D(0), D("0.0"), D("0E-18")),)) == () == coin_rows(())
    # two that cancel out are still told
    row = one(coin_rows((Holding("XBT", D("0.5"), D(0), D("-0.5")),)))
    assert (row.cells, row.tone) == (("XBT", "0.5", "0", "-0.5", "0"), "warn")
