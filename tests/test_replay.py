"""REPLAY: inputs as text that gives them back to the last bit, and what a session keeps of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import lunobiz
from desks import (
    CASH,
    HOUR,
    NOW,
    PAIR,
    cause,
    desk,
    fill,
    market,
    moment,
    order,
    outlook,
    position,
    protection,
    quote,
    setup,
    signal,
    view,
)
from lunobiz import (
    CauseKind,
    Conditions,
    DataError,
    Desk,
    Doubt,
    Finding,
    InputLog,
    Moment,
    OrderBook,
    OrderKind,
    OrderState,
    Regime,
    Settings,
    Settlement,
    Side,
    StartRow,
    block_entries,
    moment_from_json,
    moment_from_row,
    moment_json,
    moment_row,
    settlement_from_row,
    settlement_row,
    trade_cycle,
)

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
PLAIN = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    """Any moment: quotes missing or odd, numbers unknown or infinite, books, doubts and correlations."""
    views = []
    for base in draw(st.lists(st.sampled_from(("AAA", "BBB", "CCC")), unique=True, max_size=3)):
        pair = base + "ZAR"
        book = OrderBook(draw(st.integers(0, 2**50)), ((draw(PLAIN), 1.0),), draw(st.sampled_from(((), ((2.0, 3.0),)))))
        reading = outlook(
            setup(strength=draw(NUMBERS), numbers=(("z", draw(NUMBERS)),)), pair=pair, atr=draw(NUMBERS),
            regime=draw(st.sampled_from(Regime)), findings=(Finding(Doubt.GAP, draw(st.text(max_size=9))),),
        )  # fmt: skip
        views.append(view(
            market=market(base, status=draw(st.sampled_from(("ACTIVE", "POST_ONLY")))),
            ticker=draw(st.sampled_from((None, quote(pair=pair), quote(draw(PLAIN), pair=pair)))),
            bar=draw(st.sampled_from((None, lunobiz.Candle(NOW, -0.0, 0.0, 1e-300, 1e300, draw(PLAIN))))),
            outlooks=draw(st.sampled_from(((), (reading,), (reading, reading)))),
            book=draw(st.sampled_from((None, book))),
            findings=draw(st.sampled_from(((), (Finding(Doubt.STALE_QUOTE, "15 s old"),)))),
            correlated=draw(st.sampled_from(((), ("BBBZAR",)))),
        ))  # fmt: skip
    line = Conditions(is_killed=draw(st.booleans()), skew_ms=draw(NUMBERS), reconcile_age_ms=math.inf)
    due = draw(st.sampled_from(((), (3600,), (3600, 14400))))
    return Moment(draw(st.integers(0, 2**50)), tuple(views), line, due, draw(st.booleans()))


@hypothesis_settings(max_examples=150, deadline=None)
@given(first=moments(), second=moments())
def test_a_moment_comes_back_to_the_last_bit(first: Moment, second: Moment) -> None:
    """`repr` tells 0.0 from -0.0, 1 from 1.0, a list from a tuple, and prints every digit of a float."""
    assert repr(moment_from_json(moment_json(first))) == repr(first)
    told = json.loads(lunobiz.input_text(moment_row(second, first)))  # what differs from the first
    assert repr(moment_from_row(told, moment_from_json(moment_json(first)))) == repr(second)


def test_what_stays_the_same_is_not_told_twice() -> None:
    row = moment_row(moment(now_ms=NOW + 10_000, due=()), moment())
    assert row == {"t": NOW + 10_000, "due": (), "follow": False, "views": {PAIR: {}}}
    moved = moment(view(ticker=quote(99.8)))
    views = moment_row(moved, moment())["views"]
    assert isinstance(views, dict)
    assert list(views[PAIR]) == ["ticker"]


def test_a_zero_below_zero_is_another_number() -> None:
    """A replay is compared to the last bit, and so is what has changed."""
    row = moment_row(moment(conditions=Conditions(skew_ms=-0.0)), moment())
    assert repr(row["line"]) == "{'skew_ms': -0.0}"


def test_what_no_input_can_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="a complex is no input"):
        lunobiz.input_text({"n": 1j})


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"t":1}', '{"t":"x","views":{},"line":{},"due":[],"follow":false}',
    '{"t":1,"views":{"A":{"market":{"pear":1}}},"line":{},"due":[],"follow":false}',
    '{"t":1,"views":{"A":{"outlooks":[{"regime":"ODD"}]}},"line":{},"due":[],"follow":false}',
])  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        moment_from_json(text)


def test_settings_and_starts_come_back() -> None:
    odd = replace(Settings(), limits=replace(Settings().limits, risk_per_trade=0.1 + 0.2 - 0.295))
    start = StartRow(True, False, "1", "ab", "cd", odd, lunobiz.desk_json(desk()), {"fills": 3})
    assert lunobiz.start_from_text(lunobiz.start_text(start)) == start
    row = json.loads(lunobiz.start_text(start))
    row["settings"]["limits"]["unheard_of"] = 1
    with pytest.raises(DataError):
        lunobiz.start_from_text(json.dumps(row))


@pytest.mark.parametrize("part", ["settings", "marks"])
def test_what_is_no_start_is_refused(part: str) -> None:
    """Each of the two must be an object; the rest of it is sound."""
    start = StartRow(True, False, "1", "ab", "cd", Settings(), lunobiz.desk_json(desk()), {"fills": 3})
    row = json.loads(lunobiz.start_text(start)) | {part: [1]}
    with pytest.raises(DataError, match="the start of a recorded session cannot be read"):
        lunobiz.start_from_text(json.dumps(row))


@pytest.mark.parametrize("text", [
    "{}", '{"idle":"x","entries":[]}', '{"idle":0,"entries":{}}', '{"idle":0,"entries":[1]}',
    '{"idle":0,"entries":["x"]}', '{"idle":0,"entries":[{"act":"dance"}]}',
])  # fmt: skip
def test_what_is_no_block_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        block_entries(text)


# ---- what the exchange said of real orders ----------------------------------

FILLED = st.builds(
    lunobiz.Fill, st.text(max_size=9), st.text(max_size=9), st.sampled_from((PAIR, "BBBZAR")), st.sampled_from(Side),
    st.sampled_from(OrderKind), st.integers(0, 2**50), NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.text(),
)  # fmt: skip
ENDED = st.builds(lunobiz.Outcome, st.text(max_size=9), st.sampled_from(OrderState), st.text(), st.booleans(),
                  st.sampled_from(("", "ErrInsufficientFunds")))


@hypothesis_settings(max_examples=150, deadline=None)
@given(fills=st.lists(FILLED, max_size=3), outcomes=st.lists(ENDED, max_size=3))
def test_an_answer_of_the_exchange_comes_back_to_the_last_bit(
    fills: list[lunobiz.Fill], outcomes: list[lunobiz.Outcome]
) -> None:
    """Every side, kind and state, odd numbers and texts, in their order."""
    told = Settlement(tuple(fills), tuple(outcomes))
    text = lunobiz.input_text(settlement_row(told))
    assert repr(settlement_from_row(json.loads(text))) == repr(told)


SOUND = settlement_row(Settlement((fill(order(), 1.0, 99.9),), (lunobiz.Outcome("LB1-000001", OrderState.DONE, ""),)))


@pytest.mark.parametrize(("part", "name", "value"), [
    ("fills", "side", "SIDEWAYS"), ("fills", "kind", "GIFT"), ("fills", "tip", 1.0), ("outcomes", "state", "LOST"),
    ("outcomes", "odd", 1),
])  # fmt: skip
def test_an_answer_in_other_words_is_refused(part: str, name: str, value: object) -> None:
    row = json.loads(lunobiz.input_text(SOUND))
    assert settlement_from_row(row).fills[0].price == 99.9
    row[part][0][name] = value
    with pytest.raises(DataError, match="answer cannot be read"):
        settlement_from_row(row)


@pytest.mark.parametrize("row", [
    None, [], {}, {"fills": []}, {"outcomes": []}, {"fills": {}, "outcomes": []}, {"fills": [], "outcomes": ["x"]},
    {"fills": [{"side": "BUY", "kind": "ENTRY"}], "outcomes": []},
])  # fmt: skip
def test_what_is_no_answer_is_refused(row: object) -> None:
    with pytest.raises(DataError, match="answer cannot be read"):
        settlement_from_row(row)


class Answering:
    """Real orders, of which the exchange says what a test has told it."""

    def __init__(self, *answers: Settlement) -> None:
        self.answers = list(answers)
        self.placed: list[lunobiz.Order] = []
        self.cancelled: list[lunobiz.Order] = []

    def settle(self, seen: Moment) -> Settlement:
        """The next answer."""
        return self.answers.pop(0)

    def place(self, wanted: lunobiz.Order) -> None:
        """Remember it."""
        self.placed.append(wanted)

    def cancel(self, wanted: lunobiz.Order) -> None:
        """Remember it."""
        self.cancelled.append(wanted)


def test_real_answers_are_kept_and_a_rerun_believes_them() -> None:
    """The exchange fills half at 99.80, which no quote would give; then the rest. The kill switch is not asked."""
    at = Desktop(Desk(CASH))
    half = fill(order(), 4.0, 99.8, fill_id="F1")
    inner = Answering(
        Settlement(), Settlement((half,), (lunobiz.Outcome("LB1-000001", OrderState.OPEN, "accepted"),)), Settlement(),
    )  # fmt: skip
    at.executor = lunobiz.ListeningExecutor(at.log, inner)  # type: ignore[assignment]
    seen = [moment(WISH), moment(view(bar=None), now_ms=NOW + 10_000, due=()),
            moment(view(bar=None), now_ms=NOW + 20_000, due=())]
    told = [at.cycle(now) for now in seen]
    assert [o.kind for o in inner.placed] == [OrderKind.ENTRY, OrderKind.PROTECTION]
    entries = [e for e in at.taken() if e.moment is not None]
    assert [e.heard for e in entries] == [r.settlement for r in told][: len(entries)] and len(entries) >= 2
    rerun = lunobiz.Rerun(Settings(), Desk(CASH))
    again = [rerun.cycle(e.moment, e.answers, e.heard) for e in entries if e.moment is not None]
    assert [lunobiz.canonical(r.desk) for r in again] == [lunobiz.canonical(r.desk) for r in told][: len(again)]
    assert again[1].desk.positions[0].volume == 4.0


def test_an_answer_belongs_to_its_own_cycle() -> None:
    """A cycle that was not settled by the exchange has none, even after one that was."""
    log, inner = InputLog(Desk(CASH)), Answering(Settlement((fill(order(), 1.0, 99.9),)))
    executor = lunobiz.ListeningExecutor(log, inner)
    executor.settle(moment())
    executor.cancel(order())
    assert (inner.placed, inner.cancelled) == ([], [order()])
    log.see(moment(now_ms=NOW + 1))
    log.note(lunobiz.decide(Desk(CASH), moment(now_ms=NOW + 1), Settlement(), Settings()), True)
    (entry,) = [e for row in log.take() for e in block_entries(row.text)[1]]
    assert entry.heard is None


# ---- what a session keeps --------------------------------------------------


WISH = view(outlooks=(outlook(setup()),))


class Desktop:
    """A session on a desk, cycle after cycle, and what its log holds."""

    def __init__(self, before: Desk, is_killed: Callable[[], bool] = lambda: False) -> None:
        self.desk, self.settings = before, Settings()
        self.log = InputLog(before)
        self.executor = lunobiz.NotingExecutor(self.log, self.settings.costs, is_killed, before.orders)

    def record(self, report: lunobiz.CycleReport) -> None:
        """As the recorder of a session does."""
        self.log.note(report, not report.is_quiet)

    def cycle(self, now: Moment) -> lunobiz.CycleReport:
        """One cycle."""
        report = trade_cycle(self.desk, now, self.executor, self, self.settings)
        self.desk = report.desk
        return report

    def taken(self) -> list[lunobiz.Entry]:
        """The entries that have come together."""
        return [e for row in self.log.take() for e in block_entries(row.text)[1]]


def test_a_cycle_that_changed_nothing_is_counted_and_not_kept() -> None:
    at = Desktop(Desk(CASH))
    at.cycle(moment(due=()))  # the first one notes the day
    at.cycle(moment(now_ms=NOW + 10_000, due=()))
    at.cycle(moment(view(ticker=quote(99.0)), now_ms=NOW + 20_000, due=()))
    (row,) = at.log.take()
    idle, entries = block_entries(row.text)
    assert (row.time_ms, row.kind, idle, len(entries)) == (NOW, "block", 2, 1)
    assert at.log.take() == ()


def test_a_decision_is_kept_and_so_is_a_quote_that_moves_what_is_held() -> None:
    at = Desktop(Desk(CASH))
    report = at.cycle(moment(WISH))
    assert [o.kind for o in report.orders] == [OrderKind.ENTRY]
    low = view(ticker=quote(99.0, 99.2, last=99.0, at_ms=NOW + 10_000), bar=None)
    fill = at.cycle(moment(low, now_ms=NOW + 10_000, due=()))
    assert len(fill.settlement.fills) == 1
    at.cycle(moment(replace(low, ticker=quote(99.4, 99.6, at_ms=NOW + 60_000)), now_ms=NOW + 60_000, due=()))
    entries = at.taken()
    assert [e.moment.now_ms for e in entries if e.moment] == [NOW, NOW + 10_000, NOW + 60_000]
    assert [e.is_kept for e in entries][:2] == [True, True]


def test_a_book_is_kept_only_where_it_was_looked_at() -> None:
    book = OrderBook(NOW, ((99.9, 500.0),), ((100.1, 500.0),))
    quiet = view(market=market("BBB"), ticker=quote(pair="BBBZAR"), outlooks=(outlook(pair="BBBZAR"),), book=book)
    judged = view(outlooks=(outlook(setup()),), book=book)
    at = Desktop(Desk(CASH))
    at.cycle(moment(judged, quiet))
    (entry,) = at.taken()
    assert entry.moment is not None
    assert [v.book is None for v in entry.moment.views] == [False, True]


def test_a_book_that_an_order_takes_from_was_looked_at() -> None:
    """Its fill can have come from there, though no intent was judged in that cycle."""
    quiet = lunobiz.decide(desk(), moment(due=()), Settlement(), Settings())
    taking = desk(orders=(order(OrderKind.EXIT), order(order_id="LB1-000002", pair="BBBZAR")))
    assert lunobiz.read_books(taking, quiet) == {PAIR}


def test_a_rerun_hears_the_kill_switch_where_the_session_did() -> None:
    """The answer that was noted stops the order; without one it goes out and rests."""
    for answers, why in (((True,), "kill switch"), ((False,), "accepted"), ((), "accepted")):
        rerun = lunobiz.Rerun(Settings(), Desk(CASH))
        assert rerun.cycle(moment(WISH), answers).orders
        later = rerun.cycle(moment(now_ms=NOW + 10_000, due=()), ())
        assert [o.why for o in later.settlement.outcomes] == [why]


def test_answers_of_the_kill_switch_stand_before_the_next_cycle() -> None:
    at = Desktop(Desk(CASH), lambda: True)  # it came on after the decision
    at.cycle(moment(WISH))
    report = at.cycle(moment(now_ms=NOW + 10_000, due=()))
    assert [o.why for o in report.settlement.outcomes] == ["kill switch"]
    entries = at.taken()
    assert [(e.moment is None, e.answers) for e in entries] == [(False, ()), (True, (True,)), (False, ())]


@pytest.mark.parametrize(("act", "kinds"), [
    ("rearm", {CauseKind.WEEKLY_CAP, CauseKind.DAILY_CAP}), ("resolve", {CauseKind.KILL, CauseKind.DAILY_CAP}),
])  # fmt: skip
def test_an_act_of_the_owner_is_an_entry(act: str, kinds: set[CauseKind]) -> None:
    held = desk(causes=tuple(cause(k) for k in (CauseKind.KILL, CauseKind.WEEKLY_CAP, CauseKind.DAILY_CAP)))
    log = InputLog(held)
    after = log.act(act, NOW)
    assert {c.kind for c in after.causes} == kinds
    assert after.week_start_equity == (lunobiz.equity(held) if act == "resolve" else held.week_start_equity)
    (row,) = log.take()
    assert [e.act for e in block_entries(row.text)[1]] == [act]


def test_what_is_gone_leaves_the_position_and_is_no_loss() -> None:
    """10 bought at 100, 4 sold at 110, mark 100 and a taker fee of 0.5 % (0.005): 6 are left, 600 - 3 = 597 of value.

    3 of the 6 go, a half: 298.50 less of 100,597 is a share of 0.997033. What was bought falls by the same 3 of 10.
    """
    held = replace(position(), volume=6.0, bought=10.0, entry_value=1_000.0, fees=9.0, sold=4.0, exit_value=440.0,
                   mark=100.0, exit_fee=0.005)
    before = desk(100_000.0, positions=(held,), dust=((PAIR, 0.5),), day_start_equity=100_000.0,
                  week_start_equity=101_000.0, peak_equity=110_000.0)
    after = lunobiz.owner_act(before, f"gone {PAIR} 3.5")  # what was too small to sell goes first
    (left,) = after.positions
    assert (left.volume, left.bought, left.entry_value, left.fees) == pytest.approx((3.0, 7.0, 700.0, 6.3))
    assert left.entry == pytest.approx(held.entry) and (left.sold, left.exit_value) == (4.0, 440.0)
    assert after.dust == () and after.cash == 100_000.0 and after.closings == ()
    share = (100_000 + 298.5) / 100_597
    assert after.day_start_equity == pytest.approx(100_000 * share)
    assert after.week_start_equity == pytest.approx(101_000 * share)
    assert after.peak_equity == pytest.approx(110_000 * share)
    assert lunobiz.owner_act(after, f"gone {PAIR} 3.0").positions == ()


def test_what_is_gone_of_dust_alone_leaves_the_rest_of_it() -> None:
    dust = ((PAIR, 0.5), ("BBBZAR", 0.25))
    after = lunobiz.owner_act(desk(dust=dust), f"gone {PAIR} 0.3")
    assert dict(after.dust) == pytest.approx({PAIR: 0.2, "BBBZAR": 0.25})
    assert (after.cash, after.day_start_equity) == (CASH, CASH)


@pytest.mark.parametrize(("cash", "start"), [(1_000.0, 0.0), (0.0, 50.0)])
def test_when_all_is_gone_no_share_of_it_is_left(cash: float, start: float) -> None:
    """Of 1,000 all are gone: nothing is left to lose. Where nothing was, the limits stay as they were."""
    before = desk(cash, day_start_equity=50.0, week_start_equity=50.0, peak_equity=50.0)
    after = lunobiz.owner_act(before, "gone cash 1000")
    assert after.cash == cash - 1_000.0
    assert (after.day_start_equity, after.week_start_equity, after.peak_equity) == (start, start, start)


def test_closing_all_leaves_positions_and_calls_entries_off() -> None:
    """What is left already goes on as it was; a protection keeps its time; signals to be taken are forgotten."""
    leaving = replace(position(), pair="BBBZAR", phase=lunobiz.ExitPhase.EXITING, exit_why="stop", refused=1)
    stop = protection(order_id="LB1-000002")
    before = desk(positions=(replace(position(), refused=2), leaving), orders=(order(), stop), retries=(signal(),))
    after = lunobiz.owner_act(before, "close_all")
    first, second = after.positions
    assert (first.phase, first.exit_why, first.refused) == (
        lunobiz.ExitPhase.CANCELLING, "closed by the owner", 0)
    assert second == leaving
    assert after.orders == (replace(order(), expires_ms=1), stop) and after.retries == ()


@pytest.mark.parametrize("act", ["dance", "rearm twice", ""])
def test_an_act_that_is_none_lifts_nothing(act: str) -> None:
    halted = desk(causes=(cause(CauseKind.WEEKLY_CAP),))
    with pytest.raises(DataError, match="act"):
        lunobiz.owner_act(halted, act)


def test_what_is_gone_of_coins_that_are_nowhere_changes_nothing() -> None:
    before = desk(positions=(position(),))
    assert lunobiz.owner_act(before, "gone BBBZAR 1.0") == before


def test_an_act_with_an_amount_is_an_entry_too() -> None:
    log = InputLog(desk(CASH))
    after = log.act("gone cash 1000.25", NOW)
    assert after.cash == CASH - 1000.25
    (row,) = log.take()
    (entry,) = block_entries(row.text)[1]
    assert lunobiz.owner_act(desk(CASH), entry.act) == after


@pytest.mark.parametrize("amount", ["", "x", "nan", "inf", "-1", "0"])
def test_an_act_without_an_amount_is_refused(amount: str) -> None:
    with pytest.raises(DataError, match="act"):
        lunobiz.owner_act(desk(), f"gone cash {amount}")


def test_what_is_gone_is_told_in_words() -> None:
    assert lunobiz.gone_words("gone cash 1000.25", "ZAR") == (
        "1,000.25 ZAR less to trade with: they are not in the account any more")
    assert lunobiz.gone_words("gone XBTZAR 0.25", "ZAR") == (
        "0.25 XBT less in the position: they are not the bot's any more")


def test_a_replay_begins_where_no_order_waits_for_an_answer() -> None:
    resting = order(state=OrderState.OPEN)
    assert lunobiz.is_settled(desk(orders=()))
    assert lunobiz.is_settled(desk(orders=(resting,)))
    assert not lunobiz.is_settled(desk(orders=(resting, order(state=OrderState.INTENT, order_id="LB1-2"))))
    assert not lunobiz.is_settled(desk(orders=(replace(resting, is_cancelling=True),)))


def test_an_hour_of_quotes_is_written_without_waiting() -> None:
    log = InputLog(Desk(CASH))
    for number in range(lunobiz.BLOCK_ENTRIES):
        assert not log.is_full
        log.act("rearm", NOW + number)
    assert log.is_full


def test_new_candles_are_a_row_of_their_own_and_the_first_of_a_time_stays() -> None:
    log = InputLog(Desk(CASH))
    first, second = (lunobiz.Candle(NOW, 1.0, 2.0, 0.5, close, 3.0) for close in (1.5, 1.7))
    log.add_candles(NOW, [(PAIR, 3600, [first]), ("BBBZAR", 3600, [second])])
    log.add_candles(NOW + HOUR, [(PAIR, 3600, [second, replace(second, opened_ms=NOW + HOUR)])])
    (row,) = log.take()
    assert (row.kind, row.time_ms) == ("candles", NOW)
    found = lunobiz.candle_rows([row.text])
    assert found[(PAIR, 3600)].tolist() == [[NOW, 1, 2, 0.5, 1.5, 3], [NOW + HOUR, 1, 2, 0.5, 1.7, 3]]
    with pytest.raises(DataError):
        lunobiz.candle_rows(['{"candles":[1]}'])


def test_a_rerun_gives_what_the_session_gave() -> None:
    at = Desktop(Desk(CASH))
    low = view(ticker=quote(99.0, 99.2, last=99.0, at_ms=NOW + 10_000), bar=None)
    seen = (moment(WISH), moment(low, now_ms=NOW + 10_000, due=()), moment(low, now_ms=NOW + 20_000, due=()))
    told = [at.cycle(now) for now in seen]
    rerun = lunobiz.Rerun(Settings(), Desk(CASH))
    again = [rerun.cycle(e.moment, ()) for e in at.taken() if e.moment is not None]
    assert [lunobiz.canonical(r.desk) for r in again] == [lunobiz.canonical(r.desk) for r in told]
    assert [r.orders for r in again] == [r.orders for r in told]


# ---- readings computed once more ---------------------------------------------


def test_a_reading_is_computed_once_more_where_its_candle_was_kept() -> None:
    """Of the last candle and of the one before; not of a market, a length or a time that was not kept."""
    rows = np.array([[NOW + n * HOUR, 100.0, 101.0, 99.0, 100.0 + n % 3, 5.0] for n in range(400)])
    signals = lunobiz.Signals({(PAIR, 3600): rows}, Settings().params)
    for number in (398, 399):
        told = replace(outlook(), opened_ms=NOW + number * HOUR)
        again = signals.again(told)
        assert again is not None
        assert (again.pair, again.opened_ms, again.close) == (PAIR, told.opened_ms, 100.0 + number % 3)
    first = replace(outlook(), opened_ms=NOW)
    for missing in (replace(first, opened_ms=NOW + 400 * HOUR), replace(first, opened_ms=NOW + 1),
                    replace(first, pair="BBBZAR"), replace(first, timeframe_s=60)):
        assert signals.again(missing) is None
